import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import CorruptShard
from pipelines.images.views import Decoder


def png(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_image_of_the_right_size_is_untouched() -> None:
    pixels = noise(32, 32)
    image, tile = Decoder(32, 32).decode("k", png(pixels))
    assert np.array_equal(image, pixels.transpose(2, 0, 1))
    assert np.array_equal(tile, image)


def test_the_tile_is_native_pixels_at_a_position_set_by_the_file() -> None:
    pixels = noise(90, 120)
    positions = set()
    for i in range(20):
        exif = Image.Exif()
        exif[0x010E] = f"copy {i}"  # the same pixels in another file
        data = png(pixels, exif=exif)
        _, tile = Decoder(32, 48).decode("in the pool", data)
        found = [
            (y, x)
            for y in range(90 - 48 + 1)
            for x in range(120 - 48 + 1)
            if np.array_equal(pixels[y, x], tile[:, 0, 0])
            and np.array_equal(pixels[y : y + 48, x : x + 48], tile.transpose(1, 2, 0))
        ]
        assert len(found) == 1
        positions.add(found[0])
        again = Decoder(32, 48).decode("from outside", data)[1]
        assert np.array_equal(tile, again)
    assert len(positions) > 15


def test_small_images_are_mirrored_not_resized_for_the_detector() -> None:
    pixels = noise(20, 48)
    _, tile = Decoder(32, 48).decode("k", png(pixels))
    assert tile.shape == (3, 48, 48)
    assert np.array_equal(tile[:, :20], pixels.transpose(2, 0, 1))
    assert np.array_equal(tile[:, 20:40], pixels[::-1].transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1", "LA"])
def test_all_modes_become_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    picture = Image.fromarray(noise(40, 40))
    if mode == "I;16":
        picture = Image.fromarray(noise(40, 40)[..., 0].astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    picture.save(buffer, "TIFF")
    image, tile = Decoder(32, 16).decode("k", buffer.getvalue())
    assert image.shape == (3, 32, 32)
    assert tile.shape == (3, 16, 16)


def test_exif_rotation_is_applied() -> None:
    pixels = np.zeros((64, 32, 3), dtype=np.uint8)
    pixels[:32] = 200  # bright above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image, _ = Decoder(32, 16).decode("k", png(pixels, exif=exif))
    assert image[:, :4].mean() < image[:, -4:].mean()


def test_broken_bytes_are_one_sentence_with_the_key() -> None:
    with pytest.raises(CorruptShard, match="image 000000007"):
        Decoder(32, 32).decode("000000007", png(noise(32, 32))[:200])


def test_batch_shares_pixels_where_the_views_coincide() -> None:
    with ThreadPoolExecutor(2) as threads:
        small = Decoder(32, 32).batch(["a", "b"], [png(noise(32, 32))] * 2, threads)
        large = Decoder(32, 32).batch(["a", "b"], [png(noise(64, 64))] * 2, threads)
    assert small.tiles is small.images
    assert large.tiles is not large.images
    assert small.images.shape == large.tiles.shape == (2, 3, 32, 32)
