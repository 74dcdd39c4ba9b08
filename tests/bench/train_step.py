"""Our training step against the field's, in paired runs within one process. Run by hand:

    python tests/bench/train_step.py [--images images.npz] [--threads 2] [--steps 2] [--runs 5] [--json FILE]
    python tests/bench/train_step.py --table [--compile]
    python tests/bench/train_step.py --device cuda --steps 200 --profile

The reference (`reference_step.py`) is FixMatch as its popular repositories write it: PIL views, fp32, NCHW. Ours is
`RSMatch.step` with the default recipe past its warm-up, that is with a full queue, routes and the detector's training;
`fixmatch`, the like-for-like row, is the same step with that method. Both train WRN-28-2 on 64 labeled images and 448
weak and 448 strong views of unlabeled ones. `--table` switches on the measures of ours one by one instead.

How to read it: times are per step; the ratios are the reference's time over the row's, taken within each run (all rows
run once in turn, so that what slows a run slows them all): median (smallest-largest). On a CPU trust the CPU seconds,
for wall clocks swing with the neighbors; the reference's loaders work in the process itself, so that these are counted.
On a GPU only wall time counts: the device is waited for at both ends of a run alone, and the loaders have `--workers`
processes each, as the repositories give them. Images/s counts labeled and unlabeled images once each. Memory is the
peak in a run, of the process (Linux) or of the GPU's allocator, with the pool and the networks of all rows in it.
The first run of each row, which warms up and compiles, is not counted.

Needs no data: without `--images` (uint8 images, the first such array of an .npy or .npz file) the pixels are random,
which changes no shape and no operation. Without an installation of curate, put the repository on `PYTHONPATH`; beside
it only torch, torchvision, timm and numpy are needed.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference_step import NUM_CLASSES, Data, Reference
from torch import Tensor

from models.networks import Classifier, Detector
from models.ranks import Rng
from models.rsmatch import DETECTOR_SETTLES, Batch, Recipe, RSMatch

NUM_RANDOM_IMAGES = 10_000
PROFILED_STEPS = 5
PROFILED_ROWS = 30


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of one step, the mean over a run, and the largest memory in it in bytes."""

    cpu_s: float
    wall_s: float
    memory: int


class Row:
    """One way to train; `train` does one step each time that it is asked for more."""

    def __init__(self, name: str, train: Callable[[], Iterator[None]]) -> None:
        self.name, self.train = name, train
        self.runs: list[Run] = []
        self.warm_up_s = 0.0

    def warm_up(self, steps: int, device: torch.device) -> None:
        """Run once without counting it."""
        self.warm_up_s = self._measure(steps, 0, device).wall_s * steps

    def run(self, steps: int, untimed: int, device: torch.device) -> None:
        """Run and count all but the first `untimed` steps."""
        self.runs.append(self._measure(steps, untimed, device))

    def _measure(self, steps: int, untimed: int, device: torch.device) -> Run:
        training = self.train()
        for _ in range(untimed):
            next(training)
        _synchronize(device)
        _reset_peak_memory(device)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(steps):
            next(training)
        _synchronize(device)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        memory = _peak_memory(device)
        training.close()  # ends the loaders' processes
        return Run(cpu / steps, wall / steps, memory)


def ours(
    data: Data,
    recipe: Recipe,
    autocast: AbstractContextManager[object],
    *,
    compiled: bool = False,
) -> Callable[[], Iterator[None]]:
    """RSMatch past its warm-up, built as `curate train` builds it, with as many examples as its bootstrap finds."""
    device = data.images.device
    classifier, detector = Classifier("wrn-28-2", NUM_CLASSES), Detector()
    for network in (classifier, detector):
        network.to(device).to(memory_format=torch.channels_last)
    learner = RSMatch(recipe, classifier, detector, autocast)
    if compiled:
        learner.classifier.compile()
        learner.detector.compile()
    rows = torch.arange(len(data.images), device=device)
    learner.queue.fill(rows, torch.rand(len(rows), device=device), rows % NUM_CLASSES)
    learner.confident_real = rows[: len(rows) // 10]
    number = max(recipe.routing_start, recipe.detector_start + DETECTOR_SETTLES)
    rng = Rng(torch.Generator(device).manual_seed(0))

    def fetch_tiles(picked: Tensor) -> Tensor:
        return data.images[picked]

    def train() -> Iterator[None]:
        nonlocal number
        while True:
            labeled = rng.integers(0, len(rows), data.batch_size)
            unlabeled = rng.integers(0, len(rows), data.num_unlabeled)
            batch = Batch(
                labeled=data.images[labeled],
                labeled_tiles=data.images[labeled],
                labels=data.labels[labeled],
                unlabeled=data.images[unlabeled],
                unlabeled_tiles=data.images[unlabeled],
                rows=unlabeled,
            )
            learner.step(number, batch, fetch_tiles, rng)
            number += 1
            yield

    return train


def comparison(data: Data, bf16: bool, workers: int, compiled: bool) -> list[Row]:
    """The reference, and ours without and with what RSMatch adds to FixMatch."""
    autocast = _autocast(data, bf16)
    return [
        Row("reference", Reference(data, workers=workers).train),
        Row("ours, fixmatch", ours(data, Recipe(method="fixmatch"), autocast, compiled=compiled)),
        Row("ours, rsmatch", ours(data, Recipe(method="rsmatch"), autocast, compiled=compiled)),
    ]


def measures(data: Data, bf16: bool, workers: int, compiled: bool) -> list[Row]:
    """The reference and what one measure after the other makes of it; the last row adds the detector."""
    half, plain = _autocast(data, True), _autocast(data, False)
    autocast = half if bf16 else plain
    rows = [
        Row("reference", Reference(data, workers=workers).train),
        Row("+ channels_last", Reference(data, workers=workers, channels_last=True).train),
    ]
    if bf16:
        rows.append(Row("+ bf16", Reference(data, workers=workers, channels_last=True, autocast=half).train))
    rows += [
        Row("+ batched augmentation", Reference(data, channels_last=True, autocast=autocast, batched=True).train),
        Row("+ foreach EMA (our fixmatch)", ours(data, Recipe(method="fixmatch", weak_gradient=True), autocast)),
        Row("+ weak without gradient", ours(data, Recipe(method="fixmatch", weak_gradient=False), autocast)),
    ]
    if compiled:
        recipe = Recipe(method="fixmatch", weak_gradient=False)
        rows.append(Row("+ torch.compile", ours(data, recipe, autocast, compiled=True)))
    recipe = Recipe(method="rsmatch", weak_gradient=False)
    return [*rows, Row("+ detector (our rsmatch)", ours(data, recipe, autocast, compiled=compiled))]


def compare(rows: list[Row], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Warm up, run all rows in turn `runs` times, and sum up; the last two rows differ by the detector."""
    on_gpu = device.type == "cuda"
    for row in rows:
        row.warm_up(args.warm_up, device)
    for _ in range(args.runs):
        for row in rows:
            # The loaders' processes have batches ready when a run begins: these are not their pace.
            row.run(args.steps, args.warm_up if on_gpu else 0, device)
    trusted = "wall_s" if on_gpu else "cpu_s"
    shares = [getattr(b, trusted) / getattr(a, trusted) - 1 for a, b in zip(rows[-2].runs, rows[-1].runs, strict=True)]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": _machine(device, args),
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "rows": [_summary(row, rows[0], args) for row in rows],
        "detector_share": _spread(shares),
    }


def _summary(row: Row, reference: Row, args: argparse.Namespace) -> dict[str, Any]:
    pairs = list(zip(reference.runs, row.runs, strict=True))
    wall_s = statistics.median(run.wall_s for run in row.runs)
    return {
        "name": row.name,
        "cpu_s": statistics.median(run.cpu_s for run in row.runs),
        "wall_s": wall_s,
        "images_per_s": args.batch * (1 + args.ratio) / wall_s,
        "memory_mib": max(run.memory for run in row.runs) / 2**20,
        "ratio_cpu": _spread([theirs.cpu_s / own.cpu_s for theirs, own in pairs]),
        "ratio_wall": _spread([theirs.wall_s / own.wall_s for theirs, own in pairs]),
        "warm_up_s": row.warm_up_s,
        "runs": [asdict(run) for run in row.runs],
    }
