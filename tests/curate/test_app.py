"""The command line as a user meets it: quick to start, documented, one sentence for each mistake."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from curate import app
from curate.app import explain
from curate.config import resolve
from pipelines.distribution import VERSION
from pipelines.errors import BadInput
from pipelines.train import TrainConfig
from tests.warm import curate

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(app.COMMANDS)


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "curate", *arguments], cwd=cwd, capture_output=True, text=True)


def test_help_starts_without_the_heavy_libraries(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom curate import app\nfor name in app.COMMANDS: app.load(name)\n"
        "heavy = {'torch', 'timm', 'faiss', 'duckdb', 'pyarrow', 'numpy', 'PIL', 'webdataset', 'jinja2',"
        "'starlette', 'uvicorn', 'fsspec', 'upath', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["verify", "report"])
def test_a_mistake_is_said_before_torch_is_imported(command: str, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom curate.app import main\n"
        f"sys.argv = ['curate', '{command}', '--pool', 'nowhere']\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (1, "False\n"), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_is_in_the_readme(command: str, tmp_path: Path) -> None:
    done = run(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert f"curate {command}" in (ROOT / "README.md").read_text()


def test_version(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"curate {VERSION}\n")


def test_commands_are_these() -> None:
    assert COMMANDS == [
        "benchmark", "demo", "export", "generate", "ingest", "init", "inspect", "report", "review", "score",
        "train", "verify",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("train",), 2, "--labeled is missing"),
        (("train", "--labeled", "seed"), 1, "run `curate ingest"),
        (
            ("train", "--labeled", "seed", "--image-size", "4"),
            2,
            "--image-size 4: must be 8 or more.",
        ),
        (("train", "--labeled", "seed", "--config", "nowhere.toml"), 2, "give a TOML file or one of benchmark-cpu"),
        (
            ("benchmark", "--real", "r", "--synthetic", "s", "--test", "t", "--learning-rate", "0"),
            2,
            "curate: --learning-rate 0: must be more than 0.",
        ),
        (("score",), 1, "run `curate ingest"),
        (("train", "--config", "no-labels.toml"), 2, "--labeled is missing; give it, or labeled in --config."),
        (("train", "--config", "no-path.toml"), 2, "no-path.toml: pool = 5: Input is no path"),
        (
            ("train", "--labeled", "seed", "--seed", str(2**63)),
            2,
            "--seed 9223372036854775808: must be less than 9223372036854775808.",
        ),
        (("demo", "--seed", "-1"), 2, "--seed"),
        (("verify", "--run", "nowhere"), 2, "--run nowhere: is not a folder"),
        (("ingest", "nowhere"), 2, "nowhere"),
        (("frobnicate",), 2, "No such command"),
        (("train", "--frobnicate"), 2, "No such option"),
    ],
)
def test_mistakes_get_one_sentence_and_their_exit_code(
    arguments: tuple[str, ...], code: int, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "no-labels.toml").write_text("recipe.num_steps = 9\n")
    (tmp_path / "no-path.toml").write_text('labeled = "seed"\npool = 5\n')
    done = curate(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_init_writes_all_settings_once(tmp_path: Path) -> None:
    done = curate("init", "score", cwd=tmp_path)
    assert done.returncode == 0 and "curate score --config score.toml" in done.stderr
    assert "# max_false_positive_rate =" in (tmp_path / "score.toml").read_text()
    (tmp_path / "score.toml").write_text("mine")
    for arguments, sentence in ((("score",), "score.toml: is there already"), (("verify",), "Name one of ingest")):
        done = curate("init", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and sentence in done.stderr
    assert (tmp_path / "score.toml").read_text() == "mine"


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[recipe]\nlearning_rat = 0.1\n")
    with pytest.raises(BadInput, match=r"unknown key 'recipe\.learning_rat'; did you mean 'recipe\.learning_rate'"):
        resolve(TrainConfig, {"labeled": "seed"}, str(recipe))


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[recipe]\nnum_steps = 10\n[network]\nbackbone = "small"\n')
    config = resolve(TrainConfig, {"labeled": "seed", "recipe.num_steps": 20, "seed": None}, str(recipe))
    assert (config.recipe.num_steps, config.network.backbone, config.seed) == (20, "small", 0)


def test_a_wrong_value_in_the_file_names_the_file(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[recipe]\nnum_steps = 'many'\n")
    with pytest.raises(BadInput, match=r"recipe\.toml: recipe\.num_steps = 'many'"):
        resolve(TrainConfig, {"labeled": "seed"}, str(recipe))


def test_the_package_runs_from_a_folder_with_packages_of_our_names(tmp_path: Path) -> None:
    for name in ("models", "pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a package of the user')")
    script = "import sys; sys.path.insert(0, ''); import curate.app; import pipelines; print(pipelines.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert str(ROOT / "pipelines") in done.stdout, done.stderr


def test_ctrl_c_is_one_sentence_and_exit_130(tmp_path: Path) -> None:
    """While the list of sources is read, which is a pipe that nobody ends."""
    os.mkfifo(tmp_path / "list")
    # A suite that runs in the background hands Ctrl-C down as ignored.
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import curate.app as c; c.main()"
    command = [sys.executable, "-c", script, "ingest", f"@{tmp_path}/list", "--pool", str(tmp_path / "pool")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    with (tmp_path / "list").open("w"):  # opens when the other side does
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "curate: Interrupted. Run the same command again to resume.\n"


def test_an_error_that_a_library_makes_of_ctrl_c_is_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    """DuckDB answers Ctrl-C so; of itself the error is a bug."""
    assert explain(RuntimeError("Query interrupted"), interrupted=True) == 130
    assert "Run the same command again to resume" in capsys.readouterr().err
    assert explain(RuntimeError("Query interrupted"), interrupted=False) == 70
    assert "bug" in capsys.readouterr().err
