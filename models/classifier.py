"""The classifier: one backbone and two heads.

`Classifier` takes uint8 RGB images (B, 3, H, W) and standardizes them itself, so that nobody can feed it the wrong
scale. `models.probe.Probe` takes features that a frozen backbone gave before. Methods train either.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models import augment
from models.backbones import Standardize, backbone, inputs
from models.ranks import Rng


class Heads(NamedTuple):
    """Logits (B, K) of the real head, which alone predicts, and of the dummy head."""

    real: Tensor
    dummy: Tensor


class Augmentation(Protocol):
    """How a batch of a classifier's inputs is augmented: by `models.augment` pixels, by `models.cached` features."""

    def weak(self, images: Tensor, rng: Rng, /) -> Tensor:
        """A weak view of each image."""
        ...

    def strong(self, images: Tensor, rng: Rng, /) -> Tensor:
        """A strong view of each image."""
        ...


class TwoHeaded(nn.Module, ABC):
    """Two linear heads over K classes on the same features: `real` predicts, `dummy` learns from synthetic images."""

    augmentation: Augmentation
    is_pretrained = False  # whether its own backbone started from pretrained weights: then that learns at a lower rate
    num_features: int  # D
    real: nn.Linear
    dummy: nn.Linear

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Features (B, D) before the heads, float32."""

    def forward(self, images: Tensor) -> Heads:
        features = self.embed(images)
        return Heads(self.real(features).float(), self.dummy(features).float())

    def set_norm_momentum(self, momentum: float) -> None:
        """Set the share of a new batch in the running statistics of all batch norms."""
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = momentum


class Classifier(TwoHeaded):
    """Both heads on a backbone that takes images (B, 3, H, W) uint8.

    The images have `size` pixels, by default the backbone's own input size; our own backbones and most convolutions
    take any. Raises ValueError as `models.backbones.backbone` does.
    """

    augmentation: Augmentation = augment

    def __init__(self, name: str, num_classes: int, size: int | None = None) -> None:
        super().__init__()
        _, mean, std = inputs(name)
        self.standardize = Standardize(mean, std)
        self.backbone, self.num_features = backbone(name, size)
        self.real = nn.Linear(self.num_features, num_classes)
        self.dummy = nn.Linear(self.num_features, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(self.standardize(images))
        return features.float()
