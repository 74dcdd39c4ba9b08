"""RSMatch routed by a panel: what goes to the dummy head, and that only the classifier learns."""

from contextlib import nullcontext

import pytest
import torch
from torch import Generator, Tensor

from models import methods
from models.batch import Batch
from models.controls import RoutedByTruth
from models.marked import Marked
from models.panel import Panel
from models.probe import Probe
from models.ranks import Rng
from models.recipe import Controls, Recipe
from models.routed import Prior, RoutedByPanel
from models.thresholds import ROUTE_MARGIN

POOL, WIDTH = 200, 8


def scores() -> Tensor:
    return torch.randn(POOL, generator=Generator().manual_seed(4))


def method(share: float = 0.3, num_classes: int = 3, marked: Marked | None = None) -> RoutedByPanel:
    torch.manual_seed(0)
    prior = Prior(Panel({"all": 4}), scores(), share, (share / 2, 1.0))
    probe = Probe(WIDTH, num_classes, 1)
    found = methods.build(
        Recipe(num_steps=20, batch_size=8), Controls(), probe, prior, nullcontext(), num_images=POOL, marked=marked
    )
    assert isinstance(found, RoutedByPanel)
    return found


def batch(rows: Tensor) -> Batch:
    rng = Generator().manual_seed(1)
    return Batch(
        labeled=torch.randn(8, 3, WIDTH, generator=rng),
        labeled_tiles=torch.zeros(8, 5),
        labels=torch.arange(8) % 3,
        unlabeled=torch.randn(len(rows), 3, WIDTH, generator=rng),
        unlabeled_tiles=torch.zeros(len(rows), 5),
        rows=rows,
        synthetic=rows % 2 == 0,
    )


def rng() -> Rng:
    return Rng(Generator().manual_seed(2))


def no_tiles(rows: Tensor) -> Tensor:
    raise AssertionError("a panel needs no tiles")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.8])
def test_the_highest_scores_go_to_the_dummy_head_as_many_as_the_share_and_a_margin(share: float) -> None:
    _, g = method(share).route(19, batch(torch.arange(POOL)), rng())
    assert int(g.sum()) == pytest.approx(POOL * (1 - (1 - share) * (1 - ROUTE_MARGIN * share)), abs=1)
    assert scores()[g].min() > scores()[~g].max()


def test_nothing_is_routed_during_the_warm_up_nor_from_a_clean_pool() -> None:
    found = method()
    assert found.routing_start > 0 and found.bootstrap_step is None
    assert not found.route(found.routing_start - 1, batch(torch.arange(POOL)), rng())[1].any()
    assert not method(0.0).route(19, batch(torch.arange(POOL)), rng())[1].any()


def test_a_mark_overrides_a_score() -> None:
    order = scores().argsort()
    real, synthetic = order[-2:].sort().values, order[:2].sort().values
    _, g = method(marked=Marked(real, synthetic, 8)).route(19, batch(torch.arange(POOL)), rng())
    assert not g[real].any() and g[synthetic].all()
    none = Marked(real, synthetic, 8, off_class=real[:1])
    for step in (0, 19):  # from the first step on, as no label of it may be learned
        assert method(marked=none).route(step, batch(torch.arange(POOL)), rng())[1][real].tolist() == [True, False]


def test_a_step_trains_the_classifier_alone() -> None:
    found = method()
    before = {name: value.clone() for name, value in found.classifier.network.state_dict().items()}
    panel = {name: value.clone() for name, value in found.detector.average.state_dict().items()}
    for step in range(15, 18):
        figures = found.step(step, batch(torch.arange(32)), no_tiles, rng())
    assert figures["sup_real"].isfinite() and 0 < figures["dummy_share"] < 1
    after = found.classifier.network.state_dict()
    assert not torch.equal(before["real.weight"], after["real.weight"])
    assert not torch.equal(before["adapter.up.weight"], after["adapter.up.weight"])
    assert all(torch.equal(value, found.detector.average.state_dict()[name]) for name, value in panel.items())
    assert "detector_optimizer" not in found.parts and found.parts["detector"] is found.detector.network


def test_without_classes_there_is_nothing_to_train() -> None:
    found = method(num_classes=1)
    before = found.classifier.network.real.weight.clone()
    assert set(found.step(3, batch(torch.arange(32)), no_tiles, rng())) == {"dummy_share"}
    assert torch.equal(before, found.classifier.network.real.weight)


def test_an_oracle_takes_the_truth_for_the_route_beside_a_panel() -> None:
    prior = Prior(Panel({"all": 4}), scores(), 0.3, (0.1, 1.0))
    controls = Controls(routing="oracle")
    found = methods.build(
        Recipe(num_steps=20, batch_size=8), controls, Probe(WIDTH, 3, 1), prior, nullcontext(), num_images=POOL
    )
    assert isinstance(found, RoutedByTruth)
    _, g = found.route(19, batch(torch.arange(POOL)), rng())
    assert torch.equal(g, torch.arange(POOL) % 2 == 0)
    assert found.step(19, batch(torch.arange(32)), no_tiles, rng())["sup_real"].isfinite()
