"""Find the source images of a benchmark, whose classes are known, and read them. Their bytes are not changed.

    folder/CLASS/**/*.jpg      a folder of image files per class
    file.parquet, folder/      image bytes (plain, or Hugging Face's struct of bytes and path) and a column of classes
    shard.tar, folder/         WebDataset samples with .cls: what `curate generate` and `curate export` write

Memory holds the locations of images in folders and tars, and the whole image column of parquet files.

A real and a synthetic source must not differ in codec or scale, or a detector learns that instead: pixels still show
a JPEG that was decoded long ago. `matched` is the common last step for both.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from pipelines.errors import BadInput, why
from pipelines.images.appearance import as_seen
from pipelines.images.check import foreign_images
from pipelines.images.encode import encode
from pipelines.images.rejects import Reject
from pipelines.ingest.columns import image_columns
from pipelines.pool.labeled_files import SUFFIXES
from pipelines.storage.shards import read_spans
from pipelines.storage.tar import MAX_MEMBER_BYTES, read_tar

CLASS_COLUMNS = ("class_name", "cls", "label", "class", "fine_label")
_SPLITS = {"train", "training", "test", "val", "valid", "validation", "dev"}

Location = TypeVar("Location")


class Images:
    """N images as the bytes of their files, each read on demand."""

    def __init__(self, locations: Sequence[Location], read: Callable[[Location], bytes]) -> None:
        self._locations = locations
        self._read: Callable[[Any], bytes] = read

    def __len__(self) -> int:
        """N."""
        return len(self._locations)

    def __getitem__(self, index: int) -> bytes:
        """Read one image. BadInput or CorruptShard if it is gone."""
        return self._read(self._locations[index])

    def __iter__(self) -> Iterator[bytes]:
        """Read the images one after the other."""
        return map(self._read, self._locations)


@dataclass(frozen=True, slots=True)
class Source:
    """Images with labels (N,) int64, indices into the sorted names `classes`."""

    name: str
    images: Images
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """N."""
        return len(self.images)


class Sources(NamedTuple):
    """The three sources of a benchmark, which have the same classes."""

    real: Source
    synthetic: Source
    test: Source

    @classmethod
    def read(cls, real: Path, synthetic: Path, test: Path, size: int | None) -> "Sources":
        """Find all images. With a `size`, they pass through the common last step. BadInput if the classes differ."""
        found = [read(path) for path in (real, synthetic, test)]
        for source, path in zip(found[1:], (synthetic, test), strict=True):
            if odd := set(source.classes) ^ set(found[0].classes):
                raise BadInput(f"The class {min(odd)!r} is in only one of {real} and {path}. Add or remove it.")
        return cls(*(matched(source, size) if size else source for source in found))


def read(source: Path | str) -> Source:
    """Find the images of a source and the class of each; see the module.

    `source` may end in a pattern, such as data/train-*.parquet. No image is decoded. Links among image files are not
    followed. Raises BadInput if the source cannot be used.
    """
    path = Path(source)
    if not path.exists() and "*" in path.name:
        files = sorted(path.parent.glob(path.name))
    elif path.is_dir():
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        # Parquet files beside tars, as in an export, describe the tars.
        files = _ending(".tar", entries) or _ending(".parquet", entries)
        folders = [entry for entry in entries if entry.is_dir()]
        if files and folders:
            raise BadInput(
                f"{path} holds {files[0].name} and the folder {folders[0].name}. Name the one that you mean."
            )
        if not files:
            return _of_folders(path, folders)
    else:
        files = [path]
    if missing := [file for file in files if not file.is_file()]:
        raise BadInput(f"{missing[0]} is not a file. Give a folder per class, parquet files or WebDataset shards.")
    if files and _ending(".tar", files) == files:
        return _of_tars(path, files)
    if files and _ending(".parquet", files) == files:
        return _of_parquet(path, files)
    raise BadInput(f"{path} cannot be read as images. Give a folder per class, parquet files or WebDataset shards.")


def matched(source: Source, size: int | None = None) -> Source:
    """Pass a source through the common last step of all sources of a benchmark: one way of scaling, one codec.

    Each image becomes RGB, its center is scaled to `size` x `size` pixels (bicubic; None keeps the size), and it is
    saved as a JPEG of quality 75 with 4:2:0 chroma. An image that was a JPEG before keeps traces of that; they are
    faint if its quantization tables and its size stay the same. So real and synthetic images should both come from
    lossless images, or both from one kind of JPEG. Reading an image raises BadInput if it cannot be decoded.
    """

    def read_matched(index: int) -> bytes:
        try:
            with foreign_images():
                picture = as_seen(source.images[index])
        except (OSError, ValueError, SyntaxError) as error:
            what = f"image {index} cannot be decoded ({why(error)})"
            raise BadInput(f"{source.name}: {what}. Fix or remove it.") from None
        if size and picture.size != (size, size):
            picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
        return encode(picture, "jpg")

    return replace(source, images=Images(range(len(source)), read_matched))


def _source(path: Path, images: Images, names: Sequence[str]) -> Source:
    if not names:
        raise BadInput(f"{path} holds no image. Give a source with some.")
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    labels = np.fromiter((number[name] for name in names), dtype=np.int64, count=len(names))
    name = path.stem if path.suffix.lower() in (".parquet", ".tar") else path.resolve().name
    return Source(name, images, labels, tuple(classes))


def _ending(suffix: str, paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() == suffix]


# A folder per class


def _of_folders(path: Path, folders: Sequence[Path]) -> Source:
    files, names = list[Path](), list[str]()
    for folder in folders:
        found = list(_image_files(folder))
        if not found:
            raise BadInput(f"{folder} holds no image. Put images of that class into it, or remove the folder.")
        files += found
        names += [folder.name] * len(found)
    if not files:
        raise BadInput(f"{path} holds no images. Give a folder per class, parquet files or WebDataset shards.")
    return _source(path, Images(files, _read_file), names)


def _image_files(folder: Path) -> Iterator[Path]:
    """Yield the image files below a folder by name. BadInput for a link, which may lead anywhere."""
    if folder.is_symlink():
        raise BadInput(f"{folder} is a link. Replace it by what it points to.")
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() or entry.is_dir():
            yield from _image_files(entry)
        elif entry.suffix.lower() in SUFFIXES and entry.is_file():
            yield entry


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({why(error)}). Fix or remove it.") from None


# Parquet


def _of_parquet(path: Path, files: Sequence[Path]) -> Source:
    words = [_SPLITS.intersection(re.split(r"[^a-z]+", file.stem.lower())) for file in files]
    splits = {"-".join(sorted(found)) for found in words if found}
    if len(splits) > 1:
        raise BadInput(f"{path} holds the splits {' and '.join(sorted(splits))}. Name the files of one of them.")
    chunks, names = list[pa.Array](), list[str]()
    for file in files:
        column, classes = _read_parquet(file)
        chunks += column.chunks
        names += classes
    images = pa.chunked_array(chunks, type=pa.large_binary())

    def read_row(row: int) -> bytes:
        content = images[row].as_py()
        assert isinstance(content, bytes)
        return content

    return _source(path, Images(range(len(images)), read_row), names)


def _read_parquet(file: Path) -> tuple[pa.ChunkedArray, list[str]]:
    """Image bytes (N,) and class names (N,) of one parquet file."""
    try:
        schema = pq.read_schema(file)
        image = next(iter(image_columns(schema)), None)
        label = next((name for name in CLASS_COLUMNS if name in schema.names), None)
        if image is None:
            raise BadInput(f"{file} has no column of image bytes, only {', '.join(schema.names)}. Add one.")
        if label is None:
            wanted, found = ", ".join(CLASS_COLUMNS), ", ".join(schema.names)
            raise BadInput(f"{file} has no column for the class ({wanted}), only {found}. Add or rename one.")
        table = pq.read_table(file, columns=[image, label])
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{file} cannot be read as parquet ({why(error)}). Make or fetch it again.") from None
    images = table[image]
    if pa.types.is_struct(images.type):
        images = pc.struct_field(images, "bytes")
    for name, column in ((image, images), (label, table[label])):
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise BadInput(f"{file}: column {name!r} is empty in row {row}. Every row needs an image and a class.")
    return images.cast(pa.large_binary()), _class_names(file, label, table[label], schema)


def _class_names(file: Path, label: str, column: pa.ChunkedArray, schema: pa.Schema) -> list[str]:
    """Names of the classes (N,): the column's values, or for numbers the names in Hugging Face's part of the schema."""
    values = column.to_pylist()
    known = _hugging_face_names(schema, label)
    if not known or not pa.types.is_integer(column.type):
        return [str(value) for value in values]
    if strange := [value for value in values if not 0 <= value < len(known)]:
        raise BadInput(
            f"{file} has the class {strange[0]} in column {label!r}, but its schema names {len(known)}. Fix one."
        )
    return [known[value] for value in values]


def _hugging_face_names(schema: pa.Schema, label: str) -> list[str]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


# WebDataset


class _Span(NamedTuple):
    path: Path
    offset: int
    num_bytes: int


def _of_tars(path: Path, files: Sequence[Path]) -> Source:
    known = _names_beside(files[0])
    spans, names = list[_Span](), list[str]()
    for file in files:
        for key, span, content in _samples(file):
            label = content.decode("ascii", "backslashreplace").strip()
            if not label.isascii() or not label.isdecimal() or (known and int(label) >= len(known)):
                among = f"one of the {len(known)} classes in run.json" if known else "the number of a class"
                raise BadInput(f"{file}: {key}.cls holds {label[:40]!r}, which is not {among}. Make the shard again.")
            spans.append(span)
            names.append(known[int(label)] if known else str(int(label)))
    return _source(path, Images(spans, _read_span), names)


def _names_beside(shard: Path) -> list[str]:
    """Names of the classes in the run.json beside a shard of ours; empty if there is no such file."""
    try:
        record = json.loads((shard.parent / "run.json").read_bytes())
        names = [str(name) for name in record["classes"]]
        finished = record["stage"] != "generate" or "summary" in record
    except (OSError, ValueError, KeyError, TypeError):
        return []
    if not finished:
        raise BadInput(f"{shard.parent} is not finished. Run the same `curate generate` again to resume it.")
    return names


def _samples(file: Path) -> Iterator[tuple[str, _Span, bytes]]:
    """Yield (key, span of the image, .cls) of each sample of a tar."""

    def members() -> Iterator[tuple[str, str, _Span, bytes]]:
        for name, content in read_tar(stream, MAX_MEMBER_BYTES):
            if isinstance(content, Reject):
                raise BadInput(f"{file}: {f'{name}: ' if name else ''}{content.detail}. Make or fetch it again.")
            folder, _, base = name.rpartition("/")
            stem, _, suffix = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            yield key, suffix.lower(), _Span(file, stream.tell() - len(content), len(content)), content

    with file.open("rb") as stream:
        for key, group in groupby(members(), key=lambda member: member[0]):
            image, label = None, None
            for _, suffix, span, content in group:
                if f".{suffix}" in SUFFIXES:
                    image = span
                elif suffix == "cls":
                    label = content
            if image is None or label is None:
                what = "image" if image is None else ".cls, the number of its class"
                raise BadInput(f"{file}: the sample {key!r} has no {what}. Complete or remove it.")
            yield key, image, label


def _read_span(span: _Span) -> bytes:
    return next(read_spans(span.path, [(span.offset, span.num_bytes)]))
