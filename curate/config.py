"""From defaults, a TOML file and flags to one checked configuration: default < file < flag."""

import difflib
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.errors import BadInput

Config = TypeVar("Config", bound=BaseModel)


def resolve(
    kind: type[Config],
    flags: Mapping[str, Any],
    recipe: str | None = None,
    *,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Config:
    """Build a `kind` from the flags that were given (those that are not None) over `recipe`.

    `recipe` is a TOML file, or the name of one that ships with curate (`cpu`); `options` names the option of a flag
    where that is not the flag's own name.
    Raises BadInput naming the key, the value and where it came from.
    """
    values = _read(recipe) if recipe else {}
    for key in values:
        if key not in kind.model_fields:
            near = difflib.get_close_matches(key, kind.model_fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(kind.model_fields))}."
            raise BadInput(f"{recipe}: unknown key {key!r}; {hint}")
    for key, value in flags.items():
        if value is not None:
            *groups, name = key.split(".")
            table = values
            for group in groups:
                table = table.setdefault(group, {})
            table[name] = value
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        flag = next((name for name in flags if key == name or key.startswith(f"{name}.")), key)
        option = options.get(flag, f"--{flag.rpartition('.')[2].replace('_', '-')}")
        if first["type"] == "missing":
            raise BadInput(f"{option} is missing; give it, or {key} in --config.") from None
        where = option if flags.get(flag) is not None else (recipe or "configuration")
        raise BadInput(f"{where}: {key} = {first['input']!r}: {first['msg']}.") from None


def _read(recipe: str) -> dict[str, Any]:
    shipped = files("curate").joinpath("recipes", f"{recipe}.toml")
    path = Path(recipe)
    try:
        text = shipped.read_text() if not path.suffix and shipped.is_file() else path.read_text(encoding="utf-8")
        return tomllib.loads(text)
    except OSError as error:
        names = sorted(entry.name.removesuffix(".toml") for entry in files("curate").joinpath("recipes").iterdir())
        raise BadInput(
            f"--config {recipe}: cannot be read ({error.strerror}); give a TOML file or one of {', '.join(names)}."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"--config {recipe}: is not TOML ({error}).") from None
