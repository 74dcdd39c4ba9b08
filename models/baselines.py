"""Methods that know nothing of synthetic images: supervised training, FixMatch with any rule, OpenMatch and IOMatch."""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import norms, rules
from models.batch import Batch, Views
from models.classifier import TwoHeaded
from models.iomatch import IOMatch
from models.learner import Learner, averaged, cosine, decay_at, sgd
from models.openmatch import OpenMatch
from models.ranks import Rng
from models.recipe import Controls, Recipe
from models.rsmatch import FetchTiles, classifier_loss


class Supervised:
    """The labeled images alone."""

    has_detector = False
    bootstrap_step = None

    def __init__(
        self,
        recipe: Recipe,
        classifier: TwoHeaded,
        autocast: AbstractContextManager[object],
        further: nn.Module | None = None,
    ) -> None:
        """`further` holds parameters that are trained with the classifier's."""
        self.recipe, self._autocast = recipe, autocast
        average = averaged(classifier)
        norms.synchronize(classifier)
        trained = nn.ModuleList([classifier, *([further] if further is not None else [])])
        optimizer = sgd(
            trained, momentum=recipe.momentum, weight_decay=recipe.weight_decay, backbone_rate=recipe.backbone_rate
        )
        self.classifier = Learner(classifier, average, optimizer)

    @property
    def routing_start(self) -> int:
        """First step after the warm-up; nothing is routed."""
        return self.recipe.warmup_steps

    @property
    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """All state, by name, for a checkpoint."""
        return self.classifier.parts("classifier")

    def step(self, number: int, batch: Batch, fetch_tiles: FetchTiles, rng: Rng) -> dict[str, Tensor]:
        """Train on one batch; returns figures as tensors."""
        view = self.classifier.network.augmentation
        labeled = view.weak(batch.labeled, rng)
        with self._autocast:
            loss = F.cross_entropy(self.classifier.network(labeled).real, batch.labels)
        self._descend(number, loss)
        return {"sup_real": loss.detach()}

    def _descend(self, number: int, loss: Tensor) -> None:
        rate = cosine(number, self.recipe.num_steps, self.recipe.learning_rate)
        self.classifier.descend(loss, rate, decay_at(number, self.recipe.ema_decay))


class FixMatch(Supervised):
    """Self-training on all unlabeled images (arXiv 2001.07685), weighed by one of `models.rules`."""

    def __init__(
        self,
        recipe: Recipe,
        controls: Controls,
        classifier: TwoHeaded,
        autocast: AbstractContextManager[object],
        *,
        num_images: int,
    ) -> None:
        super().__init__(recipe, classifier, autocast)
        self._controls = controls
        device = next(classifier.parameters()).device
        self.rule = rules.build(recipe, classifier.real.out_features, num_images).to(device)

    @property
    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """All state, by name, for a checkpoint."""
        return super().parts | {"rule": self.rule}

    def step(self, number: int, batch: Batch, fetch_tiles: FetchTiles, rng: Rng) -> dict[str, Tensor]:
        """Train on one batch; returns figures as tensors."""
        view = self.classifier.network.augmentation
        labeled = view.weak(batch.labeled, rng)
        weak, strong = view.weak(batch.unlabeled, rng), view.strong(batch.unlabeled, rng)
        views = Views(labeled, batch.labels, weak, strong, batch.rows)
        with self._autocast:
            losses = classifier_loss(self.classifier.network, views, None, (self.rule,), self._controls)
        self._descend(number, losses.total)
        return losses.figures(self.classifier.network.real.out_features)


class OpenSet(Supervised):
    """OpenMatch or IOMatch: further heads that find images of no labeled class, and are dropped after training."""

    def __init__(
        self,
        recipe: Recipe,
        classifier: TwoHeaded,
        heads: OpenMatch | IOMatch,
        autocast: AbstractContextManager[object],
    ) -> None:
        super().__init__(recipe, classifier, autocast, heads)
        self.heads = heads

    @property
    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """All state, by name, for a checkpoint."""
        return super().parts | {"open": self.heads}

    def step(self, number: int, batch: Batch, fetch_tiles: FetchTiles, rng: Rng) -> dict[str, Tensor]:
        """Train on one batch; returns figures as tensors."""
        view = self.classifier.network.augmentation
        labeled = view.weak(batch.labeled, rng)
        weak = [view.weak(batch.unlabeled, rng) for _ in range(self.heads.num_weak)]
        strong = view.strong(batch.unlabeled, rng)
        with self._autocast:
            losses = self.heads.losses(
                self.classifier.network,
                labeled,
                batch.labels,
                weak,
                strong,
                warmed_up=number >= self.recipe.warmup_steps,
            )
        self._descend(number, losses.total)
        return losses.figures
