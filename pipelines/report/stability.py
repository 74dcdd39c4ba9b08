"""Changes images in ways that nobody sees, scores them again, and counts the verdicts that flip.

A verdict that changes when the same picture is saved once more is worth little.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.images.appearance import as_seen
from pipelines.images.check import foreign_images
from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick, Tick
from pipelines.report.survey import read_rows
from pipelines.run.evaluation import wilson

if TYPE_CHECKING:
    from pipelines.run.scorer import Scorer

_BATCH = 64  # images scored at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Stability:
    """The effect of one invisible change on the verdicts."""

    change: str
    num_images: int
    flipped: float  # share of the verdicts
    flipped_interval: tuple[float, float]  # 95 % confidence, of all images like those of the pool
    mean_change: float  # of prob_synthetic, absolute


def measure(pool: Pool, rows: pa.Table, scorer: "Scorer", on_tick: OnTick) -> tuple[Stability, ...]:
    """Apply each change to the images of `rows`, rows of `pipelines.report.survey` with scores of a detector.

    A panel sees pixels alone. So a copy without loss, whose pixels are the same, is not made for it.
    """
    changes: dict[str, Callable[[Image.Image], bytes]] = {
        "saved again without loss": _as_png,
        "saved as JPEG of quality 90": _as_jpeg,
        "cropped by one pixel": _cropped,
    }
    if scorer.model.frozen is not None:
        del changes["saved again without loss"]
    probs, verdict = rows["prob_synthetic"].to_numpy(), rows["synthetic"].to_numpy()
    flips, moves, done = dict.fromkeys(changes, 0), dict.fromkeys(changes, 0.0), 0
    for start in range(0, rows.num_rows, _BATCH):
        part = slice(start, start + _BATCH)
        pictures = []
        with foreign_images():
            for content in read_rows(pool, rows.slice(start, _BATCH)):
                pictures.append(as_seen(content))
        for name, change in changes.items():
            changed = scorer.prob_synthetic([change(picture) for picture in pictures])
            flips[name] += int(((changed >= scorer.thresholds.synthetic_from) != verdict[part]).sum())
            moves[name] += float(np.abs(changed - probs[part]).sum())
        done += len(pictures)
        on_tick(Tick(done=done, total=rows.num_rows, unit="images changed"))
    return tuple(
        Stability(
            change=name,
            num_images=done,
            flipped=round(flips[name] / done, 4),
            flipped_interval=wilson(flips[name], done),
            mean_change=round(moves[name] / done, 4),
        )
        for name in changes
    )


def _as_png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _as_jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90)
    return out.getvalue()


def _cropped(picture: Image.Image) -> bytes:
    return _as_png(picture.crop((1, 1, max(picture.width, 2), max(picture.height, 2))))
