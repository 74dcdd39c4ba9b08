"""`curate review`."""

import webbrowser
from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated

import typer

from curate import console
from curate.config import resolve
from curate.options import ConfigFile, Flags, Json, options
from pipelines import review as stage
from pipelines.review import ReviewConfig


@options(ReviewConfig, groups={"Data": ("pool", "run"), "Page": ("order", "port")})
def review(
    flags: Flags,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser.", rich_help_panel="Page")
    ] = True,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Browse the pool on a local page and mark images.

    Mark them as real, as synthetic or with a class; the next training learns from the marks.
    """
    settings = resolve(ReviewConfig, flags, config)
    with ExitStack() as progress:

        def on_ready(url: str) -> None:
            progress.close()  # the neighbors are found, so the progress bar is complete
            console.note(f"Review: {url}\nCtrl-C ends it. Every mark is on the disk as soon as the page shows it.")
            if open_browser:
                webbrowser.open(url)

        on_tick = progress.enter_context(console.progress("neighbors"))
        summary = stage.run(settings, on_ready, on_tick)
    if summary.was_cut:
        console.note("The last mark of a previous session was lost when it was killed; all others are intact.")
    if json:
        console.as_json(asdict(summary))
        return
    console.facts(f"Marks in {summary.marks}", summary.images)
    train = console.command("train", "--no-resume", labeled="SEED", pool=settings.pool, run=settings.run)
    console.note(f"Next: {train} trains on the marks; curate export follows them as they are.")
