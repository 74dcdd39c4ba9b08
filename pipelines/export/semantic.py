"""Finds semantic duplicates: images that a network sees as one, though their pixels differ (`--semantic-duplicates`).

SemDeDup (Abbas et al. 2023): k-means divides the embeddings into groups, and within a group an image is dropped if its
cosine to another is above 1 - eps. The paper keeps what is least like its center. Here the best copy stays (most
pixels, then most bytes), as among near-duplicates, and each image that is dropped is within eps of one that stays.

Memory holds 24 bytes an image, and the embeddings of one group and of a sample that the groups are learned from.
"""

from itertools import accumulate

import faiss
import numpy as np
import pyarrow.compute as pc

from pipelines.export.held_out import Match
from pipelines.progress import OnTick, Tick
from pipelines.run.duplicates import Positions
from pipelines.run.neighbors import Floats, embeddings_at, normalized
from pipelines.run.scores import ScoredPool

_GROUP = 1000  # images of a group, on average
_LEARNED_FROM = 256  # images for each group
_ROUNDS = 20
_SEED = 0
_ROWS_AT_ONCE = 1024


def find(scored: ScoredPool, may_stay: Positions, eps: float, on_tick: OnTick) -> dict[str, Match]:
    """Find the semantic duplicates among the images at the positions `may_stay` (N,), ascending, by key."""
    if len(may_stay) < 2:
        return {}
    shards, starts = scored.pool.shards, [0, *accumulate(scored.pool.counts)]
    order = _best_first(scored, may_stay)
    group_N = _groups(scored, starts, may_stay, on_tick)
    dropped = list[tuple[int, int, float]]()  # position, that of the image that stays, and their cosine
    by_group = np.argsort(group_N, kind="stable")
    edges = np.flatnonzero(np.diff(group_N[by_group], prepend=-1, append=group_N.max() + 1))
    for done, members in enumerate(np.split(by_group, edges[1:-1]), 1):
        positions = may_stay[members[np.argsort(order[members])]]
        vectors = embeddings_at(scored, starts, shards, positions)
        dropped += [(int(positions[a]), int(positions[b]), c) for a, b, c in _redundant(vectors, 1 - eps)]
        on_tick(Tick(done=done, total=len(edges) - 1, unit="groups"))
    keys = [key for table in scored.pool.tables(["key"]) for key in table["key"].to_pylist()]
    return {keys[one]: Match(keys[other], f"semantic, cosine {cosine:.4f}") for one, other, cosine in dropped}


def _redundant(vectors_ND: Floats, least: float) -> list[tuple[int, int, float]]:
    """The images whose cosine to an earlier one that stays is above `least`, with that one and the cosine."""
    found = list[tuple[int, int, float]]()
    stay = np.ones(len(vectors_ND), dtype=bool)
    for start in range(0, len(vectors_ND), _ROWS_AT_ONCE):
        stop = start + _ROWS_AT_ONCE
        cosines = vectors_ND[start:stop] @ vectors_ND[:stop].T
        for i, row in enumerate(cosines, start):
            if not i:
                continue
            row = np.where(stay[:i], row[:i], -2)
            nearest = int(row.argmax())
            if row[nearest] > least:
                stay[i] = False
                found.append((i, nearest, float(row[nearest])))
    return found


def _groups(scored: ScoredPool, starts: list[int], may_stay: Positions, on_tick: OnTick) -> Positions:
    """Group (N,) of each image, by k-means of the embeddings on the sphere."""
    number = max(1, round(len(may_stay) / _GROUP))
    if number == 1:
        return np.zeros(len(may_stay), dtype=np.int64)
    step = max(1, len(may_stay) // (number * _LEARNED_FROM))
    sample = embeddings_at(scored, starts, scored.pool.shards, may_stay[::step])
    means = faiss.Kmeans(sample.shape[1], number, niter=_ROUNDS, spherical=True, seed=_SEED)
    means.train(sample)
    found = np.empty(len(may_stay), dtype=np.int64)
    for i, shard in enumerate(scored.pool.shards):
        first, last = np.searchsorted(may_stay, [starts[i], starts[i + 1]])
        if last > first:
            vectors = normalized(scored.embeddings(shard)[may_stay[first:last] - starts[i]])
            found[first:last] = means.index.search(vectors, 1)[1][:, 0]
        on_tick(Tick(done=i + 1, total=len(scored.pool.shards), unit="shards grouped"))
    return found


def _best_first(scored: ScoredPool, may_stay: Positions) -> Positions:
    """Rank (N,) of each image: 0 for the one with the most pixels, then the most bytes, then the first in the pool."""
    pixels, num_bytes = list[np.ndarray](), list[np.ndarray]()
    for table in scored.pool.tables(["width", "height", "num_bytes"]):
        pixels.append(pc.multiply(table["width"].cast("int64"), table["height"].cast("int64")).to_numpy())
        num_bytes.append(table["num_bytes"].to_numpy())
    order = np.lexsort((may_stay, -np.concatenate(num_bytes)[may_stay], -np.concatenate(pixels)[may_stay]))
    rank = np.empty(len(may_stay), dtype=np.int64)
    rank[order] = np.arange(len(may_stay))
    return rank
