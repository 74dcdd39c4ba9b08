"""What a person said of unlabeled images, as the detector learns from it."""

from typing import NamedTuple

import torch
from torch import Tensor

from models.ranks import Rng


class Trusted(NamedTuple):
    """Unlabeled images of which a person said whether they are real, as dataset indices; an extension of ours.

    What was said stands in for the detector's score. And they are the detector's examples, beside the labeled images
    and those of the queue: each is drawn as often as one of the `num_labeled` labeled images.
    """

    real: Tensor  # (R,) int64, ascending
    synthetic: Tensor  # (S,) int64, ascending
    num_labeled: int

    def to(self, device: torch.device) -> "Trusted":
        """The same on a device."""
        return Trusted(self.real.to(device), self.synthetic.to(device), self.num_labeled)

    def settle(self, rows_N: Tensor, scores_N: Tensor, real: float | Tensor, synthetic: float | Tensor) -> Tensor:
        """The scores (N,) of images, with those given for what is known to be real and known to be synthetic."""
        for trusted, score in ((self.real, real), (self.synthetic, synthetic)):
            if len(trusted):
                place_N = torch.searchsorted(trusted, rows_N).clamp(max=len(trusted) - 1)  # isin would wait for a GPU
                scores_N = torch.where(trusted[place_N] == rows_N, score, scores_N)
        return scores_N

    def draw(self, trusted_N: Tensor, count: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """Draw (B,) of N trusted images, and where (B,) they take another example's place: N / (N + num_labeled)."""
        share = len(trusted_N) / (len(trusted_N) + self.num_labeled)
        return trusted_N[rng.integers(0, len(trusted_N), count)], rng.uniform(count) < share
