"""`curate score`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from curate import console


def score(
    pool: Annotated[str | None, typer.Option(help="Ingested pool, a folder or URL.  [default: pool]")] = None,
    run: Annotated[Path | None, typer.Option(help="Training run.  [default: run]")] = None,
    device: Annotated[Literal["auto", "cuda", "cpu"] | None, typer.Option(help="[default: auto]")] = None,
    max_false_positive_rate: Annotated[
        float | None,
        typer.Option(
            help="Share of real images that you are willing to lose; chosen by labeled images kept from the detector."
        ),
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="Known truth to report against.")] = None,
    engine: Annotated[
        Literal["local", "ray"] | None, typer.Option(help="This process, or Ray: a task a shard.  [default: local]")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster.  [default: $RAY_ADDRESS, else one is started here]")
    ] = None,
    shard_index: Annotated[
        int | None, typer.Option(help="Score every N-th shard, from this one on: the index in a Slurm array.")
    ] = None,
    num_shards: Annotated[int | None, typer.Option(help="N: how many calls share the pool.")] = None,
    config: Annotated[str | None, typer.Option(help="TOML file with any setting of this command.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score every image of the pool: real or synthetic, pseudo-label, confidence, embedding."""
    from dataclasses import asdict

    from curate.config import resolve
    from pipelines import score as stage
    from pipelines.errors import BadInput

    if (shard_index is None) != (num_shards is None):
        raise BadInput("--shard-index and --num-shards go together: call I of N takes --shard-index I --num-shards N.")
    flags = {
        "pool": pool, "run": run, "device": device, "truth": truth, "max_false_positive_rate": max_false_positive_rate,
        "engine": engine, "ray_address": ray_address, "shard_index": shard_index, "num_shards": num_shards,
    }  # fmt: skip
    settings = resolve(stage.ScoreConfig, flags, config)
    with console.progress("score") as on_tick:
        summary = stage.run(settings, on_tick)
    if json:
        console.as_json(asdict(summary))
        return
    shown = {
        "images": summary.num_images,
        "shards": summary.num_shards,
        "scored before": summary.num_scored_before,
        "called synthetic": "no detector" if summary.called_share is None else f"{summary.called_share:.1%}",
        "synthetic, estimated in training": _share(summary.estimated_share, summary.estimated_interval),
        **{f"{name}, images": count for name, count in (summary.verdicts or {}).items()},
        "mean confidence": summary.mean_confidence,
        "seconds": summary.seconds,
    }
    console.facts(f"Scored into {settings.run}/scores", shown | (summary.truth or {}))
    if summary.thresholds:
        console.note(summary.thresholds.statement)
    console.table("Pseudo-labels", [{"class": k, "images": v} for k, v in summary.pseudo_labels.items()])
    places = f"--pool {settings.pool} --run {settings.run}"
    if settings.num_shards > 1:
        console.note(f"Next, after the last of the {settings.num_shards}: curate score {places}, which sums up")
        return
    console.note(f"Next: curate inspect KEY {places}, or curate export --out clean/ {places}")


def _share(share: float | None, interval: tuple[float, float] | None) -> str:
    if share is None or interval is None:
        return "unknown"
    return f"{share:.1%} (95 % interval {interval[0]:.1%} to {interval[1]:.1%})"
