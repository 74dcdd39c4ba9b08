"""Report: one HTML page about a pool, its verdicts and what they rest on, that needs nothing beside it.

In: a pool and, as far as they are there, a run with its model, scores, metrics and labeled set. Out: `config.out`.

Everything on the page is bounded: counts, a sample and a fixed number of pictures. So a pool of a million images makes
no larger page than one of thirty thousand, and memory stays flat. All that comes from the crawl is escaped, pictures
are encoded anew, and a content security policy lets no script run but the page's own.
"""

import base64
import hashlib
import io
import json
import os
import shlex
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files as resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageOps

from pipelines.errors import BadInput, CorruptShard
from pipelines.images.check import foreign_images
from pipelines.images.rejects import Reason
from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick, Tick, ignore
from pipelines.report import charts, confounds
from pipelines.report.confounds import Audit
from pipelines.report.statistics import BINS, Survey, survey
from pipelines.run.scores import ScoredPool
from pipelines.storage import locations
from pipelines.storage.atomic import replacing
from pipelines.storage.locations import Location

if TYPE_CHECKING:
    from pipelines.run.scorer import Scorer

from pipelines.report.config import ReportConfig, Summary

SAMPLE = 20_000  # images that the audit asks about
MAPPED = 3_000  # images on the map
GALLERY = 24  # pictures in each
CLASSES_SHOWN = 20  # with pictures
CLASS_PICTURES = 6  # of each verdict
CLASSES_LISTED = 500  # in the table
CURVE_POINTS = 300
THUMBNAIL = 112  # pixels of the longer side
PIXELS = 48  # up to here pictures are kept as they are, to be looked at by the pixel
TEXT = 160  # characters of a file's name or a caption
_ITEMS = 20  # of a list in a configuration

_CHARTS: tuple[tuple[str, str, dict[str, str], float | None], ...] = (
    ("classifier", "Loss of the classifier", {
        "sup_real": "labeled, real head", "self_real": "pseudo-labels, real head",
        "sup_dummy": "labeled, dummy head", "self_dummy": "pseudo-labels, dummy head",
    }, None),
    ("detector", "Loss of the detector", {"detector_sup": "real against queue", "detector_cons": "consistency"}, None),
    ("confidence", "Pseudo-labels", {"confidence": "mean confidence", "confident_share": "share that teaches"}, 1.0),
    ("queue", "Synthetic queue", {
        "queue_score": "mean score in the queue", "queue_filled": "share of its places filled",
        "dummy_share": "share of the pool sent to the dummy head",
    }, 1.0),
    ("known", "Against what is known", {"accuracy": "accuracy, validation", "detector_auroc": "AUROC, truth"}, 1.0),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A thumbnail and its caption."""

    uri: str
    small: bool  # shown by the pixel
    row: Mapping[str, Any]
    text: str  # the crawl's caption


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing with its legend: (CSS class, name)."""

    title: str
    drawing: Markup
    legend: list[tuple[str, str]] = field(default_factory=list)
    text: str = ""


def run(config: ReportConfig, on_tick: OnTick = ignore) -> Summary:
    """Write the page.

    Raises MissingArtifact without a pool, BadInput for a --labeled or an --out that cannot be used, Incompatible for
    scores of another model than the run's. Without scores the page holds what the pool alone tells.
    """
    started = time.monotonic()
    pool = Pool.open(config.pool)
    beside = ScoredPool(pool, config.run)
    num_unscored = sum(beside.num_rows(shard) for shard in beside.unscored)
    scored = beside if num_unscored < pool.num_images else None
    beside.check()
    paths, note = _labeled_files(config) if scored else (None, "")
    scorer = _scorer(scored, config.device) if scored else None
    found = survey(
        pool, scored, scored.classes if scored else (),
        sample=SAMPLE, gallery=GALLERY, per_class=CLASS_PICTURES, on_tick=on_tick,
    )  # fmt: skip
    audit = confounds.audit(pool, found.sample, paths, scorer, on_tick) if scored else None
    following = _next(config, scored is not None)
    page = _render(config, pool, scored, found, audit, num_unscored, note, following, on_tick)
    out = config.out or config.run / "report.html"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise BadInput(f"--out {out}: cannot be written ({error.strerror}); name another file.") from None
    return Summary(
        out=str(out),
        num_bytes=out.stat().st_size,
        seconds=time.monotonic() - started,
        num_images=pool.num_images,
        num_rejected=found.num_rejected,
        num_unscored=num_unscored,
        synthetic_share=found.num_synthetic / found.num_images if found.scores is not None else None,
        audit=audit,
        next=following,
    )


def _scorer(scored: ScoredPool, device: Literal["auto", "cuda", "cpu"]) -> "Scorer | None":
    """The run's model; None without a detector."""
    from pipelines.run.scorer import Scorer  # only here: a pool without scores needs no model, and torch takes seconds

    scorer = Scorer.load(scored.run, device)
    return scorer if scorer.model.config.has_detector else None


def _labeled_files(config: ReportConfig) -> tuple[list[Path] | None, str]:
    """Files of the labeled set, some of them where it is large; None, and why, where it is gone."""
    from pipelines.pool import labeled  # only here, as above

    source = config.labeled
    if source is None:
        known = _json(config.run / "run.json").get("config", {}).get("labeled")
        if known is None:
            return None, f"{config.run}/run.json does not say where the labeled set lies; give --labeled SEED."
        source = Path(known)
    try:
        paths = [path for path, _ in labeled.files(source)]
    except BadInput as error:
        if config.labeled is not None:
            raise
        return None, f"The labeled set is not where training read it, so nothing is compared with it ({error})"
    # By a hash of the name, so that all classes are among the first.
    return sorted(paths, key=lambda path: (zlib.crc32(os.fsencode(path.name)), path))[: confounds.LABELED], ""


def _next(config: ReportConfig, has_scores: bool) -> str:
    places = f"--pool {config.pool} --run {config.run}"
    if has_scores:
        return f"curate inspect KEY {places}, or curate export --out clean/ {places}"
    if (config.run / "model" / "config.json").exists():
        return f"curate score {places}"
    return f"curate train --labeled SEED {places}, then curate score {places}"


def _json(path: Location) -> dict[str, Any]:
    """A JSON object of ours, empty where there is none."""
    try:
        values = json.loads(locations.read(path))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise CorruptShard(f"{path}: is not JSON; remove it, and run the command again that writes it.") from None
    return values if isinstance(values, dict) else {}


# The page


def _render(
    config: ReportConfig,
    pool: Pool,
    scored: ScoredPool | None,
    found: Survey,
    audit: Audit | None,
    num_unscored: int,
    note: str,
    following: str,
    on_tick: OnTick,
) -> str:
    environment = Environment(
        loader=PackageLoader("pipelines"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": _number, "percent": _percent, "short": _shortened}
    environment.globals["bar"] = charts.bar
    templates = resources("pipelines").joinpath("templates")
    style, script = (templates.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return environment.get_template("report.html.j2").render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        config=config,
        version=version("curate"),
        now=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        found=found,
        num_images=pool.num_images,
        num_unscored=num_unscored,
        num_shards=len(pool.shards),
        reasons={reason.value: reason.meaning for reason in Reason},
        classes=sorted(found.classes.items(), key=lambda item: -item[1].num_images),
        listed=CLASSES_LISTED,
        threshold=scored.threshold if scored and found.scores is not None else None,
        estimate=scored.model if scored and scored.model.get("estimated_interval") else None,
        histograms=_histograms(scored, found, audit),
        galleries=_galleries(pool, scored, found),
        thumbnail=THUMBNAIL,
        by_class=_by_class(pool, found) if scored else [],
        maps=_maps(config, scored, found, on_tick) if scored else [],
        curves=_curves(config.run, scored.classes if scored else ()),
        alarms=_json(config.run / "run.json").get("summary", {}).get("alarms", []) if scored else [],
        audit=audit,
        limits=confounds,
        note=note,
        stages=_stages(config),
        next=following,
    )


def _hash(text: str) -> str:
    """What a content security policy calls a script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}" if value < 0.9995 or value > 1 else "100%"


def _shortened(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[:TEXT]}…"


# Charts


def _histograms(scored: ScoredPool | None, found: Survey, audit: Audit | None) -> list[Chart]:
    drawn: list[Chart] = []
    if scored and found.scores is not None:
        overlay, text = None, ""
        if audit and audit.labeled_probs:
            overlay = np.histogram(audit.labeled_probs, bins=BINS, range=(0.0, 1.0))[0]
            above = np.mean(np.asarray(audit.labeled_probs) >= scored.threshold)
            text = (
                f"The outline is that of {len(audit.labeled_probs):,} labeled images, all real; {above:.1%} of them "
                "are called synthetic. The detector was trained on them, so other real images will score higher."
            )
        drawing = charts.histogram(
            "scores", "Scores of the pool",
            f"Histogram of prob_synthetic; {found.num_synthetic / found.num_images:.1%} lie above the threshold.",
            found.scores, scored.threshold, overlay,
        )  # fmt: skip
        legend = [("real", "called real"), ("synthetic", "called synthetic")]
        legend += [("outline", "labeled images")] if overlay is not None else []
        drawn.append(Chart(title="How synthetic the images look", drawing=drawing, legend=legend, text=text))
    if found.confidences is not None:
        drawing = charts.histogram(
            "confidences", "Confidence of the pseudo-labels",
            "Histogram of the probability that the classifier gives its own label.", found.confidences,
        )  # fmt: skip
        drawn.append(Chart(title="How sure the classifier is of its labels", drawing=drawing))
    return drawn


def _curves(run: Path, classes: Sequence[str]) -> list[Chart]:
    """Training curves from metrics.jsonl; none where it is not there."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    steps: list[dict[str, float]] = []
    for line in lines:
        try:
            steps.append(json.loads(line))
        except ValueError:
            break  # cut by a kill
    shares = {f"pseudo_label_share/{k}": name for k, name in enumerate(classes[: charts.COLORS])}
    title = "Share of the pseudo-labels by class"
    title += f" (the first {charts.COLORS} of {len(classes)})" if len(classes) > charts.COLORS else ""
    drawn: list[Chart] = []
    for name, what, names, top in (*_CHARTS, ("shares", title, shares, None)):
        apart = 1 if name == "shares" else 3  # in the palette: the fewer the curves, the less alike their colors
        found = [(label, [(step["step"], step[key]) for step in steps if key in step]) for key, label in names.items()]
        series = [
            charts.Series(label, f"c{i * apart}", _thinned(points)) for i, (label, points) in enumerate(found) if points
        ]
        if series:
            last = ", ".join(f"{each.name} {each.points[-1][1]:.3g}" for each in series)
            drawing = charts.curves(f"curve-{name}", what, f"Over the training steps; at the end: {last}.", series, top)
            legend = [(each.color, each.name) for each in series]
            drawn.append(Chart(title=what, drawing=drawing, legend=legend))
    return drawn


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most CURVE_POINTS points: means of neighbors."""
    if len(points) <= CURVE_POINTS:
        return list(points)
    parts = np.array_split(np.asarray(points, dtype=float), CURVE_POINTS)
    return [(float(part[-1, 0]), float(part[:, 1].mean())) for part in parts]


def _maps(config: ReportConfig, scored: ScoredPool, found: Survey, on_tick: OnTick) -> list[Chart]:
    rows = found.sample.slice(0, MAPPED)
    if rows.num_rows < 3:
        return []
    on_tick(Tick(done=0, total=rows.num_rows, unit="images mapped"))
    places, how = project(_embeddings(scored, rows), config.map)
    on_tick(Tick(done=rows.num_rows, total=rows.num_rows, unit="images mapped"))
    drawn: list[Chart] = []
    if found.scores is not None:
        synthetic = rows["synthetic"].to_numpy()
        groups = {"real": ~synthetic, "synthetic": synthetic}
        about = f"{how}. Of {rows.num_rows:,} images {synthetic.mean():.1%} are called synthetic."
        legend = [("real", "called real"), ("synthetic", "called synthetic")]
        drawing = charts.points("map-verdict", "Embeddings by verdict", about, places, groups)
        drawn.append(Chart(title="By verdict", drawing=drawing, legend=legend, text=how))
    labels = np.asarray(rows["pseudo_label"].to_pylist(), dtype=object)
    largest = sorted(found.classes, key=lambda name: -found.classes[name].num_images)
    largest = sorted(largest[: charts.COLORS], key=list(found.classes).index)
    groups = {"rest": ~np.isin(labels, largest)} if len(found.classes) > charts.COLORS else {}
    groups |= {f"c{i}": labels == name for i, name in enumerate(largest)}
    legend = [(f"c{i}", name) for i, name in enumerate(largest)] + [("rest", "other classes")] * ("rest" in groups)
    about = f"{how}. Colored by pseudo-label."
    drawing = charts.points("map-class", "Embeddings by class", about, places, groups)
    drawn.append(Chart(title="By class", drawing=drawing, legend=legend, text=how))
    return drawn


def _embeddings(scored: ScoredPool, rows: pa.Table) -> npt.NDArray[np.float32]:
    """Embeddings (N, D) of rows of the sample, of length 1."""
    shards, places = np.asarray(rows["shard"].to_pylist()), rows["row"].to_numpy()
    found: npt.NDArray[np.float32] | None = None
    for shard in np.unique(shards).tolist():
        inside = np.flatnonzero(shards == shard)
        part = scored.embeddings(shard)[places[inside]].astype(np.float32)
        if found is None:
            found = np.empty((len(shards), part.shape[1]), dtype=np.float32)
        found[inside] = part
    assert found is not None
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))


def project(
    embeddings_ND: npt.NDArray[np.float32], kind: Literal["auto", "tsne", "pca"]
) -> tuple[npt.NDArray[np.floating[Any]], str]:
    """Places (N, 2) on a map and how it was made; BadInput where t-SNE is asked for and openTSNE is not there."""
    has_tsne = find_spec("openTSNE") is not None
    if kind == "tsne" and not has_tsne:
        raise BadInput("--map tsne: openTSNE is not installed; `pip install 'curate[viz]'`, or use --map pca.")
    if kind == "pca" or not has_tsne:
        centered = embeddings_ND - embeddings_ND.mean(0)
        values, vectors = np.linalg.eigh(centered.T @ centered)
        share = float(values[-2:].sum() / max(values.sum(), 1e-12))
        how = f"The first two principal components, which hold {share:.0%} of the variance"
        return centered @ vectors[:, :-3:-1], how if kind == "pca" else f"{how}; curate[viz] brings t-SNE"
    from openTSNE import TSNE

    perplexity = min(30.0, (len(embeddings_ND) - 1) / 3)
    # One thread: several that wait for each other beside busy neighbors are many times slower.
    tsne = TSNE(perplexity=perplexity, initialization="pca", neighbors="exact", n_jobs=1, random_state=0)
    places = tsne.fit(embeddings_ND)
    return np.asarray(places), f"t-SNE of perplexity {perplexity:g}: neighbors mean something, distances do not"


# Pictures


def _galleries(pool: Pool, scored: ScoredPool | None, found: Survey) -> list[tuple[str, str, list[Picture]]]:
    """(title, what it shows, pictures)"""
    if scored is None:
        return [("Some images", "A random sample.", _pictures(pool, found.sample.slice(0, GALLERY)))]
    shown = [
        ("Most synthetic", "The highest scores: is there something that they share and that is not in the pictures?",
         found.most_synthetic),
        ("Least sure", "Nearest to the threshold: verdicts on these are guesses." if found.scores is not None
         else "The lowest confidence.", found.least_sure),
        ("Most real", "The lowest scores.", found.most_real),
    ]  # fmt: skip
    rows = [(title, text, best.rows()) for title, text, best in shown]
    return [(title, text, _pictures(pool, part)) for title, text, part in rows if part is not None]


def _by_class(pool: Pool, found: Survey) -> list[tuple[str, list[Picture], list[Picture]]]:
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
        for row, (content, sidecars) in zip(rows.to_pylist(), confounds.read_rows(pool, rows), strict=True):
            uri, small = _thumbnail(content)
            text = sidecars.get("txt", b"").decode("utf-8", "backslashreplace").strip()
            pictures.append(Picture(uri=uri, small=small, row=row, text=text))
    return pictures


def _thumbnail(content: bytes) -> tuple[str, bool]:
    """A data URI, encoded anew: nothing of a foreign file but its pixels gets into the page; and if it is small."""
    with Image.open(io.BytesIO(content)) as opened:
        opened.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    small = max(picture.size) <= PIXELS
    out = io.BytesIO()
    if small:
        picture.save(out, "WEBP", lossless=True)
    else:
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        picture.save(out, "WEBP", quality=75)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}", small


# How it was made


def _stages(config: ReportConfig) -> list[dict[str, Any]]:
    """Of each stage that left a record: its command, the configuration that repeats it, versions, and when."""
    stages = []
    for number, ingest in enumerate(_json(config.pool / "run.json").get("ingests", [])[-10:], 1):
        sources = ingest["config"]["sources"]
        options = {name: value for name, value in ingest["config"].items() if name != "sources"}
        more = f" ({len(sources) - _ITEMS} more)" if len(sources) > _ITEMS else ""
        stages.append(
            {
                "title": "Ingest",
                "command": f"curate ingest {shlex.join(sources[:_ITEMS])}{more} --config ingest-{number}.toml",
                "file": f"ingest-{number}.toml",
                "toml": toml(options),
                "versions": ingest["versions"],
                "facts": {"finished": ingest["finished_at"], "digest of the input": ingest["input_digest"]},
            }
        )
    for title, path in (("train", config.run / "run.json"), ("score", config.run / "scores.json")):
        values = _json(path)
        if "config" in values:
            stages.append(
                {
                    "title": title.capitalize(),
                    "command": f"curate {title} --config {title}.toml",
                    "file": f"{title}.toml",
                    "toml": toml(values["config"]),
                    "versions": values.get("versions", {}),
                    "facts": {"seconds": round(values.get("summary", {}).get("seconds", 0.0), 1)},
                }
            )
    return stages


def toml(values: Mapping[str, Any]) -> str:
    """A flat configuration as TOML; what is None is left out, for that is what None means."""
    # JSON's strings, numbers and lists are TOML's too.
    lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items() if value is not None)
    return "\n".join(lines)
