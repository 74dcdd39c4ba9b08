"""CPU time of scoring against the loop that a timm user writes: webdataset, DataLoader, timm's transforms, float32.

    python tests/bench/score.py --pool POOL --run RUN [--repeats 3] [--images 448] [--cores 1 2]

Both read the same shards and give probabilities of the same network, without a detector. Each measurement is a process
of its own, with one thread; they take turns, so that what else the machine does hits all. It prints CPU-seconds for an
image of the loop, of curate in fp32 and by default (auto), and how many times the loop takes what curate takes. With
--cores it also prints wall seconds of curate on so many cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import timm
import torch
import webdataset as wds
from timm.data import create_transform
from torch.utils.data import DataLoader

from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows
from pipelines.run.scorer import Scorer

BATCH = 64

Loop = Callable[[], Iterator[int]]  # scores a pool; yields numbers of images


def with_curate(pool: Pool, run: Path, precision: Literal["auto", "fp32"] = "auto") -> Loop:
    scorer = Scorer.load(run, "cpu", precision)
    rows = Rows.of_shard(pool, 0)
    scorer.score(rows.read(range(min(BATCH, len(rows)))))

    def loop() -> Iterator[int]:
        for _, parts in scorer.score_shards(pool, range(len(pool.shards)), BATCH):
            yield sum(len(scores.embeddings) for scores in parts)

    return loop


def with_timm(pool: Pool, run: Path) -> Loop:
    config = Scorer.load(run, "cpu").model.config
    torch.set_grad_enabled(False)
    network = timm.create_model(config.backbone.removeprefix("timm:"), num_classes=len(config.classes)).eval()
    transform = create_transform((3, config.image_size, config.image_size), crop_pct=1.0, interpolation="bicubic")
    shards = [str(pool.tar(shard)) for shard in pool.shards]
    dataset = wds.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg;png;webp").map_tuple(transform)

    def loop() -> Iterator[int]:
        for (images,) in DataLoader(dataset.batched(BATCH), batch_size=None, num_workers=0):
            yield len(network(images).softmax(1).numpy())

    next(loop())
    return loop


KINDS = {"timm": with_timm, "curate, fp32": partial(with_curate, precision="fp32"), "curate": with_curate}


def measured(kind: str, pool: Path, run: Path, images: int, cores: int) -> None:
    """Print CPU and wall seconds for an image, reading included, imports and the first batch not."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(cores)
    loop = KINDS[kind](Pool.open(pool), run)
    started, wall, count = time.process_time(), time.perf_counter(), 0
    for scored in loop():
        count += scored
        if count >= images:
            break
    print((time.process_time() - started) / count, (time.perf_counter() - wall) / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--images", type=int, default=10**9, help="at most so many, to the end of a batch of the loop, or of a shard"
    )
    parser.add_argument("--cores", type=int, nargs="*", default=[1])
    parser.add_argument("--kind", choices=KINDS, help="one measurement, for a child process")
    given = parser.parse_args()
    if given.kind:
        measured(given.kind, given.pool, given.run, given.images, given.cores[0])
        return
    runs = [(kind, given.cores[0]) for kind in KINDS] + [("curate", cores) for cores in given.cores[1:]]
    seconds: dict[tuple[str, int], list[tuple[float, float]]] = {run: [] for run in runs}
    common = ("--pool", str(given.pool), "--run", str(given.run), "--images", str(given.images))
    for _ in range(given.repeats):
        for (kind, cores), found in seconds.items():
            child = [sys.executable, __file__, *common, "--kind", kind, "--cores", str(cores)]
            cpu, wall = subprocess.run(child, capture_output=True, text=True, check=True).stdout.split()
            found.append((float(cpu), float(wall)))
    loop = seconds["timm", given.cores[0]]
    for (kind, cores), found in seconds.items():
        cpus, walls = zip(*found, strict=True)
        ratios = [of_loop[0] / ours for of_loop, ours in zip(loop, cpus, strict=True)]
        print(f"{kind}, {cores} cores: {spread([1000 * cpu for cpu in cpus])} ms of CPU an image, ", end="")
        print(f"{spread([1000 * wall for wall in walls])} ms of wall time; ratio of CPU {spread(ratios)}")


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
