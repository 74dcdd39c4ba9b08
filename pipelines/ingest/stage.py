"""Ingest: bring a crawl into the pool, every image either kept with its original bytes or on record as rejected.

In: folders, tars and parquet files (see `sources`). Out: the pool of `pipelines.pool.manifest`, and `pool/run.json`.

The crawl is a sequence of units, and each that is not yet in the pool becomes the next shard. Workers sift units below
`pool/.partial`, in any order; this process commits them strictly in order, each with its `_stats.json` last. So the
finished shards are always what an uninterrupted run would have made first: killed at any moment, the same command goes
on, and with further sources it adds to the pool. The pool's bytes depend neither on interruptions nor on `jobs` nor on
the `engine`: on a Ray cluster a unit is a task, and the pool lies where all its machines see it. Sifting has a process
of its own on either: an image that crashes its decoder, or takes it `max_seconds`, costs itself alone.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from pipelines.compute import engine
from pipelines.errors import BadInput, CorruptShard, Incompatible
from pipelines.images.check import Limits
from pipelines.images.rejects import Reason
from pipelines.ingest.config import IngestConfig, Summary
from pipelines.ingest.seen import Digests
from pipelines.ingest.sources import Unit, find, has_changed
from pipelines.ingest.worker import Kept, Rejected, Sifted, Task, after_the_end, sift
from pipelines.pool.manifest import INGESTS, KEY_DIGITS, MAX_SHARDS, POOL_SCHEMA, REJECT_SCHEMA, Pool, is_pool
from pipelines.progress import OnTick, Tick, ignore
from pipelines.storage import locations, locks
from pipelines.storage.atomic import make_folder, publish, replacing, write_json
from pipelines.storage.locations import Location
from pipelines.storage.shards import ShardWriter

_UNFINISHED = ".partial"
_SHARD_FILE = re.compile(rf"(\d{{{KEY_DIGITS}}})(?:\.tar|\.parquet)")
_TEMPORARY = re.compile(r"\.(\d+\.parquet|\d+_stats\.json|run\.json)\.tmp")  # what a kill kept from its name

Identity = tuple[str, str, str]


def run(config: IngestConfig, on_tick: OnTick = ignore) -> Summary:
    """Bring all units of the sources that the pool does not hold yet into it; see the module.

    Raises BadInput for sources that cannot be used, Incompatible where `config.pool` is something else than a pool,
    or another process writes to it.
    """
    started = time.monotonic()
    counts, num_bytes = Counter[str](), 0
    with _taken(config.pool) as work:
        pool = Pool(config.pool)
        known = {_identity(pool, shard) for shard in pool.shards}
        first = int(pool.shards[-1]) + 1 if pool.shards else 0
        _remove_unfinished(config.pool, first)
        survey = _survey(config, known)
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
            tasks = (Task(number, unit, {}) for number, unit in enumerate(_new_units(config, known), first))
            jobs = min(config.jobs, max(survey.num_new, 1))
            work_on = partial(_sift, work, config.limits, config.max_seconds)
            workers = engine.choose(config.engine, jobs=jobs, address=config.ray_address)
            retry = partial(after_the_end, work.scratch, config.max_seconds)
            for task, sifted in workers.in_order(work_on, tasks, retry):
                work.check()
                counts += _commit(sifted, task.unit, task.number, config.pool, digests)
                num_bytes += task.unit.num_bytes
                on_tick(_tick(counts, num_bytes, survey.num_bytes))
        summary = _summary(config, survey, counts, time.monotonic() - started)
        _record(config, survey, summary)
    return summary


class _Work(NamedTuple):
    """Where shards wait that are not committed: a local folder and, for a pool on a store, their place on the store."""

    scratch: Path
    staging: UPath | None = None

    def check(self) -> None:
        """Raise Incompatible where a later ingest has cleared this one's place on the store away."""
        if self.staging and not locations.exists(self.staging / INGESTS):
            raise Incompatible(
                f"{self.staging.parent.parent}: another ingest into it has begun, so this one has left off; run one at "
                "a time, the same command goes on from here."
            )


def _sift(work: _Work, limits: Limits, max_seconds: float, task: Task) -> Sifted:
    work.scratch.mkdir(parents=True, exist_ok=True)  # this may be another machine
    sifted = sift(task, work.scratch, limits, max_seconds)
    if has_changed(task.unit):
        raise BadInput(
            f"{task.unit.source}: changed while it was read (is it still being written?); what is in the pool stays, "
            "and the same command goes on from here once the source is complete."
        )
    if work.staging is None:
        return sifted
    assert isinstance(sifted.tar, Path)
    staged = work.staging / sifted.tar.name
    locations.put(sifted.tar, staged)
    sifted.tar.unlink()
    return sifted._replace(tar=staged)


# Before: whose folder this is, what is in it, what there is to do


@contextmanager
def _taken(pool: Location) -> Iterator[_Work]:
    """Take the pool for this process and yield a place for what is not finished."""
    if isinstance(pool, UPath):
        with _staging(pool) as staging, TemporaryDirectory(prefix="curate-") as scratch:
            yield _Work(Path(scratch), staging)
    else:
        with locks.held(pool), _working_folder(pool) as folder:
            yield _Work(folder)


@contextmanager
def _staging(pool: UPath) -> Iterator[UPath]:
    """Yield a place of our own on the store. It knows no locks: who comes later clears this away (`_Work.check`)."""
    found = locations.names(pool)
    if found and _UNFINISHED not in found and not is_pool(pool):
        raise Incompatible(f"{pool}: is not empty and not a pool; name a new place with --pool.")
    locations.remove(pool / _UNFINISHED)
    staging = pool / _UNFINISHED / f"{platform.node()}-{os.getpid()}-{token_hex(4)}"
    write_json(staging / INGESTS, {"host": platform.node(), "process": os.getpid()})
    try:
        yield staging
    finally:
        locations.remove(staging)


@contextmanager
def _working_folder(pool: Path) -> Iterator[Path]:
    """Yield a fresh folder for what is not finished, after making sure that the pool is one or becomes one."""
    unfinished = pool / _UNFINISHED
    if any(pool.iterdir()) and not unfinished.exists() and not is_pool(pool):
        raise Incompatible(f"{pool}: is not empty and not a pool; name a new folder with --pool.")
    shutil.rmtree(unfinished, ignore_errors=True)
    work = unfinished.absolute() / str(os.getpid())
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _identity(pool: Pool, shard: str) -> Identity:
    try:
        source, part, fingerprint = pool.stats(shard)["unit"]
    except (KeyError, ValueError, TypeError):
        raise CorruptShard(
            f"{pool.root}/{shard}_stats.json: does not say what the shard was made from; "
            f"remove the shard's files and ingest its source again."
        ) from None
    return source, part, fingerprint


def _remove_unfinished(pool: Location, first: int) -> None:
    """Remove what a killed run had written of the shard that it was about to finish, under its name or not yet."""
    for folder in (pool, pool / "rejects"):
        for name in locations.names(folder):
            match = _SHARD_FILE.fullmatch(name)
            if (match and int(match[1]) >= first) or _TEMPORARY.fullmatch(name):
                locations.remove(folder / name)


def _remember(pool: Pool, digests: Digests) -> None:
    for rows in pool.tables(["key", "sha256"]):
        digests.add_all(map(bytes.fromhex, rows["sha256"].to_pylist()), rows["key"].to_pylist())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Survey:
    num_new: int
    num_known: int
    num_bytes: int  # of the new units
    digest: str  # of all that the sources hold, by their fingerprints
    notes: tuple[str, ...]


def _survey(config: IngestConfig, known: set[Identity]) -> _Survey:
    """Look once over all sources, so that errors come before the work and the work has a total.

    The units themselves are found a second time while working: a list of all files may be large.
    """
    digest, notes, new = hashlib.sha256(), list[str](), set[Identity]()
    num_known = num_bytes = 0
    for found in find(config.sources, shard_size=config.shard_size, pool=config.pool):
        if isinstance(found, str):
            notes.append(found)
            continue
        digest.update(os.fsencode("\0".join(found.identity) + "\n"))
        if found.identity in known or found.identity in new:
            num_known += 1
        else:
            new.add(found.identity)
            num_bytes += found.num_bytes
    if not new and not num_known:
        raise BadInput(f"{' '.join(config.sources)}: no image, .tar or .parquet file in it. {' '.join(notes)}".strip())
    return _Survey(
        num_new=len(new), num_known=num_known, num_bytes=num_bytes, digest=digest.hexdigest(), notes=tuple(notes)
    )


def _new_units(config: IngestConfig, known: set[Identity]) -> Iterator[Unit]:
    done = set(known)
    for found in find(config.sources, shard_size=config.shard_size, pool=config.pool):
        if isinstance(found, Unit) and found.identity not in done:
            done.add(found.identity)
            yield found


# Commit: one shard after the other


def _commit(sifted: Sifted, unit: Unit, number: int, pool: Location, digests: Digests) -> Counter[str]:
    """Take a shard into the pool, without what earlier shards hold; return counts of kept, rejected and declared."""
    shard = f"{number:0{KEY_DIGITS}d}"
    fresh = [image for image in sifted.kept if digests.add(image.digest, image.key)]
    rejected = list(sifted.rejected)
    tar = sifted.tar
    if len(fresh) < len(sifted.kept):
        is_fresh = {image.row for image in fresh}
        repeated = [image for image in sifted.kept if image.row not in is_fresh]
        rejected += [Rejected(image.row, image.member, Reason.DUPLICATE, "", image.digest) for image in repeated]
        tar, fresh = _without_duplicates(tar, fresh)
    rejected.sort(key=lambda record: record.row)
    assert len(fresh) + len(rejected) == sifted.num_read

    publish(tar, pool / f"{shard}.tar")
    _write_table(pool / f"{shard}.parquet", _manifest(fresh, shard, unit.source))
    if isinstance(pool, Path):  # a store has no folders
        make_folder(pool / "rejects")
    _write_table(pool / "rejects" / f"{shard}.parquet", _rejects(rejected, unit.source, digests))
    reasons = Counter(record.reason.value for record in rejected)
    never_arrived = sum(record.reason.never_arrived for record in rejected)
    write_json(
        pool / f"{shard}_stats.json",
        {
            "count": sifted.num_read,
            "successes": len(fresh),
            "failed_to_download": never_arrived,
            "failed_to_resize": len(rejected) - never_arrived,
            "status_dict": {"success": len(fresh), **dict(sorted(reasons.items()))},
            "unit": unit.identity,
            "sidecars_sha256": hashlib.sha256(b"".join(image.sidecars for image in fresh)).hexdigest(),
        },
    )
    counts = Counter({f"rejected:{reason}": count for reason, count in reasons.items()})
    counts.update(f"declared:{image.declared}" for image in fresh if image.declared)
    counts.update({"shards": 1, "read": sifted.num_read, "kept": len(fresh)})
    return counts


def _without_duplicates(tar: Location, fresh: list[Kept]) -> tuple[Location, list[Kept]]:
    """Copy a shard with the samples in `fresh` alone."""
    path = tar.with_suffix(".fresh.tar")
    moved = []
    with replacing(path) as temporary, locations.opened(tar) as source, ShardWriter(temporary) as target:
        for image in fresh:
            shift = target.position - image.start
            target.copy(source, image.start, image.stop)
            moved.append(
                image._replace(offset=image.offset + shift, start=image.start + shift, stop=image.stop + shift)
            )
    locations.remove(tar)
    return path, moved


def _manifest(images: list[Kept], shard: str, source: str) -> pa.Table:
    rows = [
        {**image._asdict(), "shard": shard, "source": _printable(source), "sha256": image.digest.hex()}
        for image in images
    ]
    return pa.Table.from_pylist(rows, schema=POOL_SCHEMA)


def _rejects(rejected: list[Rejected], source: str, digests: Digests) -> pa.Table:
    rows = [
        {
            "source": _printable(source),
            "member": record.member,
            "reason": record.reason.value,
            "detail": f"duplicate of {digests.key(record.digest)}" if record.digest else record.detail,
        }
        for record in rejected
    ]
    return pa.Table.from_pylist(rows, schema=REJECT_SCHEMA)


def _write_table(path: Location, table: pa.Table) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# After: what was done


def _tick(counts: Counter[str], num_bytes: int, total_bytes: int) -> Tick:
    # Nobody knows the number of images before all are read; the share of the bytes tells it well enough.
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


def _record(config: IngestConfig, survey: _Survey, summary: Summary) -> None:
    """Append this run to `run.json`: the only file of the pool that knows times."""
    path = config.pool / INGESTS
    earlier = json.loads(locations.read(path))["ingests"]
    this = {
        "config": config.model_dump(mode="json"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("pillow", "pyarrow")}},
        "input_digest": survey.digest,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "summary": asdict(summary),
    }
    write_json(path, {"ingests": [*earlier, this]})
