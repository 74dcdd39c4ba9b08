"""Reference of all settings, as a page and as files to fill in.

`python -m curate.reference > docs/configuration.md` writes the page, `curate init` a file.
"""

import inspect
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from curate.app import load
from curate.options import group_of
from pipelines.benchmark import BenchmarkConfig
from pipelines.export import ExportConfig
from pipelines.generate import GenerateConfig
from pipelines.ingest import IngestConfig
from pipelines.inspect import DisagreementConfig, DuplicatesConfig, InspectConfig
from pipelines.report import ReportConfig
from pipelines.review import ReviewConfig
from pipelines.score import ScoreConfig
from pipelines.train import TrainConfig

COMMANDS: dict[str, type[BaseModel]] = {
    "ingest": IngestConfig,
    "train": TrainConfig,
    "score": ScoreConfig,
    "inspect": InspectConfig,
    "inspect --disagreement": DisagreementConfig,
    "inspect --near-duplicates": DuplicatesConfig,
    "review": ReviewConfig,
    "export": ExportConfig,
    "report": ReportConfig,
    "generate": GenerateConfig,
    "benchmark": BenchmarkConfig,
}

_INTRODUCTION = """\
# Configuration

Every command below takes all of its settings from a TOML file: `curate COMMAND --config FILE`. The settings used most
have a flag as well. A flag wins over the file, and the file over the default. curate refuses unknown keys, and suggests
the nearest known one.

Instead of a file, `--config` takes the name of a recipe that ships with curate:
{recipes}.
Without `--config`, `curate train` uses `cpu` if there is no GPU, and `curate benchmark` uses `benchmark-cpu`.

`curate demo` and `curate verify` have flags only; `curate COMMAND -h` lists them.

This page is generated from the fields of the configurations: `python -m curate.reference > docs/configuration.md`.
"""

_BOUNDS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}", "multiple_of": "a multiple of {}"}
_NAMES = {int: "integer", float: "number", str: "string", bool: "boolean", Path: "path", Any: "any", dict: "table"}


def page() -> str:
    """Return the page in Markdown."""
    recipes = sorted(recipe.stem for recipe in (Path(__file__).parent / "recipes").iterdir())
    sections = [_INTRODUCTION.format(recipes=", ".join(f"`{recipe}`" for recipe in recipes))]
    for title, kind in COMMANDS.items():
        command = load(title.split()[0])
        flags = {parameter.name: _spelled(parameter) for parameter in command.params}
        sections += [f"## curate {title}\n", *_tables(kind, flags)]
    return "\n".join(sections)


def template(command: str) -> str:
    """TOML file with every setting of one of COMMANDS as a comment, which has the default where there is one."""
    lines = [f"# Settings of `curate {command}`. A line without its # sets what it says.", ""]
    return "\n".join([*lines, *_commented(COMMANDS[command])]) + "\n"


def _commented(kind: type[BaseModel], path: str = "") -> Iterator[str]:
    groups = {name: group for name, field in kind.model_fields.items() if (group := group_of(field))}
    if path:
        yield f"[{path}]"
        yield ""
    for name, field in kind.model_fields.items():
        if name in groups:
            continue
        type_ = _type(field.annotation, _bounds(field.metadata)).replace("`", "")
        about = f"{field.description or ''} ({'required; ' if field.is_required() else ''}{type_})"
        yield from (f"## {line}" for line in textwrap.wrap(about.strip(), 110))
        default = "" if field.is_required() or field.default_factory else _toml(field.default).strip("`")
        yield f"# {name} = {default}".rstrip()
        yield ""
    for name, group in groups.items():
        yield from _commented(group, f"{path}.{name}".strip("."))


def _tables(kind: type[BaseModel], flags: dict[str, str], path: str = "") -> Iterator[str]:
    """Yield the table of a configuration, then a section for each of its groups."""
    if path:
        yield f"### [{path}]\n"
    yield f"{inspect.getdoc(kind)}\n"
    groups = {name: group for name, field in kind.model_fields.items() if (group := group_of(field))}
    plain = {name: field for name, field in kind.model_fields.items() if name not in groups}
    if plain:
        yield "| key | type | default | meaning | flag |\n|---|---|---|---|---|"
        yield "".join(f"{_row(name, field, flags.get(name, ''))}\n" for name, field in plain.items())
    for name, group in groups.items():
        yield from _tables(group, flags, f"{path}.{name}".strip("."))


def _row(name: str, field: FieldInfo, flag: str) -> str:
    default = "*required*" if field.is_required() else _toml(field.default) if not field.default_factory else ""
    cells = (f"`{name}`", _type(field.annotation, _bounds(field.metadata)), default, field.description or "", flag)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _toml(value: Any) -> str:
    """Value as a TOML file has it; empty if it has none."""
    if value is None:
        return ""
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value, default=str)}`"


def _bounds(metadata: list[Any]) -> str:
    found = [
        text.format(f"{bound:,}")
        for each in metadata
        for name, text in _BOUNDS.items()
        if (bound := getattr(each, name, None)) is not None
    ]
    return "".join(f" {bound}" if number == 0 else f", {bound}" for number, bound in enumerate(found))


def _type(annotation: Any, bounds: str = "") -> str:
    origin, inner = get_origin(annotation), [each for each in get_args(annotation) if each is not NoneType]
    if origin is Literal:
        return " or ".join(f"`{json.dumps(choice)}`" for choice in inner)
    if origin is Annotated:
        return _type(inner[0], bounds + _bounds(inner[1:]))
    if origin in (Union, UnionType):
        return _type(inner[0], bounds) if len(inner) == 1 else "path or URL"
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    return _NAMES[origin or annotation] + bounds


def _spelled(parameter: Any) -> str:
    """How a command line gives the parameter: its flags, or the name of the argument."""
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    return " ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


if __name__ == "__main__":
    print(page(), end="")
