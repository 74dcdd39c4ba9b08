import numpy as np

from pipelines.report import charts

EVIL = "<img src=x onerror=alert(1)>"


def test_names_in_charts_are_escaped_and_numbers_are_in_place() -> None:
    drawing = charts.curves("x", EVIL, EVIL, [charts.Series(EVIL, "c0", [(0, 1.0), (10, 0.0)])])
    assert "<img" not in drawing and drawing.count("&lt;img") == 3
    bars = charts.histogram("y", "t", "d", np.array([3, 0, 1]), threshold=0.5)
    assert bars.count("<rect") == 2 and bars.count('class="real"') == 1 and bars.count('class="synthetic"') == 1
    dots = charts.points("z", "t", "d", np.random.default_rng(0).normal(size=(20, 2)), {"real": np.arange(20) < 15})
    assert dots.count("h0") == 15
