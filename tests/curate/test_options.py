"""The options of all commands: frozen in options.txt, documented, and made from the fields of the configurations.

After a wanted change: `python tests/curate/test_options.py > tests/curate/options.txt` and
`python -m curate.reference > docs/configuration.md`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from typer.testing import CliRunner

from curate import app, reference
from curate.config import resolve
from curate.options import Command, ConfigFile, Flags, Json, options, settings_of
from pipelines.errors import BadInput
from pipelines.train import TrainConfig

ROOT = Path(__file__).parents[2]
COMMANDS: dict[str, Any] = {name: app.load(name) for name in app.COMMANDS}


def listing() -> Iterator[str]:
    """Each option of each command: its group, names, type or choices, and default."""
    for name, command in COMMANDS.items():
        context = typer.Context(command)
        for parameter in command.get_params(context):
            group = getattr(parameter, "rich_help_panel", None) or ""
            spelled, _ = parameter.get_help_record(context)
            default = "" if parameter.default is None else f"  [{parameter.default}]"
            yield f"{name:<10}{group:<10}{spelled}{default}"


def test_the_listing_of_all_options_is_the_frozen_one() -> None:
    assert list(listing()) == (Path(__file__).parent / "options.txt").read_text(encoding="utf-8").splitlines()


def test_the_documented_settings_are_those_of_the_configurations() -> None:
    assert reference.page() == (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", reference.COMMANDS.values())
def test_every_setting_has_a_description(kind: type[BaseModel]) -> None:
    assert not [path for path, field in settings_of(kind).items() if not field.description]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_readable_at_80_columns(command: str) -> None:
    short, long = (CliRunner().invoke(app.app, [command, flag], env={"COLUMNS": "80"}) for flag in ("-h", "--help"))
    assert short.exit_code == 0 and short.stdout == long.stdout
    assert max(map(len, short.stdout.splitlines())) <= 80
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "option":
            assert all(name in short.stdout for name in (*parameter.opts, *parameter.secondary_opts))
            assert parameter.help and parameter.rich_help_panel


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("curate re", {"report", "review"}),
        ("curate train --meth", {"--method"}),
        ("curate train --method f", {"fixmatch"}),
        ("curate score --engine ", {"local", "ray"}),
    ],
)
def test_the_shell_completes_commands_options_and_choices(words: str, completed: set[str]) -> None:
    environment = {
        "_CURATE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)
    }  # fmt: skip
    done = CliRunner().invoke(app.app, [], env=environment, prog_name="curate")
    assert set(done.stdout.split()) == completed


class _Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid")
    num_steps: int = Field(default=100, ge=1, description="Training steps.")
    rates: tuple[PositiveFloat, ...] = Field(default=(0.1,), description="Learning rates.")
    resume: bool = Field(default=True, description="Resume.")


class _Config(BaseModel):
    """A configuration with a group, and with a field of every type that options have."""

    model_config = ConfigDict(extra="forbid")
    out: Path = Field(description="Folder to write.")
    mode: Literal["fast", "slow"] = Field(default="fast", description="Mode.")
    limit: Annotated[float, Field(gt=0)] | None = Field(default=None, description="Limit.")
    strict: bool = Field(default=False, description="Strict.")
    recipe: _Recipe = _Recipe()


@pytest.fixture
def invoke() -> Any:
    """Calls a command of `_Config`; returns its flags and its help."""
    toy, seen = typer.Typer(rich_markup_mode=None), []

    @toy.command(cls=Command)
    @options(
        _Config,
        groups={
            "Data": ("out", "limit"),
            "Recipe": ("mode", "strict", *(f"recipe.{name}" for name in ("num_steps", "rates", "resume"))),
        },
        names={"recipe.rates": "--rate -r"},
    )
    def command(flags: Flags, config: ConfigFile = None, json: Json = False) -> None:
        seen.append(flags)

    def call(*arguments: str) -> Any:
        done = CliRunner().invoke(toy, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        return seen[-1] if seen else done.stdout

    return call


def test_flags_are_those_that_were_given_by_the_path_of_their_field(invoke: Any) -> None:
    assert invoke("--out", "o", "--num-steps", "100", "-r", "1", "--rate", "2", "--no-resume", "--strict") == {
        "out": Path("o"), "strict": True, "recipe.num_steps": "100", "recipe.rates": ["1", "2"], "recipe.resume": False
    }  # fmt: skip
    assert invoke() == {}


def test_the_help_shows_each_default_once_and_by_group(invoke: Any) -> None:
    text = " ".join(invoke("--help").split())
    assert "Data: --out <path> Folder to write. --limit <float> Limit. Recipe: --mode <fast|slow>" in text
    assert "--strict Strict. --num-steps <int> Training steps. [default: 100]" in text
    assert "--resume / --no-resume Resume. [default: resume]" in text
    assert text.count("[default: 100]") == 1


def test_a_path_that_begins_with_the_home_folder_is_expanded_wherever_it_stands(
    invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert invoke("--out=~/o") == {"out": tmp_path / "o"}  # which a shell leaves as it is
    assert invoke("--out=~nobody-is-called-so/o") == {"out": Path("~nobody-is-called-so/o")}
    (tmp_path / "file.toml").write_text('labeled = "~/seed"\npool = "~/pool"\nrun = "~/a~b"\nseed = 1\n')
    config = resolve(TrainConfig, {}, "~/file.toml")
    assert (config.labeled, config.pool, config.run) == (tmp_path / "seed", tmp_path / "pool", tmp_path / "a~b")
    (tmp_path / "file.toml").write_text('labeled = "x~/seed"\npool = "s3://bucket/~pool"\n')
    config = resolve(TrainConfig, {}, "~/file.toml")
    assert (str(config.labeled), str(config.pool)) == ("x~/seed", "s3://bucket/~pool")


@pytest.mark.parametrize("option", ["pool", "run"])
def test_a_folder_whose_name_is_not_utf8_is_one_sentence(option: str) -> None:
    with pytest.raises(BadInput, match=r"^p\\xf6l: is not a name in UTF-8, or the locale is not\. Rename"):
        resolve(TrainConfig, {"labeled": Path("seed"), option: os.fsdecode(b"p\xf6l")})


def test_a_flag_wins_over_the_table_of_its_group_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text('out = "a"\n[recipe]\nnum_steps = 5\nrates = [0.5]\n')
    config = resolve(_Config, {"recipe.num_steps": 7, "mode": None}, str(file))
    assert (config.out, config.mode) == (Path("a"), "fast")
    assert (config.recipe.num_steps, config.recipe.rates, config.recipe.resume) == (7, (0.5,), True)


@pytest.mark.parametrize(
    ("text", "flags", "sentence"),
    [
        ("recipe = 5", {}, r"file\.toml: recipe = 5: must be a table, \[recipe\]\."),
        ("[recipe]\nnum_step = 5", {}, r"unknown key 'recipe\.num_step'; did you mean 'recipe\.num_steps'\?"),
        ("num_steps = 5", {}, r"unknown key 'num_steps'; did you mean 'recipe\.num_steps'\?"),
        ("[recipes]\nnum_steps = 5", {}, r"unknown key 'recipes'; did you mean 'recipe'\?"),
        ("[recipe]\nnothing = 5", {}, r"known keys: recipe\.num_steps, recipe\.rates, recipe\.resume\."),
        ("[recipe]\nnum_steps = 0", {}, r"file\.toml: recipe\.num_steps = 0: must be"),
        ("[recipe]\nnum_steps = 5", {"recipe.num_steps": 0}, r"^--num-steps 0: must be"),
        ("", {"recipe.rates": [0.5, -1.0]}, r"^--rate -1\.0: must be more than 0\."),
        ("", {"out": None}, r"^--out is missing; give it, or out in --config\."),
    ],
)  # fmt: skip
def test_mistakes_name_the_option_or_the_key(tmp_path: Path, text: str, flags: Flags, sentence: str) -> None:
    file = tmp_path / "file.toml"
    file.write_text(text)
    with pytest.raises(BadInput, match=sentence):
        resolve(_Config, {"out": "o"} | flags, str(file), names={"recipe.rates": "--rate -r"})


if __name__ == "__main__":
    print("\n".join(listing()))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("x", "must be a whole number"),
        ("2.5", "must be a whole number"),
        ("0", "must be 1 or more"),
        ("", "must be a whole number"),
    ],
)
def test_a_number_that_is_none_is_said_in_words(value: str, says: str) -> None:
    with pytest.raises(BadInput, match=f"^--num-steps {value}: {says}.$"):
        resolve(TrainConfig, {"labeled": "seed", "recipe.num_steps": value})
    with pytest.raises(
        BadInput, match=r"^--rule best: must be one of 'fixmatch', 'flexmatch', 'freematch' or 'softmatch'"
    ):
        resolve(TrainConfig, {"labeled": "seed", "recipe.rule": "best"})


@pytest.mark.parametrize("command", reference.COMMANDS)
def test_a_file_with_all_settings_has_the_defaults(command: str, tmp_path: Path) -> None:
    """Every line that has a value is uncommented: the same configuration as without the file."""
    kind, text = reference.COMMANDS[command], reference.template(command)
    fields = {name: field for name, field in kind.model_fields.items() if field.is_required()}
    values = {tuple: ("1",), int: 1}
    required = {name: values.get(get_origin(each.annotation) or each.annotation, "x") for name, each in fields.items()}
    lines = [line.removeprefix("# ") for line in text.splitlines() if re.match(r"# \w+ = .|\[", line)]
    (tmp_path / "all.toml").write_text("\n".join(lines))
    found, plain = (resolve(kind, required, file) for file in (str(tmp_path / "all.toml"), None))
    assert found == plain
    for path in settings_of(kind):
        assert f"# {path.rpartition('.')[2]} =" in text
