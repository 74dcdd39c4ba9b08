"""The command line: loads the commands, one file each, and turns every error into a sentence and an exit code."""

import signal
import sys
import traceback
from importlib.metadata import version
from io import TextIOWrapper
from threading import Event
from types import FrameType
from typing import Annotated

import typer

from curate import console
from curate.benchmark import benchmark
from curate.demo import demo
from curate.export import export
from curate.generate import generate
from curate.ingest import ingest
from curate.inspect import inspect
from curate.options import Command
from curate.report import report
from curate.review import review
from curate.score import score
from curate.train import train
from curate.verify import verify
from pipelines.errors import CurateError

app = typer.Typer(
    name="curate",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # errors are a line, and help is text: see curate.options.Command
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (ingest, train, score, inspect, review, export, report, verify, demo, generate, benchmark):
    app.command(cls=Command)(command)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"curate {version('curate')}")
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
    """Run the command line. Exit codes: 0 done, 1 an error of the user, 2 usage, 130 interrupted, 70 a bug."""
    interrupted = Event()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: file names can be any bytes

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        app()
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
        return 1
    if isinstance(error, BrokenPipeError):
        sys.stderr.close()  # the reader of our output is gone, so there is nobody to tell
        return 1
    traceback.print_exception(error)
    console.fail("This is a bug in curate. Please report it with the traceback above.")
    return 70
