"""`curate review`."""

from pathlib import Path
from typing import Annotated

import typer

from curate import console


def review(
    pool: Annotated[str | None, typer.Option(help="Ingested pool, a folder or URL.  [default: pool]")] = None,
    run: Annotated[Path | None, typer.Option(help="Run that scored it.  [default: run]")] = None,
    port: Annotated[int | None, typer.Option(help="Of this machine; 0 for any free one.  [default: 8765]")] = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    config: Annotated[str | None, typer.Option(help="TOML file with any setting of this command.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Look through the pool on a local page, and mark images real, synthetic or with a class, for the next training."""
    import webbrowser
    from contextlib import ExitStack
    from dataclasses import asdict

    from curate.config import resolve
    from pipelines import review as stage

    settings = resolve(stage.ReviewConfig, {"pool": pool, "run": run, "port": port}, config)
    with ExitStack() as drawn:

        def ready(url: str) -> None:
            drawn.close()  # the bar: what it counted is done
            console.note(f"Review: {url}\nCtrl-C ends it; every mark is on the disk as soon as the page shows it.")
            if open_browser:
                webbrowser.open(url)

        on_tick = drawn.enter_context(console.progress("neighbors"))
        summary = stage.run(settings, ready, on_tick)
    if summary.was_cut:
        console.note("A kill had cut the last mark of an earlier sitting; that one is lost, all others are there.")
    if json:
        console.as_json(asdict(summary))
        return
    console.facts(f"Marks in {summary.marks}", summary.images)
    console.note(
        f"Next: curate train --labeled SEED --pool {settings.pool} --run {settings.run} --no-resume learns from them; "
        "curate export honors them as they are."
    )
