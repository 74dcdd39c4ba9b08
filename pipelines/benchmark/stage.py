"""RS-SSL: how methods fare on pools that synthetic images contaminate (the task of arXiv 2405.16930).

in      real, synthetic and test images of known classes (`sources`), of which `pools` makes pools
out     out/results.jsonl   one line per run, appended as runs end
        out/table.csv, out/table.md and the figures of `plots`
again   runs on record are skipped, one that was killed goes on from its checkpoint; table and figures are always of
        all that is on record in the folder

A matrix is contaminations x numbers of real images x alphas x label counts x seeds x methods x learning rates. All
methods of a seed share their images: labeled set, real part of the pool and synthetic part are drawn once for it, so
that differences are paired. The settings of the training are the same for all but for the learning rate: a loss of more
terms takes larger steps at the same one, so each method is judged at its best (`table`). On request all
start from one network, trained on the labeled images alone: a short schedule would else compare how fast each learns
what these say. Each run goes through the stages that a user's crawl goes through: the pool is ingested,
`pipelines.train` trains on it, and nothing but the oracles reads the truth.
"""

import io
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pipelines import train
from pipelines.benchmark import plots, pools, sources, table
from pipelines.benchmark.config import BenchmarkConfig, Summary
from pipelines.benchmark.methods import METHODS, merged
from pipelines.benchmark.pools import World
from pipelines.compute import devices, processes
from pipelines.errors import Incompatible
from pipelines.images import encode
from pipelines.images.views import Decoder
from pipelines.pool.manifest import read_parquet
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run import evaluation, model, verdicts
from pipelines.storage import locks
from pipelines.storage.atomic import make_folder, replacing, write_json

T = TypeVar("T")
R = TypeVar("R")

LIMITS = (0.05, 0.1)
KERNELS = ("lanczos", "bicubic", "box", "bilinear")
LOST = 0.05  # of the real test images, where the threshold for scaled photographs lies
NUM_PHOTOGRAPHS = 1000


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the matrix."""

    world: World
    method: str
    learning_rate: float

    @property
    def facts(self) -> dict[str, Any]:
        """What tells it from the other runs, as its line of results.jsonl begins."""
        return asdict(self.world) | {"method": self.method, "learning_rate": self.learning_rate}

    @property
    def name(self) -> str:
        """A name for its folder."""
        return f"{self.world.name}-{self.method}-rate{self.learning_rate:g}"


def run(config: BenchmarkConfig, on_tick: OnTick = ignore) -> Summary:
    """Run what is missing of the matrix, then write table and figures."""
    with locks.held(config.out):
        return _run(config, on_tick)


def _run(config: BenchmarkConfig, on_tick: OnTick) -> Summary:
    started = time.monotonic()
    jobs = list(dict.fromkeys(matrix(config)))  # what was named twice is run once, and counts as one seed
    results = config.out / "results.jsonl"
    done = [_facts(record) for record in on_record(results, config)]
    missing = [job for job in jobs if job.facts not in done]
    if missing:
        if config.photographs:
            sources.read(config.photographs)  # a mistake should not come to light after the first training
        given = pools.Sources.read(config.real, config.synthetic, config.test, config.size)
        _drop_leftovers(config)
        pending = list(dict.fromkeys(job.world for job in missing))
        for world in pending:
            place = _folder(config, world)
            pools.build(place, world, given, num_test=config.num_test, task_classes=config.classes)
        if config.start is not None:
            for _ in _in_order(config, train_start, pending):
                pass
        runs = zip(missing, _in_order(config, run_one, missing), strict=True)
        for count, (job, record) in enumerate(runs, start=len(jobs) - len(missing) + 1):
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record | {"settings": _settings(config)}) + "\n")
            shutil.rmtree(_run_folder(config, job), ignore_errors=True)
            shown = {record["method"]: record.get("accuracy", math.nan)}
            on_tick(Tick(done=count, total=len(jobs), unit="runs", figures=shown))
        for folder in ("worlds", "runs"):
            shutil.rmtree(config.out / folder, ignore_errors=True)
    records = table.at_best_rates(on_record(results, config))
    rows = table.summarize(records)
    table.write_table(config.out, rows)
    return Summary(
        num_runs=len(jobs),
        num_on_record=len(jobs) - len(missing),
        seconds=time.monotonic() - started,
        table=tuple(rows),
        figures=tuple(str(path) for path in plots.draw(config.out, records, rows)),
    )


def matrix(config: BenchmarkConfig) -> Iterator[Job]:
    """All runs, one seed of everything after the other, so that a matrix that is cut short is a smaller one."""
    for seed in range(config.seeds):
        cells = itertools.product(config.contaminations, config.num_real, config.alphas, config.labels)
        for cell in cells:
            for method, learning_rate in itertools.product(config.methods, config.learning_rates):
                yield Job(World(*cell, seed), method, learning_rate)


def on_record(results: Path, config: BenchmarkConfig) -> list[dict[str, Any]]:
    """Read the runs on record; a line that a kill cut short is dropped. Incompatible where the settings differ, or what
    a method is.
    """
    records, settings = [], _settings(config)
    text = results.read_text(encoding="utf-8") if results.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    for line in whole.splitlines():
        record = json.loads(line)
        if differing := [key for key, value in settings.items() if record["settings"].get(key) != value]:
            raise Incompatible(
                f"{results}: was made with other settings ({', '.join(differing)}); name another folder with --out."
            )
        if record.get("revision") != _revision(config, record["method"]):
            raise Incompatible(
                f"{results}: has runs of {record['method']} from before that method was changed; remove their lines or "
                f"name another folder with --out."
            )
        records.append(record)
    if whole != text:
        with replacing(results) as temporary:
            temporary.write_text(whole, encoding="utf-8")
    results.parent.mkdir(parents=True, exist_ok=True)
    return records


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in (*table.CELL, "seed", "method", "learning_rate")}


def _settings(config: BenchmarkConfig) -> dict[str, Any]:
    """What must be the same for two runs to be compared."""
    named = {name: getattr(config, name).name for name in ("real", "synthetic", "test")}
    values = config.model_dump(mode="json", include={"num_test", "size", "start", "train"})
    return named | {"classes": sorted(set(config.classes)) if config.classes else None} | values


def _train_config(config: BenchmarkConfig, method: str, changes: Mapping[str, Any]) -> train.TrainConfig:
    return train.TrainConfig(**merged(config.train, METHODS[method].changes, changes))


def _revision(config: BenchmarkConfig, method: str) -> str:
    """Of what a method trains by these settings; empty for one that is no more."""
    if method not in METHODS:
        return ""
    return _train_config(config, method, {"labeled": ""}).revision


# Runs.


def _in_order(
    config: BenchmarkConfig, run_one: Callable[[BenchmarkConfig, int, T], R], items: Sequence[T]
) -> Iterator[R]:
    """What `run_one` makes of each item, in their order, up to `config.jobs` side by side."""
    threads = max(1, torch.get_num_threads() // config.jobs)
    for _, result in processes.in_order(partial(run_one, config, threads), items, config.jobs):
        yield result


def _folder(config: BenchmarkConfig, world: World) -> Path:
    return config.out / "worlds" / world.name


def _run_folder(config: BenchmarkConfig, job: Job) -> Path:
    return config.out / "runs" / job.name


def _drop_leftovers(config: BenchmarkConfig) -> None:
    """Remove worlds and runs that a kill left if they were made by other settings."""
    sources = {name: str(getattr(config, name).resolve()) for name in ("real", "synthetic", "test")}
    wanted = json.loads(json.dumps({"sources": sources} | _settings(config)))
    stamp = config.out / "worlds" / "settings.json"
    if stamp.exists() and json.loads(stamp.read_bytes()) == wanted:
        return
    for folder in ("worlds", "runs"):
        shutil.rmtree(config.out / folder, ignore_errors=True)
    make_folder(stamp.parent)
    write_json(stamp, wanted)


def train_start(config: BenchmarkConfig, threads: int, world: World) -> None:
    """Train the network that all methods start from on a world's labeled images."""
    torch.set_num_threads(threads)
    folder = _folder(config, world)
    own = {"labeled": folder / "seed", "pool": folder / "real", "run": folder / "start", "seed": world.seed}
    train.run(train.TrainConfig(**merged(config.start or {}, own, METHODS["supervised"].changes)))


def run_one(config: BenchmarkConfig, threads: int, job: Job) -> dict[str, Any]:
    """Train one method on one world; returns its line of results.jsonl."""
    torch.set_num_threads(threads)
    method, folder = METHODS[job.method], _folder(config, job.world)
    target = _run_folder(config, job)
    own = {
        "labeled": folder / "seed",
        "pool": folder / ("real" if method.real_only else "pool"),
        "validation": folder / "test",
        "truth": folder / "truth.parquet",
        "run": target,
        "seed": job.world.seed,
        "network": {"init_from": folder / "start" if config.start is not None else None},
        "recipe": {"learning_rate": job.learning_rate},
    }
    if method.changes.get("controls", {}).get("detector_examples") == "nnpu":
        own |= {"controls": {"share_real": 1 / (1 + job.world.alpha)}}
    settings = _train_config(config, job.method, own)
    summary = train.run(settings)
    series = [json.loads(line) for line in (target / "metrics.jsonl").read_text().splitlines()]
    followed = ("accuracy", "detector_auroc", "detector_flagged", "queue_purity", "dummy_share", "confident_share")
    record = job.facts | {"revision": _revision(config, job.method)}
    record |= {name: summary.metrics[name] for name in (*table.FIGURES, "dummy_share") if name in summary.metrics}
    if "detector_flagged" in summary.metrics:  # there is a detector; of a clean pool there is no AUROC
        record |= held_out(folder, target)
        if config.photographs:
            record["scaled_photographs"] = scaled_photographs(folder, target, config.photographs, config.size)
        record |= {"share_synthetic": summary.estimated_share, "share_interval": summary.estimated_interval}
    record["series"] = [
        {name: line[name] for name in ("step", *followed) if name in line}
        for line in series
        if "accuracy" in line or "detector_auroc" in line
    ]
    if not summary.resumed_at:  # what a run took that was cut short is not known
        speed = settings.recipe.num_steps / summary.seconds
        record |= {"seconds": round(summary.seconds, 1), "steps_per_second": round(speed, 2)}
    return record


@torch.no_grad()
def held_out(world: Path, run: Path) -> dict[str, Any]:
    """Detector on real test images and on synthetic images of no pool: AUROC, also by class; accuracy; on color images.

    Empty where the pool took all synthetic images that there are.
    """
    fake = read_parquet(world / "held_out.parquet")
    if not fake.num_rows:
        return {}
    trained = model.load(run, devices.choose("auto"))
    names = [path.name for path in sorted((world / "test").iterdir())]
    files = [(path, k) for k, name in enumerate(names) for path in sorted((world / "test" / name).iterdir())]
    data = [path.read_bytes() for path, _ in files] + fake["image"].to_pylist()
    label = np.array([k for _, k in files] + fake["cls"].to_pylist())
    synthetic = np.arange(len(data)) >= len(files)
    logits, color = _detect(trained, data)
    probs = torch.from_numpy(logits).sigmoid().numpy()
    return {
        "held_out_auroc": round(evaluation.auroc(logits, synthetic), 6),
        "held_out_auroc_color": round(evaluation.auroc(logits[color], synthetic[color]), 6),
        "held_out_accuracy": round(evaluation.mean((logits >= 0) == synthetic), 6),
        "held_out_false_positives": round(evaluation.mean(logits[~synthetic] >= 0), 6),
        # Real images lost where `curate score --max-false-positive-rate` is asked for this share of them.
        "false_positives_at_limit": {
            f"{rate:g}": round(evaluation.mean(probs[~synthetic] >= verdicts.limit(trained.config.held_out, rate)), 6)
            for rate in LIMITS
            if (len(trained.config.held_out) + 1) * rate >= 1
        },
        "held_out_auroc_by_class": {
            name: round(evaluation.auroc(logits[label == k], synthetic[label == k]), 6) for k, name in enumerate(names)
        },
    }


@torch.no_grad()
def scaled_photographs(world: Path, run: Path, photographs: Path, size: int | None) -> dict[str, float]:
    """Share of photographs, scaled to the pool's size by each kernel, above the threshold that loses 5 % of real test
    images: what a detector gets wrong that takes the way of scaling for a trace of a generator.
    """
    trained = model.load(run, devices.choose("auto"))
    side, source = size or trained.config.detector_size, sources.read(photographs)
    photos = [source.images[i] for i in range(min(len(source), NUM_PHOTOGRAPHS))]
    files = sorted((world / "test").glob("*/*"))
    of_test, _ = _detect(trained, [path.read_bytes() for path in files])
    threshold = np.quantile(of_test, 1 - LOST)
    return {
        kernel: round(
            evaluation.mean(_detect(trained, [scaled(data, side, kernel) for data in photos])[0] >= threshold), 4
        )
        for kernel in KERNELS
    }


def scaled(data: bytes, side: int, kernel: str) -> bytes:
    """An image at `side` x `side` pixels by one of KERNELS, as the JPEG that small images often are."""
    with Image.open(io.BytesIO(data)) as opened:
        small = opened.convert("RGB").resize((side, side), getattr(Image.Resampling, kernel.upper()))
    return encode.encode(small, "jpg")


def _detect(trained: model.Model, data: Sequence[bytes]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Detector's logits (N,) and whether each image has color (N,)."""
    size, device = trained.config.detector_size, next(trained.detector.parameters()).device
    decoder = Decoder(size, size)
    logits, color = [], []
    for start in range(0, len(data), 500):
        part = data[start : start + 500]
        tiles = np.stack([decoder.decode_tile(f"number {start + i}", image) for i, image in enumerate(part)])
        on_device = torch.from_numpy(tiles).to(device)
        logits.append(trained.detector(on_device).cpu())
        color.append(evaluation.is_color(on_device).cpu())
    return torch.cat(logits).numpy(), torch.cat(color).numpy()
