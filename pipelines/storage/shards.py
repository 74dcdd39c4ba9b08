"""Our own shards: written so that equal members give equal bytes, and read by span or by sample."""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from upath import UPath

from pipelines.errors import CorruptShard
from pipelines.images.rejects import Reject
from pipelines.storage import locations
from pipelines.storage.locations import Place
from pipelines.storage.tar import BLANK_CHECKSUM, BLOCK, BUFFER_BYTES, MAX_MEMBER_BYTES, ZEROS, read_tar

# Mode 0644, owner 0, time 0, so that equal content is equal bytes.
_OWNER = b"\x00".join((b"0000644", b"0000000", b"0000000", b""))
_TIME = b"00000000000\x00"
_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(BLOCK - 265)
assert len(_OWNER + _TIME + BLANK_CHECKSUM + _REST) == BLOCK - 100 - 12
_CONSTANT_SUM = sum(_OWNER + _TIME + BLANK_CHECKSUM + _REST)


class ShardWriter:
    """Writes one tar that plain `webdataset` reads; equal members give equal bytes.

    Use as a context manager: the end mark is written, and the file synced, only if the block succeeds.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=BUFFER_BYTES)
        self.position = 0  # where the next header goes

    def add(self, name: str, content: bytes) -> int:
        """Append a member; `name` is KEY.SUFFIX in ASCII. Return the offset of its first byte."""
        field, size = name.encode("ascii"), len(content)
        assert 0 < len(field) <= 100 and size <= MAX_MEMBER_BYTES
        size_field = b"%011o\0" % size
        checksum = b"%06o\0 " % (_CONSTANT_SUM + sum(field) + sum(size_field))
        header = b"".join((field.ljust(100, b"\0"), _OWNER, size_field, _TIME, checksum, _REST))
        self._file.write(header)
        self._file.write(content)
        self._file.write(ZEROS[: -size % BLOCK])
        start = self.position + BLOCK
        self.position = start + size + -size % BLOCK
        return start

    def copy(self, source: BinaryIO, start: int, stop: int) -> None:
        """Append whole members as they are: the bytes from `start` to `stop` of another tar."""
        source.seek(start)
        while start < stop:
            chunk = source.read(min(BUFFER_BYTES, stop - start))
            if not chunk:
                raise CorruptShard(f"{source.name}: is shorter than what was written to it; make the shard again.")
            self._file.write(chunk)
            start += len(chunk)
            self.position += len(chunk)

    def __enter__(self) -> Self:
        """Start writing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the end mark and sync, unless something failed; close in any case."""
        with self._file:
            if kind is None:
                self._file.write(ZEROS * 2)
                self._file.flush()
                os.fsync(self._file.fileno())


def read_spans(path: Place, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Yield the bytes at each (offset, num_bytes) of a shard of ours, in the order asked for.

    Raises CorruptShard where the shard is missing or shorter than its manifest says.
    """
    if isinstance(path, UPath):
        yield from read_spans_across((path, offset, num_bytes) for offset, num_bytes in spans)
        return
    try:
        with path.open("rb") as shard:
            for offset, num_bytes in spans:
                content = os.pread(shard.fileno(), num_bytes, offset)
                if len(content) < num_bytes:
                    raise CorruptShard(f"{path}: is shorter than its manifest says; make the shard again.")
                yield content
    except FileNotFoundError:
        raise CorruptShard(f"{path}: is missing although its shard is marked as done; make it again.") from None


def digest_of_sidecars(sidecars: Iterable[tuple[str, bytes]]) -> bytes:
    """SHA-256 of what stands beside an image, (suffix, content) in the order of the tar."""
    digest = hashlib.sha256()
    for suffix, content in sidecars:
        digest.update(f"{suffix} {len(content)}\n".encode())
        digest.update(content)
    return digest.digest()


def read_spans_across(spans: Iterable[tuple[Place, int, int]]) -> Iterator[bytes]:
    """Do what `read_spans` does for (shard, offset, num_bytes) of one pool: on a store side by side."""
    wanted = list[tuple[UPath, int, int]]()
    for path, offset, num_bytes in spans:
        if isinstance(path, UPath):
            wanted.append((path, offset, num_bytes))
        else:
            yield from read_spans(path, [(offset, num_bytes)])
    try:
        for (path, _, num_bytes), content in zip(wanted, locations.read_ranges(wanted), strict=True):
            if len(content) < num_bytes:
                raise CorruptShard(f"{path}: is shorter than its manifest says; make the shard again.")
            yield content
    except FileNotFoundError:
        gone = next((path for path, *_ in wanted if not locations.exists(path)), wanted[0][0])
        raise CorruptShard(f"{gone}: is missing although its shard is marked as done; make it again.") from None


def read_samples(path: Place) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, {suffix: bytes}) for each sample of a shard of ours; CorruptShard where it is not whole."""
    try:
        with locations.opened(path) as shard:
            yield from _samples(shard, path)
    except FileNotFoundError:
        raise CorruptShard(f"{path}: is missing although its shard is marked as done; make it again.") from None


def read_samples_at(path: Place, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield, as `read_samples` does, the one sample at each (start, num_bytes) of a shard of ours."""
    for members in read_spans(path, spans):
        yield next(_samples(io.BytesIO(members + ZEROS), path), ("no sample", {}))


def _samples(stream: BinaryIO, path: Place) -> Iterator[tuple[str, dict[str, bytes]]]:
    key, sample = "", dict[str, bytes]()
    for name, content in read_tar(stream, MAX_MEMBER_BYTES):
        if isinstance(content, Reject):
            raise CorruptShard(f"{path}: {content.detail}; make the shard again.")
        stem, _, suffix = name.partition(".")
        if stem != key and sample:
            yield key, sample
            sample = {}
        key = stem
        sample[suffix] = content
    if sample:
        yield key, sample
