"""CPU time of scoring against the loop that a timm user writes: webdataset, DataLoader, timm's transforms, float32.

    python tests/bench/score.py --pool POOL --run RUN [--repeats 3] [--shards 1]

Both read the same shards and give probabilities of the same network, without a detector. Each measurement is a process
of its own, with one thread; the two take turns, so that what else the machine does hits both. It prints CPU-seconds for
an image, and how many times the loop takes what curate takes.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
import webdataset as wds
from timm.data import create_transform
from torch.utils.data import DataLoader

from pipelines.pool.manifest import Pool
from pipelines.run.scorer import Scorer

BATCH = 64


def with_curate(pool: Pool, run: Path) -> Iterator[np.ndarray]:
    scorer = Scorer.load(run, "cpu")
    for _, parts in scorer.score_shards(pool, range(len(pool.shards)), BATCH):
        for scores in parts:
            assert scores.probs is not None
            yield scores.probs


@torch.inference_mode()
def with_timm(pool: Pool, run: Path) -> Iterator[np.ndarray]:
    config = Scorer.load(run, "cpu").model.config
    network = timm.create_model(config.backbone.removeprefix("timm:"), num_classes=len(config.classes)).eval()
    transform = create_transform((3, config.image_size, config.image_size), crop_pct=1.0, interpolation="bicubic")
    shards = [str(pool.tar(shard)) for shard in pool.shards]
    dataset = wds.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg;png;webp").map_tuple(transform)
    for (images,) in DataLoader(dataset.batched(BATCH), batch_size=None, num_workers=0):
        yield network(images).softmax(1).numpy()


def measured(kind: str, pool: Path, run: Path) -> None:
    """Print CPU-seconds for an image, loading included, imports and the first batch not."""
    torch.set_num_threads(1)
    opened, score = Pool.open(pool), {"curate": with_curate, "timm": with_timm}[kind]
    next(score(opened, run))
    started, count = time.process_time(), 0
    for probs in score(opened, run):
        count += len(probs)
    print((time.process_time() - started) / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kind", choices=("curate", "timm"), help="one measurement, for a child process")
    given = parser.parse_args()
    if given.kind:
        measured(given.kind, given.pool, given.run)
        return
    seconds: dict[str, list[float]] = {"timm": [], "curate": []}
    for _ in range(given.repeats):
        for kind, found in seconds.items():
            child = [sys.executable, __file__, "--pool", str(given.pool), "--run", str(given.run), "--kind", kind]
            found.append(float(subprocess.run(child, capture_output=True, text=True, check=True).stdout))
    ratios = [loop / ours for loop, ours in zip(seconds["timm"], seconds["curate"], strict=True)]
    for kind, found in seconds.items():
        print(f"{kind}: {1000 * statistics.median(found):.1f} ms of CPU an image ({1000 * min(found):.1f} to ", end="")
        print(f"{1000 * max(found):.1f})")
    print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
