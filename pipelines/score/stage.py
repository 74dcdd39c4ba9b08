"""Score every image of a pool with a trained model.

in      pool/, run/model/
out     run/scores/00000.parquet (SCORE_SCHEMA) and run/embeddings/00000.npy, a pair for each shard of the pool;
        run/domains.parquet, the synthetic share by domain (`pipelines.run.domains`);
        run/labels.json, how often the labels are right (`pipelines.run.labels`);
        run/outside.parquet if scores from outside are given (`pipelines.run.outside`);
        the same in run/pools/ID/ of a pool that is not the one that was trained on (`pipelines.run.belonging`)
again   shards that this model has scored are skipped; after a new training, or where a shard of the pool has changed,
        they are scored again

A score depends on the image and the model alone, not on its position in a batch or a pool. So a shard can be scored
anywhere: as a task of a Ray cluster (`engine`), or by one of N independent calls (`shard_index` of `num_shards`, as in
a Slurm array), each of which takes every N-th shard. A final call without an index summarizes, and scores what a lost
call has left.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from pipelines.compute import devices, engine
from pipelines.compute.processes import usable_cores
from pipelines.errors import Incompatible
from pipelines.pool import truth
from pipelines.pool.manifest import Pool, read_parquet
from pipelines.pool.rows import Rows
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run import belonging, domains, evaluation, labels, model, outside, quality, verdicts
from pipelines.run.scorer import Scorer, Scores, choose_precision
from pipelines.run.scores import FIRST_PRECISION, PRECISION, SCORE_SCHEMA
from pipelines.score.config import ScoreConfig, Summary
from pipelines.storage import locks
from pipelines.storage.atomic import make_folder, replacing, save_array, write_json

SAMPLE = 50_000  # images by which the labels of a pool are judged


def run(config: ScoreConfig, on_tick: OnTick = ignore) -> Summary:
    """Score all shards that this model has not scored yet, or this call's share of them.

    Raises MissingArtifact without a pool or a model, Incompatible where another process writes into the run.
    """
    # Calls that share a pool also share the run; each has its own shards.
    with locks.held(config.run) if config.num_shards == 1 else locks.refusals(config.run):
        return _run(config, on_tick)


def _run(config: ScoreConfig, on_tick: OnTick) -> Summary:
    started = time.monotonic()
    here = config.engine == "local"
    pool = Pool.open(config.pool if here else config.pool.absolute())
    mine = range(config.shard_index, len(pool.shards), config.num_shards)
    known = truth.read(config.truth) if config.truth else None
    if known:
        known.check(pool)
    from_outside = outside.read(pool, config.scores)
    device = devices.choose(config.device if here else "cpu")
    trained = model.load(config.run, device)
    thresholds = verdicts.choose(trained.config.held_out, config.max_false_positive_rate, trained.config.unsure_from)
    folder = belonging.claim(config.run, pool)
    if from_outside.values:
        outside.store(config.run, from_outside, trained=False, folder=folder)
    for name in ("scores", "embeddings"):
        make_folder(folder / name)
    if config.shard_index == 0:  # for all calls that share the pool: their thresholds are equal
        verdicts.save(folder, thresholds)
    precision = choose_precision((folder, config.run), trained, config.precision, device)
    scorer = Scorer(trained, device, thresholds, precision)
    scored = {number for number in mine if _is_scored(folder, pool, pool.shards[number], scorer)}
    for number in mine:
        path = folder / "scores" / f"{pool.shards[number]}.parquet"
        if number in scored:
            _update_verdicts(path, thresholds)
        else:
            path.unlink(missing_ok=True)  # scores of two models never mix
    total, done = sum(pool.counts[number] for number in mine), sum(pool.counts[number] for number in scored)

    def on_images(count: int) -> None:
        nonlocal done
        done += count
        on_tick(Tick(done=done, total=total, unit="images"))

    if known is not None and known.note:
        on_tick(Tick(done=done, total=total, unit="images", note=known.note))
    missing = [number for number in mine if number not in scored]
    if here:
        _score_shards(scorer, pool, folder, config.batch_size, missing, on_images)
    else:
        _score_on_ray(scorer, pool, config, missing, on_images)
    return _summarize(config, folder, pool, mine, len(scored), scorer, known, started)


def _score_shards(
    scorer: Scorer,
    pool: Pool,
    folder: Path,
    batch_size: int,
    numbers: Sequence[int],
    on_images: Callable[[int], None],
) -> None:
    """Score shards of a pool into its folder of a run; calls `on_images` with the size of every batch."""
    for number, parts in scorer.score_shards(pool, numbers, batch_size, on_images):
        keys = Rows.of_shard(pool, number).key.tolist()
        _write(folder, pool, pool.shards[number], keys, parts, scorer)


def _score_on_ray(
    scorer: Scorer, pool: Pool, config: ScoreConfig, numbers: Sequence[int], on_images: Callable[[int], None]
) -> None:
    """Score shards of a pool as tasks of a Ray cluster."""
    changes = {"run": config.run.absolute(), "precision": scorer.precision}
    score = partial(_score_elsewhere, config.model_copy(update=changes), pool, scorer.thresholds, scorer.model.digest)
    has_gpu = devices.choose(config.device).type == "cuda" if config.device == "auto" else config.device == "cuda"
    ray = engine.choose(config.engine, jobs=usable_cores(), address=config.ray_address, gpus=int(has_gpu))
    for number, _ in ray.in_order(score, numbers):
        on_images(pool.counts[number])


def _score_elsewhere(
    config: ScoreConfig, pool: Pool, thresholds: verdicts.Thresholds, digest: str, number: int
) -> None:
    """Score one shard in a process that may be on another machine."""
    scorer, folder = _scorer(config, thresholds, digest), belonging.folder(config.run, pool)
    _score_shards(scorer, pool, folder, config.batch_size, [number], lambda count: None)


@lru_cache(maxsize=1)  # a worker scores many shards
def _scorer(config: ScoreConfig, thresholds: verdicts.Thresholds, digest: str) -> Scorer:
    chosen = devices.choose(config.device)
    trained = model.load(config.run, chosen)
    if trained.digest != digest:
        raise Incompatible(
            f"{config.run}/model differs between Ray's machines. Put the run on a file system that all of them share."
        )
    return Scorer(trained, chosen, thresholds, devices.precision_of(config.precision, chosen))


def _is_scored(folder: Path, pool: Pool, shard: str, scorer: Scorer) -> bool:
    path = folder / "scores" / f"{shard}.parquet"
    if not path.exists():
        return False
    schema = pq.read_schema(path)
    if not schema.remove_metadata().equals(SCORE_SCHEMA):  # scores of another version of curate
        return False
    origin = schema.metadata or {}
    return (
        origin.get(b"model") == scorer.model.digest.encode()
        and origin.get(b"shard") == pool.digest(shard).encode()
        and origin.get(PRECISION, FIRST_PRECISION) == scorer.precision.encode()
    )


def _write(folder: Path, pool: Pool, shard: str, keys: list[str], parts: list[Scores], scorer: Scorer) -> None:
    """Write a shard's embeddings, then its scores, whose presence says that the shard is done."""
    trained = scorer.model
    embeddings = _joined([part.embeddings for part in parts], (0, trained.embedding_width))
    with replacing(folder / "embeddings" / f"{shard}.npy") as temporary:
        save_array(temporary, embeddings.astype(np.float16))
    has = trained.config.has_detector
    columns: dict[str, Any] = {
        "key": keys,
        "prob_synthetic": _joined([part.prob_synthetic for part in parts]) if has else pa.nulls(len(keys)),
        "synthetic": _joined([part.synthetic for part in parts]) if has else pa.nulls(len(keys)),
        "verdict": _joined([part.verdict for part in parts]) if has else pa.nulls(len(keys)),
        **_labels(parts, len(keys), len(trained.config.classes)),
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in SCORE_SCHEMA]
    origin = {
        "model": trained.digest,
        "shard": pool.digest(shard),
        PRECISION.decode(): scorer.precision,
        "thresholds": _as_text(scorer.thresholds),
    }
    with replacing(folder / "scores" / f"{shard}.parquet") as temporary:
        pq.write_table(pa.table(arrays, schema=SCORE_SCHEMA.with_metadata(origin)), temporary)


def _labels(parts: list[Scores], num_images: int, num_classes: int) -> dict[str, Any]:
    """Columns of the classifier, all null without classes."""
    if not num_classes:
        names = ("pseudo_label", "confidence", "probs", "raw_confidence", "typicality")
        return {name: pa.nulls(num_images, SCORE_SCHEMA.field(name).type) for name in names}
    probs = _joined([part.probs for part in parts], (0, num_classes)).astype(np.float16)
    typicality = [part.typicality for part in parts]
    offsets = pa.array(np.arange(len(probs) + 1, dtype=np.int32) * num_classes)
    return {
        "pseudo_label": [name for part in parts for name in part.pseudo_label or ()],
        "confidence": _joined([part.confidence for part in parts]),
        "probs": pa.ListArray.from_arrays(offsets, pa.array(probs.ravel())),
        "raw_confidence": _joined([part.raw_confidence for part in parts]),
        "typicality": pa.nulls(num_images) if any(each is None for each in typicality) else _joined(typicality),
    }


def _as_text(thresholds: verdicts.Thresholds) -> str:
    return json.dumps(asdict(thresholds))


def _update_verdicts(path: Path, thresholds: verdicts.Thresholds) -> None:
    """Replace the verdicts of a scored shard by those of other thresholds; the model's probabilities stay."""
    origin = pq.read_schema(path).metadata
    if origin.get(b"thresholds") == _as_text(thresholds).encode():
        return
    table = read_parquet(path)
    if table["prob_synthetic"].null_count < max(1, len(table)):
        probs = table["prob_synthetic"].to_numpy()
        for name, values in (
            ("synthetic", probs >= thresholds.synthetic_from),
            ("verdict", thresholds.verdicts(probs)),
        ):
            field = SCORE_SCHEMA.field(name)
            table = table.set_column(SCORE_SCHEMA.get_field_index(name), field, pa.array(values).cast(field.type))
    with replacing(path) as temporary:
        origin = {**origin, b"thresholds": _as_text(thresholds).encode()}
        pq.write_table(table.replace_schema_metadata(origin), temporary)


def _joined(parts: Sequence[npt.NDArray[Any] | None], empty: tuple[int, ...] = (0,)) -> npt.NDArray[Any]:
    arrays = [part for part in parts if part is not None]
    return np.concatenate(arrays) if arrays else np.empty(empty, dtype=np.float32)


def _summarize(
    config: ScoreConfig,
    folder: Path,
    pool: Pool,
    mine: Sequence[int],
    before: int,
    scorer: Scorer,
    known: truth.Truth | None,
    started: float,
) -> Summary:
    trained, thresholds = scorer.model, scorer.thresholds
    num_images = sum(pool.counts[number] for number in mine)
    confidence = 0.0
    called = dict.fromkeys(verdicts.VERDICTS, 0)
    pseudo_labels = dict.fromkeys(trained.config.classes, 0)
    check = evaluation.NO_DECLARATIONS
    for number in mine:
        path = folder / "scores" / f"{pool.shards[number]}.parquet"
        table = read_parquet(path, ["synthetic", "verdict", "pseudo_label", "confidence"])
        for count in table["verdict"].value_counts().to_pylist():
            if count["values"] is not None:
                called[count["values"]] += count["counts"]
        if pseudo_labels:
            confidence += float(table["confidence"].to_numpy().sum())
            for count in table["pseudo_label"].value_counts().to_pylist():
                pseudo_labels[count["values"]] += count["counts"]
        check += evaluation.DeclaredCheck.of(
            pool.rows(pool.shards[number], ["declared"])["declared"], table["synthetic"]
        )
    has_detector = trained.config.has_detector
    summary = Summary(
        folder=str(folder),
        num_images=num_images,
        num_shards=len(mine),
        num_scored_before=before,
        seconds=time.monotonic() - started,
        precision=scorer.precision,
        called_share=called["synthetic"] / max(num_images, 1) if has_detector else None,
        verdicts=called if has_detector else None,
        thresholds=thresholds if has_detector else None,
        estimated_share=trained.config.estimated_share,
        quality=quality.load(folder) if has_detector else None,
        labels=_labels_of_pool(config, folder, pool, trained),
        domains=_domains(folder, pool, trained) if has_detector and config.num_shards == 1 else None,
        mean_confidence=confidence / max(num_images, 1) if pseudo_labels else None,
        pseudo_labels=pseudo_labels,
        truth=evaluation.evaluate(pool, folder, known, trained.config.classes) if known and has_detector else None,
        declared=check if check and has_detector else None,
        outside=_with_value(pool, outside.of_pool(config.run, folder), mine),
    )
    if config.num_shards == 1:
        write_json(folder / "scores.json", {"config": config.model_dump(mode="json"), "summary": asdict(summary)})
    return summary


def _labels_of_pool(config: ScoreConfig, folder: Path, pool: Pool, trained: model.Model) -> labels.Labels | None:
    """Measure the labels of the pool by a sample of the images that are called real, and write labels.json."""
    if trained.evidence is None or config.num_shards > 1:
        return None
    names = ["verdict", "probs", "raw_confidence", "typicality"]
    every = max(1, pool.num_images // SAMPLE)
    parts = []
    for shard in pool.shards:
        part = read_parquet(folder / "scores" / f"{shard}.parquet", names)
        part = part.filter(pc.fill_null(pc.equal(part["verdict"], "real"), True))
        parts.append(part.take(np.arange(0, part.num_rows, every)))
    sample = pa.concat_tables(parts)
    probs = np.stack(sample["probs"].to_numpy()) if sample.num_rows else np.ones((0, len(trained.config.classes)))
    of_pool = labels.OfPool(
        torch.from_numpy(probs.astype(np.float64)),
        torch.from_numpy(sample["raw_confidence"].to_numpy().astype(np.float64)),
        torch.from_numpy(sample["typicality"].to_numpy().astype(np.float64)),
    )
    before = labels.load(folder) or labels.load(config.run)
    found = labels.measure(trained.evidence, trained.config.classes, of_pool, before.suspects if before else ())
    labels.save(folder, found)
    return found


def _with_value(pool: Pool, others: outside.Outside, mine: Sequence[int]) -> dict[str, int]:
    """Images that have a value, by name of the run's scores from outside."""
    counts = dict.fromkeys(others.names, 0)
    for number in mine if counts else ():
        for name, values in others.of(pool.rows(pool.shards[number], ["sha256"])["sha256"]).items():
            counts[name] += int(np.isfinite(values).sum())
    return counts


def _domains(folder: Path, pool: Pool, trained: model.Model) -> list[dict[str, Any]]:
    """Bound the synthetic share of each large domain, and write domains.parquet."""
    tally = domains.Tally()
    for shard in pool.shards:
        probs = read_parquet(folder / "scores" / f"{shard}.parquet", ["prob_synthetic"])["prob_synthetic"].to_numpy()
        tally.add(domains.of_shard(pool, shard), probs, pool.rows(shard, ["declared"])["declared"].to_pylist())
    table = tally.table(torch.tensor(trained.config.held_out), quality.load(folder))
    domains.save(folder, table)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
