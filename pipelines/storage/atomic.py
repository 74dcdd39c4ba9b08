"""Files appear whole or not at all: written under a temporary name, synced, renamed; on an object store, put whole."""

import errno
import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from pipelines.storage import locations
from pipelines.storage.json_text import to_json
from pipelines.storage.locations import Place

CANNOT_LOCK = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems


@contextmanager
def replacing(path: Place) -> Iterator[Path]:
    """Yield a temporary local path; on success it becomes `path`, on failure it is removed.

    It lies beside `path` to be synced and renamed, or for a store among the system's temporary files to be put there.
    Who replaces the same file meanwhile waits; what a killed process left under the temporary name is overwritten.
    """
    if isinstance(path, UPath):
        with TemporaryDirectory(prefix="curate-") as scratch:
            made = Path(scratch) / path.name
            yield made
            locations.put(made, path)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = _alone(temporary)
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _alone(temporary: Path) -> int:
    """Descriptor of a temporary file, which keeps others from it until it is closed."""
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                os.close(descriptor)
                raise
        if is_still(temporary, descriptor):
            return descriptor
        os.close(descriptor)  # who had it has just renamed or removed it


def is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` is the name of what was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def publish(temporary: Place, path: Place) -> None:
    """Rename a finished file, its bytes on the disk before its name and its name before we return."""
    if isinstance(path, UPath):
        assert isinstance(temporary, UPath)
        locations.move(temporary, path)
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
        temporary.write_text(to_json(value) + "\n", encoding="utf-8")


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as .npy under the name given; by way of memory, for NumPy would not say why the disk refuses."""
    encoded = io.BytesIO()
    np.save(encoded, array, allow_pickle=False)
    path.write_bytes(encoded.getbuffer())
