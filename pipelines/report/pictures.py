"""The pictures of the report: thumbnails of the images with the highest and lowest scores, and of each class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.images.check import foreign_images
from pipelines.images.thumbnails import Format, encode
from pipelines.pool.manifest import Pool
from pipelines.report.survey import Survey, read_rows
from pipelines.run.scores import ScoredPool

GALLERY = 24  # pictures of each gallery
CLASSES_SHOWN = 20  # classes with pictures
CLASS_PICTURES = 6  # of each verdict in a class
THUMBNAIL = Format(side=112, codec="WEBP", quality=75, lossless_below=49, decoded_side=224)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A thumbnail and its caption."""

    uri: str
    small: bool  # shown by the pixel
    row: Mapping[str, Any]
    text: str  # the crawl's caption


def galleries(pool: Pool, scored: ScoredPool | None, found: Survey) -> list[tuple[str, str, list[Picture]]]:
    """(title, explanation, pictures) of each gallery."""
    if scored is None:
        return [("Some images", "A random sample.", _pictures(pool, found.sample.slice(0, GALLERY)))]
    shown = [
        ("Most synthetic", "The highest scores. Do they share something that is not in the pictures?",
         found.most_synthetic),
        ("Least certain", "Nearest to the threshold: their verdicts are guesses." if found.scores is not None
         else "The lowest confidence.", found.least_sure),
        ("Most real", "The lowest scores.", found.most_real),
    ]  # fmt: skip
    rows = [(title, text, best.rows()) for title, text, best in shown]
    return [(title, text, _pictures(pool, part)) for title, text, part in rows if part is not None]


def by_class(pool: Pool, found: Survey) -> list[tuple[str, list[Picture], list[Picture]]]:
    """(class, called real, called synthetic) of the largest classes."""
    largest = sorted(found.classes, key=lambda name: -found.classes[name].num_images)[:CLASSES_SHOWN]
    return [
        (name, _pictures(pool, found.real_of_class.rows(name)), _pictures(pool, found.synthetic_of_class.rows(name)))
        for name in largest
        if found.classes[name].num_images
    ]


def _pictures(pool: Pool, rows: pa.Table | None) -> list[Picture]:
    if rows is None:
        return []
    pictures = []
    with foreign_images():
        for row, (content, sidecars) in zip(rows.to_pylist(), read_rows(pool, rows), strict=True):
            thumbnail = encode(content, THUMBNAIL)
            text = sidecars.get("txt", b"").decode("utf-8", "backslashreplace").strip()
            pictures.append(Picture(uri=thumbnail.data_uri, small=thumbnail.lossless, row=row, text=text))

    return pictures
