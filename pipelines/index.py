"""Exact nearest neighbors over the embeddings of a scored pool: a FAISS index, kept in run/index/.

    run/index/faiss.index   inner products of normalized embeddings; row i is the i-th image of the shards in order
    run/index/shards.json   [shard, rows, digest of its embeddings], in order; written last: the mark that both agree

Built once, extended by the shards that were scored since, built anew where an earlier shard's embeddings changed.
"""

import bisect
import hashlib
import json
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from pipelines.atomic import replacing, write_json
from pipelines.progress import OnTick, Tick, ignore
from pipelines.scored import ScoredPool

Floats = npt.NDArray[np.float32]


class Neighbor(NamedTuple):
    """An image of the pool as a search finds it."""

    shard: str
    row: int  # in its shard
    distance: float | None  # 1 - cosine of the embeddings, 0..2; None for the query itself


class _Part(NamedTuple):
    shard: str
    num_rows: int
    digest: str


@dataclass(frozen=True)
class Index:
    """The embeddings of some shards, ready to be searched."""

    parts: tuple[_Part, ...]
    faiss: Any

    @classmethod
    def open(cls, scored: ScoredPool, on_tick: OnTick = ignore) -> "Index":
        """Open the run's index, after bringing it up to date with the scored shards."""
        folder = scored.run / "index"
        parts = tuple(
            _Part(shard, scored.num_rows(shard), _digest(scored.embeddings_file(shard))) for shard in scored.shards
        )
        known = _read_parts(folder / "shards.json")
        index = _read(folder / "faiss.index", known) if known and parts[: len(known)] == known else None
        if index is None:
            known = ()
        if index is None or len(known) < len(parts):
            index = _extend(scored, parts, len(known), index, on_tick)
            _write(folder, index, parts)
        return cls(parts, index)

    def search(self, queries_ND: Floats, k: int) -> list[list[Neighbor]]:
        """The `k` nearest images of each query, nearest first; fewer where the pool is smaller."""
        similarities, positions = self.faiss.search(_normalized(queries_ND), min(k, self.faiss.ntotal))
        return [
            [self._neighbor(int(position), float(value)) for position, value in zip(*found, strict=True)]
            for found in zip(positions, similarities, strict=True)
        ]

    def _neighbor(self, position: int, similarity: float) -> Neighbor:
        starts = [0, *accumulate(part.num_rows for part in self.parts)]
        number = bisect.bisect_right(starts, position) - 1
        distance = min(2.0, max(0.0, 1.0 - similarity))  # rounding may step over the ends
        return Neighbor(self.parts[number].shard, position - starts[number], distance)


def _normalized(embeddings_ND: npt.NDArray[Any]) -> Floats:
    vectors = np.ascontiguousarray(embeddings_ND, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def _extend(scored: ScoredPool, parts: tuple[_Part, ...], start: int, index: Any, on_tick: OnTick) -> Any:
    for number in range(start, len(parts)):
        vectors = _normalized(scored.embeddings(parts[number].shard))
        if index is None:
            index = faiss.IndexFlatIP(vectors.shape[1])
        if len(vectors):
            index.add(vectors)
        on_tick(Tick(done=number + 1, total=len(parts), unit="shards"))
    return index


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"  # `ScoredPool.embeddings` says it in a sentence


def _read_parts(path: Path) -> tuple[_Part, ...]:
    try:
        return tuple(_Part(*part) for part in json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return ()


def _read(path: Path, parts: tuple[_Part, ...]) -> Any:
    """The stored index, or None where it is gone, broken or not that of `parts`: then it is built anew."""
    try:
        index = faiss.read_index(str(path))
    except RuntimeError:
        return None
    return index if index.ntotal == sum(part.num_rows for part in parts) else None


def _write(folder: Path, index: Any, parts: tuple[_Part, ...]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "shards.json").unlink(missing_ok=True)  # from here to its return the two need not agree
    with replacing(folder / "faiss.index") as temporary:
        faiss.write_index(index, str(temporary))
    write_json(folder / "shards.json", parts)
