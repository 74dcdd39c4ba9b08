"""`curate export`."""

from dataclasses import asdict

from curate import console
from curate.config import resolve
from curate.options import ConfigFile, Flags, Json, options
from pipelines import export as stage
from pipelines.errors import BadInput
from pipelines.export import ExportConfig


@options(
    ExportConfig,
    groups={
        "Data": ("out", "pool", "run", "format", "shard_size"),
        "Selection": (
            "where",
            "keep",
            "min_confidence",
            "drop_near_duplicates",
            "turned",
            "radius",
            "semantic_duplicates",
            "exclude",
            "per_class",
        ),
        "Labels": ("label_precision", "confidence_level", "unlabeled"),
        "Machine": ("jobs", "engine", "ray_address"),
    },
)
def export(flags: Flags, config: ConfigFile = None, json: Json = False) -> None:
    """Write the images worth training on as shards that every loader reads.

    Each image comes with its class, if there are classes, its caption, and its scores.
    """
    if "out" not in flags and config is None:
        raise BadInput("--out is missing: name the folder to write, such as --out clean/.")
    settings = resolve(ExportConfig, flags, config)
    with console.progress("export") as on_tick:
        summary = stage.run(settings, on_tick)
    if json:
        console.as_json(asdict(summary))
        return
    facts: dict[str, int | float] = {"images of the pool": summary.pool, "kept": summary.kept}
    facts |= {f"dropped: {reason.replace('_', ' ')}": count for reason, count in summary.dropped.items()}
    facts |= {"captions": summary.captions} if summary.captions else {}
    if summary.per_class:
        facts["kept, with a label"] = summary.labeled
    facts |= {"shards": summary.shards, "MB of images": round(summary.num_bytes / 1e6, 1)}
    console.facts(f"Exported to {summary.out}", facts)
    if summary.per_class:
        console.table("Kept", [{"class": name, "images": count} for name, count in summary.per_class.items()])
    if not summary.kept:
        console.note(f"No image was kept; {summary.out}/dropped.parquet has the reason for each.")
        _warn(summary.warning)
        return
    console.note(f"Next: {summary.out}/README.md has the lines that load it; kept.parquet lists the images.")
    _warn(summary.warning)
    if summary.labels:
        console.note(f"The labels: {summary.labels}")


def _warn(warning: str) -> None:
    """Say as the last line how far to trust the detector, unless there is nothing to warn of."""
    if warning:
        console.note(f"The detector: {warning}")
