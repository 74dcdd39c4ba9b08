"""The figures of the report: histograms of scores, training curves, and maps of the embeddings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from markupsafe import Markup

from pipelines.distribution import pip_install
from pipelines.errors import BadInput
from pipelines.progress import OnTick, Tick
from pipelines.report import charts
from pipelines.report.confounds import Audit
from pipelines.report.survey import BINS, Survey
from pipelines.run.labels import Labels
from pipelines.run.scores import ScoredPool

MAPPED = 3_000  # images on the map
CURVE_POINTS = 300

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
        overlay, text = None, ""
        if audit and audit.labeled_probs:
            overlay = np.histogram(audit.labeled_probs, bins=BINS, range=(0.0, 1.0))[0]
            above = np.mean(np.asarray(audit.labeled_probs) >= scored.threshold)
            text = (
                f"The outline shows {len(audit.labeled_probs):,} labeled images, all real; {above:.1%} of them are "
                "called synthetic. The detector was trained on them, so other real images will score higher."
            )
        drawing = charts.histogram(
            "scores", "Scores of the pool",
            f"Histogram of prob_synthetic; {found.num_synthetic / found.num_images:.1%} are above the threshold.",
            found.scores, scored.threshold, overlay,
        )  # fmt: skip
        legend = [("real", "called real"), ("synthetic", "called synthetic")]
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


def maps(kind: Literal["auto", "tsne", "pca"], scored: ScoredPool, found: Survey, on_tick: OnTick) -> list[Figure]:
    """Maps of a sample's embeddings, colored by verdict and by class; none for fewer than three images."""
    rows = found.sample.slice(0, MAPPED)
    if rows.num_rows < 3:
        return []
    on_tick(Tick(done=0, total=rows.num_rows, unit="images mapped"))
    points_N2, how = project(_embeddings(scored, rows), kind)
    on_tick(Tick(done=rows.num_rows, total=rows.num_rows, unit="images mapped"))
    drawn: list[Figure] = []
    if found.scores is not None:
        synthetic = rows["synthetic"].to_numpy()
        groups = {"real": ~synthetic, "synthetic": synthetic}
        about = f"{how}. Of {rows.num_rows:,} images {synthetic.mean():.1%} are called synthetic."
        legend = [("real", "called real"), ("synthetic", "called synthetic")]
        drawing = charts.points("map-verdict", "Embeddings by verdict", about, points_N2, groups)
        drawn.append(Figure(title="By verdict", drawing=drawing, legend=legend, text=how))
    if not found.classes:
        return drawn
    labels = np.asarray(rows["pseudo_label"].to_pylist(), dtype=object)
    largest = sorted(found.classes, key=lambda name: -found.classes[name].num_images)
    largest = sorted(largest[: charts.COLORS], key=list(found.classes).index)
    groups = {"rest": ~np.isin(labels, largest)} if len(found.classes) > charts.COLORS else {}
    groups |= {f"c{i}": labels == name for i, name in enumerate(largest)}
    legend = [(f"c{i}", name) for i, name in enumerate(largest)] + [("rest", "other classes")] * ("rest" in groups)
    about = f"{how}. Colored by pseudo-label."
    drawing = charts.points("map-class", "Embeddings by class", about, points_N2, groups)
    drawn.append(Figure(title="By class", drawing=drawing, legend=legend, text=how))
    return drawn


def _embeddings(scored: ScoredPool, rows: pa.Table) -> npt.NDArray[np.float32]:
    """Embeddings (N, D) of rows of the sample, at unit length."""
    shards, numbers = np.asarray(rows["shard"].to_pylist()), rows["row"].to_numpy()
    found: npt.NDArray[np.float32] | None = None
    for shard in np.unique(shards).tolist():
        inside = np.flatnonzero(shards == shard)
        part = scored.embeddings(shard)[numbers[inside]].astype(np.float32)
        if found is None:
            found = np.empty((len(shards), part.shape[1]), dtype=np.float32)
        found[inside] = part
    assert found is not None
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))


def project(
    embeddings_ND: npt.NDArray[np.float32], kind: Literal["auto", "tsne", "pca"]
) -> tuple[npt.NDArray[np.floating[Any]], str]:
    """Coordinates (N, 2) on a map, and a sentence on how it was made.

    Raises BadInput if `kind` is "tsne" and openTSNE is not installed; "auto" then uses PCA.
    """
    has_tsne = find_spec("openTSNE") is not None
    if kind == "tsne" and not has_tsne:
        raise BadInput(
            f"--map tsne: openTSNE is not installed. Install it with `{pip_install('viz')}`, or use --map pca."
        )
    if kind == "pca" or not has_tsne:
        centered = embeddings_ND - embeddings_ND.mean(0)
        values, vectors = np.linalg.eigh(centered.T @ centered)
        share = float(values[-2:].sum() / max(values.sum(), 1e-12))
        how = f"The first two principal components, with {share:.0%} of the variance"
        return centered @ vectors[:, :-3:-1], how if kind == "pca" else f"{how}; {pip_install('viz')} for t-SNE"
    from openTSNE import TSNE

    perplexity = min(30.0, (len(embeddings_ND) - 1) / 3)
    # On a busy machine, several threads that wait for each other are many times slower than one.
    tsne = TSNE(perplexity=perplexity, initialization="pca", neighbors="exact", n_jobs=1, random_state=0)
    return (
        np.asarray(tsne.fit(embeddings_ND)),
        f"t-SNE with perplexity {perplexity:g}: neighborhoods are meaningful, distances are not",
    )
