"""Report: writes one self-contained HTML page about a pool, its verdicts and what they may rest on.

In: a pool and, as far as they exist, a run with its model, scores, metrics and labeled set. Out: `config.out`.

Everything on the page is bounded: counts, a sample and a fixed number of pictures. So the page of a million images is
no larger than that of thirty thousand, and memory use does not grow. All text from the crawl is escaped, pictures are
re-encoded, and a content security policy lets no script run but the page's own.

    survey      reads the pool and its scores
    comparison  compares the verdicts with those of an earlier run
    confounds   audits what the verdicts rest on
    page        puts the page together of figures, pictures and the history of pool and run
"""

import os
import shlex
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines.errors import BadInput
from pipelines.pages import write_page
from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick, ignore
from pipelines.report import comparison, confounds, page, pictures
from pipelines.report.config import ReportConfig, Summary
from pipelines.report.history import read_record
from pipelines.report.survey import survey
from pipelines.run import domains, labels, quality
from pipelines.run.scores import ScoredPool

if TYPE_CHECKING:
    from pipelines.pool.labeled_files import File
    from pipelines.run.scorer import Scorer

SAMPLE = 20_000  # images of the pool that are audited


def run(config: ReportConfig, on_tick: OnTick = ignore) -> Summary:
    """Write the page.

    Raises MissingArtifact without a pool, BadInput for a --labeled or an --out that cannot be used, Incompatible for
    scores of another model than the run's. Without scores the page shows what the pool alone tells.
    """
    started = time.monotonic()
    pool = Pool.open(config.pool)
    with_run = ScoredPool(pool, config.run)
    num_unscored = sum(with_run.num_rows(shard) for shard in with_run.unscored)
    scored = with_run if num_unscored < pool.num_images else None
    with_run.check()
    earlier = ScoredPool(pool, config.against) if config.against else None
    if earlier is not None and num_unscored == pool.num_images:
        raise BadInput(f"--against {config.against}: {config.run} has no scores to compare. Run `curate score` first.")
    paths, note = _labeled_files(config) if scored else (None, "")
    scorer = _scorer(scored, config.device) if scored else None
    found = survey(
        pool, scored, scored.classes if scored else (),
        sample=SAMPLE, gallery=pictures.GALLERY, per_class=pictures.CLASS_PICTURES, on_tick=on_tick,
    )  # fmt: skip
    compared = None
    if scored and earlier:
        compared = comparison.compare(scored, earlier, gallery=pictures.GALLERY, on_tick=on_tick)
    audit = confounds.audit(pool, found.sample, paths, scorer, on_tick) if scored else None
    findings = page.Findings(
        pool=pool,
        scored=scored,
        survey=found,
        audit=audit,
        comparison=compared,
        num_unscored=num_unscored,
        quality=quality.load(config.run) if scored else None,
        labels=labels.load(config.run) if scored and scored.classes else None,
        domains={row["domain"]: row for row in domains.load(config.run).to_pylist()} if scored else {},
        note=note,
        next=_next(config, scored is not None),
    )
    out = config.out or config.run / "report.html"
    write_page(out, page.render(config, findings, on_tick), option="--out", parents=True)
    return Summary(
        out=str(out),
        num_bytes=out.stat().st_size,
        seconds=time.monotonic() - started,
        num_images=pool.num_images,
        num_rejected=found.num_rejected,
        num_unscored=num_unscored,
        synthetic_share=found.num_synthetic / found.num_images if found.scores is not None else None,
        unsure_share=found.num_unsure / found.num_images if found.scores is not None else None,
        num_changed=compared.num_changed if compared else None,
        audit=audit,
        next=findings.next,
    )


def _scorer(scored: ScoredPool, device: Literal["auto", "cuda", "cpu"]) -> "Scorer | None":
    """The run's model; None without a detector."""
    if not read_record(scored.run / "model" / "config.json").get("has_detector", True):
        return None
    from pipelines.run.scorer import Scorer  # imported here: without a detector none is needed, and torch takes seconds

    return Scorer.load(scored.run, device)


def _labeled_files(config: ReportConfig) -> tuple[list["File"] | None, str]:
    """At most `confounds.LABELED` files of the labeled set; or None and the reason if it is missing."""
    from pipelines.pool import labeled  # imported here, as above

    source = config.labeled
    if source is None:
        known = read_record(config.run / "run.json").get("config", {}).get("labeled")
        if known is None:
            return None, f"{config.run}/run.json does not say where the labeled set is; give --labeled SEED."
        source = Path(known)
    try:
        paths = [path for path, _ in labeled.files(source)]
    except BadInput as error:
        if config.labeled is not None:
            raise
        return None, f"The labeled set is not where training read it, so it is not compared with the pool ({error})"
    # Sorted by a hash of the name, so that all classes are among the first.
    return sorted(paths, key=lambda path: (zlib.crc32(os.fsencode(path.name)), str(path)))[: confounds.LABELED], ""


def _next(config: ReportConfig, has_scores: bool) -> str:
    options = shlex.join(("--pool", str(config.pool), "--run", str(config.run)))
    if has_scores:
        return f"curate inspect KEY {options}, or curate export --out clean/ {options}"
    if (config.run / "model" / "config.json").exists():
        return f"curate score {options}"
    return f"curate train --labeled SEED {options}, then curate score {options}"
