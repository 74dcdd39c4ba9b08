"""What the tests of the open-set baselines share: a network without batch norm, random views, and their losses."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from models import ranks
from models.classifier import Classifier
from models.iomatch import IOMatch
from models.one_vs_all import OpenLoss
from models.openmatch import OpenMatch

K, TAU = 3, 0.4


def binary_logits(inlier: list[list[float]]) -> Tensor:
    """Logits whose K classifiers say "inlier" with these probabilities."""
    probs = torch.tensor(inlier)
    return torch.cat(((1 - probs).log(), probs.log()), dim=1)


class Plain(Classifier):
    """A classifier without batch norm, so that a reference may forward the views one by one."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.num_features = 6
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6), nn.Tanh())
        self.real, self.dummy = nn.Linear(6, K), nn.Linear(6, K)
        nn.init.normal_(self.real.weight)

    def embed(self, images_BCHW: Tensor) -> Tensor:
        features: Tensor = self.backbone(images_BCHW.float() / 64 - 2)
        return features


class Views:
    """A small batch of random views."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        self.labeled, self.weak, self.again, self.strong = (
            torch.randint(0, 256, (count, 3, 8, 8), generator=rng, dtype=torch.uint8) for count in (6, 12, 12, 12)
        )
        self.labels = torch.randint(K, (6,), generator=rng)

    def losses(self, classifier: Plain, heads: OpenMatch | IOMatch, warmed_up: bool = True) -> OpenLoss:
        own = ranks.own
        weak = [own(view) for view in (self.weak, self.again)][: heads.num_weak]
        return heads.losses(
            classifier, own(self.labeled), own(self.labels), weak, own(self.strong), warmed_up=warmed_up
        )


def build(method: str, **options: Any) -> tuple[Plain, OpenMatch | IOMatch]:
    torch.manual_seed(0)
    classifier = Plain()
    return classifier, OpenMatch(6, K) if method == "openmatch" else IOMatch(6, K, TAU, **options)


def each(*views: Tensor) -> Iterator[tuple[Tensor, ...]]:
    for images in zip(*views, strict=True):
        yield tuple(image[None] for image in images)


def gradients(losses: OpenLoss, classifier: Plain, heads: OpenMatch | IOMatch) -> list[Tensor]:
    losses.total.backward()
    return [p.grad for p in (*classifier.parameters(), *heads.parameters()) if p.grad is not None]
