"""Decodes images in processes, which write the pixels into memory that they share with this one.

Threads do not do: Python runs one of them at a time, and hands over so often in an image that 16 cores decoded no more
photographs a second than two (docs/benchmarks.md). Pixels that came through a pipe would be copied four times, which
takes as long as decoding them. The memory is an anonymous file of Linux, and not /dev/shm, of which a container has
64 MB.
"""

import mmap
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.compute import processes
from pipelines.compute.processes import usable_cores
from pipelines.images.check import foreign_images
from pipelines.images.views import Decoder, Pixels

CHUNK_BYTES = 16 << 20  # of the pixels that a task decodes
FEWEST_CORES, FEWEST_IMAGES = 4, 5_000  # from which processes pay: a few images are decoded before they have started
MOST_PROCESSES = 16


class Chunk(NamedTuple):
    """Images (N, 3, S, S) and their tiles (N, 3, T, T); others take their place when the next chunk is asked for."""

    images: Pixels
    tiles: Pixels
    are_equal: bool  # images and tiles


@dataclass(frozen=True)
class _Shared:
    """Memory for `num_slots` chunks of `size` images, which other processes find by the file that this one has open."""

    decoder: Decoder
    size: int
    num_slots: int
    pid: int
    file: int

    @property
    def _sides(self) -> tuple[int, int]:
        return self.decoder.image_size, self.decoder.detector_size

    @property
    def num_bytes(self) -> int:
        return self.num_slots * self.size * sum(3 * side * side for side in self._sides)

    def slot(self, number: int, count: int) -> tuple[Pixels, Pixels]:
        """Arrays of the images and of the tiles of `count` images in a slot."""
        memory, start, arrays = _mapped(self), number * (self.num_bytes // self.num_slots), []
        for side in self._sides:
            arrays.append(np.ndarray((count, 3, side, side), np.uint8, memory, start))
            start += self.size * 3 * side * side
        return arrays[0], arrays[1]


@lru_cache(maxsize=1)
def _mapped(shared: _Shared) -> mmap.mmap:
    with Path(f"/proc/{shared.pid}/fd/{shared.file}").open("r+b") as file:
        return mmap.mmap(file.fileno(), shared.num_bytes)


def chunk_size(decoder: Decoder) -> int:
    """Most images of a chunk."""
    sides = decoder.image_size, decoder.detector_size
    return max(1, CHUNK_BYTES // sum(3 * side * side for side in sides))


def num_processes(num_images: int, num_threads: int) -> int:
    """How many processes to decode `num_images` images in, by one that computes on `num_threads`; 0: on threads.

    A task of Ray, a rank of torchrun or one of several trainings on a machine has few threads, and takes no more cores.
    """
    cores = min(usable_cores(), num_threads)
    pay = hasattr(os, "memfd_create") and cores >= FEWEST_CORES and num_images >= FEWEST_IMAGES
    return min(cores, MOST_PROCESSES) if pay else 0


def in_processes(
    decoder: Decoder, chunks: Iterable[tuple[Sequence[str], Sequence[bytes]]], jobs: int
) -> Generator[Chunk, None, None]:
    """Decode chunks of up to `chunk_size` images, given as their keys and contents, in `jobs` processes; in order.

    Raises CorruptShard for bytes that are not an image, CurateError where a process dies.
    """
    file = os.memfd_create("pixels")
    try:
        shared = _Shared(decoder, chunk_size(decoder), jobs * processes.AHEAD, os.getpid(), file)
        os.ftruncate(file, shared.num_bytes)
        # A slot is free again when as many chunks have been asked for as there are slots.
        tasks = ((number % shared.num_slots, *files) for number, files in enumerate(chunks))
        with closing(processes.in_order(partial(_decode, shared), tasks, jobs)) as decoded:
            for (slot, keys, _), are_equal in decoded:
                yield Chunk(*shared.slot(slot, len(keys)), are_equal)
    finally:
        _mapped.cache_clear()
        os.close(file)


@foreign_images()
def _decode(shared: _Shared, task: tuple[int, Sequence[str], Sequence[bytes]]) -> bool:
    """Decode a chunk into its slot; whether all images are equal to their tiles."""
    slot, keys, data = task
    images, tiles = shared.slot(slot, len(keys))
    for i, (key, content) in enumerate(zip(keys, data, strict=True)):
        images[i], tiles[i] = shared.decoder.decode(key, content)
    return images.shape == tiles.shape and np.array_equal(images, tiles)
