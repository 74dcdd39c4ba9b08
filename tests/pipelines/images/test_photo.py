"""What a frozen network is shown of photographs of many shapes."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipelines.errors import CorruptShard
from pipelines.images.photo import COMMON_SIDE, PhotoDecoder
from pipelines.images.views import symmetric

SIZE = 224


def coordinates(height: int, width: int) -> npt.NDArray[np.uint8]:
    """An image whose pixels say where they are: row, column and the rest of both, so no two tiles are equal."""
    row, column = np.indices((height, width))
    return np.stack((row % 251, column % 251, (row // 251 * 16 + column // 251) % 256), 2).astype(np.uint8)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    saved = io.BytesIO()
    Image.fromarray(pixels).save(saved, "PNG", compress_level=1)
    return saved.getvalue()


def positions(tiles: npt.NDArray[np.uint8], size: int) -> list[tuple[int, int]]:
    """Top and left of each tile of `coordinates`, by its first pixel."""
    found = []
    for tile in tiles.astype(int):
        row, column, rest = tile[:, 0, 0]
        found.append((int(rest // 16 * 251 + row), int(rest % 16 * 251 + column)))
    return found


@pytest.mark.parametrize(
    ("height", "width", "most", "count"),
    [
        (1, 1, 4, 1),
        (10, 2000, 4, 4),
        (224, 224, 4, 1),
        (225, 224, 4, 2),
        (300, 300, 4, 4),
        (512, 512, 9, 9),
        (1200, 900, 1, 1),
        (1200, 1800, 6, 6),
        (1200, 1800, 4, 4),
        (720, 1280, 4, 4),
        (1280, 720, 9, 9),
        (400, 3000, 4, 4),
        (448, 448, 64, 4),
    ],
)
def test_tiles_are_native_pixels_of_the_image_as_many_as_fit(height: int, width: int, most: int, count: int) -> None:
    native = coordinates(height, width)
    photo = PhotoDecoder(SIZE, most).decode("a", png(native))
    assert photo.native.shape == (count, 3, SIZE, SIZE) and photo.native.dtype == np.uint8
    padded = symmetric(native, SIZE)
    found = positions(photo.native, SIZE)
    assert len(set(found)) == count
    for tile, (top, left) in zip(photo.native, found, strict=True):
        assert top + SIZE <= max(height, SIZE) and left + SIZE <= max(width, SIZE)
        assert np.array_equal(tile.transpose(1, 2, 0), padded[top : top + SIZE, left : left + SIZE])
    assert photo.thumbnail.shape == (3, SIZE, SIZE)
    assert 1 <= len(photo.common) <= most and photo.common.shape[1:] == (3, SIZE, SIZE)


def test_a_small_image_is_continued_by_its_mirror_image() -> None:
    native = coordinates(100, 150)
    (tile,) = PhotoDecoder(SIZE, 4).decode("a", png(native)).native
    assert np.array_equal(tile[:, :100, :150].transpose(1, 2, 0), native)
    assert np.array_equal(tile[:, 100:200], tile[:, 99::-1])
    assert np.array_equal(tile[:, :, 150:], tile[:, :, 149:75:-1])


def test_tiles_of_a_large_image_do_not_overlap_and_cover_all_of_its_quarters() -> None:
    found = positions(PhotoDecoder(SIZE, 4).decode("a", png(coordinates(1000, 1400))).native, SIZE)
    assert [(top // 500, left // 700) for top, left in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(top % 500 <= 500 - SIZE and left % 700 <= 700 - SIZE for top, left in found)


def test_the_position_of_a_tile_is_a_function_of_the_bytes_alone() -> None:
    data = png(coordinates(700, 900))
    one, again = (PhotoDecoder(SIZE, 4).decode(key, data) for key in ("a", "b"))
    assert all(np.array_equal(x, y) for x, y in zip(one, again, strict=True))
    saved = io.BytesIO()
    Image.open(io.BytesIO(data)).save(saved, "PNG", compress_level=6)
    assert not np.array_equal(one.native, PhotoDecoder(SIZE, 4).decode("a", saved.getvalue()).native)


@pytest.mark.parametrize(("height", "width"), [(200, 300), (2000, 3000)])
def test_the_common_scale_hides_how_large_an_image_is(height: int, width: int) -> None:
    """A wave of ten periods over the shorter side has as many over every COMMON_SIDE pixels there."""
    wave = 128 + 60 * np.sin(2 * np.pi * 10 * np.arange(width) / height)
    native = np.broadcast_to(wave[None, :, None], (height, width, 3)).astype(np.uint8)
    (tile, *_) = PhotoDecoder(SIZE, 4).decode("a", png(np.ascontiguousarray(native))).common
    row = tile[0, SIZE // 2].astype(float)
    crossings = int((np.diff(np.sign(row - row.mean())) != 0).sum())
    assert crossings == pytest.approx(2 * 10 * SIZE / COMMON_SIDE, abs=1)


def test_what_is_not_an_image_is_named() -> None:
    with pytest.raises(CorruptShard, match="image broken"):
        PhotoDecoder(SIZE, 4).decode("broken", b"\xff\xd8\xff nothing")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_photograph_of_50_megapixels_takes_bounded_memory() -> None:
    """Decoding holds the pixels, 150 MB, a few times over at most."""
    code = """
import io, re
from pathlib import Path
import numpy as np
from PIL import Image
from pipelines.images.photo import PhotoDecoder
small = np.random.default_rng(0).integers(0, 256, (550, 900, 3), dtype=np.uint8)
saved = io.BytesIO()
Image.fromarray(small).resize((9000, 5500), Image.Resampling.NEAREST).save(saved, "JPEG", quality=80)
Image.MAX_IMAGE_PIXELS = None
data = saved.getvalue()
for _ in range(3):
    photo = PhotoDecoder(224, 4).decode("large", data)
print(photo.native.shape[0], re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    count, peak_kb = map(int, done.stdout.split())
    assert count >= 1
    assert 150_000 < peak_kb < 1_200_000
