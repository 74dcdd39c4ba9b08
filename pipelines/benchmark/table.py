"""What the runs of a benchmark come to: means, spreads and paired differences, a row for each method of a cell."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pipelines.storage.atomic import replacing

# Figures of a record that the table summarizes by their mean.
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
BASELINES = {  # that the others are compared with
    "fixmatch": "FixMatch",
    "fixmatch-real": "FixMatch on real",
    "rsmatch-oracle-discard": "discarding by truth",
}


def title(row: Mapping[str, Any]) -> str:
    """The cell of a row of the table, or of a record."""
    return f"{row['contamination']}, {row['num_real']:,} real, alpha {row['alpha']:g}, {row['labels']:,} labels"


def grouped(
    records: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Records, or rows of the table, by the values of `names`, in the order of their first."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in names), []).append(record)
    return groups


def at_best_rates(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs of each method at the learning rate with the highest mean accuracy in a cell, of those rates that most
    seeds were run at: chosen by the accuracies that they are then judged by, for all methods alike.
    """
    best: list[Mapping[str, Any]] = []
    for runs in grouped(records, (*CELL, "method")).values():
        of_rate = grouped(runs, ("learning_rate",))
        best += of_rate[max(of_rate, key=lambda rate: _seeds_and_accuracy(of_rate[rate]))]
    return best


def summarize(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per cell and method, of runs at one learning rate each: mean and standard deviation over seeds, paired
    difference to each baseline with its 95 % confidence interval (t distribution; NaN with fewer than two pairs),
    detector's mean and worst AUROC.
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
                beside = {record["seed"]: record["accuracy"] for record in of_method.get((baseline,), [])}
                pairs = [record["accuracy"] - beside[record["seed"]] for record in runs if record["seed"] in beside]
                name = _minus(baseline)
                row[name] = fmean(pairs) if pairs else math.nan
                row[f"{name}_low"], row[f"{name}_high"] = interval(pairs)
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
    """95 % confidence interval of the mean of paired differences."""
    if len(differences) < 2:
        return math.nan, math.nan
    from scipy import stats

    reach = stats.t.ppf(0.975, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return fmean(differences) - reach, fmean(differences) + reach


def write_table(out: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Write table.csv (all columns) and table.md (what a paper would show, in percent)."""
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
    """Rows as a person reads them: accuracy in percent, differences in points with their 95 % interval, mean time of a
    run. Columns in which no row has anything are left out.
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
    """Name of the column of differences to a baseline."""
    return f"minus_{baseline.replace('-', '_')}"
