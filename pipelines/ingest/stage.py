"""Ingest brings a crawl into the pool: every image is kept with its original bytes, or on record as rejected.

In: folders, tars and parquet files (see `sources`). Out: the pool of `pipelines.pool.manifest`, and `pool/run.json`.

The crawl is a sequence of units, and each unit that is not in the pool yet becomes the next shard. Workers sift units
into `pool/.partial`, in any order; this process commits them strictly in order, each with its `_stats.json` last. So
the finished shards are always the first shards of an uninterrupted run. After a kill at any moment, the same command
resumes; with further sources, it adds to the pool. The bytes of the pool depend neither on interruptions, nor on
`jobs`, nor on the `engine`: on a Ray cluster a unit is a task, and the pool must be visible to all machines. On either
engine, units are sifted in processes of their own, so that an image that crashes its decoder, or takes it longer than
`max_seconds`, costs only itself.
"""

import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.compute import engine
from pipelines.errors import BadInput
from pipelines.ingest import known
from pipelines.ingest.commit import Committer, recorded
from pipelines.ingest.config import IngestConfig, Summary
from pipelines.ingest.known import Identity, Known
from pipelines.ingest.listing import shown
from pipelines.ingest.seen import Digests
from pipelines.ingest.sources import Find, Skipped, Unit, find, has_changed
from pipelines.ingest.worker import Sifted, Task, after_death, sift
from pipelines.ingest.workspace import Workspace, remove_unfinished, reserved
from pipelines.pool.manifest import INGESTS, MAX_SHARDS, Pool
from pipelines.progress import OnTick, Tick, ignore
from pipelines.storage import locations
from pipelines.storage.atomic import write_json
from pipelines.storage.locations import Location

_JUDGED_BY = ("min_side", "max_pixels", "max_bytes", "max_seconds", "image_column", "caption_column")


def run(config: IngestConfig, on_tick: OnTick = ignore) -> Summary:
    """Bring all units of the sources that the pool does not hold yet into it; see the module.

    Raises BadInput for sources that cannot be used, Incompatible if `config.pool` is something else than a pool, or if
    another process is writing to it.
    """
    started = time.monotonic()
    counts, num_bytes = Counter[str](), 0
    with reserved(config.pool) as work:
        pool = Pool(config.pool)
        units, files = known.read(pool)
        before = Known([*units, *_repeated(config.pool)], files)
        first = int(pool.shards[-1]) + 1 if pool.shards else 0
        remove_unfinished(config.pool, first)
        survey = _survey(config, before)
        if first + survey.num_new > MAX_SHARDS:
            raise BadInput(
                f"{config.pool}: has room for {MAX_SHARDS - first} more shards, and these sources make "
                f"{survey.num_new}; use a larger --shard-size or a second pool."
            )
        if not locations.exists(config.pool / INGESTS):
            write_json(config.pool / INGESTS, {"ingests": []})
        with Digests(work.scratch / "digests.sqlite") as digests:
            if survey.num_new:
                _remember(pool, digests)
            tasks = (Task(number, unit, {}) for number, unit in enumerate(_new_units(config, before), first))
            jobs = min(config.jobs, max(survey.num_new, 1))
            work_on = partial(_sift, work, config)
            committer = Committer(config.pool, digests)
            workers = engine.choose(config.engine, jobs=jobs, address=config.ray_address)
            retry = partial(after_death, work.scratch, config.max_seconds)
            for task, sifted in workers.in_order(work_on, tasks, retry):
                work.check()
                counts += committer.commit(sifted, task.unit, task.number)
                num_bytes += task.unit.num_bytes
                on_tick(_tick(counts, num_bytes, survey.num_bytes))
        summary = _summary(config, survey, counts, time.monotonic() - started)
        _record(config, survey, summary, [recorded(unit) for unit in committer.repeated])
    return summary


def _sift(work: Workspace, config: IngestConfig, task: Task) -> Sifted:
    work.scratch.mkdir(parents=True, exist_ok=True)  # this may be another machine
    sifted = sift(task, work.scratch, config.limits, config.max_seconds, config.caption_column)
    if has_changed(task.unit):
        raise BadInput(
            f"{shown(task.unit.source)}: changed while it was read (is it still being written?). The pool keeps "
            "what it has; once the source is complete, run the same command again to resume."
        )
    assert isinstance(sifted.tar, Path)
    return sifted._replace(tar=work.hand_over(sifted.tar))


# Before: what is in the pool, and what is new


def _repeated(pool: Location) -> list[Identity]:
    """Units that earlier ingests read after their last shard, and in which nothing was new."""
    return [unit for ingest in _ingests(pool) for unit in ingest.get("repeated", ())]


def _ingests(pool: Location) -> list[dict[str, Any]]:
    if not locations.exists(pool / INGESTS):
        return []
    ingests = json.loads(locations.read(pool / INGESTS))["ingests"]
    assert isinstance(ingests, list)
    return ingests


def _remember(pool: Pool, digests: Digests) -> None:
    for rows in pool.tables(["key", "sha256"]):
        digests.add_all(map(bytes.fromhex, rows["sha256"].to_pylist()), rows["key"].to_pylist())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Survey:
    num_new: int  # units
    num_known: int
    num_bytes: int  # of the new units
    digest: str  # of all units of the sources, by their fingerprints
    notes: tuple[str, ...]


def _survey(config: IngestConfig, known: Known) -> _Survey:
    """Look once at all sources, so that errors are raised before the work starts, and the total is known.

    The units themselves are found a second time during the work, because a list of all files may be large.
    """
    digest, notes, new = hashlib.sha256(), list[str](), Known(())
    num_new = num_known = num_bytes = 0
    for found in _find(config, known):
        if isinstance(found, str):
            notes.append(found)
        elif isinstance(found, Skipped):
            num_known += found.num_units
        elif known.has(found.identity) or new.has(found.identity):
            num_known += 1
        else:
            new.add(found.identity)
            num_new += 1
            num_bytes += found.num_bytes
        if isinstance(found, Unit):
            digest.update(os.fsencode("\0".join(found.identity) + "\n"))
    if not num_new and not num_known:
        raise BadInput(f"{' '.join(config.sources)}: no image, .tar or .parquet file in it. {' '.join(notes)}".strip())
    if num_known:
        notes += _other_options(config)
    return _Survey(
        num_new=num_new, num_known=num_known, num_bytes=num_bytes, digest=digest.hexdigest(), notes=tuple(notes)
    )


def _find(config: IngestConfig, known: Known) -> Iterator[Find]:
    return find(
        config.sources,
        shard_size=config.shard_size,
        pool=config.pool,
        image_column=config.image_column,
        known=known,
    )


def _other_options(config: IngestConfig) -> Iterator[str]:
    """Say which options would now judge or read differently what was ingested before."""
    now = config.model_dump(mode="json")
    earlier = [ingest for ingest in _ingests(config.pool) if ingest.get("summary", {}).get("shards")]
    for ingest in earlier[-1:]:
        before = ingest.get("config", {})
        changed = [name for name in _JUDGED_BY if before.get(name, now[name]) != now[name]]
        if changed:
            said = ", ".join(f"{name} {before[name]}, not {now[name]}" for name in changed)
            yield (
                f"{config.pool}: what it holds of these sources was ingested with {said}, and stays as it is. To apply "
                "the new options to all images, ingest into a new pool with --pool."
            )


def _new_units(config: IngestConfig, known: Known) -> Iterator[Unit]:
    new = Known(())
    for found in _find(config, known):
        if isinstance(found, Unit) and not known.has(found.identity) and not new.has(found.identity):
            new.add(found.identity)
            yield found


# After: what was done


def _tick(counts: Counter[str], num_bytes: int, total_bytes: int) -> Tick:
    # The number of images is unknown until all are read; the share of bytes read gives a good estimate.
    total = round(counts["read"] * total_bytes / num_bytes) if num_bytes else None
    return Tick(
        done=counts["read"],
        total=total,
        unit="images",
        figures={"kept": counts["kept"], "rejected": counts["read"] - counts["kept"], "shards": counts["shards"]},
    )


def _summary(config: IngestConfig, survey: _Survey, counts: Counter[str], seconds: float) -> Summary:
    def by(kind: str) -> dict[str, int]:
        return {name.removeprefix(kind): count for name, count in sorted(counts.items()) if name.startswith(kind)}

    summary = Summary(
        pool=str(config.pool),
        shards=counts["shards"],
        skipped=survey.num_known,
        again=counts["again"],
        read=counts["read"],
        kept=counts["kept"],
        rejected=by("rejected:"),
        declared=by("declared:"),
        images=Pool(config.pool).num_images,
        notes=survey.notes,
        seconds=round(seconds, 3),
    )
    assert summary.kept + sum(summary.rejected.values()) == summary.read
    return summary


def _record(config: IngestConfig, survey: _Survey, summary: Summary, repeated: list[Identity]) -> None:
    """Append this run to `run.json`, the only file of the pool with times."""
    path = config.pool / INGESTS
    this = {
        "config": config.model_dump(mode="json"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("pillow", "pyarrow")}},
        "input_digest": survey.digest,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "summary": asdict(summary),
        "repeated": repeated,
    }
    write_json(path, {"ingests": [*_ingests(config.pool), this]})
