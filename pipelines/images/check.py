"""Checks one candidate image: from its bytes to its columns in the manifest, or to the reason why it is rejected.

The format is recognized by the bytes, never by the name. All of the image's data is decoded, so that every image in the
pool can be read later. Of a JPEG only the luma is decoded, at one eighth of its scale or more: that still reads the
entire entropy-coded stream, in less than half the time. Of an animation only the first frame is decoded.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image, PngImagePlugin
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile

from pipelines.images import plain_jpeg
from pipelines.images.appearance import flat, orientation, size_as_seen, with_image
from pipelines.images.formats import FORMATS, describe_other, is_truncated, sniff
from pipelines.images.phash import SIDE, phash
from pipelines.images.provenance import NOTHING, declared
from pipelines.images.rejects import Reason, Reject

_HASHED_SIDE = 2 * SIDE  # larger images are averaged down to about this size before hashing
_MAX_TEXT_BYTES = 16 << 20  # of one text or profile of a PNG; Photoshop and ComfyUI write more than Pillow's 1 MB
_OBJECT = re.compile(r"\s*<\S+ object at 0x[0-9a-f]+>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits on the size of an image, checked against its header before anything is decoded."""

    min_side: int
    max_pixels: int
    max_bytes: int


class Accepted(NamedTuple):
    """Columns of the manifest for an image that decodes without an error."""

    format: str
    width: int
    height: int
    phash: int
    declared: str | None  # as in pipelines.images.provenance
    declared_by: str | None


def examine(content: bytes, metadata: bytes | None, limits: Limits) -> Accepted | Reject:
    """Check one candidate, whatever its bytes are; `metadata` is the crawl's JSON beside it, if any.

    Call this within `foreign_images`. Nothing in the bytes makes it raise.
    """
    if not content:
        return Reject(Reason.EMPTY, "0 bytes")
    if len(content) > limits.max_bytes:
        return Reject(Reason.TOO_MANY_BYTES, f"{len(content)} bytes, over the limit of {limits.max_bytes}")
    format_ = sniff(content)
    if format_ is None:
        return Reject(Reason.NOT_AN_IMAGE, describe_other(content))
    if format_ not in FORMATS:
        return Reject(Reason.UNSUPPORTED_FORMAT, format_)
    if format_ == "jpg" and (accepted := _examine_plain_jpeg(content, metadata, limits)):
        return accepted

    def look(image: Image.Image) -> Accepted | Reject:
        return _examine(image, format_, content, metadata, limits)

    try:
        return with_image(content, look)
    except MemoryError:
        raise  # a problem of this machine, not of the image
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        reason = Reason.TRUNCATED if is_truncated(format_, content) or "truncated" in str(error) else Reason.CORRUPT
        return Reject(reason, in_a_line(f"{format_}: {error}"))


def _examine(
    image: Image.Image, format_: str, content: bytes, metadata: bytes | None, limits: Limits
) -> Accepted | Reject:
    if reject := _judge_size(*image.size, limits) or _judge_tiles(image, limits):
        return reject
    size = size_as_seen(image)
    hash_ = _decode_and_hash(image)
    try:
        origin = declared(image, content, metadata)
    except Exception:  # broken EXIF or XMP: the image itself is fine, and declares nothing
        origin = NOTHING
    return Accepted(format_, *size, hash_, *origin)


def _examine_plain_jpeg(content: bytes, metadata: bytes | None, limits: Limits) -> Accepted | None:
    """Accept a sound plain JPEG; return None for anything else, which Pillow then examines."""
    size = plain_jpeg.size(content)
    if size is None or _judge_size(*size, limits):
        return None
    width, height = size
    scale = next((scale for scale in (8, 4, 2) if min(size) // scale >= SIDE), 1)
    luma_HW = plain_jpeg.luma(content, -(-height // scale), -(-width // scale))
    if luma_HW is None:
        return None
    return Accepted(
        "jpg", width, height, phash(luma_HW, (height / scale, width / scale)), *declared(None, content, metadata)
    )


def _judge_size(width: int, height: int, limits: Limits) -> Reject | None:
    if min(width, height) < limits.min_side:
        return Reject(Reason.TOO_SMALL, f"{width}x{height}, under the limit of {limits.min_side} a side")
    if width * height > limits.max_pixels:
        return Reject(Reason.TOO_MANY_PIXELS, f"{width}x{height}, over the limit of {limits.max_pixels}")
    return None


def _judge_tiles(image: Image.Image, limits: Limits) -> Reject | None:
    """Reject a TIFF in which one tile takes more memory than the largest image, however small the TIFF itself is."""
    if not isinstance(image, TiffImageFile):
        return None
    width, height = (image.tag_v2.get(tag) for tag in (TILEWIDTH, TILELENGTH))
    if isinstance(width, int) and isinstance(height, int) and width * height > limits.max_pixels:
        return Reject(Reason.TOO_MANY_PIXELS, f"a tile of {width}x{height}, over the limit of {limits.max_pixels}")
    return None


class _Pillow:
    """Settings of Pillow, which are the process's own: they hold from the first user's entry to the last one's exit."""

    _SILENT = ("ignore", None, Warning, re.compile(r"PIL\b"), 0)  # as warnings.filterwarnings makes it

    def __init__(self) -> None:
        self._lock, self._users = Lock(), 0
        self._limits: tuple[int | None, int] = 0, 0

    def enter(self) -> None:
        with self._lock:
            if not self._users:
                self._limits = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
                Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = None, _MAX_TEXT_BYTES
            self._users += 1
            warnings.filterwarnings("ignore", module=self._SILENT[3].pattern)

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = self._limits
            filters = cast(list[Any], warnings.filters)
            if self._SILENT in filters:  # not if another thread has put its own filters back
                filters.remove(self._SILENT)


_PILLOW = _Pillow()


@contextmanager
def foreign_images() -> Iterator[None]:
    """Set Pillow up for untrusted bytes. Enter this once around many images: it takes as long as one of them.

    Pillow's warnings (palettes, EXIF, decompression bombs) are silenced. Its limit on pixels is lifted, because
    `Limits` replaces it, and that on a PNG's texts and profiles is raised. Threads may enter this side by side.
    """
    _PILLOW.enter()
    try:
        yield
    finally:
        _PILLOW.leave()


def _decode_and_hash(image: Image.Image) -> int:
    """Decode all of the image's data, but its luma no larger than the hash needs, and return the hash."""
    width, height = image.size
    image.draft("L", (SIDE, SIDE))  # only JPEG can decode at a reduced scale; other formats ignore this
    scale = round(width / image.width)
    luma = flat(image, "L")
    shrink = max(min(luma.size) // _HASHED_SIDE, 1)
    if shrink > 1:
        luma = luma.reduce(shrink)
    scale *= shrink
    # Twice as fast as np.asarray.
    pixels_HW = np.frombuffer(luma.tobytes(), np.uint8).reshape(luma.height, luma.width)
    return phash(pixels_HW, (height / scale, width / scale), orientation(image))


def in_a_line(text: str) -> str:
    """Flatten and shorten a decoder's message, which may quote bytes of the file or addresses of objects in memory."""
    text = _OBJECT.sub("", text)
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:200]
