"""`curate verify`."""

from dataclasses import asdict
from pathlib import Path

import typer

from curate import console
from curate.config import resolve
from curate.options import Flags, Json, options
from pipelines import verify as stage
from pipelines.errors import BadInput
from pipelines.verify import VerifyConfig


@options(VerifyConfig, groups={"Data": ("pool", "run")})
def verify(flags: Flags, json: Json = False) -> None:
    """Check that pool and run are intact, to the last byte.

    Tars, manifests, counts, rejects and scores must agree; if they don't, the exit code is 1.
    """
    if "run" in flags and not Path(flags["run"]).is_dir():
        raise BadInput(f"--run {flags['run']}: is not a folder. Name a run, or leave it out to verify only the pool.")
    settings = resolve(VerifyConfig, flags)
    with console.progress("verify") as on_tick:
        summary = stage.run(settings, on_tick)
    if json:
        console.as_json(asdict(summary))
    else:
        facts = {
            "shards": summary.num_shards,
            "images in intact shards": summary.num_images,
            "rejects": summary.num_rejects,
            "shards with scores": summary.num_scored,
            "problems": len(summary.problems),
        }
        console.facts(f"Verified {settings.pool}", facts)
        if summary.problems:
            console.table("Problems", [asdict(problem) for problem in summary.problems])
    if summary.problems:
        raise typer.Exit(1)
    console.note("No problems found.")
