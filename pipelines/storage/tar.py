"""A reader of tar archives that trusts nothing: no archive raises, hangs or takes all memory.

Python's tarfile takes 30 µs a member, more than hashing a small image, so plain headers (nearly all of them) are parsed
here. For the other headers, tarfile parses the block alone. It must not see the extensions before a block: it recurses
for each, trusts their sizes and matches them with a quadratic regular expression, so that a hostile archive could make
it take hours or all memory.
"""

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pipelines.images.formats import describe_other, sniff
from pipelines.images.rejects import Reason, Reject

BLOCK = 512
MAX_MEMBER_BYTES = 8**11 - 1  # the largest number in the size field of a USTAR header
ZEROS = bytes(BLOCK)
BUFFER_BYTES = 1 << 20
BLANK_CHECKSUM = b" " * 8  # the checksum counts its own field as blanks
_MAX_PADDING = 64 << 20  # bytes of zeros between two archives; a sparse file of zeros may be endless
_MAX_EXTENSIONS = 16  # before one member
_MAX_EXTENSION_BYTES = 1 << 20  # long names and pax headers; a hostile size must not become an allocation
_EXTENSION_TYPES = (b"L", b"K", b"x", b"g", b"X")
_MAX_NAME = 4096  # bytes, as for a path on Linux
_ADLER_PRIME = 65521
_MAX_OFFSET = 1 << 62  # more than any file system can address
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
)  # whatever their size field
_SPARSE_CONTINUES, _SPARSE_MAP_CONTINUES = 482, 504  # flags in a GNU sparse header, and in the blocks after it
_NAMELESS = "(no name)"
_UNSAFE = "absolute, empty, endless, or with .. or control characters in it"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Member(NamedTuple):
    """A file in a tar: its name, and its content or the reason why it cannot be read."""

    name: str
    content: bytes | Reject


def read_tar(stream: BinaryIO, max_bytes: int) -> Iterator[Member]:
    """Yield the files of a tar in order, without folders. Nothing in the archive makes it raise.

    A file that is truncated, over `max_bytes`, not regular or unsafely named comes as a Reject. If the archive ends
    without its end mark, or has something else where a header should be, a last Member without a name reports it.
    Archives that were joined (`cat a.tar b.tar`) are read as one. When a file with content is yielded, the stream is at
    the end of that content.
    """
    position, has_ended = 0, False
    while True:
        block = stream.read(BLOCK)
        if block == ZEROS:
            found, skipped = _after_zeros(stream)
            position += BLOCK + skipped
            has_ended = True
            if found is None:
                what = f"over {_MAX_PADDING >> 20} MiB of zeros before byte {position}; the rest is not read"
                yield Member("", Reject(Reason.INCOMPLETE_ARCHIVE, what))
                return
            block = found
        if len(block) < BLOCK:
            if has_ended and not block.strip(b"\0"):
                return
            what = "ends without its end mark" if position or block else "is empty"
            yield Member("", Reject(Reason.INCOMPLETE_ARCHIVE, f"the archive {what}, at byte {position}"))
            return
        header = _plain_header(block) or _any_header(stream, block)
        if header is None:
            detail = f"no tar header at byte {position}" if position else f"no tar archive, but {_kind(block)}"
            yield Member("", Reject(Reason.INCOMPLETE_ARCHIVE, detail))
            return
        has_ended = False
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


def _after_zeros(stream: BinaryIO) -> tuple[bytes | None, int]:
    """Return the first block that is not zeros, or what rests, and the bytes before it; None if zeros do not end."""
    skipped = 0
    while skipped < _MAX_PADDING:
        block = stream.read(BLOCK)
        if block != ZEROS:
            return block, skipped
        skipped += BLOCK
    return None, skipped


def _kind(block: bytes) -> str:
    """What the first block of a file is, if it is no tar header."""
    image = sniff(block)
    return f"an image ({image})" if image else describe_other(block)


class _Header(NamedTuple):
    name: str
    size: int  # of the data
    start: int  # of the data, from the header
    kind: str  # "file", "folder" or "other"


def _plain_header(block: bytes) -> _Header | None:
    """Parse the header of a regular file with a short name; None for anything else."""
    name = block[: block.index(0)] if 0 in block[:100] else block[:100]
    if block[156] not in b"0\0" or name.endswith(b"/"):
        return None
    try:
        size = int(block[124:136].rstrip(b" \0"), 8)
        checksum = int(block[148:156].strip(b" \0"), 8)
    except ValueError:
        return None
    # The lower half of Adler-32 is one more than the sum of all bytes, modulo a prime, in a tenth of the time of sum().
    expected = checksum - sum(BLANK_CHECKSUM) + sum(block[148:156])
    if size < 0 or (expected + 1) % _ADLER_PRIME != zlib.adler32(block) & 0xFFFF:
        return None
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].rstrip(b"\0") + b"/" + name
    return _Header(_text(name), size, BLOCK, "file")


def _any_header(stream: BinaryIO, block: bytes) -> _Header | None:
    """Parse the extensions before a member (long names, pax records) and its own header; None if these are malformed.

    The stream is just after `block`, and is left at the member's data.
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
        # The others are not needed: targets of links, and defaults for all later members.
        block = stream.read(BLOCK)
        start += info.size + -info.size % BLOCK + BLOCK
    return None


def _extended(
    stream: BinaryIO, block: bytes, info: tarfile.TarInfo, start: int, records: dict[bytes, bytes]
) -> _Header | None:
    """Combine a header with the extensions before it."""
    try:
        size = int(records.get(b"size", info.size))
    except ValueError:
        return None
    if not 0 <= size <= _MAX_OFFSET:
        return None
    path = records.get(b"GNU.sparse.name", records.get(b"path"))
    name = _text(os.fsencode(info.name) if path is None else path)
    is_sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.sparse.") for key in records)
    more = info.type == tarfile.GNUTYPE_SPARSE and block[_SPARSE_CONTINUES]
    while more:  # blocks with the rest of the map; the data follows without its holes
        block = stream.read(BLOCK)
        start += len(block)
        more = len(block) == BLOCK and block[_SPARSE_MAP_CONTINUES]
    if info.isdir():
        return _Header(name, 0, start, "folder")
    if info.isreg() and not is_sparse:
        return _Header(name, size, start, "file")
    return _Header(name, size if info.isreg() or info.type not in _WITHOUT_DATA else 0, start, "other")


def _pax_records(extension: bytes) -> dict[bytes, bytes]:
    """Parse records such as `20 path=a/name.jpg` and a line feed, each after its length; stop at a malformed one."""
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
    """Decode a name to text that can always be encoded again, for parquet or a terminal; truncate an absurd one."""
    return name[: _MAX_NAME + 1].decode("utf-8", "backslashreplace")


def is_unsafe(name: str) -> bool:
    """Whether a name escapes the folder it is unpacked in, does not print as one line, or fits no file system."""
    return (
        name == _NAMELESS
        or len(name) > _MAX_NAME
        or name.startswith(("/", "\\"))
        or (".." in name and ".." in re.split(r"[/\\]", name))
        or _CONTROL.search(name) is not None
    )
