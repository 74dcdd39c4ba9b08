"""Train RSMatch, or one of its baselines, on a pool and a small labeled set.

in      pool/ (ingested), a labeled set, perhaps a validation set
        what a person marked in the run (run/marks.jsonl): see pipelines.train.marked
out     run/model/ (see pipelines.run.model), run/metrics.jsonl, run/run.json
resume  run/checkpoint/state.safetensors: run again with the same configuration it goes on, on a CPU to the same numbers

Under torchrun each rank trains on its part of every batch, to what one process with all of it would come to; rank 0
alone writes.
"""

import copy
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import residual
from models.networks import Classifier, Detector
from models.ranks import Ranks, Rng
from models.rsmatch import SYNTHETIC_FROM, Batch, Recipe, RSMatch
from pipelines.compute import devices
from pipelines.errors import BadInput, Incompatible
from pipelines.pool import labeled, pixels, truth
from pipelines.pool.manifest import Pool, is_pool
from pipelines.pool.rows import Rows
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run import checkpoint, marks, model
from pipelines.storage import locks
from pipelines.storage.atomic import write_json
from pipelines.train import batches, marked
from pipelines.train.config import Summary, TrainConfig
from pipelines.train.monitor import Evaluation, MetricsLog, Watch, means

SAMPLE_IMAGES = 50_000  # of the pool, whose statistics start the detector and whose scores calibrate it
SAMPLE_BATCH = 500
MAX_HELD_OUT = 2_000  # labeled images kept from the detector: more would sharpen its calibration no further
MUCH_WAITING = 0.2  # share of the time from which the log says that the loader is too slow


def run(config: TrainConfig, on_tick: OnTick = ignore) -> Summary:
    """Train to the end, or on from a checkpoint; KeyboardInterrupt after Ctrl-C, with a checkpoint saved.

    Raises Incompatible where another process writes into the run. Of several ranks the first holds it, before it joins
    the others: torchrun ends those that still wait.
    """
    with (
        locks.held(config.run) if devices.is_first() else nullcontext(),
        devices.joined(config.device, config.batch_size) as (ranks, device),
    ):
        if ranks.rank == 0:
            _check_folder(config.run)
        devices.keep_freed_memory(device)
        return _train(config, ranks, device, on_tick)


def _check_folder(run: Path) -> None:
    """Raise Incompatible where the folder is somebody else's: a pool, or one of images."""
    known = any((run / name).exists() for name in ("checkpoint", "metrics.jsonl", "model", marks.FILE))
    holds_folders = any(path.is_dir() and not path.name.startswith(".") for path in run.iterdir())
    if is_pool(run) or (holds_folders and not known):
        raise Incompatible(f"{run}: is not empty and not a run; name a new folder with --run.")


def _train(config: TrainConfig, ranks: Ranks, device: torch.device, on_tick: OnTick) -> Summary:
    started = time.monotonic()
    pool = Pool.open(config.pool)
    examples = labeled.read(config.labeled, config.decoder)
    validation = labeled.read(config.validation, config.decoder, examples.classes) if config.validation else None
    known = truth.read(config.truth) if config.truth else None
    training = marked.join(pool, examples, config.run, config.decoder)
    examples, rows = training.examples, training.rows
    recipe = config.recipe(len(examples.classes))
    if len(rows) < 2:  # one has no spread
        raise BadInput(
            f"{config.pool}: {len(rows)} of its images are not in the labeled set; training needs 2 or more, so ingest "
            "others."
        )
    if recipe.detector_examples == "nnpu" and recipe.share_real is None:
        raise BadInput('detector_examples = "nnpu": has to be told which share of the pool is real; set share_real.')
    facts = known.of(rows.members()) if known else None
    if facts:
        truth.check(facts[0], pool)
    oracle = _oracle(config, recipe, facts[0] if facts else None, device)

    learner = _build(config, recipe, examples.classes, len(rows), device, ranks)
    if training.trusted:
        learner.trusted = training.trusted.to(device)
    state_file = config.run / "checkpoint" / "state.safetensors"
    identity = config.identity | {"images": [len(rows), len(examples.labels)], "marks": training.digest}
    start, sums = _resume(state_file, identity, learner, device) if config.resume else (0, {})
    ranks.any(False, device)  # all have read the checkpoint before rank 0 writes the next
    writes = ranks.rank == 0
    log = MetricsLog(config.run / "metrics.jsonl", keep_until=start) if writes else None

    images = _pixels(config, rows, device, on_tick)
    views = examples.views.map(lambda pixels: pixels.to(device))
    labels = examples.labels.to(device)
    # What was marked is no sample of the real images: it neither calibrates the detector nor tells the pool's share.
    held_out, shown = _held_out(len(labels) - training.num_labeled_by_marks, config, device)
    shown_or_marked = torch.cat((shown, torch.arange(len(held_out) + len(shown), len(labels), device=device)))
    labeled_order = batches.Order(len(labels), config.batch_size, seed=config.seed)
    detector_order = batches.Order(len(shown_or_marked), config.batch_size, seed=config.seed + 2)
    unlabeled_order = batches.Order(len(rows), config.batch_size * config.unlabeled_ratio, seed=config.seed + 1)
    unseen: tuple[float, ...] = ()
    watch = Watch(recipe, examples.classes)
    evaluate = Evaluation(images, facts, validation, device)
    figures: dict[str, float] = {}

    def save(step: int) -> None:
        ranks.average_(list(sums.values()))
        if log is not None:
            log.sync()  # the checkpoint promises the lines before it
            checkpoint.save(state_file, _pack(learner, sums), {"step": step, "config": identity})

    loading = _Stopwatch()

    def own(order: batches.Order, step: int) -> Tensor:
        # Without waiting, which would keep the host from running ahead of a GPU.
        return ranks.own(order.batch(step)).to(device, non_blocking=True)

    def fetch_tiles(picked: Tensor) -> Tensor:
        with loading:
            return images.tiles(picked)

    loop_started = time.monotonic()
    with _stop_on_signal() as stopped:
        stream = images.stream(ranks.own(unlabeled_order.batch(step)) for step in range(start, config.num_steps))
        for step in range(start, config.num_steps):
            with loading:
                unlabeled = next(stream)
            rng = Rng(batches.generator(config.seed, step, device), ranks)
            if step == recipe.detector_start and recipe.needs_bootstrap:
                _bootstrap(learner, images, views.tiles[shown], rng.generator, config.seed)
            rows_now, picked = own(unlabeled_order, step), own(labeled_order, step)
            batch = Batch(
                labeled=views.images[picked],
                labeled_tiles=views.tiles[shown_or_marked[own(detector_order, step)]],
                labels=labels[picked],
                unlabeled=unlabeled.images,
                unlabeled_tiles=unlabeled.tiles,
                rows=rows_now,
                synthetic=None if oracle is None else oracle[rows_now],
            )
            for name, value in learner.step(step, batch, fetch_tiles, rng).items():
                sums[name] = sums[name] + value if name in sums else value
            done = step + 1
            is_last, is_logged = done == config.num_steps, done % config.log_every == 0

            if is_logged or is_last:
                ranks.average_(list(sums.values()))
                figures = means(sums, done % config.log_every or config.log_every)
                if not all(math.isfinite(figures.get(name, 0)) for name in ("sup_real", "detector_sup")):
                    raise BadInput(
                        f"{config.run}: training diverged by step {done}, its loss is no number any more; start over "
                        f"with --no-resume and a learning_rate below {config.learning_rate:g} in --config."
                    )
                for alarm in watch.check(done, figures):
                    on_tick(Tick(done=done, total=config.num_steps, unit="steps", note=alarm))
                sums.clear()
                if writes and (done % config.evaluate_every == 0 or is_last):
                    figures |= evaluate(learner)
                if log is not None:
                    log.write({"step": done, **figures})
            on_tick(Tick(done=done, total=config.num_steps, unit="steps", figures=_shown(figures)))
            # Ranks must agree before one of them stops; asking at every step would have them wait for each other.
            stops = stopped.is_set() if ranks.world == 1 else is_logged and ranks.any(stopped.is_set(), device)
            if done % config.checkpoint_every == 0 or is_last or stops:
                save(done)
            if stops:
                raise KeyboardInterrupt

    waiting_share = loading.seconds / max(time.monotonic() - loop_started, 1e-9)
    if waiting_share > MUCH_WAITING:
        slow = (
            f"Training waited for images {waiting_share:.0%} of its time: more CPU cores would make it faster, "
            'or memory = "memory" in --config.'
        )
        on_tick(Tick(done=config.num_steps, total=config.num_steps, unit="steps", note=slow))
    if writes and recipe.has_detector:
        _calibrate(learner, images, config.seed)
        unseen = _unseen_scores(learner, views.tiles[held_out])
    final = {**log.last, **evaluate(learner, everything=True)} if log is not None else {}
    summary = Summary(
        num_steps=config.num_steps,
        num_unlabeled=len(rows),
        num_labeled=len(labels),
        labeled_in_pool=pool.num_images - len(rows),
        marked=training.counts,
        classes=examples.classes,
        seconds=time.monotonic() - started,
        share_synthetic=learner.cut.estimate[0],
        share_interval=learner.cut.estimate[1],
        waiting_share=round(waiting_share, 4),
        resumed_at=start,
        metrics=final,
        alarms=tuple(watch.raised),
    )
    if writes:
        _save_model(config, learner, examples.classes, unseen)
        versions = {"torch": torch.__version__, "device": str(device), "ranks": ranks.world}
        write_json(
            config.run / "run.json",
            {"config": config.model_dump(mode="json"), "versions": versions, "summary": asdict(summary)},
        )
    ranks.any(False, device)  # nobody leaves before the files are there
    return summary


def _oracle(
    config: TrainConfig, recipe: Recipe, synthetic: npt.NDArray[np.int64] | None, device: torch.device
) -> Tensor | None:
    """Truth (N,) bool of the pool's rows, for a recipe that is allowed to know it."""
    if not recipe.needs_truth:
        return None
    if synthetic is None or (synthetic == truth.UNKNOWN).any():
        raise BadInput(
            f"{config.truth or '--truth'}: an oracle (routing or detector_examples) needs a truth file that says of "
            "every image of the pool whether it is synthetic."
        )
    return torch.from_numpy(synthetic == 1).to(device)


class _Stopwatch:
    """Adds up the seconds spent within it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._started


def _build(
    config: TrainConfig, recipe: Recipe, classes: tuple[str, ...], num_images: int, device: torch.device, ranks: Ranks
) -> RSMatch:
    torch.manual_seed(config.seed)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    try:
        classifier = Classifier(config.backbone, len(classes))
    except ValueError as error:
        raise BadInput(f"--backbone {config.backbone}: {error}; use wrn-28-2, small or timm:NAME.") from None
    if config.start and (config.weights or config.pretrained):
        raise BadInput("--start: gives the backbone its weights; leave out --weights and --pretrained.")
    if config.start:
        model.start_from(classifier, config.backbone, classes, config.start)
    elif config.weights or config.pretrained:
        model.start_backbone(classifier, config.backbone, config.weights)
    detector = Detector(equalize=config.equalize_spectrum)
    for network in (classifier, detector):
        network.to(device).to(memory_format=torch.channels_last)
    autocast = devices.autocast(config.precision, device)
    learner = RSMatch(recipe, classifier, detector, autocast, num_images=num_images, ranks=ranks)
    if config.compile != "off":
        learner.compile(cuda_graphs=config.compile == "cuda-graphs")
    return learner


def _pixels(config: TrainConfig, rows: Rows, device: torch.device, on_tick: OnTick) -> pixels.Images:
    threads = max(2, torch.get_num_threads())
    if config.memory == "memory" or (config.memory == "auto" and pixels.fits(len(rows), config.decoder, device)):
        return pixels.load(rows, config.decoder, device, threads, on_tick)
    return pixels.Streamed(rows, config.decoder, device, threads)


@torch.no_grad()
def _bootstrap(learner: RSMatch, images: pixels.Images, labeled_tiles: Tensor, rng: torch.Generator, seed: int) -> None:
    """Start the detector from residual statistics of a sample of the pool and the classifier's pseudo-labels."""
    chunks = _sample(len(images), seed)
    statistics, pseudo_labels = [], []
    for views in images.stream(chunks):
        statistics.append(residual.statistics(views.tiles))
        pseudo_labels.append(learner.classifier_ema(views.images).real.argmax(1))
    rows = torch.cat(chunks).to(labeled_tiles.device)
    of_labeled = torch.cat([residual.statistics(part) for part in labeled_tiles.split(SAMPLE_BATCH)])  # type: ignore[no-untyped-call]
    learner.bootstrap(rows, torch.cat(statistics), of_labeled, torch.cat(pseudo_labels), rng)


@torch.no_grad()
def _calibrate(learner: RSMatch, images: pixels.Images, seed: int) -> None:
    """Set the cut so that exactly the estimated share of (a sample of) the pool lies above it."""
    if not learner.cut.share.isnan():
        chunks = _sample(len(images), seed)
        logits = torch.cat([learner.detector_ema(views.tiles) for views in images.stream(chunks)]).sort().values
        above = round(learner.cut.share.item() * len(logits))
        # Between two neighbors; above all where nothing is synthetic, below all where everything is.
        bounds = torch.cat((logits[:1] - 2, logits, logits[-1:] + 2))
        learner.cut.logit.copy_(bounds[len(logits) - above : len(logits) - above + 2].mean())


def _held_out(num_labeled: int, config: TrainConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Labeled rows that the detector never sees, and those that it may; of very few all are shown."""
    order = torch.randperm(num_labeled, generator=torch.Generator().manual_seed(config.seed)).to(device)
    count = min(int(config.held_out * num_labeled), max(0, num_labeled - 2), MAX_HELD_OUT)
    return order[:count], order[count:]


@torch.no_grad()
def _unseen_scores(learner: RSMatch, tiles: Tensor) -> tuple[float, ...]:
    """prob_synthetic of tiles that the detector has never seen, as the saved model gives it; sorted."""
    logits = [learner.detector_ema(part) for part in tiles.split(SAMPLE_BATCH)]  # type: ignore[no-untyped-call]
    scores = (torch.cat(logits) - learner.cut.logit).sigmoid() if logits else torch.empty(0)
    return tuple(scores.sort().values.tolist())


def _sample(num_images: int, seed: int) -> tuple[Tensor, ...]:
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))[:SAMPLE_IMAGES]
    return torch.split(order.sort().values, SAMPLE_BATCH)


def _pack(learner: RSMatch, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = {"confident_real": learner.confident_real, **{f"sums/{name}": value for name, value in sums.items()}}
    for name, part in _parts(learner).items():
        tensors |= checkpoint.pack(name, part)
    return tensors


def _parts(learner: RSMatch) -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
    return {
        **({"open": learner.open} if learner.open is not None else {}),
        "classifier": learner.classifier,
        "classifier_ema": learner.classifier_ema,
        "classifier_optimizer": learner.classifier_optimizer,
        "detector": learner.detector,
        "detector_ema": learner.detector_ema,
        "detector_optimizer": learner.detector_optimizer,
        "queue": learner.queue,
        "cut": learner.cut,
        "statistics": learner.statistics,
        "rule_real": learner.rules[0],
        "rule_dummy": learner.rules[1],
    }


def _resume(
    path: Path, identity: dict[str, Any], learner: RSMatch, device: torch.device
) -> tuple[int, dict[str, Tensor]]:
    """Load a checkpoint into `learner` if there is one; returns the step to go on from and the running sums."""
    if not path.exists():
        return 0, {}
    tensors, state = checkpoint.load(path, device)
    if differing := sorted(key for key, value in identity.items() if state["config"].get(key) != value):
        raise Incompatible(
            f"{path}: was trained with other {', '.join(differing)}; repeat that configuration to go on, "
            f"choose another --run, or start over with --no-resume."
        )
    try:
        for name, part in _parts(learner).items():
            checkpoint.unpack(name, tensors, part)
    except RuntimeError as error:  # torch's answer where names or shapes are not its own
        raise Incompatible(
            f"{path}: was written by another version of curate; choose another --run, or start over with --no-resume."
        ) from error
    learner.confident_real = tensors["confident_real"]
    sums = {key.removeprefix("sums/"): value for key, value in tensors.items() if key.startswith("sums/")}
    return int(state["step"]), sums


def _shown(figures: dict[str, float]) -> dict[str, float | str]:
    names = {
        "sup_real": "loss",
        "accuracy": "accuracy",
        "dummy_share": "dummy",
        "queue_score": "queue",
        "detector_auroc": "AUROC",
    }
    return {shown: figures[name] for name, shown in names.items() if name in figures}


def _save_model(config: TrainConfig, learner: RSMatch, classes: tuple[str, ...], unseen: tuple[float, ...]) -> None:
    # The saved detector's logits begin at the cut: a probability of 0.5 parts real from synthetic for everybody.
    detector = copy.deepcopy(learner.detector_ema)
    with torch.no_grad():
        detector.head.bias.sub_(learner.cut.logit)
    share, interval = learner.cut.estimate
    saved = model.ModelConfig(
        classes=classes,
        method=config.method,
        routing=config.routing,
        backbone=config.backbone,
        image_size=config.decoder.image_size,
        detector_size=config.decoder.detector_size,
        num_steps=config.num_steps,
        threshold=SYNTHETIC_FROM,
        share_synthetic=share,
        share_interval=interval,
        held_out=unseen,
        pool=str(config.pool),
        equalize_spectrum=config.equalize_spectrum,
    )
    model.save(config.run / "model", saved, learner.classifier_ema, detector)


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
