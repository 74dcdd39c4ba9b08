"""How fast photographs are scored on a GPU, against the networks alone, and how fast frozen features are read.

    python tests/bench/gpu_score.py --device cuda --lines lines.jsonl

It draws textured photographs, ingests them, and scores them with untrained weights, whose speed is that of trained
ones. A line of `--lines` for each figure, in images per second:

    ingest      of the photographs into a pool
    score       through `pipelines.score`, from the first batch to the last, best of `--runs` after one that is not
                counted; `network` is the classifier alone on batches that lie on the device, in fp32 and in bf16,
                `detector` the detector alone; `decode_threads` and `decode_processes` the decoding alone, the start
                of the processes included; `share` is score / the faster classifier alone, the goal 0.8
    features    through `FeatureReader.batch`, as for a panel on a frozen backbone, without views (a backbone that is
                trained needs none) and with two weak and two strong ones; `share` is what the network alone would take
                for as many squares, whole passes and those that end early, of the time that it takes

A network that fails leaves a line with its error, and the next one is tried.
"""

import argparse
import cProfile
import io
import json
import pstats
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.backbones import backbone
from models.classifier import Classifier
from models.detector import Detector
from models.frozen import Frozen
from pipelines import ingest, score
from pipelines.compute import devices
from pipelines.compute.processes import usable_cores
from pipelines.images.photo import PhotoDecoder
from pipelines.ingest import IngestConfig
from pipelines.pool.features import FeatureReader
from pipelines.pool.manifest import Pool
from pipelines.pool.pixels import Decoding
from pipelines.pool.rows import Rows
from pipelines.progress import Tick
from pipelines.run import model
from pipelines.run.scorer import Scorer
from pipelines.score import ScoreConfig
from tests.photographs import texture

SCORED = ("timm:resnet50", "timm:vit_pe_core_small_patch16_384.fb")
READ = ("timm:tf_efficientnet_lite0", "timm:vit_pe_core_small_patch16_384.fb")
CLASSES = tuple(f"class-{i}" for i in range(10))
TEXTURES = 48  # of which the photographs are cut
TILES = 4  # of a photograph, at each scale
TIMED_S = 1.0  # of a network alone


def photographs(folder: Path, count: int, side: int) -> None:
    """Write JPEG files of `side` pixels: cuts of a few large textures, each with its own light, as a crawl has them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    large = [texture(rng, side + 64, side + 64) for _ in range(min(count, TEXTURES))]

    def write(number: int) -> None:
        own = np.random.default_rng(number)
        top, left = own.integers(0, 64, 2)
        cut = large[number % len(large)][top : top + side, left : left + side] + own.normal(0, 12, 3)
        pixels = (cut + 3 * own.standard_normal(cut.shape, np.float32)).clip(0, 255).astype(np.uint8)
        saved = io.BytesIO()
        Image.fromarray(pixels).save(saved, "JPEG", quality=90)
        (folder / f"{number:06}.jpg").write_bytes(saved.getvalue())

    with ThreadPoolExecutor(usable_cores()) as threads:
        list(threads.map(write, range(count)))


class Lines:
    """The file of results; each line is there as soon as its figure is."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        self._path, self._machine = path, machine

    def write(self, **figures: Any) -> None:
        line = {"part": "score", **figures, **self._machine}
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @contextmanager
    def tried(self, **named: Any) -> Iterator[None]:
        """Turn an error into a line."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.write(**named, error=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def rate(device: torch.device, count: int, compute: Callable[[], object]) -> float:
    """Images per second of a computation on `count` images, after three that are not counted."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        compute()
    wait()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < TIMED_S:
        for _ in range(5):
            compute()
        wait()
        done += 5 * count
    return done / (time.perf_counter() - started)


@torch.no_grad()
def network_rates(loaded: model.Model, args: argparse.Namespace) -> dict[str, float]:
    """Images per second of classifier and detector alone."""
    device, sides = torch.device(args.device), (loaded.config.image_size, loaded.config.detector_size)
    images, tiles = (
        torch.randint(0, 256, (args.batch, 3, side, side), dtype=torch.uint8, device=device) for side in sides
    )
    found = {}
    for precision in ("fp32", "bf16"):
        with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
            found[f"network_{precision}"] = rate(device, args.batch, lambda: loaded.classifier(images).real)
            found[f"detector_{precision}"] = rate(device, args.batch, lambda: loaded.detector(tiles))
    return found


def decode_rate(pool: Path, loaded: model.Model, args: argparse.Namespace, num_processes: int) -> float:
    """Images per second that are decoded and moved to the device; 0 processes: by as many threads as scoring has."""
    opened, device = Pool.open(pool), torch.device(args.device)
    batches = (
        (rows, torch.arange(start, min(start + args.batch, len(rows))))
        for rows in (Rows.of_shard(opened, number) for number in range(len(opened.shards)))
        for start in range(0, len(rows), args.batch)
    )
    with closing(Decoding(loaded.pixels, device, max(2, torch.get_num_threads()), num_processes)) as decoding:
        started = time.perf_counter()
        count = sum(len(views) for views in decoding.stream(batches))
    return count / (time.perf_counter() - started)


def profiled(pool: Path, run: Path, args: argparse.Namespace) -> str:
    """Where the time of scoring a pool goes, by what the main thread calls and by what the device computes."""
    scorer = Scorer.load(run, args.device)
    opened = Pool.open(pool)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if args.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    by_call = cProfile.Profile()
    with torch.profiler.profile(activities=activities) as profiler:
        by_call.enable()
        for _ in scorer.score_shards(opened, range(len(opened.shards)), args.batch):
            pass
        by_call.disable()
    text = io.StringIO()
    pstats.Stats(by_call, stream=text).sort_stats("tottime").print_stats(25)
    order = "self_cuda_time_total" if args.device == "cuda" else "self_cpu_time_total"
    table: str = profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=70)
    return text.getvalue() + table


def score_rate(pool: Path, run: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Images per second between the first batch and the last, and of the whole command, the start of Python aside."""
    heard: list[tuple[int, float]] = []

    def on_tick(tick: Tick) -> None:
        if tick.done and (not heard or tick.done > heard[-1][0]):
            heard.append((tick.done, time.perf_counter()))

    best, best_whole = 0.0, 0.0
    for _ in range(args.runs + 1):
        shutil.rmtree(run / "scores", ignore_errors=True)
        heard.clear()
        summary = score.run(ScoreConfig(pool=pool, run=run, device=args.device, batch_size=args.batch), on_tick)
        (first, began), (last, ended) = heard[0], heard[-1]
        best, best_whole = (
            max(best, (last - first) / max(ended - began, 1e-9)),
            max(best_whole, summary.num_images / summary.seconds),
        )
    return best, best_whole


def scored(name: str, pool: Path, home: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Scoring with an untrained classifier and detector against the two alone."""
    torch.manual_seed(0)
    run = home / f"run-{name.removeprefix('timm:')}"
    config = model.ModelConfig(
        classes=CLASSES, method="rsmatch", backbone=name, image_size=args.size, detector_size=min(args.size, 96),
        num_steps=0, pool="pool",
    )  # fmt: skip
    model.save(run / "model", config, Classifier(name, len(CLASSES), args.size).eval(), Detector().eval())
    loaded = model.load(run, torch.device(args.device))
    alone = network_rates(loaded, args)
    for how, num_processes in (("threads", 0), ("processes", usable_cores())):
        alone[f"decode_{how}"] = decode_rate(pool, loaded, args, num_processes)
    steady, whole = score_rate(pool, run, args)
    if args.profile:
        print(profiled(pool, run, args), flush=True)
    fastest = max(value for key, value in alone.items() if key.startswith("network"))
    return {"score": steady, "score_with_start": whole, **alone, "share": steady / fastest}


@torch.no_grad()
def features(name: str, pool: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Reading of frozen features against the frozen network on as many squares."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    tensors = backbone(name, args.size)[0].state_dict()
    frozen = Frozen(name, tensors, args.size, devices.autocast("auto", device)).to(device)
    rows = Rows.of_shard(Pool.open(pool), 0)
    numbers = list(range(min(args.features, len(rows))))
    names, files = [str(rows.key[i]) for i in numbers], rows.read(numbers)
    squares = torch.randint(0, 256, (args.batch, 3, args.size, args.size), dtype=torch.uint8, device=device)
    whole, low = (
        rate(device, args.batch, lambda: frozen(squares)),
        rate(device, args.batch, lambda: frozen.low(squares)),
    )
    found: dict[str, Any] = {"network": whole, "network_low": low, "precision": frozen.precision}
    photo = PhotoDecoder(args.size, TILES).decode(names[0], files[0])
    num_native, num_common = len(photo.native), len(photo.common)
    for num_views in (0, 2):
        reader = FeatureReader(frozen, TILES, num_views)
        with ThreadPoolExecutor(max(2, torch.get_num_threads())) as threads:
            reader.batch(names[:16], files[:16], threads)
            started = time.perf_counter()
            reader.batch(names, files, threads)
            reached = len(files) / (time.perf_counter() - started)
        # Three residuals of each tile are read to the last map that counts, the rest to the end.
        network_s = 3 * (num_native + num_common) / low + (num_common + 1 + 2 * num_views) / whole
        found |= {f"features_{num_views}_views": reached, f"share_{num_views}_views": reached * network_s}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--images", type=int, default=8_000, help="photographs to score")
    parser.add_argument("--features", type=int, default=1_000, help="photographs to read features of")
    parser.add_argument("--side", type=int, default=256, help="of the photographs, in pixels")
    parser.add_argument("--size", type=int, default=224, help="of what the networks see, in pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--scored", nargs="+", default=SCORED)
    parser.add_argument("--profile", action="store_true", help="print where the time of scoring goes")
    parser.add_argument("--read", nargs="+", default=READ)
    args = parser.parse_args()
    device = torch.device(args.device)
    machine = {"torch": torch.__version__, "cores": usable_cores()}
    if device.type == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(device)}
    lines = Lines(args.lines, machine)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        photographs(home / "crawl", args.images, args.side)
        done = ingest.run(IngestConfig(sources=(str(home / "crawl"),), pool=home / "pool"))
        lines.write(what="ingest", rate=round(done.read / done.seconds), kept=done.kept, side=args.side)
        for what, names, measure in (
            ("score", args.scored, lambda name: scored(name, home / "pool", home, args)),
            ("features", args.read, lambda name: features(name, home / "pool", args)),
        ):
            for name in names:
                with lines.tried(what=what, backbone=name):
                    figures = measure(name)
                    rounded = {k: v if isinstance(v, str) else float(f"{v:.4g}") for k, v in figures.items()}
                    lines.write(what=what, backbone=name, size=args.size, batch=args.batch, **rounded)


if __name__ == "__main__":
    main()
