"""Data of a training: the labeled set, the unlabeled rows of the pool, what is known of them, and batches of both."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import ranks
from models.batch import Batch
from pipelines.errors import BadInput
from pipelines.images.views import ViewMaker, Views
from pipelines.pool import labeled, pixels, truth
from pipelines.pool.labeled import Labeled
from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick
from pipelines.train import marked
from pipelines.train.batches import Order
from pipelines.train.config import TrainConfig
from pipelines.train.marked import Training

MAX_HELD_OUT = 2_000  # labeled images kept from the detector: more would not sharpen its calibration

Facts = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # per row: synthetic, class (see `truth.Truth.of`)


@dataclass(frozen=True)
class Data:
    """Everything that a training reads but the pixels of the pool."""

    pool: Pool
    training: Training  # labeled set and unlabeled rows, with a person's marks applied
    validation: Labeled | None
    facts: Facts | None  # the truth of the rows, where it is known
    oracle: Tensor | None  # (N,) bool, the truth of being synthetic, for controls that may read it

    @classmethod
    def read(cls, config: TrainConfig, device: torch.device, views: ViewMaker | None = None) -> "Data":
        """Read the labeled images, as pixels or as what `views` makes of them, and index the pool.

        Raises BadInput where the pool has too few images, or a control lacks the truth that it needs.
        """
        pool = Pool.open(config.pool)
        views = views or config.decoder
        examples = labeled.read(config.labeled, views)
        if examples.without and not config.has_detector:
            raise BadInput(
                f"{examples.without}, and {_trained(config)} learns nothing else. Make one folder of images per class, "
                f"as in {config.labeled}/cat/1.jpg, or train with --method rsmatch, which needs no classes."
            )
        validation = labeled.read(config.validation, views, examples.classes) if config.validation else None
        known = truth.read(config.truth) if config.truth else None
        training = marked.join(pool, examples, config.run, views)
        if len(training.rows) < 2:  # one has no spread
            raise BadInput(
                f"{config.pool}: only {len(training.rows)} of its images are outside the labeled set. Training needs 2 "
                "or more: ingest more images."
            )
        facts = None
        if known:
            facts = known.of(training.rows.members(), training.rows.columns(["sha256"])["sha256"].to_pylist())
            known.check(pool)
        return cls(pool, training, validation, facts, _oracle(config, facts, device))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the model's outputs; empty without classes."""
        return self.training.examples.classes

    @property
    def num_unlabeled(self) -> int:
        """Images of the pool that are not labeled."""
        return len(self.training.rows)

    @property
    def num_labeled(self) -> int:
        """Labeled images, those that marks labeled included."""
        return len(self.training.examples.labels)

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with: the images of pool and labeled set, wherever they are, and the marks."""
        rows, examples = self.training.rows.columns(["key", "sha256"]), self.training.examples
        labels = map(str, examples.labels.tolist())
        return {
            "pool": _digest(rows["key"].to_pylist(), rows["sha256"].to_pylist()),
            "labeled": _digest(labels, examples.sha256),
            "marks": self.training.fingerprint,
            "classes": len(self.classes),
        }

    def pixels(self, config: TrainConfig, device: torch.device, on_tick: OnTick) -> pixels.Images:
        """The pixels of the unlabeled rows: in memory if they fit, else decoded from the shards."""
        threads, rows = max(2, torch.get_num_threads()), self.training.rows
        fits = config.machine.memory == "auto" and pixels.fits(len(rows), config.decoder, device)
        if config.machine.memory == "memory" or fits:
            return pixels.load(rows, config.decoder, device, threads, on_tick)
        return pixels.Streamed(rows, config.decoder, device, threads)


def _digest(*columns: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for values in zip(*columns, strict=True):
        digest.update("\0".join((*values, "\n")).encode())
    return digest.hexdigest()[:16]


def _trained(config: TrainConfig) -> str:
    """What trains no detector, for an error."""
    if config.recipe.method == "rsmatch":
        return f"controls.routing = {config.controls.routing!r}"
    return f"--method {config.recipe.method}"


def _oracle(config: TrainConfig, facts: Facts | None, device: torch.device) -> Tensor | None:
    if not config.needs_truth:
        return None
    if facts is None or (facts[0] == truth.UNKNOWN).any():
        raise BadInput(
            f"{config.truth or '--truth'}: an oracle (controls.routing or controls.detector_examples) needs a truth "
            "file that covers every image of the pool. Complete it, or train without the oracle."
        )
    return torch.from_numpy(facts[0] == 1).to(device)


class Batches:
    """The batches of a training: batch `step` is a pure function of seed and step, of which each rank has its part."""

    def __init__(self, config: TrainConfig, data: Data, device: torch.device) -> None:
        examples, seed, size = data.training.examples, config.seed, config.recipe.batch_size
        self._device, self._oracle = device, data.oracle
        self._views = examples.views.map(lambda part: part.to(device))
        self._labels = examples.labels.to(device)
        # Marked images are no random sample of the real ones: they neither calibrate the detector nor enter the
        # estimate of the synthetic share.
        unmarked = data.num_labeled - data.training.num_labeled_by_marks
        self._held_out, self._shown = _held_out(unmarked, config, device)
        self._detector_rows = torch.cat((self._shown, torch.arange(unmarked, data.num_labeled, device=device)))
        self.unlearned = _unlearned(data, config)  # rows of labeled images that the classifier never learns from
        learned = torch.ones(data.num_labeled, dtype=torch.bool)
        learned[self.unlearned] = False
        self._learned = torch.nonzero(learned).squeeze(1).to(device)
        self._labeled = Order(len(self._learned), size, seed=seed)
        self._unlabeled = Order(data.num_unlabeled, size * config.recipe.unlabeled_ratio, seed=seed + 1)
        self._detector = Order(len(self._detector_rows), size, seed=seed + 2)

    @property
    def shown_tiles(self) -> Tensor:
        """Tiles of the labeled images that the detector may see."""
        return self._views.tiles[self._shown]

    @property
    def held_out_tiles(self) -> Tensor:
        """Tiles of the labeled images that the detector never sees."""
        return self._views.tiles[self._held_out]

    @property
    def labeled_images(self) -> Tensor:
        """What the classifier takes of all labeled images."""
        return self._views.images

    def unlabeled_rows(self, steps: range) -> Iterator[Tensor]:
        """Rows of the unlabeled batch of each step."""
        return (ranks.own(self._unlabeled.batch(step)) for step in steps)

    def batch(self, step: int, unlabeled: Views) -> Batch:
        """The batch of a step, given the views of its unlabeled images."""
        rows, drawn, shown = (self._own(order, step) for order in (self._unlabeled, self._labeled, self._detector))
        picked = self._learned[drawn]
        return Batch(
            labeled=self._views.images[picked],
            labeled_tiles=self._views.tiles[self._detector_rows[shown]],
            labels=self._labels[picked],
            unlabeled=unlabeled.images,
            unlabeled_tiles=unlabeled.tiles,
            rows=rows,
            synthetic=None if self._oracle is None else self._oracle[rows],
        )

    def _own(self, order: Order, step: int) -> Tensor:
        # Without waiting, which would keep the host from running ahead of a GPU.
        return ranks.own(order.batch(step)).to(self._device, non_blocking=True)


def _held_out(num_labeled: int, config: TrainConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Labeled rows that the detector never sees, and those that it may see; of very few it may see all."""
    order = torch.randperm(num_labeled, generator=torch.Generator().manual_seed(config.seed)).to(device)
    count = min(int(config.recipe.held_out * num_labeled), max(0, num_labeled - 2), MAX_HELD_OUT)
    return order[:count], order[count:]


def _unlearned(data: Data, config: TrainConfig) -> Tensor:
    """Labeled rows, ascending, that the classifier never learns from: a share of each class.

    Marked images are none of them: a person's marks are no random sample. On cached features each labeled image is
    judged by a training of its own (`pipelines.train.crossfit`), and none is kept.
    """
    nothing = torch.empty(0, dtype=torch.int64)
    if config.network.frozen or not data.classes:
        return nothing
    labels = data.training.examples.labels[: data.num_labeled - data.training.num_labeled_by_marks]
    rng, kept = torch.Generator().manual_seed(config.seed), [nothing]
    for k in range(len(data.classes)):
        rows = torch.nonzero(labels == k).squeeze(1)
        shuffled = rows[torch.randperm(len(rows), generator=rng)]
        kept.append(shuffled[: int(config.recipe.calibration_share * len(rows) + 1e-9)])
    return torch.cat(kept).sort().values
