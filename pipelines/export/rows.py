"""The rows that an export chooses from: a scored pool, or a pool that nothing was scored on.

Without scores their columns are null, so that the rows have the same columns in both cases.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from pipelines.errors import BadInput, MissingArtifact
from pipelines.export.config import ExportConfig
from pipelines.pool.manifest import POOL_SCHEMA, Pool
from pipelines.run import marks
from pipelines.run.scores import SCORE_SCHEMA, ScoredPool

# Columns that are empty without classes.
OF_CLASSES = ("pseudo_label", "confidence", "probs", "raw_confidence", "typicality")


@dataclass(frozen=True)
class Rows:
    """A pool with the scores of a run, if there are any."""

    scored: ScoredPool

    @classmethod
    def open(cls, config: ExportConfig) -> "Rows":
        """Open the pool and the run of an export.

        Raises MissingArtifact if some or, unless everything is kept, all shards have no scores; BadInput for an option
        about scores or classes that are not there.
        """
        pool = Pool.open(config.pool)
        scored = ScoredPool(pool, config.run, marks.read(config.run).current)
        if not scored.shards and config.keep != "all":
            raise MissingArtifact(
                f"{config.run} has no scores of {config.pool}: run `curate score` first, or add --keep all to "
                "export all images that ingest accepted."
            )
        if scored.shards and scored.unscored:
            raise MissingArtifact(
                f"{scored.folder}/scores: {len(scored.unscored)} of {len(pool.shards)} shards of {config.pool} have no "
                f"scores, among them {scored.unscored[0]}: run `curate score` first."
            )
        scored.check()
        rows = cls(scored)
        if config.semantic_duplicates and not rows.has_scores:
            raise BadInput(f"--semantic-duplicates: {rows.why_empty}, so there are no embeddings. Run `curate score`.")
        of_classes = (
            ("--min-confidence", config.min_confidence > 0),
            ("--label-precision", config.label_precision),
            ("--per-class", config.per_class),
        )
        for option, given in of_classes:
            if given and not rows.classes:
                raise BadInput(f"{option}: {rows.why_empty}, so there are no pseudo-labels. Leave out {option}.")
        return rows

    @property
    def pool(self) -> Pool:
        """The pool."""
        return self.scored.pool

    @property
    def has_scores(self) -> bool:
        """Whether the pool was scored."""
        return bool(self.scored.shards)

    @cached_property
    def has_detector(self) -> bool:
        """Whether the scores tell real and synthetic images apart."""
        return self.has_scores and bool(self.scored.model.get("has_detector", True))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of their indices; empty without classes."""
        return self.scored.classes if self.has_scores else ()

    @property
    def schema(self) -> pa.Schema:
        """Columns of the rows."""
        return self.scored.schema

    @property
    def empty(self) -> Collection[str]:
        """Columns without any value."""
        if self.has_scores:
            return () if self.classes else OF_CLASSES
        return tuple(name for name in SCORE_SCHEMA.names if name != "key")

    @property
    def why_empty(self) -> str:
        """Why those columns have no values."""
        if self.has_scores:
            return f"{self.scored.run} was trained on images without classes"
        return f"{self.scored.run} has no scores of {self.pool.root}"

    @property
    def origins(self) -> list[dict[bytes, bytes]]:
        """What the scores of each shard were made from: it must not change during the export."""
        return [self.scored.origin(shard) for shard in self.pool.shards]

    def of(self, shard: str) -> pa.Table:
        """Rows of a shard, in the order of its tar."""
        if self.has_scores:
            return self.scored.rows(shard)
        rows = self.pool.rows(shard, POOL_SCHEMA.names)
        for field in (field for field in SCORE_SCHEMA if field.name != "key"):
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
        found = [self.scored.marks.get(sha256) for sha256 in rows["sha256"].to_pylist()]
        marked = pa.array([mark.verdict if mark else None for mark in found], pa.string())
        rows = rows.append_column(self.schema.field("marked"), marked)
        for name, values in self.scored.outside.columns(rows["sha256"], self.scored.outside.names).items():
            rows = rows.append_column(name, values)
        return rows
