"""`curate score`."""

from dataclasses import asdict
from typing import Any

from curate import console
from curate.config import resolve
from curate.options import ConfigFile, Flags, Json, options
from pipelines import score as stage
from pipelines.errors import BadInput
from pipelines.score import ScoreConfig


@options(
    ScoreConfig,
    groups={
        "Data": ("pool", "run", "truth", "scores"),
        "Verdicts": ("max_false_positive_rate",),
        "Machine": ("device", "precision", "engine", "ray_address", "shard_index", "num_shards"),
    },
)
def score(flags: Flags, config: ConfigFile = None, json: Json = False) -> None:
    """Score every image of the pool.

    Scores are whether it is real or synthetic, its pseudo-label, the confidence in that, and an embedding.
    """
    if ("shard_index" in flags) != ("num_shards" in flags):
        raise BadInput("--shard-index and --num-shards go together: call I of N takes --shard-index I --num-shards N.")
    settings = resolve(ScoreConfig, flags, config)
    with console.progress("score") as on_tick:
        summary = stage.run(settings, on_tick)
    if json:
        console.as_json(asdict(summary))
        return
    facts = {
        "images": summary.num_images,
        "shards": summary.num_shards,
        "shards scored before": summary.num_scored_before,
        "called synthetic": "no detector" if summary.called_share is None else f"{summary.called_share:.1%}",
        "detector, measured in training": summary.quality.brief if summary.quality else "unknown",
        **{f"{name}, images": count for name, count in (summary.verdicts or {}).items()},
        **(summary.declared.lines if summary.declared else {}),
        **{f"{name}, images with a value": count for name, count in summary.outside.items()},
        "labels": summary.labels.brief if summary.labels else "unknown",
        "mean confidence": "no classes" if summary.mean_confidence is None else summary.mean_confidence,
        "took": console.duration(summary.seconds),
    }
    console.facts(f"Scored into {settings.run}/scores", facts | (summary.truth or {}))
    for statement in summary.quality.statements if summary.quality else ():
        console.note(statement)
    for statement in summary.labels.statements if summary.labels else ():
        console.note(statement)
    if summary.thresholds:
        console.note(summary.thresholds.statement)
    if summary.pseudo_labels:
        console.table("Pseudo-labels", [{"class": k, "images": v} for k, v in summary.pseudo_labels.items()])
    _show(summary.domains or [])
    locations = {"pool": settings.pool, "run": settings.run}
    if settings.num_shards > 1:
        again = console.command("score", **locations)
        console.note(f"Next, after the last of the {settings.num_shards} calls: {again}, to sum up")
        return
    look, write = console.command("inspect", "KEY", **locations), console.command("export", out="clean/", **locations)
    console.note(f"Next: {look}, or {write}")
    from pipelines.run import labels  # imports NumPy, which --help does not need

    if warning := labels.warning(summary.labels, bool(summary.pseudo_labels)):
        console.note(f"Warning: {warning}")


def _show(domains: list[dict[str, Any]]) -> None:
    """Print the largest domains with the bounds of their synthetic shares."""
    rows = [
        {
            "domain": each["domain"],
            "images": each["num_images"],
            "synthetic, at least": f"{each['share_at_least']:.1%}",
            "estimate": "" if each["share_estimate"] is None else f"{each['share_estimate']:.0%}",
        }
        for each in domains
    ]
    if rows:
        console.table("Largest domains (all bounds together hold with 95 % confidence)", rows)
