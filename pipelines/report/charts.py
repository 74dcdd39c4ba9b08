"""Draws charts as inline SVG, so that a page needs no script: histograms, curves, points and bars.

Colors are CSS classes of the page (`real`, `synthetic`, `c0` to `c9`, `rest`), so that it can have a light and a dark
theme. Every chart has a title and a description for screen readers. All text is escaped.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from pipelines.run.evaluation import wilson

COLORS = 10  # of the page's palette
_WIDTH = 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 12, 12, 36
_MAP_SIDE = 500
_MAP_LAYERS = 8  # each with points of all groups, so that the last group does not cover the others

Points = npt.NDArray[np.floating[Any]]


class Series(NamedTuple):
    """A curve; `color` is a CSS class."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]


def histogram(
    name: str,
    title: str,
    description: str,
    counts: npt.NDArray[np.int64],
    thresholds: tuple[float, float] | None = None,
    overlay: npt.NDArray[np.int64] | None = None,
) -> Markup:
    """Shares of values in equal bins over 0..1, on a square-root scale that keeps small shares visible.

    `counts` (B,) and `overlay` (B,) are counts of each bin; the overlay is drawn as an outline. `thresholds` are the
    values from which bars are drawn as unsure and as synthetic.
    """
    height = 240
    shares = counts / max(int(counts.sum()), 1)
    others = overlay / max(int(overlay.sum()), 1) if overlay is not None else np.zeros(0)
    top = max(float(shares.max()), float(others.max(initial=0.0)), 1e-6)
    ticks = [tick for tick in (0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0) if tick == 0 or top / 100 < tick <= top]

    def x(value: float) -> float:
        return _LEFT + value * (_WIDTH - _LEFT - _RIGHT)

    def y(share: float) -> float:
        return height - _BOTTOM - math.sqrt(share / top) * (height - _BOTTOM - _TOP)

    parts = [_grid(y(tick), f"{tick:.0%}") for tick in ticks]
    step = 1 / len(shares)
    for i, share in enumerate(shares.tolist()):
        middle = (i + 0.5) * step
        color = ("real", "unsure", "synthetic")[sum(middle >= each for each in thresholds)] if thresholds else "plain"
        if share:
            parts.append(
                Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                    color, x(i * step) + 0.5, y(share), x(step) - x(0) - 1, y(0) - y(share)
                )
            )
    if len(others):
        corners = [(edge, y(share)) for i, share in enumerate(others) for edge in (x(i * step), x((i + 1) * step))]
        parts.append(Markup('<path class="outline" d="{}"/>').format(_path(corners)))
    for value in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        parts.append(_label(x(value), height - _BOTTOM + 16, f"{value:g}"))
    for value in sorted(set(thresholds or ())):
        parts.append(
            Markup('<line class="threshold" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
                x(value), _TOP - 4, height - _BOTTOM
            )
        )
    if thresholds:
        low, high = thresholds
        text = f"unsure from {low:.3g}, synthetic from {high:.3g}" if low < high else f"synthetic from {high:.3g}"
        parts.append(_label(_WIDTH / 2, height - 3, text, "strong"))
    return _svg(name, title, description, _WIDTH, height, parts)


def curves(name: str, title: str, description: str, series: Sequence[Series], top: float | None = None) -> Markup:
    """Curves over the same x axis; the y axis goes from 0, or the lowest value, to `top`, or the highest value."""
    height, width = 190, 320
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    first, last = min(xs), max(xs)
    low, high = min(0.0, *ys), top if top is not None else max(*ys, 1e-9)

    def xy(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - first) / max(last - first, 1e-9)
        up = (min(point[1], high) - low) / max(high - low, 1e-9)
        return _LEFT + across * (width - _LEFT - _RIGHT), height - _BOTTOM - up * (height - _BOTTOM - _TOP)

    parts = [_grid(xy((first, tick))[1], f"{tick:g}", width) for tick in _ticks(low, high, 4)]
    for tick in _ticks(first, last, 4):
        parts.append(_label(xy((tick, low))[0], height - _BOTTOM + 16, _short(tick)))
    for each in series:
        parts.append(
            Markup('<path class="curve {}" d="{}"><title>{}</title></path>').format(
                each.color, _path([xy(point) for point in each.points]), each.name
            )
        )
    return _svg(name, title, description, width, height, parts)


def reliability(name: str, title: str, description: str, bins: Sequence[tuple[float, float, int]]) -> Markup:
    """Accuracy over mean confidence, both 0..1, of bins (confidence, accuracy, images); the diagonal is ideal.

    The bar of a point is its 95 % interval.
    """
    side = _TOP + _BOTTOM + 240  # the page shows it no larger than that

    def xy(confidence: float, accuracy: float) -> tuple[float, float]:
        return _LEFT + confidence * 240, side - _BOTTOM - accuracy * 240

    parts = [_grid(xy(0, tick)[1], f"{tick:.0%}", _LEFT + 240 + _RIGHT) for tick in (0.0, 0.25, 0.5, 0.75, 1.0)]
    parts += [_label(xy(tick, 0)[0], side - _BOTTOM + 16, f"{tick:g}") for tick in (0.0, 0.25, 0.5, 0.75, 1.0)]
    parts.append(Markup('<path class="outline" d="{}"/>').format(_path([xy(0, 0), xy(1, 1)])))
    for confidence, accuracy, count in bins:
        low, high = wilson(round(accuracy * count), count)
        bar = Markup('<path class="curve c0" d="{}"/>').format(_path([xy(confidence, low), xy(confidence, high)]))
        x, y = xy(confidence, accuracy)
        dot = Markup('<circle class="plain" cx="{:.1f}" cy="{:.1f}" r="5"><title>{}</title></circle>').format(
            x, y, f"confidence {confidence:.2f}: {accuracy:.0%} of {count} labeled images are right"
        )
        parts += [bar, dot]
    return _svg(name, title, description, _LEFT + 240 + _RIGHT, side, parts)


def placed(points_N2: Points) -> npt.NDArray[np.int64]:
    """Where points lie in a square drawing (N, 2), x and y in its units; outliers lie at its edge."""
    low, high = np.percentile(points_N2, (0.1, 99.9), axis=0)  # outliers would leave no room for the rest
    margin = 12
    inside = ((points_N2 - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    pixels = np.rint(margin + inside * (_MAP_SIDE - 2 * margin)).astype(np.int64)
    pixels[:, 1] = _MAP_SIDE - pixels[:, 1]
    return np.asarray(pixels)


def points(
    name: str,
    title: str,
    description: str,
    pixels_N2: npt.NDArray[np.int64],
    groups: Mapping[str, npt.NDArray[np.bool_]],
) -> Markup:
    """Points, as `placed` places them, each in the color of its group: a CSS class, with its members, a mask (N,)."""
    layer = np.arange(len(pixels_N2)) % _MAP_LAYERS
    parts = []
    for number in range(_MAP_LAYERS):
        for color, members in groups.items():
            drawn = pixels_N2[members & (layer == number)].tolist()
            if drawn:
                dots = "".join(f"M{x} {y}h0" for x, y in drawn)  # a line of no length with round caps is a dot
                parts.append(Markup('<path class="dots {}" d="{}"/>').format(color, dots))
    return _svg(name, title, description, _MAP_SIDE, _MAP_SIDE, parts)


def bar(parts: Iterable[tuple[str, float]], width: int = 140) -> Markup:
    """A small stacked bar for a table cell; each part is a CSS class and a share of the width.

    It is hidden from screen readers, as the table has the numbers.
    """
    drawn, start = Markup(), 0.0
    for color, share in parts:
        length = max(0.0, min(share, 1 - start))
        drawn += Markup('<rect class="{}" x="{:.1f}" width="{:.1f}" height="10"/>').format(
            color, start * width, length * width
        )
        start += length
    return Markup('<svg class="bar" viewBox="0 0 {0} 10" width="{0}" height="10" aria-hidden="true">{1}</svg>').format(
        width, drawn
    )


def _svg(name: str, title: str, description: str, width: int, height: int, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title {name}-text">'
        '<title id="{name}-title">{title}</title><desc id="{name}-text">{description}</desc>{inside}</svg>'
    ).format(name=name, title=title, description=description, width=width, height=height, inside=Markup("").join(parts))


def _grid(y: float, text: str, width: int = _WIDTH) -> Markup:
    return Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/><text class="tick" x="{}" y="{:.1f}" '
        'text-anchor="end">{}</text>'
    ).format(_LEFT, width - _RIGHT, _LEFT - 6, y + 4, text, y=y)


def _label(x: float, y: float, text: str, kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(kind, x, y, text)


def _path(corners: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high, 1, 2 or 5 times a power of ten apart."""
    span = max(high - low, 1e-12) / about
    power = 10 ** math.floor(math.log10(span))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span)
    start = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(start, math.floor(high / step + 1e-9) + 1)]


def _short(number: float) -> str:
    """1500000 -> 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= 10 * size or (number >= size and number % (size / 10) == 0):
            return f"{number / size:g}{letter}"
    return f"{number:g}"
