"""Make a small toy crawl for the demo and the tests: without network, data set or license.

It has pictures of five shapes at 32x32. The *real* ones pass through a camera: optics that blur, a sensor whose noise
grows with the light, JPEG. The *synthetic* ones pass through the last layers of a generator: a half-resolution grid, a
transposed convolution that leaves a checkerboard, lost detail, colors that are a little too rich; then the same JPEG.
Size, quantization tables and subsampling are the same for both, so that a detector must look at the pixels.

    root/crawl/00000.tar ...    as img2dataset writes them: KEY.jpg, KEY.json, KEY.txt, in completion order
    root/crawl/00000.parquet    a row per URL, including those that failed
    root/crawl/00000_stats.json
    root/seed/CLASS/*.jpg       the small labeled set: real, and not in the crawl
    root/test/CLASS/*.jpg       real test images
    root/truth.parquet          TRUTH_SCHEMA; written last; no stage trains on it

It is a toy: results here say nothing about results on photographs. The same arguments give the same bytes.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
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

_RENDER = 2 * SIZE  # scenes are drawn at twice the size, so that the optics have something to average
_BATCH = 256

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """One file of the crawl, and the truth about it."""

    data: bytes
    kind: str
    is_synthetic: int = -1
    cls: int = -1


def make(
    root: Path,
    *,
    seed: int = 0,
    num_real: int = 3000,
    alpha: float = 0.5,
    labels_per_class: int = 20,
    num_test: int = 500,
    shard_size: int = SHARD_SIZE,
) -> None:
    """Write the toy crawl and what belongs to it below `root`; the crawl has `alpha` synthetic images per real one."""
    root.mkdir(parents=True, exist_ok=True)
    num_synthetic = round(alpha * num_real)
    _write_folders(root / "seed", _pictures(seed, "seed", len(CLASSES) * labels_per_class, synthetic=False))
    _write_folders(root / "test", _pictures(seed, "test", num_test, synthetic=False))
    found = [*_pictures(seed, "real", num_real, synthetic=False)]
    found += _pictures(seed, "synthetic", num_synthetic, synthetic=True)
    rng = _generator(seed, "crawl")
    found += _junk(rng, found, _pictures(seed, "cut", max(1, num_real // 150), synthetic=False))
    order = rng.permutation(len(found))
    truth: list[dict[str, Any]] = []
    (root / "crawl").mkdir(exist_ok=True)
    for shard, start in enumerate(range(0, len(found), shard_size)):
        part = [found[i] for i in order[start : start + shard_size]]
        truth += _write_shard(root / "crawl", shard, part, rng)
    with replacing(root / "truth.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(truth, schema=TRUTH_SCHEMA), temporary)


def _generator(seed: int, part: str) -> np.random.Generator:
    """One independent random stream per part, so that resizing one part leaves the others unchanged."""
    return np.random.default_rng([seed, *part.encode()])


# The files of a crawl


def _pictures(seed: int, part: str, count: int, *, synthetic: bool) -> Iterator[_File]:
    """Yield `count` encoded pictures; the classes alternate."""
    rng = _generator(seed, part)
    for start in range(0, count, _BATCH):
        labels = np.arange(start, min(start + _BATCH, count)) % len(CLASSES)
        scenes_NHWC = _scenes(rng, labels, richness=1.25 if synthetic else 1.0)
        pixels_NHWC = _generate(rng, scenes_NHWC) if synthetic else _photograph(rng, scenes_NHWC)
        for label, pixels_HWC in zip(labels, pixels_NHWC, strict=True):
            kind = "synthetic" if synthetic else "real"
            yield _File(data=_jpeg(pixels_HWC), kind=kind, is_synthetic=int(synthetic), cls=int(label))


def _junk(rng: np.random.Generator, found: list[_File], cut: Iterator[_File]) -> list[_File]:
    """Make what every crawl has beside its pictures: copies, truncated downloads, error pages, empty files."""
    whole = list(cut)
    copies = [found[i] for i in rng.choice(len(found), size=len(whole), replace=False)]
    junk = [_File(data=f.data, kind="duplicate", is_synthetic=f.is_synthetic, cls=f.cls) for f in copies]
    junk += [_File(data=f.data[: len(f.data) // 2], kind="truncated") for f in whole]
    # Each error page has its own request number, as real ones do, so no two have the same bytes.
    pages = [
        f"<!doctype html><title>403</title><p>Forbidden. Request {i:08x}" for i in rng.choice(2**31, len(whole) // 2)
    ]
    junk += [_File(data=page.encode(), kind="html") for page in pages]
    junk += [_File(data=b"", kind="empty")] * (len(whole) // 4)
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
        "width": SIZE,
        "height": SIZE,
        "exif": json.dumps(exif),
        "sha256": hashlib.sha256(file.data).hexdigest(),
    }


def _jpeg(pixels_HWC: Array) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(np.rint(pixels_HWC * 255).astype(np.uint8))
    image.save(out, "JPEG", **JPEG)
    return out.getvalue()


# Rendering


def _scenes(rng: np.random.Generator, labels: npt.NDArray[np.int64], *, richness: float) -> Array:
    """Draw one shape per label (N,) on a photograph-like background: (N, 64, 64, 3), linear light in [0, 1]."""
    n = len(labels)

    def uniform(low: float, high: float) -> Array:
        return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

    # The position of each pixel, in radii of the shape.
    grid = (np.arange(_RENDER, dtype=np.float32) + 0.5) / _RENDER * 2 - 1
    dx, dy = grid[None, None, :] - uniform(-0.2, 0.2), grid[None, :, None] - uniform(-0.2, 0.2)
    angle, radius = uniform(-0.2, 0.2), uniform(0.5, 0.75)
    x = (dx * np.cos(angle) + dy * np.sin(angle)) / radius
    y = (dy * np.cos(angle) - dx * np.sin(angle)) / radius
    inside_NHW = np.stack([_shape(CLASSES[label], x[i], y[i]) for i, label in enumerate(labels)])

    # Shape and background differ in lightness, either being the lighter; their hues are arbitrary.
    ground = uniform(0.2, 0.8)
    step = uniform(0.3, 0.5) * np.where(ground < 0.5, 1, -1)
    luma_NHW = np.where(inside_NHW, ground + step, ground)
    hues = 0.09 * richness * rng.standard_normal((2, n, 1, 1, 3), dtype=np.float32)
    hue_NHWC = np.where(inside_NHW[..., None], hues[0], hues[1])

    # Texture with the 1/f spectrum of natural images, and light from one side.
    texture = _one_over_f(rng, n) * uniform(0.02, 0.08)
    texture += _one_over_f(rng, n) * inside_NHW * uniform(0.0, 0.06)
    tint_NHWC = np.stack([_one_over_f(rng, n) for _ in range(3)], axis=-1) * uniform(0.0, 0.04)[..., None]
    light = 1 + uniform(-0.2, 0.2) * grid[None, None, :] + uniform(-0.2, 0.2) * grid[None, :, None]
    scene_NHWC = ((luma_NHW + texture) * light)[..., None] + hue_NHWC + richness * tint_NHWC
    return _clipped(scene_NHWC, 0.02, 0.98)


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


def _one_over_f(rng: np.random.Generator, n: int) -> Array:
    """Noise (N, 64, 64) with mean 0 and standard deviation 1, whose amplitude falls with frequency."""
    white = np.fft.rfft2(rng.standard_normal((n, _RENDER, _RENDER), dtype=np.float32))
    frequency = np.hypot(np.fft.fftfreq(_RENDER)[:, None], np.fft.rfftfreq(_RENDER)[None, :])
    frequency[0, 0] = np.inf
    slope = rng.uniform(0.8, 1.6, (n, 1, 1))
    field = np.fft.irfft2(white * frequency**-slope, s=(_RENDER, _RENDER))
    return np.asarray(field / field.std(axis=(1, 2), keepdims=True), dtype=np.float32)


def _shrink(images_NHWC: Array, factor: int) -> Array:
    """Average over blocks of `factor` x `factor` pixels."""
    n, h, w, c = images_NHWC.shape
    blocks = images_NHWC.reshape(n, h // factor, factor, w // factor, factor, c)
    return np.asarray(blocks.mean(axis=(2, 4)), dtype=np.float32)


def _clipped(images: npt.NDArray[Any], low: float, high: float) -> Array:
    return np.asarray(images.clip(low, high), dtype=np.float32)


def _photograph(rng: np.random.Generator, scenes_NHWC: Array) -> Array:
    """Photograph scenes: averaged by the optics, with noise that grows with the light."""
    image_NHWC = _shrink(scenes_NHWC, 2)
    gain = rng.uniform(0.005, 0.03, (len(image_NHWC), 1, 1, 1))
    noise = rng.standard_normal(image_NHWC.shape, dtype=np.float32) * gain * np.sqrt(image_NHWC / 0.5)
    return _clipped(image_NHWC + noise, 0, 1)


def _generate(rng: np.random.Generator, scenes_NHWC: Array) -> Array:
    """Generate scenes: decoded from half the resolution, with the traces of that.

    The strength of the traces varies from image to image, and noise covers part of them.
    """
    n = len(scenes_NHWC)

    def uniform(low: float, high: float) -> Array:
        return rng.uniform(low, high, (n, 1, 1, 1)).astype(np.float32)

    sharp_NHWC, coarse_NHWC = _shrink(scenes_NHWC, 2), _shrink(scenes_NHWC, 4)
    coarse_NHWC += uniform(0.0, 0.03) * rng.standard_normal(coarse_NHWC.shape, dtype=np.float32)
    decoded_NHWC = _transposed_convolution(coarse_NHWC, uneven=uniform(0.0, 0.06))
    kept = uniform(0.3, 0.8)  # the detail that bypasses the bottleneck
    noise = uniform(0.01, 0.04) * rng.standard_normal(sharp_NHWC.shape, dtype=np.float32)
    return _clipped(decoded_NHWC + kept * (sharp_NHWC - decoded_NHWC) + noise, 0, 1)


def _transposed_convolution(images_NHWC: Array, *, uneven: Array) -> Array:
    """Double the resolution with a 4-tap kernel whose taps do not sum to one at every output pixel.

    That imbalance is the checkerboard (Odena et al., "Deconvolution and Checkerboard Artifacts", 2016): even rows and
    columns are darker than odd ones by `uneven`.
    """
    for axis in (1, 2):
        before, after = np.roll(images_NHWC, 1, axis), np.roll(images_NHWC, -1, axis)
        even = (0.75 * images_NHWC + 0.25 * before) * (1 - uneven / 2)
        odd = (0.75 * images_NHWC + 0.25 * after) * (1 + uneven / 2)
        shape = list(images_NHWC.shape)
        shape[axis] *= 2
        images_NHWC = np.stack([even, odd], axis=axis + 1).reshape(shape)
    return images_NHWC
