"""A mixed crawl, as crawls are: three formats, captions here and there, JSON whose types change, and its export."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines import export, ingest
from pipelines.export import Summary
from pipelines.pool.manifest import Pool
from tests.pipelines.export.exports import settings, write_scores

NUM = 24
FORMATS = ("JPEG", "PNG", "WEBP")
CAMERA = "Canon"


def picture(number: int) -> bytes:
    """Image `number` in its format; the last ones are photographs that name their camera."""
    kind = FORMATS[number % 3]
    pixels = np.random.default_rng(number).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    exif, stream = Image.Exif(), io.BytesIO()
    if number >= 18:
        exif[0x10F], exif[0x110] = CAMERA, "EOS"
    Image.fromarray(pixels).save(stream, kind, exif=exif)
    return stream.getvalue()


def metadata(number: int) -> dict[str, Any]:
    """JSON that no two readers take alike: null first and text later, integers beside fractions, a field of few."""
    values: dict[str, Any] = {
        "url": f"https://host.example/{number}",
        "similarity": number if number % 2 else number / 7,
        "error": None,
        "license": "cc-by" if number > 9 else None,
        "size": {"width": 40, "note": "late" if number > 12 else None},
        "tags": ["a", "b"] if number % 2 else ["c"],
        "mixed": number if number < 8 else str(number),
    }
    if number > 15:
        values["score"] = 0.5
    if number == 21:
        values["boxes"] = [[1, 2], [3]]
    return values


def caption(number: int) -> str:
    """A third of the captions are files, a third are a field of the JSON, the others are missing."""
    return f"un café {number}, 图" if number % 4 == 1 or (number % 4 == 2 and number % 5) else ""


def write(root: Path, captions: bool = True) -> None:
    """Write the crawl as one tar."""
    with tarfile.open(root / "crawl.tar", "w") as tar:
        for number in range(NUM):
            values = metadata(number)
            parts = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
            members = {parts[FORMATS[number % 3]]: picture(number)}
            if captions and number % 4 == 1:
                members["txt"] = caption(number).encode()
            if captions and number % 4 == 2:
                values["caption"] = [None, caption(number), "second"] if number > 12 else caption(number)
            if number % 5:
                members["json"] = json.dumps(values).encode()
            if number % 6 == 0:
                members["npy"] = b"only some have it"
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def exported(root: Path, captions: bool = True, scored: bool = True, **options: Any) -> Summary:
    """Ingest the crawl below `root` and export all of it to `root/clean`."""
    write(root, captions)
    ingest.run(ingest.IngestConfig(sources=(str(root / "crawl.tar"),), pool=root / "pool", jobs=1))
    if scored:
        write_scores(Pool.open(root / "pool"), root / "run")
    return export.run(
        settings(root / "clean", root / "pool", root / "run", **({"keep": "all", "shard_size": 10} | options))
    )
