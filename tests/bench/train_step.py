"""Our training step against the field's, in paired runs within one process. Run by hand:

    python tests/bench/train_step.py [--images images.npz] [--threads 2] [--steps 2] [--runs 5] [--json FILE]
    python tests/bench/train_step.py --table [--compile on|cuda-graphs]
    python tests/bench/train_step.py --device cuda --profile [--without-reference] [--lines lines.jsonl]

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
Not counted are a first run of each row, which warms up and compiles, and on a GPU the first steps of each run.
`--lines` appends a line for each row when it has warmed up, and one with its figures at the end: times in ms, the time
that kernels take of a step (with `--profile`), and what torch.compile could not compile.

Needs no data: without `--images` (uint8 images, the first such array of an .npy or .npz file) the pixels are random,
which changes no shape and no operation. Without an installation of curate, put the repository on `PYTHONPATH`; beside
it only torch, torchvision, timm, numpy and pydantic are needed.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference_step import NUM_CLASSES, UNLABELED_RATIO, Data, Reference
from torch import Tensor
from torch._dynamo.utils import counters
from torch.autograd import DeviceType

from models import methods, norms
from models.batch import Batch
from models.classifier import Classifier
from models.detector import Detector
from models.ranks import Rng
from models.recipe import Controls, Recipe
from models.rsmatch import DETECTOR_SETTLES, RSMatch

NUM_RANDOM_IMAGES = 10_000
LINUX_RESET = Path("/proc/self/clear_refs")  # "5" resets the peak of the process's memory
FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")  # of a CPU, that decide how fast it trains
CAPABILITIES = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # of newer versions
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
    controls: Controls = Controls(),
    compiled: str = "off",
) -> Callable[[], Iterator[None]]:
    """RSMatch past its warm-up, built as `curate train` builds it, with as many examples as its bootstrap finds.

    `compiled` is "off", "on" or "cuda-graphs", or "traced": as "on", without generating code.
    """
    device = data.images.device
    classifier, detector = Classifier("wrn-28-2", NUM_CLASSES), Detector()
    for network in (classifier, detector):
        network.to(device).to(memory_format=torch.channels_last)
    method = methods.build(recipe, controls, classifier, detector, autocast, num_images=len(data.images))
    if compiled != "off":
        how = {"cuda-graphs": {"mode": "reduce-overhead"}, "traced": {"backend": "eager"}}
        for network in (classifier, detector):
            network.compile(**how.get(compiled, {}))
    if compiled == "traced":
        norms.split_all(classifier)  # what a GPU compiles; passes of each group's own size are traced again and again
    rows = torch.arange(len(data.images), device=device)
    number = method.routing_start
    if isinstance(method, RSMatch):
        method.examples.queue.fill(rows, torch.rand(len(rows), device=device), rows % NUM_CLASSES)
        method.examples.confident_real = rows[: len(rows) // 10]
        number = max(number, method.detector_start + DETECTOR_SETTLES)
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
            if compiled == "cuda-graphs":  # what the last step's graphs hold may be overwritten
                torch.compiler.cudagraph_mark_step_begin()
            method.step(number, batch, fetch_tiles, rng)
            number += 1
            yield

    return train


def comparison(data: Data, autocast: AbstractContextManager[object], args: argparse.Namespace) -> list[Row]:
    """The reference, and ours without and with what RSMatch adds to FixMatch."""
    controls = Controls(weak_gradient=args.weak_gradient == "on")
    rows = [] if args.without_reference else [Row("reference", Reference(data, workers=args.workers).train)]
    for method in ("fixmatch", "rsmatch"):
        train = ours(data, Recipe(method=method), autocast, controls=controls, compiled=args.compile)
        rows.append(Row(f"ours, {method}", train))
    return rows


def measures(data: Data, autocast: AbstractContextManager[object], args: argparse.Namespace) -> list[Row]:
    """The reference and what one measure after the other makes of it; the last row adds the detector."""
    workers, compiled = args.workers, args.compile
    fixmatch, without = Recipe(method="fixmatch"), Controls(weak_gradient=False)
    rows = [
        Row("reference", Reference(data, workers=workers).train),
        Row("+ channels_last", Reference(data, workers=workers, channels_last=True).train),
    ]
    if not isinstance(autocast, nullcontext):
        rows.append(Row("+ bf16", Reference(data, workers=workers, channels_last=True, autocast=autocast).train))
    rows += [
        Row("+ batched augmentation", Reference(data, channels_last=True, autocast=autocast, batched=True).train),
        Row("+ fused SGD, foreach EMA", ours(data, fixmatch, autocast)),
        Row("+ weak without gradient", ours(data, fixmatch, autocast, controls=without)),
    ]
    if compiled != "off":
        rows.append(Row("+ torch.compile", ours(data, fixmatch, autocast, controls=without, compiled=compiled)))
    complete = ours(data, Recipe(), autocast, controls=without, compiled=compiled)
    return [*rows, Row("+ detector (all of rsmatch)", complete)]


def compare(rows: list[Row], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Warm up, run all rows in turn `runs` times, and sum up; the last two rows differ by the detector."""
    on_gpu = device.type == "cuda"
    for row in rows:
        row.warm_up(args.warm_up, device)
        write_line(args, row, {"warm_up_s": row.warm_up_s})
    for _ in range(args.runs):
        for row in rows:
            # The loaders' processes have batches ready when a run begins: these are not their pace.
            row.run(args.steps, args.warm_up if on_gpu else 0, device)
    trusted = "wall_s" if on_gpu else "cpu_s"
    shares = [getattr(b, trusted) / getattr(a, trusted) - 1 for a, b in zip(rows[-2].runs, rows[-1].runs, strict=True)]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": _machine(device),
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "rows": [_summary(row, rows[0], args.batch * (1 + UNLABELED_RATIO)) for row in rows],
        "detector_share": _spread(shares),
    }


def write_line(args: argparse.Namespace, row: Row, figures: dict[str, Any]) -> None:
    """Append a line to `--lines`."""
    if args.lines:
        setting = {"row": row.name, "compile": args.compile, "weak_gradient": args.weak_gradient, "batch": args.batch}
        with args.lines.open("a") as file:
            file.write(json.dumps({"part": args.part, **setting, **figures}) + "\n")


def of_compiler() -> dict[str, int]:
    """What torch.compile made of the networks, and what it left out."""
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "cudagraph_skips": counters["inductor"]["cudagraph_skips"],
    }


def _summary(row: Row, reference: Row, images: int) -> dict[str, Any]:
    pairs = list(zip(reference.runs, row.runs, strict=True))
    wall_s = statistics.median(run.wall_s for run in row.runs)
    return {
        "name": row.name,
        "cpu_s": statistics.median(run.cpu_s for run in row.runs),
        "wall_s": wall_s,
        "images_per_s": images / wall_s,
        "memory_mib": max(run.memory for run in row.runs) / 2**20,
        "ratio_cpu": _spread([theirs.cpu_s / own.cpu_s for theirs, own in pairs]),
        "ratio_wall": _spread([theirs.wall_s / own.wall_s for theirs, own in pairs]),
        "warm_up_s": row.warm_up_s,
        "runs": [asdict(run) for run in row.runs],
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(figures: dict[str, Any]) -> None:
    """Print the table."""
    print(figures["date"], ", ".join(f"{name}: {value}" for name, value in figures["machine"].items()))
    columns = (
        f"{'CPU ms':>9}{'wall ms':>9}{'images/s':>10}{'MiB':>7}  {'CPU ratio':20}{'wall ratio':20}{'warm-up s':>9}"
    )
    print(" " * 30 + columns)
    for row in figures["rows"]:
        cpu, wall = (
            f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
            for ratio in (row["ratio_cpu"], row["ratio_wall"])
        )
        print(
            f"{row['name']:30}{row['cpu_s'] * 1e3:9.1f}{row['wall_s'] * 1e3:9.1f}{row['images_per_s']:10.0f}"
            f"{row['memory_mib']:7.0f}  {cpu:20}{wall:20}{row['warm_up_s']:9.1f}"
        )
    share = figures["detector_share"]
    print(f"the detector adds {share['median']:.1%} ({share['min']:.1%} to {share['max']:.1%}) to a step")


def profile(row: Row, device: torch.device) -> tuple[str, float | None]:
    """Where the time of a row's steps goes, by kernel; on a GPU also how many ms of a step kernels take."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    training = row.train()
    next(training)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(PROFILED_STEPS):
            next(training)
        _synchronize(device)
    averages = profiler.key_averages()
    table = averages.table(
        sort_by="self_device_time_total" if device.type == "cuda" else "self_cpu_time_total",
        row_limit=PROFILED_ROWS,
        max_name_column_width=70,
    )
    if device.type != "cuda":
        return table, None
    kernels = [event for event in averages if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    busy_ms = sum(event.self_device_time_total for event in kernels) / PROFILED_STEPS / 1e3
    return f"{table}\n{row.name}: kernels take {busy_ms:.2f} ms of a step; wall time beyond that is the host's", busy_ms


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif LINUX_RESET.exists():
        LINUX_RESET.write_text("5")


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not LINUX_RESET.exists():
        return 0
    status = LINUX_RESET.with_name("status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def has_fast_bf16(device: torch.device) -> bool:
    """What `precision = "auto"` of `curate train` asks; that module needs more than this one may."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(CAPABILITIES.get("amx_bf16") or CAPABILITIES.get("avx512_bf16"))


def _machine(device: torch.device) -> dict[str, Any]:
    machine: dict[str, Any] = {} if device.type == "cpu" else {"gpu": torch.cuda.get_device_name(device)}
    return machine | {
        "cpu": CAPABILITIES.get("cpu_name"),
        "features": " ".join(name for name in FEATURES if CAPABILITIES.get(name)),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _load(path: Path | None) -> np.ndarray:
    """Uint8 images (N, H, W, 3) of a file of either order, or random ones of CIFAR's shape."""
    if path is None:
        return np.random.default_rng(0).integers(0, 256, (NUM_RANDOM_IMAGES, 32, 32, 3), dtype=np.uint8)
    loaded = np.load(path)
    arrays = loaded.values() if isinstance(loaded, np.lib.npyio.NpzFile) else [loaded]
    for array in arrays:
        if array.dtype == np.uint8 and array.ndim == 4:
            return array if array.shape[3] == 3 else array.transpose(0, 2, 3, 1)
    raise SystemExit(f"{path} holds no uint8 array of four dimensions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="default: random pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64, help="labeled images of a step; it has 7 unlabeled for each")
    parser.add_argument("--steps", type=int, help="counted in a run; default: 2, on a GPU 50")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--warm-up", type=int, help="steps not counted; default: 1, on a GPU 10")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, help="processes of each reference loader; default: 0, on a GPU 4")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of ours")
    parser.add_argument("--table", action="store_true", help="what each measure brings")
    parser.add_argument(
        "--compile", choices=("off", "on", "cuda-graphs", "traced"), default="off", help="ours; minutes on a CPU"
    )
    parser.add_argument("--weak-gradient", choices=("on", "off"), default="on", help="of ours, where no table is asked")
    parser.add_argument("--without-reference", action="store_true", help="ratios are then to the first row of ours")
    parser.add_argument("--profile", action="store_true", help="where the time of the last two rows goes")
    parser.add_argument("--lines", type=Path, help="file to append a JSON line for each row to")
    parser.add_argument("--part", default="step", help="what the lines say that they are of")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    for option, on_cpu, otherwise in (("steps", 2, 50), ("warm_up", 1, 10), ("workers", 0, 4)):
        if getattr(args, option) is None:
            setattr(args, option, otherwise if on_gpu else on_cpu)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True

    images = torch.from_numpy(_load(args.images)).permute(0, 3, 1, 2).contiguous().to(device)
    data = Data(images=images, labels=torch.arange(len(images), device=device) % NUM_CLASSES, batch_size=args.batch)
    bf16 = args.precision == "bf16" or (args.precision == "auto" and has_fast_bf16(device))
    autocast = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
    rows = (measures if args.table else comparison)(data, autocast, args)
    figures = compare(rows, args, device)
    show(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    for row, summary in zip(rows, figures["rows"], strict=True):
        kernels_ms = None
        if args.profile and row in rows[-2:]:
            table, kernels_ms = profile(row, device)
            print(table)
        kept = {f"{name}_ms": round(1e3 * summary[f"{name}_s"], 3) for name in ("wall", "cpu")}
        kept |= {"slowest_run_ms": round(1e3 * max(run["wall_s"] for run in summary["runs"]), 3)}
        kept |= {"memory_mib": round(summary["memory_mib"]), "kernels_ms": kernels_ms, **figures["machine"]}
        write_line(args, row, kept | of_compiler())


if __name__ == "__main__":
    main()
