"""Finds the files of a labeled set and their classes; nothing is decoded here.

    folder           images, best in one folder per class; an image is known by its bytes, never by its name
    list             a CSV or parquet of paths, relative to the list, with or without labels
    parquet          of images themselves, as Hugging Face writes it: a column of bytes, or of bytes and paths

A class is a text, as it is written: 007 stays 007. Names are normalized to Unicode's NFC, because macOS writes others.
What file managers leave in folders is no part of a set: hidden files and folders, thumbnails, `__MACOSX`.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TypeAlias

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.errors import BadInput, why
from pipelines.images.formats import FORMATS, describe_other, sniff
from pipelines.pool.manifest import read_parquet

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2"}
PATH_COLUMNS = ("path", "file", "filename", "image")
LABEL_COLUMNS = ("label", "class", "class_name", "cls")

NOT_OURS = {"__MACOSX", "@eaDir"}  # folders of macOS and of network disks; they hold thumbnails and other files
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
_PHOTOGRAPHS = ("heic", "jxl")  # formats of photographs that are not decoded
_HEAD_BYTES = 1024  # enough to know a format
_PROBLEMS_SHOWN = 10
_NOT_BYTES = ("path", "file", "filename")  # columns of names, even where they are stored as bytes
_DIGITS = re.compile(r"(\d{1,18})")


@dataclass(frozen=True, order=True, slots=True)
class Embedded:
    """An image within a parquet file. It is read as a path is."""

    name: str  # the parquet file, the row, and the name of the image if it has one
    content: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        """The bytes of the image."""
        return self.content


File: TypeAlias = Path | Embedded


@dataclass(frozen=True)
class Found:
    """The files of a labeled set, each with its class, None where the set names none; and what is wrong with it."""

    files: Sequence[tuple[File, str | None]]
    problems: Sequence[str] = ()


def find(source: Path) -> Found:
    """Find the files of a labeled set. Raises BadInput if it cannot be read at all."""
    return _folders(source) if source.is_dir() else _listed(source)


def refusal(source: Path, problems: Sequence[str]) -> BadInput:
    """The error that names all problems of a labeled set, the first ten in full."""
    problems = list(dict.fromkeys(problems))  # a list may name a file twice
    if len(problems) == 1:
        return BadInput(f"{problems[0]}.")
    shown = [f"  {problem}." for problem in problems[:_PROBLEMS_SHOWN]]
    if more := len(problems) - len(shown):
        shown.append(f"  And {more} more.")
    return BadInput("\n".join((f"{source}: {len(problems)} problems.", *shown)))


def in_natural_order(names: set[str]) -> list[str]:
    """Sort names as people do: by their text, and numbers in it by their value, so that 2 comes before 10."""
    return sorted(names, key=lambda name: ([int(part) if i % 2 else part for i, part in _parts(name)], name))


def _parts(name: str) -> Iterator[tuple[int, str]]:
    return enumerate(_DIGITS.split(name))  # every second part is a number


# Folders


def images_below(folder: Path) -> tuple[list[Path], list[str]]:
    """The images in a folder and in the folders in it, sorted, and what is wrong with others that are named so."""
    paths = (path for path in sorted(folder.rglob("*")) if not _is_hidden(path.relative_to(folder)))
    return _images(path for path in paths if path.is_file())


def _images(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    images, problems = list[Path](), list[str]()
    for path in paths:
        problem = _problem(path)
        if problem is None:
            images.append(path)
        elif problem:
            problems.append(problem)
    return images, problems


def _problem(path: Path) -> str | None:
    """What is wrong with a file, as far as its first bytes tell; empty for a file that nobody calls an image."""
    is_named = path.suffix.lower() in SUFFIXES
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        return f"{path} cannot be read ({why(error)}). Fix or remove it" if is_named else ""
    kind = sniff(head)
    if kind in FORMATS:
        return None
    if kind in _PHOTOGRAPHS:
        return f"{path} is {kind}, which curate does not decode. Save it as JPEG or PNG"
    what = kind or (describe_other(head) if head else "0 bytes")
    return f"{path} is not an image ({what}). Fix or remove it" if is_named else ""


def _is_hidden(inside: Path) -> bool:
    """Whether a path within a labeled set, or a folder on its way, is none of ours."""
    return any(part.startswith(".") or part in NOT_OURS for part in inside.parts)


def _folders(source: Path) -> Found:
    paths = [path for path in sorted(source.iterdir()) if not _is_hidden(path.relative_to(source))]
    folders = [path for path in paths if path.is_dir()]
    loose, problems = _images(path for path in paths if path.is_file())
    images = dict[Path, list[Path]]()
    for folder in folders:
        images[folder], wrong = images_below(folder)
        problems += wrong
        if not images[folder] and not wrong and not loose:
            problems.append(f"{folder} holds no image. Put images of that class into it, or remove the folder")
        if not _is_line(folder.name):
            problems.append(f"{folder}: its name is not a line of UTF-8. Rename it")
    first = next((found[0] for found in images.values() if found), None)
    if first and loose:
        problems += [
            f"{path} is not in a class folder, but {first} is. Move it into one or remove it; or, for images without "
            "classes, move all of them out of their folders"
            for path in loose
        ]
    elif first:
        _refuse_splits(source, images)
    elif not loose and len(problems) == len(folders):  # all of them empty
        raise BadInput(_holds_none(source))
    in_classes = ((path, _normal(folder.name)) for folder, found in images.items() for path in found)
    return Found([*((path, None) for path in loose), *in_classes], problems)


def _holds_none(source: Path) -> str:
    if parquet := next((path for path in sorted(source.rglob("*.parquet")) if _is_of_images(path)), None):
        return f"{source} holds no image, but parquet files. Give one of them, such as {parquet}."
    return (
        f"{source} holds no image ({', '.join(sorted(SUFFIXES))}). Put real images into it, best in one folder per "
        f"class, as in {source}/cat/1.jpg."
    )


def _refuse_splits(source: Path, images: Mapping[Path, Sequence[Path]]) -> None:
    """Raise BadInput where the folders are the parts of a data set, with the classes in them."""
    parts = [folder for folder, found in images.items() if found]
    are_splits = len(parts) > 1 and all(folder.name.lower() in _SPLITS for folder in parts)
    if are_splits and all(path.parent != folder for folder in parts for path in images[folder]):
        names = ", ".join(folder.name for folder in parts)
        raise BadInput(
            f"{source} holds {names}: the parts of a data set, not its classes. Give one of them, such as --labeled "
            f"{quote(str(parts[0]))}."
        )


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_line(name: str) -> bool:
    return _is_utf8(name) and len(name.splitlines()) == 1


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


# Lists, and parquet files with the images in them


def _listed(source: Path) -> Found:
    if not source.exists():
        raise BadInput(f"{source} does not exist. Give a folder of real images, or a CSV or parquet that lists them.")
    if source.suffix == ".parquet":
        table = read_parquet(source)
        column = next((name for name in table.column_names if _holds_images(table.schema.field(name))), None)
    elif source.suffix == ".csv":
        table, column = _read_csv(source), None
    else:
        raise BadInput(f"{source} is not a labeled set. Give a folder of real images, a .csv or a .parquet.")
    problems = list[str]()
    if column is None:
        # Paths are relative to the list, so that a labeled set can be moved as a whole.
        paths = _texts(source, table, PATH_COLUMNS, problems)
        files: list[File | None] = [None if path is None else source.parent / path for path in paths]
    else:
        files = list(_embedded(source, table[column], problems))
    if not files:
        raise BadInput(f"{source} has no rows. List the labeled images in it.")
    has_labels = bool(set(LABEL_COLUMNS) & set(table.column_names))
    labels = _texts(source, table, LABEL_COLUMNS, problems) if has_labels else [None] * len(files)
    label_of = dict[File | None, str | None]()
    for file, label in zip(files, labels, strict=True):
        if file and label and (other := label_of.setdefault(file, label)) != label:
            problems.append(f"{source} lists {file} both as {other!r} and as {label!r}. Remove one of the rows")
    return Found([(file, label) for file, label in zip(files, labels, strict=True) if file], problems)


def _read_csv(source: Path) -> pa.Table:
    """Read a CSV with all columns of interest as text: numbers keep their zeros, `true` its case."""
    as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys((*PATH_COLUMNS, *LABEL_COLUMNS), pa.binary()))
    try:
        return pyarrow.csv.read_csv(source, convert_options=as_text)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{source} is not a CSV with a header ({why(error)}). Fix it, or give a parquet.") from None


def _texts(source: Path, table: pa.Table, names: Sequence[str], problems: list[str]) -> list[str | None]:
    """The texts of the first column that there is; None, and a problem, for a row that has none."""
    name = next((name for name in names if name in table.column_names), None)
    if name is None:
        found = ", ".join(table.column_names)
        raise BadInput(
            f"{source} has no column {names[0]!r} (or {', '.join(names[1:])}), only {found}. Add that column."
        )
    classes = _class_names(table, name)
    texts = list[str | None]()
    for row, value in enumerate(table[name].to_pylist(), start=1):
        if classes and isinstance(value, int):
            value = classes[value] if 0 <= value < len(classes) else None  # -1 is an unlabeled image
        if isinstance(value, bytes):
            value = value.decode("utf-8", "surrogateescape")
        text = "" if value is None else str(value)
        if names is LABEL_COLUMNS:
            text = _normal(text.strip())
        problem = "is empty" if not text.strip() else "is not UTF-8 text" if not _is_utf8(text) else None
        if problem is None and len(text.splitlines()) > 1:
            problem = "is more than a line"
        if problem:
            problems.append(f"{source}: column {name!r} {problem} in row {row}. Correct it, or remove the row")
        texts.append(None if problem else text)
    return texts


def _class_names(table: pa.Table, name: str) -> list[str]:
    """Names of the classes by number, as Hugging Face's datasets keeps them beside a table; empty without."""
    try:
        features = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(each) for each in features[name]["names"]]
    except (KeyError, ValueError, TypeError):
        return []


def _holds_images(column: pa.Field) -> bool:
    """Whether a column of a parquet file holds images: bytes, or bytes and paths."""
    if pa.types.is_struct(column.type):
        return bool(column.type.get_field_index("bytes") >= 0)
    is_bytes = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
    return is_bytes and column.name not in _NOT_BYTES and column.name not in LABEL_COLUMNS


def _is_of_images(path: Path) -> bool:
    try:
        return any(map(_holds_images, pq.read_schema(path)))
    except (pa.ArrowException, OSError):
        return False


def _embedded(source: Path, column: pa.ChunkedArray, problems: list[str]) -> Iterator[File | None]:
    for row, value in enumerate(column.to_pylist(), start=1):
        parts = value if isinstance(value, dict) else {"bytes": value}
        content, path = parts.get("bytes"), parts.get("path")
        if content:
            yield Embedded(f"{source}, row {row}" + (f" ({path})" if path else ""), content)
        elif path:
            yield source.parent / str(path)
        else:
            problems.append(f"{source}, row {row}, holds no image. Remove it")
            yield None
