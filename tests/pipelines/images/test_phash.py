"""The hash agrees with `imagehash`, and survives what happens to copies of an image."""

import io

import imagehash
import numpy as np
from PIL import Image

from pipelines.images.check import Accepted, Limits, examine, foreign_images
from pipelines.images.phash import phash


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Something with both large shapes and texture, as photographs have."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed + 1).normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


def test_the_hash_is_imagehashs_on_fully_decoded_images() -> None:
    sizes = [(32, 32), (64, 64), (80, 60), (224, 224), (333, 517), (20, 50)]
    images = [picture(*size, seed=seed) for seed in range(20) for size in sizes]
    distances = []
    for image in images:
        ours = phash(np.asarray(image.convert("L")))
        distances.append((ours ^ int(str(imagehash.phash(image)), 16)).bit_count())
    assert max(distances) <= 4  # Pillow rounds to 8 bits between the axes, we don't
    assert np.mean(distances) < 0.5


def test_the_hash_of_a_jpeg_survives_its_scaled_decode_and_recompression() -> None:
    distances = []
    for seed in range(20):
        image = picture(300, 260, seed=seed)
        reference = int(str(imagehash.phash(image)), 16)
        for quality in (95, 60):
            out = io.BytesIO()
            image.save(out, "JPEG", quality=quality)
            with foreign_images():
                found = examine(out.getvalue(), None, Limits(min_side=16, max_pixels=250_000, max_bytes=1 << 20))
            assert isinstance(found, Accepted)
            distances.append((found.phash ^ reference).bit_count())
    assert max(distances) <= 10 and np.mean(distances) < 3  # of 64; different images differ in 32


def test_flat_images_have_one_hash() -> None:
    hashes = {phash(np.full(size, value, np.uint8)) for size in [(32, 32), (57, 40)] for value in (3, 128, 255)}
    assert len(hashes) == 1
