"""Decodes a photograph of any size to what a frozen network sees of it, all uint8 RGB.

- Tiles at native resolution, never resized, because resizing destroys the traces that a detector looks for.
- Tiles at a common scale: the shorter side resized to `COMMON_SIDE` and saved as JPEG, so that neither the size of an
  image nor its codec shows.
- A thumbnail: the shorter side resized, center-cropped to a square.

Tiles lie in the cells of a grid over the image, each at a position that is a function of the file's bytes, so that
every pass sees the same pixels, also of an image from outside the pool. An image is decoded once, whatever its size.
"""

import io
import math
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipelines.images.views import Pixels, picture, planes, square, symmetric

COMMON_SIDE = 512  # pixels
COMMON_QUALITY = 90  # of its JPEG
LONGEST = 4  # times the shorter side, beyond which an image is cut before it is resized


class Photo(NamedTuple):
    """Tiles (T, 3, S, S) at native resolution and at the common scale, and the thumbnail (3, S, S)."""

    native: Pixels
    common: Pixels
    thumbnail: Pixels


@dataclass(frozen=True)
class PhotoDecoder:
    """Side of all squares, in pixels, and how many tiles to take at most, at each scale."""

    size: int
    num_tiles: int

    def decode(self, key: str, data: bytes) -> Photo:
        """Decode one image. Raises CorruptShard for bytes that are not an image."""
        native, seed = picture(key, data), zlib.crc32(data)
        return Photo(
            self._tiles(native, seed),
            self._tiles(np.asarray(_common(Image.fromarray(native))), seed),
            planes(square(native, self.size)),
        )

    def _tiles(self, native: Pixels, seed: int) -> Pixels:
        native = symmetric(native, self.size)
        height, width = native.shape[:2]
        rows, columns = _grid(height, width, self.size, self.num_tiles)
        random = np.random.default_rng(seed)
        tiles = []
        for row in range(rows):
            for column in range(columns):
                top = _start(height, self.size, row, rows, random)
                left = _start(width, self.size, column, columns, random)
                tiles.append(planes(native[top : top + self.size, left : left + self.size]))
        return np.stack(tiles)


def _common(opened: Image.Image) -> Image.Image:
    width, height = opened.size
    longest = LONGEST * min(width, height)
    if max(width, height) > longest:  # a strip would have millions of pixels
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        opened = opened.crop((left, top, min(width, left + longest), min(height, top + longest)))
    scale = COMMON_SIDE / min(opened.size)
    resized = opened.resize((round(opened.width * scale), round(opened.height * scale)), Image.Resampling.BICUBIC)
    saved = io.BytesIO()
    resized.save(saved, "JPEG", quality=COMMON_QUALITY)
    return Image.open(saved)


def _grid(height: int, width: int, size: int, most: int) -> tuple[int, int]:
    """Rows and columns of the grid: as many cells as are wanted or as fit, and of these the squarest."""
    grids = [
        (rows, columns)
        for rows in range(1, min(math.ceil(height / size), most) + 1)
        for columns in range(1, min(math.ceil(width / size), most // rows) + 1)
    ]

    def stretched(grid: tuple[int, int]) -> float:
        rows, columns = grid
        return abs(math.log(height * columns / (rows * width)))

    return min(grids, key=lambda grid: (-grid[0] * grid[1], stretched(grid)))


def _start(length: int, size: int, cell: int, cells: int, random: np.random.Generator) -> int:
    """First pixel of a tile in its cell: anywhere that it fits, or centered over a cell that is smaller than it."""
    low, high = cell * length // cells, (cell + 1) * length // cells - size
    if high < low:
        low = high = (low + high) // 2
    drawn = int(random.integers(low, high + 1))
    return min(max(drawn, 0), length - size)
