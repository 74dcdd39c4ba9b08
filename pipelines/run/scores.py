"""Reads a pool together with its scores, and refuses scores that do not belong to it.

The score files hold what the model says. If a person has marked an image, `ScoredPool.rows` returns the mark instead of
the model's verdict and label, so everything that reads them here respects it. Scores from outside are further columns.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import CorruptShard, Incompatible, MissingArtifact
from pipelines.pool.manifest import POOL_SCHEMA, Pool, read_parquet
from pipelines.run import belonging, outside, verdicts
from pipelines.run import marks as marks_file
from pipelines.run.marks import Mark
from pipelines.storage import locations
from pipelines.storage.locations import Location

# A new column also needs `scorer.Scores` and `_write` in `score.stage`.
SCORE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("prob_synthetic", pa.float32()),  # this and the next two: null if no detector was trained
        pa.field("synthetic", pa.bool_()),
        pa.field("verdict", pa.string()),  # real, unsure or synthetic (pipelines.run.verdicts)
        # This and the rest: null if the labeled images had no classes.
        pa.field("pseudo_label", pa.string()),  # class name, by the real head
        pa.field("confidence", pa.float32()),  # calibrated probability of the pseudo-label
        pa.field("probs", pa.list_(pa.float16())),  # (K,), calibrated, in the order of config.json's classes
        pa.field("raw_confidence", pa.float32()),  # of the pseudo-label, as the classifier gives it
        pa.field("typicality", pa.float32()),  # 0..1: near 0, no labeled image resembles it; null if not measured
    ]
)

PRECISION, FIRST_PRECISION = b"precision", b"fp32"  # of what the networks computed; the first scores do not say


def model_digest(run: Location) -> str | None:
    """Digest of a run's networks and calibration, stored with the scores that they made; None if the run has none."""
    digest = hashlib.sha256()
    try:
        for name in ("classifier", "detector"):
            digest.update(locations.read(run / "model" / f"{name}.safetensors"))
    except FileNotFoundError:
        return None
    with suppress(FileNotFoundError):  # of too few labeled images, or without classes, there is none
        digest.update(locations.read(run / "model" / "calibration.safetensors"))
    return digest.hexdigest()[:16]


def precision(folder: Path, digest: str) -> str | None:
    """Precision of the scores of a pool in a folder, by the model of this digest; None if there are none."""
    for path in sorted((folder / "scores").glob("[!.]*.parquet")):
        with suppress(OSError, pa.ArrowInvalid):  # gone meanwhile, or damaged: then it is scored again
            origin = pq.read_schema(path).metadata or {}
            if origin.get(b"model") == digest.encode():
                return str(origin.get(PRECISION, FIRST_PRECISION), "ascii")
    return None


SCHEMA = pa.schema(
    [
        *POOL_SCHEMA,
        *(column for column in SCORE_SCHEMA if column.name != "key"),
        pa.field("marked", pa.string()),  # by a person: real, synthetic, skip or null
    ]
)


@dataclass(frozen=True)
class ScoredPool:
    """The finished shards of a pool that a run has scored."""

    pool: Pool
    run: Path
    marks: Mapping[str, Mark] = field(default_factory=dict)  # by sha256

    @classmethod
    def open(cls, pool: Location, run: Path) -> "ScoredPool":
        """Open a pool, and a run with its marks.

        Raises MissingArtifact if no shard of the pool is scored, and Incompatible as `check` does.
        """
        scored = cls(Pool.open(pool), run, marks_file.read(run).current)
        if not scored.shards:
            raise MissingArtifact(f"{run} has no scores of {pool}; run `curate score` first.")
        scored.check()
        return scored

    @cached_property
    def folder(self) -> Path:
        """Folder with the scores of this pool and what is made from them: `run`, or one in it for a further pool."""
        return belonging.folder(self.run, self.pool)

    def check(self) -> None:
        """Raise Incompatible unless the run's present model made all scores, with the same precision and thresholds.

        They were not if `curate score` was interrupted, or if the run was trained again and not scored since.
        """
        origins = [self.origin(shard) for shard in self.shards]
        for name, what, default in (
            (b"model", "models", None),
            (PRECISION, "precisions", FIRST_PRECISION),
            (b"thresholds", "sets of thresholds", None),
        ):
            if len({origin.get(name, default) for origin in origins}) > 1:
                raise Incompatible(f"{self.folder}/scores has scores by two {what}; run `curate score` again.")
        by, now = origins[0].get(b"model") if origins else None, model_digest(self.run)
        if by is not None and now is not None and by != now.encode():
            raise Incompatible(f"{self.run} was trained again after it was scored; run `curate score` again.")

    @cached_property
    def shards(self) -> tuple[str, ...]:
        """Names of the shards that have scores, in order."""
        return tuple(shard for shard in self.pool.shards if self._scores(shard).exists())

    @property
    def unscored(self) -> tuple[str, ...]:
        """Names of the shards that were ingested after the last `curate score`."""
        return tuple(shard for shard in self.pool.shards if shard not in set(self.shards))

    @cached_property
    def model(self) -> dict[str, Any]:
        """The configuration of the run's model: classes, sizes and more."""
        path = self.run / "model" / "config.json"
        try:
            model = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise MissingArtifact(f"{path} does not exist; run `curate train` first.") from None
        except ValueError:
            raise CorruptShard(f"{path} is not JSON; train again.") from None
        assert isinstance(model, dict)
        return model

    @property
    def threshold(self) -> float:
        """Lowest probability at which the scores call an image synthetic."""
        return verdicts.load(self.folder).synthetic_from

    @property
    def real_below(self) -> float:
        """Lowest probability at which the scores do not call an image real."""
        return verdicts.load(self.folder).real_below

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the model's outputs; empty without classes."""
        return tuple(self.model["classes"])

    @property
    def neighbors_are_layout(self) -> bool:
        """Whether nearby embeddings share colors and their layout alone: no network has learned what images show."""
        return bool(self.model.get("embedding") == "layout")

    @cached_property
    def outside(self) -> outside.Outside:
        """Scores from outside that the run has of this pool."""
        return outside.of_pool(self.run, self.folder)

    @cached_property
    def schema(self) -> pa.Schema:
        """SCHEMA and a column for each of the scores from outside: float32, null where an image has no value."""
        return pa.schema([*SCHEMA, *self.outside.schema])

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns that `rows` can return."""
        return tuple(self.schema.names)

    def rows(self, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of a shard with some of `self.columns`, or with all, in the order of its tar.

        If an image is marked real or synthetic, `synthetic` and `verdict` are those of the mark; if it is labeled,
        `pseudo_label` is the label and `confidence` is 1. `prob_synthetic` and `probs` are always the model's. Raises
        Incompatible if the scores are those of other images.
        """
        columns = self.columns if columns is None else columns
        of_scores = [name for name in columns if name in SCORE_SCHEMA.names and name != "key"]
        of_pool = {"key", "sha256"} | set(columns) & set(POOL_SCHEMA.names)
        rows = self.pool.rows(shard, [name for name in POOL_SCHEMA.names if name in of_pool])
        scores = read_parquet(self._scores(shard), ["key", *of_scores])
        scored_digest = (scores.schema.metadata or {}).get(b"shard")
        if not rows["key"].equals(scores["key"]) or scored_digest not in (None, self.pool.digest(shard).encode()):
            raise Incompatible(
                f"{self._scores(shard)} has the scores of other images than {self.pool.root}/{shard}.parquet lists. "
                "Give the --pool and --run that belong together, or run `curate score` again."
            )
        for name in of_scores:
            rows = rows.append_column(scores.schema.field(name), scores[name])
        from_outside = [name for name in columns if name not in SCHEMA.names]
        for name, values in self.outside.columns(rows["sha256"], from_outside).items():
            rows = rows.append_column(name, values)
        return _with_marks(rows, self.marks).select(list(columns))

    def scored_by(self, shard: str) -> str | None:
        """Digest of the model that scored a shard; None if the scores do not say."""
        digest = self.origin(shard).get(b"model")
        return digest.decode() if digest else None

    def origin(self, shard: str) -> dict[bytes, bytes]:
        """What a shard's scores were made from: model, shard and thresholds; empty if there are no scores."""
        try:
            return pq.read_schema(self._scores(shard)).metadata or {}
        except FileNotFoundError:
            return {}

    def fingerprint(self, shard: str) -> str:
        """Identifies the scores of a shard: digests of the model and of the shard that they were made from."""
        origin = self.origin(shard)
        return (origin.get(b"model", b"") + b" " + origin.get(b"shard", b"")).decode()

    def embeddings(self, shard: str) -> npt.NDArray[np.float16]:
        """Embeddings (N, D) of a shard, float16, memory-mapped; row i is that of row i of the manifest.

        Raises CorruptShard if they are missing, unreadable or of the wrong shape.
        """
        path = self.folder / "embeddings" / f"{shard}.npy"
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise CorruptShard(f"{path} is missing, but its scores exist; run `curate score` again.") from None
        except (ValueError, EOFError):
            raise CorruptShard(f"{path} cannot be read. Remove it and run `curate score` again.") from None
        if found.ndim != 2 or len(found) != self.num_rows(shard):
            raise CorruptShard(
                f"{path} has the shape {found.shape} for {self.num_rows(shard)} images. "
                "Remove it and run `curate score` again."
            )
        return np.asarray(found)

    def num_rows(self, shard: str) -> int:
        """Number of images of a shard."""
        return self.pool.counts[self.pool.shards.index(shard)]

    def _scores(self, shard: str) -> Path:
        return self.folder / "scores" / f"{shard}.parquet"


def _with_marks(rows: pa.Table, marked: Mapping[str, Mark]) -> pa.Table:
    """Replace the model's verdicts and labels by a person's, and append the column `marked`."""
    found = [marked.get(sha256) for sha256 in rows["sha256"].to_pylist()] if marked else [None] * rows.num_rows
    verdicts = [mark.verdict if mark else None for mark in found]
    labels = [mark.label if mark else None for mark in found]
    off_class = pa.array([verdict == "off-class" for verdict in verdicts])
    of_detector = [marks_file.OF_DETECTOR.get(verdict or "") for verdict in verdicts]
    by_person: dict[str, list[Any]] = {
        "synthetic": [None if verdict is None else verdict == "synthetic" for verdict in of_detector],
        "verdict": of_detector,
        "pseudo_label": labels,
        "confidence": [None if label is None else 1.0 for label in labels],
    }
    instead = {"pseudo_label": None, "confidence": 0.0}  # of the label of an image that shows none of the classes
    for name in by_person.keys() & set(rows.column_names):
        column = rows.schema.field(name)
        if name in ("pseudo_label", "confidence") and rows[name].null_count:
            continue  # without classes there are no labels, and a person's only say that an image is real
        merged = pc.coalesce(pa.array(by_person[name], column.type), rows[name])
        if name in instead:
            merged = pc.if_else(off_class, pa.scalar(instead[name], column.type), merged)
        rows = rows.set_column(rows.column_names.index(name), column, merged)

    return rows.append_column(SCHEMA.field("marked"), pa.array(verdicts, pa.string()))
