"""The figures of the report: histograms of scores and training curves."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup

from pipelines.report import charts
from pipelines.report.confounds import Audit
from pipelines.report.survey import BINS, Survey
from pipelines.run import verdicts
from pipelines.run.labels import Labels
from pipelines.run.scores import ScoredPool

CURVE_POINTS = 300
VERDICTS = (("real", "called real"), ("unsure", "unsure"), ("synthetic", "called synthetic"))  # CSS class and name

# Name, title, curves (key in metrics.jsonl -> name) and upper end of the y axis of each chart of the training.
_CHARTS: tuple[tuple[str, str, dict[str, str], float | None], ...] = (
    ("classifier", "Loss of the classifier", {
        "sup_real": "labeled, real head", "self_real": "pseudo-labels, real head",
        "sup_dummy": "labeled, dummy head", "self_dummy": "pseudo-labels, dummy head",
    }, None),
    ("detector", "Loss of the detector", {"detector_sup": "real against queue", "detector_cons": "consistency"}, None),
    ("confidence", "Pseudo-labels", {
        "confidence": "mean confidence", "confident_share": "share above the confidence threshold",
    }, 1.0),
    ("queue", "Synthetic queue", {
        "queue_score": "mean score in the queue", "queue_filled": "share of the queue filled",
        "dummy_share": "share of the pool routed to the dummy head",
    }, 1.0),
    ("known", "Against known labels", {"accuracy": "accuracy, validation", "detector_auroc": "AUROC, truth"}, 1.0),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with its legend: (CSS class, name)."""

    title: str
    drawing: Markup
    legend: list[tuple[str, str]] = field(default_factory=list)
    text: str = ""


def histograms(scored: ScoredPool | None, found: Survey, audit: Audit | None) -> list[Figure]:
    """Histograms of the scores, with the labeled images as an outline, and of the classifier's confidence."""
    drawn: list[Figure] = []
    if scored and found.scores is not None:
        overlay, text, thresholds = None, "", verdicts.load(scored.folder)
        if audit and audit.labeled_probs:
            overlay = np.histogram(audit.labeled_probs, bins=BINS, range=(0.0, 1.0))[0]
            above = np.mean(np.asarray(audit.labeled_probs) >= thresholds.synthetic_from)
            text = (
                f"The outline shows {len(audit.labeled_probs):,} labeled images, all real; {above:.1%} of them are "
                "called synthetic. The detector was trained on them, so other real images will score higher."
            )
        drawing = charts.histogram(
            "scores", "Scores of the pool",
            f"Histogram of prob_synthetic; {found.num_synthetic / found.num_images:.1%} of the images are called "
            f"synthetic, and {found.num_unsure / found.num_images:.1%} are unsure.",
            found.scores, (thresholds.real_below, thresholds.synthetic_from), overlay,
        )  # fmt: skip
        legend = list(VERDICTS)
        legend += [("outline", "labeled images")] if overlay is not None else []
        drawn.append(Figure(title="How synthetic the images look", drawing=drawing, legend=legend, text=text))
    if found.confidences is not None:
        drawing = charts.histogram(
            "confidences", "Confidence of the pseudo-labels",
            "Histogram of the probability that the classifier gives its pseudo-label.", found.confidences,
        )  # fmt: skip
        drawn.append(Figure(title="How certain the classifier is", drawing=drawing))
    return drawn


def reliability(found: Labels | None) -> list[Figure]:
    """How often labels are right at each confidence; nothing where it was not measured."""
    if found is None:
        return []
    low, high = found.calibration_error_interval
    drawing = charts.reliability(
        "reliability", "Accuracy by confidence",
        "; ".join(f"{right:.0%} right at a confidence of {sure:.2f}" for sure, right, _ in found.bins),
        found.bins,
    )  # fmt: skip
    text = (
        f"By {found.num_labeled:,} labeled images that the classifier had not seen. The expected calibration error is "
        f"{low:.2f} to {high:.2f} (95 % confidence). Before calibration the mean confidence was "
        f"{found.raw_confidence:.2f}, now it is {found.confidence:.2f}."
    )
    return [Figure(title="Is the confidence true?", drawing=drawing, text=text)]


def training_curves(run: Path, classes: Sequence[str]) -> list[Figure]:
    """Training curves from metrics.jsonl; none if it does not exist."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    steps: list[dict[str, float]] = []
    for line in lines:
        try:
            steps.append(json.loads(line))
        except ValueError:
            break  # cut off by a kill
    shares = {f"pseudo_label_share/{k}": name for k, name in enumerate(classes[: charts.COLORS])}
    title = "Share of the pseudo-labels by class"
    title += f" (the first {charts.COLORS} of {len(classes)})" if len(classes) > charts.COLORS else ""
    drawn: list[Figure] = []
    for name, what, names, top in (*_CHARTS, ("shares", title, shares, None)):
        apart = 1 if name == "shares" else 3  # in the palette: few curves get colors that differ more
        found = [(label, [(step["step"], step[key]) for step in steps if key in step]) for key, label in names.items()]
        series = [
            charts.Series(label, f"c{i * apart}", _thinned(points)) for i, (label, points) in enumerate(found) if points
        ]
        if series:
            last = ", ".join(f"{each.name} {each.points[-1][1]:.3g}" for each in series)
            drawing = charts.curves(f"curve-{name}", what, f"Over the training steps; at the end: {last}.", series, top)
            legend = [(each.color, each.name) for each in series]
            drawn.append(Figure(title=what, drawing=drawing, legend=legend))
    return drawn


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most CURVE_POINTS points: means of successive points."""
    if len(points) <= CURVE_POINTS:
        return list(points)
    parts = np.array_split(np.asarray(points, dtype=float), CURVE_POINTS)
    return [(float(part[-1, 0]), float(part[:, 1].mean())) for part in parts]
