"""RSMatch routed by scores that the whole pool had before training began: by the panel (`models.panel`)."""

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from models.batch import Batch
from models.classifier import TwoHeaded
from models.learner import Fitted
from models.marked import Marked
from models.panel import Panel
from models.ranks import Rng
from models.recipe import Controls, Recipe
from models.rsmatch import FetchTiles, RSMatch
from models.thresholds import ROUTE_MARGIN


class Prior(NamedTuple):
    """A panel, its scores (N,) float32 of the pool's images, and what they say of the synthetic share."""

    panel: Panel
    scores: Tensor  # higher is more synthetic
    share: float
    interval: tuple[float, float]


class RoutedByPanel(RSMatch):
    """RSMatch whose detector is the panel: it has seen the pool, and learns no more while the classifier is trained.

    A detector that learned from the panel's surest images ranked worse than the panel did, since each round confirms
    what a weak start gets wrong (docs/log.md). So there is no queue. A person's marks override the scores.
    """

    def __init__(
        self,
        recipe: Recipe,
        controls: Controls,
        classifier: TwoHeaded,
        prior: Prior,
        autocast: AbstractContextManager[object],
        *,
        num_images: int,
        marked: Marked | None = None,
    ) -> None:
        panel = Fitted(prior.panel)
        super().__init__(recipe, controls, classifier, panel, autocast, num_images=num_images, marked=marked)
        self._scores = prior.scores
        self.thresholds.fit(prior.share, prior.interval)
        # As in `models.thresholds`: a margin of images just below the threshold goes to the dummy head, too.
        below = (1 - prior.share) * (1 - ROUTE_MARGIN * prior.share)
        ordered = prior.scores.sort().values
        first = min(int(below * len(ordered)), len(ordered) - 1)
        self._route_from = ordered[first].item() if prior.share > 0 else torch.inf

    @property
    def bootstrap_step(self) -> int | None:
        """None: the panel needs no bootstrap."""
        return None

    @property
    def routing_start(self) -> int:
        """First step in which images may go to the dummy head."""
        return self._warmup_steps

    def step(self, number: int, batch: Batch, fetch_tiles: FetchTiles, rng: Rng) -> dict[str, Tensor]:
        """Train the classifier on one batch; without classes there is nothing left to train."""
        if self.has_classes:
            return self._train_both(number, batch, fetch_tiles, rng)
        return {"dummy_share": self.route(number, batch, rng)[1].float().mean()}

    def route(self, number: int, batch: Batch, rng: Rng) -> tuple[Tensor | None, Tensor]:
        """No evidence for a detector to learn from, and g(u) by the panel."""
        scores_M = self._scores[batch.rows]
        if self.marked:
            scores_M = self.marked.override(batch.rows, scores_M, -torch.inf, torch.inf)
        g = (scores_M >= self._route_from) & (number >= self.routing_start)
        return None, self.marked.route(batch.rows, g) if self.marked else g
