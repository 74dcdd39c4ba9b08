"""Disagreement: the images whose verdict the neighborhood contradicts most.

in      pool/, run/ with scores of a detector
out     those images with their neighbors, as values, and on request as one HTML page; run/index/ (`run.neighbors`)
again   the same, from the index that is there

Images are ranked by how many of their nearest neighbors have the other verdict and, among equals, by how near their own
probability is to the threshold. A rough search for every image finds who may be among the first, a thorough one for
those ranks them. Memory holds a verdict and a count of each image.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import Incompatible
from pipelines.inspect.config import DisagreementConfig
from pipelines.inspect.lookup import Inspection, of_places, page_of
from pipelines.pages import write_page
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run.neighbors import Facts, Index
from pipelines.run.scores import ScoredPool

_CANDIDATES = 10  # for each image that is listed, of either kind
_MISSED = 0.2  # of the neighbors that contradict an image, a rough search may miss so many


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was found, the most contradicted first."""

    num_images: int  # with scores
    contradicted: int  # images most of whose neighbors, by the rough search, have the other verdict
    inspections: tuple[Inspection, ...]
    index: Facts


def run(config: DisagreementConfig, on_tick: OnTick = ignore) -> Summary:
    """Compare every image with its neighbors; write the page where `config.html` asks for one.

    Raises MissingArtifact where the pool has no scores, Incompatible where they are of no detector.
    """
    scored = ScoredPool.open(config.pool, config.run)
    prob_N, synthetic_N = _verdicts(scored)
    index = Index.open(scored, on_tick)
    others_N = np.zeros(len(synthetic_N), dtype=np.int16)
    contradicted = done = 0
    for own in index.neighborhoods():
        found = index.search_roughly(index.embeddings(own), config.neighbors + 1)
        others_N[own], compared = _others(found, own, synthetic_N, config.neighbors)
        contradicted += int((2 * others_N[own] > compared).sum())
        done += len(own)
        on_tick(Tick(done=done, total=index.num_images, unit="images", figures={"contradicted": contradicted}))
    unsure_N = np.abs(prob_N - scored.threshold)
    chosen = _candidates(others_N, unsure_N, config.top)
    if len(chosen):
        _, found = index.search_positions(index.embeddings(chosen), config.neighbors + 1)
        others, _ = _others(found, chosen, synthetic_N, config.neighbors)
        chosen = chosen[_first(others, unsure_N[chosen], config.top)]
    inspections = of_places([index.place(position) for position in chosen.tolist()], index, config.neighbors)
    if config.html:
        write_page(config.html, page_of(inspections))
    return Summary(num_images=done, contradicted=contradicted, inspections=inspections, index=index.facts)


def _candidates(others_N: npt.NDArray[np.int16], unsure_N: npt.NDArray[np.float32], top: int) -> npt.NDArray[np.intp]:
    """Images that may be among the first `top` when counted again: the first now, and the least sure of those near."""
    first = _first(others_N, unsure_N, _CANDIDATES * top)
    if not len(first):
        return first
    least = max(1, (1 - _MISSED) * others_N[first[:top][-1]])
    near = np.flatnonzero(others_N >= least)
    return np.union1d(first, near[np.argsort(unsure_N[near], kind="stable")[: _CANDIDATES * top]])


def _first(
    others_N: npt.NDArray[np.integer[Any]], unsure_N: npt.NDArray[np.float32], count: int
) -> npt.NDArray[np.intp]:
    """Where the first `count` images stand, the most contradicted first; those that nobody contradicts are left out."""
    order = np.lexsort((unsure_N, -others_N))[:count]
    return order[others_N[order] > 0]


def _others(
    positions: npt.NDArray[np.int64], own_B: npt.NDArray[np.int64], synthetic_N: npt.NDArray[np.bool_], count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many (B,) of the first `count` others found have the other verdict, and how many (B,) there are."""
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
