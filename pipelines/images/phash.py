"""Perceptual hash of 64 bits: near copies of an image differ in few bits, whatever their size and compression.

This is the usual DCT hash (Zauner 2010, and `imagehash.phash`): resize the luma to 32 × 32 with Lanczos, take the
8 × 8 lowest frequencies of its DCT, and set a bit for each that is above their median. Resizing and DCT are linear, so
each axis needs one small cached matrix instead of an image operation: 15 µs per image, without batching.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SIDE = 32  # the hash looks at SIDE × SIDE pixels
_BITS = 8  # per axis
_LANCZOS_LOBES = 3
_MIRRORED = (-1.0) ** np.arange(_BITS)
_NOISE = 1e-6  # in a flat image, rounding errors must not decide the bits


def phash(luma_HW: NDArray[np.uint8], extent: tuple[float, float] | None = None, orientation: int = 1) -> int:
    """64-bit hash of a gray image of any size. Bits are row by row from the lowest frequency, which is the highest bit.

    `extent` is the (height, width) of the image, measured in pixels of `luma_HW`, if it does not fill the last row or
    column: 260 lines decoded at one eighth are 32.5 lines, in an array of 33. `orientation` is EXIF's, 1 to 8: the hash
    is that of the upright image.
    """
    height, width = extent or luma_HW.shape
    rows, columns = _low_frequencies(luma_HW.shape[0], height), _low_frequencies(luma_HW.shape[1], width)
    low = _upright(rows @ luma_HW @ columns.T, orientation).ravel()
    half = low.size // 2
    ranked = np.sort(low)
    median = (ranked[half - 1] + ranked[half]) / 2
    return int.from_bytes(np.packbits(low > median + _NOISE).tobytes(), "big")


def _upright(low: NDArray[np.float64], orientation: int) -> NDArray[np.float64]:
    """The frequencies (8, 8) after a turn: transposing swaps the axes, a mirror changes the sign of odd frequencies."""
    if orientation in (5, 6, 7, 8):
        low = low.T
    if orientation in (2, 3, 6, 7):  # left and right
        low = low * _MIRRORED
    if orientation in (3, 4, 7, 8):  # top and bottom
        low = low * _MIRRORED[:, None]
    return low


@lru_cache(maxsize=1024)
def _low_frequencies(size: int, extent: float) -> NDArray[np.float64]:
    """(8, size) matrix from a line of `size` pixels to the first 8 DCT-II frequencies of its `extent` at 32 pixels."""
    frequency, position = np.ogrid[:_BITS, :SIDE]
    dct = 2 * np.cos(np.pi * frequency * (2 * position + 1) / (2 * SIDE))
    low: NDArray[np.float64] = dct @ _lanczos(size, extent)
    return low


def _lanczos(size: int, extent: float) -> NDArray[np.float64]:
    """(32, size) matrix: Pillow's Lanczos resampling of a line to 32 pixels."""
    scale = extent / SIDE
    stretch = max(scale, 1.0)  # when shrinking, the kernel widens to prevent aliasing
    center = (np.arange(SIDE) + 0.5)[:, None] * scale
    pixel = np.arange(size)[None, :]
    distance = (pixel + 0.5 - center) / stretch
    reach = _LANCZOS_LOBES * stretch
    inside = (pixel >= np.floor(center - reach + 0.5)) & (pixel < np.floor(center + reach + 0.5))
    weight = np.where(inside, np.sinc(distance) * np.sinc(distance / _LANCZOS_LOBES), 0.0)
    weight /= weight.sum(axis=1, keepdims=True)
    return weight
