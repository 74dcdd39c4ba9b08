"""Textured photographs of 160 pixels and more, real ones and synthetic ones, for tests of the path that takes them."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = ("blue", "red")


def jpeg(number: int, *, synthetic: bool) -> bytes:
    """A texture with the noise of a sensor, of the class `CLASSES[number % 2]`; a synthetic one is upsampled by two."""
    rng = np.random.default_rng(number + 10_000 * synthetic)
    height, width = 160 + 8 * int(rng.integers(0, 4)), 176 + 8 * int(rng.integers(0, 4))
    scale = 2 if synthetic else 1
    picture = texture(rng, height // scale, width // scale)
    picture[..., 2 if CLASSES[number % 2] == "blue" else 0] += 60
    picture += rng.normal(0, 6, picture.shape)
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    saved = io.BytesIO()
    image.save(saved, "JPEG", quality=92)
    return saved.getvalue()


def texture(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float64]:
    """Noise whose amplitude falls with the frequency, as in natural images: (H, W, 3) around 110."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) + 1 / width
    planes = []
    for _ in range(3):
        spectrum = np.fft.fft2(rng.normal(size=(height, width))) / frequency
        plane = np.fft.ifft2(spectrum).real
        planes.append(110 + 35 * (plane - plane.mean()) / plane.std())
    return np.stack(planes, 2)


def write(folder: Path, numbers: range, *, synthetic: bool, classes: bool = False) -> None:
    """Save images as FOLDER/real-0001.jpg, or each in the folder of its class."""
    for number in numbers:
        inside = folder / CLASSES[number % 2] if classes else folder
        inside.mkdir(parents=True, exist_ok=True)
        name = f"{'synthetic' if synthetic else 'real'}-{number:04}.jpg"
        (inside / name).write_bytes(jpeg(number, synthetic=synthetic))
