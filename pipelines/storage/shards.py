"""The shards that curate writes: equal members give equal bytes, and samples and images are read by their position.

A shard is a tar. A sample is a run of members with one key, its image first. Where members and samples lie within a
shard is known here alone.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from itertools import tee
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from pipelines.errors import CorruptShard
from pipelines.images.rejects import Reject
from pipelines.storage import locations
from pipelines.storage.locations import Location, Range
from pipelines.storage.tar import BLANK_CHECKSUM, BLOCK, BUFFER_BYTES, MAX_MEMBER_BYTES, ZEROS, read_tar

END_MARK = ZEROS * 2  # after the last member

# Mode 0644, owner 0, time 0, so that equal content is equal bytes.
_OWNER = b"\x00".join((b"0000644", b"0000000", b"0000000", b""))
_TIME = b"00000000000\x00"
_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(BLOCK - 265)
assert len(_OWNER + _TIME + BLANK_CHECKSUM + _REST) == BLOCK - 100 - 12
_CONSTANT_SUM = sum(_OWNER + _TIME + BLANK_CHECKSUM + _REST)


# Positions


class MemberSpan(NamedTuple):
    """Where a member lies in a shard, in bytes from the start of the shard."""

    start: int  # of its header
    offset: int  # of its content
    stop: int  # where the next header starts


def member_span(start: int, num_bytes: int) -> MemberSpan:
    """Span of a member of `num_bytes` whose header is at `start`."""
    offset = start + BLOCK
    return MemberSpan(start, offset, offset + num_bytes + -num_bytes % BLOCK)


def sample_start(image_offset: int) -> int:
    """Where the sample starts whose image is at `image_offset`: at the image's header, as the image comes first."""
    return image_offset - BLOCK


def sample_spans(image_offsets: npt.NDArray[np.int64], end: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Starts and stops of all samples of a shard, both (N,), from the offsets of their images, ascending.

    A sample stops where the next one starts, the last one at `end` (see `end_of_samples`).
    """
    starts = image_offsets - BLOCK
    return starts, np.append(starts[1:], end)[: len(starts)]


def ends_of_images(starts: npt.NDArray[np.int64], num_bytes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where the images end that samples (N,) begin with, from their starts and the sizes of the images: all (N,).

    What follows in a sample is beside the image.
    """
    return starts + BLOCK + num_bytes + -num_bytes % BLOCK


def end_of_samples(path: Location) -> int:
    """Where the samples of a shard end and its end mark starts. Raises CorruptShard if the shard is missing."""
    try:
        return locations.size(path) - len(END_MARK)
    except FileNotFoundError:
        raise _missing(path) from None


# Writing


class ShardWriter:
    """Writes one tar that plain `webdataset` reads; equal members give equal bytes.

    Use it as a context manager: the end mark is written, and the file synced, only if the block succeeds.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=BUFFER_BYTES)
        self.position = 0  # where the next header goes

    def add(self, name: str, content: bytes) -> int:
        """Append a member; `name` is KEY.SUFFIX in ASCII. Return the offset of its content."""
        field, size = name.encode("ascii"), len(content)
        assert 0 < len(field) <= 100 and size <= MAX_MEMBER_BYTES
        size_field = b"%011o\0" % size
        checksum = b"%06o\0 " % (_CONSTANT_SUM + sum(field) + sum(size_field))
        header = b"".join((field.ljust(100, b"\0"), _OWNER, size_field, _TIME, checksum, _REST))
        self._file.write(header)
        self._file.write(content)
        self._file.write(ZEROS[: -size % BLOCK])
        _, offset, self.position = member_span(self.position, size)
        return offset

    def copy(self, source: BinaryIO, start: int, stop: int) -> None:
        """Append whole members unchanged: the bytes from `start` to `stop` of another shard."""
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
        """Write the end mark and sync, unless the block failed; close in any case."""
        with self._file:
            if kind is None:
                self._file.write(END_MARK)
                self._file.flush()
                os.fsync(self._file.fileno())


def digest_of_sidecars(sidecars: Iterable[tuple[str, bytes]]) -> bytes:
    """SHA-256 of the members beside an image, given as (suffix, content) in the order of the tar."""
    digest = hashlib.sha256()
    for suffix, content in sidecars:
        digest.update(f"{suffix} {len(content)}\n".encode())
        digest.update(content)
    return digest.digest()


# Reading


def read_spans(path: Location, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Yield the bytes at each (offset, num_bytes) of a shard, in the order given.

    Raises CorruptShard if the shard is missing or shorter than its manifest says.
    """
    return read_spans_across((path, offset, num_bytes) for offset, num_bytes in spans)


def read_spans_across(spans: Iterable[Range]) -> Iterator[bytes]:
    """Yield the bytes at each (shard, offset, num_bytes) of one pool, in the order given; on a store, in parallel.

    On a disk, sort the spans by shard: each change of shard opens a file.

    Raises CorruptShard if a shard is missing or shorter than its manifest says.
    """
    asked, spans = tee(spans)
    try:
        for (path, _, num_bytes), content in zip(asked, locations.read_ranges(spans), strict=True):
            if len(content) < num_bytes:
                raise CorruptShard(f"{path}: is shorter than its manifest says; make the shard again.")
            yield content
    except FileNotFoundError as error:
        raise _missing(error.filename) from None


def read_samples(path: Location) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, {suffix: content}) for each sample of a shard. Raises CorruptShard if it is missing or damaged."""
    try:
        with locations.opened(path) as shard:
            yield from _samples(shard, path)
    except FileNotFoundError:
        raise _missing(path) from None


def read_samples_at(path: Location, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield, as `read_samples` does, the one sample at each (start, num_bytes) of a shard."""
    for members in read_spans(path, spans):
        yield next(_samples(io.BytesIO(members + ZEROS), path), ("no sample", {}))


def _samples(stream: BinaryIO, path: Location) -> Iterator[tuple[str, dict[str, bytes]]]:
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


def _missing(path: object) -> CorruptShard:
    return CorruptShard(f"{path}: is missing, although its shard is finished; make the shard again.")
