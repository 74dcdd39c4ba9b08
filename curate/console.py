"""All that is drawn: progress on stderr, results on stdout as a table or as JSON, errors in one sentence."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.color import Color
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text

from pipelines.progress import OnTick, Tick
from pipelines.storage.json_text import to_json

if TYPE_CHECKING:
    from PIL import Image

LINE_EVERY_S = 10.0
PICTURE_SIDE = 16  # pixels, and columns of the terminal


@contextmanager
def progress(title: str) -> Iterator[OnTick]:
    """Show a stage's ticks on stderr: a bar with rate and ETA, or a line every 10 s without a terminal."""
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
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    with Progress(*columns, console=err, transient=False) as bar:
        task = bar.add_task(title, total=None, rate="", figures="")
        clock = _Rate()

        def on_tick(tick: Tick) -> None:
            _warn(tick, err)
            bar.update(
                task, completed=tick.done, total=tick.total, rate=clock.rate(tick), figures=_figures(tick.figures)
            )

        yield on_tick


@contextmanager
def _lines(title: str) -> Iterator[OnTick]:
    clock, err = _Rate(), Console(stderr=True)
    next_line = time.monotonic() + LINE_EVERY_S

    def on_tick(tick: Tick) -> None:
        nonlocal next_line
        _warn(tick, err)
        rate = clock.rate(tick)
        if time.monotonic() < next_line:
            return
        next_line = time.monotonic() + LINE_EVERY_S
        total = f" of {tick.total}" if tick.total is not None else ""
        print(f"{title}: {tick.done}{total} {tick.unit}, {rate} {_figures(tick.figures)}".rstrip(), file=sys.stderr)

    yield on_tick


def _warn(tick: Tick, err: Console) -> None:
    if tick.note:
        err.print(Text(f"Warning: {tick.note}"), soft_wrap=True)


class _Rate:
    """Units per second since the first tick of that unit: a resumed stage does not boast with what it skipped."""

    def __init__(self) -> None:
        self._unit: str | None = None
        self._start = (0.0, 0)

    def rate(self, tick: Tick) -> str:
        now = time.monotonic()
        if self._unit != tick.unit:
            self._unit, self._start = tick.unit, (now, tick.done)
        seconds, done = now - self._start[0], tick.done - self._start[1]
        return f"{done / seconds:,.1f} {tick.unit}/s" if seconds > 0.2 and done else ""


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
    """Print rows of equal keys to stdout as a table; what they hold is text, never markup."""
    view = Table()
    for name in rows[0] if rows else ():
        numeric = all(isinstance(row[name], int | float) for row in rows)
        view.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        view.add_row(*(Text(_cell(value)) for value in row.values()))
    out = Console()
    out.print(Text(title, style="bold"))  # a line of its own: the table's own title would wrap to its width
    out.print(view)


def facts(title: str, values: Mapping[str, Any]) -> None:
    """Print one mapping to stdout, a line each."""
    view = Table.grid(padding=(0, 2))
    for name, value in values.items():
        view.add_row(Text(name), Text(_cell(value)))
    out = Console()
    out.print(Text(title, style="bold"))
    out.print(view)


def shows_pictures() -> bool:
    """Whether stdout is a terminal that draws any color."""
    out = Console()
    return out.is_terminal and out.color_system == "truecolor" and not out.no_color


def pictures(items: Sequence[tuple[str, "Image.Image"]]) -> None:
    """Print small RGB images of at most `PICTURE_SIDE` pixels a side in rows, a line of text below each.

    A character is two pixels: its upper half in the foreground's color, its lower half in the background's.
    """
    out = Console()
    in_row = max(1, out.width // (PICTURE_SIDE + 2))
    grid = Table.grid(padding=(0, 2, 1, 0))
    for start in range(0, len(items), in_row):
        grid.add_row(*(_picture(line, image) for line, image in items[start : start + in_row]))
    out.print(grid)


def _picture(line: str, image: "Image.Image") -> Text:
    text = Text(no_wrap=True, overflow="crop")
    for y in range(0, image.height, 2):
        for x in range(image.width):
            upper, lower = (_color(image, x, row) for row in (y, y + 1))
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text.append(line[:PICTURE_SIDE])


def _color(image: "Image.Image", x: int, y: int) -> Color | None:
    if y >= image.height:
        return None
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return Color.from_rgb(*pixel)


def as_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object to stdout; a number that is none is null."""
    print(to_json(value))


def note(text: str) -> None:
    """Say something beside the result: on stderr."""
    Console(stderr=True).print(Text(text), soft_wrap=True)


def fail(sentence: str) -> None:
    """Say what went wrong, in one sentence, on stderr."""
    Console(stderr=True).print(Text(f"curate: {sentence}", style="red"), soft_wrap=True)
