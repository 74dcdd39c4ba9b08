import pytest
import torch

from models.marked import Marked
from models.ranks import Rng


def marked(real: list[int], synthetic: list[int], num_labeled: int = 16) -> Marked:
    return Marked(torch.tensor(real, dtype=torch.int64), torch.tensor(synthetic, dtype=torch.int64), num_labeled)


def test_a_mark_overrides_the_value() -> None:
    rows, values = torch.tensor([3, 9, 5, 0, 3]), torch.full((5,), 0.5)
    overridden = marked([3, 7], [0, 5, 8]).override(rows, values, 0.0, 1.0)
    assert overridden.tolist() == [0.0, 0.5, 1.0, 1.0, 0.0]
    assert marked([], []).override(rows, values, 0.0, 1.0).tolist() == values.tolist()


def test_an_image_of_none_of_the_classes_goes_to_the_dummy_head() -> None:
    g = torch.tensor([True, False, False, False])
    ours = marked([3, 7], [0])._replace(off_class=torch.tensor([7]))
    assert ours.route(torch.tensor([1, 3, 7, 9]), g).tolist() == [True, False, True, False]
    assert marked([3, 7], [0]).route(torch.tensor([1, 3, 7, 9]), g).tolist() == g.tolist()


def test_marked_images_are_drawn_as_often_as_labeled_ones() -> None:
    drawn, replaces = marked([], [4, 6], num_labeled=6).draw(torch.tensor([4, 6]), 20_000, Rng(torch.Generator()))
    assert replaces.float().mean().item() == pytest.approx(2 / 8, abs=0.02)
    assert drawn.unique().tolist() == [4, 6]
    assert (drawn == 4).float().mean().item() == pytest.approx(0.5, abs=0.02)
