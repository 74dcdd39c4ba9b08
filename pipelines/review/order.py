"""Decides which images a person should look at next: an active-learning order.

A mark teaches the model most if the model is in doubt, and the tenth mark among similar images teaches it little. So
images are ranked by doubt, and similar images take turns, after Cluster-Margin (Citovsky et al. 2021, arXiv
2107.14263):

    doubt      uncertainty + DISAGREEMENT * disagreement
    tiers      images by decreasing doubt, split into tiers of about ten times what a person marks in one session
    turns      within a tier first the most doubtful image of each group, then the second of each, and so on

Uncertainty is that of the detector, which a mark corrects: 1 where verdicts cease to be "real", so where the estimated
share of the pool lies above, and 0 far from there. A panel calls fewer images synthetic, the proven share. Images at
that threshold are nearly all synthetic; 50 marks around it teach the panel less than random ones (docs/log.md).
Disagreement is the share of an image's nearest neighbors with another pseudo-label. If it is high, a label corrects the
classifier, and a wrong pseudo-label would put the image into the wrong sub-queue of the detector. Neighbors with
another verdict are a poor sign, because embeddings encode what an image shows, not how it was made: if they are used
instead, 31 % of the first 200 images of a real crawl are errors of the detector, against 50 % (16 % at random).

Uncertainty alone would show near-duplicates in a row. Diversity alone (turns over the whole pool) would spend most
marks on images that the detector already knows. Groups are k-means clusters of the embeddings, divided by pseudo-label,
so that every class and every kind of image gets its turn. Without classes there is no disagreement, and groups are the
clusters alone. Marked images keep their turns, so marking images does not change the order of the others.

`to_label` is another order, for a person who labels images to make the classifier better: facility location (Wei et al.
2015, ICML). An image covers others as far as they resemble it, the labeled images cover some already, and the next one
is always the one that adds most cover, doubtful images counting up to three times as much as certain ones. Doubt alone,
and turns of clusters, did worse (docs/log.md).
"""

import heapq
from collections.abc import Callable, Iterable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from pipelines.run.neighbors import normalized

DISAGREEMENT = 0.5
CLUSTERS = 50
_ROUNDS = 10  # of k-means
_SAMPLE = 50_000  # images that the clusters are fitted to
_POINTS = 20  # the fewest of these for each cluster
_CANDIDATES = 4000  # images that are chosen from, and have to be covered: their similarities take 64 MB
_CHOSEN = 1000  # of them; a person labels no more before the next training

Floats = npt.NDArray[np.float32]
Shards = Callable[[], Iterable[npt.NDArray[Any]]]


def uncertainty(prob_N: Floats, threshold: float) -> Floats:
    """Uncertainty (N,) of verdicts, 0..1: 4 p (1 - p), with odds shifted so that `threshold` counts as one half."""
    odds = prob_N.astype(np.float64) / np.maximum(1 - prob_N.astype(np.float64), 1e-12)
    middle = min(max(threshold, 1e-6), 1 - 1e-6)
    shifted = odds * (1 - middle) / middle
    p = shifted / (1 + shifted)
    return np.asarray(4 * p * (1 - p), dtype=np.float32)


def clusters(shards: Shards, count: int) -> npt.NDArray[np.int32]:
    """Cluster (N,) of each of `count` images; `shards` iterates over their embeddings (n, D), shard by shard."""
    every = max(1, -(-count // _SAMPLE))
    sample = np.concatenate([normalized(embeddings[::every]) for embeddings in shards()])
    number = max(1, min(CLUSTERS, len(sample) // _POINTS))
    kmeans = faiss.Kmeans(sample.shape[1], number, niter=_ROUNDS, seed=0, spherical=True, min_points_per_centroid=1)
    kmeans.train(sample)
    found = [kmeans.index.search(normalized(embeddings), 1)[1][:, 0] for embeddings in shards() if len(embeddings)]
    return np.concatenate(found).astype(np.int32)


def margin_doubt(probs_NK: npt.NDArray[Any]) -> Floats:
    """Doubt (N,) of labels, 0..1: 1 minus the distance of the two highest probabilities of (N, K), K of 2 or more."""
    highest = np.partition(probs_NK.astype(np.float32), -2, axis=1)[:, -2:]
    return np.asarray(1 - (highest[:, 1] - highest[:, 0]), dtype=np.float32)


def to_label(
    doubt_N: Floats, may_N: npt.NDArray[np.bool_], shards: Shards, labeled_LD: Floats
) -> npt.NDArray[np.int32]:
    """Indices (N,) of images in the order to label them, by the doubt (N,) of their labels and by embeddings.

    `may_N` says which may be labeled: the others come last. `labeled_LD` are the embeddings of what is labeled, L of
    them or none. Of many images a sample is chosen from; the others follow by doubt.
    """
    allowed = np.flatnonzero(may_N)
    candidates = allowed[:: max(1, -(-len(allowed) // _CANDIDATES))]
    vectors, start = list[Floats](), 0
    for embeddings in shards():
        inside = candidates[(candidates >= start) & (candidates < start + len(embeddings))]
        vectors.append(np.asarray(embeddings[inside - start], dtype=np.float32))
        start += len(embeddings)
    chosen = candidates[_cover(np.concatenate(vectors), labeled_LD, 0.5 + doubt_N[candidates])]
    rank_N = np.where(may_N, len(chosen), len(chosen) + 1)
    rank_N[chosen] = np.arange(len(chosen))
    return np.lexsort((np.arange(len(doubt_N)), -doubt_N, rank_N)).astype(np.int32)


def _cover(vectors_CD: Floats, labeled_LD: Floats, weight_C: Floats) -> list[int]:
    """Greedy facility location: indices of up to _CHOSEN of C vectors, each of which adds most weighted cover.

    Gains only shrink, so an old gain is an upper bound, and few have to be computed anew (Minoux 1978).
    """
    if not len(vectors_CD):
        return []
    center_D = vectors_CD.mean(0)
    unit_CD, labeled_LD = normalized(vectors_CD - center_D), labeled_LD.reshape(-1, vectors_CD.shape[1])
    similar_CC = np.maximum(unit_CD @ unit_CD.T, 0)
    cover_C = np.zeros(len(unit_CD), dtype=np.float32)
    for start in range(0, len(labeled_LD), _CANDIDATES):
        known_LD = normalized(labeled_LD[start : start + _CANDIDATES] - center_D)
        cover_C = np.maximum(cover_C, (unit_CD @ known_LD.T).max(1))

    def gain(i: int) -> float:
        return float(weight_C @ np.maximum(similar_CC[i] - cover_C, 0))

    bounds = [(-gain(i), i) for i in range(len(unit_CD))]
    heapq.heapify(bounds)
    chosen = list[int]()
    while bounds and len(chosen) < _CHOSEN:
        i = bounds[0][1]
        if bounds[0][0] == (exact := -gain(i)):
            heapq.heappop(bounds)
            chosen.append(i)
            cover_C = np.maximum(cover_C, similar_CC[i])
        else:
            heapq.heapreplace(bounds, (exact, i))
    return chosen


def order(doubt_N: Floats, groups_N: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Indices (N,) of images in the order to look at them; similar images have the same number in `groups_N`."""
    count = len(doubt_N)
    tier_size = min(2000, max(200, count // 20))
    by_doubt = np.argsort(-doubt_N, kind="stable")
    tiers = np.arange(count) // tier_size
    groups = groups_N[by_doubt]
    # The turn of an image is the number of images of its tier and group that come before it.

    together = np.lexsort((np.arange(count), groups, tiers))
    is_first = np.ones(count, dtype=bool)
    is_first[1:] = (tiers[together][1:] != tiers[together][:-1]) | (groups[together][1:] != groups[together][:-1])
    starts = np.flatnonzero(is_first)
    turns = np.empty(count, dtype=np.int64)
    turns[together] = np.arange(count) - np.repeat(starts, np.diff(np.append(starts, count)))
    return np.asarray(by_doubt[np.lexsort((np.arange(count), turns, tiers))], dtype=np.int32)
