"""Shows the largest groups of near-duplicates in a pool, the best copy of each first.

in      pool/ with its perceptual hashes, and the embeddings of run/ if there are any
out     the groups, as values and on request as one HTML page
again   the same result

`pipelines.run.duplicates` finds the groups. The best copy, which an export keeps, has the most pixels and, among
equals, the most bytes.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.images.check import foreign_images
from pipelines.images.thumbnails import CONTACT_SHEET, encode
from pipelines.inspect.config import DuplicatesConfig
from pipelines.pages import render, write_page
from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick, ignore
from pipelines.run.duplicates import Groups, Positions, best_first
from pipelines.run.scores import ScoredPool
from pipelines.storage.locations import locate
from pipelines.storage.shards import read_spans

_SHOWN = 24  # images of a group on the page

_COLUMNS = (
    "key", "source", "member", "declared", "format", "width", "height", "num_bytes", "phash", "offset",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """An image of a group."""

    key: str
    source: str
    member: str
    declared: str | None  # by the file itself: synthetic, camera or nothing
    format: str
    width: int
    height: int
    num_bytes: int
    bits: int  # of the hash that differ from the first image of the group
    tar: str  # shard of the pool with the image's bytes
    offset: int  # of the image's first byte in the tar


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Groups of near-duplicates; the first image of each is the one to keep."""

    num_images: int
    num_groups: int
    num_redundant: int  # images that are not the first of their group
    num_plain: int  # images that the hash says nothing about, in no group
    confirmed: bool  # whether all images had embeddings to compare
    groups: tuple[tuple[Copy, ...], ...]  # the largest


def run(config: DuplicatesConfig, on_tick: OnTick = ignore) -> Summary:
    """Group the near-duplicates of a pool, and write the page if `config.html` names one.

    Raises MissingArtifact if there is no pool.
    """
    scored = ScoredPool(Pool.open(config.pool), config.run)
    groups = Groups.find(
        scored, config.radius, config.max_distance, turned=config.turned, cropped=config.cropped, on_tick=on_tick
    )
    sizes = np.bincount(groups.number_N[groups.number_N >= 0])
    largest = np.argsort(-sizes, kind="stable")[: config.top]
    summary = Summary(
        num_images=len(groups.number_N),
        num_groups=len(sizes),
        num_redundant=int(sizes.sum()) - len(sizes),
        num_plain=groups.num_plain,
        confirmed=not scored.unscored,
        groups=tuple(_copies(scored.pool, groups, largest)),
    )
    if config.html:
        write_page(config.html, _page(summary))
    return summary


def _copies(pool: Pool, groups: Groups, wanted: Positions) -> Iterator[tuple[Copy, ...]]:
    """The images of the wanted groups, the best of each first."""
    rows_of = defaultdict[int, list[dict[str, Any]]](list)
    for shard in pool.shards:
        numbers = groups.of(shard)
        mine = np.flatnonzero(np.isin(numbers, wanted))
        if len(mine):
            rows = pool.rows(shard, _COLUMNS).take(mine).to_pylist()
            for number, row in zip(numbers[mine].tolist(), rows, strict=True):
                rows_of[number].append({**row, "tar": str(pool.tar(shard))})
    for number in wanted.tolist():
        rows = sorted(rows_of[number], key=best_first)
        first = rows[0]["phash"]
        yield tuple(Copy(bits=(row.pop("phash") ^ first).bit_count(), **row) for row in rows)


def _page(summary: Summary) -> str:
    with foreign_images():
        pictures = [
            [encode(_content(copy), CONTACT_SHEET).data_uri for copy in group[:_SHOWN]] for group in summary.groups
        ]
    sheets = list(zip(summary.groups, pictures, strict=True))
    return render("near_duplicates.html.j2", {"summary": summary, "sheets": sheets})


def _content(copy: Copy) -> bytes:
    (content,) = read_spans(locate(copy.tar), [(copy.offset, copy.num_bytes)])
    return content
