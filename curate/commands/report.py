"""`curate report`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from curate import console
from curate.config import resolve
from curate.options import ConfigFile, Flags, Json, options
from pipelines import report as stage
from pipelines.report import ReportConfig

if TYPE_CHECKING:
    from pipelines.report.confounds import Audit


@options(
    ReportConfig,
    groups={"Data": ("pool", "run", "labeled", "against"), "Page": ("out", "map"), "Machine": ("device",)},
)
def report(flags: Flags, config: ConfigFile = None, json: Json = False) -> None:
    """Write one offline HTML page about the pool.

    It shows what is in the pool, what was found in it, and what the verdicts rest on.
    """
    settings = resolve(ReportConfig, flags, config)
    with console.progress("report") as on_tick:
        summary = stage.run(settings, on_tick)
    if json:
        console.as_json(asdict(summary))
        return
    facts = {
        "images": summary.num_images,
        "rejected": summary.num_rejected,
        "without scores": summary.num_unscored,
        "called synthetic": "unknown" if summary.synthetic_share is None else f"{summary.synthetic_share:.1%}",
        "unsure": "unknown" if summary.unsure_share is None else f"{summary.unsure_share:.1%}",
        **({} if summary.num_changed is None else {"another verdict than before": summary.num_changed}),
        "size of the page": f"{summary.num_bytes / 1e6:.2f} MB",
        "took": console.duration(summary.seconds),
    }
    console.facts(f"Report in {summary.out}", facts)
    if summary.audit:
        _show(summary.audit)
    console.note(f"Next: open {summary.out} in a browser; then {summary.next}")


def _show(audit: "Audit") -> None:
    """Print which properties of the files predict the verdict, and what that warns of."""
    rows = [
        {
            "property": each.name,
            "AUROC": each.auroc,
            "bits": each.bits,
            "labeled set differs": "" if each.difference is None else f"{each.difference:.1%}",
        }
        for each in audit.properties
    ]
    if rows:
        console.table("What predicts the verdict besides the image content", rows)
    for warning in audit.warnings:
        console.note(f"Warning: {warning}")
