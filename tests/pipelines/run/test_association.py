"""What a property tells about the verdict and the labeled set."""

from typing import Any

import numpy as np
import pytest

from pipelines.run.association import Property, differs, judge, predictability, predicts


def test_what_tells_the_verdict_has_all_of_its_bits() -> None:
    called = np.random.default_rng(0).random(4000) < 0.25
    area, bits, there_are = predictability(called.astype(np.int64), called)
    assert area == pytest.approx(1)
    assert bits == pytest.approx(there_are, abs=0.01) and there_are == pytest.approx(0.81, abs=0.02)


@pytest.mark.parametrize("num_categories", [2, 50, 1000, 4000])
def test_many_categories_that_know_nothing_are_not_taken_to_know(num_categories: int) -> None:
    rng = np.random.default_rng(1)
    area, bits, _ = predictability(rng.integers(0, num_categories, 4000), rng.random(4000) < 0.3)
    assert area < 0.53 and bits < 0.01


def test_a_hundred_sources_with_rates_of_their_own_are_found() -> None:
    rng = np.random.default_rng(2)
    source = rng.integers(0, 100, 4000)
    called = rng.random(4000) < np.where(source % 2, 0.9, 0.1)
    assert predictability(source, called)[0] == pytest.approx(0.9, abs=0.02)


def judged(values: list[Any], called: np.ndarray, of_labeled: list[Any] | None = None) -> Property:
    probs = called.astype(np.float32)
    return judge("size", values, of_labeled or [], called, probs)


def test_a_number_that_tells_in_the_middle_of_its_range_is_found() -> None:
    rng = np.random.default_rng(3)
    width = rng.normal(512, 100, 4000).round()
    called = np.zeros(4000, dtype=bool)
    called[::3] = True
    width[called] = 512  # as a generator makes them; photographs are wider and narrower
    found = judged(width.tolist(), called)
    assert found.auroc is not None and found.auroc > 0.98 and predicts(found)
    (cell,) = (cell for cell in found.cells if cell.value == "512")
    assert cell.share_synthetic is not None and cell.share_synthetic > 0.98
    assert sum(cell.num_images for cell in found.cells) == 4000


def test_missing_values_and_few_verdicts_say_nothing() -> None:
    called = np.arange(100) % 2 == 0
    found = judged([None, 1.0] * 50, called)
    assert (found.num_images, found.auroc, predicts(found)) == (50, None, False)
    assert judged([float(i) for i in range(100)], np.arange(100) < 5).auroc is None


def test_labeled_images_of_another_kind_are_told_from_chance() -> None:
    rng = np.random.default_rng(4)
    called = rng.random(4000) < 0.3
    pool = rng.normal(1, 0.2, 4000).tolist()
    same, other = rng.normal(1, 0.2, 40).tolist(), rng.normal(1.3, 0.2, 40).tolist()
    assert not differs(judged(pool, called, same))
    assert differs(judged(pool, called, other))
    formats = ["jpg"] * 2000 + ["png"] * 2000
    found = judged(formats, called, ["jpg"] * 40)
    assert found.difference == pytest.approx(0.5) and differs(found)
    assert [(cell.value, cell.share, cell.labeled_share) for cell in found.cells] == [
        ("jpg", 0.5, 1.0),
        ("png", 0.5, 0.0),
    ]
