"""Encodes images, always with the same codec settings."""

import io
from typing import Literal

from PIL import Image

JPEG = {"quality": 75, "subsampling": "4:2:0"}  # Pillow's defaults, with the quantization tables of CIFAKE's images


def encode(picture: Image.Image, codec: Literal["png", "jpg"]) -> bytes:
    """Encode an RGB picture: losslessly as PNG, or as JPEG with the settings in `JPEG`."""
    stream = io.BytesIO()
    if codec == "png":
        picture.save(stream, "PNG")
    else:
        picture.save(stream, "JPEG", **JPEG)
    return stream.getvalue()
