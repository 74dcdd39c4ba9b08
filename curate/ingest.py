"""`curate ingest`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from curate import console


def ingest(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help='Folders, .tar or .parquet files, brace patterns ("crawl/{00000..00099}.tar"), @LIST files, URLs.',
            show_default=False,
        ),
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Folder to bring them into; may be a URL.  [default: pool]")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes.  [default: one a core]")] = None,
    engine: Annotated[
        Literal["local", "ray"] | None, typer.Option(help="Processes of this machine, or Ray.  [default: local]")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster.  [default: $RAY_ADDRESS, else one is started here]")
    ] = None,
    min_side: Annotated[int | None, typer.Option(help="Reject smaller images, in pixels.  [default: 16]")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Reject larger images.  [default: 89478485]")] = None,
    shard_size: Annotated[
        int | None, typer.Option(help="Images in a shard, where the source has no shards of its own.  [default: 1000]")
    ] = None,
    config: Annotated[str | None, typer.Option(help="TOML file with any setting of this command.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Bring a crawl into the pool: each image kept as it is, or on record as rejected.

    Started again it goes on; with further sources it adds to the pool.
    """
    from dataclasses import asdict

    from curate.config import resolve
    from pipelines import ingest as stage

    flags = {
        "sources": tuple(sources) if sources else None,
        "pool": pool,
        "jobs": jobs,
        "engine": engine,
        "ray_address": ray_address,
        "min_side": min_side,
        "max_pixels": max_pixels,
        "shard_size": shard_size,
    }
    settings = resolve(stage.IngestConfig, flags, config, options={"sources": "SOURCE"})
    with console.progress("ingest") as on_tick:
        summary = stage.run(settings, on_tick)
    for note in summary.notes:
        console.note(note)
    if json:
        console.as_json(asdict(summary))
        return
    shown = {
        "read": summary.read,
        "kept": summary.kept,
        "rejected": summary.read - summary.kept,
        "shards added": summary.shards,
        "shards that were there": summary.skipped,
        "images in the pool": summary.images,
        "seconds": summary.seconds,
    }
    console.facts(f"Ingested into {settings.pool}", shown)
    if summary.rejected:
        rejected = [{"reason": reason, "images": count} for reason, count in summary.rejected.items()]
        console.table(f"Rejected, each with its reason in {settings.pool}/rejects", rejected)
    if summary.declared:
        console.table(
            "Origin declared in the file", [{"origin": what, "images": n} for what, n in summary.declared.items()]
        )
    if not summary.images:
        console.note(f"Nothing was kept: {settings.pool}/rejects says why for each image.")
        return
    pool_flag = "" if settings.pool == Path("pool") else f" --pool {settings.pool}"
    console.note(f"Next: curate train --labeled DIR{pool_flag}, with a folder of labeled real images per class")
