"""Which images to look at next: an active-learning order.

A mark teaches most where the model is in doubt, and the tenth mark among look-alikes teaches little. So images are
ranked by doubt, and look-alikes take turns, after Cluster-Margin (Citovsky et al. 2021, arXiv 2107.14263):

    doubt      uncertainty + DISAGREEMENT * disagreement
    tiers      images by falling doubt, cut into tiers of some ten times of what a person marks in one go
    turns      within a tier first the most doubtful image of each group, then the second of each, and so on

Uncertainty is that of the detector's verdict, 1 at its threshold and 0 where it is certain: for that is what a mark
mends. Disagreement is the share of an image's nearest neighbors with another pseudo-label: where it is high, a label
mends the classifier, and a wrong pseudo-label puts the image into the wrong sub-queue of the detector. Neighbors with
another verdict are a poor sign, for embeddings show what is depicted and not how it was made: with them in its place,
31 % of the first 200 images of a real crawl were errors of the detector, against 50 % (at random 16 %).

Uncertainty alone would show near-duplicates in a row, and diversity alone (all of the pool in turns) would spend most
marks on what the detector knows. Groups are k-means clusters of the embeddings, divided by pseudo-label, so that every
class and every look gets its turn. Images that are marked already keep their places in the turns: the order of the
others does not change by marking.
"""

from collections.abc import Callable, Iterable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from pipelines.run.neighbors import normalized

DISAGREEMENT = 0.5
CLUSTERS = 50
_ROUNDS = 10  # of k-means
_SAMPLE = 50_000  # images that the clusters are found on
_POINTS = 20  # of them for each cluster at least

Floats = npt.NDArray[np.float32]


def uncertainty(prob_N: Floats, threshold: float) -> Floats:
    """Uncertainty (N,) 0..1 of verdicts: 4 p (1 - p), with odds shifted so that `threshold` counts as one half."""
    odds = prob_N.astype(np.float64) / np.maximum(1 - prob_N.astype(np.float64), 1e-12)
    middle = min(max(threshold, 1e-6), 1 - 1e-6)
    shifted = odds * (1 - middle) / middle
    p = shifted / (1 + shifted)
    return np.asarray(4 * p * (1 - p), dtype=np.float32)


def clusters(shards: Callable[[], Iterable[npt.NDArray[Any]]], count: int) -> npt.NDArray[np.int32]:
    """Cluster (N,) of each of `count` images; `shards` gives their embeddings (n, D), one shard after the other."""
    every = max(1, -(-count // _SAMPLE))
    sample = np.concatenate([normalized(embeddings[::every]) for embeddings in shards()])
    number = max(1, min(CLUSTERS, len(sample) // _POINTS))
    kmeans = faiss.Kmeans(sample.shape[1], number, niter=_ROUNDS, seed=0, spherical=True, min_points_per_centroid=1)
    kmeans.train(sample)
    nearest = [kmeans.index.search(normalized(embeddings), 1)[1][:, 0] for embeddings in shards() if len(embeddings)]
    return np.asarray(np.concatenate(nearest), dtype=np.int32)


def order(doubt_N: Floats, groups_N: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Positions (N,) of images, the one to look at first first; `groups_N` numbers the look-alikes."""
    count = len(doubt_N)
    tier_size = min(2000, max(200, count // 20))
    by_doubt = np.argsort(-doubt_N, kind="stable")
    tiers = np.arange(count) // tier_size
    groups = groups_N[by_doubt]
    # The turn of each image: how many of its tier and group come before it.
    together = np.lexsort((np.arange(count), groups, tiers))
    is_first = np.ones(count, dtype=bool)
    is_first[1:] = (tiers[together][1:] != tiers[together][:-1]) | (groups[together][1:] != groups[together][:-1])
    starts = np.flatnonzero(is_first)
    turns = np.empty(count, dtype=np.int64)
    turns[together] = np.arange(count) - np.repeat(starts, np.diff(np.append(starts, count)))
    return np.asarray(by_doubt[np.lexsort((np.arange(count), turns, tiers))], dtype=np.int32)
