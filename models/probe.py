"""Both heads of a classifier on the features of a frozen backbone, which were computed once."""

import torch
from torch import Tensor, nn

from models.cached import Cached
from models.classifier import Augmentation, TwoHeaded

WIDTH = 128  # of the adapter's hidden layer


class Adapter(nn.Module):
    """Standardized features plus what a small hidden layer adds to them (B, D); it starts as their standardization.

    The two heads share it. So synthetic images can improve what the real head sees, although the backbone is frozen.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        self.down = nn.Linear(num_features, WIDTH)
        self.up = nn.Linear(WIDTH, num_features)
        nn.init.kaiming_normal_(self.down.weight, nonlinearity="relu")
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def fit(self, features_ND: Tensor) -> None:
        """Take mean and deviation from the features of the pool, or of a sample of it."""
        values = features_ND.float()
        self.mean.copy_(values.mean(0))
        # Dividing by sqrt(D) gives vectors of unit length, to which the learning rate of a classifier fits.
        self.std.copy_((values.std(0, correction=0) + 1e-3) * values.shape[1] ** 0.5)

    def forward(self, features_BD: Tensor) -> Tensor:
        standardized = (features_BD.float() - self.mean) / self.std
        adapted: Tensor = standardized + self.up(self.down(standardized).relu())
        return adapted


class Probe(TwoHeaded):
    """A classifier whose images are views of cached features (B, V, D), of which it sees the first.

    The backbone is no part of it, and its own layers learn at the full rate.
    """

    def __init__(self, num_features: int, num_classes: int, num_strong: int) -> None:
        """Build it for `num_strong` strong views of each image, which come last."""
        super().__init__()
        self.augmentation: Augmentation = Cached(num_strong)
        self.num_features = num_features
        self.adapter = Adapter(num_features)
        self.real = nn.Linear(num_features, num_classes)
        self.dummy = nn.Linear(num_features, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        adapted: Tensor = self.adapter(images[:, 0])
        return adapted.float()
