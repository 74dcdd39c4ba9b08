"""Train RSMatch, or a method it is compared with, on a pool and a small labeled set.

in      pool/ (ingested), a labeled set, perhaps a validation set
        what a person marked in the run (run/marks.jsonl): see `pipelines.train.marked`
out     run/model/ (see `pipelines.run.model`), run/classes.txt, run/thresholds.json, run/labels.json,
        run/metrics.jsonl, run/run.json, run/pool.json (`pipelines.run.belonging`)
resume  run/checkpoint/state.safetensors: the same command resumes from it, bit-exactly on a CPU

Under torchrun each rank trains on its part of every batch, to the same result as one process. Rank 0 alone writes.
"""

import copy
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Generator, Tensor

from models import ranks, residual
from models.detector import Detector
from models.methods import Method
from models.panel import Panel
from models.ranks import Rng
from models.rsmatch import RSMatch
from pipelines.compute import devices
from pipelines.errors import BadInput, Incompatible
from pipelines.pool import pixels
from pipelines.pool.features import FeatureReader, FileStore
from pipelines.pool.manifest import Pool, is_pool
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run import belonging, labels, marks, model, quality, verdicts
from pipelines.run.calibration import Evidence
from pipelines.storage import locks
from pipelines.storage.atomic import write_json
from pipelines.train import crossfit, photographs, plan, resume
from pipelines.train.batches import generator
from pipelines.train.config import Summary, TrainConfig
from pipelines.train.data import Batches, Data
from pipelines.train.monitor import Evaluation, MetricsLog, Stopwatch, Watch, means
from pipelines.train.networks import build
from pipelines.train.photographs import Prepared

SAMPLE_IMAGES = 50_000  # of the pool: their residual features bootstrap the detector, and their logits calibrate it
SAMPLE_BATCH = 500
MUCH_WAITING = 0.2  # share of the time from which a note reports a slow loader


def run(config: TrainConfig, on_tick: OnTick = ignore) -> Summary:
    """Train to the end, from the start or from a checkpoint; KeyboardInterrupt after Ctrl-C, with a checkpoint saved.

    Raises Incompatible where another process writes into the run. Of several ranks the first holds the run before it
    joins the others: torchrun ends those that still wait.
    """
    with (
        locks.held(config.run) if devices.is_first() else nullcontext(),
        devices.joined(config.machine.device, config.recipe.batch_size) as device,
    ):
        if devices.is_first():
            _check_folder(config.run)
        training = _prepare(config, device, on_tick)
        return _finish(training, _loop(training, on_tick), on_tick)


def _check_folder(run: Path) -> None:
    """Raise Incompatible where the folder holds something else: a pool, or images."""
    known = any((run / name).exists() for name in ("checkpoint", "metrics.jsonl", "model", marks.FILE))
    holds_folders = any(path.is_dir() and not path.name.startswith(".") for path in run.iterdir())
    if is_pool(run) or (holds_folders and not known):
        raise Incompatible(f"{run}: is not empty and not a run. Name a new folder with --run.")


@dataclass
class _Training:
    """All parts of a training, ready for its first step."""

    config: TrainConfig
    device: torch.device
    data: Data
    batches: Batches
    images: pixels.Images
    method: Method
    detector: Detector | Panel  # untrained or fitted; methods that train no detector save it as it is
    reader: FeatureReader | None  # of features, for a panel
    prepared: Prepared | None  # features and scores of a panel
    state: Path  # of the checkpoint
    identity: dict[str, Any]  # what a resume must agree with
    first: int  # step to resume from
    sums: dict[str, Tensor]  # of the figures since the last log line
    log: MetricsLog | None  # of rank 0
    watch: Watch
    evaluate: Evaluation
    started: float


def _prepare(config: TrainConfig, device: torch.device, on_tick: OnTick) -> _Training:
    started = time.monotonic()
    pool = Pool.open(config.pool)
    planned = plan.make(config, pool, device)
    config, reader, device = planned.config, planned.reader, planned.device
    devices.keep_freed_memory(device)
    if planned.sentence:
        on_tick(Tick(done=0, total=config.recipe.num_steps, unit="steps", info=planned.sentence))
    data = Data.read(config, device, FileStore(pool, reader) if reader and config.network.frozen else None)
    prepared = photographs.prepare(config, data, reader, device, on_tick) if reader is not None else None
    if prepared is not None:
        data = prepared.data
    elif config.known_synthetic or config.scores:
        raise BadInput(
            "--known-synthetic and --scores: only a panel learns from them. Use --detector panel, or give --scores to "
            "`curate score`."
        )
    method, detector = build(config, data, device, prepared.prior if prepared is not None else None)
    state = config.run / "checkpoint" / "state.safetensors"
    if data.training.examples.without:
        note = f"{data.training.examples.without}: training the detector alone, without pseudo-labels."
        on_tick(Tick(done=0, total=config.recipe.num_steps, unit="steps", info=note))
    identity = config.identity | data.identity
    if prepared is not None:
        identity["known"] = prepared.fingerprint
    first, sums = resume.load(state, identity, method, device) if config.resume else (0, dict[str, Tensor]())
    ranks.any_rank(False, device)  # all have read the checkpoint before rank 0 writes the next
    log = MetricsLog(config.run / "metrics.jsonl", keep_until=first) if devices.is_first() else None
    watch = Watch(config.recipe, method.routing_start, data.classes)
    for alarm in prepared.alarms(config) if prepared is not None else ():
        watch.raised[alarm] = None
        on_tick(Tick(done=0, total=config.recipe.num_steps, unit="steps", note=alarm))
    images: pixels.Images
    if prepared is not None and prepared.images is not None:
        images = prepared.images
    else:
        images = data.pixels(config, device, on_tick)
    return _Training(
        config=config,
        device=device,
        data=data,
        batches=Batches(config, data, device),
        images=images,
        method=method,
        detector=detector,
        reader=reader,
        prepared=prepared,
        state=state,
        identity=identity,
        first=first,
        sums=sums,
        log=log,
        watch=watch,
        evaluate=Evaluation(images, data.facts, data.validation, device),
        started=started,
    )


def _loop(training: _Training, on_tick: OnTick) -> float:
    """Train to the last step; returns the share of the time spent waiting for images."""
    config, method, sums, device = training.config, training.method, training.sums, training.device
    num_steps, machine = config.recipe.num_steps, config.machine
    loading, started = Stopwatch(), time.monotonic()
    figures: dict[str, float] = {}

    def fetch_tiles(rows: Tensor) -> Tensor:
        with loading:
            return training.images.tiles(rows)

    with _stop_on_signal() as stopped:
        stream = training.images.stream(training.batches.unlabeled_rows(range(training.first, num_steps)))
        for step in range(training.first, num_steps):
            with loading:
                unlabeled = next(stream)
            rng = Rng(generator(config.seed, step, device))
            if isinstance(method, RSMatch) and step == method.bootstrap_step:
                _bootstrap(training, method, rng.generator)
            if machine.compile == "cuda-graphs":  # what the last step's graphs hold may be overwritten
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            batch = training.batches.batch(step, unlabeled)
            for name, value in method.step(step, batch, fetch_tiles, rng).items():
                sums[name] = sums[name] + value if name in sums else value

            # Once in a while: log.
            done = step + 1
            is_last, is_logged = done == num_steps, done % machine.log_every == 0
            if is_logged or is_last:
                figures = _log(training, done, on_tick)
            on_tick(Tick(done=done, total=num_steps, unit="steps", figures=_shown(figures)))

            # Once in a while: save, and stop if asked to. Ranks must agree before one of them stops; asking at every
            # step would have them wait for each other.
            stops = stopped.is_set()
            if ranks.world_size() > 1:
                stops = is_logged and ranks.any_rank(stops, device)
            if done % machine.checkpoint_every == 0 or is_last or stops:
                ranks.average_(list(sums.values()))
                if training.log is not None:
                    training.log.sync()  # the checkpoint promises the lines before it
                    resume.save(training.state, method, sums, done, training.identity)
            if stops:
                raise KeyboardInterrupt
    return loading.seconds / max(time.monotonic() - started, 1e-9)


def _log(training: _Training, done: int, on_tick: OnTick) -> dict[str, float]:
    """Write a line of metrics, with an evaluation where one is due; BadInput where the training has diverged."""
    config, sums = training.config, training.sums
    is_last = done == config.recipe.num_steps
    ranks.average_(list(sums.values()))
    figures = means(sums, done % config.machine.log_every or config.machine.log_every)
    sums.clear()
    if not all(math.isfinite(figures.get(name, 0)) for name in ("sup_real", "detector_sup")):
        raise BadInput(
            f"{config.run}: training diverged: the loss is NaN at step {done}. Restart with --no-resume and a "
            f"learning_rate below {config.recipe.learning_rate:g} (in --config)."
        )
    for alarm in training.watch.check(done, figures):
        on_tick(Tick(done=done, total=config.recipe.num_steps, unit="steps", note=alarm))
    if training.log is not None:
        if done % config.machine.evaluate_every == 0 or is_last:
            figures |= training.evaluate(training.method)
        training.log.write({"step": done, **figures})
    return figures


def _finish(training: _Training, waiting_share: float, on_tick: OnTick) -> Summary:
    config, data, method = training.config, training.data, training.method
    if waiting_share > MUCH_WAITING:
        slow = (
            f"Training spent {waiting_share:.0%} of its time waiting for images. More CPU cores make it faster, or "
            'memory = "memory" in --config.'
        )
        on_tick(Tick(done=config.recipe.num_steps, total=config.recipe.num_steps, unit="steps", note=slow))
    detecting = method if isinstance(method, RSMatch) and method.has_detector else None
    held_out: tuple[float, ...] = ()
    measured: quality.Quality | None = None
    if training.log is not None and detecting is not None:
        if training.prepared is not None:
            measured, held_out = training.prepared.judged.quality, training.prepared.judged.held_out
        else:
            measured, held_out = _measure(training, detecting)
    # All ranks take part, for each step waits for the others.
    found = crossfit.evidence(config, data, training.batches, method, training.prepared, on_tick)
    of_labels = crossfit.measure(config, data, found) if training.log else None
    metrics = {**training.log.last, **training.evaluate(method, everything=True)} if training.log is not None else {}
    share, interval = detecting.thresholds.estimate if detecting is not None else (None, None)
    summary = Summary(
        num_steps=config.recipe.num_steps,
        num_unlabeled=data.num_unlabeled,
        num_labeled=data.num_labeled,
        labeled_in_pool=data.pool.num_images - data.num_unlabeled,
        marked=data.training.counts,
        classes=data.classes,
        seconds=time.monotonic() - training.started,
        estimated_share=share,
        estimated_interval=interval,
        quality=measured,
        labels=of_labels,
        waiting_share=round(waiting_share, 4),
        resumed_at=training.first,
        metrics=metrics,
        alarms=tuple(training.watch.raised),
    )
    if training.log is not None:
        _save(training, summary, held_out, found)
    ranks.any_rank(False, training.device)  # nobody leaves before the files are there
    return summary


def _save(training: _Training, summary: Summary, held_out: tuple[float, ...], found: Evidence | None) -> None:
    """Write model, thresholds, what is known of the labels, and run.json."""
    config, method = training.config, training.method
    detector = training.detector
    (config.run / quality.FILE).unlink(missing_ok=True)  # of an earlier training
    labels.save(config.run, None)
    if isinstance(method, RSMatch) and isinstance(method.detector.average, Detector):
        # The saved detector's logits are shifted so that its threshold is 0: a probability of 0.5.
        detector = copy.deepcopy(method.detector.average)
        with torch.no_grad():
            detector.head.bias.sub_(method.thresholds.detector)
    saved = model.ModelConfig(
        classes=training.data.classes,
        method=config.recipe.method,
        has_detector=method.has_detector,
        backbone=config.network.backbone,
        embedding="backbone" if training.data.classes or config.network.starts_trained else "layout",
        image_size=config.decoder.image_size,
        detector_size=config.decoder.detector_size,
        num_steps=config.recipe.num_steps,
        estimated_share=summary.estimated_share,
        estimated_interval=summary.estimated_interval,
        held_out=held_out,
        pool=str(config.pool),
        equalize_spectrum=config.recipe.equalize_spectrum,
        residual_planes=config.controls.residual_planes,
        residual_features=config.controls.residual_features,
        frozen=bool(config.network.frozen),
        witnesses=detector.widths if isinstance(detector, Panel) else None,
        precision=training.reader.frozen.precision if training.reader is not None else "fp32",
        num_tiles=config.network.tiles,
        num_views=config.network.views,
        unsure_from=training.prepared.judged.unsure_from if training.prepared is not None else verdicts.SYNTHETIC_FROM,
    )
    frozen = training.reader.frozen if training.reader else None
    classifier, measured = method.classifier.average, summary.quality
    model.save(config.run / "model", saved, classifier, detector, frozen, evidence=found, measured=measured)
    model.list_classes(config.run / "classes.txt", saved.classes)
    labels.save(config.run, summary.labels)
    verdicts.save(config.run, verdicts.choose(held_out, None, saved.unsure_from))
    belonging.give(config.run, Pool.open(config.pool))
    if summary.quality is not None:
        quality.save(config.run, summary.quality)
    device = training.device if frozen is None else next(frozen.parameters()).device
    versions = {"torch": torch.__version__, "device": str(device), "ranks": ranks.world_size()}
    record = {"config": config.model_dump(mode="json"), "versions": versions, "summary": asdict(summary)}
    write_json(config.run / "run.json", record)


@torch.no_grad()
def _bootstrap(training: _Training, method: RSMatch, rng: Generator) -> None:
    """Bootstrap the detector from residual features and pseudo-labels of a sample of the pool."""
    chunks, labeled_tiles = _sample(training), training.batches.shown_tiles
    features, pseudo_labels = [], []
    for views in training.images.stream(chunks):
        features.append(residual.features(views.tiles))
        pseudo_labels.append(method.pseudo_labels(views.images))
    of_labeled = [residual.features(part) for part in torch.split(labeled_tiles, SAMPLE_BATCH)]
    rows = torch.cat(chunks).to(labeled_tiles.device)
    method.bootstrap(rows, torch.cat(features), torch.cat(of_labeled), torch.cat(pseudo_labels), rng)


def _measure(training: _Training, method: RSMatch) -> tuple[quality.Quality, tuple[float, ...]]:
    """Calibrate the detector, and measure it by held-out labeled images, whose sorted probabilities come second."""
    logits = _calibrate(training, method)
    held_out = _held_out_scores(method, training.batches.held_out_tiles)
    # The detector has seen the pool, its real images as real ones, so bounds and AUROC err on the low side.
    probs = (logits - method.thresholds.detector).sigmoid()
    declared = quality.declared_share(training.data.pool, marks.read(training.config.run).current)
    return quality.measure(probs.cpu(), torch.tensor(held_out), declared_share=declared), held_out


@torch.no_grad()
def _calibrate(training: _Training, method: RSMatch) -> Tensor:
    """Set the detector's threshold by a sample of the pool; returns the sample's logits."""
    views = training.images.stream(_sample(training))
    logits = torch.cat([method.detector.average(each.tiles) for each in views])
    if not method.thresholds.share.isnan():
        method.thresholds.calibrate(logits)
    return logits


@torch.no_grad()
def _held_out_scores(method: RSMatch, tiles: Tensor) -> tuple[float, ...]:
    """prob_synthetic of tiles that the detector has never seen, as the saved model gives it; sorted."""
    logits = [method.detector.average(part) for part in torch.split(tiles, SAMPLE_BATCH)]
    scores = (torch.cat(logits) - method.thresholds.detector).sigmoid() if logits else torch.empty(0)
    return tuple(scores.sort().values.tolist())


def _sample(training: _Training) -> tuple[Tensor, ...]:
    """Rows of a sample of the pool, ascending, in chunks."""
    rng = Generator().manual_seed(training.config.seed)
    order = torch.randperm(training.data.num_unlabeled, generator=rng)[:SAMPLE_IMAGES]
    return torch.split(order.sort().values, SAMPLE_BATCH)


def _shown(figures: dict[str, float]) -> dict[str, float | str]:
    names = {
        "sup_real": "loss",
        "accuracy": "accuracy",
        "dummy_share": "dummy",
        "queue_score": "queue",
        "detector_auroc": "AUROC",
    }
    return {shown: figures[name] for name, shown in names.items() if name in figures}


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into a flag that the loop reads between steps, so that no step is half done."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # only the main thread may set handlers
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
