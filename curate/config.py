"""From defaults, a TOML file and flags to one checked configuration: default < file < flag."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from curate.options import Flags, group_of, option_name, settings_of, with_home
from pipelines.errors import BadInput

Config = TypeVar("Config", bound=BaseModel)

RECIPES = Path(__file__).parent / "recipes"


def resolve(
    kind: type[Config], flags: Flags, file: str | None = None, *, names: Mapping[str, str] = MappingProxyType({})
) -> Config:
    """Build a `kind` from `file` and from `flags`, which are values by the path of a field; None counts as not given.

    `file` is a TOML file, or the name of a recipe that ships with curate (`cpu`). `names` has the options that are not
    spelled like their field, as in `curate.options.options`.
    Raises BadInput that says which option or key is wrong, with which value, and where it came from.
    """
    values = read_toml(file) if file else {}
    settings = settings_of(kind)
    _refuse_unknown_keys(kind, values, str(file), tuple(settings))
    for path, field in settings.items():
        *groups, name = path.split(".")
        table = _table(values, groups)
        if name in table:
            table[name] = with_home(field, table[name])
    given = {path: value for path, value in flags.items() if value is not None}
    for path, value in given.items():
        *groups, name = path.split(".")
        table = values
        for group in groups:
            table = table.setdefault(group, {})
        table[name] = value
    try:
        return kind(**values)
    except ValidationError as error:
        raise BadInput(_explanation(error, given, file, names)) from None


def setting(kind: type[BaseModel], name: str) -> str:
    """Path of the setting that an option is called after: "recipe.num_steps" for num_steps. BadInput for no setting."""
    paths = {path.rpartition(".")[2]: path for path in settings_of(kind)}
    if name not in paths:
        raise BadInput(f"There is no setting {name!r}; {_hint(name, tuple(paths), '')}")
    return paths[name]


def _table(values: dict[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """Table of a group; an empty one where there is none."""
    for group in groups:
        values = values.get(group, {})
    return values


def read_toml(file: str) -> dict[str, Any]:
    """Read a TOML file, or a recipe that ships with curate. Raises BadInput if it can't be read."""
    path, shipped = Path(file).expanduser(), RECIPES / f"{file}.toml"
    try:
        text = (shipped if not path.suffix and shipped.is_file() else path).read_text(encoding="utf-8")
        return tomllib.loads(text)
    except OSError as error:
        names = ", ".join(sorted(recipe.stem for recipe in RECIPES.iterdir()))
        raise BadInput(
            f"--config {file}: cannot be read ({error.strerror}); give a TOML file or one of {names}."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"--config {file}: is not TOML ({error}).") from None


def _refuse_unknown_keys(
    kind: type[BaseModel], table: Mapping[str, Any], file: str, known: Sequence[str], inside: str = ""
) -> None:
    """Raise BadInput for a key that the configuration does not have; `known` has the paths of those that it has."""
    for key, value in table.items():
        if (field := kind.model_fields.get(key)) is None:
            raise BadInput(f"{file}: unknown key {inside + key!r}; {_hint(key, known, inside)}")
        if group := group_of(field):
            if not isinstance(value, dict):
                raise BadInput(f"{file}: {inside + key} = {value!r}: must be a table, [{inside + key}].")
            _refuse_unknown_keys(group, value, file, known, f"{inside}{key}.")


def _hint(key: str, known: Sequence[str], inside: str) -> str:
    """Known key that an unknown one may have been meant to be: one of its own table, else one of any."""
    rests = (path.removeprefix(inside) for path in known if path.startswith(inside))
    beside = {key: f"{inside}{key}" for key in (rest.partition(".")[0] for rest in rests)}
    anywhere = {path.rpartition(".")[2]: path for path in known}
    for paths in (beside, anywhere):
        if near := difflib.get_close_matches(key, paths, n=1):
            return f"did you mean {paths[near[0]]!r}?"
    return f"known keys: {', '.join(sorted(beside.values()))}."


_IN_WORDS = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "literal_error": "must be one of {expected}",
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be {le} or less",
    "less_than": "must be less than {lt}",
}  # by Pydantic's types of error


def _in_words(error: ErrorDetails) -> str:
    """What is wrong with a value."""
    limits = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in error.get("ctx", {}).items()}
    return _IN_WORDS[error["type"]].format(**limits) if error["type"] in _IN_WORDS else error["msg"]


def _explanation(error: ValidationError, given: Flags, file: str | None, names: Mapping[str, str]) -> str:
    """Say in a sentence what is wrong with the first value that was refused, and where it came from."""
    first = error.errors()[0]
    path, value = ".".join(map(str, first["loc"])), first["input"]
    field = next((each for each in given if f"{path}.".startswith(f"{each}.")), path)
    option = names.get(field, option_name(field)).split()[0]
    if first["type"] == "missing":
        return f"{option} is missing; give it, or {path} in --config."
    why = str(first["ctx"]["error"]) if first["type"] == "value_error" else _in_words(first)
    if field in given:
        shown = ",".join(map(str, value)) if isinstance(value, tuple | list) else value
        return f"{option} {shown}: {why}."
    shown = (
        "" if isinstance(value, dict) else f"{path} = {value!r}: "
    )  # of a group as a whole, the sentence says enough
    return f"{file or 'configuration'}: {shown}{why}."
