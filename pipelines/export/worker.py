"""Write one shard of an export: the images chosen for it, each with its class, if there are classes, and metadata.

This is the part of export that runs in parallel. It knows one shard; which images belong in it was decided before.
"""

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import CorruptShard, Incompatible
from pipelines.pool.manifest import KEY_DIGITS, Pool
from pipelines.run.scores import SCHEMA
from pipelines.storage.atomic import replacing
from pipelines.storage.json_text import to_json
from pipelines.storage.locations import Location
from pipelines.storage.shards import ShardWriter, end_of_samples, read_samples_at, sample_spans

KEPT_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # of the export
        pa.field("cls", pa.int32()),  # index of the pseudo-label among the model's classes; null without a label
        pa.field("pseudo_label", pa.string()),  # this and the next, too
        pa.field("confidence", pa.float32()),
        pa.field("prob_synthetic", pa.float32()),  # null without a detector
        pa.field("uid", pa.string(), nullable=False),  # 32 hexadecimal digits
        pa.field("source", pa.string(), nullable=False),
        pa.field("member", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)

_DESCRIBED = (
    "key", "prob_synthetic", "synthetic", "pseudo_label", "confidence", "raw_confidence", "typicality", "marked",
    "declared", "declared_by", "source", "member",
)  # fmt: skip
# UTF-32 comes first: its BOM begins with that of UTF-16.
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_UID = re.compile(r"[0-9a-f]{32}")
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


def pack(pool: Location, work: Location, classes: tuple[str, ...], task: Task) -> pa.Table:
    """Write the tar of a shard to `work`. Returns its rows, KEPT_SCHEMA.

    Raises CorruptShard if the pool contradicts its manifest, Incompatible for a label that the model does not know.
    """
    class_index = {name: i for i, name in enumerate(classes)}
    rows = []
    with replacing(work / f"{task.shard}.tar") as path, ShardWriter(path) as tar:
        for row, sample in _samples(Pool(pool), task):
            index = class_index.get(row["pseudo_label"])
            if index is None and row["pseudo_label"] is not None:
                what = f"{row['key']} has the label {row['pseudo_label']!r}, which the model does not know"
                raise Incompatible(f"The scores do not belong to the model: {what}. Run `curate score` again.")
            for suffix, content in _members(row, sample, index).items():
                tar.add(f"{row['key']}.{suffix}", content)
            uid = uid_of(sample.get("json"), row["sha256"])
            rows.append({**row, "shard": task.shard, "cls": index, "uid": uid})
    return pa.Table.from_pylist(rows, schema=KEPT_SCHEMA)


def _samples(pool: Pool, task: Task) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    for piece in task.pieces:
        tar = pool.tar(piece.shard)
        spans = [(start, stop - start) for start, stop in zip(piece.start.tolist(), piece.stop.tolist(), strict=True)]
        if piece.stop[-1] == _TO_THE_END:
            spans[-1] = (spans[-1][0], end_of_samples(tar) - spans[-1][0])
        for row, (key, sample) in zip(piece.rows.to_pylist(), read_samples_at(tar, spans), strict=True):
            if key != row["key"] or len(sample.get(row["format"], b"")) != row["num_bytes"]:
                raise CorruptShard(
                    f"{tar} holds {key} where its manifest lists {row['key']} of {row['num_bytes']} bytes. Remove the "
                    "shard's files and ingest its source again."
                )
            yield row, sample


def uid_of(metadata: bytes | None, sha256: str) -> str:
    """DataComp's uid of an image, 32 hexadecimal digits: from its JSON, otherwise the start of its SHA-256."""
    values = _object(metadata)
    uid = values.get("uid") if values else None
    return uid.lower() if isinstance(uid, str) and _UID.fullmatch(uid.lower()) else sha256[:32]


def describe(metadata: bytes | None, row: Mapping[str, Any]) -> bytes:
    """The crawl's JSON of an image, with our columns added under "curate", and scores from outside under "outside".

    If the crawl's JSON is not an object, or has a "curate" already (an export was ingested), it moves to "crawl".
    """
    values = _object(metadata)
    if metadata is None:
        values = {}
    elif values is None or "curate" in values:
        values = {"crawl": values if values is not None else _any_json(metadata)}
    ours: dict[str, Any] = {
        name: round(row[name], 6) if isinstance(row[name], float) else row[name] for name in _DESCRIBED
    }
    if outside := {name: value for name, value in row.items() if name not in SCHEMA.names}:
        ours["outside"] = {name: None if value is None else float(f"{value:.7g}") for name, value in outside.items()}
    try:
        text = to_json({**values, "curate": ours}, indent=None)
    except RecursionError:  # it could just be parsed, and is one level deeper here
        text = to_json({"crawl": _text(metadata or b""), "curate": ours}, indent=None)
    return text.encode("utf-8", "backslashreplace")


def _object(metadata: bytes | None) -> dict[str, Any] | None:
    values = _any_json(metadata) if metadata is not None else None
    return values if isinstance(values, dict) else None


def _any_json(metadata: bytes) -> Any:
    """Parse JSON; anything else is returned as text."""
    try:
        return json.loads(metadata)
    except (ValueError, RecursionError):
        return metadata.decode("utf-8", "backslashreplace")


def _members(row: Mapping[str, Any], sample: Mapping[str, bytes], class_index: int | None) -> dict[str, bytes]:
    """Members of an exported sample by suffix: the image, its class, its metadata, the crawl's other files.

    `webdataset` decodes .txt as UTF-8 and .cls as a number, and fails if they are not. The pool keeps them as they were
    crawled; here they are written so that they can be decoded.
    """
    others = dict(sample)
    image, metadata = others.pop(row["format"]), others.pop("json", None)
    if (label := others.pop("cls", None)) is not None:  # the crawl's own
        others["crawl.cls" if _is_number(label) else "crawl.cls.txt"] = label
    for suffix in others:
        if suffix.rpartition(".")[2] == "txt":
            others[suffix] = _text(others[suffix]).encode()
    own_class = {} if class_index is None else {"cls": str(class_index).encode()}
    return {row["format"]: image, **own_class, "json": describe(metadata, row), **others}


def _text(content: bytes) -> str:
    """Decode text by its BOM, otherwise as UTF-8. Bytes that cannot be decoded are escaped."""
    for bom, encoding in _BOMS:
        if content.startswith(bom):
            return content.removeprefix(bom).decode(encoding, "backslashreplace")
    return content.decode("utf-8", "backslashreplace")


def _is_number(label: bytes) -> bool:
    try:
        int(label)
    except ValueError:
        return False
    return True
