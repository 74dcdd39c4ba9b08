"""Thumbnails: small copies of images for people to look at, re-encoded.

Re-encoding means that nothing of a foreign file but its pixels gets into a page. Call these functions within
`pipelines.images.check.foreign_images`.
"""

import base64
import io
from dataclasses import dataclass
from typing import Literal, NamedTuple

from PIL import Image

from pipelines.images.appearance import as_seen


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """Size and encoding of the thumbnails of a page."""

    side: int  # pixels of the longer side; smaller images keep their size, and the browser enlarges them
    codec: Literal["JPEG", "WEBP"]
    quality: int
    lossless_below: int = (
        0  # pixels: images with a shorter longer side are stored without loss, to be seen pixel by pixel
    )
    lossless_codec: Literal["PNG", "WEBP"] = "WEBP"
    decoded_side: int | None = None  # pixels: JPEGs are decoded at a fraction of their size, no side below this


class Thumbnail(NamedTuple):
    """An encoded thumbnail."""

    media_type: str
    content: bytes
    lossless: bool

    @property
    def data_uri(self) -> str:
        """The thumbnail as an address, for a page that needs no other files."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.content).decode()}"


CONTACT_SHEET = Format(side=192, codec="JPEG", quality=88, lossless_below=192, lossless_codec="PNG")


def encode(content: bytes, format_: Format) -> Thumbnail:
    """Make the thumbnail of an image file."""
    picture = thumbnail(content, format_.side, format_.decoded_side)
    out = io.BytesIO()
    lossless = max(picture.size) < format_.lossless_below
    codec = format_.lossless_codec if lossless else format_.codec
    if lossless:
        picture.save(out, codec, lossless=True)  # PNG knows nothing else
    else:
        picture.save(out, codec, quality=format_.quality)
    return Thumbnail(f"image/{codec.lower()}", out.getvalue(), lossless)


def thumbnail(content: bytes, side: int, decoded_side: int | None = None) -> Image.Image:
    """The image as people see it, reduced to fit a square of `side` pixels; smaller images keep their size.

    A JPEG may be decoded at a fraction of its size, with no side below `decoded_side` pixels; None decodes it whole.
    """
    picture = as_seen(content, decoded_side)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture
