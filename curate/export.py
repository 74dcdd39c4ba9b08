"""`curate export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from curate import console


def export(
    out: Annotated[
        str | None, typer.Option(help="Folder or URL to write; an earlier export in it is replaced.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Ingested pool, a folder or URL.  [default: pool]")] = None,
    run: Annotated[Path | None, typer.Option(help="Run that scored it.  [default: run]")] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="SQL", help='Condition on columns of pool and scores: "prob_synthetic < 0.1 and width >= 64".'
        ),
    ] = None,
    keep: Annotated[
        Literal["real", "synthetic", "all"] | None, typer.Option(help="By the detector's verdict.  [default: real]")
    ] = None,
    min_confidence: Annotated[
        float | None, typer.Option(help="Drop images whose pseudo-label is less probable.  [default: 0]")
    ] = None,
    drop_near_duplicates: Annotated[
        bool | None, typer.Option("--drop-near-duplicates", help="Keep the best copy of each group alone.")
    ] = None,
    radius: Annotated[
        int | None, typer.Option(help="Bits of 64 in which hashes of near-duplicates differ at most.  [default: 4]")
    ] = None,
    per_class: Annotated[int | None, typer.Option(help="Keep the N most confident images of each class.")] = None,
    shard_size: Annotated[int | None, typer.Option(help="Images in a shard.  [default: 1000]")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes.  [default: one a core]")] = None,
    engine: Annotated[
        Literal["local", "ray"] | None, typer.Option(help="Processes of this machine, or Ray.  [default: local]")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster.  [default: $RAY_ADDRESS, else one is started here]")
    ] = None,
    config: Annotated[str | None, typer.Option(help="TOML file with any setting of this command.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write the images worth training on as WebDataset shards, with class and scores beside each."""
    from dataclasses import asdict

    from curate.config import resolve
    from pipelines import export as stage
    from pipelines.errors import BadInput

    if out is None and config is None:
        raise BadInput("--out is missing: name the folder to write, such as --out clean/.")
    flags = {
        "out": out, "pool": pool, "run": run, "where": where, "keep": keep, "min_confidence": min_confidence,
        "drop_near_duplicates": drop_near_duplicates, "radius": radius, "per_class": per_class,
        "shard_size": shard_size, "jobs": jobs, "engine": engine, "ray_address": ray_address,
    }  # fmt: skip
    settings = resolve(stage.ExportConfig, flags, config)
    with console.progress("export") as on_tick:
        summary = stage.run(settings, on_tick)
    if json:
        console.as_json(asdict(summary))
        return
    shown: dict[str, int | float] = {"images of the pool": summary.pool, "kept": summary.kept}
    shown |= {f"dropped: {reason.replace('_', ' ')}": count for reason, count in summary.dropped.items()}
    shown |= {"shards": summary.shards, "MB of images": round(summary.num_bytes / 1e6, 1)}
    console.facts(f"Exported to {summary.out}", shown)
    console.table("Kept", [{"class": name, "images": count} for name, count in summary.per_class.items()])
    if not summary.kept:
        console.note(f"Nothing was kept; {summary.out}/dropped.parquet says why for each image.")
        return
    last = f"{summary.shards - 1:05d}"
    shards = f"{{00000..{last}}}" if summary.shards > 1 else "00000"
    console.note(f"Next: read {summary.out}/{shards}.tar with webdataset, open_clip or any tar; kept.parquet lists it.")
