"""How many planted copies of test images are found, by `curate export --exclude` and by near-duplicates.

    python tests/bench/leaks.py DATA [POOL] [TEST] [PLANTED]

DATA holds cifar10-train.parquet and cifar10-test.parquet. A pool of POOL training images (20,000) gets copies of
PLANTED (200) of TEST (2,000) test images, a fifth of each kind: exact, resized to 24 pixels, JPEG of quality 60,
cropped by 5 % at a random place, mirrored. CIFAR-10 has real copies between its halves (Barz and Denzler 2020 count
3.3 % of the test images with one in the training set), so what else is found is written to leaks.html, beside what it
matched, to be judged by eye.
"""

import base64
import io
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from pipelines import export, ingest
from pipelines.inspect import near_duplicates
from pipelines.inspect.config import DuplicatesConfig
from pipelines.pool.manifest import Pool
from pipelines.storage.shards import ShardWriter

KINDS = ("exact", "resized", "jpeg60", "cropped", "mirrored")


def copy_of(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """A copy of one kind."""
    if kind == "exact":
        return content
    image, quality = Image.open(io.BytesIO(content)).convert("RGB"), 95
    width, height = image.size
    if kind == "resized":
        image = image.resize((width * 3 // 4, height * 3 // 4), Image.Resampling.LANCZOS)
    elif kind == "jpeg60":
        quality = 60
    elif kind == "mirrored":
        image = ImageOps.mirror(image)
    else:
        less = max(1, round(width * 0.05)), max(1, round(height * 0.05))
        left, top = (int(rng.integers(0, each + 1)) for each in less)
        image = image.crop((left, top, left + width - less[0], top + height - less[1]))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def read(path: Path, number: int) -> list[bytes]:
    """Images of a parquet file, drawn at random: its classes stand one after the other."""
    column = pq.read_table(path, columns=["jpg"])["jpg"]
    found: list[bytes] = column.take(np.random.default_rng(1).permutation(len(column))[:number]).to_pylist()
    return found


def write(path: Path, images: Sequence[tuple[str, bytes]]) -> None:
    """Write a tar."""
    with ShardWriter(path) as tar:
        for name, content in images:
            tar.add(f"{name}.jpg", content)


def main(data: Path, pool: int = 20_000, test: int = 2_000, planted: int = 200) -> None:
    """Plant, ingest, export, and print the tables."""
    rng = np.random.default_rng(0)
    tests = read(data / "cifar10-test.parquet", test)
    copies = [
        (f"plant-{i:05d}-{KINDS[n % 5]}", copy_of(tests[i], KINDS[n % 5], rng))
        for n, i in enumerate(rng.choice(test, planted, replace=False).tolist())
    ]
    others = [(f"train-{i:05d}", content) for i, content in enumerate(read(data / "cifar10-train.parquet", pool))]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "crawl").mkdir()
        crawl = [*others, *copies]
        order = rng.permutation(len(crawl)).tolist()
        for start in range(0, len(crawl), 1000):
            write(root / "crawl" / f"{start // 1000:05d}.tar", [crawl[i] for i in order[start : start + 1000]])
        write(root / "test.tar", [(f"{i:05d}", content) for i, content in enumerate(tests)])
        ingest.run(ingest.IngestConfig(sources=(str(root / "crawl"),), pool=root / "pool"))
        start = time.perf_counter()
        config = {"pool": root / "pool", "run": root / "none", "keep": "all"}
        export.run(export.ExportConfig(out=root / "clean", exclude=(str(root / "test.tar"),), **config))
        took = time.perf_counter() - start
        members = {
            row["key"]: row["member"] for table in Pool.open(root / "pool").tables() for row in table.to_pylist()
        }
        rows = pq.read_table(root / "clean" / "dropped.parquet").to_pylist()
        found = {members[row["key"]]: row["match"].rpartition(":")[2].removesuffix(".jpg") for row in rows}
        report(found, copies, took)
        sheet(found, dict(crawl), tests)
        groups(root, tests, rng)


def report(found: dict[str, str], copies: Sequence[tuple[str, bytes]], took: float) -> None:
    """Print the recall of each kind, and what else was found."""
    planted, right = Counter[str](), Counter[str]()
    for name, _ in copies:
        _, number, kind = name.split("-")
        planted[kind] += 1
        right[kind] += found.get(f"{name}.jpg") == number
    for kind in KINDS:
        print(f"{kind:10} {right[kind]:4} of {planted[kind]}")
    others = [name for name in found if name.startswith("train")]
    print(f"found {sum(right.values())} of {len(copies)} planted ones, and {len(others)} others; {took:.0f} s")


def sheet(found: dict[str, str], crawl: dict[str, bytes], tests: Sequence[bytes]) -> None:
    """Write the matches that were not planted to leaks.html."""
    lines = ["<body style='image-rendering: pixelated'>"]
    for name, number in sorted(found.items()):
        if name.startswith("train"):
            pair = (crawl[name.removesuffix(".jpg")], tests[int(number)])
            uris = (f"data:image/jpeg;base64,{base64.b64encode(content).decode()}" for content in pair)
            lines.append(" ".join(f"<img src='{uri}' width=96>" for uri in uris) + f" {name} {number}<br>")
    Path("leaks.html").write_text("\n".join(lines))


def groups(root: Path, tests: Sequence[bytes], rng: np.random.Generator) -> None:
    """Near-duplicates within a pool: a copy of each kind beside a tenth of the test images."""
    (root / "twice").mkdir()
    crawl = [(f"{i:05d}-original", content) for i, content in enumerate(tests)]
    for i in range(0, len(tests), 10):
        crawl += [(f"{i:05d}-{kind}", copy_of(tests[i], kind, rng)) for kind in KINDS[1:]]
    write(root / "twice" / "00000.tar", sorted(crawl))
    ingest.run(ingest.IngestConfig(sources=(str(root / "twice"),), pool=root / "twice-pool"))
    for option in ("", "turned", "cropped"):
        asked = {option: True} if option else {}
        config = DuplicatesConfig(pool=root / "twice-pool", run=root / "none", top=1000, **asked)
        start = time.perf_counter()
        summary = near_duplicates.run(config)
        took = time.perf_counter() - start
        right, wrong = Counter[str](), 0
        for group in summary.groups:
            numbers = Counter(copy.member.partition("-")[0] for copy in group)
            wrong += len(numbers) - 1
            for copy in group:
                number, _, kind = copy.member.removesuffix(".jpg").partition("-")
                right[kind] += numbers[number] > 1
        print(f"near-duplicates {option}: {took:.0f} s, of {len(range(0, len(tests), 10))} each")
        for kind in KINDS[1:]:
            print(f"  {kind:10} {right[kind]:4}")
        print(f"  different images in one group: {wrong}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
