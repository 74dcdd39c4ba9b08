"""What the detector is shown: labeled, queued, confident and marked images."""

import torch
from torch import Tensor

from models.bootstrap import Bootstrap
from models.examples import Examples
from models.marked import Marked
from models.ranks import Rng
from models.recipe import Controls, Recipe
from models.residual import NUM_FEATURES, Linear

CPU = torch.device("cpu")
ROWS = torch.arange(100, 112)  # dataset indices of the pool's sample
LABELED = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)


def examples(marked: Marked | None = None, **controls: object) -> Examples:
    return Examples(Recipe(queue_length=4, queue_classes=2), Controls(**controls), 2, marked, CPU)


def found(real: list[int], synthetic: list[int]) -> Bootstrap:
    """A bootstrap that takes these of 12 images, and scores them by their position."""
    masks = (torch.isin(torch.arange(12), torch.tensor(which, dtype=torch.int64)) for which in (real, synthetic))
    linear = Linear(*torch.zeros(3, NUM_FEATURES, dtype=torch.float64))
    return Bootstrap(torch.arange(12.0), 0.5, (0.4, 0.6), *masks, linear)


def tiles_of(rows: Tensor) -> Tensor:
    """Tiles that show their row."""
    return rows.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)


def shown(tiles: Tensor) -> list[int]:
    return tiles[:, 0, 0, 0].tolist()


def rng(seed: int = 0) -> Rng:
    return Rng(torch.Generator().manual_seed(seed))


def queued(of: Examples) -> set[int]:
    return set(of.queue.index[of.queue.index >= 0].tolist())


def test_the_bootstrap_fills_the_queue_and_leaves_confident_real_images() -> None:
    ours = examples()
    ours.fill(ROWS, found([0, 1, 2], [9, 10, 11]), torch.arange(12) % 2)
    assert queued(ours) == {109, 110, 111}
    assert ours.confident_real.tolist() == [100, 101, 102]
    real, synthetic = ours.fetch(LABELED, tiles_of, rng())
    assert len(real) == 2 and real[0] is LABELED
    assert set(shown(real[1])) <= {100, 101, 102}
    assert set(shown(synthetic)) <= {109, 110, 111}
    assert len(real[1]) == len(synthetic) == len(LABELED)


def test_without_confident_real_the_labeled_images_are_the_only_real_ones() -> None:
    ours = examples(confident_real=False)
    ours.fill(ROWS, found([0, 1, 2], [9, 10, 11]), torch.arange(12) % 2)
    assert len(ours.confident_real) == 0
    real, synthetic = ours.fetch(LABELED, tiles_of, rng())
    assert len(real) == 1 and real[0] is LABELED
    assert set(shown(synthetic)) <= {109, 110, 111}


def test_where_the_bootstrap_takes_none_for_synthetic_the_highest_score_is_queued() -> None:
    ours = examples()
    ours.fill(ROWS, found([0], []), torch.arange(12) % 2)
    assert queued(ours) == {111}


def test_marks_correct_the_bootstrap() -> None:
    ours = examples(Marked(torch.tensor([110]), torch.tensor([101, 105]), 6))
    ours.fill(ROWS, found([0, 1, 2], [9, 10, 11]), torch.arange(12) % 2)
    assert queued(ours) == {101, 105, 109, 111}
    assert set(ours.confident_real.tolist()) == {100, 102, 110}


def test_marked_images_replace_some_labeled_and_some_queued_ones() -> None:
    ours = examples(Marked(torch.tensor([110]), torch.tensor([101, 105]), 2), confident_real=False)
    ours.fill(ROWS, found([0], [9]), torch.arange(12) % 2)
    seen_real, seen_synthetic = set[int](), set[int]()
    for seed in range(20):
        (real,), synthetic = ours.fetch(LABELED, tiles_of, rng(seed))
        seen_real |= set(shown(real))
        seen_synthetic |= set(shown(synthetic))
    assert seen_real == {0, 110}  # 0: labeled
    assert seen_synthetic == {101, 105, 109}


def test_a_mark_decides_what_is_pushed() -> None:
    ours = examples(Marked(torch.tensor([100]), torch.tensor([105]), 6))
    ours.push(ROWS, torch.linspace(0.9, 0.1, 12), torch.zeros(12, dtype=torch.int64), rng())
    assert queued(ours) == {105}
    ours.push(torch.tensor([100]), torch.tensor([0.99]), torch.tensor([1]), rng())
    assert queued(ours) == {105}


def test_one_queue_for_all_classes_takes_as_much_as_the_sub_queues() -> None:
    labels = torch.arange(12) % 2
    apart, together = examples(), examples(detector_examples="global-queue")
    assert apart.queue.index.shape == (2, 4) and together.queue.index.shape == (1, 8)
    assert apart.sub_queue(labels).tolist() == labels.tolist()
    assert not together.sub_queue(labels).any()
    for each in (apart, together):
        each.push(ROWS, torch.linspace(0, 1, 12), labels, rng())
        assert queued(each) == {110, 111}
    assert apart.figures["queue_filled"] == together.figures["queue_filled"] == 2 / 8


def test_without_a_queue_there_are_the_labeled_images_alone() -> None:
    ours = examples(detector_examples="truth")
    real, synthetic = ours.fetch(LABELED, tiles_of, rng())
    assert len(real) == 1 and real[0] is LABELED
    assert synthetic.shape == (0, 3, 4, 4)
    assert ours.figures == {}
