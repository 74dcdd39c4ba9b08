"""The labeled set of real images: one folder per class, or a CSV or parquet of path and label.

It is small and the user's own. A file in it that is not an image is therefore an error, not a reject as in a crawl.
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

from pipelines.errors import BadInput, CorruptShard, what_is_wrong, why
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
    """Read and decode a labeled set. A validation set is read with the `classes` of the labeled set, in their order.

    Raises BadInput, which names the file, folder or column that cannot be used.
    """
    named = files(source)
    found = tuple(sorted({label for _, label in named}))
    if classes is None:
        if len(found) < 2:
            raise BadInput(f"{source} has only the class {found[0]!r}. Add another: a classifier needs two.")
        classes = found
    elif unknown := set(found) - set(classes):
        raise BadInput(
            f"{source} has the class {min(unknown)!r}, which is not in the labeled set ({', '.join(classes)}). Add it "
            "there, or remove it here."
        )
    try:
        data = [path.read_bytes() for path, _ in named]
    except OSError as error:
        raise BadInput(f"{source}: {error.filename} cannot be read ({why(error)}). Fix or remove it.") from None
    try:
        with ThreadPoolExecutor() as threads:
            views = decoder.batch([str(path) for path, _ in named], data, threads)
    except CorruptShard as error:
        raise BadInput(f"{source}: {what_is_wrong(error)}. Fix or remove the file.") from None
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([number[label] for _, label in named])
    digests = frozenset(hashlib.sha256(content).hexdigest() for content in data)
    return Labeled(views, labels, tuple(classes), digests)


def files(source: Path) -> list[tuple[Path, str]]:
    """List the files of a labeled set, each with its class. BadInput if the source cannot be used."""
    return _folders(source) if source.is_dir() else _listed(source)


def _folders(source: Path) -> list[tuple[Path, str]]:
    named = []
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not files:
            raise BadInput(f"{folder} holds no image. Put images of that class into it, or remove the folder.")
        named += [(path, folder.name) for path in files]
    if not named:
        raise BadInput(f"{source} has no class folders. Make one folder of images per class, as in {source}/cat/1.jpg.")
    if loose := sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()):
        raise BadInput(f"{loose[0]} is not in a class folder. Move it into one, or remove it.")
    return named


def _listed(source: Path) -> list[tuple[Path, str]]:
    if not source.exists():
        raise BadInput(f"{source} does not exist. Give a folder with one folder per class, or a CSV or parquet.")
    if source.suffix == ".parquet":
        table = read_parquet(source)
    elif source.suffix == ".csv":
        try:
            table = pyarrow.csv.read_csv(source)
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{source} is not a CSV with a header ({why(error)}). Fix it, or give a parquet.") from None
    else:
        raise BadInput(f"{source} is not a labeled set. Give a folder with one folder per class, a .csv or a .parquet.")
    paths = _column(source, table, PATH_COLUMNS)
    labels = _column(source, table, LABEL_COLUMNS)
    if not paths:
        raise BadInput(f"{source} has no rows. List the labeled images in it.")
    label_of: dict[str, str] = {}
    for path, label in zip(paths, labels, strict=True):
        if (other := label_of.setdefault(path, label)) != label:
            raise BadInput(f"{source} lists {path} both as {other!r} and as {label!r}. Remove one of the rows.")
    # Paths are relative to the list, so that a labeled set can be moved as a whole.
    return [(source.parent / path, label) for path, label in zip(paths, labels, strict=True)]


def _column(source: Path, table: pa.Table, names: tuple[str, ...]) -> list[str]:
    for name in names:
        if name in table.column_names:
            values = table[name].to_pylist()
            for row, value in enumerate(values, start=1):
                if value is None or not str(value).strip():
                    raise BadInput(f"{source}: column {name!r} is empty in row {row}. Fill it in, or remove the row.")
                if isinstance(value, bytes):  # Arrow reads a column that is not UTF-8 as bytes
                    raise BadInput(f"{source}: column {name!r} is not UTF-8 text. Save the list as UTF-8.")
            return [str(value) for value in values]
    found = ", ".join(table.column_names)
    raise BadInput(f"{source} has no column {names[0]!r} (or {', '.join(names[1:])}), only {found}. Add that column.")
