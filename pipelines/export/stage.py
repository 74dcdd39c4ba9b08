"""Export: the part of a scored pool that is worth training on, as WebDataset shards.

In: a pool and its scores. Out, below `config.out`:

    00000.tar ...        KEY.jpg (the crawl's own bytes), KEY.cls (class index), KEY.json (the crawl's, with ours under
                         "curate"), KEY.txt and whatever else the crawl had beside the image
    00000_stats.json     counts of the shard, under img2dataset's names
    kept.parquet         KEPT_SCHEMA, a row per exported image, in the order of the shards
    dropped.parquet      DROPPED_SCHEMA, a row per image that is not exported, with the reason
    uids.npy             DataComp's list of kept images: sorted, dtype u8,u8
    run.json             configuration, versions, counts, and how far to trust the detector

Kept + dropped = pool. A second run replaces the first export, whole (`folder`). The same pool, scores and configuration
give the same bytes. Memory holds the rows of the shards in progress, 16 bytes per kept image and what
`selection` needs.

This process decides, shard after shard of the scores, what is exported. Each shard of the export is then a task of its
own (`worker`), in a process on this machine or on a Ray cluster that can access pool and export, with the same bytes.
At the end the first shard is read back by plain `webdataset` (`readback`).
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.compute import engine
from pipelines.errors import BadInput, Incompatible, MissingArtifact
from pipelines.export import folder, readback, selection
from pipelines.export.condition import Where
from pipelines.export.config import ExportConfig, Summary
from pipelines.export.selection import Reason, Selection
from pipelines.export.worker import KEPT_SCHEMA, Piece, Task, pack
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run import quality
from pipelines.run.scores import ScoredPool
from pipelines.storage.atomic import replacing, save_array, write_json
from pipelines.storage.locations import Location

DROPPED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # selection.Reason
    ]
)

OF_CLASSES = ("pseudo_label", "confidence", "probs")  # columns that are empty without classes

_UIDS = np.dtype("u8,u8")


def run(config: ExportConfig, on_tick: OnTick = ignore) -> Summary:
    """Write the export; see the module.

    Raises MissingArtifact if a shard has no scores; Incompatible if the scores belong to another pool, change during
    the export, or another process is exporting to the same folder; BadInput for a wrong `where`, for an option about
    classes that the run does not have, and for an `out` that holds anything but an earlier export; CorruptShard if the
    pool is damaged or the first shard cannot be read back.
    """
    scored = ScoredPool.open(config.pool, config.run)
    if scored.unscored:
        raise MissingArtifact(
            f"{config.run}/scores: {len(scored.unscored)} of {len(scored.pool.shards)} shards of {config.pool} have no "
            f"scores, among them {scored.unscored[0]}: run `curate score` first."
        )
    _check_classes(scored, config)
    without = () if scored.classes else OF_CLASSES
    why = f"{config.run} was trained on images without classes"
    origins = [scored.origin(shard) for shard in scored.shards]
    with (
        folder.opened(config.out) as work,
        closing(
            Where("true" if config.where is None else config.where, scored.schema, without, why, scored.pool)
        ) as where,
    ):
        chosen = selection.prepare(scored, config, where, on_tick)
        folder.clear(work)
        summary = _write(scored, config, chosen, work, on_tick)
        if origins != [scored.origin(shard) for shard in scored.shards]:
            raise Incompatible(f"{config.run}/scores changed during the export. Run the same command again.")
    return summary


def _check_classes(scored: ScoredPool, config: ExportConfig) -> None:
    """Raise BadInput for an option about classes if the run has none."""
    if scored.classes:
        return
    for option, given in (("--min-confidence", config.min_confidence > 0), ("--per-class", config.per_class)):
        if given:
            raise BadInput(
                f"{option}: {config.run} was trained on images without classes, so there are no pseudo-labels. Leave "
                f"out {option}."
            )


def _write(scored: ScoredPool, config: ExportConfig, chosen: Selection, work: Location, on_tick: OnTick) -> Summary:
    dropped, per_class = Counter[str](), Counter[str]()
    uids, num_kept, num_shards, num_bytes, first = [], 0, 0, 0, None
    jobs = min(config.jobs, -(-scored.pool.num_images // config.shard_size))
    workers = engine.choose(config.engine, jobs=jobs, address=config.ray_address)
    work_on = partial(pack, scored.pool.root.absolute(), work, scored.classes)
    with (
        replacing(work / "kept.parquet") as kept_path,
        replacing(work / "dropped.parquet") as dropped_path,
        pq.ParquetWriter(kept_path, KEPT_SCHEMA, compression="zstd") as kept_table,
        pq.ParquetWriter(dropped_path, DROPPED_SCHEMA, compression="zstd") as dropped_table,
    ):
        plan = _plan(scored, chosen, config.shard_size, dropped_table, dropped)
        for task, rows in workers.in_order(work_on, plan):
            kept_table.write_table(rows)
            first = rows if first is None else first
            words = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in rows["uid"].to_pylist()]
            uids.append(np.array(words, dtype=_UIDS))
            per_class.update(rows["pseudo_label"].to_pylist())
            num_kept, num_shards, num_bytes = num_kept + rows.num_rows, num_shards + 1, num_bytes + task.num_bytes
            counts = {
                "count": rows.num_rows, "successes": rows.num_rows, "failed_to_download": 0, "failed_to_resize": 0
            }  # fmt: skip
            write_json(work / f"{task.shard}_stats.json", counts)
            figures = {"kept": num_kept}
            on_tick(Tick(done=task.num_judged, total=scored.pool.num_images, unit="images", figures=figures))
    if first is not None:
        readback.check(work / "00000.tar", first)
    with replacing(work / "uids.npy") as path:
        save_array(path, np.sort(np.concatenate([np.zeros(0, dtype=_UIDS), *uids])))
    told = quality.load(config.run)
    summary = Summary(
        out=str(config.out),
        pool=scored.pool.num_images,
        kept=num_kept,
        dropped={reason.value: dropped[reason.value] for reason in Reason if dropped[reason.value]},
        per_class={name: per_class[name] for name in scored.classes},
        shards=num_shards,
        num_bytes=num_bytes,
        warning=quality.warning(told) if scored.model.get("has_detector", True) else "",
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
            "quality": {**asdict(told), "statements": told.statements} if told is not None else None,
        },
    )
    return summary


def _plan(
    scored: ScoredPool,
    chosen: Selection,
    shard_size: int,
    dropped_table: pq.ParquetWriter,
    dropped: Counter[str],
) -> Iterator[Task]:
    """Yield the task of each shard of the export, in order, and record what is dropped on the way."""
    number, pieces, num_judged = 0, list[Piece](), 0
    for shard in scored.shards:
        rows = scored.rows(shard)
        reasons = chosen.reasons(shard, rows)
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
