"""Export: the part of a pool that is worth training on, in shards that every loader reads.

In: a pool, and its scores if it was scored. Out, below `config.out`:

    00000.tar ...        KEY.jpg (the crawl's own bytes, whatever their format), KEY.cls (class index), KEY.txt (the
                         caption), KEY.json (the crawl's, with ours under "curate"); all samples have the same members
                         and fields (`shape`)
    00000.parquet ...    instead of tars, with --format parquet (`writers`)
    00000_stats.json     counts of the shard, under img2dataset's names
    classes.txt          a line for each class, in the order of .cls
    kept.parquet         KEPT_SCHEMA, a row per exported image, in the order of the shards
    dropped.parquet      DROPPED_SCHEMA, a row per image that is not exported, with the reason
    uids.npy             DataComp's list of kept images: sorted, dtype u8,u8
    README.md            a card: what is in it, how far to trust it, how to load it (`card`)
    croissant.json       the same for machines: Croissant 1.1 (`croissant`)
    run.json             configuration, versions, counts, and how far to trust the detector

Kept + dropped = pool. A second run replaces the first export, whole (`folder`). The same pool, scores and configuration
give the same bytes. Memory holds the rows of the shards in progress, 16 bytes per kept image and what
`selection` needs.

This process decides, shard after shard of the pool, what is exported, twice: once to see what the samples have in
common, once to write them. Each shard of the export is a task of its own (`worker`), in a process on this machine or on
a Ray cluster that can access pool and export, with the same bytes. At the end the first shard is read back
(`readback`).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.compute import engine
from pipelines.compute.engine import Engine
from pipelines.errors import Incompatible
from pipelines.export import card, croissant, folder, readback, selection
from pipelines.export.condition import Where
from pipelines.export.config import ExportConfig, Summary
from pipelines.export.rows import Rows
from pipelines.export.selection import Reason, Selection
from pipelines.export.shape import Shape
from pipelines.export.worker import KEPT_SCHEMA, Packed, Piece, Task, captions, pack, survey
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run import labels, quality
from pipelines.storage import locations
from pipelines.storage.atomic import replacing, save_array, write_json
from pipelines.storage.locations import Location

DROPPED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # selection.Reason
        pa.field("match", pa.string()),  # what it is a copy of: key of an exported image, or name of a held-out one
        pa.field("how", pa.string()),  # and which kind of copy: exact, near, mirrored, ..., semantic
        pa.field("caption", pa.string()),  # of a copy, because the image that stays may have another
    ]
)

_UIDS = np.dtype("u8,u8")


def run(config: ExportConfig, on_tick: OnTick = ignore) -> Summary:
    """Write the export; see the module.

    Raises MissingArtifact if a shard has no scores; Incompatible if the scores belong to another pool, change during
    the export, or another process is exporting to the same folder; BadInput for a wrong `where`, for an option about
    classes that the run does not have, and for an `out` that holds anything but an earlier export; CorruptShard if the
    pool is damaged or the first shard cannot be read back.
    """
    rows = Rows.open(config)
    origins = rows.origins
    with (
        folder.opened(config.out) as work,
        closing(
            Where("true" if config.where is None else config.where, rows.schema, rows.empty, rows.why_empty, rows.pool)
        ) as where,
    ):
        chosen = selection.prepare(rows, config, where, on_tick)
        workers = engine.choose(
            config.engine, jobs=min(config.jobs, _most_shards(rows, config)), address=config.ray_address
        )
        shape = _survey(rows, config, chosen, workers, on_tick)
        folder.clear(work)
        written = _write(rows, config, chosen, shape, workers, work, on_tick)
        summary = _finish(rows, config, chosen, shape, written, work)
        shards = rows.pool.shards
        if config.where and not summary.kept and not any(where.mask(rows.of(shard)).any() for shard in shards):
            note = f"No image meets --where: {where.values(map(rows.of, shards))}."
            on_tick(Tick(done=summary.pool, total=summary.pool, unit="images", note=note))
        if origins != rows.origins:
            raise Incompatible(f"{config.run}/scores changed during the export. Run the same command again.")
    return summary


@dataclass
class _Written:
    """What the shards of an export hold, counted as they are written."""

    kept: int = 0
    num_bytes: int = 0
    per_class: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    uids: list[np.ndarray] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)  # of shards: name and SHA-256

    def count(self, name: str, task: Task, packed: Packed) -> None:
        """Count a shard."""
        rows = packed.rows
        words = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in rows["uid"].to_pylist()]
        self.uids.append(np.array(words, dtype=_UIDS))
        self.per_class.update(rows["pseudo_label"].drop_null().to_pylist())
        self.formats.update(rows["format"].to_pylist())
        self.kept, self.num_bytes = self.kept + rows.num_rows, self.num_bytes + task.num_bytes
        self.files.append((name, packed.sha256))


def _most_shards(rows: Rows, config: ExportConfig) -> int:
    return -(-rows.pool.num_images // config.shard_size)


def _survey(rows: Rows, config: ExportConfig, chosen: Selection, workers: Engine, on_tick: OnTick) -> Shape:
    """Look at all samples that are kept: all are written with the same members and fields."""
    shape = Shape()
    look = partial(survey, rows.pool.root.absolute(), bool(rows.classes))
    for task, found in workers.in_order(look, _plan(rows, chosen, config.shard_size)):
        shape.add(found)
        on_tick(Tick(done=task.num_judged, total=rows.pool.num_images, unit="captions"))
    if shape.left_out:
        listed = ", ".join(f".{suffix} of {count:,}" for suffix, count in shape.left_out.items())
        note = f"Left out, because not all {shape.num_samples:,} images have one: {listed}. The pool keeps them."
        on_tick(Tick(done=rows.pool.num_images, total=rows.pool.num_images, unit="captions", note=note))
    return shape


def _write(
    rows: Rows, config: ExportConfig, chosen: Selection, shape: Shape, workers: Engine, work: Location, on_tick: OnTick
) -> _Written:
    written, first = _Written(), None
    as_parquet = config.format == "parquet"
    work_on = partial(pack, rows.pool.root.absolute(), work, rows.classes, shape, as_parquet)
    with (
        replacing(work / "kept.parquet") as kept_path,
        replacing(work / "dropped.parquet") as dropped_path,
        kept_path.open("wb") as kept_file,  # a writer that meets a full disk does not close its file
        dropped_path.open("wb") as dropped_file,
        pq.ParquetWriter(kept_file, KEPT_SCHEMA, compression="zstd") as kept_table,
        pq.ParquetWriter(dropped_file, DROPPED_SCHEMA, compression="zstd") as dropped_table,
    ):

        def record(refused: pa.Table) -> None:
            dropped_table.write_table(refused)
            written.dropped.update(refused["reason"].to_pylist())

        for task, packed in workers.in_order(work_on, _plan(rows, chosen, config.shard_size, record)):
            kept_table.write_table(packed.rows)
            first = packed.rows if first is None else first
            written.count(f"{task.shard}.{'parquet' if as_parquet else 'tar'}", task, packed)
            num_rows = packed.rows.num_rows
            counts = {"count": num_rows, "successes": num_rows, "failed_to_download": 0, "failed_to_resize": 0}
            write_json(work / f"{task.shard}_stats.json", counts)
            figures = {"kept": written.kept}
            on_tick(Tick(done=task.num_judged, total=rows.pool.num_images, unit="images", figures=figures))
    if first is not None:
        readback.check(work / written.files[0][0], first)
    return written


def _finish(
    rows: Rows, config: ExportConfig, chosen: Selection, shape: Shape, written: _Written, work: Location
) -> Summary:
    """Write what describes the export as a whole, and `run.json` last."""
    with replacing(work / "uids.npy") as path:
        save_array(path, np.sort(np.concatenate([np.zeros(0, dtype=_UIDS), *written.uids])))
    told = quality.load(config.run) if rows.has_scores else None
    of_labels = labels.load(config.run) if rows.classes else None
    summary = Summary(
        out=str(config.out),
        pool=rows.pool.num_images,
        kept=written.kept,
        dropped={reason.value: written.dropped[reason.value] for reason in Reason if written.dropped[reason.value]},
        per_class={name: written.per_class[name] for name in rows.classes},
        shards=len(written.files),
        num_bytes=written.num_bytes,
        captions=shape.num_captions,
        left_out=shape.left_out,
        warning=quality.warning(told) if rows.has_detector else "",
        labeled=written.per_class.total(),
        labels=_said_of_labels(chosen, of_labels) if rows.classes else "",
    )
    assert summary.kept + sum(summary.dropped.values()) == summary.pool
    if rows.classes:
        lines = (" ".join(name.split()) for name in rows.classes)
        _write_text(work / "classes.txt", "".join(f"{line}\n" for line in lines))
    facts = card.Facts.of(rows, config, shape, summary, told, written.formats)
    _write_text(work / "README.md", card.text(facts))
    kept_sha256 = hashlib.sha256(locations.read(work / "kept.parquet")).hexdigest()
    write_json(work / "croissant.json", croissant.describe(facts, written.files, kept_sha256, rows.classes))
    write_json(
        work / "run.json",
        {
            "stage": "export",
            "config": config.model_dump(mode="json"),
            "versions": {name: version(name) for name in ("duckdb", "numpy", "pyarrow")},
            "classes": rows.classes,
            "summary": asdict(summary),
            "quality": {**asdict(told), "statements": told.statements} if told is not None else None,
            "labels": {**asdict(of_labels), "statements": of_labels.statements} if of_labels is not None else None,
        },
    )
    return summary


def _write_text(path: Location, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _said_of_labels(chosen: Selection, found: labels.Labels | None) -> str:
    """What is promised of the labels, or else how often they are right."""
    if chosen.promise is not None:
        return chosen.promise.sentence
    if found is None:
        return labels.UNMEASURED
    return f"{found.brief} of real images of the classes (95 % confidence). {found.warning}".strip()


def _plan(
    rows: Rows, chosen: Selection, shard_size: int, record: Callable[[pa.Table], None] | None = None
) -> Iterator[Task]:
    """Yield the task of each shard of the export, in order; `record` gets what is dropped on the way."""
    number, pieces, num_judged = 0, list[Piece](), 0
    for shard in rows.pool.shards:
        found = rows.of(shard)
        reasons = chosen.reasons(shard, found)
        if record:
            record(_refused(rows, chosen, shard, found, reasons))
        found = chosen.promise.applied(found) if chosen.promise is not None else found
        kept = np.array([i for i, reason in enumerate(reasons) if reason is None], dtype=np.int64)
        while len(kept):
            room = shard_size - sum(piece.rows.num_rows for piece in pieces)
            taken, kept = kept[:room], kept[room:]
            pieces.append(Piece.of(shard, found, taken))
            if len(taken) == room:
                yield Task(number, tuple(pieces), num_judged + int(taken[-1]) + 1)
                number, pieces = number + 1, []
        num_judged += found.num_rows
    if pieces:
        yield Task(number, tuple(pieces), num_judged)


def _refused(rows: Rows, chosen: Selection, shard: str, found: pa.Table, reasons: list[Reason | None]) -> pa.Table:
    """The rows of a shard that are dropped, DROPPED_SCHEMA."""
    refused, copies = list[dict[str, str | None]](), list[int]()
    for i, (key, reason) in enumerate(zip(found["key"].to_pylist(), reasons, strict=True)):
        if reason is not None:
            refused.append({"key": key, "reason": reason.value})
            if match := chosen.match(shard, i, key, reason):
                refused[-1] |= match._asdict()
                copies.append(i)
    texts = captions(rows.pool, shard, found, np.array(copies, dtype=np.int64))
    for row, caption in zip((row for row in refused if "match" in row), texts, strict=True):
        row["caption"] = caption or None
    return pa.Table.from_pylist(refused, schema=DROPPED_SCHEMA)
