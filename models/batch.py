"""One step's data, and its augmented views."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """uint8 images for the classifier, native tiles for the detector, and the dataset indices of the unlabeled ones."""

    labeled: Tensor  # (B, 3, S, S)
    labeled_tiles: Tensor  # (B, 3, T, T)
    labels: Tensor  # (B,) int64
    unlabeled: Tensor  # (M, 3, S, S)
    unlabeled_tiles: Tensor  # (M, 3, T, T)
    rows: Tensor  # (M,) int64, dataset indices of the unlabeled images
    synthetic: Tensor | None = None  # (M,) bool, the truth, for controls that need it


class Views(NamedTuple):
    """Augmented uint8 views for the classifier."""

    labeled: Tensor  # (B, 3, S, S) weak
    labels: Tensor  # (B,) int64
    weak: Tensor  # (M, 3, S, S)
    strong: Tensor  # (M, 3, S, S)
    rows: Tensor  # (M,) int64, dataset indices of the unlabeled images
