"""Nearest neighbors of images by the embeddings of a scored pool: a FAISS index, kept in run/index/.

    run/index/faiss.index   the index over the normalized embeddings; vector i is the i-th image of the shards in order
    run/index/index.json    FAISS's name of the index, its measured recall, and each shard with its number of rows and
                            the fingerprint of its scores; written last, so it vouches that both files agree
    run/pools/ID/index/     the same of a further pool (`pipelines.run.belonging`)

Small pools are searched exactly. From `EXACT_BELOW` images on, the index is an inverted file (IVF) that searches only
the lists nearest to the query; how many is measured against exact search. From `FULL_BELOW` images on it stores 6 bits
a dimension. In all cases the candidates are ranked by the embeddings themselves, so distances are exact. A graph (HNSW)
answers faster and a product quantizer is smaller, but both take over ten times as long to build.

The index is built once and extended when more shards are scored. It is rebuilt if the scores of a shard in it change or
if the pool outgrows its kind of index. Its recall is measured each time.
"""

import bisect
import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from pipelines.progress import OnTick, Tick, ignore
from pipelines.run.scores import ScoredPool
from pipelines.storage import locks
from pipelines.storage.atomic import replacing, write_json

EXACT_BELOW = 50_000  # images; below this, searching all of them takes a millisecond or two
FULL_BELOW = 4**11  # images; below this the index stores float16 embeddings (4 million of width 128 take 1 GB)
RECALL_AT = 10
TARGET_RECALL = 0.97  # on the sample, so that 0.95 holds beyond it
NUM_QUERIES = 500  # images of the pool that recall is measured on
ROUGH_LISTS = 8  # the fewest lists of a rough search
NEIGHBORHOOD = 4096  # images that `Index.neighborhoods` yields at a time

_ROUGH_DIVISOR = 8  # a rough search takes one eighth of the lists of a search
_TRAINING_PER_LIST = 64  # vectors; FAISS wants at least 39 and uses at most 256
_CANDIDATES = 10  # for each neighbor asked for, if the index stores less than the embeddings hold
_GATHERED = 1 << 16  # embeddings of candidates in memory at a time
_ROUNDING = 1e-6  # error of an inner product of unit vectors in float32

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]


class Neighbor(NamedTuple):
    """An image of the pool that a search found."""

    shard: str
    row: int  # within the shard
    distance: float  # 1 - cosine of the embeddings, 0..2


class _Part(NamedTuple):
    shard: str
    num_rows: int
    fingerprint: str  # of its scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """The kind of a run's index, and how reliable it is."""

    factory: str  # FAISS's name: Flat is exact, IVF1024,SQfp16 has 1024 lists of float16 vectors
    num_images: int
    lists_searched: int | None  # lists of an inverted file that a query searches
    recall_at_10: float  # share of an image's 10 nearest neighbors that a search finds; 1 if it is exact
    num_queries: int | None  # images that the recall was measured on

    @property
    def exact(self) -> bool:
        """Whether a search compares the query with all images."""
        return self.factory == "Flat"


def choose(num_images: int) -> str:
    """FAISS's name of the index for this many images; an inverted file has about their square root in lists."""
    if num_images < EXACT_BELOW:
        return "Flat"
    lists = 4 ** round(log(num_images, 4) / 2)  # a power of 4, so that a growing pool rarely changes its lists
    return f"IVF{lists},SQfp16" if num_images < FULL_BELOW else f"IVF{lists},SQ6"


@dataclass(frozen=True)
class Index:
    """The index of the embeddings of some shards, ready to be searched.

    An image has a *position*: its number among all images of the shards in order.
    """

    scored: ScoredPool
    parts: tuple[_Part, ...]
    faiss: Any
    facts: Facts

    @classmethod
    def open(cls, scored: ScoredPool, on_tick: OnTick = ignore) -> "Index":
        """Open the run's index and bring it up to date with the scored shards.

        If another process is doing that already, wait for it and use its result.
        """
        with locks.awaited(scored.folder / "index"):
            return cls._open(scored, on_tick)

    @classmethod
    def _open(cls, scored: ScoredPool, on_tick: OnTick) -> "Index":
        folder = scored.folder / "index"
        parts = tuple(_Part(shard, scored.num_rows(shard), scored.fingerprint(shard)) for shard in scored.shards)
        width = scored.embeddings(scored.shards[0]).shape[1]
        factory = choose(sum(part.num_rows for part in parts))
        facts, known = _read_facts(folder / "index.json")
        if facts is None or facts.factory != factory or parts[: len(known)] != known:
            known = ()
        found = _read(folder / "faiss.index", known, mapped=known == parts) if known else None
        if found is not None and facts is not None and known == parts:
            return cls(scored, parts, found, facts)
        if found is None:
            known, found = (), faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
        _extend(found, scored, parts, len(known), on_tick)
        index = cls(scored, parts, found, Facts(factory=factory, num_images=found.ntotal, **_EXACT))
        if factory != "Flat":
            index = index._tuned()
        _write(folder, index)
        return index

    @property
    def num_images(self) -> int:
        """Number of images in the index."""
        return int(self.faiss.ntotal)

    def search(self, queries_ND: npt.NDArray[Any], k: int) -> list[list[Neighbor]]:
        """The `k` nearest images of each query, nearest first; fewer if the index finds no more."""
        distances, positions = self.search_positions(queries_ND, k)
        return [
            [Neighbor(*self.shard_row(p), d) for d, p in zip(*found, strict=True) if p >= 0]
            for found in zip(distances.tolist(), positions.tolist(), strict=True)
        ]

    def search_positions(self, queries_ND: npt.NDArray[Any], k: int) -> tuple[Floats, Positions]:
        """Distances (N, k) and positions (N, k) of the `k` nearest images of each query, nearest first.

        A position is -1 if the index finds no more images.
        """
        queries = normalized(queries_ND)
        k = min(k, self.num_images)
        full = self.facts.exact or self.facts.factory.endswith("SQfp16")
        similarities, positions = self.faiss.search(queries, k if full else min(k * _CANDIDATES, self.num_images))
        if not self.facts.exact:
            similarities = self._similarities(queries, positions)
            order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
            similarities = np.take_along_axis(similarities, order, 1)
            positions = np.take_along_axis(positions, order, 1)
        return np.clip(1 - similarities, 0, 2), positions  # rounding can leave this range

    def search_roughly(self, queries_ND: npt.NDArray[Any], k: int) -> Positions:
        """Positions (N, k) of images near each query, nearest first by the index's own vectors; -1 if it finds no more.

        This is for queries of the whole pool: an inverted file searches only some of the lists of a full search.
        """
        settings = None
        if self.facts.lists_searched is not None:
            settings = faiss.SearchParametersIVF()
            settings.nprobe = max(ROUGH_LISTS, self.facts.lists_searched // _ROUGH_DIVISOR)
        _, positions = self.faiss.search(normalized(queries_ND), min(k, self.num_images), params=settings)
        return np.asarray(positions)

    def neighborhoods(self) -> Iterator[Positions]:
        """The positions of all images, at most NEIGHBORHOOD at a time; those of a list of an inverted file together.

        Such images are searched for in the same lists, which therefore stay in the processor's cache.
        """
        if self.facts.exact:
            positions = np.arange(self.num_images)
            yield from (positions[i : i + NEIGHBORHOOD] for i in range(0, self.num_images, NEIGHBORHOOD))
            return
        lists, waiting = self.faiss.invlists, np.empty(0, dtype=np.int64)
        for number in range(self.faiss.nlist):
            if size := lists.list_size(number):
                waiting = np.concatenate([waiting, faiss.rev_swig_ptr(lists.get_ids(number), size)])
            while len(waiting) >= NEIGHBORHOOD:
                yield waiting[:NEIGHBORHOOD]
                waiting = waiting[NEIGHBORHOOD:]
        if len(waiting):
            yield waiting

    def shard_row(self, position: int) -> tuple[str, int]:
        """Shard and row of the image at a position."""
        number = bisect.bisect_right(self._starts, position) - 1
        return self.parts[number].shard, position - self._starts[number]

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(part.num_rows for part in self.parts)]

    def embeddings(self, positions_N: Positions) -> Floats:
        """Normalized embeddings (N, D) of the images at these positions."""
        return embeddings_at(self.scored, self._starts, [part.shard for part in self.parts], positions_N)

    def _similarities(self, queries_ND: Floats, positions_NK: Positions) -> Floats:
        """Inner products (N, K) of queries with the embeddings at these positions; minus infinity at position -1."""
        similarities = np.empty(positions_NK.shape, dtype=np.float32)
        step = max(1, _GATHERED // positions_NK.shape[1])
        for start in range(0, len(queries_ND), step):
            some = positions_NK[start : start + step]
            distinct, inverse = np.unique(some.clip(0), return_inverse=True)
            found_UD = self.embeddings(distinct)
            for i, mine in enumerate(inverse.reshape(some.shape), start):
                similarities[i] = found_UD[mine] @ queries_ND[i]
        return np.where(positions_NK < 0, np.float32(-np.inf), similarities)

    def _tuned(self) -> "Index":
        """The same index with its recall measured, set to search as many lists as the target recall needs."""
        sample = np.linspace(0, self.num_images - 1, min(NUM_QUERIES, self.num_images)).astype(np.int64)
        queries = self.embeddings(sample)
        least = self._similarity_of_the_last(queries)
        lists = self.faiss.nlist
        lists_searched, recall = 4, 0.0
        while recall < TARGET_RECALL and lists_searched < lists:
            lists_searched *= 2
            self.faiss.nprobe = lists_searched
            distances, positions = self.search_positions(queries, RECALL_AT + 1)
            hits = (1 - distances >= least[:, None] - _ROUNDING) & (positions != sample[:, None])
            recall = float(np.minimum(hits.sum(1), RECALL_AT).mean() / RECALL_AT)
        facts = Facts(
            factory=self.facts.factory,
            num_images=self.num_images,
            lists_searched=lists_searched,
            recall_at_10=recall,
            num_queries=len(sample),
        )
        return Index(self.scored, self.parts, self.faiss, facts)

    def _similarity_of_the_last(self, queries_ND: Floats) -> Floats:
        """Similarity (N,) of each query's tenth neighbor by exact search; the first result is the query itself."""
        best = np.full((len(queries_ND), RECALL_AT + 1), -np.inf, dtype=np.float32)
        for part in self.parts:
            similarities = queries_ND @ normalized(self.scored.embeddings(part.shard)).T
            both = np.concatenate([best, similarities], axis=1)
            best = -np.partition(-both, RECALL_AT, axis=1)[:, : RECALL_AT + 1]
        return np.asarray(best.min(axis=1))


_EXACT: dict[str, Any] = {"lists_searched": None, "recall_at_10": 1.0, "num_queries": None}


def normalized(embeddings_ND: npt.NDArray[Any]) -> Floats:
    """Embeddings (N, D) at unit length, float32."""
    vectors = np.ascontiguousarray(embeddings_ND, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def num_others(
    found_BK: Positions, own_B: Positions, values_N: npt.NDArray[Any], k: int
) -> tuple[Positions, Positions]:
    """How many (B,) of an image's `k` nearest neighbors have another value than it, and how many neighbors (B,) it has.

    `found_BK` holds positions as a search for the images at `own_B` returns them: nearest first, usually with the image
    itself among them, -1 where it found no more. `values_N` are the values of all images, such as their verdicts.
    """
    is_neighbor = (found_BK >= 0) & (found_BK != own_B[:, None])
    is_neighbor &= is_neighbor.cumsum(axis=1) <= k
    differs = values_N[found_BK] != values_N[own_B][:, None]
    return (differs & is_neighbor).sum(axis=1), is_neighbor.sum(axis=1)


def embeddings_at(scored: ScoredPool, starts: Sequence[int], shards: Sequence[str], positions_N: Positions) -> Floats:
    """Normalized embeddings (N > 0, D) of the images at these positions; shard i of `shards` begins at `starts[i]`."""
    number_N = np.searchsorted(starts, positions_N, side="right") - 1
    numbers = np.unique(number_N)
    found_ND = np.empty((len(positions_N), scored.embeddings(shards[numbers[0]]).shape[1]), dtype=np.float32)
    for number in numbers:
        mine = number_N == number
        found_ND[mine] = scored.embeddings(shards[number])[positions_N[mine] - starts[number]]
    return normalized(found_ND)


def _extend(index: Any, scored: ScoredPool, parts: Sequence[_Part], start: int, on_tick: OnTick) -> None:
    """Add the shards from number `start` on; a new inverted file first learns its lists from a sample of all shards."""
    if not index.is_trained:
        share = _TRAINING_PER_LIST * index.nlist / sum(part.num_rows for part in parts)
        step = max(1, int(1 / share))
        index.train(np.concatenate([normalized(scored.embeddings(part.shard)[::step]) for part in parts]))
    for number in range(start, len(parts)):
        vectors = normalized(scored.embeddings(parts[number].shard))
        if len(vectors):
            index.add(vectors)
        on_tick(Tick(done=number + 1, total=len(parts), unit="shards"))


def _read_facts(path: Path) -> tuple[Facts | None, tuple[_Part, ...]]:
    try:
        stored = json.loads(path.read_bytes())
        parts = tuple(_Part(*part) for part in stored.pop("shards"))
        return Facts(**stored), parts
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None, ()


def contradiction(scored: ScoredPool) -> str | None:
    """How the stored index of a run contradicts its scores, in words; None if it does not.

    Shards scored since are no contradiction: they are added when the index is next opened.
    """
    folder = scored.folder / "index"
    facts, known = _read_facts(folder / "index.json")
    if facts is None:
        return "its index.json cannot be read"
    if _read(folder / "faiss.index", known, mapped=True) is None:
        return "its faiss.index is missing, truncated, or has a different number of images than its index.json says"
    fingerprints = {shard: scored.fingerprint(shard) for shard in scored.shards}
    stale = [part.shard for part in known if part.fingerprint != fingerprints.get(part.shard)]
    return f"indexes the embeddings of other scores than the run's, from shard {stale[0]} on" if stale else None


def _read(path: Path, parts: Sequence[_Part], mapped: bool) -> Any:
    """The stored index, or None if it is missing, broken or not that of `parts`, and has to be rebuilt.

    A mapped index is read from the disk while it is searched, and cannot be extended.
    """
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError:
        return None
    return index if index.ntotal == sum(part.num_rows for part in parts) else None


def _write(folder: Path, index: Index) -> None:
    (folder / "index.json").unlink(missing_ok=True)  # until it is written again, the two files may disagree
    with replacing(folder / "faiss.index") as temporary:
        try:
            faiss.write_index(index.faiss, str(temporary))
        except RuntimeError as error:  # FAISS raises it for everything; only the text tells that the disk is at fault
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number), str(folder)) from error
            raise
    facts = {name: getattr(index.facts, name) for name in Facts.__dataclass_fields__}
    write_json(folder / "index.json", {**facts, "shards": index.parts})
