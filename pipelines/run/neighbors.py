"""Nearest neighbors over the embeddings of a scored pool: a FAISS index, kept in run/index/.

    run/index/faiss.index   over normalized embeddings; vector i is the i-th image of the shards in order
    run/index/index.json    FAISS's name of it, measured recall, each shard with its rows and the mark of its scores;
                            written last: the mark that both agree

Small pools are searched exactly. From `EXACT_BELOW` images on, an inverted file (IVF) looks only at the lists nearest
to the query, as many as a measurement against exact search asks for; from `FULL_BELOW` on it holds 6 bits a dimension.
Whatever finds the candidates, they are ranked by the embeddings themselves, so that distances are exact. A graph
(HNSW) answers sooner and a product quantizer is smaller, but both take over ten times as long to build.

Built once; extended by the shards that were scored since; built anew where an earlier shard's scores are others or the
pool has outgrown its kind of index. Recall is measured each time.
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

EXACT_BELOW = 50_000  # images: up to here a search through all of them takes a millisecond or two
FULL_BELOW = 4**11  # images: up to here the index holds float16 embeddings, 4 million of width 128 are 1 GB
RECALL_AT = 10
TARGET_RECALL = 0.97  # of the sample, so that 0.95 holds beyond it
NUM_QUERIES = 500  # images of the pool whose neighbors are found both ways to measure recall

_TRAINING_PER_LIST = 64  # vectors; FAISS asks for 39 at least, and takes 256 at most
_CANDIDATES = 10  # for each neighbor asked for, where the index holds less than the embeddings do
_GATHERED = 1 << 16  # embeddings of candidates in memory
_ROUGH_SHARE = 8  # of the lists that a search goes through, a rough one takes one in so many,
_ROUGH_LISTS = 8  # and this many at least
_NEIGHBORHOOD = 4096  # images
_ROUNDING = 1e-6  # of an inner product of unit vectors in float32

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]


class Neighbor(NamedTuple):
    """An image of the pool as a search finds it."""

    shard: str
    row: int  # in its shard
    distance: float  # 1 - cosine of the embeddings, 0..2


class _Part(NamedTuple):
    shard: str
    num_rows: int
    mark: str  # of its scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the index of a run is, and how far it can be trusted."""

    factory: str  # FAISS's name: Flat is exact, IVF1024,SQfp16 has 1024 lists of float16 vectors
    num_images: int
    lists_searched: int | None  # of an inverted file, for each query
    recall_at_10: float  # share of an image's 10 nearest neighbors that a search finds; 1 where it is exact
    num_queries: int | None  # that this was measured on

    @property
    def exact(self) -> bool:
        """Whether a search goes through all images."""
        return self.factory == "Flat"


def choose(num_images: int) -> str:
    """FAISS's name of the index for so many embeddings; an inverted file has about the square root in lists."""
    if num_images < EXACT_BELOW:
        return "Flat"
    lists = 4 ** round(log(num_images, 4) / 2)  # a power of 4, so that a growing pool keeps its lists for long
    return f"IVF{lists},SQfp16" if num_images < FULL_BELOW else f"IVF{lists},SQ6"


@dataclass(frozen=True)
class Index:
    """The embeddings of some shards, ready to be searched."""

    scored: ScoredPool
    parts: tuple[_Part, ...]
    faiss: Any
    facts: Facts

    @classmethod
    def open(cls, scored: ScoredPool, on_tick: OnTick = ignore) -> "Index":
        """Open the run's index, after bringing it up to date with the scored shards.

        Where another process is about that already, what it leaves is taken.
        """
        with locks.awaited(scored.run / "index"):
            return cls._open(scored, on_tick)

    @classmethod
    def _open(cls, scored: ScoredPool, on_tick: OnTick) -> "Index":
        folder = scored.run / "index"
        parts = tuple(_Part(shard, scored.num_rows(shard), scored.mark(shard)) for shard in scored.shards)
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
        """The `k` nearest images of each query, nearest first; fewer where the index finds no more."""
        distances, positions = self.search_positions(queries_ND, k)
        return [
            [Neighbor(*self.place(p), d) for d, p in zip(*found, strict=True) if p >= 0]
            for found in zip(distances.tolist(), positions.tolist(), strict=True)
        ]

    def search_positions(self, queries_ND: npt.NDArray[Any], k: int) -> tuple[Floats, Positions]:
        """Distances (N, k) and positions (N, k) of the `k` nearest images of each query, nearest first.

        The position of an image is its number in the shards in order; -1 where the index finds no more.
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
        return np.clip(1 - similarities, 0, 2), positions  # rounding may step over the ends

    def search_roughly(self, queries_ND: npt.NDArray[Any], k: int) -> Positions:
        """Positions (N, k) of images near each query, nearest first by what the index holds; -1 where it finds no more.

        For a question to all images at once: an inverted file looks through a few of the lists that a search takes.
        """
        settings = None
        if self.facts.lists_searched is not None:
            settings = faiss.SearchParametersIVF()
            settings.nprobe = max(_ROUGH_LISTS, self.facts.lists_searched // _ROUGH_SHARE)
        _, positions = self.faiss.search(normalized(queries_ND), min(k, self.num_images), params=settings)
        return np.asarray(positions)

    def neighborhoods(self) -> Iterator[Positions]:
        """The positions of all images, some thousand at a time: of an inverted file those that share a list.

        Searching for them goes through the same lists, which stay in the processor's cache.
        """
        if self.facts.exact:
            positions = np.arange(self.num_images)
            yield from (positions[i : i + _NEIGHBORHOOD] for i in range(0, self.num_images, _NEIGHBORHOOD))
            return
        lists, waiting = self.faiss.invlists, np.empty(0, dtype=np.int64)
        for number in range(self.faiss.nlist):
            if size := lists.list_size(number):
                waiting = np.concatenate([waiting, faiss.rev_swig_ptr(lists.get_ids(number), size)])
            while len(waiting) >= _NEIGHBORHOOD:
                yield waiting[:_NEIGHBORHOOD]
                waiting = waiting[_NEIGHBORHOOD:]
        if len(waiting):
            yield waiting

    def place(self, position: int) -> tuple[str, int]:
        """Shard and row of the image at a position."""
        number = bisect.bisect_right(self._starts, position) - 1
        return self.parts[number].shard, position - self._starts[number]

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(part.num_rows for part in self.parts)]

    def embeddings(self, positions_N: Positions) -> Floats:
        """Normalized embeddings (N, D) of the images at some positions."""
        return embeddings_at(self.scored, self._starts, [part.shard for part in self.parts], positions_N)

    def _similarities(self, queries_ND: Floats, positions_NK: Positions) -> Floats:
        """Inner products (N, K) of queries with the embeddings at positions; -1 goes last."""
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
        """The same with its recall measured, searching as many lists as the target takes."""
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
        """Similarity (N,) of each query's tenth neighbor by exact search; it is an image itself, and the first."""
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


def embeddings_at(scored: ScoredPool, starts: Sequence[int], shards: Sequence[str], positions_N: Positions) -> Floats:
    """Normalized embeddings (N > 0, D) of the images at some positions in `shards`, the first of each at its start."""
    number_N = np.searchsorted(starts, positions_N, side="right") - 1
    numbers = np.unique(number_N)
    found_ND = np.empty((len(positions_N), scored.embeddings(shards[numbers[0]]).shape[1]), dtype=np.float32)
    for number in numbers:
        mine = number_N == number
        found_ND[mine] = scored.embeddings(shards[number])[positions_N[mine] - starts[number]]
    return normalized(found_ND)


def _extend(index: Any, scored: ScoredPool, parts: Sequence[_Part], start: int, on_tick: OnTick) -> None:
    """Add the shards from `start` on; an index without its lists learns them first, from a sample of all shards."""
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
    """What the stored index of a run gets wrong, in words; shards scored since are added when it is next opened."""
    folder = scored.run / "index"
    facts, known = _read_facts(folder / "index.json")
    if facts is None:
        return "its index.json cannot be read"
    if _read(folder / "faiss.index", known, mapped=True) is None:
        return "its faiss.index is missing, cut, or holds another number of images than its index.json says"
    marks = {shard: scored.mark(shard) for shard in scored.shards}
    stale = [part.shard for part in known if part.mark != marks.get(part.shard)]
    return f"is of other scores than the run's, from shard {stale[0]} on" if stale else None


def _read(path: Path, parts: Sequence[_Part], mapped: bool) -> Any:
    """The stored index, or None where it is gone, broken or not that of `parts`: then it is built anew.

    A mapped one is read from the disk as it is searched, and cannot be extended.
    """
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError:
        return None
    return index if index.ntotal == sum(part.num_rows for part in parts) else None


def _write(folder: Path, index: Index) -> None:
    (folder / "index.json").unlink(missing_ok=True)  # from here to its return the two need not agree
    with replacing(folder / "faiss.index") as temporary:
        try:
            faiss.write_index(index.faiss, str(temporary))
        except RuntimeError as error:  # FAISS's kind of all errors: what is the disk's is told by its words
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number), str(folder)) from error
            raise
    facts = {name: getattr(index.facts, name) for name in Facts.__dataclass_fields__}
    write_json(folder / "index.json", {**facts, "shards": index.parts})
