"""The two kinds of shard that an export writes: WebDataset tars, and parquet as Hugging Face `datasets` writes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.export.sample import IMAGE
from pipelines.export.shape import Shape
from pipelines.storage.shards import ShardWriter

# Columns of a parquet shard beside image, label, text and json, and what `datasets` calls their types.
_ROW_COLUMNS = {
    "key": "string", "uid": "string", "format": "string", "width": "int32", "height": "int32",
    "pseudo_label": "string", "confidence": "float32", "prob_synthetic": "float32", "source": "string",
    "member": "string", "sha256": "string",
}  # fmt: skip
_IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_ROWS_AT_ONCE = 64  # of a row group: a reader of one image reads its neighbors, too


class ShardFile(Protocol):
    """A shard while it is written; a context manager that finishes it."""

    def add(self, row: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
        """Append an image: its row, and the members of its sample by suffix."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class TarShard:
    """A WebDataset shard."""

    def __init__(self, path: Path) -> None:
        self._tar = ShardWriter(path)

    def add(self, row: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
        for suffix, content in members.items():
            self._tar.add(f"{row['key']}.{suffix}", content)

    def __enter__(self) -> Self:
        self._tar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tar.__exit__(kind, error, trace)


class ParquetShard:
    """A parquet file with a row for each image, which `datasets` shows as pictures with named labels.

    Columns: `image` (struct of bytes and path), `label` and `text` where there are classes and captions, `json` (as in
    a tar), columns of the manifest and the scores, and a binary one for each further member.
    """

    def __init__(self, path: Path, classes: tuple[str, ...], shape: Shape) -> None:
        others = sorted(shape.common - {"cls"})
        features: dict[str, Any] = {"image": {"_type": "Image"}}
        fields = [pa.field("image", _IMAGE_TYPE)]
        if classes or "cls" in shape.common:
            named = {"names": list(classes), "_type": "ClassLabel"}
            features["label"] = named if classes else {"dtype": "int64", "_type": "Value"}
            fields.append(pa.field("label", pa.int64()))
        texts = ["text", "json"] if shape.with_captions else ["json"]
        for name, kind in (dict.fromkeys(texts, "string") | _ROW_COLUMNS | dict.fromkeys(others, "binary")).items():
            features[name] = {"dtype": kind, "_type": "Value"}
            fields.append(pa.field(name, {"float32": pa.float32()}.get(kind) or pa.type_for_alias(kind)))
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        self._schema = pa.schema(fields, metadata=metadata)
        self._file = pq.ParquetWriter(path, self._schema, compression="none")  # images are compressed
        self._rows = list[dict[str, Any]]()
        self._others = others

    def add(self, row: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
        self._rows.append(
            {
                **{name: row[name] for name in _ROW_COLUMNS},
                "image": {"bytes": members[IMAGE], "path": f"{row['key']}.{row['format']}"},
                "label": row["cls"],
                "text": members["txt"].decode() if "txt" in members else None,
                "json": members["json"].decode(),
                **{name: members[name] for name in self._others},
            }
        )
        if len(self._rows) == _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._file.close()
