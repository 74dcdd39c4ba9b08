"""The step of RSMatch: it is deterministic, a refactoring leaves it alone, and each switch changes what is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import augment, methods, residual
from models.batch import Batch
from models.marked import Marked
from models.ranks import Rng
from models.rsmatch import DETECTOR_SETTLES, RSMatch
from tests.models import toy

GOLDEN = Path(__file__).with_name("golden_curve.json")


# The step.


def curve(method: methods.Method) -> list[float]:
    names = ("sup_real", "self_real", "detector_sup", "detector_cons")
    return [round(sum(figures[name].item() for name in names), 6) for figures in toy.train(method, range(20))]


def test_step_is_deterministic_to_the_bit() -> None:
    first, second = toy.build_rsmatch(), toy.build_rsmatch()
    toy.train(first, range(6))
    toy.train(second, range(6))
    for ours, theirs in zip(first.classifier.average.parameters(), second.classifier.average.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(first.examples.queue.index, second.examples.queue.index)


def test_loss_curve_of_20_steps_is_the_golden_one() -> None:
    """A refactor leaves these numbers. A change of the method rewrites them: `python -m tests.models.test_rsmatch`."""
    golden = json.loads(GOLDEN.read_text())
    assert curve(toy.build()) == pytest.approx(golden, rel=2e-3)  # other CPUs round otherwise


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["flexmatch", "freematch", "softmatch"])
def test_every_rule_trains_it(rule: str) -> None:
    model = toy.build(rule=rule, confidence_threshold=0.8)
    assert all(figures["self_real"].isfinite() for figures in toy.train(model, range(30)))
    assert toy.accuracy(model) > 0.9


@pytest.mark.slow
def test_it_learns_simple_pictures() -> None:
    model = toy.build(confidence_threshold=0.8)
    toy.train(model, range(60))
    assert toy.accuracy(model) == 1.0


def test_without_classes_the_detector_alone_is_trained_from_the_first_step() -> None:
    model = toy.build_rsmatch(num_outputs=1, warmup=0.5, detector_init="features")
    assert (model.bootstrap_step, model.detector_start, model.routing_start) == (0, 0, DETECTOR_SETTLES)
    before = {name: part.detach().clone() for name, part in model.classifier.network.state_dict().items()}
    start = model.detector.network.head.weight.detach().clone()
    assert not model.pseudo_labels(toy.pictures()[2]).any()
    bootstrap(model)
    figures = toy.train(model, range(3))
    after = model.classifier.network.state_dict()
    assert all(part.equal(after[name]) for name, part in before.items())
    assert not start.equal(model.detector.network.head.weight)
    assert all(set(each) >= {"detector_sup", "dummy_share"} and "sup_real" not in each for each in figures)
    assert model.examples.queue.index.shape == (1, 8)  # one sub-queue


def test_nothing_is_routed_before_the_detector_has_settled() -> None:
    model = toy.build_rsmatch(warmup=0.1)
    assert all(figures["dummy_share"] == 0 for figures in toy.train(model, range(6)))
    assert model.routing_start == DETECTOR_SETTLES
    assert toy.build_rsmatch(detector_init="features", warmup=0.1).routing_start == 30 + DETECTOR_SETTLES
    assert toy.build_rsmatch(routing="oracle", warmup=0.1).routing_start == 30  # which waits for no detector


def test_the_real_head_learns_from_what_lies_below_the_route() -> None:
    model = toy.build_rsmatch()
    for route, share in ((torch.inf, 0.0), (-torch.inf, 1.0)):
        model.thresholds.route.fill_(route)
        (figures,) = toy.train(model, range(DETECTOR_SETTLES, DETECTOR_SETTLES + 1))
        assert figures["dummy_share"] == share


def bootstrap(model: RSMatch, seed: int = 0) -> None:
    """Bootstrap by the pictures' residual features, the first 16 of which stand for labeled ones."""
    features = residual.features(toy.pictures()[2])
    rows, rng = torch.arange(toy.NUM_POOL), torch.Generator().manual_seed(seed)
    model.bootstrap(rows, features, features[:16], rows % 2, rng)


def evidence_and_logits(model: RSMatch) -> tuple[Tensor, Tensor]:
    """Evidence of the pool at the thresholds as they are, and the detector's logits of the same views."""
    pool = toy.pictures()[2]
    with torch.no_grad():
        logits = model.detector.average(augment.weak(pool, Rng(torch.Generator().manual_seed(7))))
    evidence, _ = model.route(0, toy.batch_of(torch.arange(toy.NUM_POOL)), Rng(torch.Generator().manual_seed(7)))
    assert evidence is not None
    return evidence, logits


def test_training_goes_by_the_residual_score_as_much_as_by_the_detector() -> None:
    model = toy.build_rsmatch(detector_init="features")
    evidence, logits = evidence_and_logits(model)
    assert torch.equal(evidence, logits)  # nothing is known of the pool yet
    bootstrap(model)
    scores = model.residual_score(toy.pictures()[2])
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std().item() == pytest.approx(1, abs=1e-4)
    evidence, logits = evidence_and_logits(model)
    torch.testing.assert_close(evidence, logits + logits.std(correction=0) * scores)


def test_without_residual_evidence_it_goes_by_the_detector_alone() -> None:
    model = toy.build_rsmatch(detector_init="features", residual_evidence=False)
    bootstrap(model)
    assert model.residual_score(toy.pictures()[2]).std() > 0.9  # there is a score
    evidence, logits = evidence_and_logits(model)
    assert torch.equal(evidence, logits)


def test_evidence_is_0_at_the_middle_threshold() -> None:
    model = toy.build_rsmatch()
    model.thresholds.middle.fill_(0.75)
    evidence, logits = evidence_and_logits(model)
    torch.testing.assert_close(evidence, logits - 0.75)


def test_without_share_thresholds_all_stay_where_the_paper_has_them() -> None:
    model = toy.build_rsmatch(detector_init="features", share_thresholds=False)
    bootstrap(model)
    toy.train(model, range(DETECTOR_SETTLES, DETECTOR_SETTLES + 2))
    thresholds = model.thresholds
    assert thresholds.detector == thresholds.middle == thresholds.route == 0
    assert thresholds.sure == -torch.inf
    assert thresholds.share.isfinite()  # which is estimated all the same
    ours = toy.build_rsmatch(detector_init="features")
    bootstrap(ours)
    assert ours.thresholds.sure == 0
    toy.train(ours, range(DETECTOR_SETTLES, DETECTOR_SETTLES + 2))
    assert 0 not in (ours.thresholds.detector, ours.thresholds.middle, ours.thresholds.route)


@pytest.mark.parametrize("count", [2, 7, 16])
def test_of_a_pool_of_a_few_images_one_at_least_is_queued(count: int) -> None:
    pool = toy.pictures()[2][:count]
    features = residual.features(toy.pictures()[2])
    for seed in range(4):
        model, rng = toy.build_rsmatch(detector_init="features"), torch.Generator().manual_seed(seed)
        classes = torch.randint(2, (count,), generator=rng)
        model.bootstrap(torch.arange(count), residual.features(pool), features[16:32], classes, rng)
        assert model.examples.queue.draw(5, rng).max() < count
        assert model.residual_score(pool).isfinite().all() and model.thresholds.share.isfinite()


def test_only_what_is_surely_synthetic_enters_the_queue() -> None:
    model = toy.build_rsmatch()
    queue = model.examples.queue
    toy.train(model, range(2))
    for sure, grows in ((torch.inf, False), (-torch.inf, True)):
        model.thresholds.sure.fill_(sure)
        before = queue.size.sum().item()
        toy.train(model, range(DETECTOR_SETTLES, DETECTOR_SETTLES + 3))
        assert (queue.size.sum().item() > before) == grows


def test_queue_is_filled_at_random_while_the_detector_knows_nothing() -> None:
    model = toy.build_rsmatch()
    toy.train(model, range(12))
    queue = model.examples.queue
    assert queue.size.sum() > 0
    assert (queue.score[queue.index >= 0] < 1).all()


# A person's marks.


def marked(real: list[int], synthetic: list[int]) -> Marked:
    return Marked(torch.tensor(real, dtype=torch.int64), torch.tensor(synthetic, dtype=torch.int64), 16)


def test_a_mark_is_evidence_without_bound() -> None:
    model = toy.build_rsmatch(marked([3, 9], [5, 6, 127]))
    evidence, g = model.route(
        DETECTOR_SETTLES, toy.batch_of(torch.arange(toy.NUM_POOL)), Rng(torch.Generator().manual_seed(0))
    )
    assert evidence is not None
    assert (evidence == torch.inf).nonzero().flatten().tolist() == [5, 6, 127]
    assert (evidence == -torch.inf).nonzero().flatten().tolist() == [3, 9]
    assert g[[5, 6, 127]].all() and not g[[3, 9]].any()
    for route in (-1e9, 1e9):  # wherever the thresholds are
        model.thresholds.route.fill_(route)
        _, g = model.route(
            DETECTOR_SETTLES, toy.batch_of(torch.arange(toy.NUM_POOL)), Rng(torch.Generator().manual_seed(0))
        )
        assert g[[5, 6, 127]].all() and not g[[3, 9]].any()


@pytest.mark.parametrize("detector_init", ["random", "features"])
def test_marked_images_are_routed_and_shown_to_the_detector_by_what_was_said(detector_init: str) -> None:
    """Whatever the untrained detector says: known real images are never queued, known synthetic ones always are."""
    real, synthetic = list(range(40)), list(range(40, 60))
    model = toy.build_rsmatch(marked(real, synthetic), detector_init=detector_init, queue_length=64)
    labeled, labels, pool = toy.pictures()
    if detector_init == "features":
        rng = torch.Generator().manual_seed(0)
        features = torch.randn(128, residual.NUM_FEATURES, generator=rng)
        model.bootstrap(torch.arange(128), features, features[:16], torch.arange(128) % 2, rng)
        assert not set(model.examples.confident_real.tolist()) & set(synthetic)
    seen: list[int] = []
    rows = torch.arange(10, 58)
    batch = Batch(labeled, labeled, labels, pool[rows], pool[rows], rows)

    def fetch(picked: Tensor) -> Tensor:
        seen.extend(picked.tolist())
        return pool[picked]

    for step in (260, 261):
        figures = model.step(step, batch, fetch, Rng(torch.Generator().manual_seed(step)))
    assert figures["dummy_share"] >= 18 / 48  # rows 40..57
    queued = set(model.examples.queue.index.flatten().tolist())
    assert not queued & set(real)
    assert queued & set(synthetic)
    assert set(seen) & set(real) and set(seen) & set(synthetic)


# The switches of our additions.


def state_after(**settings: Any) -> dict[str, Tensor]:
    """All tensors after a bootstrap and some steps of a detector that counts as settled, which route a part."""
    defaults: dict[str, Any] = {"detector_init": "features", "confidence_threshold": 0.5}
    model = toy.build_rsmatch(**(defaults | settings))
    bootstrap(model)
    model.thresholds.fit(0.4, (0.3, 0.5))  # the pictures themselves are all alike
    evidence, logits = evidence_and_logits(model)
    model.thresholds.follow(logits, evidence, rate=1.0)
    toy.train(model, range(DETECTOR_SETTLES, DETECTOR_SETTLES + 4))
    modules = {name: part for name, part in model.parts.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}/{key}": value for name, part in modules.items() for key, value in part.state_dict().items()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    """Networks and other parts that are not equal to the bit."""
    return {
        key.split("/")[0]
        for key in first.keys() | second.keys()
        if key not in first or key not in second or not torch.equal(first[key], second[key])
    }


@pytest.fixture(scope="module")
def by_default() -> dict[str, Tensor]:
    return state_after()


@pytest.mark.parametrize(
    ("switch", "default", "other", "part"),
    [
        ("residual_evidence", True, False, "detector"),
        ("share_thresholds", True, False, "thresholds"),
        ("confident_real", True, False, "detector"),
        ("residual_planes", True, False, "detector"),
        ("residual_features", True, False, "detector"),
        ("resampled_views", True, False, "detector"),
        ("split_norms", True, False, "classifier"),
        ("average_over_real", True, False, "classifier"),
        ("equalize_spectrum", True, False, "detector"),
    ],
)
@pytest.mark.slow
def test_each_switch_changes_what_is_trained_and_is_on_by_default(
    by_default: dict[str, Tensor], switch: str, default: bool, other: bool, part: str
) -> None:
    assert not differing(by_default, state_after(**{switch: default}))
    assert part in differing(by_default, state_after(**{switch: other}))


@pytest.mark.parametrize("equalize", [True, False])
def test_views_are_resampled_where_the_spectrum_is_equalized_unless_told_otherwise(equalize: bool) -> None:
    assert toy.build_rsmatch(equalize_spectrum=equalize).resample == equalize
    for resampled in (True, False):
        assert toy.build_rsmatch(equalize_spectrum=equalize, resampled_views=resampled).resample == resampled


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(curve(toy.build())) + "\n")
