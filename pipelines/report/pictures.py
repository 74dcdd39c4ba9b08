"""The pictures of the report: images with the highest and lowest scores, of each class, and what is known about each.

A picture opens a larger view. What that shows is in the page as JSON: the image's key, caption, url, why it has its
verdict, and its nearest neighbors. Every picture has a limit of bytes, so that the page stays small whatever the pool.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.images.check import foreign_images
from pipelines.images.thumbnails import Format, Thumbnail, encode
from pipelines.pages import TEXT
from pipelines.pool.manifest import Pool
from pipelines.report.survey import Survey, read_rows
from pipelines.run import verdicts
from pipelines.run.neighbors import Index, Neighbor
from pipelines.run.scores import ScoredPool
from pipelines.run.verdicts import Thresholds

GALLERY = 24  # pictures of each gallery
CLASSES_SHOWN = 20  # classes with pictures
CLASS_PICTURES = 6  # of each verdict in a class
NEIGHBORS = 6  # of each picture
LARGE = Format(side=256, codec="WEBP", quality=75, lossless_below=49, decoded_side=256)
SMALL = Format(side=112, codec="WEBP", quality=75, lossless_below=49, decoded_side=224)
TINY = Format(side=56, codec="WEBP", quality=60, decoded_side=112)
LARGE_BYTES, SMALL_BYTES, TINY_BYTES = 12_000, 4_000, 1_500  # the most of a picture
NEIGHBOR_BYTES = 400_000  # of the neighbors' pictures of a page together; later neighbors are listed without one

_QUALITIES = (50, 25, 10)
_CAPTION = 500  # characters shown


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A thumbnail and its caption."""

    uri: str
    small: bool  # shown by the pixel
    row: Mapping[str, Any]
    text: str  # the crawl's caption
    number: int  # in `Album.details`


class Album:
    """Makes the pictures of a page, and gathers what their larger views show."""

    def __init__(self, pool: Pool, scored: ScoredPool | None, index: Index | None) -> None:
        self._pool, self._scored, self._index = pool, scored, index
        self._thresholds = verdicts.load(scored.folder) if scored else None
        self.details: list[dict[str, Any]] = []  # of each picture, by its number
        self.thumbnails: list[str] = []  # of neighbors, as addresses
        self._numbers: dict[tuple[str, int], int | None] = {}  # of a neighbor's thumbnail; None beyond the limit
        self._bytes = 0

    def galleries(self, found: Survey) -> list[tuple[str, str, list[Picture]]]:
        """(title, explanation, pictures) of each gallery."""
        if self._scored is None:
            return [("Some images", "A random sample.", self.pictures(found.sample.slice(0, GALLERY)))]
        shown = [
            ("Most synthetic", "The highest scores. Do they share something that is not in the pictures?",
             found.most_synthetic),
            ("Least certain", "Nearest to the threshold: their verdicts are guesses." if found.scores is not None
             else "The lowest confidence.", found.least_sure),
            ("Most real", "The lowest scores.", found.most_real),
        ]  # fmt: skip
        rows = [(title, text, best.rows()) for title, text, best in shown]
        return [(title, text, self.pictures(part)) for title, text, part in rows if part is not None]

    def by_class(self, found: Survey) -> list[tuple[str, list[Picture], list[Picture]]]:
        """(class, called real, called synthetic) of the largest classes."""
        largest = sorted(found.classes, key=lambda name: -found.classes[name].num_images)[:CLASSES_SHOWN]
        groups = found.real_of_class, found.synthetic_of_class
        return [
            (name, *(self.pictures(best.rows(name), SMALL, SMALL_BYTES) for best in groups))  # type: ignore[misc]
            for name in largest
            if found.classes[name].num_images
        ]

    def pictures(self, rows: pa.Table | None, format_: Format = LARGE, most: int = LARGE_BYTES) -> list[Picture]:
        """Pictures of rows of a survey."""
        if rows is None:
            return []
        made, listed = [], rows.to_pylist()
        neighbors = self._neighbors(listed)
        with foreign_images():
            for row, others, content in zip(listed, neighbors, read_rows(self._pool, rows), strict=True):
                thumbnail = bounded(content, format_, most)
                text = (row["caption"] or "").strip()
                number = len(self.details)
                self.details.append(self._detail(row, text, others))
                made.append(
                    Picture(uri=thumbnail.data_uri, small=thumbnail.lossless, row=row, text=text, number=number)
                )
        return made

    def _detail(self, row: Mapping[str, Any], text: str, neighbors: Sequence[dict[str, Any]]) -> dict[str, Any]:
        facts = {
            "caption": text[:_CAPTION],
            "url": row["url"],
            "domain": row["domain"],
            "file": row["member"][:TEXT],
            "from": row["source"][:TEXT],
            "size": f"{row['width']} × {row['height']}, {row['format']}, {row['num_bytes']:,} bytes",
            "score": _score(row),
            "label": row.get("pseudo_label"),
        }
        return {
            "key": row["key"],
            "verdict": row.get("verdict"),
            "reason": reason(row, self._thresholds),
            "facts": [(name, value) for name, value in facts.items() if value],
            "neighbors": neighbors,
        }

    def _neighbors(self, rows: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
        """What the larger views show of the nearest neighbors of each row."""
        if self._index is None or self._scored is None:
            return [[] for _ in rows]
        vectors = np.stack([self._scored.embeddings(row["shard"])[row["row"]] for row in rows])
        found = self._index.search(vectors.astype(np.float32), NEIGHBORS + 1)
        return [
            [
                self._neighbor(self._scored, each)
                for each in others
                if (each.shard, each.row) != (row["shard"], row["row"])
            ][:NEIGHBORS]
            for row, others in zip(rows, found, strict=True)
        ]

    def _neighbor(self, scored: ScoredPool, found: Neighbor) -> dict[str, Any]:
        names = ("key", "shard", "offset", "num_bytes", "verdict", "prob_synthetic", "pseudo_label")
        row = scored.rows(found.shard, names).slice(found.row, 1)
        (values,) = row.to_pylist()
        said = [values["pseudo_label"], values["verdict"], _score(values)]
        return {
            "key": values["key"],
            "verdict": values["verdict"],
            "text": ", ".join(each for each in said if each),
            "distance": round(float(found.distance), 3),
            "picture": self._thumbnail(found, row),
        }

    def _thumbnail(self, found: Neighbor, row: pa.Table) -> int | None:
        """Number of a neighbor's thumbnail; None if there is no room for it."""
        place = found.shard, found.row
        if place not in self._numbers:
            number = None
            if self._bytes + TINY_BYTES <= NEIGHBOR_BYTES:
                with foreign_images():
                    (content,) = read_rows(self._pool, row)
                    made = bounded(content, TINY, TINY_BYTES)
                number = len(self.thumbnails)
                self.thumbnails.append(made.data_uri)
                self._bytes += len(made.content)
            self._numbers[place] = number
        return self._numbers[place]


def bounded(content: bytes, format_: Format, most: int) -> Thumbnail:
    """A thumbnail of at most `most` bytes: where it is larger, of a lower quality, and then of a smaller size.

    Call within `foreign_images`.
    """
    made = encode(content, format_)
    for quality in _QUALITIES:
        if len(made.content) <= most:
            return made
        made = encode(content, replace(format_, quality=quality, lossless_below=0))
    side = format_.side
    while len(made.content) > most and side > 1:
        side //= 2
        made = encode(content, replace(format_, quality=_QUALITIES[-1], lossless_below=0, side=side))
    return made


def reason(row: Mapping[str, Any], thresholds: Thresholds | None) -> str:
    """Why an image has its verdict, in sentences; empty without a detector."""
    prob = row.get("prob_synthetic")
    if prob is None or thresholds is None:
        return ""
    low, high = thresholds.real_below, thresholds.synthetic_from
    said = {
        "synthetic": f"Called synthetic, because its score of {prob:.3f} is not below {high:.3f}.",
        "real": f"Called real, because its score of {prob:.3f} is below {low:.3f}.",
        "unsure": f"Unsure, because its score of {prob:.3f} is from {low:.3f} up, but below {high:.3f}.",
    }[row["verdict"]]
    kind = {"synthetic": "to be synthetic", "camera": "a camera"}.get(row.get("declared") or "")
    return said + (f" The file declares {kind} ({row['declared_by']}): anyone can write that." if kind else "")


def _score(row: Mapping[str, Any]) -> str:
    prob = row.get("prob_synthetic")
    return "" if prob is None else f"{prob:.3f}"
