"""Everything that curate prints: results on stdout as tables or JSON; progress, notes and errors on stderr."""

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from pipelines.progress import OnTick, Tick
from pipelines.storage.json_text import to_json

LINE_EVERY_S = 10.0


@contextmanager
def progress(title: str) -> Iterator[OnTick]:
    """Show ticks on stderr with rate and time left: in a terminal as a bar, otherwise as a line every 10 s."""
    err = Console(stderr=True)
    with _bar(title, err) if err.is_terminal else _lines(title) as on_tick:
        yield on_tick


@contextmanager
def _bar(title: str, err: Console) -> Iterator[OnTick]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    with Progress(*columns, console=err, transient=False) as bar:
        task = bar.add_task(title, total=None, rate="", figures="")
        clock = _Rate()

        def on_tick(tick: Tick) -> None:
            _warn(tick, err)
            rate = " ".join(clock.pace(tick))
            bar.update(task, completed=tick.done, total=tick.total, rate=rate, figures=_figures(tick.figures))

        yield on_tick


@contextmanager
def _lines(title: str) -> Iterator[OnTick]:
    clock, err = _Rate(), Console(stderr=True)
    next_line = time.monotonic() + LINE_EVERY_S

    def on_tick(tick: Tick) -> None:
        nonlocal next_line
        _warn(tick, err)
        pace = clock.pace(tick)
        if time.monotonic() < next_line:
            return
        next_line = time.monotonic() + LINE_EVERY_S
        total = f" of {tick.total}" if tick.total is not None else ""
        said = ", ".join((f"{title}: {tick.done}{total} {tick.unit}", *pace))
        print(f"{said} {_figures(tick.figures)}".rstrip(), file=sys.stderr)

    yield on_tick


def _warn(tick: Tick, err: Console) -> None:
    if tick.info:
        err.print(Text(tick.info), soft_wrap=True)
    if tick.note:
        err.print(Text(f"Warning: {tick.note}"), soft_wrap=True)


def duration(seconds: float) -> str:
    """A time in words: 40 s, 3 min, 2 h 10 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class _Rate:
    """Pace since the first tick of a unit, so that what a resumed stage skips does not count.

    Where a count begins anew, so does the pace.
    """

    def __init__(self) -> None:
        self._unit: str | None = None
        self._done = 0
        self._start = (0.0, 0)

    def pace(self, tick: Tick) -> tuple[str, ...]:
        """Units per second, and the time left by them where there is a total; nothing before it is known."""
        now = time.monotonic()
        if self._unit != tick.unit or tick.done < self._done:
            self._unit, self._start = tick.unit, (now, tick.done)
        self._done = tick.done
        seconds, done = now - self._start[0], tick.done - self._start[1]
        if seconds <= 0.2 or not done:
            return ()
        rate = f"{done / seconds:,.1f}/s"
        return (rate,) if tick.total is None else (rate, f"{duration((tick.total - tick.done) * seconds / done)} left")


def _figures(figures: Mapping[str, float | str]) -> str:
    return "  ".join(f"{name} {_cell(value)}" for name, value in figures.items())


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of equal keys to stdout as a table. Their values are printed as they are, never read as markup."""
    view = Table()
    for name in rows[0] if rows else ():
        numeric = all(isinstance(row[name], int | float) for row in rows)
        view.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        view.add_row(*(Text(_cell(value)) for value in row.values()))
    out = Console()
    out.print(Text(title, style="bold"))  # on a line of its own: rich would wrap a title to the width of its table
    out.print(view)


def facts(title: str, values: Mapping[str, Any]) -> None:
    """Print one mapping to stdout, an item per line."""
    view = Table.grid(padding=(0, 2))
    for name, value in values.items():
        view.add_row(Text(name), Text(_cell(value)))
    out = Console()
    out.print(Text(title, style="bold"))
    out.print(view)


def say(title: str, sentences: Sequence[str]) -> None:
    """Print sentences to stdout, one a line, below a title."""
    out = Console()
    out.print(Text(title, style="bold"))
    for sentence in sentences:
        out.print(Text(f"  {sentence}"), soft_wrap=True)


def as_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object to stdout; NaN and infinities become null."""
    print(to_json(value))


def command(name: str, *arguments: object, **options: object) -> str:
    """A command of curate to paste into a shell, whatever its values are: `curate score --pool 'my pool'`."""
    words = [
        *map(str, arguments),
        *(word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))),
    ]
    return " ".join(map(_quoted, ("curate", name, *words)))


def _quoted(word: str) -> str:
    """The word as a shell reads it, in double quotes where it has single ones and that is safe."""
    if "'" in word and not set(word) & set('"$`\\!\n'):
        return f'"{word}"'
    return shlex.quote(word)


def note(text: str) -> None:
    """Print a remark to stderr, so that stdout holds only the result."""
    Console(stderr=True).print(Text(text), soft_wrap=True)


def fail(sentence: str) -> None:
    """Print an error to stderr, in one sentence."""
    Console(stderr=True).print(Text(f"curate: {sentence}", style="red"), soft_wrap=True)
