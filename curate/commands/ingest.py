"""`curate ingest`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from curate import console
from curate.config import resolve
from curate.options import ConfigFile, Flags, Json, options
from pipelines import ingest as stage
from pipelines.distribution import pip_install
from pipelines.ingest import IngestConfig


@options(
    IngestConfig,
    groups={
        "Data": ("pool", "shard_size", "image_column", "caption_column"),
        "Limits": ("min_side", "max_pixels"),
        "Machine": ("jobs", "engine", "ray_address"),
    },
)
def ingest(
    flags: Flags,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help=IngestConfig.model_fields["sources"].description,
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Bring a crawl into the pool. Each image is kept as it is, or recorded as rejected.

    Run it again to resume. With other sources, it adds them to the pool.
    """
    given = flags | {"sources": tuple(sources) if sources else None}
    settings = resolve(IngestConfig, given, config, names={"sources": "SOURCE"})
    with console.progress("ingest") as on_tick:
        summary = stage.run(settings, on_tick)
    for note in summary.notes:
        console.note(note)
    if json:
        console.as_json(asdict(summary))
        return
    _show(summary, settings)


def _show(summary: stage.Summary, settings: IngestConfig) -> None:
    facts = {
        "read": summary.read,
        "kept": summary.kept,
        "rejected": summary.read - summary.kept,
        "in the pool already": summary.again,
        "shards added": summary.shards,
        "shards ingested before": summary.skipped,
        "images in the pool": summary.images,
        "took": console.duration(summary.seconds),
    }
    console.facts(f"Ingested into {settings.pool}", facts)
    if summary.rejected:
        rejected = [{"reason": reason, "images": count} for reason, count in summary.rejected.items()]
        console.table(f"Rejected images by reason; {settings.pool}/rejects lists each", rejected)
    if summary.declared:
        declared = [{"origin": origin, "images": count} for origin, count in summary.declared.items()]
        console.table("Kept images that declare their origin", declared)
    from pipelines.images.provenance import NOT_READ  # imports Pillow

    if unread := summary.declared.get(NOT_READ):
        console.note(
            f"{unread} C2PA manifest{'s' if unread > 1 else ''} not read. To read them, {pip_install('c2pa')} and "
            "ingest into a new pool."
        )
    if not summary.images:
        console.note(f"No image was kept; {settings.pool}/rejects has the reason for each.")
        return
    pool = {} if settings.pool == Path("pool") else {"pool": settings.pool}
    train = console.command("train", labeled="DIR", **pool)
    console.note(f"Next: {train}, where DIR has a folder of labeled real images per class")
