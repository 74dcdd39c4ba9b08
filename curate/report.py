"""`curate report`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from curate import console


def report(
    pool: Annotated[str | None, typer.Option(help="Ingested pool, a folder or URL.  [default: pool]")] = None,
    run: Annotated[Path | None, typer.Option(help="Run that scored it.  [default: run]")] = None,
    labeled: Annotated[
        Path | None, typer.Option(help="Labeled set, if it is no longer where training read it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write.  [default: report.html in the run]")] = None,
    map: Annotated[
        Literal["auto", "tsne", "pca"] | None,
        typer.Option(help="How embeddings are laid out; t-SNE needs curate[viz].  [default: auto]"),
    ] = None,
    device: Annotated[Literal["auto", "cuda", "cpu"] | None, typer.Option(help="[default: auto]")] = None,
    config: Annotated[str | None, typer.Option(help="TOML file with any setting of this command.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write one offline HTML page: what is in the pool, what was found of it, and what the verdicts rest on."""
    from dataclasses import asdict

    from curate.config import resolve
    from pipelines import report as stage

    flags = {"pool": pool, "run": run, "labeled": labeled, "out": out, "map": map, "device": device}
    settings = resolve(stage.ReportConfig, flags, config)
    with console.progress("report") as on_tick:
        summary = stage.run(settings, on_tick)
    if json:
        console.as_json(asdict(summary))
        return
    shown = {
        "images": summary.num_images,
        "rejected": summary.num_rejected,
        "without scores": summary.num_unscored,
        "synthetic": "not known" if summary.synthetic_share is None else f"{summary.synthetic_share:.1%}",
        "size of the page": f"{summary.num_bytes / 1e6:.2f} MB",
        "seconds": summary.seconds,
    }
    console.facts(f"Reported in {summary.out}", shown)
    audit = summary.audit
    if audit and audit.properties:
        rows = [
            {
                "property": each.name,
                "AUROC": each.auroc,
                "bits": each.bits,
                "labeled set differs": "" if each.difference is None else f"{each.difference:.1%}",
            }
            for each in audit.properties
        ]
        console.table("What predicts the verdict beside the pictures", rows)
    for warning in audit.warnings if audit else ():
        console.note(f"Warning: {warning}")
    console.note(f"Next: open {summary.out} in a browser; then {summary.next}")
