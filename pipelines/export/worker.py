"""Write one shard of an export: the images chosen for it, each with its class, if there are classes, and metadata.

This is the part of export that runs in parallel. It knows one shard; which images belong in it was decided before.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import CorruptShard, Incompatible
from pipelines.export.sample import caption_of, describe, members, others_of, parsed, uid_of
from pipelines.export.shape import Shape
from pipelines.export.writers import ParquetShard, TarShard
from pipelines.pool.manifest import KEY_DIGITS, Pool
from pipelines.storage.atomic import replacing
from pipelines.storage.locations import Location
from pipelines.storage.shards import end_of_samples, ends_of_images, read_samples_at, sample_spans

KEPT_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # of the export
        pa.field(
            "cls", pa.int32()
        ),  # index of the pseudo-label among the model's classes; without, the crawl's .cls or null
        pa.field("pseudo_label", pa.string()),  # this and the next, too
        pa.field("confidence", pa.float32()),
        pa.field("prob_synthetic", pa.float32()),  # null without a detector
        pa.field("uid", pa.string(), nullable=False),  # 32 hexadecimal digits
        pa.field("source", pa.string(), nullable=False),
        pa.field("member", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("format", pa.string(), nullable=False),  # of the image's bytes; its member is called .jpg
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
)

NO_LABEL = -1  # class index of an image without a label where others have one: all samples have the same members
_TO_THE_END = -1


class Piece(NamedTuple):
    """Images of one shard of the pool that go into one shard of the export, with the spans of their samples."""

    shard: str  # of the pool
    rows: pa.Table  # of the scored pool, without `probs`
    start: npt.NDArray[np.int64]  # (N,), of the sample's first header
    stop: npt.NDArray[np.int64]  # (N,), where the next sample begins

    @classmethod
    def of(cls, shard: str, rows: pa.Table, taken: npt.NDArray[np.int64]) -> Self:
        """Take some rows of a shard, by their numbers `taken` (N,); `rows` are all rows of the shard, in its order."""
        start, stop = sample_spans(rows["offset"].to_numpy(), _TO_THE_END)
        return cls(shard, rows.drop_columns(["probs"]).take(taken), start[taken], stop[taken])


class Task(NamedTuple):
    """A shard of the export: its number, its pieces, and how many images of the pool were judged by then."""

    number: int
    pieces: tuple[Piece, ...]
    num_judged: int

    @property
    def shard(self) -> str:
        """Name of the shard."""
        return f"{self.number:0{KEY_DIGITS}d}"

    @property
    def num_bytes(self) -> int:
        """Size of its images."""
        return sum(sum(piece.rows["num_bytes"].to_pylist()) for piece in self.pieces)


def survey(pool: Location, with_classes: bool, task: Task) -> Shape:
    """Look at the captions and metadata of a shard's samples, without their images.

    Raises CorruptShard if the pool contradicts its manifest.
    """
    shape = Shape()
    for row, sample in _samples(Pool(pool), task, with_images=False):
        crawled = parsed(sample.get("json"))
        has_caption = bool(caption_of(row, sample.get("txt"), crawled))
        shape.survey(describe(crawled, row), others_of(sample, row["format"], with_classes), has_caption)
    return shape


def captions(pool: Pool, shard: str, rows: pa.Table, taken: npt.NDArray[np.int64]) -> list[str]:
    """Captions of some images of a shard, by their numbers `taken` (N,) in its `rows`; empty where there is none."""
    if not len(taken):
        return []
    found = _samples(pool, Task(0, (Piece.of(shard, rows, taken),), 0), with_images=False)
    return [caption_of(row, sample.get("txt"), parsed(sample.get("json"))) for row, sample in found]


class Packed(NamedTuple):
    """A finished shard: its rows, KEPT_SCHEMA, and its file's SHA-256."""

    rows: pa.Table
    sha256: str


def pack(
    pool: Location, work: Location, classes: tuple[str, ...], shape: Shape, as_parquet: bool, task: Task
) -> Packed:
    """Write the shard of a task to `work`, as a tar or as parquet.

    Raises CorruptShard if the pool contradicts its manifest, Incompatible for a label that the model does not know.
    """
    class_index = {name: i for i, name in enumerate(classes)}
    rows = []
    name = f"{task.shard}.parquet" if as_parquet else f"{task.shard}.tar"
    with replacing(work / name) as path:
        with ParquetShard(path, classes, shape) if as_parquet else TarShard(path) as shard:
            for row, sample in _samples(Pool(pool), task):
                index = class_index.get(row["pseudo_label"])
                if index is None and row["pseudo_label"] is not None:
                    what = f"{row['key']} has the label {row['pseudo_label']!r}, which the model does not know"
                    raise Incompatible(f"The scores do not belong to the model: {what}. Run `curate score` again.")
                if index is None and classes:
                    index = NO_LABEL
                crawled = parsed(sample.get("json"))
                found = members(row, sample, crawled, index, shape)
                uid = uid_of(crawled, row["sha256"])
                label = int(found["cls"]) if "cls" in found else None
                rows.append({**row, "shard": task.shard, "cls": label, "uid": uid})
                shard.add(rows[-1], found)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Packed(pa.Table.from_pylist(rows, schema=KEPT_SCHEMA), sha256)


def _samples(pool: Pool, task: Task, with_images: bool = True) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """Yield each row of a task with its sample, on request without the image, which comes first in it."""
    for piece in task.pieces:
        tar = pool.tar(piece.shard)
        start, stop = piece.start, piece.stop.copy()
        if stop[-1] == _TO_THE_END:
            stop[-1] = end_of_samples(tar)
        if not with_images:
            start = ends_of_images(start, piece.rows["num_bytes"].to_numpy())
        spans = list(zip(start.tolist(), (stop - start).tolist(), strict=True))
        for row, (key, sample) in zip(piece.rows.to_pylist(), read_samples_at(tar, spans), strict=True):
            if with_images and (key != row["key"] or len(sample.get(row["format"], b"")) != row["num_bytes"]):
                raise CorruptShard(
                    f"{tar} holds {key} where its manifest lists {row['key']} of {row['num_bytes']} bytes. Remove the "
                    "shard's files and ingest its source again."
                )
            yield row, sample
