"""Calibration, shares and promises by images that a classifier has not seen."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import calibration
from models.calibration import Calibration
from pipelines.run.evaluation import wilson


def drawn(num: int, scale: float, seed: int = 0, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits (N, K), `scale` times too large, and labels that follow the true ones."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, classes, generator=rng)
    return scale * logits, torch.multinomial(logits.softmax(1), 1, generator=rng).squeeze(1)


def error(probs: Tensor, labels: Tensor) -> float:
    confidence, found = probs.max(1)
    return calibration.calibration_error(confidence, found == labels)


@pytest.mark.parametrize("scale", [0.3, 1.0, 6.0])
def test_confidence_becomes_true_whatever_the_scale_of_the_logits(scale: float) -> None:
    logits, labels = drawn(300, scale)
    others, of_others = drawn(4_000, scale, seed=1)
    fitted = calibration.fit(logits, labels)
    assert error(fitted.probs(others), of_others) < 0.05
    if scale != 1:
        assert error(others.softmax(1), of_others) > 0.1
    assert torch.equal(fitted.probs(others).argmax(1), others.argmax(1))
    assert torch.allclose(fitted.probs(others).sum(1), torch.ones(4_000))


def test_confident_errors_leave_no_image_certain() -> None:
    logits, labels = drawn(400, 50.0)
    labels[:40] = (labels[:40] + 1) % 5
    assert float(calibration.fit(logits, labels).probs(100 * F.one_hot(labels, 5).float()).max()) < 0.99


def test_few_images_calibrate_nothing() -> None:
    logits, labels = drawn(calibration.FEWEST - 1, 5.0)
    assert calibration.fit(logits, labels) == Calibration()


def test_a_cross_calibrated_image_does_not_see_its_own_label() -> None:
    logits, labels = drawn(60, 3.0)
    before = calibration.cross_calibrated(logits, labels)
    changed = labels.clone()
    changed[2::5] = (changed[2::5] + 1) % 5  # the images of one fold
    after = calibration.cross_calibrated(logits, changed)
    assert torch.equal(before[2::5], after[2::5])
    assert not torch.equal(before, after)


def test_weights_give_the_labeled_images_the_mix_of_a_pool() -> None:
    labels = torch.tensor([0] * 10 + [1] * 30)
    weights = calibration.weigh(labels, torch.tensor([0.6, 0.4]))
    assert float(weights[labels == 0].sum() / weights.sum()) == pytest.approx(0.6)
    assert float(weights.mean()) == pytest.approx(1)


def test_the_mix_of_a_pool_is_found_and_a_favored_class_cancels() -> None:
    """A classifier that gives its first class too much: the mean of its probabilities is far from any mix."""
    rng = torch.Generator().manual_seed(0)

    def probs(shares: list[float], num: int) -> Tensor:
        label = torch.multinomial(torch.tensor(shares), num, replacement=True, generator=rng)
        logits = 3.0 * F.one_hot(label, 3) + torch.randn(num, 3, generator=rng)
        return (logits + torch.tensor([1.5, 0.0, 0.0])).softmax(1)

    even, uneven = [1 / 3] * 3, [0.2, 0.3, 0.5]
    of_labeled, mix_K = probs(even, 3000), torch.full((3,), 1 / 3)
    assert float(of_labeled.mean(0)[0]) > 0.45
    assert calibration.mix(probs(even, 3000), of_labeled, mix_K).tolist() == pytest.approx(even, abs=0.03)
    found = calibration.mix(probs(uneven, 3000), of_labeled, mix_K)
    assert float(found.sum()) == pytest.approx(1)
    assert found.tolist() == sorted(found.tolist())
    assert all(abs(a - b) < 0.07 for a, b in zip(found.tolist(), uneven, strict=True))


def test_a_share_of_equal_weights_is_wilsons_and_unequal_ones_count_less() -> None:
    right = torch.arange(40) < 30
    equal = calibration.share(right, torch.ones(40, dtype=torch.float64))
    assert (equal.low, equal.high) == pytest.approx(wilson(30, 40))
    assert calibration.share(right, 1 + 3.0 * right.double()).trials < 40
    pool = calibration.share(right, torch.ones(40, dtype=torch.float64), among=40)
    assert (pool.low, pool.high) == pytest.approx(wilson(15, 20)) and pool.value == 0.75
    assert calibration.share(right[:0], torch.ones(0)).high == 1.0


def test_a_true_confidence_has_no_error_in_its_interval_and_a_wrong_one_has() -> None:
    confidence = torch.rand(200, generator=torch.Generator().manual_seed(0)) / 2 + 0.5
    right = torch.rand(200, generator=torch.Generator().manual_seed(1)) < confidence
    assert calibration.calibration_error_interval(confidence, right)[0] < 0.03
    low, high = calibration.calibration_error_interval(torch.full((200,), 0.99), right)
    assert 0.1 < low < 0.99 - float(right.float().mean()) < high


def promised(num: int, precision: float, seed: int) -> tuple[float | None, Tensor]:
    """Limit by `num` labeled images, and which of them are right: the more, the higher the confidence."""
    rng = torch.Generator().manual_seed(seed)
    confidence = torch.rand(num, generator=rng)
    right = torch.rand(num, generator=rng) < 0.6 + 0.4 * confidence
    found = calibration.limit(confidence, right, torch.ones(num), precision=precision, level=0.9)
    return found.confidence, right


@pytest.mark.parametrize("num", [60, 300])
@pytest.mark.parametrize("precision", [0.85, 0.9])
def test_a_promise_is_broken_no_more_often_than_it_says(num: int, precision: float) -> None:
    # From a confidence c on, 0.6 + 0.2 (1 + c) of the labels are right.
    limits = [promised(num, precision, seed)[0] for seed in range(300)]
    broken = [at for at in limits if at is not None and 0.8 + 0.2 * at < precision]
    assert len(broken) <= 0.1 * 300 + 3 * (300 * 0.1 * 0.9) ** 0.5
    if num == 300:
        assert sum(at is not None for at in limits) > 100


def test_too_few_images_promise_nothing_and_say_how_many_it_takes() -> None:
    found = calibration.limit(
        torch.rand(20), torch.ones(20, dtype=torch.bool), torch.ones(20), precision=0.9, level=0.9
    )
    assert (found.confidence, found.num_above, found.needed) == (None, 20, 22)
    assert 0.9**22 <= 0.1 < 0.9**21


def test_images_of_one_confidence_are_promised_together_or_not_at_all() -> None:
    confidence = torch.cat((torch.full((30,), 0.9), torch.full((30,), 0.5)))
    right = torch.cat((torch.ones(35), torch.zeros(25))).bool()
    found = calibration.limit(confidence, right, torch.ones(60), precision=0.9, level=0.9)
    assert found.confidence == pytest.approx(0.9)


def test_tail_is_the_binomials() -> None:
    assert calibration.tail(3, 3, 0.5) == pytest.approx(0.125)
    assert calibration.tail(2, 3, 0.5) == pytest.approx(0.5)
    assert calibration.tail(0, 3, 0.5) == 1


def test_a_wrong_label_of_the_labeled_set_is_found() -> None:
    labels = torch.arange(60) % 3
    probs = 0.9 * F.one_hot(labels, 3).float() + 0.1 / 3
    given = labels.clone()
    given[5] = (labels[5] + 1) % 3
    (found,) = calibration.errors(probs, given)
    assert (found.row, found.given, found.suggested) == (5, int(given[5]), int(labels[5]))
    assert not calibration.errors(probs, labels)


def test_a_class_of_few_images_is_not_called_wrong() -> None:
    """A classifier that has seen three images of a class takes them for the common one."""
    probs = 0.98 * F.one_hot(torch.zeros(60, dtype=torch.int64), 2).float() + 0.01
    for few, suspects in ((3, 0), (6, 6)):
        given = (torch.arange(60) < few).long()
        assert len(calibration.errors(probs, given)) == suspects


def test_no_image_is_its_own_neighbor() -> None:
    vectors = F.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    own = calibration.nearest(vectors, vectors, themselves=True)
    again = calibration.nearest(vectors, vectors)
    assert bool((own > again).all())
    similar = vectors @ vectors.T - 3 * torch.eye(30)
    assert torch.allclose(own, 1 - similar.topk(calibration.NEIGHBORS, dim=1).values.mean(1), atol=1e-5)


def test_folds_spread_each_class_and_depend_on_the_seed_alone() -> None:
    labels = torch.arange(50) % 10
    folds = calibration.folds_of(labels.tolist(), 5, seed=3)
    for k in range(10):
        assert folds[labels == k].bincount(minlength=5).tolist() == [1] * 5
    assert torch.equal(folds, calibration.folds_of(labels.tolist(), 5, seed=3))
    assert not torch.equal(folds, calibration.folds_of(labels.tolist(), 5, seed=4))
