"""Disagreement: the images whose verdict the neighborhood contradicts most.

in      pool/, run/ with scores of a detector
out     those images with their neighbors, as values, and on request as one HTML page; run/index/ (`pipelines.index`)
again   the same, from the index that is there

Images are ranked by how many of their nearest neighbors have the other verdict and, among equals, by how near their own
probability is to the threshold. Shards pass one at a time; memory holds a verdict per image and the best so far.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pipelines.errors import Incompatible
from pipelines.index import Facts, Index
from pipelines.inspect import Inspection, of_places, page_of, write_page
from pipelines.places import AnyFolder, LocalFolder
from pipelines.progress import OnTick, Tick, ignore
from pipelines.scored import ScoredPool

_BATCH = 1024  # queries


class DisagreementConfig(BaseModel):
    """What to compare, and how many to list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: AnyFolder = Path("pool")
    run: LocalFolder = Path("run")
    neighbors: int = Field(default=10, ge=1, le=1000)
    top: int = Field(default=50, ge=1, le=1000)
    html: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was found, the most contradicted first."""

    num_images: int  # with scores
    contradicted: int  # images most of whose neighbors have the other verdict
    inspections: tuple[Inspection, ...]
    index: Facts


def run(config: DisagreementConfig, on_tick: OnTick = ignore) -> Summary:
    """Compare every image with its neighbors; write the page where `config.html` asks for one.

    Raises MissingArtifact where the pool has no scores, Incompatible where they are of no detector.
    """
    scored = ScoredPool.open(config.pool, config.run)
    prob_N, synthetic_N = _verdicts(scored)
    index = Index.open(scored, on_tick)
    threshold = scored.threshold
    best: list[tuple[int, float, int]] = []
    contradicted = start = 0
    for shard in scored.shards:
        embeddings = scored.embeddings(shard)
        for first in range(0, len(embeddings), _BATCH):
            own = start + np.arange(first, min(first + _BATCH, len(embeddings)))
            others, compared = _others(index, embeddings[first : first + _BATCH], own, synthetic_N, config.neighbors)
            contradicted += int((2 * others > compared).sum())
            unsure = np.abs(prob_N[own] - threshold)
            ranked = zip((-others).tolist(), unsure.tolist(), own.tolist(), strict=True)
            best = sorted([*best, *(rank for rank in ranked if rank[0] < 0)])[: config.top]
        start += len(embeddings)
        on_tick(Tick(done=start, total=index.num_images, unit="images", figures={"contradicted": contradicted}))
    inspections = of_places([index.place(position) for _, _, position in best], index, config.neighbors)
    if config.html:
        write_page(config.html, page_of(inspections))
    return Summary(num_images=start, contradicted=contradicted, inspections=inspections, index=index.facts)


def _others(
    index: Index,
    embeddings_BD: npt.NDArray[np.float16],
    own_B: npt.NDArray[np.int64],
    synthetic_N: npt.NDArray[np.bool_],
    count: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many (B,) of each image's `count` nearest neighbors have the other verdict, and how many (B,) were found."""
    _, positions = index.search_positions(embeddings_BD, count + 1)
    is_other_image = (positions >= 0) & (positions != own_B[:, None])
    is_other_image &= is_other_image.cumsum(axis=1) <= count
    contradicts = synthetic_N[positions] != synthetic_N[own_B][:, None]
    return (contradicts & is_other_image).sum(axis=1), is_other_image.sum(axis=1)


def _verdicts(scored: ScoredPool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Probability (N,) of being synthetic, and verdict (N,), of all scored images in order."""
    probs, verdicts = [], []
    for shard in scored.shards:
        rows = scored.rows(shard, ["prob_synthetic", "synthetic"])
        if rows["synthetic"].null_count:
            raise Incompatible(
                f"{scored.run}: trained no detector, so that there are no verdicts to contradict; "
                "train with --method rsmatch, or inspect images by their keys."
            )
        probs.append(rows["prob_synthetic"].to_numpy())
        verdicts.append(rows["synthetic"].to_numpy(zero_copy_only=False).astype(bool))
    return np.concatenate(probs), np.concatenate(verdicts)
