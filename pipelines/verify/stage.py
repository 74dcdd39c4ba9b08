"""Verify: check that all files of a pool, and of a run if there is one, agree with each other. Nothing is written.

In: a pool and a run. Out: a list of problems, each with where it is, what is wrong and how to fix it.

A pool is read as a stranger would read it: every tar from the first to the last byte. Every image and every sidecar is
hashed; manifests, counts and rejects are compared with the tar. Scores must belong to these images and this model,
checkpoint and exported program must be complete, and the index must belong to these scores. If a command is writing
into these folders at the moment, its unfinished files may be reported.
"""

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import CorruptShard, CurateError, MissingArtifact, what_is_wrong
from pipelines.pool.manifest import POOL_SCHEMA, REJECT_SCHEMA, Pool, read_parquet, shard_of
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run import marks, outside, verdicts
from pipelines.run.scores import SCORE_SCHEMA, ScoredPool
from pipelines.storage import locations
from pipelines.storage.locations import Location
from pipelines.storage.shards import END_MARK, digest_of_sidecars, member_span, read_samples
from pipelines.verify.config import Problem, Summary, VerifyConfig

P = ParamSpec("P")

ROUNDING = 1e-3  # of probabilities, which are stored in half precision


def run(config: VerifyConfig, on_tick: OnTick = ignore) -> Summary:
    """Verify a pool and, if there is one, a run. MissingArtifact if there is no pool."""
    pool = Pool(config.pool)
    if not pool.shards:
        raise MissingArtifact(f"{pool.root} has no finished shard: run `curate ingest` first.")
    problems = list(_strays(pool))
    heads: dict[str, npt.NDArray[np.uint64]] = {}  # of the shards without problems
    num_rejects = 0
    for number, shard in enumerate(pool.shards):
        found = list(_caught(pool.tar(shard), _SHARD, _shard, pool, shard))
        problems += found
        if not found:
            heads[shard] = _heads(pool, shard)
            num_rejects += _rejects(pool, shard).num_rows
        on_tick(Tick(done=number + 1, total=len(pool.shards), unit="shards"))
    problems += _twice(pool, heads)
    num_scored, of_run = _scored(ScoredPool(pool, config.run))
    problems += of_run
    return Summary(
        num_shards=len(pool.shards),
        num_images=sum(map(len, heads.values())),
        num_rejects=num_rejects,
        num_scored=num_scored,
        problems=tuple(problems),
    )


# The pool

_SHARD = "remove the shard's .tar, .parquet, _stats.json and rejects, and run the `curate ingest` that made it again"
_SCORES = "remove that file, and run `curate score` again"
_TRAIN = "run the same `curate train` again"
_INDEX = "remove it; the next `curate inspect` builds a new one"
_LEFT = "is the unfinished work of a command that was killed or is still running"


def _caught(
    where: Location, fix: str, check: Callable[P, Iterator[Problem]], *args: P.args, **kwargs: P.kwargs
) -> Iterator[Problem]:
    """Yield the problems that a check finds; if it fails, its error is the last one."""
    try:
        yield from check(*args, **kwargs)
    except CurateError as error:
        yield Problem(where=str(where), what=what_is_wrong(error).removeprefix(str(where)).lstrip(": "), fix=fix)
    except (OSError, ValueError, KeyError, pa.ArrowException, zipfile.BadZipFile) as error:
        yield Problem(where=str(where), what=f"cannot be read ({type(error).__name__}: {error})", fix=fix)


def _strays(pool: Pool) -> Iterator[Problem]:
    """Find files of shards without a done file, and unfinished files of a killed command."""
    known = set(pool.shards)
    inside, rejects = (
        [folder / name for name in locations.names(folder)] for folder in (pool.root, pool.root / "rejects")
    )
    for path in [*inside, *rejects]:
        if path.name == ".partial" or (path.name.startswith(".") and path.name.endswith(".tmp")):
            yield Problem(where=str(path), what=_LEFT, fix="run the last `curate ingest` again, or remove it")
    shards = [path for path in inside if path.suffix in (".tar", ".parquet")]
    for path in [*shards, *(path for path in rejects if path.suffix == ".parquet")]:
        if path.stem not in known:
            what = "belongs to no finished shard: its _stats.json is missing"
            yield Problem(where=str(path), what=what, fix="run the last `curate ingest` again: it finishes the shard")


def _rejects(pool: Pool, shard: str) -> pa.Table:
    return read_parquet(pool.root / "rejects" / f"{shard}.parquet")


def _shard(pool: Pool, shard: str) -> Iterator[Problem]:
    """Compare tar, manifest, rejects and counts of a shard."""

    def problem(path: Location, what: str) -> Problem:
        return Problem(where=str(path), what=what, fix=_SHARD)

    manifest, tar = pool.root / f"{shard}.parquet", pool.tar(shard)
    rows, rejects, stats = pool.rows(shard), _rejects(pool, shard), pool.stats(shard)
    if not rows.schema.equals(POOL_SCHEMA):
        yield problem(manifest, "does not have the columns of a manifest")
        return
    if not rejects.schema.equals(REJECT_SCHEMA):
        yield problem(pool.root / "rejects" / manifest.name, "does not have the columns of a list of rejects")
    if stats.get("successes") != rows.num_rows:
        yield problem(manifest, f"lists {rows.num_rows} images, but _stats.json counts {stats.get('successes')}")
    if stats.get("count") != rows.num_rows + rejects.num_rows:
        read = rows.num_rows + rejects.num_rows
        yield problem(manifest, f"has {read} images with the rejects, but _stats.json counts {stats.get('count')}")
    position = 0
    seen, sidecars = set[str](), hashlib.sha256()
    listed = iter(rows.to_pylist())
    for key, sample in read_samples(tar):
        if key in seen:
            yield problem(tar, f"holds the sample {key} twice: readers would split it")
            return
        seen.add(key)
        row = next(listed, None)
        if row is None or row["key"] != key:
            yield problem(tar, f"holds the sample {key} where the manifest lists {row['key'] if row else 'none'}")
            return
        image = sample.get(row["format"], b"")
        if hashlib.sha256(image).hexdigest() != row["sha256"] or len(image) != row["num_bytes"]:
            yield problem(tar, f"the bytes of image {key} are not those in the manifest")
        elif row["offset"] != (offset := member_span(position, len(image)).offset):
            yield problem(manifest, f"says that {key} is at byte {row['offset']}, but it is at {offset}")
        if row["shard"] != shard or shard_of(key) != shard:
            yield problem(manifest, f"lists {key} under the shard {row['shard']}")
        sidecars.update(digest_of_sidecars((name, text) for name, text in sample.items() if name != row["format"]))
        for data in sample.values():
            position = member_span(position, len(data)).stop
    if (recorded := stats.get("sidecars_sha256")) != sidecars.hexdigest():
        what = "its captions and metadata are not the crawled ones" if recorded else "has no digest of its captions"
        yield problem(tar, what)
    if (missing := next(listed, None)) is not None:
        yield problem(tar, f"ends before the sample {missing['key']}")
    if (size := locations.size(tar)) != (whole := position + len(END_MARK)):
        yield problem(tar, f"has {size} bytes, but its samples and end mark take {whole}")


def _digests(pool: Pool, shard: str) -> list[str]:
    found: list[str] = pool.rows(shard, ["sha256"])["sha256"].to_pylist()
    return found


def _heads(pool: Pool, shard: str) -> npt.NDArray[np.uint64]:
    """First 64 bits of the SHA-256 of each image (N,)."""
    return np.array([int(digest[:16], 16) for digest in _digests(pool, shard)], dtype=np.uint64)


def _twice(pool: Pool, heads: dict[str, npt.NDArray[np.uint64]]) -> Iterator[Problem]:
    """Find images that the pool holds twice, in 8 bytes an image: digests are compared if their first 64 bits agree."""
    known = np.sort(np.concatenate([np.empty(0, dtype=np.uint64), *heads.values()]))
    suspects = {f"{head:016x}" for head in known[1:][known[1:] == known[:-1]].tolist()}
    counts = Counter(d for shard in heads if suspects for d in _digests(pool, shard) if d[:16] in suspects)
    for digest in sorted(digest for digest, count in counts.items() if count > 1):
        what = f"holds the image with the SHA-256 {digest} more than once"
        yield Problem(where=str(pool.root), what=what, fix="ingest the same sources into a new pool")


# The run


def _scored(scored: ScoredPool) -> tuple[int, list[Problem]]:
    """Number of shards with scores, and the problems of a run, if there is one."""
    if not scored.run.is_dir():
        return 0, []
    try:
        return len(scored.shards), list(_run(scored))
    except CorruptShard as error:  # the pool's first manifest, or the run's pool.json
        what = f"which scores are of this pool cannot be known, because {what_is_wrong(error)}"
        return 0, [Problem(where=str(scored.run), what=what, fix="fix that first")]


def _run(scored: ScoredPool) -> Iterator[Problem]:
    """Compare model, checkpoint, scores, embeddings, index and marks with the pool and with each other."""
    run = scored.run
    for path in sorted([*run.rglob(".*.tmp"), *run.rglob(".tmp*")]):
        yield Problem(where=str(path), what=_LEFT, fix="run the command that made it again, or remove it")
    trained: list[str] = []
    if scored.shards or (run / "model").is_dir():
        yield from _caught(run / "model", _TRAIN, _model, run, trained)
    state = run / "checkpoint" / "state.safetensors"
    if state.exists():
        yield from _caught(state, "remove it, and " + _TRAIN, _checkpoint, state)
    for shard in scored.shards:
        file = scored.folder / "scores" / f"{shard}.parquet"
        yield from _caught(file, _SCORES, _scores, scored, shard, file, trained)
    files = [(scored.folder / "scores").glob("[!.]*.parquet"), (scored.folder / "embeddings").glob("[!.]*.npy")]
    for path in sorted(path for found in files for path in found):
        if path.stem not in scored.pool.shards:
            yield Problem(where=str(path), what="belongs to a shard that is not in the pool", fix="remove it")
    if (scored.folder / "index" / "index.json").exists():
        yield from _caught(scored.folder / "index", _INDEX, _index, scored)
    yield from _caught(marks.path(run), "fix or remove that line", _marks, run)
    for folder in dict.fromkeys((run, scored.folder)):
        yield from _caught(folder / outside.FILE, "remove it and give --scores again", _outside, folder)


def _outside(run: Path) -> Iterator[Problem]:
    outside.load(run)
    yield from ()


def _marks(run: Path) -> Iterator[Problem]:
    if marks.read(run).cut:
        yield Problem(where=str(marks.path(run)), what="its last line is truncated", fix="the next mark fixes it")


def _index(scored: ScoredPool) -> Iterator[Problem]:
    from pipelines.run import neighbors  # heavy

    if (what := neighbors.contradiction(scored)) is not None:
        yield Problem(where=str(scored.folder / "index"), what=what, fix=_INDEX)


def _model(run: Path, trained: list[str]) -> Iterator[Problem]:
    """Load the model and append its digest to `trained`. The exported programs must be complete archives."""
    import torch  # heavy

    from pipelines.run import model

    loaded = model.load(run, torch.device("cpu"))
    trained.append(loaded.digest)
    for path in (run / "model" / name for name in loaded.config.programs):
        with zipfile.ZipFile(path) as archive:
            if archive.infolist()[0].header_offset:  # the end of an inner archive was taken for its own
                yield Problem(where=str(path), what="is truncated", fix=_TRAIN)
            elif (member := archive.testzip()) is not None:
                yield Problem(where=str(path), what=f"its part {member} is damaged", fix=_TRAIN)


def _checkpoint(path: Path) -> Iterator[Problem]:
    """Load a checkpoint."""
    import torch  # heavy

    from pipelines.run import checkpoint

    checkpoint.load(path, torch.device("cpu"))
    yield from ()


def _scores(scored: ScoredPool, shard: str, file: Path, trained: list[str]) -> Iterator[Problem]:
    def problem(what: str, path: Path = file) -> Problem:
        return Problem(where=str(path), what=what, fix=_SCORES)

    rows = scored.rows(shard, ["key"])  # Incompatible if they belong to other images
    if trained and scored.scored_by(shard) != trained[0]:
        yield problem("has scores of another model than the run's")
    table = read_parquet(file)
    if not table.schema.equals(SCORE_SCHEMA):
        yield problem("does not have the columns of scores")
        return
    yield from map(problem, _labels(scored, table))
    if table["prob_synthetic"].null_count < max(1, table.num_rows):
        yield from map(problem, _verdicts(scored, table))
    embeddings = scored.embeddings(shard)  # CorruptShard if their number differs
    if embeddings.shape[0] != rows.num_rows or not np.isfinite(embeddings).all():
        yield problem("has values that are not finite numbers", scored.folder / "embeddings" / f"{shard}.npy")


def _labels(scored: ScoredPool, table: pa.Table) -> Iterator[str]:
    """What is wrong with the pseudo-labels: all are there, or none without classes."""
    missing = {name: table[name].null_count for name in ("pseudo_label", "confidence", "probs", "raw_confidence")}
    try:
        has_classes = bool(scored.classes)
    except CurateError:  # reported for the model
        has_classes = missing["pseudo_label"] < table.num_rows
    if not has_classes:
        if any(count < table.num_rows for count in missing.values()):
            yield "has pseudo-labels, but the model has no classes"
        return
    if any(missing.values()):
        yield "has images without pseudo-labels"
        return
    probs = np.stack(table["probs"].to_numpy()).astype(np.float64) if table.num_rows else np.ones((0, 1))
    confidence = table["confidence"].to_numpy()
    if not np.isfinite(probs).all() or (np.abs(probs.sum(1) - 1) > ROUNDING * probs.shape[1]).any():
        yield "has probabilities that do not sum to 1"
    elif (np.abs(probs.max(1, initial=0) - confidence) > ROUNDING).any():
        yield "has a confidence that is not its highest probability"


def _verdicts(scored: ScoredPool, table: pa.Table) -> Iterator[str]:
    prob = table["prob_synthetic"].to_numpy()
    if not ((prob >= 0) & (prob <= 1)).all():
        yield "has a prob_synthetic outside 0 to 1"
        return
    kept: dict[str, Any] = json.loads((table.schema.metadata or {}).get(b"thresholds", b"null"))
    thresholds = verdicts.load(scored.folder)
    if kept is None:
        return
    if kept != asdict(thresholds):
        yield "was scored with other thresholds than those in thresholds.json"
    by_threshold = prob >= thresholds.synthetic_from
    if (table["synthetic"].to_numpy() != by_threshold).any() or (
        table["verdict"].to_numpy() != thresholds.verdicts(prob)
    ).any():
        yield "calls images synthetic below the threshold, or real above it"
