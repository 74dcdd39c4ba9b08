"""Copies are told from pictures that a perceptual hash takes for copies."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from pipelines.images.phash import phash
from pipelines.run.duplicates import turned_hashes
from pipelines.run.likeness import ALIKE, Look


def picture(seed: int, size: tuple[int, int] = (224, 160)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def look(image: Image.Image, kind: str = "PNG", **options: Any) -> Look:
    found = Look.of(encoded(image, kind, **options))
    assert found
    return found


def on_white(thing: Image.Image, at: tuple[int, int] = (20, 20)) -> Image.Image:
    ground = Image.new("RGB", (600, 224), "white")
    ground.paste(thing, at)
    return ground


def word(text: str) -> Image.Image:
    ground = Image.new("RGB", (640, 480), "white")
    ImageDraw.Draw(ground).text((250, 220), text, fill="black", font_size=40)
    return ground


def test_copies_are_alike() -> None:
    image = picture(1)
    original = look(image)
    copies = [
        look(image, "JPEG", quality=30),
        look(image.resize((90, 64)), "WEBP", quality=70),
        look(image.convert("L")),
        look(ImageEnhance.Brightness(image).enhance(1.25)),
        *(look(image.crop((x, y, x + 213, y + 152)), "JPEG") for x in (0, 5, 11) for y in (0, 4, 8)),
    ]
    assert all(copy.likeness(original) >= ALIKE and original.likeness(copy) >= ALIKE for copy in copies)
    assert original.likeness(look(ImageOps.mirror(image))) < ALIKE
    assert all(look(picture(seed)).likeness(original) < 0.7 for seed in range(2, 12))


def test_different_things_on_white_are_not_alike_and_copies_of_one_are() -> None:
    words = [look(word(text), "JPEG") for text in ("404", "Login", "Sorry", "No image")]
    things = [look(on_white(picture(seed, (40, 40)), (20 + seed, 20))) for seed in range(5)]
    for group in (words, things):
        for i, one in enumerate(group):
            assert all(one.likeness(other) < ALIKE for other in group[:i])
    thing = on_white(picture(3, (40, 40)))
    for kind, size, options in (("JPEG", (600, 224), {"quality": 60}), ("PNG", (480, 179), {})):
        assert look(thing).likeness(look(thing.resize(size), kind, **options)) >= ALIKE  # type: ignore[arg-type]


@pytest.mark.parametrize("color", ["white", "black", "red"])
def test_a_blank_picture_shows_nothing(color: str) -> None:
    assert Look.of(encoded(Image.new("RGB", (64, 64), color), "JPEG")) is None
    assert Look.of(b"no image") is None


def test_a_turned_look_and_a_turned_hash_are_those_of_the_turned_picture() -> None:
    image = picture(7, (96, 96)).convert("L")
    straight = look(image)
    for turn in range(8):
        pixels = np.asarray(image)[:, ::-1] if turn & 4 else np.asarray(image)
        turned = Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turn & 3)))
        assert look(turned).likeness(straight.turned(turn)) > 0.97
        (guessed,) = turned_hashes(np.array([phash(np.asarray(image))], dtype=np.uint64), turn)
        assert (int(guessed) ^ phash(np.asarray(turned))).bit_count() <= 8
