"""Reads the images of a tar, each with the files that belong to it.

Members of a WebDataset sample follow each other, and their names are equal up to the first dot. Where names have dots
(`www.host.example_1.jpg`), that makes one sample of a whole tar; so within a sample each file goes to the image whose
name it shares (`ingest.sidecars`), and only what has the sample's own name (`1.json` beside `1.left.jpg` and
`1.right.jpg`) goes to all its images. Everything else is on record: no file is given to another image.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.images.formats import sniff
from pipelines.images.rejects import Reason, Reject
from pipelines.ingest import clutter
from pipelines.ingest.listing import beside_tar, open_source
from pipelines.ingest.record import Record
from pipelines.ingest.sidecars import METADATA, beside, composed, owners, split
from pipelines.ingest.sources import Unit
from pipelines.storage.tar import read_tar

_IMAGE_SUFFIXES = {
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "heic", "heif"),
    *("jp2", "j2k", "jxl", "ico", "svg", "ppm", "pgm", "pbm", "psd"),
}
_NOTES = re.compile(r"__[^/]*__($|/)")  # members that WebDataset reserves for itself
_MAX_AT_ONCE = 1000  # members of one sample in memory
_MAX_SHARING = 16  # images that may share the sample's own files
MAX_UNREAD = 100_000  # rejects for images that are only listed: numbers in metadata may be absurd


class _Member(NamedTuple):
    name: str
    base: str  # the name without its folder
    content: bytes | Reject


class _Sample:
    """The members of one WebDataset sample as they are read, at most `max_bytes` of images and of sidecars at once."""

    def __init__(self, key: str, max_bytes: int) -> None:
        self.key = key
        self._own_name = composed(key.rpartition("/")[2])
        self._max_bytes = max_bytes
        self._num_images = 0  # that were yielded
        self._shared: list[_Member] = []  # files with the sample's own name
        self._strangers: list[str] = []  # the first of the files that neither are nor describe an image
        self._num_strangers = 0
        self._clear()

    def _clear(self) -> None:
        self._images: list[_Member] = []
        self._sidecars: list[_Member] = []
        self._names = set[str]()
        self._num_bytes = 0
        self._last = ""

    def has(self, base: str) -> bool:
        """Whether it has a member of this name already: the next one begins another sample with the same key."""
        return base in self._names

    def is_full(self, base: str) -> bool:
        """Whether to yield what is there before the member `base` is added, although the sample goes on.

        The files of one image stay together, unless they are absurdly many.
        """
        fill = max(self._num_bytes / self._max_bytes, len(self._names) / _MAX_AT_ONCE)
        return fill > 2 or (fill > 1 and split(base)[0] != self._last)

    def add(self, name: str, base: str, content: bytes | Reject) -> bool:
        """Add a member; return False if it is truncated and leaves no record."""
        self._last, suffix = split(base)
        if isinstance(content, Reject):
            # A truncated caption does not affect the image; any other loss must be on record.
            if suffix in METADATA and content.reason is Reason.INCOMPLETE_ARCHIVE:
                return False
            is_image = True
        else:
            is_image = suffix not in METADATA and bool(suffix in _IMAGE_SUFFIXES or sniff(content))
            self._num_bytes += len(content)
        self._names.add(base)
        (self._images if is_image else self._sidecars).append(_Member(name, base, content))
        return True

    def records(self) -> Iterator[Record]:
        """Yield what was added since the last call, and drop it from memory."""
        owned, orphans = self._assign()
        self._num_images += len(self._images)
        if self._num_images > _MAX_SHARING:
            orphans, self._shared = [*orphans, *self._shared], []
        for number, (name, base, content) in enumerate(self._images):
            mine = owned.get(number, [])
            if split(base)[0] != self._own_name:
                mine += [(each.base, split(each.base)[1], each.content) for each in self._shared]
            yield Record(name, content, beside(mine))
        yield from self._missing(orphans)
        self._clear()

    def rest(self) -> Iterator[Record]:
        """Yield the last records, at the end of the sample."""
        yield from self.records()
        if not self._num_images:
            yield from self._missing(self._shared)
        if self._strangers:
            beside_images = f", beside {self._num_images} with other names" if self._num_images else ""
            detail = f"a sample of {self._num_strangers} files, none an image{beside_images}"
            yield Record(self._strangers[0], Reject(Reason.NOT_AN_IMAGE, detail), {})

    def _assign(self) -> tuple[dict[int, list[tuple[str, str, Any]]], list[_Member]]:
        """Give each sidecar to its image: those of each image by its number, and those of no image."""
        numbers: dict[str, list[int]] = {}
        for number, image in enumerate(self._images):
            for name in {split(image.base)[0], composed(image.base)}:
                numbers.setdefault(name, []).append(number)
        owned: dict[int, list[tuple[str, str, Any]]] = {}
        orphans = []
        for sidecar in self._sidecars:
            owner = next(((name, suffix) for name, suffix in owners(sidecar.base) if name in numbers), None)
            if owner:
                for number in numbers[owner[0]]:
                    owned.setdefault(number, []).append((sidecar.base, owner[1], sidecar.content))
            elif split(sidecar.base)[0] == self._own_name:
                self._shared.append(sidecar)
            else:
                orphans.append(sidecar)
        return owned, orphans

    def _missing(self, orphans: list[_Member]) -> Iterator[Record]:
        """Yield a reject for each image that only metadata tell of; remember what tells of none."""
        orphans = [orphan for orphan in orphans if clutter.kind(orphan.base) != ""]
        groups: dict[str, list[str]] = {split(base)[0]: [] for _, base, _ in orphans if split(base)[1] in METADATA}
        for name, base, _ in orphans:
            group = next((groups[owner] for owner, _ in owners(base) if owner in groups), None)
            if group is None:
                self._strangers = self._strangers or [name]
                self._num_strangers += 1
            else:
                group.append(name)
        for names in groups.values():
            yield Record(names[0], Reject(Reason.MISSING, f"a sample of {len(names)} files, none an image"), {})


def read_samples(unit: Unit, max_bytes: int) -> Iterator[Record]:
    """Yield the records of a tar, and of what img2dataset's metadata beside it list and it lacks."""
    promised = _promised_keys(beside_tar(unit.source, ".parquet"))  # minus those found
    sample = _Sample("", max_bytes)
    num_records = 0
    end: Reject | None = None
    with open_source(unit.source) as stream:
        for name, content in read_tar(stream, max_bytes):
            if not name:
                assert isinstance(content, Reject)
                end = content
                continue
            folder, _, base = name.rpartition("/")
            if isinstance(content, bytes) and (base.startswith(".") or _NOTES.match(name)):
                continue
            key = f"{folder}/{base.partition('.')[0]}"
            if key != sample.key or sample.has(base):
                for record in sample.rest():
                    num_records += 1
                    yield record
                sample = _Sample(key, max_bytes)
            elif sample.is_full(base):
                for record in sample.records():
                    num_records += 1
                    yield record
            if promised:
                promised.pop(base.partition(".")[0], None)
            if not sample.add(name, base, content):
                assert isinstance(content, Reject)
                end = content  # no image is truncated, but the tar is
    for record in sample.rest():
        num_records += 1
        yield record
    yield from _missing(unit.source, promised, num_records, end)


def _missing(source: str, promised: dict[str, None] | None, num_records: int, end: Reject | None) -> Iterator[Record]:
    """Yield rejects for what img2dataset wrote and the tar lacks: by key, else by number, else one for the tar."""
    if promised is not None:
        for key in promised:
            yield Record(key, Reject(Reason.MISSING, "in the shard's parquet, not in its tar"), {})
        return
    count = _promised_count(beside_tar(source, "_stats.json"))
    if count is not None and count - num_records <= MAX_UNREAD:
        for number in range(num_records, count):
            detail = f"sample {number + 1} of the {count} that the shard's stats count is not in its tar"
            yield Record("", Reject(Reason.MISSING, detail), {})
    elif end is not None:
        yield Record("", end, {})


def _promised_keys(path: str) -> dict[str, None] | None:
    """Keys that img2dataset lists as written to a shard.

    None if its parquet is missing or unfinished, or if the parquet of that name was not written by img2dataset.
    """
    try:
        with open_source(path) as file:
            table = pq.read_table(file, columns=["key", "status"])
        statuses = table["status"].to_pylist()
        keys = zip(table["key"].to_pylist(), statuses, strict=True)
        return {str(key): None for key, status in keys if status == "success"}
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None


def _promised_count(path: str) -> int | None:
    try:
        with open_source(path) as file:
            return int(json.loads(file.read())["successes"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
