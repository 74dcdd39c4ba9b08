"""The command line: loads a command when it is asked for, and turns every error into a sentence and an exit code."""

import signal
import sys
import traceback
from importlib import import_module
from io import TextIOWrapper
from threading import Event
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from curate import console
from curate.options import Command
from pipelines.distribution import VERSION
from pipelines.errors import CurateError

COMMANDS = (
    "ingest", "train", "score", "inspect", "review", "export", "report", "verify", "demo", "init", "generate",
    "benchmark",
)  # fmt: skip


def load(name: str) -> TyperCommand:
    """Import one of COMMANDS: the function `curate.commands.NAME.NAME`."""
    one = typer.Typer(add_completion=False, rich_markup_mode=None)
    one.command(cls=Command)(getattr(import_module(f"curate.commands.{name}"), name))
    command = typer.main.get_command(one)
    assert isinstance(command, TyperCommand)
    return command


class Commands(TyperGroup):
    """The commands, each imported when it is asked for: what all of them need takes longer than one of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name. Any other name imports all, for Typer to find the one that was meant."""
        for name in (cmd_name,) if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                self.commands[name] = load(name)
        return self.commands.get(cmd_name)


app = typer.Typer(
    name="curate",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # errors are a line, and help is text: see curate.options.Command
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"curate {VERSION}")
        raise typer.Exit


@app.callback()
def common(
    asked: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find out which images of a crawl are real and what they show, and train on them."""


_INTERRUPTED = "Interrupted. Run the same command again to resume."


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 something on the disk is missing or does not fit, 2 an argument, setting or source cannot be
    used, 130 interrupted, 70 a bug.
    """
    interrupted = Event()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: file names can be any bytes

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        sys.exit(app(standalone_mode=False))
    except SystemExit as end:
        if end.code == 130:  # typer handles KeyboardInterrupt itself, without a message
            console.fail(_INTERRUPTED)
        raise
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(explain(error, interrupted.is_set()))


def explain(error: BaseException, interrupted: bool) -> int:
    """Print what went wrong, and return the exit code."""
    if interrupted or isinstance(error, KeyboardInterrupt):  # some libraries turn Ctrl-C into an error of their own
        console.fail(_INTERRUPTED)
        return 130
    if isinstance(error, CurateError):
        console.fail(str(error))
        return error.exit_code
    if isinstance(error, TyperException):
        return _usage(error)
    if isinstance(error, BrokenPipeError):
        sys.stderr.close()  # the reader of our output is gone, so there is nobody to tell
        return 1
    traceback.print_exception(error)
    console.fail("This is a bug in curate. Please report it with the traceback above.")
    return 70


def _usage(error: TyperException) -> int:
    """Say what is wrong with a command line, or show the help where there is nothing on it."""
    context: Any = getattr(error, "ctx", None)
    if context is not None and error.message == context.get_help():
        print(error.message, file=sys.stderr)
    else:
        said = error.format_message().rstrip(".?")
        console.fail(f"{said}. `{context.command_path if context else 'curate'} -h` lists what there is.")
    return error.exit_code
