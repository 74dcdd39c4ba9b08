"""Locks on the folder that a stage writes into, and one-sentence errors for what the disk refuses.

The lock is the kernel's, on the folder itself: it ends with its process, however that ends, and leaves no file behind.
Commands that only read take no lock and never wait. Some network file systems cannot lock a folder; there, nothing
keeps two commands apart.
"""

import errno
import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.errors import Incompatible, Refused
from pipelines.storage.atomic import CANNOT_LOCK, is_still, make_folder

_REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # full: the disk, the user's quota, the limit for one file
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR),  # not writable
    *(errno.EIO, errno.ESTALE),  # failing
)
_SHOWN = 200  # characters of a command line


@contextmanager
def held(folder: Path, called: Path | None = None) -> Iterator[None]:
    """Make `folder` and lock it for this process; remove it at the end if this made it and it is empty.

    Raises Incompatible with the name of the process that holds it, and Refused if the disk refuses anything that the
    block does. Both messages say `called` instead, if the user knows the folder by another name.
    """
    name = called or folder
    with refusals(name):
        lock, is_new = _locked(folder, wait=False, name=name)
        try:
            yield
        finally:
            # After a rename, another process may own what is called `folder` now.
            if is_new and is_still(folder, lock):
                with suppress(OSError):
                    folder.rmdir()
            os.close(lock)


@contextmanager
def awaited(folder: Path) -> Iterator[None]:
    """Make `folder` and lock it, after waiting for its holder: for results that the second process can just use."""
    with refusals(folder):
        lock, _ = _locked(folder, wait=True, name=folder)
        try:
            yield
        finally:
            os.close(lock)


@contextmanager
def refusals(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into Refused. Other OSErrors pass: they are bugs in curate."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        # If the call was made on a descriptor, the file name is a number or None.
        named = isinstance(error.filename, str | bytes)
        what, at = os.strerror(error.errno), os.fsdecode(error.filename) if named else str(folder)
        if not Path(at).absolute().is_relative_to(folder.absolute()):
            raise Refused(f"{at}: {what}. Fix this, then run the same command again to resume.") from error
        where = f" ({at})" if at != str(folder) else ""
        raise Refused(
            f"{folder}: cannot be written, {what}{where}. What is there is kept; fix this, then run the same command "
            "again to resume."
        ) from error


def _locked(folder: Path, wait: bool, name: Path) -> tuple[int, bool]:
    """Lock a folder; return its descriptor, which holds the lock until it is closed, and whether the folder is new."""
    while True:
        is_new = not folder.exists()
        make_folder(folder)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # the process that made it left it empty, and has just removed it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise Incompatible(f"{name}: {holder} is writing into it; wait for it to finish, or stop it.") from None
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                os.close(descriptor)
                raise
        if is_still(folder, descriptor):
            return descriptor, is_new
        os.close(descriptor)  # the previous holder has just removed or renamed it


def _holder(descriptor: int) -> str:
    """Process and command that hold the lock; Linux lists all locks with process and file."""
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
        pass  # not Linux, or the process has just ended
    return "another process"
