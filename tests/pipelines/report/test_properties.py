"""What is read from a file."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.images.check import foreign_images
from pipelines.report.properties import look

NOISE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, format_: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format_, **options)
    return out.getvalue()


def seen(content: bytes) -> dict[str, Any]:
    with foreign_images():
        return look(content)


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 51, 75, 90, 95, 100])
def test_the_quality_of_a_jpeg_is_found_in_its_tables(quality: int) -> None:
    assert seen(encoded(NOISE, "JPEG", quality=quality))["JPEG quality"] == quality


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_the_subsampling_of_a_jpeg_is_found_in_its_header(subsampling: str) -> None:
    assert seen(encoded(NOISE, "JPEG", subsampling=subsampling))["chroma subsampling"] == subsampling


def test_other_formats_have_neither_and_a_grey_jpeg_has_no_chroma() -> None:
    for format_ in ("PNG", "WEBP", "GIF"):
        assert seen(encoded(NOISE, format_)).items() >= {"JPEG quality": None, "chroma subsampling": None}.items()
    assert seen(encoded(NOISE[..., 0], "JPEG"))["chroma subsampling"] == "no chroma"


def test_grey_is_what_has_hardly_a_color() -> None:
    grey = np.repeat(NOISE[..., :1], 3, axis=2)
    tinted = grey.clip(0, 250) + np.array([5, 0, 0], dtype=np.uint8)
    colored = grey.clip(0, 240) + np.array([8, 0, 0], dtype=np.uint8)
    found = [seen(encoded(pixels, "PNG"))["greyness"] for pixels in (grey, tinted, colored, NOISE)]
    assert found == ["grey", "grey", "color", "color"]
