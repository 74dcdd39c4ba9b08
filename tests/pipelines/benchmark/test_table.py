import math

import numpy as np
import pytest
from scipy import stats

from pipelines.benchmark import table
from tests.pipelines.benchmark.matrices import CELL


def test_interval_is_the_t_interval_of_paired_differences() -> None:
    differences = [0.01, 0.03, -0.005]
    expected = stats.t.interval(0.95, 2, loc=np.mean(differences), scale=stats.sem(differences))
    assert table.interval(differences) == pytest.approx(expected)
    assert all(math.isnan(end) for end in table.interval([0.1]))


def test_table_pairs_by_seed() -> None:
    accuracies = {
        "fixmatch": (0.5, 0.6, 0.4),
        "fixmatch-real": (0.45, 0.65),
        "rsmatch": (0.52, 0.63, 0.41),
        "rsmatch-oracle-discard": (0.51, 0.6, 0.41),
    }
    records = [
        CELL | {"method": m, "seed": i, "accuracy": a} for m, row in accuracies.items() for i, a in enumerate(row)
    ]
    del records[0]["seconds"]  # it was cut short
    rows = table.summarize(records)
    fixmatch, real_only, rsmatch, _ = rows
    assert fixmatch["minus_fixmatch"] == 0
    assert rsmatch["minus_fixmatch"] == pytest.approx(0.02)
    assert rsmatch["accuracy_std"] == pytest.approx(np.std(accuracies["rsmatch"], ddof=1))
    assert rsmatch["minus_fixmatch_low"] < 0.02 < rsmatch["minus_fixmatch_high"]
    assert real_only["minus_fixmatch"] == pytest.approx(0)
    assert rsmatch["minus_fixmatch_real"] == pytest.approx(0.025)  # of the two seeds that both have
    assert rsmatch["minus_rsmatch_oracle_discard"] == pytest.approx(0.04 / 3)
    assert math.isnan(rsmatch["detector_auroc"])
    shown = table.shown(rows)
    assert shown[2]["minus FixMatch (95 %)"] == "+2.0 (-0.5 to +4.5)"
    assert shown[3]["minus discarding by truth (95 %)"] == ""  # of itself
    assert [row["seconds"] for row in shown] == ["1"] * 4  # of the runs that were not cut short
    assert "AUROC (worst)" not in shown[0]  # there is none
    assert "minus discarding by truth (95 %)" not in table.shown(table.summarize(records[:5]))[0]


def test_each_method_is_judged_at_its_best_rate() -> None:
    accuracy = {
        ("fixmatch", 0.01): (0.5, 0.5),
        ("fixmatch", 0.02): (0.4, 0.7),  # the highest mean
        ("fixmatch", 0.04): (0.9,),  # of one lucky seed
        ("rsmatch", 0.01): (0.6, 0.6),
        ("rsmatch", 0.02): (0.5, 0.6),
    }
    runs = [
        CELL | {"method": method, "learning_rate": rate, "seed": seed, "accuracy": value}
        for (method, rate), values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    best = table.at_best_rates(runs)
    assert [(run["method"], run["learning_rate"]) for run in best] == [("fixmatch", 0.02)] * 2 + [("rsmatch", 0.01)] * 2
    elsewhere = [run | {"alpha": 1.0} for run in runs if run["learning_rate"] == 0.01]
    assert {run["learning_rate"] for run in table.at_best_rates(runs + elsewhere) if run["alpha"] == 1.0} == {0.01}
