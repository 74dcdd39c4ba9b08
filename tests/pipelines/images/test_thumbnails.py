import base64
import io
import struct

import numpy as np
import pytest
from PIL import Image

from pipelines.images import thumbnails
from pipelines.images.check import foreign_images
from pipelines.images.thumbnails import Format, Thumbnail, encode

PAGE = Format(side=112, codec="WEBP", quality=75, lossless_below=49, decoded_side=224)
RNG = np.random.default_rng(0)
# An orientation, and a resolution unit of 4,000,000,000, which Pillow cannot write back.
BROKEN = (
    b"Exif\0\0MM\0*\0\0\0\x08\0\x02"
    + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    + struct.pack(">HHII", 0x0128, 4, 1, 4_000_000_000)
    + b"\0\0\0\0"
)


def saved(picture: Image.Image, codec: str, exif: bytes = b"") -> bytes:
    out = io.BytesIO()
    picture.save(out, codec, exif=exif)
    return out.getvalue()


def decoded(thumbnail: Thumbnail) -> np.ndarray:
    with Image.open(io.BytesIO(thumbnail.content)) as opened:
        return np.asarray(opened.convert("RGB"))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_large_pictures_become_small_ones() -> None:
    large = saved(Image.effect_mandelbrot((900, 600), (-2, -1, 1, 1), 20), "PNG")
    with foreign_images():
        found = encode(large, thumbnails.CONTACT_SHEET)
    assert found.data_uri.startswith("data:image/jpeg;base64,") and not found.lossless
    assert len(found.data_uri) < 40_000
    assert base64.b64decode(found.data_uri.partition(",")[2]) == found.content


@pytest.mark.parametrize(("width", "height"), [(48, 20), (3, 48)])
def test_small_pictures_keep_every_pixel(width: int, height: int) -> None:
    picture = noise(width, height)
    for format_ in (PAGE, thumbnails.CONTACT_SHEET):
        found = encode(saved(picture, "PNG"), format_)
        assert found.lossless and (decoded(found) == np.asarray(picture)).all()


def test_a_picture_between_small_and_large_keeps_its_size_but_is_not_lossless() -> None:
    found = encode(saved(noise(49, 30), "PNG"), PAGE)
    assert not found.lossless and decoded(found).shape == (30, 49, 3)


@pytest.mark.parametrize("decoded_side", [None, 224])
def test_exif_turns_a_picture_upright(decoded_side: int | None) -> None:
    picture = noise(1200, 600).resize((1200, 600))
    turned = Image.Exif()
    turned[0x0112] = 6
    found = thumbnails.thumbnail(saved(picture, "JPEG", turned.tobytes()), 100, decoded_side)
    assert found.size == (50, 100) and found.mode == "RGB"


def test_broken_exif_does_not_hide_a_picture() -> None:
    content = saved(noise(64, 32), "JPEG", BROKEN)
    with foreign_images():
        assert decoded(encode(content, PAGE)).shape == (64, 32, 3)  # turned, as its orientation can be read
