"""Labeled images are judged by classifiers that have not seen them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.panel import Panel
from models.recipe import Recipe
from models.routed import Prior
from pipelines.images.views import Views
from pipelines.pool.labeled import Labeled
from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows
from pipelines.train import TrainConfig, crossfit
from pipelines.train.config import MachineConfig, NetworkConfig
from pipelines.train.data import Batches, Data
from pipelines.train.marked import Training
from tests.conftest import World
from tests.pipelines.train import runs

CLASSES, LABELED, POOL, WIDTH = 3, 30, 60, 12


def config() -> TrainConfig:
    recipe = Recipe(num_steps=30, batch_size=8, unlabeled_ratio=2, ema_decay=0.9)
    network = NetworkConfig(backbone="small", views=1, frozen=True)
    return TrainConfig(labeled=Path(), network=network, recipe=recipe, machine=MachineConfig(device="cpu"))


def features(num: int, seed: int) -> Tensor:
    """Three views (N, 3, D) of images whose class is their number modulo three."""
    rng = torch.Generator().manual_seed(seed)
    kind = torch.eye(CLASSES, WIDTH)[torch.arange(num) % CLASSES]
    return 4 * kind[:, None] + torch.randn(num, 3, WIDTH, generator=rng)


def data(labels: Tensor) -> Data:
    views = Views(features(LABELED, 0), torch.zeros(LABELED, 2))
    examples = Labeled(views, labels, ("a", "b", "c"), tuple(map(str, range(LABELED))))
    nothing = np.empty(0)
    return Data(Pool(Path()), Training(examples, Rows(Pool(Path()), *[nothing] * 4)), None, None, None)


def hidden_logits(labels: Tensor, hidden: Tensor) -> Tensor:
    panel, pool = Panel({"nothing": 1}), Views(features(POOL, 1), torch.zeros(POOL, 2))
    prior, given = Prior(panel, torch.zeros(POOL), 0.0, (0.0, 0.0)), data(labels)
    return crossfit.judged_without(config(), given, given.training.examples, hidden, (pool, prior), lambda tick: None)


def test_hidden_images_are_judged_well_and_without_their_labels() -> None:
    labels, hidden = torch.arange(LABELED) % CLASSES, torch.arange(LABELED) < 6
    before = hidden_logits(labels, hidden)
    assert torch.equal(before.argmax(1), labels[:6])
    others = torch.where(hidden, (labels + 1) % CLASSES, labels)
    assert torch.equal(hidden_logits(others, hidden), before)
    others = torch.where(hidden, labels, (labels + 1) % CLASSES)
    assert not torch.equal(hidden_logits(others, hidden), before)


def test_every_labeled_image_is_judged_once_and_those_that_marks_labeled_are_left_out() -> None:
    labels = torch.arange(LABELED) % CLASSES
    panel, pool = Panel({"nothing": 1}), Views(features(POOL, 1), torch.zeros(POOL, 2))
    prior, given = Prior(panel, torch.zeros(POOL), 0.0, (0.0, 0.0)), data(labels)
    given = replace(given, training=replace(given.training, counts={"labeled": 3}))
    ticks: list[tuple[int, int | None]] = []
    found = crossfit.cross_fitted(config(), given, pool, prior, lambda tick: ticks.append((tick.done, tick.total)))
    assert ticks == [(done, 5 * 30) for done in range(1, 5 * 30 + 1)]  # five trainings of 30 steps, counted together
    assert found.logits.shape == (LABELED - 3, CLASSES) and len(found.sha256) == len(found.distances) == LABELED - 3
    assert len(found.references) == LABELED
    assert float(found.right.float().mean()) > 0.8


@pytest.mark.parametrize("harms", [False, True])
def test_the_classifier_learns_from_the_pool_only_where_that_does_no_harm(harms: bool) -> None:
    """A pool of images that look a little like one class: taken for that class, each makes the classifier worse."""
    labels, rng = torch.arange(LABELED) % CLASSES, torch.Generator().manual_seed(0)
    of_labeled = 2 * torch.eye(CLASSES, WIDTH)[labels][:, None] + 0.8 * torch.randn(LABELED, 3, WIDTH, generator=rng)
    of_pool = 1.6 * torch.randn(POOL, 1, WIDTH, generator=rng) + 0.3 * torch.randn(POOL, 3, WIDTH, generator=rng)
    of_pool[:, :, 0] += 8
    given = data(labels)
    if harms:
        views = Views(of_labeled, torch.zeros(LABELED, 2))
        given = replace(given, training=replace(given.training, examples=replace(given.training.examples, views=views)))
    else:
        of_pool = features(POOL, 1)
    recipe = config().recipe.model_copy(update={"num_steps": 100, "confidence_threshold": 0.34 if harms else 0.95})
    changed = config().model_copy(update={"recipe": recipe})
    prior, pool = Prior(Panel({"nothing": 1}), torch.zeros(POOL), 0.0, (0.0, 0.0)), Views(of_pool, torch.zeros(POOL, 2))
    said = list[str]()
    found, of_labels = crossfit.better(changed, given, pool, prior, lambda tick: said.append(tick.info or ""))
    assert (of_labels is not None) is harms
    assert any("learns from the labels alone" in each for each in said) is harms
    if of_labels is not None:
        of_method = crossfit.cross_fitted(changed, given, pool, prior, lambda tick: None)
        assert int(found.right.sum()) > int(of_method.right.sum())
        with torch.no_grad():
            own = of_labels(given.training.examples.views.images).real.argmax(1)
        assert float((own == labels).float().mean()) > 0.9
        always = changed.model_copy(update={"recipe": recipe.model_copy(update={"self_training": "always"})})
        same, nothing = crossfit.better(always, given, pool, prior, lambda tick: None)
        assert torch.equal(same.logits, of_method.logits) and nothing is None


@pytest.mark.slow
def test_a_network_never_learns_from_the_labels_that_are_kept_from_it(world: World, tmp_path: Path) -> None:
    changed = runs.config(world, tmp_path / "run", recipe={"calibration_share": 0.25})
    read = Data.read(changed, torch.device("cpu"))
    batches = Batches(changed, read, torch.device("cpu"))
    labels, views = read.training.examples.labels, read.training.examples.views.images
    assert labels[batches.unlearned].bincount().tolist() == [2] * len(read.classes)
    shown = torch.cat([batches.batch(step, Views(views[:0], views[:0])).labeled for step in range(20)]).flatten(1)
    kept = views[batches.unlearned].flatten(1)
    assert not (shown[:, None] == kept).all(2).any()
    nothing = runs.config(world, tmp_path / "run", recipe={"calibration_share": 0.0})
    assert not len(Batches(nothing, read, torch.device("cpu")).unlearned)
