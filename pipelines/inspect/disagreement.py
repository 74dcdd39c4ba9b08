"""Lists the images whose verdict their neighbors contradict most.

in      pool/, and run/ with scores of a detector
out     those images with their neighbors, as values and on request as one HTML page; run/index/ (`run.neighbors`)
again   the same result, from the existing index

Images are ranked by how many of their nearest neighbors have the other verdict and, among equals, by how close their
own probability is to the threshold. A fast approximate search for every image shortlists candidates; a full search
ranks them. Memory holds a verdict and a count for each image.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import Incompatible
from pipelines.inspect.config import DisagreementConfig
from pipelines.inspect.lookup import Inspection, inspect_rows, page_of
from pipelines.pages import write_page
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run.neighbors import Facts, Index, num_others
from pipelines.run.scores import ScoredPool

_CANDIDATES = 10  # for each image to list, of either kind of candidate
_MISSED = 0.2  # share of the contradicting neighbors that a rough search may miss


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The images that were found, the most contradicted first."""

    num_images: int  # with scores
    contradicted: int  # images most of whose neighbors, by the rough search, have the other verdict
    inspections: tuple[Inspection, ...]
    index: Facts
    neighbors_are_layout: bool  # see `ScoredPool.neighbors_are_layout`


def run(config: DisagreementConfig, on_tick: OnTick = ignore) -> Summary:
    """Compare every image with its neighbors, and write the page if `config.html` names one.

    Raises MissingArtifact if the pool has no scores, Incompatible if the run has no detector.
    """
    scored = ScoredPool.open(config.pool, config.run)
    prob_N, synthetic_N = verdicts(scored)
    index = Index.open(scored, on_tick)
    others_N = np.zeros(len(synthetic_N), dtype=np.int16)
    contradicted = done = 0
    for own in index.neighborhoods():
        found = index.search_roughly(index.embeddings(own), config.neighbors + 1)
        others_N[own], compared = num_others(found, own, synthetic_N, config.neighbors)
        contradicted += int((2 * others_N[own] > compared).sum())
        done += len(own)
        on_tick(Tick(done=done, total=index.num_images, unit="images", figures={"contradicted": contradicted}))
    margin_N = np.abs(prob_N - scored.threshold)
    chosen = candidates(others_N, margin_N, config.top)
    if len(chosen):
        _, found = index.search_positions(index.embeddings(chosen), config.neighbors + 1)
        others, _ = num_others(found, chosen, synthetic_N, config.neighbors)
        chosen = chosen[most_contradicted(others, margin_N[chosen], config.top)]
    inspections = inspect_rows([index.shard_row(position) for position in chosen.tolist()], index, config.neighbors)
    if config.html:
        write_page(config.html, page_of(inspections, scored.neighbors_are_layout))
    return Summary(
        num_images=done,
        contradicted=contradicted,
        inspections=inspections,
        index=index.facts,
        neighbors_are_layout=scored.neighbors_are_layout,
    )


def candidates(others_N: npt.NDArray[np.int16], margin_N: npt.NDArray[np.float32], top: int) -> npt.NDArray[np.intp]:
    """Images that may be among the first `top` in a full search: those ranked first by the rough search, and the least
    certain of those that it ranked a little lower.
    """
    first = most_contradicted(others_N, margin_N, _CANDIDATES * top)
    if not len(first):
        return first
    fewest = max(1, (1 - _MISSED) * others_N[first[:top][-1]])
    close = np.flatnonzero(others_N >= fewest)
    return np.union1d(first, close[np.argsort(margin_N[close], kind="stable")[: _CANDIDATES * top]])


def most_contradicted(
    others_N: npt.NDArray[np.integer[Any]], margin_N: npt.NDArray[np.float32], count: int
) -> npt.NDArray[np.intp]:
    """Indices of the first `count` images, the most contradicted first; images without contradiction are left out.

    `others_N` (N,) counts neighbors with the other verdict, `margin_N` (N,) is the distance from the threshold.
    """
    order = np.lexsort((margin_N, -others_N))[:count]
    return order[others_N[order] > 0]


def verdicts(scored: ScoredPool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Probability (N,) of being synthetic and verdict (N,) of all scored images in order.

    Raises Incompatible if the run has no detector.
    """
    probs, called = [], []
    for shard in scored.shards:
        rows = scored.rows(shard, ["prob_synthetic", "synthetic"])
        if rows["synthetic"].null_count:
            raise Incompatible(
                f"{scored.run} has no detector, so there are no verdicts to contradict. "
                "Train with --method rsmatch, or inspect single images by their keys."
            )
        probs.append(rows["prob_synthetic"].to_numpy())
        called.append(rows["synthetic"].to_numpy(zero_copy_only=False).astype(bool))
    return np.concatenate(probs), np.concatenate(called)
