"""Export: the part of a scored pool that is worth training on, as WebDataset shards.

In: a pool and its scores. Out, below `config.out`:

    00000.tar ...        KEY.jpg (the crawl's own bytes), KEY.cls (class index), KEY.json (the crawl's, and ours under
                         "curate"), KEY.txt and whatever else stood beside the image
    00000_stats.json     counts of the shard, under img2dataset's names
    kept.parquet         KEPT_SCHEMA, a row per exported image, in the order of the shards
    dropped.parquet      DROPPED_SCHEMA, a row per image that stays behind, with the reason
    uids.npy             DataComp's list of kept images: sorted, dtype u8,u8
    run.json             configuration, versions and counts

Kept + dropped = pool. All is written beside `out` and renamed at the end, so that `out` is the old export or the new
one, whole (on an object store, which cannot rename, the old one goes first and `run.json` says that the new one is
whole); a second run replaces the first, and the same pool, scores and configuration give the same bytes. Memory
holds the rows of the shards at work, the most confident rows of each class where --per-class asks for them, 16 bytes
per kept image, and some 95 per image of the pool while near-duplicates are sought.

This process decides, shard after shard of the scores, what goes where; each shard of the export is then a task of its
own (`worker`), in a process of this machine or on a Ray cluster that sees pool and export, to the same bytes.
"""

import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from pipelines.compute import engine
from pipelines.errors import BadInput, Incompatible, MissingArtifact
from pipelines.export.condition import Where
from pipelines.export.config import ExportConfig, Summary
from pipelines.export.worker import KEPT_SCHEMA, Piece, Task, pack
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run.duplicates import Groups, best_first
from pipelines.run.scores import SCHEMA, ScoredPool
from pipelines.storage import locations, locks
from pipelines.storage.atomic import replacing, save_array, sync, write_json
from pipelines.storage.locations import Location

DROPPED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # Reason
    ]
)

_UIDS = np.dtype("u8,u8")
_BEGUN = ".export.partial"  # on a store, while what lies there is not whole
_OURS = re.compile(r"\d+\.tar|\d+_stats\.json|kept\.parquet|dropped\.parquet|uids\.npy|run\.json|\.export\.partial")


class Reason(StrEnum):
    """Why an image of the pool is not in the export; the first that applies, in this order."""

    SYNTHETIC = "synthetic"
    REAL = "real"
    LOW_CONFIDENCE = "low_confidence"
    WHERE = "where"
    NEAR_DUPLICATE = "near_duplicate"  # a better copy is kept
    OVER_PER_CLASS = "over_per_class"


def run(config: ExportConfig, on_tick: OnTick = ignore) -> Summary:
    """Write the export; see the module.

    Raises MissingArtifact where a shard has no scores, Incompatible where they are not the pool's, change meanwhile or
    another process exports to the same place, BadInput for a wrong `where` and for an `out` that holds anything but an
    earlier export.
    """
    scored = ScoredPool.open(config.pool, config.run)
    if scored.unscored:
        raise MissingArtifact(
            f"{config.run}/scores: shard {scored.unscored[0]} of {config.pool} has no scores "
            f"({len(scored.unscored)} of {len(scored.pool.shards)} shards have none); run `curate score` first."
        )
    origins = [scored.origin(shard) for shard in scored.shards]
    with (
        _opened(config.out) as work,
        closing(Where("true" if config.where is None else config.where, SCHEMA)) as where,
    ):
        selection = _Selection(config, where)
        if config.drop_near_duplicates:
            selection = replace(selection, copies=_best_copies(scored, selection, on_tick))
        if config.per_class:
            selection = replace(selection, ranking=_rank(scored, config.per_class, selection))
        _clear(work)
        summary = _write(scored, config, selection, work, on_tick)
        if origins != [scored.origin(shard) for shard in scored.shards]:
            raise Incompatible(f"{config.run}/scores: were made anew meanwhile; run the same command again.")
    return summary


# The decision: which rows of a shard are kept, and why the others are not


def judge(rows: pa.Table, config: ExportConfig, met: npt.NDArray[np.bool_]) -> npt.NDArray[np.object_]:
    """Reason (N,) to drop each row, None where it is kept; `met` (N,) says where the condition holds."""
    reasons = np.full(rows.num_rows, None, dtype=object)
    if config.keep != "all" and rows["synthetic"].null_count:
        raise Incompatible(
            f"{config.run}: trained no detector, so that nothing tells real from synthetic; add --keep all, "
            "or train with --method rsmatch."
        )
    synthetic = rows["synthetic"].to_numpy(zero_copy_only=False).astype(bool)
    reasons[~met] = Reason.WHERE
    reasons[rows["confidence"].to_numpy() < np.float32(config.min_confidence)] = Reason.LOW_CONFIDENCE
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
        """Let the rows of a shard compete for the places of their classes."""
        rows = defaultdict[str, list[tuple[float, str]]](list)
        for label, confidence, key in zip(labels, confidences, keys, strict=True):
            rows[label].append((-confidence, key))
        for label, candidates in rows.items():
            self._best[label] = sorted(self._best.get(label, []) + candidates)[: self._limit]

    def keeps(self, label: str, confidence: float, key: str) -> bool:
        """Whether a row that was added is among the best of its class."""
        return (-confidence, key) <= self._best[label][-1]


@dataclass(frozen=True)
class _Copies:
    """Groups of near-duplicates, and by group the key of the best image among those that may be kept."""

    groups: Groups
    best: dict[int, str]

    def redundant(self, shard: str, key: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which rows (N,) of a shard are near-duplicates of a better image."""
        numbers = self.groups.of(shard).tolist()
        return np.array([self.best.get(n, k) != k for n, k in zip(numbers, key, strict=True)], dtype=bool)


@dataclass(frozen=True)
class _Selection:
    config: ExportConfig
    where: Where
    copies: _Copies | None = None
    ranking: Ranking | None = None

    def reasons(self, shard: str, rows: pa.Table) -> list[Reason | None]:
        """Why each row of a shard is dropped, None where it is kept."""
        reasons = judge(rows, self.config, self.where.mask(rows))
        if self.copies:
            redundant = self.copies.redundant(shard, rows["key"].to_pylist())
            reasons[redundant & (reasons == None)] = Reason.NEAR_DUPLICATE  # noqa: E711, elementwise
        if self.ranking:
            columns = (rows[name].to_pylist() for name in ("pseudo_label", "confidence", "key"))
            for i, place in enumerate(zip(*columns, strict=True)):
                if reasons[i] is None and not self.ranking.keeps(*place):
                    reasons[i] = Reason.OVER_PER_CLASS
        return list(reasons)

    def kept(self, shard: str, rows: pa.Table) -> pa.Table:
        """The rows of a shard that are kept."""
        return rows.filter(pa.array([reason is None for reason in self.reasons(shard, rows)], pa.bool_()))


def _best_copies(scored: ScoredPool, selection: _Selection, on_tick: OnTick) -> _Copies:
    """Go once over all scores to find the best of each group of near-duplicates."""
    groups = Groups.find(scored, selection.config.radius, selection.config.max_distance, on_tick)
    best: dict[int, tuple[int, int, str]] = {}
    for shard in scored.shards:
        numbers = pa.array(groups.of(shard))
        rows = selection.kept(shard, scored.rows(shard).append_column("group", numbers))
        for row in rows.select(["group", "key", "width", "height", "num_bytes"]).to_pylist():
            number = row["group"]
            if number >= 0:
                best[number] = min(best.get(number, best_first(row)), best_first(row))
    return _Copies(groups, {number: key for number, (_, _, key) in best.items()})


def _rank(scored: ScoredPool, limit: int, selection: _Selection) -> Ranking:
    """Go once over all scores to find the best of each class."""
    ranking = Ranking(limit)
    for shard in scored.shards:
        kept = selection.kept(shard, scored.rows(shard))
        ranking.add(*(kept[name].to_pylist() for name in ("pseudo_label", "confidence", "key")))
    return ranking


# The writing


def _write(scored: ScoredPool, config: ExportConfig, selection: _Selection, work: Location, on_tick: OnTick) -> Summary:
    dropped, per_class = Counter[str](), Counter[str]()
    uids, num_shards, num_bytes = [], 0, 0
    jobs = min(config.jobs, -(-scored.pool.num_images // config.shard_size))
    workers = engine.choose(config.engine, jobs=jobs, address=config.ray_address)
    work_on = partial(pack, scored.pool.root.absolute(), work, scored.classes)
    with (
        replacing(work / "kept.parquet") as kept_path,
        replacing(work / "dropped.parquet") as dropped_path,
        pq.ParquetWriter(kept_path, KEPT_SCHEMA, compression="zstd") as kept_table,
        pq.ParquetWriter(dropped_path, DROPPED_SCHEMA, compression="zstd") as dropped_table,
    ):
        plan = _plan(scored, selection, config.shard_size, dropped_table, dropped)
        for task, rows in workers.in_order(work_on, plan):
            kept_table.write_table(rows)
            words = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in rows["uid"].to_pylist()]
            uids.append(np.array(words, dtype=_UIDS))
            per_class.update(rows["pseudo_label"].to_pylist())
            num_shards, num_bytes = num_shards + 1, num_bytes + task.num_bytes
            counts = {
                "count": rows.num_rows, "successes": rows.num_rows, "failed_to_download": 0, "failed_to_resize": 0
            }  # fmt: skip
            write_json(work / f"{task.shard}_stats.json", counts)
            figures = {"kept": per_class.total()}
            on_tick(Tick(done=task.num_judged, total=scored.pool.num_images, unit="images", figures=figures))
    with replacing(work / "uids.npy") as path:
        save_array(path, np.sort(np.concatenate([np.zeros(0, dtype=_UIDS), *uids])))
    summary = Summary(
        out=str(config.out),
        pool=scored.pool.num_images,
        kept=per_class.total(),
        dropped={reason.value: dropped[reason.value] for reason in Reason if dropped[reason.value]},
        per_class={name: per_class[name] for name in scored.classes},
        shards=num_shards,
        num_bytes=num_bytes,
    )
    assert summary.kept + sum(summary.dropped.values()) == summary.pool
    write_json(
        work / "run.json",
        {
            "stage": "export",
            "config": config.model_dump(mode="json"),
            "versions": {name: version(name) for name in ("duckdb", "numpy", "pyarrow")},
            "classes": scored.classes,
            "summary": asdict(summary),
        },
    )
    return summary


def _plan(
    scored: ScoredPool,
    selection: _Selection,
    shard_size: int,
    dropped_table: pq.ParquetWriter,
    dropped: Counter[str],
) -> Iterator[Task]:
    """Yield what goes into each shard of the export, in order; put what stays behind on record as it passes."""
    number, pieces, num_judged = 0, list[Piece](), 0
    for shard in scored.shards:
        rows = scored.rows(shard)
        reasons = selection.reasons(shard, rows)
        refused = [
            {"key": key, "reason": reason.value}
            for key, reason in zip(rows["key"].to_pylist(), reasons, strict=True)
            if reason is not None
        ]
        dropped_table.write_table(pa.Table.from_pylist(refused, schema=DROPPED_SCHEMA))
        dropped.update(row["reason"] for row in refused)
        kept = np.array([i for i, reason in enumerate(reasons) if reason is None], dtype=np.int64)
        while len(kept):
            room = shard_size - sum(piece.rows.num_rows for piece in pieces)
            taken, kept = kept[:room], kept[room:]
            pieces.append(Piece.of(shard, rows, taken))
            if len(taken) == room:
                yield Task(number, tuple(pieces), num_judged + int(taken[-1]) + 1)
                number, pieces = number + 1, []
        num_judged += rows.num_rows
    if pieces:
        yield Task(number, tuple(pieces), num_judged)


# The place: an export appears whole, in the place of an earlier one


@contextmanager
def _opened(out: Location) -> Iterator[Location]:
    """Yield where to write; at the end it is `out`, whole."""
    if isinstance(out, UPath):
        _refuse_others(out, out)
        yield out
        locations.remove(out / _BEGUN)
        return
    with _working_folder(out) as work:
        yield work
        _replace(out.resolve(), work)


def _clear(work: Location) -> None:
    """Remove an earlier export from a store, which cannot rename; a mark says what the place is until it is whole."""
    if isinstance(work, UPath):
        write_json(work / _BEGUN, {"stage": "export"})
        locations.remove(work / "run.json")  # first: without it nobody takes the rest for an export
        for name in locations.names(work):
            if name != _BEGUN:
                locations.remove(work / name)


@contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`, after making sure that `out` is ours to replace; remove it on failure.

    It is held for this export alone until it has become `out`.
    """
    called, out = out, out.resolve()
    if out.is_file():
        raise BadInput(f"{called}: is a file; name a folder with --out.")
    work = out.with_name(f".{out.name}.partial")
    with locks.held(work, called=called):
        try:
            _refuse_others(out, called)
            if not out.exists() and _before(out).exists():
                _before(out).rename(out)  # a run was killed between its last two renames
            for path in work.iterdir():  # of a run that was killed
                path.unlink()
            yield work
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


def _refuse_others(out: Location, called: Location) -> None:
    """Raise BadInput where `out` holds anything but an export, whole or begun."""
    found = locations.names(out)
    strange = [name for name in found if not _OURS.fullmatch(name)]
    if strange or (found and _BEGUN not in found and not _is_export(out)):
        what = f"holds {strange[0]}, which no export wrote" if strange else "is not an export"
        raise BadInput(f"{called}: {what}; name another folder with --out.")


def _is_export(out: Location) -> bool:
    try:
        return bool(json.loads(locations.read(out / "run.json"))["stage"] == "export")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _replace(out: Path, work: Path) -> None:
    """Put `work` in the place of `out`; whenever this is killed, one of them is whole and found by the next run."""
    before = _before(out)
    shutil.rmtree(before, ignore_errors=True)
    for path in work.iterdir():
        sync(path)
    sync(work)
    if out.exists():
        out.rename(before)
    work.rename(out)
    sync(out.parent)
    shutil.rmtree(before, ignore_errors=True)


def _before(out: Path) -> Path:
    return out.with_name(f".{out.name}.before")
