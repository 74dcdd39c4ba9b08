"""Small pictures of an image, as they look: upright and in RGB."""

import base64
import io

from PIL import Image, ImageOps

from pipelines.images.check import foreign_images

THUMBNAIL = 192  # pixels of the longer side; smaller images stay as they are, for the browser to enlarge


def thumbnail(content: bytes, side: int) -> Image.Image:
    """The image in RGB and upright, made smaller to fit a square of `side` pixels; a small one stays as it is."""
    with foreign_images(), Image.open(io.BytesIO(content)) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def data_uri(content: bytes) -> str:
    """A thumbnail, encoded anew: nothing of a foreign file but its pixels gets into the page."""
    picture = thumbnail(content, THUMBNAIL)
    out = io.BytesIO()
    if max(picture.size) == THUMBNAIL:
        picture.save(out, "JPEG", quality=88)
        kind = "jpeg"
    else:
        picture.save(out, "PNG")  # small images are looked at by the pixel
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
