"""Puts the report's page together: what the template report.html.j2 is given."""

import base64
import hashlib
import time
from dataclasses import dataclass
from importlib.resources import files as resources
from typing import Any

from markupsafe import Markup

from pipelines import pages
from pipelines.distribution import VERSION
from pipelines.images.rejects import Reason
from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick
from pipelines.report import charts, figures, history, maps, pictures
from pipelines.report.comparison import Comparison
from pipelines.report.config import ReportConfig
from pipelines.report.confounds import Audit
from pipelines.report.survey import Survey
from pipelines.run import association, labels, quality, verdicts
from pipelines.run.labels import Labels
from pipelines.run.neighbors import Index
from pipelines.run.quality import Quality
from pipelines.run.scores import ScoredPool

CLASSES_LISTED = 500  # in the table
DOMAINS_LISTED = 50
SHARE_MISSED = 0.05  # of the pool: from here on it is said that fewer images are called synthetic than there are
VERDICTS = ("real", "unsure", "synthetic")


@dataclass(frozen=True, kw_only=True)
class Warned:
    """A warning, and the section that says more."""

    about: str
    section: str  # its id
    text: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the page shows."""

    pool: Pool
    scored: ScoredPool | None  # None without scores
    survey: Survey
    audit: Audit | None  # None without scores
    comparison: Comparison | None  # with an earlier run; None if none was given, or one has no detector
    num_unscored: int  # images
    quality: Quality | None  # of the detector; None if it was not measured
    labels: Labels | None  # how often they are right; None if it was not measured, and without classes
    domains: dict[str, dict[str, Any]]  # bounds of the synthetic share of the largest domains, by name
    note: str  # why the labeled set was not compared; empty if it was
    next: str  # the command to run next


def render(config: ReportConfig, findings: Findings, on_tick: OnTick) -> str:
    """Render the page; drawing the map takes longest and reports to `on_tick`."""
    pool, scored, found = findings.pool, findings.scored, findings.survey
    templates = resources("pipelines").joinpath("templates")
    style, script = (templates.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    album = pictures.Album(pool, scored, _index(scored, on_tick) if scored else None)
    mapped = maps.draw(config.map, pool, scored, found, on_tick) if scored else None
    values = {
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "bar": charts.bar,
        "config": config,
        "version": VERSION,
        "now": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "found": found,
        "num_images": pool.num_images,
        "num_unscored": findings.num_unscored,
        "num_shards": len(pool.shards),
        "reasons": {reason.value: reason.meaning for reason in Reason},
        "neighbors_are_layout": bool(scored and scored.neighbors_are_layout),
        "classes": sorted(found.classes.items(), key=lambda item: -item[1].num_images),
        "listed": CLASSES_LISTED,
        "domains": sorted(found.domains.items(), key=lambda item: -item[1].num_images)[:DOMAINS_LISTED],
        "num_domains": len(found.domains),
        "bounds": findings.domains,
        "thresholds": verdicts.load(scored.folder) if scored and found.scores is not None else None,
        "verdicts": VERDICTS,
        "quality": findings.quality,
        "warnings": _warnings(config, findings),
        "comparison": findings.comparison,
        "moved": album.pictures(findings.comparison.moved.rows()) if findings.comparison else [],
        "labels": findings.labels,
        "of_class": {each.name: each for each in findings.labels.classes} if findings.labels else {},
        "reliability": figures.reliability(findings.labels),
        "unmeasured": quality.UNMEASURED,
        "weak": quality.WEAK,
        "histograms": figures.histograms(scored, found, findings.audit),
        "galleries": album.galleries(found),
        "thumbnail": pictures.LARGE.side,
        "by_class": album.by_class(found) if scored else [],
        "maps": mapped.figures if mapped else [],
        "curves": figures.training_curves(config.run, scored.classes if scored else ()),
        "audit": findings.audit,
        "limits": association,
        "note": findings.note,
        "stages": history.stages(config.pool, config.run, scored.folder if scored else config.run),
        "next": findings.next,
    }
    # After the pictures, which fill the album.
    values["data"] = {"pictures": album.details, "thumbnails": album.thumbnails, "map": mapped.data if mapped else None}
    return pages.render("report.html.j2", values)


def _index(scored: ScoredPool, on_tick: OnTick) -> Index | None:
    """The index that finds neighbors; None where it is missing and the run's folder cannot be written to."""
    try:
        return Index.open(scored, on_tick)
    except OSError:
        return None


def _warnings(config: ReportConfig, findings: Findings) -> list[Warned]:
    """All that a person must know before acting on the verdicts or the labels, the weightiest first."""
    if findings.scored is None or findings.audit is None:
        return []
    found, measured = findings.survey, findings.quality
    said = [("Labels", "classes", labels.warning(findings.labels, bool(found.classes)))]
    if found.scores is not None:
        said.append(("Detector", "trust", quality.warning(measured)))
    said += [("Files", "confounds", each) for each in findings.audit.warnings]
    estimate = measured.share_estimate if measured and found.scores is not None else None
    called = found.num_synthetic / max(1, found.num_images)
    if estimate is not None and estimate >= called + SHARE_MISSED:
        text = (
            f"An estimated {estimate:.0%} of the pool is synthetic, and {called:.1%} is called so: the other synthetic "
            "images are among the unsure and the real."
        )
        said.append(("Share", "trust", text))
    alarms = history.read_record(config.run / "run.json").get("summary", {}).get("alarms", [])
    said += [("Training", "training", each) for each in alarms]
    return [Warned(about=about, section=section, text=text) for about, section, text in said if text]


def _hash(text: str) -> str:
    """The name of a script or style in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
