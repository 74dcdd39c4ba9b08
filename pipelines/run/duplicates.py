"""Finds near-duplicates: groups of images that are copies of each other up to size, compression or slight edits.

Two images are near-duplicates if their perceptual hashes differ in at most `radius` of 64 bits, their embeddings, if
both have one, are within `max_distance`, and their pixels agree (`likeness`). The hash sees the layout alone: two birds
against the sky, or two words on white, are one to it. Groups are the connected components of such pairs.

On request mirrored and rotated copies count, too. The hash of a turned image follows from its own, up to a few bits:
they are signs of frequencies, of which turning swaps the axes and flips the odd ones. Crops count on request as well:
every image is decoded and hashed in nine crops (`crops`). Embeddings do not count there.

No step takes more than about N log N. Hashes that differ in at most `radius` bits agree in at least three of
radius + 3 blocks of bits, so sorting by every choice of three blocks brings them together. This is exact while at most
`_WINDOW` images share three blocks; beyond that, each image is compared with the next ones in order, which still
connects a dense cluster. An image whose hash has few bits set is a nearly plain surface, about which the hash says
nothing, so it is in no group. Memory use is about 110 bytes an image, most of it while hashes are sorted (eight times
that with turned copies, ten times with crops), and up to 300 MB for looks at images whose hashes are near.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, combinations, islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.compute.processes import usable_cores
from pipelines.images.check import foreign_images
from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run import crops
from pipelines.run.likeness import ALIKE, Look
from pipelines.run.neighbors import embeddings_at
from pipelines.run.scores import ScoredPool
from pipelines.storage.locations import Range
from pipelines.storage.shards import read_spans_across

MIN_BITS = 12  # bits set in a hash that can be trusted; a detailed picture has about 32, a plain surface none

_BLOCKS_IN_COMMON = 3
_WINDOW = 64  # hashes with the same blocks that each hash is compared with
_WIDE_RADIUS = 8  # bits, where the hash of a turned or cropped image is a guess
_LOOKS = 1 << 15  # in memory
_AT_ONCE = 256  # images read before they are decoded
_MOST_UNLIKE = 1 << 22  # pairs that are known to differ
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
    def find(
        cls,
        scored: ScoredPool,
        radius: int,
        max_distance: float,
        *,
        turned: bool = False,
        cropped: bool = False,
        on_tick: OnTick = ignore,
    ) -> "Groups":
        """Group a pool's images by hashes within `radius` bits, embeddings within `max_distance` (1 - cosine), pixels.

        With `turned`, mirrored and rotated copies are in the group of their original; with `cropped`, crops that lack
        up to 5 % of a side.
        """
        hash_N = hashes(scored)
        detailed = np.flatnonzero(np.bitwise_count(hash_N) >= MIN_BITS)
        embeddings, looks = _Embeddings(scored), Looks(scored.pool)
        root_N = np.arange(len(hash_N))
        masks = block_masks(radius)
        for done, mask in enumerate(masks, 1):
            for a, b in near_pairs(hash_N, detailed, mask, radius):
                is_new = root_N[a] != root_N[b]
                a, b = a[is_new], b[is_new]
                near = embeddings.within(max_distance, a, b)
                a, b = looks.alike(a[near], b[near])
                root_N = joined(root_N, a, b)
            on_tick(Tick(done=done, total=len(masks), unit="passes"))
        if turned:
            root_N = _with_turned(root_N, hash_N, detailed, looks, on_tick)
        if cropped:
            root_N = _with_cropped(root_N, hash_N, looks, on_tick)
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


def hashes(scored: ScoredPool) -> Hashes:
    """Perceptual hashes (N,) of a pool's images, in order."""
    return np.concatenate([_hashes(scored, shard) for shard in scored.pool.shards])


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


def turned_hashes(hash_N: Hashes, turn: int) -> Hashes:
    """Hashes (N,) of images mirrored and rotated as `Look.turned` does, up to a few bits each."""
    bits_NRC = np.unpackbits(hash_N.astype(">u8").view(np.uint8)).reshape(-1, 8, 8)
    odd = np.arange(8) % 2 == 1
    if turn & 4:  # mirrored left to right: odd frequencies of a row change their sign
        bits_NRC = bits_NRC ^ odd
    for _ in range(turn & 3):  # a quarter turn to the left: transposed, then mirrored top to bottom
        bits_NRC = bits_NRC.transpose(0, 2, 1) ^ odd[:, None]
    return np.packbits(bits_NRC.reshape(len(hash_N), 64), axis=1).view(">u8")[:, 0].astype(np.uint64)


def _with_turned(root_N: Positions, hash_N: Hashes, detailed: Positions, looks: "Looks", on_tick: OnTick) -> Positions:
    """Connect images with mirrored and rotated copies of them, by their hashes and pixels."""
    num = len(hash_N)
    all_8N = np.concatenate([hash_N, *(turned_hashes(hash_N, turn) for turn in range(1, 8))])
    chosen = np.concatenate([detailed + turn * num for turn in range(8)])
    masks = block_masks(_WIDE_RADIUS)
    for done, mask in enumerate(masks, 1):
        for a, b in near_pairs(all_8N, chosen, mask, _WIDE_RADIUS):
            turn = np.where(a < num, b // num, a // num)
            is_asked = ((a < num) != (b < num)) & (root_N[a % num] != root_N[b % num])
            a, b, turn = a[is_asked], b[is_asked], turn[is_asked]
            straight, of = np.where(a < num, a, b), np.where(a < num, b, a) % num
            root_N = joined(root_N, *looks.alike(straight, of, turn))
        on_tick(Tick(done=done, total=len(masks), unit="passes for turned copies"))
    return root_N


def _with_cropped(root_N: Positions, hash_N: Hashes, looks: "Looks", on_tick: OnTick) -> Positions:
    """Connect images with crops of them, by the hashes of nine crops of each image, and by their pixels."""
    num = len(hash_N)
    all_10N = np.concatenate([hash_N, *crops.of_pool(looks.pool, on_tick)])
    chosen = np.flatnonzero(np.bitwise_count(all_10N) >= MIN_BITS)
    masks = block_masks(_WIDE_RADIUS)
    for done, mask in enumerate(masks, 1):
        for a, b in near_pairs(all_10N, chosen, mask, _WIDE_RADIUS):
            is_asked = ((a < num) != (b < num)) & (root_N[a % num] != root_N[b % num])
            pairs = np.unique(np.sort(np.stack([a, b], 1)[is_asked] % num, 1), axis=0)  # several crops, one pair
            root_N = joined(root_N, *looks.alike(pairs[:, 0], pairs[:, 1]))
        on_tick(Tick(done=done, total=len(masks), unit="passes for crops"))
    return root_N


class Looks:
    """Looks at the images of a pool by their pixels, each by its position; those asked for last stay in memory."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._starts = np.cumsum([0, *pool.counts])
        self._spans: dict[str, tuple[Positions, Positions]] = {}
        self._known: dict[int, Look | None] = {}
        self._unlike = set[tuple[int, int, int]]()

    def alike(self, a: Positions, b: Positions, turn: Positions | None = None) -> tuple[Positions, Positions]:
        """The pairs of images whose pixels agree, where the second one is turned (`Look.turned`)."""
        asked = list(zip(a.tolist(), b.tolist(), [0] * len(a) if turn is None else turn.tolist(), strict=True))
        asked = [pair for pair in asked if pair not in self._unlike]
        found = list[tuple[int, int]]()
        for start in range(0, len(asked), _LOOKS // 4):
            some = asked[start : start + _LOOKS // 4]
            self.look({position for one, other, _ in some for position in (one, other)})
            for one, other, number in some:
                first, second = self._known[one], self._known[other]
                if first is None or second is None or first.likeness(_turned(second, number)) < ALIKE:
                    self._unlike.add((one, other, number))
                else:
                    found.append((one, other))
        if len(self._unlike) > _MOST_UNLIKE:
            self._unlike.clear()
        pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def look(self, positions: Iterable[int]) -> Mapping[int, Look | None]:
        """Looks at some images, at most `_LOOKS`, by their position; None of one that shows nothing."""
        missing = sorted(set(positions) - self._known.keys())
        if len(self._known) + len(missing) > _LOOKS:
            wanted = set(positions)
            self._known = {position: look for position, look in self._known.items() if position in wanted}
        spans = [self._span(position) for position in missing]
        with foreign_images(), ThreadPoolExecutor(usable_cores()) as threads:
            contents = read_spans_across(spans)
            while some := list(islice(contents, _AT_ONCE)):
                for position, look in zip(missing[: len(some)], threads.map(Look.of, some), strict=True):
                    self._known[position] = look
                missing = missing[len(some) :]
        return self._known

    def _span(self, position: int) -> Range:
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        shard = self.pool.shards[number]
        if shard not in self._spans:
            rows = self.pool.rows(shard, ["offset", "num_bytes"])
            self._spans[shard] = rows["offset"].to_numpy(), rows["num_bytes"].to_numpy()
        row = position - int(self._starts[number])
        offset, num_bytes = self._spans[shard]
        return self.pool.tar(shard), int(offset[row]), int(num_bytes[row])


def _turned(look: Look, number: int) -> Look:
    return look.turned(number) if number else look


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
