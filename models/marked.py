"""Images of the pool that a person has marked, as training uses them."""

from typing import NamedTuple

import torch
from torch import Tensor

from models.ranks import Rng


class Marked(NamedTuple):
    """Unlabeled images that a person has marked real or synthetic, as dataset indices; our addition to the paper.

    A mark replaces the detector's evidence. Marked images are also examples for the detector, beside the labeled and
    the queued ones: each is drawn as often as one of the `num_labeled` labeled images.
    """

    real: Tensor  # (R,) int64, ascending
    synthetic: Tensor  # (S,) int64, ascending
    num_labeled: int

    def to(self, device: torch.device) -> "Marked":
        """The same on a device."""
        return Marked(self.real.to(device), self.synthetic.to(device), self.num_labeled)

    def override(self, rows_N: Tensor, values_N: Tensor, real: float | Tensor, synthetic: float | Tensor) -> Tensor:
        """Values (N,) of the images at `rows_N`, replaced by `real` and `synthetic` where a person has marked them."""
        for marked, value in ((self.real, real), (self.synthetic, synthetic)):
            if len(marked):
                position_N = torch.searchsorted(marked, rows_N).clamp(max=len(marked) - 1)  # isin would wait for a GPU
                values_N = torch.where(marked[position_N] == rows_N, value, values_N)
        return values_N

    def draw(self, marked_N: Tensor, count: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """Draw (B,) of N marked images, and where (B,) they replace another example: N / (N + num_labeled) of them."""
        share = len(marked_N) / (len(marked_N) + self.num_labeled)
        return marked_N[rng.integers(0, len(marked_N), count)], rng.uniform(count) < share
