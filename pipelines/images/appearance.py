"""What an image looks like: one answer for networks, hashes, thumbnails, the report and the review.

It is what a browser shows: upright as EXIF says, transparent pixels over white, gray levels of 16 bits or of floats
scaled to 8, the first frame of an animation. Metadata that cannot be read never hide a picture: broken EXIF turns
nothing, and of a PNG with an unreadable profile or text the pixels are read without them.

Call these functions within `pipelines.images.check.foreign_images`. They raise what Pillow raises on damaged bytes.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageChops, ImageCms
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from pipelines.images import plain_jpeg
from pipelines.images.formats import FORMATS, sniff

Result = TypeVar("Result")

_TURNS = {  # EXIF's orientation -> what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = 5  # from this orientation on, width and height change places
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_FULL_SCALES = (1.0, 255.0, 65_535.0)  # of gray levels without a fixed range


def as_seen(content: bytes, side: int | None = None) -> Image.Image:
    """Decode an image file to the RGB picture that people see.

    A JPEG may be decoded at a fraction of its size, with no side below `side` pixels; None decodes it whole.
    """

    def see(image: Image.Image) -> Image.Image:
        if side is not None:
            image.draft("RGB", (side, side))
        shown = flat(image, "RGB")
        turn = _TURNS.get(orientation(image))
        return shown if turn is None else shown.transpose(turn)

    return with_image(content, see)


def pixels_as_seen(content: bytes) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, 3) of what `as_seen` gives; of a plain JPEG in half the time."""
    pixels = plain_jpeg.rgb(content)
    return np.asarray(as_seen(content)) if pixels is None else pixels


def with_image(content: bytes, use: Callable[[Image.Image], Result]) -> Result:
    """Open an image file and call `use` with it, a second time if the metadata of a PNG cannot be read."""
    kind = sniff(content)
    formats = (FORMATS[kind],) if kind in FORMATS else tuple(FORMATS.values())
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            return use(image)
    except MemoryError:
        raise  # a problem of this machine, not of the image
    except Exception:  # Pillow's decoders raise almost anything on damaged bytes
        bare = _without_metadata(content)
        if bare is None:
            raise
        try:
            with Image.open(io.BytesIO(bare), formats=formats) as image:
                return use(image)
        except MemoryError:
            raise
        except Exception:
            pass  # the first error says what is wrong with the file
        raise


def flat(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Pixels of an opened image in 8 bits and without transparency, as gray or in color, not yet turned upright."""
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_in_8_bits(image)).convert(mode)
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None  # it is None only for `inPlace`
        return converted.convert(mode)
    if not _is_transparent(image):
        return image.convert(mode)
    if image.mode not in ("LA", "RGBA"):
        image = image.convert("RGBA")
    shown = image.convert(mode)
    shown.paste("white", mask=ImageChops.invert(image.getchannel("A")))
    return shown


def orientation(image: Image.Image) -> int:
    """EXIF's orientation of an opened image, 1 to 8; 1, upright, where EXIF says nothing or is broken.

    Also 1 for a TIFF, because Pillow turns it upright while it decodes it. A PNG is decoded, as EXIF may follow its
    pixels.
    """
    if isinstance(image, TiffImageFile):
        return 1
    if isinstance(image, PngImageFile):
        image.load()  # which `getexif` calls too, but what it raises is not about EXIF
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises almost anything on broken EXIF
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def size_as_seen(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened image once it is upright."""
    width, height = image.size
    return (height, width) if orientation(image) >= _SIDEWAYS else (width, height)


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    # Pillow keeps 8 of 16 bits of a color, but all 16 of the color that a PNG calls transparent.
    key = image.info.get("transparency")
    return not (isinstance(key, tuple) and max(key) > 255)


def _in_8_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Gray levels (H, W) of more than 8 bits, scaled to 0..255."""
    levels_HW = np.asarray(image)
    if image.mode.startswith("I;16"):
        # The upper 8 bits, as in a browser. Some TIFFs of scientific cameras use 12 of 16 bits.
        used = image.tag_v2.get(BITSPERSAMPLE, (16,))[0] if isinstance(image, TiffImageFile) else 16
        return (levels_HW >> (used - 8 if 8 < used < 16 else 8)).astype(np.uint8)
    levels_HW = np.nan_to_num(levels_HW.astype(np.float32), posinf=0, neginf=0)
    low, high = float(levels_HW.min()), float(levels_HW.max())
    scales = _FULL_SCALES if image.mode == "F" else _FULL_SCALES[1:]
    if low >= 0 and high <= scales[-1]:
        low, high = 0.0, next(scale for scale in scales if high <= scale)
    return ((levels_HW - low) * (255 / max(high - low, 1e-12)) + 0.5).clip(0, 255).astype(np.uint8)


# PNG


def _without_metadata(content: bytes) -> bytes | None:
    """A PNG without its profiles and texts, but with sound EXIF, which may turn it; None for all other files."""
    if not content.startswith(_PNG):
        return None
    chunks = list(_chunks(content))
    kept = [whole for kind, whole in chunks if kind in _PNG_PIXELS or (kind == b"eXIf" and _is_sound(whole))]
    return _PNG + b"".join(kept) if len(kept) < len(chunks) else None


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, whole chunk) of each chunk; the last one may be cut."""
    at = len(_PNG)
    while at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        yield kind, png[at : at + 12 + length]
        at += 12 + length


def _is_sound(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
