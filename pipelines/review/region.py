"""The map of the pool: every image is a dot, and a person draws around some of them.

The dots are the first two principal components of the embeddings, on a grid of SIDE by SIDE. That takes one pass over
the embeddings, also for a million images. It keeps the large differences alone: what lies together need not look alike.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pipelines.errors import BadInput
from pipelines.review.order import Shards
from pipelines.run.neighbors import normalized

SIDE = 1024  # cells of the grid, across and down
MAX_TEXT = 4_000  # characters of an outline

_SAMPLE = 10_000  # images that the components are fitted to
_ROUNDS = 30  # of subspace iteration
_OUTSIDE = 0.1  # percent of the dots at either end that are drawn at the edge: outliers would leave no room for others


@dataclass(frozen=True)
class Map:
    """Where each image lies."""

    dots_N2: npt.NDArray[np.uint16]  # x and y, 0 to SIDE - 1, y downward
    share: float  # of the embeddings' variance that the map shows

    def inside(self, outline: str) -> npt.NDArray[np.bool_]:
        """Which images (N,) lie within an outline, given as "x,y x,y x,y"; BadInput if it is none."""
        try:
            corners = [tuple(map(int, corner.split(","))) for corner in outline.split()]
        except ValueError:
            corners = []
        if len(corners) < 3 or any(len(corner) != 2 or max(map(abs, corner)) > 2 * SIDE for corner in corners):
            raise BadInput("region must be three corners or more, each as x,y. Draw it again.")
        drawn = Image.new("1", (SIDE, SIDE))
        ImageDraw.Draw(drawn).polygon(corners, fill=1, outline=1)
        return np.asarray(np.asarray(drawn)[self.dots_N2[:, 1], self.dots_N2[:, 0]])


def draw(shards: Shards, count: int) -> Map:
    """Map `count` images; `shards` iterates over their embeddings (n, D), shard by shard."""
    every = max(1, -(-count // _SAMPLE))
    sample_SD = np.concatenate([normalized(embeddings[::every]) for embeddings in shards()])
    center_D = sample_SD.mean(0)
    axes_D2, share = _components(sample_SD - center_D)
    found_N2 = np.concatenate([(normalized(embeddings) - center_D) @ axes_D2 for embeddings in shards()])
    low, high = np.percentile(found_N2, (_OUTSIDE, 100 - _OUTSIDE), axis=0)
    place_N2 = ((found_N2 - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    place_N2[:, 1:] = 1 - place_N2[:, 1:]
    return Map(np.rint(place_N2 * (SIDE - 1)).astype(np.uint16), share)


def _components(centered_SD: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], float]:
    """The first two principal components (D, 2), and their share of the variance."""
    axes_D2 = np.random.default_rng(0).standard_normal((centered_SD.shape[1], 2)).astype(np.float32)
    for _ in range(_ROUNDS):  # a full decomposition of wide embeddings takes seconds
        axes_D2, _ = np.linalg.qr(centered_SD.T @ (centered_SD @ axes_D2))
    shown, whole = float(((centered_SD @ axes_D2) ** 2).sum()), float((centered_SD**2).sum())
    return axes_D2, shown / max(whole, 1e-12)
