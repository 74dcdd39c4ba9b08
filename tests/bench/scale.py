"""Does it scale? A pool of tiny images through every stage: speed, memory, disk, and how long commands take to start.

    OMP_NUM_THREADS=1 python tests/bench/scale.py --work WORK --out scale.jsonl --sizes 100000 1000000

The crawl is made here: JPEGs of 16x16 pixels (a smooth random picture each; one in a hundred is a copy of the one
before it at a lower quality), in tars of 10,000 with .json and .txt, as img2dataset leaves them. Each command runs in a
session of its own, whose resident memory is summed over its processes every 50 ms (pages that processes share count in
each). One line per command: wall and CPU seconds, images a second, peak memory, and bytes on disk where it writes any.
Commands that ran for this size already (a line in OUT) are left out.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ingest import resident
from PIL import Image

SHARD = 10_000
SIDE = 16
CLASSES = ("blue", "green", "red")
LABELED = 20  # of each class
NEAR_DUPLICATES = 0.01
TRAIN = """
[network]
backbone = "small"
image_size = 16

[recipe]
num_steps = 20
batch_size = 16
unlabeled_ratio = 4
warmup = 0.2
confidence_threshold = 0.8
norm_momentum = 0.1

[machine]
memory = "stream"
evaluate_every = 1000
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help=f"multiples of {SHARD}")
    args = parser.parse_args()
    text = args.out.read_text() if args.out.exists() else ""
    done = {(line["images"], line["command"]) for line in map(json.loads, text.splitlines())}
    for size in args.sizes:
        work = args.work.resolve() / str(size)
        if not (work / "made").exists():
            make(work, size)
        for name, command, written in commands(work):
            if (size, name) not in done:
                line = {"images": size, "command": name, **measure(work, command, size)}
                line |= {"bytes": sum(disk(work / folder) for folder in written)} if written else {}
                with args.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)


def commands(work: Path) -> Iterator[tuple[str, list[str], tuple[str, ...]]]:
    """Name, arguments and the folders that each command fills."""
    yield "ingest", ["ingest", "crawl"], ("pool",)
    yield "ingest again: nothing new", ["ingest", "crawl"], ()
    yield "train, 20 steps", ["train", "--config", "train.toml", "--labeled", "seed"], ("run",)
    yield "score", ["score"], ("run/scores", "run/embeddings")
    yield "score again: nothing new", ["score"], ()
    yield "inspect a key: builds the index", ["inspect", "000000000"], ("run/index",)
    yield "inspect a key", ["inspect", "000000001"], ()
    yield "inspect --near-duplicates", ["inspect", "--near-duplicates"], ()
    yield "inspect --disagreement", ["inspect", "--disagreement"], ()
    yield "export nothing: SQL over the pool", ["export", "--out", "none", "--where", "confidence > 2"], ()
    yield "export all", ["export", "--out", "clean", "--keep", "all"], ("clean",)
    distinct = ["export", "--out", "distinct", "--keep", "all", "--drop-near-duplicates"]
    yield "export all --drop-near-duplicates", distinct, ("distinct",)
    yield "report --map pca", ["report", "--map", "pca"], ()
    yield "verify", ["verify"], ()


def picture(rng: np.random.Generator) -> Image.Image:
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def make(work: Path, size: int) -> None:
    rng = np.random.default_rng(size)
    (work / "crawl").mkdir(parents=True, exist_ok=True)
    for shard in range(size // SHARD):
        with tarfile.open(work / "crawl" / f"{shard:05d}.tar", "w") as tar:
            image = picture(rng)
            for row in range(SHARD):
                copied = rng.random() < NEAR_DUPLICATES
                image = image if copied else picture(rng)
                key = f"{shard:05d}{row:04d}"
                about = {
                    "key": key,
                    "url": f"https://example.org/{key}.jpg",
                    "caption": "a picture",
                    "status": "success",
                }
                for suffix, data in (
                    ("jpg", jpeg(image, 60 if copied else 90)),
                    ("txt", b"a picture"),
                    ("json", json.dumps(about).encode()),
                ):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    for k, name in enumerate(CLASSES):
        (work / "seed" / name).mkdir(parents=True, exist_ok=True)
        for i in range(LABELED):
            pixels = np.asarray(picture(rng)) // 2
            pixels[..., 2 - k] += 100
            (work / "seed" / name / f"{i}.jpg").write_bytes(jpeg(Image.fromarray(pixels), 90))
    (work / "train.toml").write_text(TRAIN)
    (work / "made").touch()


def measure(work: Path, command: list[str], size: int) -> dict[str, Any]:
    started, before = time.monotonic(), os.times()
    process = subprocess.Popen(
        [sys.executable, "-m", "curate", *command, "--json"],
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            peak = max(peak, resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        process.communicate()
    finally:
        ended.set()
        watcher.join()
    seconds, after = time.monotonic() - started, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "exit": process.returncode,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "images_per_second": round(size / seconds),
        "peak_mb": peak >> 20,
    }


def disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
