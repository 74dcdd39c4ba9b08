"""The limit loses no more real images than asked, whatever their distribution; verdicts follow both thresholds."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import BadInput, MissingArtifact
from pipelines.run import verdicts


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_limit_keeps_the_rate_on_average_over_held_out_sets(rate: float) -> None:
    """The mean of the realized rate is (n + 1 - k) / (n + 1): at most the asked one, by less than 1 / (n + 1)."""
    rng = np.random.default_rng(0)
    n, real = 49, rng.beta(1, 6, 40_000).astype(np.float32)
    realized = [(real >= verdicts.limit(rng.choice(real, n), rate)).mean() for _ in range(2000)]
    assert rate - 1 / (n + 1) - 0.003 < np.mean(realized) < rate + 0.003


def test_limit_calls_no_held_out_image_at_its_own_rank_synthetic() -> None:
    held_out = np.linspace(0.01, 0.99, 99)
    at = verdicts.limit(held_out.tolist(), 0.05)
    assert (held_out.astype(np.float32) >= at).sum() == 4  # the 95th of 99 is the limit itself
    tied = [0.2] * 99
    assert not (np.float32(tied) >= verdicts.limit(tied, 0.05)).any()


def test_too_few_held_out_images_are_a_sentence_with_the_smallest_rate() -> None:
    with pytest.raises(BadInput, match=r"too small for 9 held-out real images\. The smallest possible rate is 0\.100"):
        verdicts.limit([0.1] * 9, 0.05)
    assert verdicts.limit([0.1] * 9, 0.1) > 0.1
    with pytest.raises(BadInput, match="too small for 0 held-out"):
        verdicts.choose([], 0.05)


def test_verdicts_lie_below_between_and_above_both_thresholds() -> None:
    held_out = np.linspace(0.0, 0.31, 99).tolist()
    for rate in (None, 0.05):
        thresholds = verdicts.choose(held_out, rate)
        assert (thresholds.synthetic_from, thresholds.real_below) == (0.5, pytest.approx(0.297, abs=0.01))
        called = thresholds.verdicts(np.array([0.1, 0.35, 0.45, 0.6], dtype=np.float32))
        assert called.tolist() == ["real", "unsure", "unsure", "synthetic"]
        assert "99 real images" in thresholds.statement
    weak = verdicts.choose([3 * prob for prob in held_out], None)
    assert (weak.synthetic_from, weak.real_below) == (pytest.approx(0.89, abs=0.01), 0.5)
    assert weak.verdicts(np.array([0.4, 0.6, 0.95], dtype=np.float32)).tolist() == ["real", "unsure", "synthetic"]


def test_without_held_out_images_nothing_is_unsure() -> None:
    thresholds = verdicts.choose([], None)
    assert thresholds.verdicts(np.array([0.49, 0.5], dtype=np.float32)).tolist() == ["real", "synthetic"]
    assert "too few" in thresholds.statement


def test_thresholds_are_read_as_they_were_written(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match=r"thresholds\.json is missing or damaged"):
        verdicts.load(tmp_path)
    thresholds = verdicts.choose([0.1, 0.2], 0.4)
    verdicts.save(tmp_path, thresholds)
    assert verdicts.load(tmp_path) == thresholds
