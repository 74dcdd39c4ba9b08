"""Properties of image files that have nothing to do with what an image shows, and that a detector could learn instead.

    from the manifest    format, width, height, aspect, bytes per pixel, source, domain
    from the file        JPEG quality, chroma subsampling, greyness

A property of a file that lacks it is None, such as the JPEG quality of a PNG.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, JpegImagePlugin

from pipelines.images.appearance import flat, with_image
from pipelines.images.check import Accepted, Limits, examine, foreign_images
from pipelines.pool.labeled_files import File
from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick, Tick
from pipelines.report.survey import read_rows

OPENED = ("JPEG quality", "chroma subsampling", "greyness")  # properties for which a file has to be opened
GREY = 6.0  # levels of 255: an image whose strongest and weakest channel differ by less, on average, counts as grey

_DECODED_SIDE = 256  # pixels; larger JPEGs are decoded at a fraction of their size to tell grey from color
_LIMITS = Limits(min_side=1, max_pixels=1 << 31, max_bytes=1 << 28)

# ITU-T T.81, table K.1: the luminance table that libjpeg's quality setting scales.
_LUMINANCE = np.array(
    [
        16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
        14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
        49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
    ]
)  # fmt: skip


def of_manifest(rows: pa.Table) -> dict[str, list[Any]]:
    """The values (N,) of the properties that rows of the manifest tell."""
    size = _of_size(*(rows[name].to_numpy() for name in ("width", "height", "num_bytes")))
    return {
        "format": rows["format"].to_pylist(),
        **size,
        **{name: rows[name].to_pylist() for name in ("source", "domain")},
    }


def of_files(pool: Pool, rows: pa.Table, on_tick: OnTick) -> dict[str, list[Any]]:
    """The values (N,) of the properties in OPENED, read from the files of `rows`."""
    opened = []
    with foreign_images():
        for done, content in enumerate(read_rows(pool, rows), 1):
            opened.append(look(content))
            on_tick(Tick(done=done, total=rows.num_rows, unit="files"))
    return {name: [found[name] for found in opened] for name in OPENED}


def of_labeled(paths: Sequence[File]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Bytes and properties of those files of a labeled set that are readable images; they have no source or domain."""
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError:
            continue
        with foreign_images():
            found = examine(content, None, _LIMITS)
            if isinstance(found, Accepted):
                size = _of_size([found.width], [found.height], [len(content)])
                yield content, {"format": found.format, **{k: v[0] for k, v in size.items()}, **look(content)}


def _of_size(width: npt.ArrayLike, height: npt.ArrayLike, num_bytes: npt.ArrayLike) -> dict[str, list[float]]:
    w, h, b = (np.asarray(values, dtype=float) for values in (width, height, num_bytes))
    values = {"width": w, "height": h, "aspect": (w / h).round(3), "bytes per pixel": b / (w * h)}
    return {name: value.tolist() for name, value in values.items()}


def look(content: bytes) -> dict[str, Any]:
    """JPEG quality (1..100) and chroma subsampling, None for other formats, and whether an image is grey or color.

    Call within `foreign_images`; the bytes must be those of an image that can be decoded.
    """
    return with_image(content, _look)


def _look(image: Image.Image) -> dict[str, Any]:
    found = {"JPEG quality": _jpeg_quality(image), "chroma subsampling": _subsampling(image)}
    image.draft("RGB", (_DECODED_SIDE, _DECODED_SIDE))
    red, green, blue = np.moveaxis(np.asarray(flat(image, "RGB")), 2, 0)
    highest = np.maximum(np.maximum(red, green), blue)  # `max` over so short an axis takes ten times as long
    spread = float((highest - np.minimum(np.minimum(red, green), blue)).mean())
    return found | {"greyness": "grey" if spread < GREY else "color"}


def _jpeg_quality(image: Image.Image) -> float | None:
    """The quality of libjpeg (jcparam.c) whose luminance table is nearest to that of a JPEG; None for other formats."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return None
    table = np.asarray(tables[min(tables)], dtype=np.int64)
    if table.shape != (64,):
        return None
    quality = np.arange(1, 101)
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    scaled = ((_LUMINANCE * percent[:, None] + 50) // 100).clip(1, 255)
    return float(quality[np.abs(scaled - table).sum(1).argmin()])


def _subsampling(image: Image.Image) -> str | None:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    if len(image.layer) != 3:
        return "no chroma"
    (_, across, down, _), chroma = image.layer[0], image.layer[1]
    names = {(1.0, 1.0): "4:4:4", (2.0, 1.0): "4:2:2", (2.0, 2.0): "4:2:0", (1.0, 2.0): "4:4:0", (4.0, 1.0): "4:1:1"}
    return names.get((across / chroma[1], down / chroma[2]), "other")
