"""Benchmark: how methods fare on pools contaminated by synthetic images, the task RS-SSL of arXiv 2405.16930.

In: real, synthetic and test images of known classes (`sources`), which `mixtures` makes pools of. Out, below `out`:

    results.jsonl         a line per run, appended when the run ends
    table.csv, table.md   means, spreads and paired differences (`table`)
    *.png, *.svg          figures (`plots`)

A second run skips the runs in results.jsonl and resumes a run that was killed from its checkpoint. Table and figures
always cover everything in results.jsonl.

The matrix is contaminations x numbers of real images x alphas x label counts x seeds x methods x learning rates. All
methods of a seed share their images: labeled set and the real and synthetic parts of the pool are drawn once per seed,
so that differences are paired. Training settings are the same for all methods except for the learning rate: a loss with
more terms takes larger steps at the same rate, so each method is judged at its best one (`table`). On request all
methods start from one network, trained on the labeled images alone; otherwise a short schedule compares how fast each
method learns from them. Each run passes through a user's own stages: the pool is ingested, `pipelines.train` trains on
it, and only the oracles read the truth.
"""

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

import torch

from pipelines import train
from pipelines.benchmark import measure, mixtures, plots, sources, table
from pipelines.benchmark.config import BenchmarkConfig, Summary
from pipelines.benchmark.methods import METHODS, merged
from pipelines.benchmark.mixtures import Mixture
from pipelines.compute import processes
from pipelines.errors import Incompatible
from pipelines.progress import OnTick, Tick, ignore
from pipelines.storage import locks
from pipelines.storage.atomic import make_folder, replacing, write_json

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the matrix."""

    mixture: Mixture
    method: str
    learning_rate: float

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies it among the runs; its line of results.jsonl begins with it."""
        return asdict(self.mixture) | {"method": self.method, "learning_rate": self.learning_rate}

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.mixture.name}-{self.method}-rate{self.learning_rate:g}"


def run(config: BenchmarkConfig, on_tick: OnTick = ignore) -> Summary:
    """Run what is missing from the matrix, then write the table and the figures; see the module.

    Raises BadInput for sources that cannot be used, Incompatible if results.jsonl has runs with other settings.
    """
    with locks.held(config.out):
        return _run(config, on_tick)


def _run(config: BenchmarkConfig, on_tick: OnTick) -> Summary:
    started = time.monotonic()
    jobs = list(dict.fromkeys(matrix(config)))  # something named twice is run once, and counts as one seed
    results = config.out / "results.jsonl"
    done = [_facts(record) for record in on_record(results, config)]
    missing = [job for job in jobs if job.facts not in done]
    if missing:
        _prepare(config, missing)
        runs = zip(missing, _in_order(config, run_one, missing), strict=True)
        for count, (job, record) in enumerate(runs, start=len(jobs) - len(missing) + 1):
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record | {"settings": _settings(config)}) + "\n")
            shutil.rmtree(_run_folder(config, job), ignore_errors=True)
            shown = {record["method"]: record.get("accuracy", math.nan)}
            on_tick(Tick(done=count, total=len(jobs), unit="runs", figures=shown))
        _remove_work(config)
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
    """Yield all runs, one seed after the other, so that an interrupted matrix is a complete one with fewer seeds."""
    for seed in range(config.seeds):
        cells = itertools.product(config.contaminations, config.num_real, config.alphas, config.labels)
        for cell in cells:
            for method, learning_rate in itertools.product(config.methods, config.learning_rates):
                yield Job(Mixture(*cell, seed), method, learning_rate)


def on_record(results: Path, config: BenchmarkConfig) -> list[dict[str, Any]]:
    """Read the runs in results.jsonl, and drop a last line that a kill truncated.

    Raises Incompatible if runs were made with other settings, or with another version of a method.
    """
    records, settings = [], _settings(config)
    text = results.read_text(encoding="utf-8") if results.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    for line in whole.splitlines():
        record = json.loads(line)
        if differing := [key for key, value in settings.items() if record["settings"].get(key) != value]:
            raise Incompatible(
                f"{results} was made with other settings ({', '.join(differing)}). Name another folder with --out."
            )
        if record.get("revision") != _revision(config, record["method"]):
            raise Incompatible(
                f"{results} has runs of {record['method']} from before that method was changed. Remove their lines, or "
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
    """The settings that must be the same for two runs to be compared."""
    named = {name: getattr(config, name).name for name in ("real", "synthetic", "test")}
    values = config.model_dump(mode="json", include={"num_test", "size", "start", "train"})
    return named | {"classes": sorted(set(config.classes)) if config.classes else None} | values


def _train_config(config: BenchmarkConfig, method: str, changes: Mapping[str, Any]) -> train.TrainConfig:
    return train.TrainConfig(**merged(config.train, METHODS[method].changes, changes))


def _revision(config: BenchmarkConfig, method: str) -> str:
    """Revision of what a method trains with these settings; empty for a method that no longer exists."""
    if method not in METHODS:
        return ""
    return _train_config(config, method, {"labeled": ""}).revision


# The work: mixtures, and the runs on them


def _prepare(config: BenchmarkConfig, missing: Sequence[Job]) -> None:
    """Build the mixtures of the missing runs and, if asked for, train the networks that the methods start from."""
    if config.photographs:
        sources.read(config.photographs)  # a mistake should not come to light only after the first training
    given = sources.Sources.read(config.real, config.synthetic, config.test, config.size)
    _drop_leftovers(config)
    pending = list(dict.fromkeys(job.mixture for job in missing))
    for mixture in pending:
        folder = _folder(config, mixture)
        mixtures.build(folder, mixture, given, num_test=config.num_test, task_classes=config.classes)
    if config.start is not None:
        for _ in _in_order(config, train_start, pending):
            pass


def _in_order(
    config: BenchmarkConfig, run_one: Callable[[BenchmarkConfig, int, T], R], items: Sequence[T]
) -> Iterator[R]:
    """Yield `run_one(config, threads, item)` for each item, in their order, computing up to `config.jobs` at once."""
    threads = max(1, torch.get_num_threads() // config.jobs)
    for _, result in processes.in_order(partial(run_one, config, threads), items, config.jobs):
        yield result


def _folder(config: BenchmarkConfig, mixture: Mixture) -> Path:
    return config.out / "mixtures" / mixture.name


def _run_folder(config: BenchmarkConfig, job: Job) -> Path:
    return config.out / "runs" / job.name


def _remove_work(config: BenchmarkConfig) -> None:
    for folder in ("mixtures", "runs"):
        shutil.rmtree(config.out / folder, ignore_errors=True)


def _drop_leftovers(config: BenchmarkConfig) -> None:
    """Remove the mixtures and runs that a killed benchmark left, if it had other settings."""
    given = {name: str(getattr(config, name).resolve()) for name in ("real", "synthetic", "test")}
    wanted = json.loads(json.dumps({"sources": given} | _settings(config)))
    stamp = config.out / "mixtures" / "settings.json"
    if stamp.exists() and json.loads(stamp.read_bytes()) == wanted:
        return
    _remove_work(config)
    make_folder(stamp.parent)
    write_json(stamp, wanted)


def train_start(config: BenchmarkConfig, threads: int, mixture: Mixture) -> None:
    """Train the network that all methods start from, on the labeled images of a mixture."""
    torch.set_num_threads(threads)
    folder = _folder(config, mixture)
    own = {"labeled": folder / "seed", "pool": folder / "real", "run": folder / "start", "seed": mixture.seed}
    own |= {"recipe": {"calibration_share": 0.0, "self_training": "always"}}
    train.run(train.TrainConfig(**merged(config.start or {}, own, METHODS["supervised"].changes)))


def run_one(config: BenchmarkConfig, threads: int, job: Job) -> dict[str, Any]:
    """Train one method on one mixture and measure it. Returns the run's line of results.jsonl."""
    torch.set_num_threads(threads)
    method, folder = METHODS[job.method], _folder(config, job.mixture)
    target = _run_folder(config, job)
    own = {
        "labeled": folder / "seed",
        "pool": folder / ("real" if method.real_only else "pool"),
        "validation": folder / "test",
        "truth": folder / "truth.parquet",
        "run": target,
        "seed": job.mixture.seed,
        "network": {"init_from": folder / "start" if config.start is not None else None},
        # All labels teach: the test set measures accuracy.
        "recipe": {"learning_rate": job.learning_rate, "calibration_share": 0.0, "self_training": "always"},
    }
    if method.changes.get("controls", {}).get("detector_examples") == "nnpu":
        own |= {"controls": {"share_real": 1 / (1 + job.mixture.alpha)}}
    settings = _train_config(config, job.method, own)
    summary = train.run(settings)
    series = [json.loads(line) for line in (target / "metrics.jsonl").read_text().splitlines()]
    followed = ("accuracy", "detector_auroc", "detector_flagged", "queue_purity", "dummy_share", "confident_share")
    record = job.facts | {"revision": _revision(config, job.method)}
    record |= {name: summary.metrics[name] for name in (*table.FIGURES, "dummy_share") if name in summary.metrics}
    if "detector_flagged" in summary.metrics:  # there is a detector; on a clean pool it has no AUROC
        record |= measure.held_out(folder, target)
        if config.photographs:
            shares = measure.scaled_photographs(folder, target, config.photographs, config.size)
            record["scaled_photographs"] = shares
        record |= {"share_synthetic": summary.estimated_share, "share_interval": summary.estimated_interval}
    record["series"] = [
        {name: line[name] for name in ("step", *followed) if name in line}
        for line in series
        if "accuracy" in line or "detector_auroc" in line
    ]
    if not summary.resumed_at:  # the time of an interrupted run is not known
        speed = settings.recipe.num_steps / summary.seconds
        record |= {"seconds": round(summary.seconds, 1), "steps_per_second": round(speed, 2)}
    return record
