"""Verify: does everything on the disk agree with everything else?

in      a pool and, where there is one, a run; nothing is written
out     a list of problems: where, what is wrong, and what mends it

A pool is read as a stranger would read it: every tar from its first to its last byte, every image and every sidecar
hashed, every manifest, count and reject compared with what the tar holds. Scores must be of these images and of this
model, checkpoint and exported program be whole, and an index be of these scores. Of folders that a command is writing
into at the moment, it may find what that has not finished.
"""

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import CurateError, MissingArtifact
from pipelines.pool.manifest import POOL_SCHEMA, REJECT_SCHEMA, Pool, read_parquet, shard_of
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run import marks, verdicts
from pipelines.run.scores import SCORE_SCHEMA, ScoredPool
from pipelines.storage import locations
from pipelines.storage.locations import Location
from pipelines.storage.shards import END_MARK, digest_of_sidecars, member_span, read_samples
from pipelines.verify.config import Problem, Summary, VerifyConfig

P = ParamSpec("P")

ROUNDING = 1e-3  # of probabilities, which are kept in half precision


def run(config: VerifyConfig, on_tick: OnTick = ignore) -> Summary:
    """Verify a pool and, if there is one, the run beside it. MissingArtifact where there is no pool."""
    pool = Pool(config.pool)
    if not pool.shards:
        raise MissingArtifact(f"{pool.root}: holds no finished shard; run `curate ingest` first.")
    problems = list(_strays(pool))
    heads: dict[str, npt.NDArray[np.uint64]] = {}  # of the sound shards
    num_rejects = 0
    for number, shard in enumerate(pool.shards):
        found = list(_caught(pool.tar(shard), _SHARD, _shard, pool, shard))
        problems += found
        if not found:
            heads[shard] = _heads(pool, shard)
            num_rejects += _rejects(pool, shard).num_rows
        on_tick(Tick(done=number + 1, total=len(pool.shards), unit="shards"))
    problems += _twice(pool, heads)
    scored = ScoredPool(pool, config.run)
    if config.run.is_dir():
        problems += _run(scored)
    return Summary(
        num_shards=len(pool.shards),
        num_images=sum(map(len, heads.values())),
        num_rejects=num_rejects,
        num_scored=len(scored.shards),
        problems=tuple(problems),
    )


# The pool

_SHARD = "remove the shard's .tar, .parquet, _stats.json and rejects, and run the `curate ingest` that made it again"
_SCORES = "remove that file, and run `curate score` again"
_TRAIN = "run the same `curate train` again"
_INDEX = "remove it; the next `curate inspect` makes it anew"
_LEFT = "is the unfinished work of a command that was killed, or of one that runs now"


def _caught(
    where: Location, mend: str, check: Callable[P, Iterator[Problem]], *args: P.args, **kwargs: P.kwargs
) -> Iterator[Problem]:
    """What a check finds, and where it cannot go on, why."""
    try:
        yield from check(*args, **kwargs)
    except CurateError as error:
        yield Problem(where=str(where), what=str(error).removeprefix(f"{where}: ").split(";")[0].rstrip("."), mend=mend)
    except (OSError, ValueError, KeyError, pa.ArrowException, zipfile.BadZipFile) as error:
        yield Problem(where=str(where), what=f"cannot be read ({type(error).__name__}: {error})", mend=mend)


def _strays(pool: Pool) -> Iterator[Problem]:
    """Files of shards that were never finished, or lost the mark of it, and what a killed command left."""
    known = set(pool.shards)
    inside, rejects = (
        [folder / name for name in locations.names(folder)] for folder in (pool.root, pool.root / "rejects")
    )
    for path in [*inside, *rejects]:
        if path.name == ".partial" or (path.name.startswith(".") and path.name.endswith(".tmp")):
            yield Problem(where=str(path), what=_LEFT, mend="run the last `curate ingest` again, or remove it")
    shards = [path for path in inside if path.suffix in (".tar", ".parquet")]
    for path in [*shards, *(path for path in rejects if path.suffix == ".parquet")]:
        if path.stem not in known:
            what = "belongs to no finished shard: its _stats.json is not there"
            yield Problem(where=str(path), what=what, mend="run the last `curate ingest` again: it finishes the shard")


def _rejects(pool: Pool, shard: str) -> pa.Table:
    return read_parquet(pool.root / "rejects" / f"{shard}.parquet")


def _shard(pool: Pool, shard: str) -> Iterator[Problem]:
    """Compare tar, manifest, rejects and counts of a shard."""

    def problem(path: Location, what: str) -> Problem:
        return Problem(where=str(path), what=what, mend=_SHARD)

    manifest, tar = pool.root / f"{shard}.parquet", pool.tar(shard)
    rows, rejects, stats = pool.rows(shard), _rejects(pool, shard), pool.stats(shard)
    if not rows.schema.equals(POOL_SCHEMA):
        yield problem(manifest, "has other columns than a manifest")
        return
    if not rejects.schema.equals(REJECT_SCHEMA):
        yield problem(pool.root / "rejects" / manifest.name, "has other columns than a list of rejects")
    if stats.get("successes") != rows.num_rows:
        yield problem(manifest, f"lists {rows.num_rows} images, and _stats.json counts {stats.get('successes')}")
    if stats.get("count") != rows.num_rows + rejects.num_rows:
        read = rows.num_rows + rejects.num_rows
        yield problem(manifest, f"kept and rejected are {read}, and _stats.json counts {stats.get('count')} read")
    position = 0
    seen, sidecars = set[str](), hashlib.sha256()
    listed = iter(rows.to_pylist())
    for key, sample in read_samples(tar):
        if key in seen:
            yield problem(tar, f"holds the sample {key} in two places: readers would split it")
            return
        seen.add(key)
        row = next(listed, None)
        if row is None or row["key"] != key:
            yield problem(tar, f"holds the sample {key} where the manifest has {row['key'] if row else 'no more'}")
            return
        image = sample.get(row["format"], b"")
        if hashlib.sha256(image).hexdigest() != row["sha256"] or len(image) != row["num_bytes"]:
            yield problem(tar, f"the image {key} has other bytes than the manifest says")
        elif row["offset"] != (offset := member_span(position, len(image)).offset):
            yield problem(manifest, f"says that {key} lies at byte {row['offset']}, and it lies at {offset}")
        if row["shard"] != shard or shard_of(key) != shard:
            yield problem(manifest, f"lists {key} of the shard {row['shard']}")
        sidecars.update(digest_of_sidecars((name, text) for name, text in sample.items() if name != row["format"]))
        for data in sample.values():
            position = member_span(position, len(data)).stop
    if (recorded := stats.get("sidecars_sha256")) != sidecars.hexdigest():
        what = "holds other text beside its images than was crawled" if recorded else "has no digest of its captions"
        yield problem(tar, what)
    if (missing := next(listed, None)) is not None:
        yield problem(tar, f"ends before the sample {missing['key']}")
    if (size := locations.size(tar)) != (whole := position + len(END_MARK)):
        yield problem(tar, f"has {size} bytes, and its samples and end mark take {whole}")


def _digests(pool: Pool, shard: str) -> list[str]:
    found: list[str] = pool.rows(shard, ["sha256"])["sha256"].to_pylist()
    return found


def _heads(pool: Pool, shard: str) -> npt.NDArray[np.uint64]:
    """The first 64 bits of the digest of each image."""
    return np.array([int(digest[:16], 16) for digest in _digests(pool, shard)], dtype=np.uint64)


def _twice(pool: Pool, heads: dict[str, npt.NDArray[np.uint64]]) -> Iterator[Problem]:
    """An image that is in some shards twice; where first bits agree, digests are compared: 8 bytes an image."""
    known = np.sort(np.concatenate([np.empty(0, dtype=np.uint64), *heads.values()]))
    suspects = {f"{head:016x}" for head in known[1:][known[1:] == known[:-1]].tolist()}
    counts = Counter(d for shard in heads if suspects for d in _digests(pool, shard) if d[:16] in suspects)
    for digest in sorted(digest for digest, count in counts.items() if count > 1):
        what = f"holds the image with the SHA-256 {digest} more than once"
        yield Problem(where=str(pool.root), what=what, mend="make a new pool of the same sources")


# The run


def _run(scored: ScoredPool) -> Iterator[Problem]:
    """Compare model, checkpoint, scores, embeddings, index and marks with the pool and with each other."""
    run = scored.run
    for path in sorted([*run.rglob(".*.tmp"), *run.rglob(".tmp*")]):
        yield Problem(where=str(path), what=_LEFT, mend="run the command that made it again, or remove it")
    trained: list[str] = []
    if scored.shards or (run / "model").is_dir():
        yield from _caught(run / "model", _TRAIN, _model, run, trained)
    state = run / "checkpoint" / "state.safetensors"
    if state.exists():
        yield from _caught(state, "remove it, and " + _TRAIN, _checkpoint, state)
    for shard in scored.shards:
        file = run / "scores" / f"{shard}.parquet"
        yield from _caught(file, _SCORES, _scores, scored, shard, file, trained)
    for path in sorted([*(run / "scores").glob("[!.]*.parquet"), *(run / "embeddings").glob("[!.]*.npy")]):
        if path.stem not in scored.pool.shards:
            yield Problem(where=str(path), what="is of a shard that the pool has not", mend="remove it")
    if (run / "index" / "index.json").exists():
        yield from _caught(run / "index", _INDEX, _index, scored)
    yield from _caught(marks.path(run), "mend or remove that line", _marks, run)


def _marks(run: Path) -> Iterator[Problem]:
    if marks.read(run).cut:
        yield Problem(where=str(marks.path(run)), what="its last line was cut short", mend="the next mark mends it")


def _index(scored: ScoredPool) -> Iterator[Problem]:
    from pipelines.run import neighbors  # heavy

    if (what := neighbors.contradiction(scored)) is not None:
        yield Problem(where=str(scored.run / "index"), what=what, mend=_INDEX)


def _model(run: Path, trained: list[str]) -> Iterator[Problem]:
    """Load the model and note its digest; an exported program must be a whole archive."""
    import torch  # heavy

    from pipelines.run import model

    trained.append(model.load(run, torch.device("cpu")).digest)
    path = run / "model" / "classifier.pt2"
    with zipfile.ZipFile(path) as archive:
        if archive.infolist()[0].header_offset:  # the end of an archive within it was taken for its own
            yield Problem(where=str(path), what="is cut", mend=_TRAIN)
        elif (member := archive.testzip()) is not None:
            yield Problem(where=str(path), what=f"its part {member} is not what was written", mend=_TRAIN)


def _checkpoint(path: Path) -> Iterator[Problem]:
    """Load a checkpoint."""
    import torch  # heavy

    from pipelines.run import checkpoint

    checkpoint.load(path, torch.device("cpu"))
    yield from ()


def _scores(scored: ScoredPool, shard: str, file: Path, trained: list[str]) -> Iterator[Problem]:
    def problem(what: str, path: Path = file) -> Problem:
        return Problem(where=str(path), what=what, mend=_SCORES)

    rows = scored.rows(shard, ["key"])  # Incompatible where they are of other images
    if trained and scored.scored_by(shard) != trained[0]:
        yield problem("holds the scores of another model than the run's")
    table = read_parquet(file)
    if not table.schema.equals(SCORE_SCHEMA):
        yield problem("has other columns than scores")
        return
    probs = np.stack(table["probs"].to_numpy()).astype(np.float64) if table.num_rows else np.ones((0, 1))
    confidence = table["confidence"].to_numpy()
    if not np.isfinite(probs).all() or (np.abs(probs.sum(1) - 1) > ROUNDING * probs.shape[1]).any():
        yield problem("has probabilities that do not sum to 1")
    elif (np.abs(probs.max(1, initial=0) - confidence) > ROUNDING).any():
        yield problem("has a confidence that is not its highest probability")
    if table["prob_synthetic"].null_count < max(1, table.num_rows):
        yield from map(problem, _verdicts(scored, table))
    embeddings = scored.embeddings(shard)  # CorruptShard where their number is another
    if embeddings.shape[0] != rows.num_rows or not np.isfinite(embeddings).all():
        yield problem("has values that are no numbers", scored.run / "embeddings" / f"{shard}.npy")


def _verdicts(scored: ScoredPool, table: pa.Table) -> Iterator[str]:
    prob = table["prob_synthetic"].to_numpy()
    if not ((prob >= 0) & (prob <= 1)).all():
        yield "has a prob_synthetic outside 0 to 1"
        return
    kept: dict[str, Any] = json.loads((table.schema.metadata or {}).get(b"thresholds", b"null"))
    thresholds = verdicts.load(scored.run)
    if kept is None:
        return
    if verdicts.Thresholds(**kept) != thresholds:
        yield "was judged by other thresholds than run/thresholds.json"
    if (table["synthetic"].to_numpy() != (prob >= thresholds.synthetic_from)).any():
        yield "calls images synthetic that lie below the threshold, or real that lie above"
