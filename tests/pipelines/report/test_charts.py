import numpy as np

from pipelines.report import charts

EVIL = "<img src=x onerror=alert(1)>"


def test_names_in_charts_are_escaped_and_numbers_are_in_place() -> None:
    drawing = charts.curves("x", EVIL, EVIL, [charts.Series(EVIL, "c0", [(0, 1.0), (10, 0.0)])])
    assert "<img" not in drawing and drawing.count("&lt;img") == 3
    bars = charts.histogram("y", "t", "d", np.array([3, 1, 0, 1]), thresholds=(0.3, 0.6))
    assert bars.count("<rect") == 3 and bars.count('class="threshold"') == 2
    assert [bars.count(f'class="{name}"') for name in ("real", "unsure", "synthetic")] == [1, 1, 1]
    assert "unsure from 0.3, synthetic from 0.6" in bars
    placed = charts.placed(np.random.default_rng(0).normal(size=(20, 2)))
    assert placed.min() >= 12 and placed.max() <= 488
    dots = charts.points("z", "t", "d", placed, {"real": np.arange(20) < 15})
    assert dots.count("h0") == 15
