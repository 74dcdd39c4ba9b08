"""RSMatch routed by scores that the whole pool had before training began: by the panel (`models.panel`)."""

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from models.batch import Batch
from models.detector import Detector
from models.marked import Marked
from models.ranks import Rng
from models.recipe import Controls, Recipe
from models.rsmatch import RSMatch
from models.thresholds import ROUTE_MARGIN


class Prior(NamedTuple):
    """Scores (N,) float32 of the pool's images, higher is more synthetic, and the share of them that is synthetic."""

    scores: Tensor
    share: float


class RoutedByPanel(RSMatch):
    """RSMatch whose detector is the panel: it has seen the pool, and learns no more while the classifier is trained.

    A detector that learned from the panel's surest images ranked worse than the panel did, since each round confirms
    what a weak start gets wrong (docs/log.md). So there is no queue. A person's marks override the scores.
    """

    has_detector = False

    def __init__(
        self,
        recipe: Recipe,
        controls: Controls,
        classifier: object,
        detector: Detector,
        autocast: AbstractContextManager[object],
        *,
        num_images: int,
        prior: Prior,
        marked: Marked | None = None,
    ) -> None:
        super().__init__(recipe, controls, classifier, detector, autocast, num_images=num_images, marked=marked)
        self._scores = prior.scores
        # As `models.thresholds` has it: a margin of images just below the threshold goes to the dummy head, too.
        below = (1 - prior.share) * (1 - ROUTE_MARGIN * prior.share)
        self._route_from = torch.quantile(prior.scores.float(), below) if prior.share > 0 else torch.inf

    @property
    def routing_start(self) -> int:
        """First step in which images may go to the dummy head."""
        return self._warmup_steps

    def route(self, number: int, batch: Batch, rng: Rng) -> tuple[Tensor | None, Tensor]:
        """No evidence for a detector to learn from, and g(u) by the panel."""
        scores_M = self._scores[batch.rows]
        if self.marked:
            scores_M = self.marked.override(batch.rows, scores_M, -torch.inf, torch.inf)
        return None, (scores_M > self._route_from) & (number >= self.routing_start)
