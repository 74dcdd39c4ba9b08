"""Summarize the runs of a benchmark: means, spreads and paired differences, one row per cell and method."""

import csv
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pipelines.storage.atomic import replacing

# Figures of a record whose means are in the table.
FIGURES = (
    "accuracy",
    "accuracy_dummy",
    "pseudo_label_accuracy_real",
    "pseudo_label_accuracy_synthetic",
    "detector_auroc",
    "detector_auroc_color",
    "detector_accuracy",
    "detector_flagged",
    "queue_purity",
)
CELL = ("contamination", "num_real", "alpha", "labels")
BASELINES = {  # methods that the others are compared with
    "fixmatch": "FixMatch",
    "fixmatch-real": "FixMatch on real",
    "rsmatch-oracle-discard": "discarding by truth",
}


def title(row: Mapping[str, Any]) -> str:
    """Describe the cell of a record or of a row of the table."""
    return f"{row['contamination']}, {row['num_real']:,} real, alpha {row['alpha']:g}, {row['labels']:,} labels"


def grouped(
    records: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Group records or rows of the table by their values of `names`; groups are in the order of their first member."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in names), []).append(record)
    return groups


def at_best_rates(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """For each method and cell, keep the runs at the learning rate with the best mean accuracy, among the rates with
    the most seeds. The rate is selected on the same test set that methods are then judged on, equally for all methods.
    """
    best: list[Mapping[str, Any]] = []
    for runs in grouped(records, (*CELL, "method")).values():
        of_rate = grouped(runs, ("learning_rate",))
        best += of_rate[max(of_rate, key=lambda rate: _seeds_and_accuracy(of_rate[rate]))]
    return best


def summarize(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per cell and method, from runs at one learning rate each: mean and standard deviation over the seeds,
    paired difference to each baseline with its 95 % confidence interval (NaN with fewer than two pairs), the detector's
    mean and worst AUROC.
    """
    rows = []
    for cell, inside in grouped(records, CELL).items():
        of_method = grouped(inside, ("method",))
        for (method,), runs in of_method.items():
            accuracy = [record["accuracy"] for record in runs]
            row: dict[str, Any] = dict(zip(CELL, cell, strict=True)) | {"method": method}
            row |= {
                "learning_rate": runs[0]["learning_rate"],
                "seeds": len(runs),
                "accuracy": fmean(accuracy),
                "accuracy_std": stdev(accuracy) if len(accuracy) > 1 else math.nan,
            }
            for baseline in BASELINES:
                other = {record["seed"]: record["accuracy"] for record in of_method.get((baseline,), [])}
                differences = [r["accuracy"] - other[r["seed"]] for r in runs if r["seed"] in other]
                name = _minus(baseline)
                row[name] = fmean(differences) if differences else math.nan
                row[f"{name}_low"], row[f"{name}_high"] = interval(differences)
            for name in (*FIGURES[1:], "seconds"):
                values = [record[name] for record in runs if name in record]
                row[name] = fmean(values) if values else math.nan
            aurocs = [record["detector_auroc"] for record in runs if "detector_auroc" in record]
            row["detector_auroc_worst"] = min(aurocs) if aurocs else math.nan
            rows.append(row)
    return rows


def _seeds_and_accuracy(runs: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
    return len(runs), fmean(run["accuracy"] for run in runs)


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean of paired differences, by the t distribution; NaN for fewer than two."""
    if len(differences) < 2:
        return math.nan, math.nan
    from scipy import stats  # of the extra `benchmark`

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal differences: their interval is a point, as it should be
        found = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    return float(found.low), float(found.high)


def write_table(out: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Write table.csv (all columns) and table.md (the columns for a paper, in percent)."""
    if not table:
        return
    with replacing(out / "table.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table[0].keys())
        writer.writeheader()
        writer.writerows(table)
    with replacing(out / "table.md") as temporary:
        temporary.write_text("\n".join(_markdown(table)) + "\n", encoding="utf-8")


def _markdown(table: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [{"cell": title(row)} | cells for row, cells in zip(table, shown(table), strict=True)]
    yield f"| {' | '.join(rows[0])} |"
    yield "|---" * len(rows[0]) + "|"
    for row in rows:
        yield f"| {' | '.join(row.values())} |"


def shown(table: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Format rows for people: accuracy in percent, differences in percentage points with their 95 % interval, mean
    seconds of a run. Columns that are empty in every row are left out.
    """
    rows = [_shown(row) for row in table]
    return [{name: text for name, text in row.items() if any(other[name] for other in rows)} for row in rows]


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    spread = "" if math.isnan(row["accuracy_std"]) else f" ± {100 * row['accuracy_std']:.1f}"
    auroc = f"{row['detector_auroc']:.3f} ({row['detector_auroc_worst']:.3f})"
    return {
        "method": row["method"],
        "rate": f"{row['learning_rate']:g}",
        "seeds": str(row["seeds"]),
        "accuracy, %": f"{100 * row['accuracy']:.1f}{spread}",
        **{f"minus {name} (95 %)": _difference(row, baseline) for baseline, name in BASELINES.items()},
        "AUROC (worst)": "" if math.isnan(row["detector_auroc"]) else auroc,
        "seconds": "" if math.isnan(row["seconds"]) else f"{row['seconds']:.0f}",
    }


def _difference(row: Mapping[str, Any], baseline: str) -> str:
    name = _minus(baseline)
    mean, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if row["method"] == baseline or math.isnan(mean):
        return ""
    return f"{mean:+.1f}" if math.isnan(low) else f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _minus(baseline: str) -> str:
    """Name of the column with the differences to a baseline."""
    return f"minus_{baseline.replace('-', '_')}"
