"""How good a run's detector is, and what share of its pool is synthetic: figures, and what they allow to say.

Training measures both and writes run/quality.json; score, report and export repeat its statements.

A statement says what the labels show and no more. Two ends decide how the detector is spoken of. Where the estimate
itself is below `WEAK`, it can hardly tell the images apart. Where only the lower end of the interval is, that is not
known, and a person has to look before deleting: a wrong deletion loses images, a needless look costs a minute.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines.errors import CorruptShard
from pipelines.pool.manifest import Pool
from pipelines.run.marks import Mark
from pipelines.storage.atomic import write_json

if TYPE_CHECKING:
    from torch import Tensor

FILE = "quality.json"
WEAK = 0.75  # AUROC below which verdicts must not delete images
UNMEASURED = "How good the detector is was not measured: look at images before you delete any."
WIDE = 0.3  # interval of the AUROC from which its middle says nothing
FEWEST_FOR_BOUND = 20  # known synthetic images, for an upper bound of the share


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Contents of run/quality.json. Shares are of the pool that was trained on, 0..1; intervals are of 95 %."""

    auroc: float | None  # of the detector on this pool, estimated; None with too few labeled images
    auroc_interval: tuple[float, float] | None
    known_auroc: float | None  # of the known synthetic images alone, against labeled real ones; None without
    known_interval: tuple[float, float] | None
    num_labeled: int  # real images that the detector has not seen
    num_known: int  # synthetic images that are known
    known_by: Literal["given", "declared"] | None  # a sample of the pool's, or those that say so themselves
    share_at_least: float  # lower bound
    share_estimate: float | None  # None where the labels do not show any synthetic image
    share_at_most: float | None  # upper bound; None where none is known
    declared_share: float  # of the pool that is known to be synthetic: by the file itself, or by a person

    @property
    def is_weak(self) -> bool:
        """Whether the detector cannot be trusted to delete images, or nothing is known of it."""
        return self.auroc_interval is None or self.auroc_interval[0] < WEAK

    @property
    def statements(self) -> tuple[str, ...]:
        """What can be said, in sentences: of the detector, of known images, of the share."""
        found = (self._of_detector(), self._advice(), self._of_known(), self._of_share(), self._of_upper_bound())
        return tuple(sentence for sentence in found if sentence)

    @property
    def brief(self) -> str:
        """The detector and the share in one line."""
        told = "unknown"
        if self.auroc is not None and self.auroc_interval is not None:
            low, high = self.auroc_interval
            told = f"{low:.2f} to {high:.2f}" if high - low > WIDE else f"{self.auroc:.2f} ({low:.2f} to {high:.2f})"
        return f"AUROC {told}; at least {_floor(self.share_at_least)} of the pool is synthetic"

    @property
    def warning(self) -> str:
        """What a person must know before deleting images by the verdicts; empty if there is nothing."""
        return self._advice()

    def _of_detector(self) -> str:
        if self.auroc is None or self.auroc_interval is None:
            return (
                f"Only {self.num_labeled} labeled images are unseen by the detector, too few to say how good it is. "
                "Label more real images."
            )
        basis = f"{self.num_labeled} labeled real images"
        if self.num_known:
            kind = "known" if self.known_by == "given" else "declared"
            basis += f" and {self.num_known} {kind} synthetic ones"
        low, high = self.auroc_interval
        between = f"lies between {low:.2f} and {high:.2f} with 95 % confidence, by {basis} and a model of the scores."
        if high - low > WIDE:
            return f"The detector's AUROC on this pool {between}"
        return f"The detector's AUROC on this pool is estimated at {self.auroc:.2f}, and {between}"

    def _advice(self) -> str:
        if self.auroc is not None and self.auroc < WEAK:
            return "It can hardly tell these images apart: do not delete by it."
        if self.is_weak:
            return (
                "Whether it tells these images apart is not known: look at images before you delete any. Some 50 "
                "known synthetic images would show it."
            )
        return ""

    def _of_known(self) -> str:
        if self.known_auroc is None or self.known_interval is None:
            return ""
        low, high = self.known_interval
        which = "known" if self.known_by == "given" else "declared"
        caveat = "" if self.known_by == "given" else " They come from tools that declare it; others may differ."
        return (
            f"Of the {self.num_known} {which} synthetic images alone, the AUROC is {self.known_auroc:.2f} "
            f"({low:.2f} to {high:.2f}).{caveat}"
        )

    def _of_share(self) -> str:
        if not self.share_at_least:
            return (
                "The labels do not show that any image of the pool is synthetic. That does not make the pool clean: "
                "synthetic images that the detector does not recognize count as real here."
            )
        if self.share_at_least <= self.declared_share:
            return (
                f"At least {_floor(self.share_at_least)} of the pool is synthetic: so many images declare it or are "
                "marked. The scores do not show more."
            )
        estimate = "" if self.share_estimate is None else f"; {_percent(self.share_estimate)} is an estimate"
        return (
            f"At least {_floor(self.share_at_least)} of the pool is synthetic, with 95 % confidence if the labeled "
            f"images are a random sample of its real ones{estimate}."
        )

    def _of_upper_bound(self) -> str:
        if self.share_at_most is None:
            return "No upper bound of the share is known."
        return (
            f"At most {math.ceil(100 * self.share_at_most)} % is synthetic, if the known synthetic images are a random "
            "sample of the pool's."
        )


def _percent(share: float) -> str:
    """A share with one decimal below 10 %, without above."""
    return f"{100 * share:.{1 if share < 0.1 else 0}f} %"


def _floor(share: float) -> str:
    """As `_percent`, rounded down: a lower bound must not grow by rounding."""
    step = 1000 if share < 0.1 else 100
    return _percent(math.floor(share * step + 1e-9) / step)


def warning(found: Quality | None) -> str:
    """What a person must know before deleting images by a detector that was measured, or was not (None)."""
    return UNMEASURED if found is None else found.warning


def measure(
    scores_N: "Tensor",
    scores_L: "Tensor",
    scores_K: "Tensor | None" = None,
    *,
    known_by: Literal["given", "declared"] = "given",
    declared_share: float = 0.0,
    cross_fitted: bool = False,
) -> Quality:
    """Measure a detector by its scores (float, higher is more synthetic), each by models that had not seen the image.

    `scores_N` are of the pool, `scores_L` of labeled real images, `scores_K` of known synthetic ones: a sample
    ("given") or those that say so themselves ("declared"). `declared_share` of the pool is known to be synthetic.
    `cross_fitted` scores are those of models that were fitted to other parts of the same images.
    """
    from models import estimates  # imported here: whoever only reads the file needs no torch, which takes seconds

    found = estimates.fit(scores_N, scores_L, scores_K, representative=known_by == "given")
    num_known = 0 if scores_K is None else len(scores_K)
    has_known = scores_K is not None and num_known >= estimates.FEWEST_KNOWN and len(scores_L) > 1
    known = estimates.auroc(scores_K, scores_L) if has_known and scores_K is not None else None
    shown = estimates.share_at_least(scores_N, scores_L, spread=estimates.CROSS_FITTED if cross_fitted else 1.0)
    share_at_least = max(shown, declared_share)
    bounded = found is not None and known_by == "given" and num_known >= FEWEST_FOR_BOUND and found.auroc.low >= WEAK
    return Quality(
        auroc=None if found is None else round(found.auroc.value, 3),
        auroc_interval=None if found is None else (round(found.auroc.low, 3), round(found.auroc.high, 3)),
        known_auroc=None if known is None else round(known.value, 3),
        known_interval=None if known is None else (round(known.low, 3), round(known.high, 3)),
        num_labeled=len(scores_L),
        num_known=num_known if known is not None else 0,
        known_by=known_by if known is not None else None,
        share_at_least=share_at_least,
        share_estimate=None if found is None or not shown else max(round(found.share.value, 4), share_at_least),
        share_at_most=max(round(found.share.high, 4), share_at_least) if found is not None and bounded else None,
        declared_share=declared_share,
    )


def declared_share(pool: Pool, marks: Mapping[str, Mark]) -> float:
    """Share of a pool that is known to be synthetic: by a person's mark, or else by what the file declares."""
    count = 0
    for table in pool.tables(["sha256", "declared"]):
        for sha256, declared in zip(table["sha256"].to_pylist(), table["declared"].to_pylist(), strict=True):
            verdict = marks[sha256].verdict if sha256 in marks else None
            count += verdict == "synthetic" or (declared == "synthetic" and verdict != "real")
    return count / max(1, pool.num_images)


def save(run: Path, quality: Quality) -> None:
    """Write run/quality.json, with the statements for whoever reads the file itself."""
    write_json(run / FILE, {**asdict(quality), "statements": quality.statements})


def load(run: Path) -> Quality | None:
    """Read run/quality.json; None if there is none, as where no detector was trained. CorruptShard if it is damaged."""
    path = run / FILE
    try:
        values = json.loads(path.read_bytes())
        named = {field.name: values[field.name] for field in fields(Quality)}
        for name in ("auroc_interval", "known_interval"):
            named[name] = None if named[name] is None else tuple(map(float, named[name]))
        return Quality(**named)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise CorruptShard(f"{path} is damaged. Train again.") from None
