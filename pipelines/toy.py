"""Make a small toy crawl for the demo and the tests: without network, data set or license.

It has pictures of five shapes, of any size. The *real* ones pass through a camera: optics that blur, a sensor whose
noise grows with the light and which sees one color at each site, demosaicing, JPEG. The *synthetic* ones are such
photographs that went through a generator's decoder: from an eighth, a quarter or half of the resolution upward, each
stage by a transposed convolution or by nearest neighbors and a convolution. It leaves a checkerboard of its period,
mirror images of the spectrum, and detail that is partly lost and partly made up; then comes the same JPEG. Scenes,
sizes, quantization tables and subsampling are the same for both, so that a detector must look at the pixels, and noise
of about the same strength in both, so that no single statistic of them tells.

    root/crawl/00000.tar ...    as img2dataset writes them: KEY.jpg, KEY.json, KEY.txt, in completion order
    root/crawl/00000.parquet    a row per URL, including those that failed
    root/crawl/00000_stats.json
    root/seed/CLASS/*.jpg       the small labeled set: real, and not in the crawl
    root/test/CLASS/*.jpg       real test images
    root/truth.parquet          TRUTH_SCHEMA; written last; no stage trains on it

It is a toy: results here say nothing about results on photographs. The same arguments give the same bytes.

Shape suffixes: N images, H and W pixels, C channels.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.storage.atomic import replacing

CLASSES = ("cross", "disc", "square", "stripes", "triangle")
SIZE = 32
SHARD_SIZE = 500
JPEG = {"quality": 92, "subsampling": "4:2:0"}

TRUTH_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # stem of the crawl's member
        pa.field("sha256", pa.string(), nullable=False),  # of its bytes
        pa.field("is_synthetic", pa.int8(), nullable=False),  # 1, 0, or -1 for a file that is not an image
        pa.field("cls", pa.int8(), nullable=False),  # index into CLASSES, or -1
        pa.field("kind", pa.string(), nullable=False),  # real, synthetic, duplicate, truncated, html or empty
    ]
)

# The columns of img2dataset's own parquet that matter here.
_CRAWL_SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
    ]
)

_BATCH_PIXELS = 2**18  # pictures of one size are painted together
_GRID = 8  # sides are multiples of it
_SMALLEST_LATENT = 16  # pixels that a decoder starts from at least

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """One file of the crawl, and the truth about it."""

    data: bytes
    kind: str
    is_synthetic: int = -1
    cls: int = -1
    size: tuple[int, int] = (0, 0)  # width and height


def make(
    root: Path,
    *,
    seed: int = 0,
    num_real: int = 3000,
    alpha: float = 0.5,
    labels_per_class: int = 20,
    num_test: int = 500,
    shard_size: int = SHARD_SIZE,
    sides: tuple[int, int] = (SIZE, SIZE),
) -> None:
    """Write the toy crawl and what belongs to it below `root`; the crawl has `alpha` synthetic images per real one.

    `sides` are the shortest and the longest side of the pictures in pixels, at least 32 and multiples of 8.
    """
    root.mkdir(parents=True, exist_ok=True)
    num_synthetic = round(alpha * num_real)
    world = _World(seed, sides)
    _write_folders(root / "seed", world.pictures("seed", len(CLASSES) * labels_per_class, synthetic=False))
    _write_folders(root / "test", world.pictures("test", num_test, synthetic=False))
    found = [*world.pictures("real", num_real, synthetic=False)]
    found += world.pictures("synthetic", num_synthetic, synthetic=True)
    rng = world.stream("crawl")
    found += _junk(rng, found, world.pictures("cut", max(1, num_real // 150), synthetic=False))
    order = rng.permutation(len(found))
    truth: list[dict[str, Any]] = []
    (root / "crawl").mkdir(exist_ok=True)
    for shard, start in enumerate(range(0, len(found), shard_size)):
        part = [found[i] for i in order[start : start + shard_size]]
        truth += _write_shard(root / "crawl", shard, part, rng)
    with replacing(root / "truth.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(truth, schema=TRUTH_SCHEMA), temporary)


@dataclass(frozen=True, slots=True)
class _World:
    """Paints pictures."""

    seed: int
    sides: tuple[int, int]

    def stream(self, part: str) -> np.random.Generator:
        """One independent random stream per part, so that resizing one part leaves the others unchanged."""
        return np.random.default_rng([self.seed, *part.encode()])

    def pictures(self, part: str, count: int, *, synthetic: bool) -> Iterator[_File]:
        """Yield `count` encoded pictures; the classes alternate, and sizes cover their range evenly."""
        rng = self.stream(part)
        start, each = 0, max(len(CLASSES), _BATCH_PIXELS // self.sides[1] ** 2)
        for height, width in self._sizes(rng):
            labels = np.arange(start, min(start + each, count)) % len(CLASSES)
            if not len(labels):
                return
            pixels_NHWC = _photograph(rng, _scenes(rng, labels, height, width))
            if synthetic:
                pixels_NHWC = _generate(rng, pixels_NHWC)
            for label, pixels_HWC in zip(labels, pixels_NHWC, strict=True):
                kind, size = "synthetic" if synthetic else "real", (width, height)
                yield _File(data=_jpeg(pixels_HWC), kind=kind, is_synthetic=int(synthetic), cls=int(label), size=size)
            start += each

    def _sizes(self, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
        """Heights and widths without end, spread over the range like the points of the R2 sequence (Roberts, 2018)."""
        low, high = (side // _GRID for side in self.sides)
        point, step = rng.random(2), np.array([0.7548776662466927, 0.5698402909980532])
        while True:
            height, width = ((low + (point * (high - low + 1)).astype(int)) * _GRID).tolist()
            yield height, width
            point = (point + step) % 1


# The files of a crawl


def _junk(rng: np.random.Generator, found: list[_File], cut: Iterator[_File]) -> list[_File]:
    """Make what every crawl has beside its pictures: copies, truncated downloads, error pages, empty files."""
    whole = list(cut)
    copies = [found[i] for i in rng.choice(len(found), size=len(whole), replace=False)]
    junk = [replace(file, kind="duplicate") for file in copies]
    junk += [_File(data=f.data[: len(f.data) // 2], kind="truncated") for f in whole]
    # Each error page has its own request number, as real ones do, so no two have the same bytes.
    pages = [
        f"<!doctype html><title>403</title><p>Forbidden. Request {i:08x}"
        for i in rng.choice(2**31, -(-len(whole) // 2))
    ]
    junk += [_File(data=page.encode(), kind="html") for page in pages]
    junk += [_File(data=b"", kind="empty")] * -(-len(whole) // 4)
    return junk


def _write_folders(root: Path, files: Iterator[_File]) -> None:
    for i, file in enumerate(files):
        folder = root / CLASSES[file.cls]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:05d}.jpg").write_bytes(file.data)


def _write_shard(crawl: Path, shard: int, files: list[_File], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Write one shard as img2dataset does. Returns its rows of the truth."""
    num_rows = len(files) + 1  # one URL is gone, so its key is missing from the tar
    gone, *arrived = (int(row) for row in rng.permutation(num_rows))
    rows, truth = [], []
    with tarfile.open(crawl / f"{shard:05d}.tar", "w") as tar:
        for row, file in zip(arrived, files, strict=True):
            meta = _row(f"{shard:05d}{row:04d}", file, camera=file.kind == "real" and rng.random() < 0.1)
            for suffix, data in (
                ("jpg", file.data),
                ("json", json.dumps(meta, indent=4).encode()),
                ("txt", str(meta["caption"] or "").encode()),
            ):
                member = tarfile.TarInfo(f"{meta['key']}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            rows.append(meta)
            truth.append(
                {
                    "key": meta["key"],
                    "sha256": hashlib.sha256(file.data).hexdigest(),
                    "is_synthetic": file.is_synthetic,
                    "cls": file.cls,
                    "kind": file.kind,
                }
            )
    error = "HTTP Error 404: Not Found"
    rows.append(
        {
            "url": f"https://example.invalid/{shard}/{gone}.jpg",
            "key": f"{shard:05d}{gone:04d}",
            "status": "failed_to_download",
            "error_message": error,
        }
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=_CRAWL_SCHEMA), crawl / f"{shard:05d}.parquet")
    stats = {
        "count": num_rows,
        "successes": len(files),
        "failed_to_download": 1,
        "failed_to_resize": 0,
        "duration": 0.0,  # a real time would make every crawl different
        "start_time": 0.0,
        "end_time": 0.0,
        "status_dict": {"success": len(files), error: 1},
    }
    (crawl / f"{shard:05d}_stats.json").write_text(json.dumps(stats, indent=4))
    return truth


def _row(key: str, file: _File, *, camera: bool) -> dict[str, Any]:
    """Metadata of a sample. The caption does not name the shape. Few images name a camera, as in real crawls."""
    exif = {"Image Make": "Toyon", "Image Model": "Toyon T1"} if camera else {}
    return {
        "url": f"https://example.invalid/{key}.jpg",
        "caption": f"picture {key}",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": file.size[0],
        "height": file.size[1],
        "exif": json.dumps(exif),
        "sha256": hashlib.sha256(file.data).hexdigest(),
    }


def _jpeg(pixels_HWC: Array) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(np.rint(pixels_HWC * 255).astype(np.uint8))
    image.save(out, "JPEG", **JPEG)
    return out.getvalue()


# Scenes


def _scenes(rng: np.random.Generator, labels: npt.NDArray[np.int64], height: int, width: int) -> Array:
    """Draw one shape per label (N,) on a background like a photograph's: (N, H, W, 3), linear light in [0, 1]."""
    n = len(labels)
    y_H, x_W = (_positions(side, min(height, width)) for side in (height, width))
    inside_NHW = _shapes(rng, labels, height, width)

    # Shape and background differ in lightness, either being the lighter; their hues are arbitrary.
    ground = _uniform(rng, n, 0.2, 0.8)
    step = _uniform(rng, n, 0.3, 0.5) * np.where(ground < 0.5, 1, -1)
    hues = 0.1 * rng.standard_normal((3, n, 1, 1, 3), dtype=np.float32)

    # Texture with the 1/f spectrum of natural images, and light from one side.
    texture = _one_over_f(rng, inside_NHW.shape) * _uniform(rng, n, 0.02, 0.08)
    texture += _one_over_f(rng, inside_NHW.shape) * inside_NHW * _uniform(rng, n, 0.0, 0.06)
    tint_NHW = _one_over_f(rng, inside_NHW.shape) * _uniform(rng, n, 0.0, 0.4)
    light = 1 + _uniform(rng, n, -0.2, 0.2) * x_W + _uniform(rng, n, -0.2, 0.2) * y_H[:, None]
    gray_NHW = (ground + step * inside_NHW + texture) * light
    colors_NHWC = hues[0] + (hues[1] - hues[0]) * inside_NHW[..., None] + hues[2] * tint_NHW[..., None]
    return _clipped(gray_NHW[..., None] + colors_NHWC, 0.02, 0.98)


def _shapes(rng: np.random.Generator, labels: npt.NDArray[np.int64], height: int, width: int) -> Array:
    """How much of each pixel is inside the shape of its picture, (N, H, W) in [0, 1]."""
    n, short = len(labels), 2 * min(height, width)  # drawn at twice the size, then averaged
    dx = _positions(2 * width, short) - _uniform(rng, n, -0.2, 0.2)
    dy = _positions(2 * height, short)[:, None] - _uniform(rng, n, -0.2, 0.2)
    angle, radius = _uniform(rng, n, -0.2, 0.2), _uniform(rng, n, 0.5, 0.75)
    x = (dx * np.cos(angle) + dy * np.sin(angle)) / radius
    y = (dy * np.cos(angle) - dx * np.sin(angle)) / radius
    inside_NHW = np.stack([_shape(CLASSES[label], x[i], y[i]) for i, label in enumerate(labels)])
    return _shrink(inside_NHW[..., None].astype(np.float32), 2)[..., 0]


def _shape(name: str, x: Array, y: Array) -> Mask:
    """Whether each point (x, y) is inside the shape of radius 1 around the origin."""
    largest, smallest = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
    inside: dict[str, Mask] = {
        "cross": (largest < 1) & (smallest < 0.3),
        "disc": x**2 + y**2 < 1,
        "square": largest < 0.88,
        "stripes": (largest < 1) & (np.cos(3 * np.pi * y) > 0),
        "triangle": (y < 0.8) & (y > 2 * abs(x) - 1),
    }
    return inside[name]


def _positions(side: int, short: int) -> Array:
    """Centers of the pixels of a side, in halves of the shorter side from the middle."""
    return ((np.arange(side, dtype=np.float32) + 0.5) * 2 - side) / np.float32(short)


def _one_over_f(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Noise (N, H, W) with mean 0 and standard deviation 1, whose amplitude falls with frequency."""
    n, height, width = shape
    white = np.fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    slope = rng.uniform(0.8, 1.6, (n, 1, 1))
    field = np.fft.irfft2(white * (frequency**-slope).astype(np.float32), s=(height, width))
    return np.asarray(field / field.std(axis=(1, 2), keepdims=True), dtype=np.float32)


def _uniform(rng: np.random.Generator, n: int, low: float, high: float) -> Array:
    """A number for each picture, (N, 1, 1)."""
    return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)


def _clipped(images: npt.NDArray[Any], low: float, high: float) -> Array:
    return np.asarray(images.clip(low, high), dtype=np.float32)


# Cameras and generators


def _photograph(rng: np.random.Generator, scenes_NHWC: Array) -> Array:
    """Photograph scenes: blurred by the optics, seen by a noisy sensor through a mosaic of colors, demosaiced."""
    n, height, width, _ = scenes_NHWC.shape
    blur, gain = (_uniform(rng, n, *limits)[..., None] for limits in ((0.0, 0.2), (0.01, 0.06)))
    light_NHWC = _smooth(scenes_NHWC, blur)
    noise = rng.standard_normal(light_NHWC.shape, dtype=np.float32) * gain * np.sqrt(light_NHWC / 0.5)
    row, column = np.indices((height, width)) % 2
    sites_HWC = np.stack((row + column == 0, row != column, row + column == 2), axis=-1).astype(np.float32)
    seen_NHWC, quarter = (light_NHWC + noise) * sites_HWC, np.float32(0.25)
    return _clipped(_smooth(seen_NHWC, quarter) / _smooth(sites_HWC[None], quarter), 0, 1)


def _generate(rng: np.random.Generator, photos_NHWC: Array) -> Array:
    """Generate pictures like photographs: decoded from a lower resolution, with the traces of that.

    The pictures of a batch come from one architecture. The strength of the traces varies from picture to picture.
    """
    n, height, width, _ = photos_NHWC.shape
    most = min(3, int(np.log2(min(height, width) // _SMALLEST_LATENT)))
    stages = int(rng.integers(1, most + 1))
    image_NHWC = _shrink(photos_NHWC, 2**stages)
    kept, reach, grain = (_uniform(rng, n, *limits)[..., None] for limits in ((0.3, 0.75), (0.1, 0.3), (0.02, 0.05)))
    for stage in reversed(range(stages)):
        # The coarser the stage, the more of its checkerboard later ones wash out.
        uneven = 2**stage * rng.choice([-1, 1], (n, 1, 1, 1)) * _uniform(rng, n, 0.01, 0.04)[..., None]
        doubled_NHWC = image_NHWC.repeat(2, axis=1).repeat(2, axis=2)
        doubled_NHWC += rng.standard_normal(doubled_NHWC.shape, dtype=np.float32) * grain
        up_NHWC = _smooth(doubled_NHWC, reach)
        image_NHWC = _checkered(up_NHWC + kept * (_shrink(photos_NHWC, 2**stage) - up_NHWC), uneven)
    return _clipped(image_NHWC, 0, 1)


def _checkered(images_NHWC: Array, uneven: Array) -> Array:
    """Make even rows and columns darker than odd ones by `uneven` (N, 1, 1, 1).

    That is what a transposed convolution leaves whose taps do not sum to one at every output pixel (Odena et al.,
    "Deconvolution and Checkerboard Artifacts", 2016).
    """
    height, width = images_NHWC.shape[1:3]
    row, column = ((np.arange(side, dtype=np.float32) % 2) - 0.5 for side in (height, width))
    return np.asarray(images_NHWC * (1 + uneven * row[:, None, None]) * (1 + uneven * column[:, None]), np.float32)


def _smooth(images_NHWC: Array, reach: Array | np.float32) -> Array:
    """Take the share `reach` from both neighbors of each pixel, along rows and columns."""
    for axis in (1, 2):
        sides = np.roll(images_NHWC, 1, axis) + np.roll(images_NHWC, -1, axis)
        images_NHWC = (1 - 2 * reach) * images_NHWC + reach * sides
    return images_NHWC


def _shrink(images_NHWC: Array, factor: int) -> Array:
    """Average over blocks of `factor` x `factor` pixels."""
    n, h, w, c = images_NHWC.shape
    blocks = images_NHWC.reshape(n, h // factor, factor, w // factor, factor, c)
    return np.asarray(blocks.mean(axis=(2, 4)), dtype=np.float32)
