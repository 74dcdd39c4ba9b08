"""Compares the verdicts of a run with those of an earlier run on the same pool, image by image."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.errors import MissingArtifact
from pipelines.progress import OnTick, Tick
from pipelines.report.survey import Best, tables
from pipelines.run import quality
from pipelines.run.quality import Quality
from pipelines.run.scores import ScoredPool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What has changed since the earlier run, over the images that both have scored."""

    run: str  # the earlier one
    num_images: int
    verdicts: dict[tuple[str, str], int]  # images by verdict (then, now)
    num_relabeled: int | None  # images with another pseudo-label; None where one of the runs has no classes
    moved: Best  # the images whose scores changed most, with `prob_before` and `verdict_before`
    quality: Quality | None  # of the earlier run's detector

    @property
    def num_changed(self) -> int:
        """Number of images with another verdict than then."""
        return sum(count for (then, now), count in self.verdicts.items() if then != now)


def compare(scored: ScoredPool, earlier: ScoredPool, *, gallery: int, on_tick: OnTick) -> Comparison | None:
    """Compare two runs; None unless both have a detector. Keeps the `gallery` images whose scores changed most.

    Raises MissingArtifact if no image has scores of both, Incompatible if the scores are those of other images.
    """
    shards = [shard for shard in scored.shards if shard in set(earlier.shards)]
    if not shards:
        raise MissingArtifact(f"--against {earlier.run}: has no scores of the images of {scored.pool.root}.")
    earlier.check()
    moved, counts, relabeled, has_labels = Best(gallery), Counter[tuple[str, str]](), 0, True
    for done, rows in enumerate(tables(scored.pool, scored, shards), 1):
        before = earlier.rows(shards[done - 1], ("prob_synthetic", "verdict", "pseudo_label"))
        if rows["prob_synthetic"].null_count or before["prob_synthetic"].null_count:
            return None
        counts.update(zip(before["verdict"].to_pylist(), rows["verdict"].to_pylist(), strict=True))
        has_labels &= not rows["pseudo_label"].null_count and not before["pseudo_label"].null_count
        relabeled += int((_labels(rows) != _labels(before)).sum())
        change = np.abs(rows["prob_synthetic"].to_numpy() - before["prob_synthetic"].to_numpy())
        rows = rows.append_column("prob_before", before["prob_synthetic"])
        moved.add(rows.append_column("verdict_before", before["verdict"]), change)
        on_tick(Tick(done=done, total=len(shards), unit="shards compared"))
    return Comparison(
        run=str(earlier.run),
        num_images=sum(counts.values()),
        verdicts=dict(counts),
        num_relabeled=relabeled if has_labels else None,
        moved=moved,
        quality=quality.load(earlier.run),
    )


def _labels(rows: pa.Table) -> np.ndarray:
    return np.asarray(rows["pseudo_label"].to_pylist(), dtype=object)
