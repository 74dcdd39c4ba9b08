"""Contaminated training from arrays, with `models` alone: for a GPU on a machine that has torch, timm and pydantic.

    python tests/bench/train_matrix.py --pack --real CIFAR10 --synthetic SD14 --test CIFAR10_TEST --arrays arrays.npz
    python tests/bench/train_matrix.py --arrays arrays.npz --out matrix.jsonl --device cuda --jobs 6 --minutes 9
    python tests/bench/train_matrix.py --out matrix.jsonl --show

The first command needs curate and writes the files of images of the three sources, as many of each class, which takes
16 MiB; `--classes airplane automobile frog horse` takes these four alone.
The second trains what is missing of the matrix (contaminations x seeds x methods, all of a seed on the same images),
`--jobs` networks side by side, and stops in time, with a checkpoint of each run that has not ended (then its exit code
is 3); the same command goes on. Each run that ends is a line of `--out`. `--toy` tries it out on drawn pictures. The
third prints accuracy and paired differences to FixMatch.

The default is the field's: WRN-28-2, 64 labeled and 448 unlabeled images a step, learning rate 0.03, 250 labels. Unlike
`curate benchmark` it keeps no labeled images from the detector and reads no files, so its figures are its own: compare
them among themselves. Without an installation of curate, put the repository on `PYTHONPATH`.
"""

import argparse
import io
import json
import math
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from train_step import has_fast_bf16

from models import csqueue, methods, residual
from models.batch import Batch
from models.classifier import Classifier
from models.detector import Detector
from models.ranks import Rng
from models.recipe import Controls, Recipe
from models.rsmatch import RSMatch

PACKED = {"real": 20_000, "synthetic": 20_000, "test": 10_000}  # images in all
CHUNK = 500
UNFINISHED = 3  # exit code
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # changes of the recipe and of the controls
    "fixmatch": ({"method": "fixmatch"}, {}),
    "fixmatch-real": ({"method": "fixmatch"}, {}),
    "rsmatch": ({}, {}),
    "rsmatch-weak-gradient": ({}, {"weak_gradient": True}),  # weak and strong views in one pass, as in FixMatch
    "rsmatch-oracle": ({}, {"routing": "oracle"}),
    "rsmatch-oracle-discard": ({}, {"routing": "oracle", "dummy_weight": 0.0}),
    "rsmatch-random": ({}, {"routing": "random"}),
    "supervised": ({"method": "supervised"}, {}),
}


class Run(NamedTuple):
    """One line of the results; the most telling runs come first in the matrix."""

    contamination: str  # balanced; off-class: the task is the first 60 % of the classes, the synthetic images the rest
    seed: int
    method: str


@dataclass(frozen=True)
class Protocol:
    """What all runs have in common."""

    backbone: str
    num_steps: int
    batch_size: int
    unlabeled_ratio: int
    learning_rate: float
    labels: int
    alpha: float

    def recipe(self, method: str) -> Recipe:
        """Recipe of a method; P is 2 for any number of classes."""
        changes, _ = METHODS[method]
        return Recipe(
            num_steps=self.num_steps, learning_rate=self.learning_rate, norm_momentum=0.01, queue_classes=2, **changes
        )

    @staticmethod
    def controls(method: str) -> Controls:
        """Controls of a method."""
        _, changes = METHODS[method]
        return Controls(**{"weak_gradient": False} | changes)


class World(NamedTuple):
    """Images (N, 3, H, W) uint8 and classes (N,) int64 on the training device."""

    labeled: Tensor
    labels: Tensor
    pool: Tensor
    synthetic: Tensor  # (N,) bool, of the pool
    test: Tensor
    test_classes: Tensor


def draw(arrays: Path | None, protocol: Protocol, run: Run, device: torch.device) -> World:
    """The labeled set and as many real and synthetic images as there are, in the ratio alpha."""
    images, classes = unpack(arrays) if arrays else toy()
    rng = np.random.default_rng(run.seed)
    num_classes = int(classes["real"].max()) + 1
    task = math.ceil(0.6 * num_classes) if run.contamination == "off-class" else num_classes
    rows = {name: [rng.permutation(np.flatnonzero(classes[name] == k)) for k in range(num_classes)] for name in PACKED}
    per_class = protocol.labels // task
    labeled = np.concatenate([rows["real"][k][:per_class] for k in range(task)])
    real = np.concatenate([rows["real"][k][per_class:] for k in range(task)])
    fake = np.concatenate(rows["synthetic"][task:] or rows["synthetic"])
    test = np.concatenate(rows["test"][:task])
    scale = min(1.0, len(fake) / (protocol.alpha * len(real)))
    real = rng.permutation(real)[: int(scale * len(real))]
    fake = rng.permutation(fake)[: round(protocol.alpha * len(real))]
    if run.method == "fixmatch-real":
        fake = fake[:0]

    def on_device(pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)

    return World(
        labeled=on_device(images["real"][labeled]),
        labels=torch.from_numpy(classes["real"][labeled]).to(device),
        pool=on_device(np.concatenate((images["real"][real], images["synthetic"][fake]))),
        synthetic=torch.arange(len(real) + len(fake), device=device) >= len(real),
        test=on_device(images["test"][test]),
        test_classes=torch.from_numpy(classes["test"][test]).to(device),
    )


def train(
    arrays: Path | None, protocol: Protocol, run: Run, state: Path, device_name: str, deadline: float
) -> dict | None:
    """Train one run, on from its checkpoint; its figures, or None where the time was up."""
    torch.set_num_threads(1)
    device = torch.device(device_name)
    world, recipe = draw(arrays, protocol, run, device), protocol.recipe(run.method)
    torch.manual_seed(run.seed)
    torch.backends.cudnn.benchmark = True
    classifier, detector = Classifier(protocol.backbone, int(world.labels.max()) + 1), Detector()
    for network in (classifier, detector):
        network.to(device).to(memory_format=torch.channels_last)
    autocast = torch.autocast(device.type, torch.bfloat16) if has_fast_bf16(device) else nullcontext()
    learner = methods.build(
        recipe, protocol.controls(run.method), classifier, detector, autocast, num_images=len(world.pool)
    )
    start, seconds = restore(learner, protocol, state, device)
    began, step = time.monotonic(), start
    while step < recipe.num_steps:
        if step % 100 == 0 and time.time() > deadline:
            store(learner, protocol, state, step, seconds + time.monotonic() - began)
            return None
        rng = Rng(torch.Generator(device).manual_seed((run.seed << 32) + step))
        if isinstance(learner, RSMatch) and step == learner.bootstrap_step:
            bootstrap(learner, world, rng)
        picked, shown, rows = (
            order(count, size, run.seed * 3 + k, step).to(device)
            for k, (count, size) in enumerate(
                (
                    (len(world.labeled), protocol.batch_size),
                    (len(world.labeled), protocol.batch_size),
                    (len(world.pool), protocol.batch_size * protocol.unlabeled_ratio),
                )
            )
        )
        batch = Batch(
            labeled=world.labeled[picked],
            labeled_tiles=world.labeled[shown],
            labels=world.labels[picked],
            unlabeled=world.pool[rows],
            unlabeled_tiles=world.pool[rows],
            rows=rows,
            synthetic=world.synthetic[rows],
        )
        learner.step(step, batch, lambda wanted: world.pool[wanted], rng)
        step += 1
    figures = evaluate(learner, world)  # waits for the device
    state.unlink(missing_ok=True)
    return {**run._asdict(), **vars(protocol), **figures, "seconds": round(seconds + time.monotonic() - began, 1)}


def order(count: int, size: int, seed: int, step: int) -> Tensor:
    """Rows (size,) of batch `step` of endless shuffled epochs."""
    place = torch.arange(step * size, (step + 1) * size)
    epoch = place // count
    return torch.cat(
        [
            torch.randperm(count, generator=torch.Generator().manual_seed((seed << 32) + number))[
                place[epoch == number] % count
            ]
            for number in epoch.unique().tolist()
        ]
    )


@torch.no_grad()
def bootstrap(learner: RSMatch, world: World, rng: Rng) -> None:
    """Start the detector, as `curate train` does."""
    rows = torch.arange(len(world.pool), device=world.pool.device)
    features = torch.cat([residual.features(part) for part in world.pool.split(CHUNK)])
    pseudo_labels = torch.cat([learner.classifier.average(part).real.argmax(1) for part in world.pool.split(CHUNK)])
    learner.bootstrap(rows, features, residual.features(world.labeled), pseudo_labels, rng.generator)


@torch.no_grad()
def evaluate(learner: methods.Method, world: World) -> dict[str, Any]:
    """Accuracy on real test images and, with a detector, its AUROC on the pool, the queue and the estimated share."""
    predicted = torch.cat([learner.classifier.average(part).real.argmax(1) for part in world.test.split(CHUNK)])
    figures: dict[str, Any] = {"accuracy": (predicted == world.test_classes).double().mean().item()}
    if isinstance(learner, RSMatch) and learner.has_detector:
        rank = torch.cat([learner.detector.average(part) for part in world.pool.split(CHUNK)]).argsort().argsort()
        fake, real = int(world.synthetic.sum()), int((~world.synthetic).sum())
        above = int(rank[world.synthetic].sum()) - fake * (fake - 1) / 2
        queued = learner.examples.queue.index[learner.examples.queue.index != csqueue.EMPTY]
        figures |= {
            "detector_auroc": above / (fake * real),
            "queue_purity": world.synthetic[queued].double().mean().item(),
            "share_synthetic": learner.thresholds.estimate[0],
            "true_share": fake / (fake + real),
        }
    return figures


def store(learner: methods.Method, protocol: Protocol, state: Path, step: int, seconds: float) -> None:
    """Write a checkpoint."""
    values: dict[str, Any] = {name: part.state_dict() for name, part in learner.parts.items()}
    values |= {"step": step, "seconds": seconds, "protocol": vars(protocol)}
    if isinstance(learner, RSMatch):
        values["confident_real"] = learner.examples.confident_real
    temporary = state.with_suffix(".tmp")
    torch.save(values, temporary)
    temporary.rename(state)


def restore(learner: methods.Method, protocol: Protocol, state: Path, device: torch.device) -> tuple[int, float]:
    """Load a checkpoint, if there is one; the step to go on from and the seconds before."""
    if not state.exists():
        return 0, 0.0
    values = torch.load(state, map_location=device, weights_only=True)
    if values["protocol"] != vars(protocol):
        raise SystemExit(f"{state}: is of another protocol; remove it, or name another file with --out.")
    for name, part in learner.parts.items():
        part.load_state_dict(values[name])
    if isinstance(learner, RSMatch):
        learner.examples.confident_real = values["confident_real"]
    return values["step"], values["seconds"]


def run_matrix(args: argparse.Namespace, protocol: Protocol) -> int:
    """Train what is missing, and append a line for each run that ends; returns the exit code."""
    started = time.time()
    matrix = [
        Run(contamination, seed, method)
        for seed in range(args.seeds)
        for contamination in args.contamination
        for method in args.method
    ]
    lines = read(args.out)
    if any(line[name] != value for line in lines for name, value in vars(protocol).items()):
        raise SystemExit(f"{args.out}: holds runs of another protocol; name another file with --out.")
    done = {tuple(line[name] for name in Run._fields) for line in lines}
    states = args.states or args.out.with_suffix(".states")
    states.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        arrays, deadline = None if args.toy else args.arrays, started + min(60 * args.minutes, args.seconds)
        futures = {
            pool.submit(
                train, arrays, protocol, run, states / ("-".join(map(str, run)) + ".pt"), args.device, deadline
            ): run
            for run in matrix
            if run not in done
        }
        code = 0
        for future in as_completed(futures):
            try:
                line = future.result()
            except Exception as error:  # the others go on
                print(f"{futures[future]}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                code = 1
                continue
            if line is None:
                code = code or UNFINISHED
                continue
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)
    return code


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def show(lines: list[dict[str, Any]]) -> None:
    """Accuracy in percent, paired differences to FixMatch, and the detector."""
    for contamination in dict.fromkeys(line["contamination"] for line in lines):
        inside = [line for line in lines if line["contamination"] == contamination]
        baseline = {line["seed"]: line["accuracy"] for line in inside if line["method"] == "fixmatch"}
        for method in dict.fromkeys(line["method"] for line in inside):
            runs = [line for line in inside if line["method"] == method]
            gains = [100 * (line["accuracy"] - baseline[line["seed"]]) for line in runs if line["seed"] in baseline]
            text = f"{contamination:12}{method:24}{100 * statistics.fmean(line['accuracy'] for line in runs):6.1f}"
            text += f"  minus fixmatch: {', '.join(f'{gain:+.1f}' for gain in gains)}"
            aurocs = [line["detector_auroc"] for line in runs if "detector_auroc" in line]
            print(text + (f"  AUROC {', '.join(f'{value:.3f}' for value in aurocs)}" if aurocs else ""))


def pack(args: argparse.Namespace) -> None:
    """Write the arrays: the files of the first images of each class, end to end, where each ends, and its class."""
    from pipelines.benchmark import sources

    arrays = {}
    for name, count in PACKED.items():
        source = sources.read(getattr(args, name))
        picked = [source.classes.index(wanted) for wanted in sorted(args.classes or source.classes)]
        rows = [np.flatnonzero(source.labels == k)[: count // len(picked)] for k in picked]
        files = [source.images[row] for row in np.concatenate(rows).tolist()]
        arrays[name] = np.frombuffer(b"".join(files), dtype=np.uint8)
        arrays[f"{name}_ends"] = np.cumsum([len(file) for file in files])
        arrays[f"{name}_classes"] = np.repeat(np.arange(len(picked)), [len(part) for part in rows])
    np.savez_compressed(args.arrays, **arrays)  # most of a small JPEG file is the same header
    print(f"{args.arrays}: {args.arrays.stat().st_size / 2**20:.1f} MiB")


def unpack(arrays: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Pixels (N, H, W, 3) uint8 and classes (N,) of each source."""
    images, classes = {}, {}
    with np.load(arrays) as loaded:
        for name in PACKED:
            files = np.split(loaded[name], loaded[f"{name}_ends"][:-1])
            opened = (Image.open(io.BytesIO(file.tobytes())).convert("RGB") for file in files)
            images[name] = np.stack([np.asarray(image) for image in opened])
            classes[name] = loaded[f"{name}_classes"]
    return images, classes


def toy() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A few drawn pictures of five classes, as `unpack` gives them: colors tell classes apart, noise synthetic ones."""
    rng, images, classes = np.random.default_rng(0), {}, {}
    colors = rng.integers(60, 190, (5, 3))
    for name, noise in (("real", 30), ("synthetic", 8), ("test", 30)):
        classes[name] = np.arange(100) % 5
        levels = colors[classes[name]][:, None, None] + rng.normal(0, noise, (100, 32, 32, 3))
        images[name] = levels.clip(0, 255).astype(np.uint8)
    return images, classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", action="store_true")
    parser.add_argument("--show", action="store_true")
    for name in PACKED:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--classes", nargs="+", help="to pack; all that there are by default")
    parser.add_argument("--arrays", type=Path, default=Path("arrays.npz"))
    parser.add_argument("--out", type=Path, default=Path("matrix.jsonl"))
    parser.add_argument("--states", type=Path, help="folder of the checkpoints; default: beside --out")
    parser.add_argument("--contamination", nargs="+", default=["off-class", "balanced"])
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="when to stop, to be continued")
    parser.add_argument("--seconds", type=float, default=math.inf, help="the same, in seconds")
    parser.add_argument("--toy", action="store_true", help="a few drawn pictures in place of --arrays")
    parser.add_argument("--backbone", default="wrn-28-2")
    parser.add_argument("--num-steps", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--unlabeled-ratio", type=int, default=7)
    parser.add_argument("--learning-rate", type=float, default=0.03)
    parser.add_argument("--labels", type=int, default=250)
    parser.add_argument("--alpha", type=float, default=1.0)
    args = parser.parse_args()
    if args.pack:
        pack(args)
    elif args.show:
        show(read(args.out))
    else:
        raise SystemExit(
            run_matrix(args, Protocol(**{name: getattr(args, name) for name in Protocol.__dataclass_fields__}))
        )


if __name__ == "__main__":
    main()
