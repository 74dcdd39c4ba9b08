"""`curate verify`."""

from pathlib import Path
from typing import Annotated

import typer

from curate import console


def verify(
    pool: Annotated[str | None, typer.Option(help="Ingested pool, a folder or URL.  [default: pool]")] = None,
    run: Annotated[Path | None, typer.Option(help="Training run, verified if it has scores.  [default: run]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check that tars, manifests, counts, rejects and scores agree, to the last byte; exit 1 where they do not."""
    from dataclasses import asdict

    from curate.config import resolve
    from pipelines import verify as stage
    from pipelines.errors import BadInput

    if run is not None and not run.is_dir():
        raise BadInput(f"--run {run}: is no folder; name a run, or leave it out to verify the pool alone.")
    settings = resolve(stage.VerifyConfig, {"pool": pool, "run": run})
    with console.progress("verify") as on_tick:
        summary = stage.run(settings, on_tick)
    if json:
        console.as_json(asdict(summary))
    else:
        shown = {
            "shards": summary.num_shards,
            "images in sound shards": summary.num_images,
            "rejects": summary.num_rejects,
            "shards with scores": summary.num_scored,
            "problems": len(summary.problems),
        }
        console.facts(f"Verified {settings.pool}", shown)
        if summary.problems:
            console.table("Problems", [asdict(problem) for problem in summary.problems])
    if summary.problems:
        raise typer.Exit(1)
    console.note("All of it agrees.")
