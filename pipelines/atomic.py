"""Files appear whole or not at all: written under a temporary name, synced, renamed; on an object store, put whole."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from pipelines import places
from pipelines.places import Place


@contextmanager
def replacing(path: Place) -> Iterator[Path]:
    """Yield a temporary local path; on success it becomes `path`, on failure it is removed.

    It lies beside `path` to be synced and renamed, or for a store among the system's temporary files to be put there.
    """
    if isinstance(path, UPath):
        with TemporaryDirectory(prefix="curate-") as scratch:
            made = Path(scratch) / path.name
            yield made
            places.put(made, path)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Place, path: Place) -> None:
    """Rename a finished file, its bytes on the disk before its name and its name before we return."""
    if isinstance(path, UPath):
        assert isinstance(temporary, UPath)
        places.move(temporary, path)
        return
    assert isinstance(temporary, Path)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and what is missing above it, their names on the disk when this returns; what is there stays."""
    if path.exists():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def write_json(path: Place, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as .npy under the name given; by way of memory, for NumPy would not say why the disk refuses."""
    encoded = io.BytesIO()
    np.save(encoded, array, allow_pickle=False)
    path.write_bytes(encoded.getbuffer())
