"""The labeled set of real images: a folder of images, or a CSV or parquet of their paths.

Folders in the folder, or a column of labels, give the images classes. With one class or none, the set has no classes:
its images are real, and that is all it says.

The set is small and the user's own. A file in it that is not an image is therefore an error, not a reject as in a
crawl. What file managers leave in folders is no part of it: hidden files and folders, thumbnails, `__MACOSX`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import torch
from torch import Tensor

from pipelines.errors import BadInput, CorruptShard, what_is_wrong, why
from pipelines.images.views import ViewMaker, Views
from pipelines.pool.manifest import read_parquet

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
PATH_COLUMNS = ("path", "file", "filename", "image")
LABEL_COLUMNS = ("label", "class", "class_name", "cls")

_NOT_OURS = {"__MACOSX", "@eaDir"}  # folders of macOS and of network disks; they hold thumbnails and other files


@dataclass(frozen=True)
class Labeled:
    """Decoded images with labels (N,) int64, indices into `classes`.

    Without classes `classes` is empty, all labels are 0, and `without` says why: "photos has no class folders".
    """

    views: Views
    labels: Tensor
    classes: tuple[str, ...]
    sha256: tuple[str, ...]  # of the files, in the order of the labels
    without: str | None = None

    @property
    def digests(self) -> frozenset[str]:
        """The sha256 of all files."""
        return frozenset(self.sha256)


def read(source: Path, decoder: ViewMaker, classes: Sequence[str] | None = None) -> Labeled:
    """Read and decode a labeled set. A validation set is read with the `classes` of the labeled set, in their order.

    Raises BadInput, which names the file, folder or column that cannot be used.
    """
    named = files(source)
    found = sorted({label for _, label in named if label is not None})
    without = None
    if classes is not None:
        _check_classes(source, found, classes)
    elif len(found) > 1:
        classes = found
    else:
        classes, without = (), f"{source} has {_what_it_has(source, named, found)}"
    try:
        data = [path.read_bytes() for path, _ in named]
    except OSError as error:
        raise BadInput(f"{source}: {error.filename} cannot be read ({why(error)}). Fix or remove it.") from None
    try:
        with ThreadPoolExecutor() as threads:
            views = decoder.batch([str(path) for path, _ in named], data, threads)
    except CorruptShard as error:
        raise BadInput(f"{source}: {what_is_wrong(error)}. Fix or remove the file.") from None
    number: dict[str | None, int] = {name: i for i, name in enumerate(classes)}  # empty without classes
    labels = torch.tensor([number.get(label, 0) for _, label in named])
    digests = tuple(hashlib.sha256(content).hexdigest() for content in data)
    return Labeled(views, labels, tuple(classes), digests, without)


def _what_it_has(source: Path, named: Sequence[tuple[Path, str | None]], found: Sequence[str]) -> str:
    """What a set without classes has instead; a folder too many above the classes is pointed out."""
    if not found:
        return "no class folders" if source.is_dir() else "no label column"
    only = f"only the class {found[0]!r}"
    if source.is_dir():
        inside = {path.relative_to(source / found[0]).parts[0] for path, _ in named if path.parent.parent != source}
        if len(inside) > 1:
            only += f" (for the classes in it, give --labeled {source / found[0]})"
    return only


def _check_classes(source: Path, found: Sequence[str], classes: Sequence[str]) -> None:
    """Raise BadInput unless the classes of a validation set are those of the labeled set, or some of them."""
    if not classes:
        raise BadInput(
            f"--validation {source}: the labeled set has no classes, so there are no labels to compare. Leave out "
            "--validation, or give the labeled set one folder per class."
        )
    if not found:
        raise BadInput(f"{source} has no classes. Give it the class folders of the labeled set: {', '.join(classes)}.")
    if unknown := set(found) - set(classes):
        raise BadInput(
            f"{source} has the class {min(unknown)!r}, which is not in the labeled set ({', '.join(classes)}). Add it "
            "there, or remove it here."
        )


def files(source: Path) -> list[tuple[Path, str | None]]:
    """List the files of a labeled set, each with its class, None where the set names none.

    Raises BadInput if the source cannot be used.
    """
    return _folders(source) if source.is_dir() else _listed(source)


def _folders(source: Path) -> list[tuple[Path, str | None]]:
    loose = sorted(path for path in source.iterdir() if path.is_file() and _is_image(path))
    images = {
        folder.name: sorted(_images_below(folder))
        for folder in sorted(source.iterdir())
        if folder.is_dir() and not _is_hidden(folder)
    }
    if not loose and not any(images.values()):
        raise BadInput(
            f"{source} holds no image ({', '.join(sorted(SUFFIXES))}). Put real images into it, best in one folder per "
            f"class, as in {source}/cat/1.jpg."
        )
    if not loose:
        for name, found in images.items():
            if not found:
                raise BadInput(
                    f"{source / name} holds no image. Put images of that class into it, or remove the folder."
                )
    elif named := next((name for name, found in images.items() if found), None):
        raise BadInput(
            f"{loose[0]} is not in a class folder, but {images[named][0]} is. Move it into one or remove it; or, for "
            f"images without classes, move all of them out of their folders."
        )
    return [(path, None) for path in loose] + [(path, name) for name, found in images.items() for path in found]


def _images_below(folder: Path) -> Iterator[Path]:
    """The images in a folder and in the folders in it."""
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if _is_image(path) and path.is_file() and not any(map(_is_hidden, inside.parents)):
            yield path


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not _is_hidden(path)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name in _NOT_OURS


def _listed(source: Path) -> list[tuple[Path, str | None]]:
    if not source.exists():
        raise BadInput(f"{source} does not exist. Give a folder of real images, or a CSV or parquet that lists them.")
    if source.suffix == ".parquet":
        table = read_parquet(source)
    elif source.suffix == ".csv":
        try:
            table = pyarrow.csv.read_csv(source)
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{source} is not a CSV with a header ({why(error)}). Fix it, or give a parquet.") from None
    else:
        raise BadInput(f"{source} is not a labeled set. Give a folder of real images, a .csv or a .parquet.")
    paths = _column(source, table, PATH_COLUMNS)
    if not paths:
        raise BadInput(f"{source} has no rows. List the labeled images in it.")
    # Paths are relative to the list, so that a labeled set can be moved as a whole.
    if not set(LABEL_COLUMNS) & set(table.column_names):
        return [(source.parent / path, None) for path in paths]
    labels = _column(source, table, LABEL_COLUMNS)
    label_of: dict[str, str] = {}
    for path, label in zip(paths, labels, strict=True):
        if (other := label_of.setdefault(path, label)) != label:
            raise BadInput(f"{source} lists {path} both as {other!r} and as {label!r}. Remove one of the rows.")
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
