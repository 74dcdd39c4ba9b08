"""The folder that a stage writes into: one command at a time has it, and what the disk refuses is a sentence.

The lock is the kernel's, on the folder itself: it goes with its process, whatever ends that, and leaves no file behind.
Who only reads takes none and is never kept waiting. Some network file systems cannot lock a folder: there nobody is
kept out.
"""

import errno
import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.errors import BadInput, Incompatible
from pipelines.storage.atomic import CANNOT_LOCK, is_still, make_folder

_REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # full, for all, for this user, for one file
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR),  # not for us to write
    *(errno.EIO, errno.ESTALE),  # failing
)
_SHOWN = 200  # characters of a command line


@contextmanager
def held(folder: Path, called: Path | None = None) -> Iterator[None]:
    """Make `folder` and hold it for this process alone; where nothing came into it, it is removed again.

    Raises Incompatible naming the process that holds it, and BadInput where the disk refuses what is done meanwhile;
    both speak of `called` where the user knows the folder by another name.
    """
    name = called or folder
    with refusals(name):
        lock, is_new = _locked(folder, wait=False, name=name)
        try:
            yield
        finally:
            # After a rename, what is called `folder` now may be another's.
            if is_new and is_still(folder, lock):
                with suppress(OSError):
                    folder.rmdir()
            os.close(lock)


@contextmanager
def awaited(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it as soon as nobody else does: for what whoever comes second can use as it is."""
    with refusals(folder):
        lock, _ = _locked(folder, wait=True, name=folder)
        try:
            yield
        finally:
            os.close(lock)


@contextmanager
def refusals(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into BadInput; other OSErrors are bugs of ours."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        # Where a descriptor was used, the name is a number, or none.
        named = isinstance(error.filename, str | bytes)
        what, at = os.strerror(error.errno), os.fsdecode(error.filename) if named else str(folder)
        if not Path(at).absolute().is_relative_to(folder.absolute()):
            raise BadInput(f"{at}: {what}; once this is mended the same command goes on.") from error
        where = f" ({at})" if at != str(folder) else ""
        raise BadInput(
            f"{folder}: cannot be written, {what}{where}; what is there stays, and once this is mended the same "
            "command goes on."
        ) from error


def _locked(folder: Path, wait: bool, name: Path) -> tuple[int, bool]:
    """Descriptor of the folder, which holds the lock until it is closed, and whether we made the folder."""
    while True:
        is_new = not folder.exists()
        make_folder(folder)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # who made it found nothing to keep, and has just removed it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise Incompatible(f"{name}: {holder} is writing into it; wait for that, or end it.") from None
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                os.close(descriptor)
                raise
        if is_still(folder, descriptor):
            return descriptor, is_new
        os.close(descriptor)  # who held it has just removed or renamed it


def _holder(descriptor: int) -> str:
    """Who has the lock, by process and command; Linux lists all locks with the process and the file."""
    status = os.fstat(descriptor)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == file:
                arguments = Path(f"/proc/{fields[4]}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
                command = "".join(filter(str.isprintable, shlex.join(arguments)))
                return f"process {fields[4]} ({command[:_SHOWN]})"
    except (OSError, IndexError):
        pass  # no Linux, or it has just ended
    return "another process"
