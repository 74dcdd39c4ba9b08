"""Decide which rows of a scored pool are exported, and why the others are not.

Shards are judged one at a time. Memory holds the most confident rows of each class if `per_class` is set, and some 95
bytes per image of the pool while near-duplicates are sought.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import Incompatible
from pipelines.export import held_out, promise, semantic
from pipelines.export.condition import Where
from pipelines.export.config import ExportConfig
from pipelines.export.held_out import Match
from pipelines.export.promise import Promise
from pipelines.export.rows import Rows
from pipelines.progress import OnTick
from pipelines.run.duplicates import Groups, best_first


class Reason(StrEnum):
    """Why an image of the pool is not exported: the first reason that applies, in this order."""

    HELD_OUT = "held_out"  # a copy of an image of --exclude
    SYNTHETIC = "synthetic"
    REAL = "real"
    LOW_CONFIDENCE = "low_confidence"
    WHERE = "where"
    UNSURE_LABEL = "unsure_label"  # whose label cannot be promised to be right, with --unlabeled drop
    NEAR_DUPLICATE = "near_duplicate"  # a better copy is exported
    SEMANTIC_DUPLICATE = "semantic_duplicate"  # likewise
    OVER_PER_CLASS = "over_per_class"


def judge(rows: pa.Table, config: ExportConfig, met: npt.NDArray[np.bool_]) -> npt.NDArray[np.object_]:
    """Reason (N,) to drop each row, None for rows to keep; `met` (N,) is whether the `where` condition holds.

    Raises Incompatible if `keep` needs a detector and the run has none. Without classes there is no confidence.
    """
    reasons = np.full(rows.num_rows, None, dtype=object)
    if config.keep != "all" and rows["synthetic"].null_count:
        raise Incompatible(
            f"{config.run} has no detector, so nothing tells real and synthetic images apart. Add --keep all, or "
            "train with --method rsmatch."
        )
    synthetic = rows["synthetic"].to_numpy(zero_copy_only=False).astype(bool)
    reasons[~met] = Reason.WHERE
    confidence = rows["confidence"].fill_null(1.0).to_numpy()
    reasons[confidence < np.float32(config.min_confidence)] = Reason.LOW_CONFIDENCE
    if config.keep == "real":
        reasons[synthetic] = Reason.SYNTHETIC
    elif config.keep == "synthetic":
        reasons[~synthetic] = Reason.REAL
    return reasons


class Ranking:
    """The `limit` most confident rows of each class over all shards; ties go to the smaller key."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._best: dict[str, list[tuple[float, str]]] = {}  # (-confidence, key), best first

    def add(self, labels: Iterable[str], confidences: Iterable[float], keys: Iterable[str]) -> None:
        """Rank the rows of a shard among those of their classes."""
        rows = defaultdict[str, list[tuple[float, str]]](list)
        for label, confidence, key in zip(labels, confidences, keys, strict=True):
            rows[label].append((-confidence, key))
        for label, candidates in rows.items():
            self._best[label] = sorted(self._best.get(label, []) + candidates)[: self._limit]

    def keeps(self, label: str, confidence: float, key: str) -> bool:
        """Whether a row that was added is among the best of its class."""
        return (-confidence, key) <= self._best[label][-1]


@dataclass(frozen=True)
class Copies:
    """Groups of near-duplicates, and the key of the best image of each group among those that may be kept."""

    groups: Groups
    best: dict[int, str]

    def redundant(self, shard: str, key: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which rows (N,) of a shard are near-duplicates of a better image."""
        numbers = self.groups.of(shard).tolist()
        return np.array([self.best.get(n, k) != k for n, k in zip(numbers, key, strict=True)], dtype=bool)

    def match(self, shard: str, row: int) -> Match:
        """The better image of a row that is redundant."""
        return Match(self.best[int(self.groups.of(shard)[row])], "near")


@dataclass(frozen=True)
class Selection:
    """The choice of rows: what each one is judged by."""

    config: ExportConfig
    where: Where
    held_out: Mapping[str, Match] = field(default_factory=dict)  # by key
    copies: Copies | None = None
    semantic: Mapping[str, Match] = field(default_factory=dict)  # by key
    ranking: Ranking | None = None
    promise: Promise | None = None  # of the labels

    def match(self, shard: str, row: int, key: str, reason: Reason) -> Match | None:
        """What a dropped row of a shard is a copy of, if that is why it is dropped."""
        if reason is Reason.NEAR_DUPLICATE and self.copies:
            return self.copies.match(shard, row)
        if reason is Reason.SEMANTIC_DUPLICATE:
            return self.semantic[key]
        return self.held_out[key] if reason is Reason.HELD_OUT else None

    def reasons(self, shard: str, rows: pa.Table) -> list[Reason | None]:
        """Reason to drop each row of a shard, None for rows to keep."""
        reasons = judge(rows, self.config, self.where.mask(rows))
        if self.held_out:
            reasons[_among(rows, self.held_out)] = Reason.HELD_OUT
        if self.promise and self.config.unlabeled == "drop":
            reasons[~self.promise.holds(rows) & (reasons == None)] = Reason.UNSURE_LABEL  # noqa: E711, elementwise
        if self.copies:
            redundant = self.copies.redundant(shard, rows["key"].to_pylist())
            reasons[redundant & (reasons == None)] = Reason.NEAR_DUPLICATE  # noqa: E711, elementwise
        if self.semantic:
            redundant = _among(rows, self.semantic)
            reasons[redundant & (reasons == None)] = Reason.SEMANTIC_DUPLICATE  # noqa: E711, elementwise
        if self.ranking:
            columns = (rows[name].to_pylist() for name in ("pseudo_label", "confidence", "key"))
            for i, ranked in enumerate(zip(*columns, strict=True)):
                if reasons[i] is None and not self.ranking.keeps(*ranked):
                    reasons[i] = Reason.OVER_PER_CLASS
        return list(reasons)

    def kept(self, shard: str, rows: pa.Table) -> pa.Table:
        """Filter the rows of a shard to those that are kept."""
        return rows.filter(pa.array([reason is None for reason in self.reasons(shard, rows)], pa.bool_()))


def _among(rows: pa.Table, keys: Mapping[str, Match]) -> npt.NDArray[np.bool_]:
    return np.array([key in keys for key in rows["key"].to_pylist()], dtype=bool)


def prepare(rows: Rows, config: ExportConfig, where: Where, on_tick: OnTick) -> Selection:
    """Prepare the choice that `config` asks for: one pass over all scores for near-duplicates, one for `per_class`."""
    selection = Selection(config, where, promise=promise.make(config, rows.scored))
    if config.exclude:
        selection = replace(selection, held_out=held_out.find(rows, config.exclude, on_tick))
    if config.drop_near_duplicates:
        selection = replace(selection, copies=_best_copies(rows, selection, on_tick))
    if config.semantic_duplicates:
        found = semantic.find(rows.scored, _positions(rows, selection), config.semantic_duplicates, on_tick)
        selection = replace(selection, semantic=found)
    if config.per_class:
        selection = replace(selection, ranking=_ranking(rows, config.per_class, selection))
    return selection


def _best_copies(rows: Rows, selection: Selection, on_tick: OnTick) -> Copies:
    """Find the best image of each group of near-duplicates, in one pass over all scores."""
    config = selection.config
    groups = Groups.find(
        rows.scored, config.radius, config.max_distance, turned=config.turned, cropped=config.cropped, on_tick=on_tick
    )
    best: dict[int, tuple[int, int, str]] = {}
    for shard in rows.pool.shards:
        numbers = pa.array(groups.of(shard))
        found = selection.kept(shard, rows.of(shard).append_column("group", numbers))
        for row in found.select(["group", "key", "width", "height", "num_bytes"]).to_pylist():
            number = row["group"]
            if number >= 0:
                best[number] = min(best.get(number, best_first(row)), best_first(row))
    return Copies(groups, {number: key for number, (_, _, key) in best.items()})


def _positions(rows: Rows, selection: Selection) -> npt.NDArray[np.int64]:
    """Positions (N,) in the pool of the images that are kept so far."""
    found, start = list[npt.NDArray[np.int64]](), 0
    for shard, count in zip(rows.pool.shards, rows.pool.counts, strict=True):
        reasons = selection.reasons(shard, rows.of(shard))
        found.append(start + np.flatnonzero([reason is None for reason in reasons]))
        start += count
    return np.concatenate(found)


def _ranking(rows: Rows, limit: int, selection: Selection) -> Ranking:
    """Find the most confident rows of each class, in one pass over all scores."""
    ranking = Ranking(limit)
    for shard in rows.pool.shards:
        kept = selection.kept(shard, rows.of(shard))
        ranking.add(*(kept[name].to_pylist() for name in ("pseudo_label", "confidence", "key")))
    return ranking
