"""Looks up images and shows them beside the images that the model finds most similar, to explain a verdict or label.

in      pool/, run/ with scores, and queries: keys of the pool, image files, folders of images
out     for each query its scores, its nearest neighbors with theirs, and how many of them disagree; as values, and on
        request as one self-contained HTML page; run/index/ (`pipelines.run.neighbors`)
again   the same result, from the existing index

The embeddings are the classifier's, so neighbors show similar things. If they have another label, the label is in
doubt. A run without classes has no labels, and its neighbors may only have similar colors
(`ScoredPool.neighbors_are_layout`); whoever looks at them is told so. Another verdict is no such sign: the detector
judges how an image was made, not what it shows, and a synthetic cat can well have real cats as neighbors.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.errors import BadInput, MissingArtifact
from pipelines.images.check import Accepted, Limits, examine, foreign_images
from pipelines.images.rejects import Reject
from pipelines.images.thumbnails import CONTACT_SHEET, encode
from pipelines.inspect import names
from pipelines.inspect.config import InspectConfig
from pipelines.pages import render, write_page
from pipelines.pool.manifest import CRAWL_COLUMNS, shard_of
from pipelines.progress import OnTick, ignore
from pipelines.run.neighbors import Facts, Index
from pipelines.run.scores import ScoredPool
from pipelines.storage.locations import locate
from pipelines.storage.shards import read_spans

_KEY = re.compile(r"\d{9,}")
_LIMITS = Limits(min_side=1, max_pixels=89_478_485, max_bytes=1 << 28)
_COLUMNS = (
    "key", "source", "member", "declared", "offset", "num_bytes", "prob_synthetic", "synthetic", "verdict",
    "pseudo_label", "confidence", "marked",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """An image and what is known about it; `key` is None if it is not from the pool."""

    key: str | None
    source: str
    member: str
    declared: str | None  # by the file itself: synthetic, camera or nothing
    prob_synthetic: float | None  # this and the next two: None without a detector
    synthetic: bool | None
    verdict: str | None  # real, unsure or synthetic: a person's if the image is marked, else the detector's
    pseudo_label: str | None  # this and the next: None without classes
    confidence: float | None
    marked: str | None = None  # by a person: real, synthetic, off-class or skip
    distance: float | None = None  # to the query: 1 - cosine of the embeddings
    tar: str | None = None  # shard of the pool with the image's bytes; this and the next two: None outside the pool
    offset: int | None = None  # of the image's first byte in the tar
    num_bytes: int | None = None
    crawl: Mapping[str, Any] = field(default_factory=dict)  # what the crawl says of it, by column of the manifest

    @property
    def name(self) -> str:
        """The image's name in a list."""
        return self.key or self.member


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """A query with its nearest neighbors, nearest first."""

    query: Item
    neighbors: tuple[Item, ...]

    @property
    def other_verdict(self) -> int:
        """Number of neighbors with another verdict than the query's."""
        return sum(neighbor.verdict != self.query.verdict for neighbor in self.neighbors)

    @property
    def other_label(self) -> int | None:
        """Number of neighbors with another pseudo-label than the query's; None without classes."""
        if self.query.pseudo_label is None:
            return None
        return sum(neighbor.pseudo_label != self.query.pseudo_label for neighbor in self.neighbors)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The queries with their neighbors, and the index that found them."""

    inspections: tuple[Inspection, ...]
    index: Facts
    neighbors_are_layout: bool  # see `ScoredPool.neighbors_are_layout`


class _Query(NamedTuple):
    item: Item
    embedding: npt.NDArray[np.floating[Any]]
    shard_row: tuple[str, int] | None  # None if the image is not from the pool


def run(config: InspectConfig, on_tick: OnTick = ignore) -> Summary:
    """Look up every query, and write the page if `config.html` names one.

    Raises BadInput for a query that is neither a key nor an image, MissingArtifact if the pool has no scores.
    """
    scored = ScoredPool.open(config.pool, config.run)
    queries = list(_queries(config, scored))
    index = Index.open(scored, on_tick)
    inspections = tuple(_with_neighbors(queries, index, config.neighbors))
    if config.html:
        write_page(config.html, page_of(inspections, scored.neighbors_are_layout))
    return Summary(inspections=inspections, index=index.facts, neighbors_are_layout=scored.neighbors_are_layout)


def inspect_rows(shard_rows: Sequence[tuple[str, int]], index: Index, neighbors: int) -> tuple[Inspection, ...]:
    """Look up images of the pool, each given as shard and row, with their nearest neighbors."""
    items = _look_up(index.scored, shard_rows)
    queries = [
        _Query(items[shard, row], index.scored.embeddings(shard)[row], (shard, row)) for shard, row in shard_rows
    ]
    return tuple(_with_neighbors(queries, index, neighbors))


def _with_neighbors(queries: Sequence[_Query], index: Index, count: int) -> Iterator[Inspection]:
    if not queries:
        return
    # One more than asked for, because an image of the pool is its own nearest neighbor.
    found = index.search(np.stack([query.embedding for query in queries]), count + 1)
    others = [
        [neighbor for neighbor in mine if (neighbor.shard, neighbor.row) != query.shard_row][:count]
        for query, mine in zip(queries, found, strict=True)
    ]
    items = _look_up(index.scored, [(neighbor.shard, neighbor.row) for mine in others for neighbor in mine])
    for query, mine in zip(queries, others, strict=True):
        neighbors = (replace(items[neighbor.shard, neighbor.row], distance=neighbor.distance) for neighbor in mine)
        yield Inspection(query=query.item, neighbors=tuple(neighbors))


# The queries


def _queries(config: InspectConfig, scored: ScoredPool) -> Iterator[_Query]:
    """All queries in the given order; those from outside the pool are embedded together."""
    others = [text for text in config.queries if not _is_key(text, scored)]
    named = names.find([text for text in others if not Path(text).exists()], scored)
    files = {text: _files(text, scored) for text in others if text not in named and not _KEY.fullmatch(text)}
    outside = iter(_from_outside([file for found in files.values() for file in found], scored))
    for text in config.queries:
        if text in files:
            yield from (next(outside) for _ in files.pop(text))
        elif text in named:
            yield _from_pool(named[text], scored)
        elif _KEY.fullmatch(text):
            yield _from_pool(text, scored)


def _is_key(text: str, scored: ScoredPool) -> bool:
    """Whether a query is a key of the pool; digits that are none may be a name in the crawl."""
    if not _KEY.fullmatch(text):
        return False
    shard = shard_of(text)
    return shard not in scored.pool.shards or text in scored.pool.rows(shard, ["key"])["key"].to_pylist()


def _from_pool(key: str, scored: ScoredPool) -> _Query:
    shard = shard_of(key)
    if shard in scored.unscored:
        raise MissingArtifact(f"{key}: shard {shard} has no scores in {scored.run} yet; run `curate score` first.")
    if shard not in scored.shards:
        raise BadInput(
            f"{key}: {scored.pool.root} has no shard {shard}. The first five digits of a key are its shard, from "
            f"{scored.shards[0]} to {scored.shards[-1]}."
        )
    keys = scored.pool.rows(shard, ["key"])["key"].to_pylist()
    if key not in keys:
        existing = f"are among {keys[0]} to {keys[-1]}" if keys else "do not exist, as all its images were rejected"
        raise BadInput(
            f"{key}: no image of {scored.pool.root} has this key. Keys of shard {shard} {existing}; "
            f"rejects/{shard}.parquet lists rejected images."
        )
    row = keys.index(key)
    return _Query(_look_up(scored, [(shard, row)])[shard, row], scored.embeddings(shard)[row], (shard, row))


def _files(text: str, scored: ScoredPool) -> list[tuple[Path, bytes, Accepted]]:
    """The image file, or the images of the folder, that a query names."""
    path = Path(text)
    if not path.exists():
        raise BadInput(
            f"{text} is neither a file nor a key of {scored.pool.root} (digits, such as {scored.shards[0]}0000), and "
            "no image has this name in the crawl."
        )
    found = []
    with foreign_images():
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            content = file.read_bytes()
            accepted = examine(content, None, _LIMITS)
            if not isinstance(accepted, Reject):
                found.append((file, content, accepted))
            elif not path.is_dir():
                raise BadInput(f"{text} is not an image that can be read ({accepted.detail or accepted.reason}).")
    if not found:
        raise BadInput(f"{text} is a folder without an image.")
    return found


def _from_outside(files: Sequence[tuple[Path, bytes, Accepted]], scored: ScoredPool) -> list[_Query]:
    """Score images from outside the pool with the run's model."""
    if not files:
        return []
    from pipelines.run.scorer import Scorer  # imported here: keys need no model, and torch takes seconds to load

    scorer = Scorer.load(scored.run)
    queries = []
    for path, content, accepted in files:
        # One at a time, as they are few and of any size.
        scores = scorer.score([content], [str(path)])
        item = Item(
            key=None,
            source=str(path.parent),
            member=path.name,
            declared=accepted.declared,
            prob_synthetic=None if scores.prob_synthetic is None else float(scores.prob_synthetic[0]),
            synthetic=None if scores.synthetic is None else bool(scores.synthetic[0]),
            verdict=None if scores.verdict is None else str(scores.verdict[0]),
            pseudo_label=None if scores.pseudo_label is None else scores.pseudo_label[0],
            confidence=None if scores.confidence is None else float(scores.confidence[0]),
        )
        queries.append(_Query(item, scores.embeddings[0], None))
    return queries


def _look_up(scored: ScoredPool, shard_rows: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Item]:
    """The images at each (shard, row); each shard is read once."""
    rows_of = defaultdict[str, set[int]](set)
    for shard, row in shard_rows:
        rows_of[shard].add(row)
    items: dict[tuple[str, int], Item] = {}
    for shard, rows in rows_of.items():
        tar = str(scored.pool.tar(shard))
        chosen = scored.rows(shard, _COLUMNS).take(sorted(rows)).to_pylist()
        said = scored.pool.rows(shard, [*CRAWL_COLUMNS, *scored.pool.facts.names]).take(sorted(rows)).to_pylist()
        for row, values, facts in zip(sorted(rows), chosen, said, strict=True):
            crawl = {name: value for name, value in facts.items() if value is not None}
            items[shard, row] = Item(**values, tar=tar, crawl=crawl)
    return items


# The pictures


def content_of(item: Item) -> bytes:
    """The bytes of the image's file, read from its shard or from outside the pool."""
    if item.tar is None:
        return Path(item.source, item.member).read_bytes()
    assert item.offset is not None and item.num_bytes is not None
    (content,) = read_spans(locate(item.tar), [(item.offset, item.num_bytes)])
    return content


# The page


def page_of(inspections: Sequence[Inspection], neighbors_are_layout: bool) -> str:
    """The contact sheet of some inspections, with their images."""
    items = ((inspection.query, *inspection.neighbors) for inspection in inspections)
    return contact_sheet(inspections, ([content_of(item) for item in row] for row in items), neighbors_are_layout)


def contact_sheet(
    inspections: Sequence[Inspection], contents: Iterable[Sequence[bytes]], neighbors_are_layout: bool
) -> str:
    """One HTML page; `contents` has the image files of each query and its neighbors. All text is escaped."""
    with foreign_images():
        pictures = [[encode(content, CONTACT_SHEET).data_uri for content in row] for row in contents]
    sheets = list(zip(inspections, pictures, strict=True))
    return render("contact_sheet.html.j2", {"sheets": sheets, "neighbors_are_layout": neighbors_are_layout})
