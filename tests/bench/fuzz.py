"""Mutated images, tars and parquet files through the whole of ingest: no crash, no hang, each with its reason. By hand:

    python tests/bench/fuzz.py --inputs 100000 --seed 0

Real files of every format that the pool takes are damaged by a seeded mutator that knows what parsers trip over (sizes,
counts, chunk checksums, ends, one file in another) and put into tars of a thousand, 96 of 100; two of 100 are damaged
tars, two damaged parquet files, of five images each. All go through `pipelines.ingest`. What is kept must decode again
for training, the pool must verify, and kept + rejected = read. Prints one JSON object: outcomes by format and reason.
"""

import argparse
import io
import json
import random
import struct
import tarfile
import tempfile
import time
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageCms, PngImagePlugin

from pipelines import ingest, verify
from pipelines.errors import CorruptShard
from pipelines.images.rejects import Reason
from pipelines.images.views import Decoder
from pipelines.pool.manifest import Pool
from pipelines.storage.shards import read_spans

PER_TAR = 1000  # damaged images
PER_ARCHIVE = 5  # images in a damaged tar or parquet file
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 100_000, 0x7FFFFFFF, 0xFFFFFFFF)

Seeds = dict[str, bytes]


def picture(mode: str, width: int = 48, height: int = 36) -> Image.Image:
    """Large shapes and texture, as photographs have."""
    rng = np.random.default_rng(7)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
    grain = rng.normal(0, 6, (height, width, 3))
    image = Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    return image.convert(mode)


def seeds() -> Seeds:
    """Real files by kind; the part of a kind before the dash is its format."""
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112], exif[0x010F], exif[0x0110] = 6, "Maker", "Model"
    text.add_text("Comment", "hello", zip=True)
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta xmlns:x='adobe:ns:meta/'/>" * 20, zip=True)
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    icc = icc[:24] + bytes(12) + icc[36:]  # without the time of day
    frames = [picture("RGB").rotate(angle) for angle in (90, 180)]
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "jpg-baseline": ("RGB", "JPEG", {}),
        "jpg-grey": ("L", "JPEG", {"quality": 40}),
        "jpg-progressive": ("RGB", "JPEG", {"progressive": True}),
        "jpg-cmyk": ("CMYK", "JPEG", {}),
        "jpg-restarts": ("RGB", "JPEG", {"restart_marker_rows": 1, "subsampling": 0}),
        "jpg-metadata": ("RGB", "JPEG", {"exif": exif, "icc_profile": icc, "comment": b"Steps: 1, Seed: 2"}),
        "png-rgb": ("RGB", "PNG", {}),
        "png-alpha": ("RGBA", "PNG", {"exif": exif, "icc_profile": icc, "pnginfo": text}),
        "png-palette": ("P", "PNG", {"transparency": 3}),
        "png-bits": ("1", "PNG", {}),
        "png-16bit": ("I;16", "PNG", {}),
        "png-animated": ("RGB", "PNG", {"save_all": True, "append_images": frames}),
        "webp-lossy": ("RGB", "WEBP", {"exif": exif}),
        "webp-lossless": ("RGBA", "WEBP", {"lossless": True}),
        "webp-animated": ("RGB", "WEBP", {"save_all": True, "append_images": frames}),
        "gif-plain": ("P", "GIF", {"comment": b"hello"}),
        "gif-animated": ("P", "GIF", {"save_all": True, "append_images": frames, "loop": 0}),
        "bmp-24bit": ("RGB", "BMP", {}),
        "bmp-palette": ("P", "BMP", {}),
        "tif-plain": ("RGB", "TIFF", {}),
        "tif-lzw": ("RGB", "TIFF", {"compression": "tiff_lzw", "exif": exif}),
        "tif-deflate": ("I;16", "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tif-jpeg": ("RGB", "TIFF", {"compression": "jpeg"}),
        "tif-packbits": ("CMYK", "TIFF", {"compression": "packbits"}),
        "tif-fax": ("1", "TIFF", {"compression": "group4"}),
        "tif-pages": ("RGB", "TIFF", {"save_all": True, "append_images": frames}),
        "avif-plain": ("RGB", "AVIF", {}),
        "avif-alpha": ("RGBA", "AVIF", {}),
        "jp2-lossy": ("RGB", "JPEG2000", {"quality_layers": [20]}),
        "jp2-lossless": ("L", "JPEG2000", {}),
    }
    found = {}
    for kind, (mode, format_, options) in kinds.items():
        out = io.BytesIO()
        picture(mode).save(out, format_, **options)
        found[kind] = out.getvalue()
    return found


# The mutator


def mutate(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Damage a file in one to four places; the same `rng` state gives the same bytes."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        rng.choice(MUTATIONS)(damaged, rng, others)
    if damaged.startswith(b"\x89PNG") and rng.random() < 0.7:
        _mend_checksums(damaged)  # else hardly anything gets past them
    return bytes(damaged)


def _place(damaged: bytearray, rng: random.Random) -> int:
    """Somewhere, half of the time in the headers at the beginning."""
    end = min(len(damaged), 200) if rng.random() < 0.5 else len(damaged)
    return rng.randrange(end) if end else 0


def _flip_bits(damaged: bytearray, rng: random.Random, others: list[bytes]) -> None:
    for _ in range(rng.choice((1, 1, 4, 16))):
        if damaged:
            damaged[_place(damaged, rng)] ^= 1 << rng.randrange(8)


def _set_bytes(damaged: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at, length = _place(damaged, rng), rng.choice((1, 2, 8, 64))
    damaged[at : at + length] = rng.randbytes(length)


def _set_number(damaged: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at, length = _place(damaged, rng), rng.choice((1, 2, 4, 8))
    number = rng.choice(INTERESTING) & ((1 << 8 * length) - 1)
    damaged[at : at + length] = number.to_bytes(length, rng.choice(("little", "big")))


def _cut(damaged: bytearray, rng: random.Random, others: list[bytes]) -> None:
    del damaged[_place(damaged, rng) :]


def _remove(damaged: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at = _place(damaged, rng)
    del damaged[at : at + rng.choice((1, 4, 50, 500))]


def _repeat(damaged: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at = _place(damaged, rng)
    run = bytes(damaged[at : at + rng.choice((1, 4, 50, 500))])
    damaged[at:at] = run * rng.choice((1, 2, 50))


def _blank(damaged: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at, length = _place(damaged, rng), rng.choice((4, 40, 400))
    damaged[at : at + length] = rng.choice((b"\0", b"\xff")) * length


def _splice(damaged: bytearray, rng: random.Random, others: list[bytes]) -> None:
    other = rng.choice(others)
    start = rng.randrange(len(other))
    damaged[_place(damaged, rng) :] = other[start:]


def _append(damaged: bytearray, rng: random.Random, others: list[bytes]) -> None:
    """A polyglot: the file goes on as another one."""
    archive = b"PK\5\6" + bytes(18)
    damaged += rng.choice((archive, b"<script>alert(1)</script>", b"\x80\x04cos\nsystem\n.", rng.choice(others)))


def _prepend(damaged: bytearray, rng: random.Random, others: list[bytes]) -> None:
    damaged[0:0] = rng.choice((b"\n", b"\xef\xbb\xbf", b"GIF89a/*", b"<html>", rng.choice(others)[:100]))


MUTATIONS: tuple[Callable[[bytearray, random.Random, list[bytes]], None], ...] = (
    _flip_bits, _flip_bits, _flip_bits, _set_bytes, _set_bytes, _set_number, _set_number, _set_number,
    _cut, _remove, _repeat, _blank, _splice, _append, _prepend,
)  # fmt: skip


def _mend_checksums(damaged: bytearray) -> None:
    at = 8
    while at + 12 <= len(damaged):
        length = int.from_bytes(damaged[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(damaged):
            return
        damaged[end : end + 4] = struct.pack(">I", zlib.crc32(damaged[at + 4 : end]))
        at = end + 4


def _mend_tar(damaged: bytearray) -> None:
    for at in range(0, len(damaged) - 511, 512):
        if damaged[at + 257 : at + 262] == b"ustar":
            damaged[at + 148 : at + 156] = b"%06o\0 " % tarfile.calc_chksums(bytes(damaged[at : at + 512]))[0]


# What is ingested


def lay_out(folder: Path, num_inputs: int, rng: random.Random) -> list[str]:
    """Write the damaged inputs; return the names of the images that must all be accounted for."""
    kinds = seeds()
    files = list(kinds.values())
    num_archives = num_inputs // 50
    names = list[str]()
    for first in range(0, num_inputs - 2 * num_archives, PER_TAR):
        images = list[tuple[str, bytes]]()
        for number in range(first, min(first + PER_TAR, num_inputs - 2 * num_archives)):
            kind = rng.choice(list(kinds))
            images.append((f"{kind}_{number:07d}.img.{kind.partition('-')[0]}", mutate(kinds[kind], rng, files)))
        (folder / f"images-{first // PER_TAR:05d}.tar").write_bytes(_tar(images))
        names += [name for name, _ in images]
    for number in range(num_archives):
        chosen = [(f"{row}.jpg", rng.choice(files) + bytes([row, number % 256])) for row in range(PER_ARCHIVE)]
        damaged = bytearray(mutate(_tar(chosen, rng.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT))), rng, files))
        if rng.random() < 0.7:
            _mend_tar(damaged)
        (folder / f"tar-{number:05d}.tar").write_bytes(damaged)
        (folder / f"parquet-{number:05d}.parquet").write_bytes(mutate(_parquet(chosen, rng), rng, files))
    return names


def _tar(files: list[tuple[str, bytes]], layout: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=layout) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name if layout == tarfile.USTAR_FORMAT else "deep/" * 40 + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _parquet(files: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    images: list[Any] = [content for _, content in files]
    if rng.random() < 0.5:
        images = [{"bytes": content, "path": name} for name, content in files]
    table = pa.table({"image": images, "caption": ["ü"] * len(files), "width": [1.5] * len(files)})
    out = io.BytesIO()
    pq.write_table(table, out, compression=rng.choice(("none", "snappy", "zstd")), row_group_size=2)
    return out.getvalue()


# What came of it


def outcomes(pool: Path, names: list[str]) -> dict[str, dict[str, int]]:
    """Count by format and reason; AssertionError where an image of `names` is not there exactly once."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    seen = Counter[str]()
    for source, member, outcome in _rows(pool):
        kind = Path(source).name.partition("-")[0]
        if kind == "images":
            kind = member.partition("_")[0]
            seen[member] += 1
        found[kind][outcome] += 1
    assert seen == Counter(names), "an image is lost, or there twice"
    return {kind: dict(sorted(counts.items())) for kind, counts in sorted(found.items())}


def _rows(pool: Path) -> Iterator[tuple[str, str, str]]:
    for shard in Pool(pool).shards:
        for row in Pool(pool).rows(shard, ["source", "member"]).to_pylist():
            yield row["source"], row["member"], "kept"
        for row in pq.read_table(pool / "rejects" / f"{shard}.parquet").to_pylist():
            yield row["source"], row["member"], row["reason"]


def unreadable(pool: Path) -> list[str]:
    """Keys of kept images that do not decode for training."""
    decoder, found = Decoder(32, 32), list[str]()
    for shard in Pool(pool).shards:
        rows = Pool(pool).rows(shard, ["key", "offset", "num_bytes", "member"])
        spans = zip(rows["offset"].to_pylist(), rows["num_bytes"].to_pylist(), strict=True)
        contents = read_spans(pool / f"{shard}.tar", spans)
        for key, content in zip(rows["key"].to_pylist(), contents, strict=True):
            try:
                decoder.decode(key, content)
            except CorruptShard as error:
                found.append(str(error))
    return found


def fuzz(work: Path, num_inputs: int, seed: int, max_seconds: float = 60) -> dict[str, Any]:
    """Run all of it below `work`, which must be empty."""
    started = time.monotonic()
    (work / "crawl").mkdir()
    names = lay_out(work / "crawl", num_inputs, random.Random(seed))
    pool = work / "pool"
    config = ingest.IngestConfig(sources=(str(work / "crawl"),), pool=pool, jobs=1, max_seconds=max_seconds)
    laid_out = time.monotonic()
    summary = ingest.run(config)
    ingested = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about palettes and EXIF
        failures = unreadable(pool)
    problems = verify.run(verify.VerifyConfig(pool=pool, run=work / "run")).problems
    return {
        "inputs": num_inputs,
        "seed": seed,
        "left_aside": len(summary.notes),
        "read": summary.read,
        "kept": summary.kept,
        "rejected": summary.rejected,
        "crashed_or_too_slow": sum(summary.rejected.get(reason, 0) for reason in (Reason.CRASHED, Reason.TOO_SLOW)),
        "kept_but_unreadable": failures,
        "problems": [f"{problem.where}: {problem.what}" for problem in problems],
        "outcomes": outcomes(pool, names),
        "seconds": {"laying_out": round(laid_out - started), "ingest": round(ingested - laid_out)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="an empty folder to keep everything in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(arguments.work or Path(folder), arguments.inputs, arguments.seed)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
