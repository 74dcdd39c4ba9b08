"""Foreign tar archives, read with suspicion: no archive raises, hangs or takes all memory.

Python's tarfile takes 30 µs a member, which is more than hashing a small image costs, so plain headers, nearly all of
them, are read here. Of the others it reads the block alone: what it does with the extensions before one (a call in a
call for each, their size taken on trust, an expression quadratic in theirs) can be made to take hours or all memory.
"""

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pipelines.images.rejects import Reason, Reject

BLOCK = 512
MAX_MEMBER_BYTES = 8**11 - 1  # what the size field of a USTAR header can say
ZEROS = bytes(BLOCK)
BUFFER_BYTES = 1 << 20
BLANK_CHECKSUM = b" " * 8  # the checksum field, as it counts itself
_MAX_EXTENSIONS = 16  # before one member
_MAX_EXTENSION_BYTES = 1 << 20  # long names and pax headers; a hostile size must not become an allocation
_EXTENSION_TYPES = (b"L", b"K", b"x", b"g", b"X")
_MAX_NAME = 4096  # bytes, as of a path on Linux
_ADLER_PRIME = 65521
_MAX_OFFSET = 1 << 62  # what any file system can address
_WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)  # whatever size
_SPARSE_GOES_ON, _SPARSE_MAP_GOES_ON = 482, 504  # flags in a GNU sparse header, and in the blocks after it
_NAMELESS = "(no name)"
_UNSAFE = "absolute, empty, endless, or with .. or control characters in it"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Member(NamedTuple):
    """A file in a foreign tar: its name, and its bytes or why they cannot be had."""

    name: str
    content: bytes | Reject


def read_tar(stream: BinaryIO, max_bytes: int) -> Iterator[Member]:
    """Yield the files of a tar in order, folders left out; whatever the archive holds, nothing is raised for it.

    With each file that can be had, the stream stands at the end of its bytes.
    A file that is cut, too large, not regular or unsafely named comes as a Reject. Where the archive ends
    without its end mark, or goes on with something else than a header, a last Member without a name says so.
    """
    position = 0
    while True:
        block = stream.read(BLOCK)
        if block == ZEROS:
            return
        if len(block) < BLOCK:
            what = "ends without its end mark" if position or block else "is empty"
            yield Member("", Reject(Reason.INCOMPLETE_ARCHIVE, f"the archive {what}, at byte {position}"))
            return
        header = _plain_header(block) or _any_header(stream, block)
        if header is None:
            yield Member("", Reject(Reason.INCOMPLETE_ARCHIVE, f"no tar header at byte {position}"))
            return
        name, size, start, kind = header
        name = name or _NAMELESS
        start += position
        position = start + size + -size % BLOCK
        if kind == "folder":
            pass
        elif kind == "other":
            yield Member(name, Reject(Reason.NOT_A_FILE, "a link, a device or another special entry of the archive"))
        elif size > max_bytes:
            yield Member(name, Reject(Reason.TOO_MANY_BYTES, f"{size} bytes, over the limit of {max_bytes}"))
        else:
            content = stream.read(size)
            if len(content) < size:
                detail = f"the archive is cut {len(content)} bytes into this file of {size}"
                yield Member(name, Reject(Reason.INCOMPLETE_ARCHIVE, detail))
                return
            if is_unsafe(name):
                yield Member(name, Reject(Reason.UNSAFE_NAME, _UNSAFE))
            else:
                yield Member(name, content)
            stream.read(-size % BLOCK)
            continue
        stream.seek(position)


class _Header(NamedTuple):
    name: str
    size: int  # of the data
    start: int  # of the data, counted from the header
    kind: str  # "file", "folder" or "other"


def _plain_header(block: bytes) -> _Header | None:
    """Read the header of a regular file with a short name; None where it is anything else."""
    name = block[: block.index(0)] if 0 in block[:100] else block[:100]
    if block[156] not in b"0\0" or name.endswith(b"/"):
        return None
    try:
        size = int(block[124:136].rstrip(b" \0"), 8)
        checksum = int(block[148:156].strip(b" \0"), 8)
    except ValueError:
        return None
    # The checksum counts its own field as blanks. Adler-32's lower half is one more than the sum of all bytes, modulo
    # a prime, at a tenth of what sum() takes.
    expected = checksum - sum(BLANK_CHECKSUM) + sum(block[148:156])
    if size < 0 or (expected + 1) % _ADLER_PRIME != zlib.adler32(block) & 0xFFFF:
        return None
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].rstrip(b"\0") + b"/" + name
    return _Header(_text(name), size, BLOCK, "file")


def _any_header(stream: BinaryIO, block: bytes) -> _Header | None:
    """Read what may come before a member (long names, pax records) and then its own header; None if that is neither.

    The stream stands behind `block`, and is left at the member's data.
    """
    start, records = BLOCK, dict[bytes, bytes]()
    for _ in range(_MAX_EXTENSIONS):
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return None
        if info.type not in _EXTENSION_TYPES:
            return _extended(stream, block, info, start, records)
        if not 0 <= info.size <= _MAX_EXTENSION_BYTES:
            return None
        extension = stream.read(info.size + -info.size % BLOCK)[: info.size]
        if info.type == b"L":
            records[b"path"] = extension.partition(b"\0")[0]
        elif info.type in (b"x", b"X"):
            records |= _pax_records(extension)
        # The rest says nothing that we ask for: where links lead, and what shall go for all members to come.
        block = stream.read(BLOCK)
        start += info.size + -info.size % BLOCK + BLOCK
    return None


def _extended(
    stream: BinaryIO, block: bytes, info: tarfile.TarInfo, start: int, records: dict[bytes, bytes]
) -> _Header | None:
    """Put together a header and what was said before it."""
    try:
        size = int(records.get(b"size", info.size))
    except ValueError:
        return None
    if not 0 <= size <= _MAX_OFFSET:
        return None
    path = records.get(b"GNU.sparse.name", records.get(b"path"))
    name = _text(os.fsencode(info.name) if path is None else path)
    is_sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.sparse.") for key in records)
    more = info.type == tarfile.GNUTYPE_SPARSE and block[_SPARSE_GOES_ON]
    while more:  # blocks with the rest of the map; the data follows as it is stored, without its holes
        block = stream.read(BLOCK)
        start += len(block)
        more = len(block) == BLOCK and block[_SPARSE_MAP_GOES_ON]
    if info.isdir():
        return _Header(name, 0, start, "folder")
    if info.isreg() and not is_sparse:
        return _Header(name, size, start, "file")
    return _Header(name, size if info.isreg() or info.type not in _WITHOUT_DATA else 0, start, "other")


def _pax_records(extension: bytes) -> dict[bytes, bytes]:
    """Read records such as `20 path=a/name.jpg` and a line's end, each with its length before it, up to a bad one."""
    records, at = dict[bytes, bytes](), 0
    while (blank := extension.find(b" ", at, at + 8)) > 0:
        digits = extension[at:blank]
        if not digits.isdigit() or int(digits) <= blank - at or at + int(digits) > len(extension):
            break
        key, _, value = extension[blank + 1 : at + int(digits) - 1].partition(b"=")
        records[key] = value
        at += int(digits)
    return records


def _text(name: bytes) -> str:
    """Decode a name so that it can always be written again, to parquet or to a terminal; cut it where it is absurd."""
    return name[: _MAX_NAME + 1].decode("utf-8", "backslashreplace")


def is_unsafe(name: str) -> bool:
    """Whether a name would leave the folder it is unpacked in, would not print as one line, or fits no file system."""
    return (
        name == _NAMELESS
        or len(name) > _MAX_NAME
        or name.startswith(("/", "\\"))
        or (".." in name and ".." in re.split(r"[/\\]", name))
        or _CONTROL.search(name) is not None
    )
