"""Pixels of a pool's rows, in batches: from memory or decoded from the shards as they are needed.

Both give the same pixels for the same rows. They differ only in speed and memory.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.images.check import foreign_images
from pipelines.images.views import Decoder, Views
from pipelines.pool import decoding
from pipelines.pool.rows import Rows
from pipelines.progress import OnTick, Tick

CHUNK = 512  # images decoded at once while a pool is loaded
PREFETCH = 4  # batches decoded ahead of the step


class Images(Protocol):
    """The pixels of N rows of a pool."""

    def __len__(self) -> int: ...

    def tiles(self, rows: Tensor) -> Tensor:
        """Native tiles (B, 3, T, T) of `rows` (B,) int64, on the training device."""
        ...

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Views]:
        """Yield the views of each batch of rows (B,) int64."""
        ...


class InMemory:
    """All pixels as uint8 on the training device."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def tiles(self, rows: Tensor) -> Tensor:
        return self.views.tiles.index_select(0, rows)

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Views]:
        for rows in batches:
            on_device = rows.to(self.views.images.device, non_blocking=True)
            yield self.views.map(partial(torch.index_select, dim=0, index=on_device))


class Decoding:
    """Decodes images of pools: on threads, or in `num_processes` processes (`pipelines.pool.decoding`)."""

    def __init__(self, decoder: Decoder, device: torch.device, num_threads: int, num_processes: int = 0) -> None:
        self._decoder, self._device, self._num_processes = decoder, device, num_processes
        self._decoding = ThreadPoolExecutor(num_threads)
        self._fetching = ThreadPoolExecutor(PREFETCH)  # separate from the decoders, which these threads wait for

    def close(self) -> None:
        """Stop the threads."""
        self._fetching.shutdown(cancel_futures=True)
        self._decoding.shutdown()

    @foreign_images()
    def tiles(self, rows: Rows, chosen: Tensor) -> Tensor:
        """Native tiles (B, 3, T, T) of the chosen rows (B,), on the device."""
        tiles = self._decoding.map(self._decoder.decode_tile, *_files(rows, chosen))
        return self._move(torch.from_numpy(np.stack(list(tiles))))

    def stream(self, batches: Iterable[tuple[Rows, Tensor]]) -> Iterator[Views]:
        """Yield the views of each batch: rows, and which of them (B,); a few are decoded ahead."""
        if self._num_processes:
            yield from self._from_processes(batches)
            return
        waiting: deque[Future[Views]] = deque()
        for batch in batches:
            waiting.append(self._fetching.submit(self._decode, *batch))
            if len(waiting) > PREFETCH:
                yield waiting.popleft().result().map(self._move)
        while waiting:
            yield waiting.popleft().result().map(self._move)

    def _decode(self, rows: Rows, chosen: Tensor) -> Views:
        views = self._decoder.batch(*_files(rows, chosen), self._decoding)
        return views.map(Tensor.pin_memory) if self._device.type == "cuda" else views

    def _from_processes(self, batches: Iterable[tuple[Rows, Tensor]]) -> Iterator[Views]:
        sizes = deque[int]()

        def chunks() -> Iterator[tuple[list[str], list[bytes]]]:
            for rows, chosen in batches:
                sizes.append(len(chosen))
                yield from (_files(rows, part) for part in torch.split(chosen, decoding.chunk_size(self._decoder)))

        with (
            closing(decoding.in_processes(self._decoder, chunks(), self._num_processes)) as decoded,
            ThreadPoolExecutor(1) as receiving,
        ):
            waiting = deque(receiving.submit(self._received, decoded, sizes) for _ in range(PREFETCH))
            try:
                while (views := waiting.popleft().result()) is not None:
                    waiting.append(receiving.submit(self._received, decoded, sizes))
                    yield views.map(self._move)
            finally:
                receiving.shutdown(cancel_futures=True)

    def _received(self, decoded: Iterator[decoding.Chunk], sizes: deque[int]) -> Views | None:
        """Copy the chunks of the next batch together."""
        chunk = next(decoded, None)
        if chunk is None:
            return None
        size, done, are_equal = sizes.popleft(), 0, True
        images, tiles = (
            torch.empty((size, *part.shape[1:]), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            for part in (chunk.images, chunk.tiles)
        )
        while True:
            own = slice(done, done + len(chunk.images))
            images[own], tiles[own] = torch.from_numpy(chunk.images), torch.from_numpy(chunk.tiles)
            done, are_equal = own.stop, are_equal and chunk.are_equal
            if done == size:
                return Views(images, images if are_equal else tiles)
            chunk = next(decoded)

    def _move(self, pixels: Tensor) -> Tensor:
        return pixels.to(self._device, non_blocking=True)


def _files(rows: Rows, chosen: Tensor) -> tuple[list[str], list[bytes]]:
    """Keys and contents of the chosen rows (B,)."""
    numbers = chosen.tolist()
    return [str(rows.key[i]) for i in numbers], rows.read(numbers)


class Streamed:
    """Pixels decoded from the shards on demand, a few batches ahead."""

    def __init__(self, rows: Rows, decoder: Decoder, device: torch.device, num_threads: int) -> None:
        self._rows = rows
        self._decoding = Decoding(decoder, device, num_threads, decoding.num_processes(len(rows), num_threads))

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """Stop the threads."""
        self._decoding.close()

    def tiles(self, rows: Tensor) -> Tensor:
        return self._decoding.tiles(self._rows, rows)

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Views]:
        return self._decoding.stream((self._rows, rows) for rows in batches)


def load(rows: Rows, decoder: Decoder, device: torch.device, num_threads: int, on_tick: OnTick) -> InMemory:
    """Decode all rows into the memory of `device`; `on_tick` hears of every 512 images."""
    images: Tensor | None = None
    tiles: Tensor | None = None
    done = 0
    streamed = Streamed(rows, decoder, torch.device("cpu"), num_threads)
    for views in streamed.stream(torch.split(torch.arange(len(rows)), CHUNK)):
        if images is None:
            images = torch.empty(len(rows), *views.images.shape[1:], dtype=torch.uint8)
        if tiles is None and views.tiles is not views.images:  # the first batch whose tiles differ from its images
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
    """Whether the views of `num_images` images take less than half of the device's free memory."""
    needed = num_images * 3 * (decoder.image_size**2 + decoder.detector_size**2)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    return needed < free / 2


def available_bytes() -> int:
    """Main memory available without swapping, in bytes."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
