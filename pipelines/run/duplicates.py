"""Finds near-duplicates: groups of images that are copies of each other up to size, compression or slight edits.

Two images are near-duplicates if their perceptual hashes differ in at most `radius` of 64 bits and their embeddings, if
both have one, are within `max_distance`. The hash sees shape alone: two birds against the sky look alike to it, and the
classifier tells them apart. Groups are the connected components of such pairs.

No step takes more than about N log N. Hashes that differ in at most `radius` bits agree in at least three of
radius + 3 blocks of bits, so sorting by every choice of three blocks brings them together. This is exact while at most
`_WINDOW` images share three blocks; beyond that, each image is compared with the next ones in order, which still
connects a dense cluster. An image whose hash has few bits set is a nearly plain surface, about which the hash says
nothing, so it is in no group. Memory use is about 95 bytes an image, most of it while hashes are sorted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run.neighbors import embeddings_at
from pipelines.run.scores import ScoredPool

MIN_BITS = 12  # bits set in a hash that can be trusted; a detailed picture has about 32, a plain surface none

_BLOCKS_IN_COMMON = 3
_WINDOW = 64  # hashes with the same blocks that each hash is compared with
_PAIRS_AT_ONCE = 1 << 16  # pairs whose embeddings are in memory at a time

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Groups:
    """The near-duplicates of a pool: `number_N` (N,) is the group of each image in order, -1 if it is in none."""

    pool: Pool
    number_N: Positions
    num_plain: int  # images that the hash says nothing about

    @classmethod
    def find(cls, scored: ScoredPool, radius: int, max_distance: float, on_tick: OnTick = ignore) -> "Groups":
        """Group a pool's images by hashes within `radius` bits and embeddings within `max_distance` (1 - cosine)."""
        hash_N = np.concatenate([_hashes(scored, shard) for shard in scored.pool.shards])
        detailed = np.flatnonzero(np.bitwise_count(hash_N) >= MIN_BITS)
        embeddings = _Embeddings(scored)
        root_N = np.arange(len(hash_N))
        masks = block_masks(radius)
        for done, mask in enumerate(masks, 1):
            for a, b in near_pairs(hash_N, detailed, mask, radius):
                is_new = root_N[a] != root_N[b]
                near = embeddings.within(max_distance, a[is_new], b[is_new])
                root_N = joined(root_N, a[is_new][near], b[is_new][near])
            on_tick(Tick(done=done, total=len(masks), unit="passes"))
        _, number_N, count_N = np.unique(root_N, return_inverse=True, return_counts=True)
        grouped = count_N > 1
        return cls(
            pool=scored.pool,
            number_N=np.where(grouped, grouped.cumsum() - 1, -1)[number_N],
            num_plain=len(hash_N) - len(detailed),
        )

    def of(self, shard: str) -> Positions:
        """Group (n,) of each image of a shard, -1 if it is in none."""
        number = self.pool.shards.index(shard)
        start = sum(self.pool.counts[:number])
        return self.number_N[start : start + self.pool.counts[number]]


def best_first(row: Mapping[str, Any]) -> tuple[int, int, str]:
    """Sort key for rows of the manifest, the best copy first: most pixels, then most bytes, then first key."""
    return -row["width"] * row["height"], -row["num_bytes"], row["key"]


# The pairs


def _hashes(scored: ScoredPool, shard: str) -> Hashes:
    # Reading through the scores raises Incompatible if they are those of other images.
    rows = scored.rows(shard, ["phash"]) if shard in scored.shards else scored.pool.rows(shard, ["phash"])
    return np.asarray(rows["phash"].to_numpy())


def block_masks(radius: int) -> list[np.uint64]:
    """Masks of any three of radius + 3 blocks of 64 bits; hashes within `radius` agree under one of them."""
    edges = np.linspace(0, 64, radius + _BLOCKS_IN_COMMON + 1).astype(int)
    blocks = [(1 << int(stop)) - (1 << int(start)) for start, stop in pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, _BLOCKS_IN_COMMON)]


def near_pairs(
    hash_N: Hashes, chosen: Positions, mask: np.uint64, radius: int
) -> Iterator[tuple[Positions, Positions]]:
    """Pairs of the `chosen` images whose hashes agree under `mask` and are within `radius` bits.

    The chosen images are sorted by hash, and each is compared with the next ones in that order.
    """
    chosen = chosen[np.lexsort((hash_N[chosen], hash_N[chosen] & mask))]
    hashes = hash_N[chosen]
    first = np.arange(len(chosen))
    for step in range(1, _WINDOW):
        first = first[: np.searchsorted(first, len(chosen) - step)]
        differing = hashes[first] ^ hashes[first + step]
        same = differing & mask == 0
        if not same.any():
            return
        near = np.bitwise_count(differing) <= radius
        yield chosen[first[near & same]], chosen[first[near & same] + step]
        first = first[same]


class _Embeddings:
    """Embeddings of the images that have scores, by position in the pool."""

    def __init__(self, scored: ScoredPool) -> None:
        shards = scored.pool.shards
        self._scored = scored
        self._starts = [0, *accumulate(scored.pool.counts)]
        self._has_scores = np.repeat([shard in scored.shards for shard in shards], scored.pool.counts)

    def within(self, max_distance: float, a: Positions, b: Positions) -> npt.NDArray[np.bool_]:
        """Whether the images of each pair are within `max_distance`; also true if one of them has no scores."""
        near = np.ones(len(a), dtype=bool)
        known = np.flatnonzero(self._has_scores[a] & self._has_scores[b])
        for start in range(0, len(known), _PAIRS_AT_ONCE):
            some = known[start : start + _PAIRS_AT_ONCE]
            near[some] = 1 - np.einsum("nd,nd->n", self._at(a[some]), self._at(b[some])) <= max_distance
        return near

    def _at(self, positions_N: Positions) -> npt.NDArray[np.float32]:
        return embeddings_at(self._scored, self._starts, self._scored.pool.shards, positions_N)


def joined(root_N: Positions, a: Positions, b: Positions) -> Positions:
    """Connect the images of each pair; returns `root_N` (N,), the first image that each is connected to, updated."""
    root_N = root_N.copy()
    while len(a):
        low, high = np.minimum(root_N[a], root_N[b]), np.maximum(root_N[a], root_N[b])
        np.minimum.at(root_N, high, low)
        while (root_N[root_N] != root_N).any():
            root_N = root_N[root_N]
        apart = root_N[a] != root_N[b]
        a, b = a[apart], b[apart]
    return root_N
