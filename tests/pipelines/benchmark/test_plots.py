from pathlib import Path

from pipelines.benchmark import plots, table
from tests.pipelines.benchmark.matrices import CELL


def test_differences_are_drawn_where_there_are_pairs(tmp_path: Path) -> None:
    cell = CELL | {"labels": 20, "series": []}
    accuracy = {"fixmatch": (0.5, 0.6), "rsmatch": (0.6, 0.65), "supervised": (0.4,)}
    records = [
        cell | {"method": method, "seed": seed, "accuracy": value}
        for method, values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    drawn = plots.draw(tmp_path, [records[0] | {"series": [{"step": 1, "accuracy": 0.5}]}], table.summarize(records))
    assert tmp_path / "differences.svg" in drawn
    text = (tmp_path / "differences.svg").read_text()
    assert "rsmatch (2)" in text
    assert "supervised" not in text
    first = [path.read_bytes() for path in drawn]
    plots.draw(tmp_path, [records[0] | {"series": [{"step": 1, "accuracy": 0.5}]}], table.summarize(records))
    assert [path.read_bytes() for path in drawn] == first


def test_figures_are_of_what_can_be_compared(tmp_path: Path) -> None:
    """A cell of one method has no panel of accuracies; steps are of one cell, the one with most runs."""
    accuracy = {(20, "fixmatch"): 0.5, (20, "rsmatch"): 0.6, (40, "rsmatch"): 0.7}
    records = [
        CELL | {"labels": labels, "method": method, "seed": 0, "accuracy": value}
        | {"series": [{"step": 1, "accuracy": value}]}
        for (labels, method), value in accuracy.items()
    ]  # fmt: skip
    plots.draw(tmp_path, records, table.summarize(records))
    for name in ("accuracy", "steps"):
        text = (tmp_path / f"{name}.svg").read_text()
        assert "20 labels" in text
        assert "40 labels" not in text
