"""RS-SSL: how methods fare on pools that synthetic images contaminate (the task of arXiv 2405.16930).

in      real, synthetic and test images of known classes (pipelines.datasets), of which pipelines.worlds makes pools
out     out/results.jsonl   one line per run, appended as runs end
        out/table.csv, out/table.md and the figures of pipelines.plots
again   runs on record are skipped, one that was killed goes on from its checkpoint; table and figures are always of
        all that is on record in the folder

A matrix is contaminations x numbers of real images x alphas x label counts x seeds x methods x learning rates. All
methods of a seed share their images: labeled set, real part of the pool and synthetic part are drawn once for it, so
that differences are paired. The settings of the training are the same for all but for the learning rate: a loss of more
terms takes larger steps at the same one, so each method is judged at its best (`pipelines.comparison`). On request all
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
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from pipelines import calibration, comparison, datasets, devices, folders, model, plots, train, truth, workers, worlds
from pipelines.atomic import make_folder, replacing, write_json
from pipelines.errors import Incompatible
from pipelines.images import Decoder
from pipelines.manifest import read_parquet
from pipelines.progress import OnTick, Tick, ignore
from pipelines.worlds import World

T = TypeVar("T")
R = TypeVar("R")

LIMITS = (0.05, 0.1)
KERNELS = ("lanczos", "bicubic", "box", "bilinear")
LOST = 0.05  # of the real test images, where the threshold for scaled photographs lies
NUM_PHOTOGRAPHS = 1000


class Method(NamedTuple):
    """What a method changes in the settings of the training, and what its pool holds."""

    changes: Mapping[str, Any]
    real_only: bool = False  # the pool without its synthetic images, by truth


RSMATCH = {"method": "rsmatch"}
METHODS: Mapping[str, Method] = {
    "supervised": Method({"method": "supervised"}),
    "fixmatch": Method({"method": "fixmatch"}),
    "fixmatch-real": Method({"method": "fixmatch"}, real_only=True),  # with as many unlabeled images a step
    "flexmatch": Method({"method": "fixmatch", "rule": "flexmatch"}),
    "freematch": Method({"method": "fixmatch", "rule": "freematch"}),
    "softmatch": Method({"method": "fixmatch", "rule": "softmatch"}),
    "openmatch": Method({"method": "openmatch"}),
    "iomatch": Method({"method": "iomatch"}),
    "rsmatch": Method(RSMATCH),
    "rsmatch-discard": Method(RSMATCH | {"dummy_weight": 0.0}),  # what the detector flags teaches nothing
    "rsmatch-oracle": Method(RSMATCH | {"routing": "oracle"}),
    "rsmatch-oracle-discard": Method(RSMATCH | {"routing": "oracle", "dummy_weight": 0.0}),
    "rsmatch-shared-norms": Method(RSMATCH | {"split_norms": False}),
    "rsmatch-real-labels": Method(RSMATCH | {"dummy_labels": "real"}),  # the real head labels for the dummy head
    "rsmatch-running-targets": Method(RSMATCH | {"synthetic_targets": "running"}),
    "rsmatch-random": Method(RSMATCH | {"routing": "random"}),
    "rsmatch-flexmatch": Method(RSMATCH | {"rule": "flexmatch"}),
    "rsmatch-freematch": Method(RSMATCH | {"rule": "freematch"}),
    "rsmatch-softmatch": Method(RSMATCH | {"rule": "softmatch"}),
    "rsmatch-global-queue": Method(RSMATCH | {"detector_examples": "global-queue"}),
    "rsmatch-nnpu": Method(RSMATCH | {"detector_examples": "nnpu"}),  # told the pool's true share
    "rsmatch-truth": Method(RSMATCH | {"detector_examples": "truth"}),
    "rsmatch-as-is": Method(RSMATCH | {"equalize_spectrum": False}),  # the detector may see how images were scaled
    "rsmatch-random-start": Method(RSMATCH | {"detector_init": "random"}),  # the paper's way
}


class BenchmarkConfig(BaseModel):
    """Sources, matrix and settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    real: Path
    synthetic: Path
    test: Path  # real images
    photographs: Path | None = None  # real and larger: are they called synthetic for how they were scaled?
    out: Path = Path("benchmark")
    methods: tuple[str, ...] = ("supervised", "fixmatch-real", "fixmatch", "rsmatch", "rsmatch-oracle")
    contaminations: tuple[str, ...] = ("balanced",)  # NAME or NAME:SHARE of the synthetic images that are so
    alphas: tuple[NonNegativeFloat, ...] = (0.5,)  # num_synthetic = alpha * num_real
    labels: tuple[PositiveInt, ...] = (250,)  # labeled images in all
    seeds: int = Field(default=3, ge=1)
    classes: tuple[str, ...] | None = None  # of the task; None: all, or what off-class contamination leaves it
    num_real: tuple[PositiveInt, ...] = (20_000,)  # unlabeled real images in all
    num_test: int = Field(default=10_000, ge=1)
    size: int | None = Field(default=None, ge=8)  # pixels; None leaves the files as they are (see datasets.matched)
    jobs: int = Field(default=1, ge=1)  # runs side by side
    start: dict[str, Any] | None = None  # of pipelines.train.TrainConfig: the network that all methods start from
    learning_rates: tuple[PositiveFloat, ...] = (0.03,)
    train: dict[str, Any] = Field(default_factory=dict)  # of pipelines.train.TrainConfig; the rest of it

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in METHODS]:
            raise ValueError(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}")
        return names

    @field_validator("alphas")
    @classmethod
    def _something_to_find(cls, alphas: tuple[float, ...], values: ValidationInfo) -> tuple[float, ...]:
        if 0 in alphas and "rsmatch-nnpu" in values.data.get("methods", ()):
            raise ValueError("of a clean pool nnPU can learn nothing; leave out 0, or the method rsmatch-nnpu")
        return alphas

    @field_validator("start", "train")
    @classmethod
    def _known_settings(cls, values: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            train.TrainConfig(**({"labeled": Path("seed")} | (values or {})))
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return values

    @field_validator("train")
    @classmethod
    def _without_a_rate(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "learning_rate" in values:
            raise ValueError("learning_rate: is part of the matrix here; give it as learning_rates = [...]")
        return values

    @field_validator("contaminations")
    @classmethod
    def _known_contaminations(cls, specs: tuple[str, ...]) -> tuple[str, ...]:
        for spec in specs:
            worlds.Contamination.parse(spec)
        return specs


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


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the matrix came to."""

    num_runs: int
    num_on_record: int  # that were skipped
    seconds: float
    table: tuple[dict[str, Any], ...]
    figures: tuple[str, ...]  # files


def run(config: BenchmarkConfig, on_tick: OnTick = ignore) -> Summary:
    """Run what is missing of the matrix, then write table and figures."""
    with folders.held(config.out):
        return _run(config, on_tick)


def _run(config: BenchmarkConfig, on_tick: OnTick) -> Summary:
    started = time.monotonic()
    jobs = list(dict.fromkeys(matrix(config)))  # what was named twice is run once, and counts as one seed
    results = config.out / "results.jsonl"
    done = [_facts(record) for record in on_record(results, config)]
    missing = [job for job in jobs if job.facts not in done]
    if missing:
        if config.photographs:
            datasets.read(config.photographs)  # a mistake should not come to light after the first training
        sources = worlds.Sources.read(config.real, config.synthetic, config.test, config.size)
        _drop_leftovers(config)
        pending = list(dict.fromkeys(job.world for job in missing))
        for world in pending:
            place = _folder(config, world)
            worlds.build(place, world, sources, num_test=config.num_test, task_classes=config.classes)
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
    records = comparison.at_best_rates(on_record(results, config))
    table = comparison.summarize(records)
    comparison.write_table(config.out, table)
    return Summary(
        num_runs=len(jobs),
        num_on_record=len(jobs) - len(missing),
        seconds=time.monotonic() - started,
        table=tuple(table),
        figures=tuple(str(path) for path in plots.draw(config.out, records, table)),
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
    return {name: record[name] for name in (*comparison.CELL, "seed", "method", "learning_rate")}


def _settings(config: BenchmarkConfig) -> dict[str, Any]:
    """What must be the same for two runs to be compared."""
    named = {name: getattr(config, name).name for name in ("real", "synthetic", "test")}
    values = config.model_dump(mode="json", include={"num_test", "size", "start", "train"})
    return named | {"classes": sorted(set(config.classes)) if config.classes else None} | values


def _train_config(config: BenchmarkConfig, method: str, **changes: Any) -> train.TrainConfig:
    return train.TrainConfig(**{**config.train, **METHODS[method].changes, **changes})


def _revision(config: BenchmarkConfig, method: str) -> str:
    """Of what a method trains by these settings; empty for one that is no more."""
    if method not in METHODS:
        return ""
    return _train_config(config, method, labeled="").recipe(num_classes=2).revision


# Runs.


def _in_order(
    config: BenchmarkConfig, run_one: Callable[[BenchmarkConfig, int, T], R], items: Sequence[T]
) -> Iterator[R]:
    """What `run_one` makes of each item, in their order, up to `config.jobs` side by side."""
    threads = max(1, torch.get_num_threads() // config.jobs)
    for _, result in workers.in_order(partial(run_one, config, threads), items, config.jobs):
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
    places = {"labeled": folder / "seed", "pool": folder / "real", "run": folder / "start"}
    train.run(train.TrainConfig(**((config.start or {}) | places | {"method": "supervised", "seed": world.seed})))


def run_one(config: BenchmarkConfig, threads: int, job: Job) -> dict[str, Any]:
    """Train one method on one world; returns its line of results.jsonl."""
    torch.set_num_threads(threads)
    method, folder = METHODS[job.method], _folder(config, job.world)
    target = _run_folder(config, job)
    told = {"share_real": 1 / (1 + job.world.alpha)} if method.changes.get("detector_examples") == "nnpu" else {}
    settings = _train_config(
        config,
        job.method,
        **told,
        learning_rate=job.learning_rate,
        labeled=folder / "seed",
        pool=folder / ("real" if method.real_only else "pool"),
        validation=folder / "test",
        truth=folder / "truth.parquet",
        run=target,
        start=folder / "start" if config.start is not None else None,
        seed=job.world.seed,
    )
    summary = train.run(settings)
    series = [json.loads(line) for line in (target / "metrics.jsonl").read_text().splitlines()]
    followed = ("accuracy", "detector_auroc", "detector_flagged", "queue_purity", "dummy_share", "confident_share")
    record = job.facts | {"revision": _revision(config, job.method)}
    record |= {name: summary.metrics[name] for name in (*comparison.FIGURES, "dummy_share") if name in summary.metrics}
    if "detector_flagged" in summary.metrics:  # there is a detector; of a clean pool there is no AUROC
        record |= held_out(folder, target)
        if config.photographs:
            record["scaled_photographs"] = scaled_photographs(folder, target, config.photographs, config.size)
        record |= {"share_synthetic": summary.share_synthetic, "share_interval": summary.share_interval}
    record["series"] = [
        {name: line[name] for name in ("step", *followed) if name in line}
        for line in series
        if "accuracy" in line or "detector_auroc" in line
    ]
    if not summary.resumed_at:  # what a run took that was cut short is not known
        speed = settings.num_steps / summary.seconds
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
        "held_out_auroc": round(truth.auroc(logits, synthetic), 6),
        "held_out_auroc_color": round(truth.auroc(logits[color], synthetic[color]), 6),
        "held_out_accuracy": round(truth.mean((logits >= 0) == synthetic), 6),
        "held_out_false_positives": round(truth.mean(logits[~synthetic] >= 0), 6),
        # Real images lost where `curate score --max-false-positive-rate` is asked for this share of them.
        "false_positives_at_limit": {
            f"{rate:g}": round(truth.mean(probs[~synthetic] >= calibration.limit(trained.config.held_out, rate)), 6)
            for rate in LIMITS
            if (len(trained.config.held_out) + 1) * rate >= 1
        },
        "held_out_auroc_by_class": {
            name: round(truth.auroc(logits[label == k], synthetic[label == k]), 6) for k, name in enumerate(names)
        },
    }


@torch.no_grad()
def scaled_photographs(world: Path, run: Path, photographs: Path, size: int | None) -> dict[str, float]:
    """Share of photographs, scaled to the pool's size by each kernel, above the threshold that loses 5 % of real test
    images: what a detector gets wrong that takes the way of scaling for a trace of a generator.
    """
    trained = model.load(run, devices.choose("auto"))
    side, source = size or trained.config.detector_size, datasets.read(photographs)
    photos = [source.images[i] for i in range(min(len(source), NUM_PHOTOGRAPHS))]
    files = sorted((world / "test").glob("*/*"))
    of_test, _ = _detect(trained, [path.read_bytes() for path in files])
    threshold = np.quantile(of_test, 1 - LOST)
    return {
        kernel: round(truth.mean(_detect(trained, [scaled(data, side, kernel) for data in photos])[0] >= threshold), 4)
        for kernel in KERNELS
    }


def scaled(data: bytes, side: int, kernel: str) -> bytes:
    """An image at `side` x `side` pixels by one of KERNELS, as the JPEG that small images often are."""
    with Image.open(io.BytesIO(data)) as opened:
        small = opened.convert("RGB").resize((side, side), getattr(Image.Resampling, kernel.upper()))
    return datasets.encode(small, "jpg")


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
        color.append(truth.is_color(on_device).cpu())
    return torch.cat(logits).numpy(), torch.cat(color).numpy()
