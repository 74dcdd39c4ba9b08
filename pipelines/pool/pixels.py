"""Batches of a pool: which rows (a pure function of seed and step), and their pixels (from memory or from the shards).

Both paths give the same pixels for the same rows; they differ in speed and memory only.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.images.views import Decoder, Views
from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick, Tick
from pipelines.storage.shards import read_spans_across

CHUNK = 512  # images decoded at once while a pool is loaded
PREFETCH = 4  # batches decoded ahead of the step


class Images(Protocol):
    """The pixels of a pool's rows."""

    def __len__(self) -> int: ...

    def tiles(self, rows: Tensor) -> Tensor:
        """Native tiles (B, 3, T, T) of `rows` (B,) int64, on the training device."""
        ...

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Views]:
        """Views of one batch of rows after the other."""
        ...


class InMemory:
    """All pixels as uint8 on the training device."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def __len__(self) -> int:
        return len(self._views)

    def tiles(self, rows: Tensor) -> Tensor:
        return self._views.tiles.index_select(0, rows)

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Views]:
        for rows in batches:
            on_device = rows.to(self._views.images.device, non_blocking=True)
            yield self._views.map(partial(torch.index_select, dim=0, index=on_device))


@dataclass(frozen=True)
class Rows:
    """Where the pixels of a pool's rows lie: shard number, offset and length in bytes, key; all (N,)."""

    pool: Pool
    shard: np.ndarray[tuple[int], np.dtype[np.int32]]
    offset: np.ndarray[tuple[int], np.dtype[np.int64]]
    num_bytes: np.ndarray[tuple[int], np.dtype[np.int64]]
    key: np.ndarray[tuple[int], np.dtype[np.str_]]

    def __len__(self) -> int:
        return len(self.shard)

    def members(self) -> list[str]:
        """Names that the images of all rows had in the crawl."""
        listed = set(self.key.tolist())
        tables = self.pool.tables(["key", "member"])
        named = (zip(table["key"].to_pylist(), table["member"].to_pylist(), strict=True) for table in tables)
        return [member for pairs in named for key, member in pairs if key in listed]

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """Original bytes of `rows`; CorruptShard where a shard is cut or missing."""
        order = np.argsort(self.shard[rows], kind="stable").tolist()  # each shard is opened once
        sorted_rows = [rows[i] for i in order]
        tars = [self.pool.tar(self.pool.shards[number]) for number in self.shard[sorted_rows].tolist()]
        spans = zip(tars, self.offset[sorted_rows].tolist(), self.num_bytes[sorted_rows].tolist(), strict=True)
        result = [b""] * len(rows)
        for i, data in zip(order, read_spans_across(spans), strict=True):
            result[i] = data
        return result


def index(pool: Pool, without: frozenset[str] = frozenset()) -> Rows:
    """List the rows of a pool, in order, leaving out images whose sha256 is in `without`."""
    return _rows(pool, range(len(pool.shards)), without)


def index_shard(pool: Pool, number: int) -> Rows:
    """List the rows of one shard."""
    return _rows(pool, [number], frozenset())


def _rows(pool: Pool, numbers: Iterable[int], without: frozenset[str]) -> Rows:
    parts = []
    for number in numbers:
        table = pool.rows(pool.shards[number], ["key", "offset", "num_bytes", "sha256"])
        kept = np.array([digest not in without for digest in table["sha256"].to_pylist()], dtype=bool)
        shard = np.full(int(kept.sum()), number, dtype=np.int32)
        key = np.array(table["key"].to_pylist(), dtype=np.str_)
        parts.append((shard, table["offset"].to_numpy()[kept], table["num_bytes"].to_numpy()[kept], key[kept]))
    shard, offset, num_bytes, key = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Rows(pool, shard, offset, num_bytes, key)


class Streamed:
    """Pixels decoded from the shards when they are asked for, a few batches ahead."""

    def __init__(self, rows: Rows, decoder: Decoder, device: torch.device, num_threads: int) -> None:
        self._rows, self._decoder, self._device = rows, decoder, device
        self._decoding = ThreadPoolExecutor(num_threads)
        self._fetching = ThreadPoolExecutor(PREFETCH)  # apart from the decoders, which it waits for

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """End the threads."""
        self._fetching.shutdown(cancel_futures=True)
        self._decoding.shutdown()

    def _decode(self, rows: Tensor) -> Views:
        numbers = rows.tolist()
        return self._decoder.batch([str(self._rows.key[i]) for i in numbers], self._rows.read(numbers), self._decoding)

    def tiles(self, rows: Tensor) -> Tensor:
        numbers = rows.tolist()
        keys = [str(self._rows.key[i]) for i in numbers]
        tiles = self._decoding.map(self._decoder.decode_tile, keys, self._rows.read(numbers))
        return self._move(torch.from_numpy(np.stack(list(tiles))))

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Views]:
        waiting: deque[Future[Views]] = deque()
        for rows in batches:
            waiting.append(self._fetching.submit(self._decode, rows))
            if len(waiting) > PREFETCH:
                yield waiting.popleft().result().map(self._move)
        while waiting:
            yield waiting.popleft().result().map(self._move)

    def _move(self, pixels: Tensor) -> Tensor:
        return pixels.to(self._device, non_blocking=True)


def load(rows: Rows, decoder: Decoder, device: torch.device, num_threads: int, on_tick: OnTick) -> InMemory:
    """Decode all rows into memory on `device`."""
    images: Tensor | None = None
    tiles: Tensor | None = None
    done = 0
    streamed = Streamed(rows, decoder, torch.device("cpu"), num_threads)
    for views in streamed.stream(torch.split(torch.arange(len(rows)), CHUNK)):
        if images is None:
            images = torch.empty(len(rows), *views.images.shape[1:], dtype=torch.uint8)
        if tiles is None and views.tiles is not views.images:  # the first tiles that differ from their images
            tiles = torch.empty(len(rows), *views.tiles.shape[1:], dtype=torch.uint8)
            if images.shape == tiles.shape:
                tiles[:done] = images[:done]
        images[done : done + len(views)] = views.images
        if tiles is not None:
            tiles[done : done + len(views)] = views.tiles
        done += len(views)
        on_tick(Tick(done=done, total=len(rows), unit="images"))
    streamed.close()
    assert images is not None
    images = images.to(device)
    return InMemory(Views(images, images if tiles is None else tiles.to(device)))


def fits(num_images: int, decoder: Decoder, device: torch.device) -> bool:
    """Whether all views of a pool take less than half of the device's free memory."""
    needed = num_images * 3 * (decoder.image_size**2 + decoder.detector_size**2)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    return needed < free / 2


def available_bytes() -> int:
    """Main memory that can be had without swapping, in bytes."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
