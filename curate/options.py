"""Options of the commands, made from the fields of their configurations.

Type, default and description of an option stand in the configuration alone. A command says which fields are its options
and in which group of its help, and how an option is spelled where it is not spelled like the field:

    @options(ScoreConfig, groups={"Data": ("pool", "run"), "Machine": ("device",)})
    def score(flags: Flags, config: ConfigFile = None, json: Json = False) -> None:

`curate score` then has --pool, --run and --device, and `flags` holds the values of those that were given, by field.
A field in a group of the configuration goes by its path: "recipe.num_steps" becomes --num-steps.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

Flags: TypeAlias = dict[str, Any]
Function: TypeAlias = Callable[..., None]

GENERAL = "General"
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="<file>", help="TOML file with any setting of this command.", rich_help_panel=GENERAL
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=GENERAL)]


def options(
    *kinds: type[BaseModel],
    groups: Mapping[str, Sequence[str]],
    names: Mapping[str, str] = MappingProxyType({}),
    recipe: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[Function], Function]:
    """Make a command of a function of `flags` and, as in any Typer command, further options.

    `groups` has the fields of the configurations `kinds` by group of the help. `names` spells options that are not
    spelled like their field: {"neighbors": "--neighbors -k"}. `recipe` has values that replace the fields' defaults
    where the command is given no --config.
    """
    settings = {path: field for kind in reversed(kinds) for path, field in settings_of(kind).items()}

    def decorate(function: Function) -> Function:
        made = {
            path: _parameter(settings[path], path, group, names.get(path, option_name(path)), recipe)
            for group, paths in groups.items()
            for path in paths
        }
        own = [parameter for name, parameter in inspect.signature(function).parameters.items() if name != "flags"]
        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)

        def command(context: typer.Context, **values: Any) -> None:
            flags = {path: values.pop(parameter.name) for path, parameter in made.items()}
            given = {
                path: with_home(settings[path], flag)
                for path, flag in flags.items()
                if _is_given(context, made[path].name)
            }
            function(given, **values)

        update_wrapper(command, function)
        command.__signature__ = inspect.Signature([context, *made.values(), *own])  # type: ignore[attr-defined]
        return command

    return decorate


def option_name(path: str) -> str:
    """Option of the field at a path: --num-steps for "recipe.num_steps"."""
    return "--" + path.rpartition(".")[2].replace("_", "-")


def settings_of(kind: type[BaseModel], inside: str = "") -> dict[str, FieldInfo]:
    """Fields of a configuration and of its groups, by path, in their order."""
    found = dict[str, FieldInfo]()
    for name, field in kind.model_fields.items():
        if group := group_of(field):
            found |= settings_of(group, f"{inside}{name}.")
        else:
            found[inside + name] = field
    return found


def group_of(field: FieldInfo) -> type[BaseModel] | None:
    """Class of a field that is a group of the configuration; None of any other field."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def with_home(field: FieldInfo, value: Any) -> Any:
    """Value of a field; where it is a path that begins with ~, the shell has left that alone, as in --pool=~/pool."""
    if Path in (field.annotation, *get_args(field.annotation)) and isinstance(value, str | Path):
        return type(value)(os.path.expanduser(value))  # noqa: PTH111 - Path's own raises for ~nobody
    return value


def _parameter(field: FieldInfo, path: str, group: str, spelled: str, recipe: Mapping[str, Any]) -> inspect.Parameter:
    kind, metavar, choices = _type(field.annotation)
    default = recipe.get(path, None if field.is_required() or field.default_factory else field.default)
    if isinstance(default, tuple):
        default = list(default)
    elif kind is str and default is not None:
        default = str(default)
    if kind is bool and default is not False:  # also where None leaves it to the command
        spelled += f"/--no-{spelled.removeprefix('--')}"
    option = typer.Option(
        *spelled.split(),
        metavar=metavar,
        help=field.description,
        rich_help_panel=group,
        autocompletion=(lambda: list(choices)) if choices else None,
    )
    return inspect.Parameter(
        path.rpartition(".")[2],
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=default,
        annotation=Annotated[kind if default is not None else kind | None, option],
    )


def _type(annotation: Any) -> tuple[Any, str | None, tuple[str, ...]]:
    """Type that Typer knows for the type of a field, how the help shows it, and the values that a shell completes.

    Numbers and choices go as text: the configuration checks them, and says what is wrong in words of its own.
    """
    origin, inner = get_origin(annotation), [each for each in get_args(annotation) if each is not NoneType]
    if origin is Annotated:
        return _type(inner[0])
    if origin in (Union, UnionType):
        return _type(inner[0]) if len(inner) == 1 else (str, "<path|URL>", ())
    if origin is Literal:
        return str, f"<{'|'.join(inner)}>", tuple(inner)
    if origin is tuple:
        kind, shown, choices = _type(inner[0])
        return list[kind], shown or f"<{kind.__name__}>", choices  # type: ignore[valid-type]
    return (str, f"<{annotation.__name__}>", ()) if annotation in (int, float) else (annotation, None, ())


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


class Command(TyperCommand):
    """A command whose help lists its options by group.

    Typer does so itself only in its boxes, which cut long option names and leave half of the width for the text.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group; arguments come first, what all commands share comes last."""
        sections = {"Arguments": list[tuple[str, str]]()}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                is_argument = parameter.param_type_name == "argument"
                group = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or GENERAL
                sections.setdefault(group, []).append((record[0].removesuffix(" <list[str]>"), record[1]))
        sections[GENERAL] = sections.pop(GENERAL)
        for group, records in sections.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)
