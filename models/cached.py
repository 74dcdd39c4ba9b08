"""Augmentation of images whose views are features that a frozen network gave once: a view is drawn, not computed.

`Views (B, V, D)` hold the features of an image's views: first of the image as it is, then of weak and, last, of strong
ones. The functions stand in for those of `models.augment`, which take pixels, and give (B, 1, D).
"""

from dataclasses import dataclass

from torch import Tensor

from models.ranks import Rng


@dataclass(frozen=True)
class Cached:
    """Draws among the views of each image: `num_strong` of them, the last ones, are strong, the others weak."""

    num_strong: int

    def weak(self, views_BVD: Tensor, rng: Rng) -> Tensor:
        """Draw the image as it is, or one of its weak views."""
        return self._draw(views_BVD, 0, views_BVD.shape[1] - self.num_strong, rng)

    def strong(self, views_BVD: Tensor, rng: Rng) -> Tensor:
        """Draw one of the strong views."""
        return self._draw(views_BVD, views_BVD.shape[1] - self.num_strong, views_BVD.shape[1], rng)

    @staticmethod
    def _draw(views_BVD: Tensor, start: int, stop: int, rng: Rng) -> Tensor:
        which_B = rng.integers(start, stop, len(views_BVD))
        return views_BVD.gather(1, which_B[:, None, None].expand(-1, 1, views_BVD.shape[2]))
