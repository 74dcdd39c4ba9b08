"""Draw the figures of a benchmark as PNG and SVG, ready for a paper."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipelines.benchmark.table import CELL, grouped, title
from pipelines.storage.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's colors, which color-blind readers can tell apart. Markers and dashes distinguish further lines.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<>"
DASHES = ("-", "--", ":", "-.")
LINE = ("contamination", "num_real", "labels")  # a cell without its alpha
LEAST_RANGE = 0.02  # smallest span of the y axis of a figure over steps
SERIES = {
    "accuracy": "accuracy on real test images",
    "detector_auroc": "detector's AUROC on the pool",
    "queue_purity": "synthetic share of the queue",
}


def draw(out: Path, records: Sequence[Mapping[str, Any]], table: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Draw accuracy against alpha, paired differences to FixMatch, and figures over the training steps.

    Returns the files. There are none without records, and no differences if no cell has two seeds of FixMatch.
    """
    from matplotlib import rc_context

    if not records:
        return []
    figures = {"accuracy": _against_alpha(table), "steps": _over_steps(records)}
    if any(map(_has_interval, table)):
        figures["differences"] = _differences(table)
    paths = []
    for name, figure in figures.items():
        for suffix in ("png", "svg"):
            path = out / f"{name}.{suffix}"
            # Without a date and with fixed ids, so that the same results give the same file.
            with replacing(path) as temporary, rc_context({"svg.hashsalt": name}):
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(temporary, format=suffix, dpi=160, metadata=metadata)
            paths.append(path)
    return paths


def _against_alpha(table: Sequence[Mapping[str, Any]]) -> "Figure":
    """One panel per contamination, number of real images and label count: mean accuracy and its standard deviation
    over the seeds. If there is only one alpha, the methods are listed one below the other.

    If there are several cells, those with a single method are left out: they measure its detector and compare nothing.
    """
    lines = list(grouped(table, LINE).values())
    compared = [rows for rows in lines if len({row["method"] for row in rows}) > 1] or lines
    figure, panels = _panels(len(compared))
    for panel, rows in zip(panels, compared, strict=True):
        if len({row["alpha"] for row in rows}) == 1:
            _by_method(panel, rows, dict(_styles(table)))
            _set_title(panel, title(rows[0]))
            continue
        for method, style in _styles(table):
            line = sorted((row for row in rows if row["method"] == method), key=lambda row: float(row["alpha"]))
            if line:
                alphas, means = [row["alpha"] for row in line], [100 * row["accuracy"] for row in line]
                spread = [100 * row["accuracy_std"] for row in line]
                panel.errorbar(alphas, means, spread, label=method, capsize=2, **style)
        panel.set(xlabel="alpha (synthetic per real image)", ylabel="accuracy, %")
        _set_title(panel, f"{rows[0]['contamination']}, {rows[0]['num_real']:,} real, {rows[0]['labels']:,} labels")
    _legend(figure, panels)
    return figure


def _by_method(panel: "Axes", rows: Sequence[Mapping[str, Any]], styles: Mapping[str, Mapping[str, Any]]) -> None:
    for height, row in enumerate(reversed(rows)):
        panel.errorbar(
            100 * row["accuracy"], height, xerr=100 * row["accuracy_std"], capsize=2, **styles[row["method"]]
        )
    panel.set_yticks(range(len(rows)), [row["method"] for row in reversed(rows)])
    panel.set_xlabel("accuracy, %")


def _differences(table: Sequence[Mapping[str, Any]]) -> "Figure":
    """One panel per cell: each method's mean paired difference to FixMatch with its 95 % confidence interval."""
    styles, paired = dict(_styles(table)), [row for row in table if _has_interval(row)]
    cells = grouped(paired, CELL).values()
    figure, panels = _panels(len(cells))
    for panel, rows in zip(panels, cells, strict=True):
        for height, row in enumerate(reversed(rows)):
            reach = 100 * (row["minus_fixmatch_high"] - row["minus_fixmatch"])
            panel.errorbar(100 * row["minus_fixmatch"], height, xerr=reach, capsize=2, **styles[row["method"]])
        panel.axvline(0, color="#444444", linewidth=0.8)
        panel.set_yticks(range(len(rows)), [f"{row['method']} ({row['seeds']})" for row in reversed(rows)])
        panel.set_ylim(-0.6, len(rows) - 0.4)
        _set_title(panel, title(rows[0]))
        panel.set_xlabel("minus FixMatch, points")
    return figure


def _has_interval(row: Mapping[str, Any]) -> bool:
    """Whether there is an interval: at least two pairs, and a method other than FixMatch itself."""
    return bool(row["minus_fixmatch_low"] < row["minus_fixmatch_high"])


def _over_steps(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """One panel per figure: the mean over the seeds of each method, in the cell with the most runs. Means over several
    cells would compare methods on different cells.
    """
    records = max(grouped(records, CELL).values(), key=len)
    shown = {name: label for name, label in SERIES.items() if any(name in p for r in records for p in r["series"])}
    figure, panels = _panels(len(shown))
    for panel, (name, label) in zip(panels, shown.items(), strict=True):
        for method, style in _styles(records):
            values: dict[int, list[float]] = {}
            for record in records:
                for point in record["series"]:
                    if record["method"] == method and name in point:
                        values.setdefault(point["step"], []).append(point[name])
            if values:
                steps = sorted(values)
                panel.plot(steps, [fmean(values[step]) for step in steps], label=method, **style)
        panel.set(xlabel="step", ylabel=label)
        low, high = panel.get_ylim()
        if high - low < LEAST_RANGE:  # a curve that hardly changes should look flat
            panel.set_ylim(low - LEAST_RANGE / 2, min(high + LEAST_RANGE / 2, 1))  # all figures are shares
    figure.suptitle(title(records[0]), fontsize="medium")
    _legend(figure, panels)
    return figure


def _panels(count: int) -> tuple["Figure", Sequence["Axes"]]:
    from matplotlib.figure import Figure  # no pyplot: it would look for a display

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for panel in panels[count:]:
        panel.remove()
    for panel in panels[:count]:
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels[:count]


def _set_title(panel: "Axes", text: str) -> None:
    """In two lines: in one it is wider than the panel."""
    first, _, second = text.partition(", ")
    panel.set_title(f"{first}\n{second}", fontsize="medium")


def _styles(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        yield (
            method,
            {
                "color": COLORS[i % len(COLORS)],
                "marker": MARKERS[i % len(MARKERS)],
                "linestyle": DASHES[i // len(COLORS) % len(DASHES)],
                "markersize": 4,
                "linewidth": 1.4,
            },
        )


def _legend(figure: "Figure", panels: Sequence["Axes"]) -> None:
    named = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if named:
        ncols = min(len(named), round(figure.get_figwidth() / 2))
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=ncols, frameon=False)
