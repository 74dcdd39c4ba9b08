"""Images of the pool that a person has marked, as training uses them."""

from typing import NamedTuple

import torch
from torch import Tensor

from models.ranks import Rng


class Marked(NamedTuple):
    """Unlabeled images that a person has marked real or synthetic, as dataset indices; our addition to the paper.

    A mark replaces the detector's evidence. Marked images are also examples for the detector, beside the labeled and
    the queued ones: each is drawn as often as one of the `num_labeled` labeled images. Images of none of the classes
    are real to the detector, and go to the dummy head, so that the real one learns no label of them.
    """

    real: Tensor  # (R,) int64, ascending
    synthetic: Tensor  # (S,) int64, ascending
    num_labeled: int
    off_class: Tensor | None = None  # (O,) int64, ascending, some of `real`

    def to(self, device: torch.device) -> "Marked":
        """The same on a device."""
        off_class = None if self.off_class is None else self.off_class.to(device)
        return Marked(self.real.to(device), self.synthetic.to(device), self.num_labeled, off_class)

    def override(self, rows_N: Tensor, values_N: Tensor, real: float | Tensor, synthetic: float | Tensor) -> Tensor:
        """Values (N,) of the images at `rows_N`, replaced by `real` and `synthetic` where a person has marked them."""
        for marked, value in ((self.real, real), (self.synthetic, synthetic)):
            if len(marked):
                values_N = torch.where(_among(rows_N, marked), value, values_N)
        return values_N

    def route(self, rows_N: Tensor, g_N: Tensor) -> Tensor:
        """Which images (N,) go to the dummy head: those of `g_N`, and those of none of the classes."""
        if self.off_class is None or not len(self.off_class):
            return g_N
        return g_N | _among(rows_N, self.off_class)

    def draw(self, marked_N: Tensor, count: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """Draw (B,) of N marked images, and where (B,) they replace another example: N / (N + num_labeled) of them."""
        share = len(marked_N) / (len(marked_N) + self.num_labeled)
        return marked_N[rng.integers(0, len(marked_N), count)], rng.uniform(count) < share


def _among(rows_N: Tensor, marked_R: Tensor) -> Tensor:
    """Whether (N,) each row is one of the R ascending ones."""
    position_N = torch.searchsorted(marked_R, rows_N).clamp(max=len(marked_R) - 1)  # isin would wait for a GPU
    return marked_R[position_N] == rows_N
