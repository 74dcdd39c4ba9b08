"""Finds the images of a pool that are copies of held-out images, such as a test set: `curate export --exclude`.

A copy is exact (the same bytes) or has the pixels of a held-out image (`pipelines.run.likeness`): resized, re-encoded,
mirrored, or cropped by up to 5 % of its sides. Candidates are found by perceptual hash. A crop or a mirror image has
another hash, so a held-out image is hashed whole and in nine crops, straight and mirrored, and an image of the pool is
looked at if its hash is within `RADIUS` bits of one of those twenty. The pixels decide. A held-out image that shows
nothing (a plain surface) has exact copies only.

The held-out images are read from folders, tars and parquet files, whatever their layout: each file, member or binary
value that begins like an image. Memory holds their hashes and looks, about 9 kB each.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from pipelines.errors import BadInput, why
from pipelines.export.rows import Rows
from pipelines.images.appearance import as_seen, with_image
from pipelines.images.check import foreign_images
from pipelines.images.formats import sniff
from pipelines.images.rejects import Reject
from pipelines.progress import OnTick, Tick
from pipelines.run import crops
from pipelines.run.duplicates import MIN_BITS, Hashes, Looks, Positions, hashes
from pipelines.run.likeness import ALIKE, Look
from pipelines.storage.tar import read_tar

RADIUS = 8  # bits between a hash of the pool and one of the twenty of a held-out image

_MAX_BYTES = 1 << 28  # of a held-out image
_MAX_PIXELS = 1 << 28
_QUERIES_AT_ONCE = 4096
_PAIRS_AT_ONCE = 4096
_MIRRORED = 4  # number of the mirror image among the turns of a look


class Match(NamedTuple):
    """What an image is a copy of: the key of the image that stays or the name of a held-out one, and how."""

    match: str
    how: str


@dataclass(frozen=True)
class _HeldOut:
    """The held-out images: names, looks and digests (M,), and their hashes (H,), each of the image `owner` (H,)."""

    names: list[str]
    looks: list[Look | None]
    sha256: dict[str, int]  # first image with these bytes
    hashes: Hashes
    owner: Positions


def find(rows: Rows, sources: Sequence[str], on_tick: OnTick) -> dict[str, Match]:
    """Find the images of a pool that are copies of images in `sources`, by key.

    Raises BadInput for a source that cannot be read or holds no image.
    """
    held_out = _read(sources, on_tick)
    found, keys = dict[str, Match](), list[str]()
    for shard in rows.pool.shards:
        table = rows.pool.rows(shard, ["key", "sha256"])
        keys += table["key"].to_pylist()
        for key, sha256 in zip(table["key"].to_pylist(), table["sha256"].to_pylist(), strict=True):
            if sha256 in held_out.sha256:
                found[key] = Match(held_out.names[held_out.sha256[sha256]], "exact")
    looks = Looks(rows.pool)
    hash_N = hashes(rows.scored)
    for pairs in _candidates(hash_N, held_out):
        pairs = [(one, other) for one, other in pairs if keys[one] not in found]
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            copies = _judge(pairs[start : start + _PAIRS_AT_ONCE], looks, held_out)
            found |= {keys[position]: match for position, match in copies.items()}
    return found


def _judge(pairs: Sequence[tuple[int, int]], looks: Looks, held_out: _HeldOut) -> dict[int, Match]:
    """The images of the pool whose pixels are those of a held-out one, by position, with the one most like them."""
    known = looks.look({position for position, _ in pairs})
    best = dict[int, tuple[float, Match]]()
    for position, other in pairs:
        look, held = known[position], held_out.looks[other]
        if look is None or held is None:
            continue
        for how, asked in (("near", held), ("mirrored", held.turned(_MIRRORED))):
            likeness = look.likeness(asked)
            if likeness >= ALIKE and (position not in best or likeness > best[position][0]):
                best[position] = likeness, Match(held_out.names[other], how)
    return {position: match for position, (_, match) in best.items()}


def _candidates(hash_N: Hashes, held_out: _HeldOut) -> Iterator[list[tuple[int, int]]]:
    """Yield pairs of an image of the pool and a held-out one whose hashes are near, each pair once in a list."""
    detailed = np.flatnonzero(np.bitwise_count(hash_N) >= MIN_BITS)
    if not len(detailed) or not len(held_out.hashes):
        return
    index = faiss.IndexBinaryFlat(64)
    index.add(_as_bytes(hash_N[detailed]))
    for start in range(0, len(held_out.hashes), _QUERIES_AT_ONCE):
        asked = held_out.hashes[start : start + _QUERIES_AT_ONCE]
        limits, _, positions = index.range_search(_as_bytes(asked), RADIUS + 1)  # FAISS finds what is below it
        counts = limits[1:].astype(np.int64) - limits[:-1].astype(np.int64)
        owner = np.repeat(held_out.owner[start : start + len(asked)], counts)
        pairs = np.unique(np.stack([detailed[positions], owner], 1), axis=0)
        yield [(int(one), int(other)) for one, other in pairs]


def _as_bytes(hash_N: Hashes) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(hash_N).view(np.uint8).reshape(-1, 8)


# The held-out images


def _read(sources: Sequence[str], on_tick: OnTick) -> _HeldOut:
    names, looks, sha256 = list[str](), list[Look | None](), dict[str, int]()
    hashed, owner, undecoded = list[int](), list[int](), 0
    with foreign_images():
        for source in sources:
            before = len(names)
            for name, content in _images(Path(source).expanduser(), source):
                sha256.setdefault(hashlib.sha256(content).hexdigest(), len(names))
                picture = _decoded(content)
                undecoded += picture is None
                looks.append(Look.at(picture) if picture else None)
                if picture and looks[-1]:
                    mine = {each for each in _hashes(picture) if each.bit_count() >= MIN_BITS}
                    hashed += mine
                    owner += [len(names)] * len(mine)
                names.append(name)
                if len(names) % 100 == 0:
                    on_tick(Tick(done=len(names), total=None, unit="held-out images"))
            if len(names) == before:
                raise BadInput(f"--exclude {source}: holds no image. Name a folder, a .tar or a .parquet of images.")
    note = (
        f"{undecoded:,} of {len(names):,} held-out images cannot be decoded: only exact copies of them are found."
        if undecoded
        else ""
    )
    on_tick(Tick(done=len(names), total=len(names), unit="held-out images", note=note))
    return _HeldOut(names, looks, sha256, np.array(hashed, dtype=np.uint64), np.array(owner, dtype=np.int64))


def _decoded(content: bytes) -> Image.Image | None:
    try:
        if with_image(content, lambda opened: opened.width * opened.height) > _MAX_PIXELS:
            return None
        return as_seen(content, 512).convert("L")
    except MemoryError:
        raise  # a problem of this machine, not of the image
    except Exception:  # Pillow's decoders raise almost anything on damaged bytes
        return None


def _hashes(picture: Image.Image) -> Iterator[int]:
    """Hashes of a picture and of nine crops of it, straight and mirrored."""
    yield from crops.hashes(picture)
    yield from crops.hashes(ImageOps.mirror(picture))


def _images(path: Path, source: str) -> Iterator[tuple[str, bytes]]:
    """Yield the name and bytes of each image in a folder, a tar, a parquet file or an image file.

    What cannot be read of a tar has no bytes.
    """
    try:
        if path.is_dir():
            for folder, folders, files in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(files):
                    if not name.startswith(".") and (Path(folder) / name).is_file():  # no pipe, no link to nowhere
                        yield from _images(Path(folder) / name, source)
        elif path.suffix.lower() == ".tar":
            with path.open("rb") as stream:
                for member in read_tar(stream, _MAX_BYTES):
                    if isinstance(member.content, Reject):
                        yield f"{_printable(path)}:{member.name}", b""
                    elif sniff(member.content):
                        yield f"{_printable(path)}:{member.name}", member.content
        elif path.suffix.lower() == ".parquet":
            yield from _parquet(path)
        elif path.stat().st_size <= _MAX_BYTES:
            content = path.read_bytes()
            if sniff(content):
                yield _printable(path), content
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"--exclude {source}: {path} cannot be read ({why(error)}).") from None


def _parquet(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the images of all columns that are binary, or structs with a binary field `bytes`."""
    with pq.ParquetFile(path) as file:
        row = 0
        for batch in file.iter_batches(64):
            columns = [column.to_pylist() for column in batch.columns if _holds_bytes(column.type)]
            for values in zip(*columns, strict=True):
                for value in values:
                    content = value.get("bytes") if isinstance(value, dict) else value
                    if isinstance(content, bytes) and sniff(content):
                        yield f"{_printable(path)}:{row}", content
                row += 1


def _printable(path: Path) -> str:
    """A path as text that can be stored, whatever its bytes are."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
