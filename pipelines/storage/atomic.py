"""Atomic writes: a file appears complete or not at all.

On a disk it is written under a temporary name, synced and renamed; to an object store it is uploaded as a whole.
"""

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

from pipelines.storage import locations
from pipelines.storage.json_text import to_json
from pipelines.storage.locations import Location

CANNOT_LOCK = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems


@contextmanager
def replacing(path: Location) -> Iterator[Path]:
    """Yield a temporary local path; on success it becomes `path`, on failure it is removed.

    On a disk it is beside `path`; for a store it is in the system's temporary folder. Two processes that replace the
    same file take turns. What a killed process left under the temporary name is overwritten.
    """
    if not isinstance(path, Path):
        with TemporaryDirectory(prefix="curate-") as scratch:
            made = Path(scratch) / path.name
            yield made
            locations.put(made, path)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = _open_exclusively(temporary)
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _open_exclusively(temporary: Path) -> int:
    """Open a temporary file and return its descriptor, which locks others out until it is closed."""
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
        os.close(descriptor)  # the previous holder has just renamed or removed it


def is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the file or folder behind an open `descriptor`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def publish(temporary: Location, path: Location) -> None:
    """Rename a finished file. Its content is on the disk before its new name is, and that before this returns."""
    if not isinstance(path, Path):
        assert not isinstance(temporary, Path)
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


def make_folder(path: Location) -> None:
    """Make a folder and its missing parents, synced to the disk; keep one that exists. A store has no folders."""
    if not isinstance(path, Path) or path.exists():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def write_json(path: Location, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(to_json(value) + "\n", encoding="utf-8")


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as .npy to exactly `path`; through memory, because NumPy hides why a disk refuses a write."""
    encoded = io.BytesIO()
    np.save(encoded, array, allow_pickle=False)
    path.write_bytes(encoded.getbuffer())
