"""Decodes an image to the two views that training and scoring see, both uint8 RGB.

- The classifier's image: the shorter side resized to `image_size`, center-cropped to a square.
- The detector's tile: a crop at native resolution, never resized, because resizing destroys the traces it looks for.
  The position of the crop is a function of the file's bytes, so that every pass sees the same pixels, also of an image
  from outside the pool.
"""

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from pipelines.errors import CorruptShard
from pipelines.images.appearance import pixels_as_seen
from pipelines.images.check import foreign_images, in_a_line

if TYPE_CHECKING:  # torch takes seconds, and the processes that decode do without it
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Views:
    """A batch of images (B, 3, S, S) and their native tiles (B, 3, T, T), uint8; one tensor if they are equal."""

    images: "Tensor"
    tiles: "Tensor"

    def __len__(self) -> int:
        return len(self.images)

    def map(self, function: "Callable[[Tensor], Tensor]") -> "Views":
        """Apply `function` to both views, only once if they share a tensor."""
        images = function(self.images)
        return Views(images, images if self.tiles is self.images else function(self.tiles))


class ViewMaker(Protocol):
    """Turns files into views: a `Decoder` into pixels, a `pipelines.pool.features.FeatureReader` into features."""

    def batch(self, keys: Sequence[str], data: Sequence[bytes], threads: ThreadPoolExecutor) -> Views:
        """Views of many images. Raises CorruptShard for one that is none."""
        ...


@dataclass(frozen=True)
class Decoder:
    """Sizes of the two views, in pixels."""

    image_size: int
    detector_size: int

    def decode(self, key: str, data: bytes) -> tuple[Pixels, Pixels]:
        """Decode one image to (3, S, S) and (3, T, T). Raises CorruptShard for bytes that are not an image.

        Call this within `pipelines.images.check.foreign_images`.
        """
        native = picture(key, data)
        return planes(square(native, self.image_size)), planes(_tile(native, self.detector_size, data))

    def decode_tile(self, key: str, data: bytes) -> Pixels:
        """Decode one image to its (3, T, T) tile only. Raises CorruptShard as `decode` does."""
        return planes(_tile(picture(key, data), self.detector_size, data))

    @foreign_images()
    def batch(self, keys: Sequence[str], data: Sequence[bytes], threads: ThreadPoolExecutor) -> Views:
        """Decode many images on `threads`."""
        import torch

        pairs = list(threads.map(self.decode, keys, data))
        images = torch.from_numpy(np.stack([image for image, _ in pairs]))
        if self.image_size == self.detector_size and all(np.array_equal(image, tile) for image, tile in pairs):
            return Views(images, images)
        return Views(images, torch.from_numpy(np.stack([tile for _, tile in pairs])))


def picture(key: str, data: bytes) -> Pixels:
    """Decode a file to RGB (H, W, 3), as people see it. Raises CorruptShard for bytes that are not an image.

    Call this within `pipelines.images.check.foreign_images`.
    """
    try:
        return pixels_as_seen(data)
    except MemoryError:
        raise  # a problem of this machine, not of the image
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        reason = in_a_line(str(error))
        raise CorruptShard(
            f"image {key} cannot be decoded ({reason}); ingest the crawl again, which rejects such files."
        ) from None


def square(native: Pixels, size: int) -> Pixels:
    """Resize the shorter side of an image (H, W, 3), and crop the middle: (size, size, 3)."""
    if native.shape[:2] == (size, size):
        return native
    return np.asarray(ImageOps.fit(Image.fromarray(native), (size, size), Image.Resampling.BICUBIC))


def symmetric(native: Pixels, size: int) -> Pixels:
    """Continue an image (H, W, 3) by its mirror image to at least `size` pixels on each side."""
    height, width = native.shape[:2]
    if height >= size and width >= size:
        return native
    return np.pad(native, ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0)), mode="symmetric")


def _tile(native: Pixels, size: int, data: bytes) -> Pixels:
    native = symmetric(native, size)
    height, width = native.shape[:2]
    position = zlib.crc32(data)
    top, left = position % (height - size + 1), (position >> 16) % (width - size + 1)
    return native[top : top + size, left : left + size]


def planes(pixels: Pixels) -> Pixels:
    """Pixels (H, W, 3) as (3, H, W)."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
