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
from pipelines.report import charts, figures, history, pictures
from pipelines.report.config import ReportConfig
from pipelines.report.confounds import Audit
from pipelines.report.survey import Survey
from pipelines.run import association, labels, quality
from pipelines.run.labels import Labels
from pipelines.run.quality import Quality
from pipelines.run.scores import ScoredPool

CLASSES_LISTED = 500  # in the table


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the page shows."""

    pool: Pool
    scored: ScoredPool | None  # None without scores
    survey: Survey
    audit: Audit | None  # None without scores
    num_unscored: int  # images
    quality: Quality | None  # of the detector; None if it was not measured
    labels: Labels | None  # how often they are right; None if it was not measured, and without classes
    domains: list[dict[str, Any]]  # the synthetic share of the largest domains
    note: str  # why the labeled set was not compared; empty if it was
    next: str  # the command to run next


def render(config: ReportConfig, findings: Findings, on_tick: OnTick) -> str:
    """Render the page; drawing the map takes longest and reports to `on_tick`."""
    pool, scored, found = findings.pool, findings.scored, findings.survey
    templates = resources("pipelines").joinpath("templates")
    style, script = (templates.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    alarms = history.read_record(config.run / "run.json").get("summary", {}).get("alarms", []) if scored else []
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
        "threshold": scored.threshold if scored and found.scores is not None else None,
        "quality": findings.quality,
        "trust": quality.warning(findings.quality) if found.scores is not None else "",
        "labels": findings.labels,
        "labels_warning": labels.warning(findings.labels, bool(found.classes)) if scored else "",
        "of_class": {each.name: each for each in findings.labels.classes} if findings.labels else {},
        "reliability": figures.reliability(findings.labels),
        "unmeasured": quality.UNMEASURED,
        "weak": quality.WEAK,
        "domains": findings.domains,
        "histograms": figures.histograms(scored, found, findings.audit),
        "galleries": pictures.galleries(pool, scored, found),
        "thumbnail": pictures.THUMBNAIL.side,
        "by_class": pictures.by_class(pool, found) if scored else [],
        "maps": figures.maps(config.map, scored, found, on_tick) if scored else [],
        "curves": figures.training_curves(config.run, scored.classes if scored else ()),
        "alarms": alarms,
        "audit": findings.audit,
        "limits": association,
        "note": findings.note,
        "stages": history.stages(config.pool, config.run),
        "next": findings.next,
    }
    return pages.render("report.html.j2", values)


def _hash(text: str) -> str:
    """The name of a script or style in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
