"""The free check against a direct count, and its interval against scipy's."""

import math

import pyarrow as pa
import pytest

from pipelines.run.evaluation import NO_DECLARATIONS, DeclaredCheck, Rate, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 122), (3, 122), (50, 100), (122, 122), (1, 1), (7, 9)])
def test_the_interval_is_wilsons(successes: int, trials: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="the extra `benchmark` is not installed")
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_check_counts_what_is_declared() -> None:
    declared = pa.chunked_array([pa.array(["synthetic", "synthetic", None, "camera"]), pa.array(["camera", None])])
    called = pa.chunked_array([pa.array([True, False, True, True]), pa.array([False, False])])
    check = DeclaredCheck.of(declared, called)
    assert (check.synthetic, check.camera) == (Rate(1, 2), Rate(1, 2))
    both = check + check
    assert (both.synthetic, both.camera) == (Rate(2, 4), Rate(2, 4))
    assert both.synthetic.interval == wilson(2, 4) != check.synthetic.interval
    assert list(check.lines) == ["declared synthetic, called so", "declared camera, called synthetic"]
    assert check.lines["declared synthetic, called so"] == "1 of 2 (50.0%, 95 % interval 9.5% to 90.5%)"


def test_nothing_declared_is_no_check() -> None:
    nothing = DeclaredCheck.of(
        pa.chunked_array([pa.array([None, None], pa.string())]), pa.chunked_array([[True, False]])
    )
    assert not nothing and nothing == NO_DECLARATIONS and nothing.lines == {}
    assert math.isnan(nothing.synthetic.share) and nothing.synthetic.interval == (0.0, 1.0)
    assert NO_DECLARATIONS + DeclaredCheck(Rate(1, 1), Rate(0, 0))


def test_without_a_detector_nothing_is_called() -> None:
    no_verdicts = pa.chunked_array([pa.array([None, None], pa.bool_())])
    assert DeclaredCheck.of(pa.chunked_array([["synthetic", "camera"]]), no_verdicts).synthetic == Rate(0, 1)
