"""The small labeled set of real images: a folder per class, or a CSV or parquet of path and label.

It is small and somebody's own: unlike in a crawl, a file that is not an image is an error here, not a reject.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import torch
from torch import Tensor

from pipelines.errors import BadInput, CorruptShard
from pipelines.images.views import Decoder, Views
from pipelines.pool.manifest import read_parquet

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
PATH_COLUMNS = ("path", "file", "filename", "image")
LABEL_COLUMNS = ("label", "class", "class_name", "cls")


@dataclass(frozen=True)
class Labeled:
    """Decoded images with labels (N,) int64, indices into `classes`; `digests` are the sha256 of the files."""

    views: Views
    labels: Tensor
    classes: tuple[str, ...]
    digests: frozenset[str]


def read(source: Path, decoder: Decoder, classes: Sequence[str] | None = None) -> Labeled:
    """Read and decode a labeled set; `classes` fixes their order (a validation set follows the labeled one).

    Raises BadInput naming the file, folder or column that cannot be used.
    """
    named = files(source)
    found = tuple(sorted({label for _, label in named}))
    if classes is None:
        if len(found) < 2:
            raise BadInput(f"{source}: holds the class {found[0]!r} alone; a classifier needs at least two.")
        classes = found
    elif unknown := set(found) - set(classes):
        raise BadInput(f"{source}: class {min(unknown)!r} is not among the labeled ones ({', '.join(classes)}).")
    try:
        data = [path.read_bytes() for path, _ in named]
    except OSError as error:
        raise BadInput(f"{source}: {error.filename}: cannot be read ({error.strerror}).") from None
    try:
        with ThreadPoolExecutor() as threads:
            views = decoder.batch([str(path) for path, _ in named], data, threads)
    except CorruptShard as error:
        raise BadInput(f"{source}: {error.args[0].split(';')[0]}; mend or remove the file.") from None
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([number[label] for _, label in named])
    digests = frozenset(hashlib.sha256(content).hexdigest() for content in data)
    return Labeled(views, labels, tuple(classes), digests)


def files(source: Path) -> list[tuple[Path, str]]:
    """Files of a labeled set, each with its class; BadInput where the source cannot be used."""
    return _folders(source) if source.is_dir() else _listed(source)


def _folders(source: Path) -> list[tuple[Path, str]]:
    named = []
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not files:
            raise BadInput(f"{folder}: holds no image; put some of that class into it or remove the folder.")
        named += [(path, folder.name) for path in files]
    if not named:
        raise BadInput(f"{source}: holds no class; it must have one folder of images per class ({source}/cat/1.jpg).")
    if loose := sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()):
        raise BadInput(f"{loose[0]}: lies beside the classes' folders; move it into the one of its class, or away.")
    return named


def _listed(source: Path) -> list[tuple[Path, str]]:
    if not source.exists():
        raise BadInput(f"{source}: does not exist; give a folder with one folder per class, or a CSV or parquet.")
    if source.suffix == ".parquet":
        table = read_parquet(source)
    elif source.suffix == ".csv":
        try:
            table = pyarrow.csv.read_csv(source)
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{source}: is not a CSV with a header ({error}).") from None
    else:
        raise BadInput(f"{source}: is neither a folder nor a .csv nor a .parquet of path and label.")
    paths = _column(source, table, PATH_COLUMNS)
    labels = _column(source, table, LABEL_COLUMNS)
    if not paths:
        raise BadInput(f"{source}: has no row.")
    label_of: dict[str, str] = {}
    for path, label in zip(paths, labels, strict=True):
        if (other := label_of.setdefault(path, label)) != label:
            raise BadInput(f"{source}: lists {path} both as {other!r} and as {label!r}.")
    # Paths are relative to the list, so that a labeled set can be moved as a whole.
    return [(source.parent / path, label) for path, label in zip(paths, labels, strict=True)]


def _column(source: Path, table: pa.Table, names: tuple[str, ...]) -> list[str]:
    for name in names:
        if name in table.column_names:
            values = table[name].to_pylist()
            for row, value in enumerate(values, start=1):
                if value is None or not str(value).strip():
                    raise BadInput(f"{source}: column {name!r} has an empty cell in row {row}.")
                if isinstance(value, bytes):  # what Arrow makes of a column that is not UTF-8
                    raise BadInput(f"{source}: column {name!r} is not text in UTF-8; save the list as UTF-8.")
            return [str(value) for value in values]
    raise BadInput(f"{source}: has no column {names[0]!r} (or {', '.join(names[1:])}); it has {table.column_names}.")
