"""`curate init`."""

from pathlib import Path
from typing import Annotated

import typer

from curate import console
from pipelines.errors import BadInput


def init(
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="Command whose settings the file has.")] = "train",
    out: Annotated[
        Path | None,
        typer.Option(metavar="<path>", help="File to write; without it, COMMAND.toml.", rich_help_panel="Data"),
    ] = None,
) -> None:
    """Write a file with all settings of a command and what they mean, to be changed and given with --config."""
    from curate.reference import COMMANDS, template  # imports the configurations of all commands

    if command not in COMMANDS:
        raise BadInput(f"{command}: has no settings in a file. Name one of {', '.join(COMMANDS)}.")
    file = out or Path(f"{command.split()[0]}.toml")
    try:
        with file.open("x", encoding="utf-8") as written:
            written.write(template(command))
    except FileExistsError:
        raise BadInput(f"{file}: is there already. Name another file with --out, or remove it.") from None
    except OSError as error:
        raise BadInput(f"{file}: cannot be written ({error.strerror}).") from None
    again = console.command(*command.split(), config=file)
    console.note(f"Wrote {file}. Change what you want to, then run {again}")
