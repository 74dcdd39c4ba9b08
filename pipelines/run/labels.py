"""How often a run's labels are right, and what that allows to say; in run/labels.json.

Training measures it by labeled images that the classifier has not seen (`pipelines.run.calibration`), scoring again for
the pool: with the pool's mix of classes, and with the share of its images that seem to show none of the classes. Train,
score, report and export repeat the statements.

Every figure is about real images of the classes, and takes the labeled images of a class to be a random sample of them.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.errors import CorruptShard
from pipelines.storage.atomic import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.run.calibration import Evidence

FILE = "labels.json"
WRONG = 0.2  # share of wrong labels from which a person is warned
FAR = 0.05  # typicality up to which an image counts as far from all labeled ones
FEW = 5  # labeled images of a class, below which it is hardly learned
LISTED = 5  # classes and files in a sentence
UNMEASURED = (
    "How often the labels are right was not measured: too few labeled images of each class. Confidences are the "
    "classifier's own and may be far too high."
)


@dataclass(frozen=True, kw_only=True)
class OfClass:
    """Labels of one class. Shares are 0..1, intervals of 95 %."""

    name: str
    num_labeled: int  # labeled images that were judged
    found: float | None  # share of them that get this label; None without one
    precision: float | None  # share of the labels of this class that are right; None where no labeled image got it
    precision_interval: tuple[float, float]
    pool_share: float | None  # of the pool's real images of the classes, estimated; None before scoring


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A labeled image whose label is likely wrong."""

    file: str
    given: str
    suggested: str
    probability: float  # of the suggested class


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Contents of run/labels.json."""

    method: str  # cross-fitted or held-out
    num_labeled: int  # images that were judged by classifiers that have not seen them
    accuracy: float
    accuracy_interval: tuple[float, float]
    confidence: float  # mean of the pool's images, calibrated; of the labeled images before scoring
    raw_confidence: float  # the same, as the classifier gives it
    calibration_error_interval: tuple[float, float]  # of the calibrated confidence
    bins: tuple[tuple[float, float, int], ...]  # mean confidence, accuracy and number of labeled images
    temperature: float
    uniform: float
    classes: tuple[OfClass, ...]
    none_at_least: float | None  # share of the pool that seems to show none of the classes; None before scoring
    none_estimate: float | None  # None where none is shown
    suspects: tuple[Suspect, ...]

    @property
    def is_poor(self) -> bool:
        """Whether it cannot be ruled out that more than a fifth of the labels are wrong."""
        return self.accuracy_interval[0] < 1 - WRONG

    @property
    def brief(self) -> str:
        """The accuracy in one line."""
        low, high = self.accuracy_interval
        return f"{low:.0%} to {high:.0%} right"

    @property
    def statements(self) -> tuple[str, ...]:
        """What can be said, in sentences."""
        return tuple(sentence for sentence in (self._of_accuracy(), self._of_none(), self._of_suspects()) if sentence)

    @property
    def warning(self) -> str:
        """What a person must know before training on the labels; empty if there is nothing."""
        return " ".join(self._warnings())

    def _of_accuracy(self) -> str:
        low, high = self.accuracy_interval
        mix = ", weighted by the classes of the pool" if self.none_at_least is not None else ""
        return (
            f"Of the labels of real images of the classes {self.accuracy:.0%} are right ({low:.0%} to {high:.0%} with "
            f"95 % confidence), by {self.num_labeled} labeled images that the classifier had not seen{mix}, if these "
            "are a random sample of each class."
        )

    def _of_none(self) -> str:
        if not self.none_estimate or self.none_at_least is None:
            return ""
        if self.none_at_least < 0.005:
            return ""
        return (
            f"At least {self.none_at_least:.0%} of the images that are called real resemble none of the labeled ones "
            f"(an estimate is {self.none_estimate:.0%}). They may show none of the classes, and have wrong labels then."
        )

    def _of_suspects(self) -> str:
        if not self.suspects:
            return ""
        listed = "; ".join(f"{each.file} ({each.suggested}?)" for each in self.suspects[:LISTED])
        more = f" and {len(self.suspects) - LISTED} more" if len(self.suspects) > LISTED else ""
        return f"Labels of the labeled set that may be wrong: {listed}{more}. Look at them."

    def _warnings(self) -> Iterator[str]:
        low, high = self.accuracy_interval
        if high < 1 - WRONG:
            yield f"Labels are wrong in {1 - high:.0%} to {1 - low:.0%} of real images: do not train on them all."
        elif self.accuracy < 1 - WRONG:
            yield f"Labels are likely wrong in more than a fifth of real images ({1 - self.accuracy:.0%} is estimated)."
        elif self.is_poor:
            yield (
                f"Labels may be wrong in up to {1 - low:.0%} of real images: {self.num_labeled} labeled images do not "
                "show more."
            )
        poor = [each.name for each in self.classes if each.num_labeled >= FEW and (each.found or 0.0) < 1 - WRONG]
        if poor and len(poor) < len(self.classes):
            listed = ", ".join(poor[:LISTED]) + (", ..." if len(poor) > LISTED else "")
            yield f"Over a fifth of the images of these classes get another label: {listed}."
        few = [each for each in self.classes if each.num_labeled < FEW] if self.method == "cross-fitted" else []
        if few:
            listed = ", ".join(f"{each.name} ({each.num_labeled})" for each in few[:LISTED])
            listed += ", ..." if len(few) > LISTED else ""
            yield f"Too few labeled images to learn: {listed}. Label more of them."
        if self.none_at_least is not None and self.none_at_least > WRONG:
            yield f"At least {self.none_at_least:.0%} of the images resemble no labeled one."


def warning(found: Labels | None, has_classes: bool = True) -> str:
    """What a person must know before training on labels that were measured, or were not (None)."""
    if not has_classes:
        return ""
    return UNMEASURED if found is None else found.warning


class OfPool(NamedTuple):
    """What scoring found on images of the pool that are called real, or on a sample of them."""

    probs: "Tensor"  # (N, K) calibrated
    raw_confidence: "Tensor"  # (N,)
    typicality: "Tensor"  # (N,)


def measure(
    evidence: "Evidence", classes: Sequence[str], of_pool: OfPool | None = None, suspects: Sequence[Suspect] = ()
) -> Labels:
    """Measure the labels by the evidence of training and, after scoring, by what is known of the pool."""
    from models import calibration, estimates  # not before: whoever only reads the file needs no torch, which is slow

    labels, right, number = evidence.labels, evidence.right, len(classes)
    mix = (labels.bincount(minlength=number).double() + 1e-9) / len(labels)
    own_L = evidence.typicality_of_own
    none_at_least = none_estimate = None
    confidence, raw = evidence.probs.amax(1), evidence.logits.softmax(1).amax(1)
    shown, shown_raw = confidence, raw
    if of_pool is not None and len(of_pool.probs):
        mix = calibration.mix(of_pool.probs, evidence.probs, mix)
        shown, shown_raw = of_pool.probs.amax(1), of_pool.raw_confidence
        none_at_least = estimates.share_at_least(-of_pool.typicality, -own_L)
        near = float((of_pool.typicality > 0.5).double().mean()) / max(float((own_L > 0.5).double().mean()), 1e-9)
        none_estimate = max(none_at_least, 1 - near) if none_at_least else None
    weights = calibration.weigh(labels, mix)
    among = len(of_pool.probs) if of_pool is not None and len(of_pool.probs) else math.inf
    accuracy = calibration.share(right, weights, among)
    called = evidence.logits.argmax(1)
    of_classes = []
    for k, name in enumerate(classes):
        mine, judged = labels == k, called == k
        precision = calibration.share(right[judged], weights[judged])
        of_classes.append(
            OfClass(
                name=name,
                num_labeled=int(mine.sum()),
                found=round(float(right[mine].double().mean()), 4) if bool(mine.any()) else None,
                precision=round(precision.value, 4) if bool(judged.any()) else None,
                precision_interval=(round(precision.low, 4), round(precision.high, 4)),
                pool_share=None if none_at_least is None else round(float(mix[k]), 6),
            )
        )
    error = calibration.calibration_error_interval(confidence, right)
    fitted = evidence.calibration
    return Labels(
        method=evidence.method,
        num_labeled=len(labels),
        accuracy=round(accuracy.value, 4),
        accuracy_interval=(round(accuracy.low, 4), round(accuracy.high, 4)),
        confidence=round(float(shown.double().mean()), 4),
        raw_confidence=round(float(shown_raw.double().mean()), 4),
        calibration_error_interval=(round(error[0], 4), round(error[1], 4)),
        bins=tuple(
            (round(each.confidence, 4), round(each.accuracy, 4), each.num_images)
            for each in calibration.bins(confidence, right)
        ),
        temperature=round(fitted.temperature, 4),
        uniform=fitted.uniform,
        classes=tuple(of_classes),
        none_at_least=None if none_at_least is None else math.floor(none_at_least * 1e4) / 1e4,
        none_estimate=None if none_estimate is None else round(none_estimate, 4),
        suspects=tuple(suspects),
    )


def suspects_of(evidence: "Evidence", classes: Sequence[str], file_of: dict[str, str]) -> list[Suspect]:
    """Labeled images whose labels are likely wrong; `file_of` has the files by sha256."""
    from models import calibration

    return [
        Suspect(
            file=file_of.get(evidence.sha256[each.row], evidence.sha256[each.row]),
            given=classes[each.given],
            suggested=classes[each.suggested],
            probability=round(each.probability, 4),
        )
        for each in calibration.errors(evidence.probs, evidence.labels)
    ]


def save(run: Path, found: Labels | None) -> None:
    """Write run/labels.json, with the statements for whoever reads the file itself; None removes an earlier one."""
    if found is None:
        (run / FILE).unlink(missing_ok=True)
        return
    write_json(run / FILE, {**asdict(found), "statements": found.statements, "warning": found.warning})


def load(run: Path) -> Labels | None:
    """Read run/labels.json; None if nothing was measured. CorruptShard if it is damaged."""
    path = run / FILE
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        del values["statements"], values["warning"]
        values["classes"] = tuple(
            OfClass(**{**each, "precision_interval": tuple(each["precision_interval"])}) for each in values["classes"]
        )
        values["suspects"] = tuple(Suspect(**each) for each in values["suspects"])
        values["bins"] = tuple(tuple(each) for each in values["bins"])
        for name in ("accuracy_interval", "calibration_error_interval"):
            values[name] = tuple(values[name])
        return Labels(**values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise CorruptShard(f"{path} is damaged. Run `curate score` again.") from None
