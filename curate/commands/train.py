"""`curate train`."""

from dataclasses import asdict
from typing import Annotated

import typer

from curate import console
from curate.config import resolve
from curate.options import GENERAL, Flags, Json, options
from pipelines import train as stage
from pipelines.errors import BadInput
from pipelines.train import TrainConfig

_MEASURED = {
    "accuracy": "accuracy on the validation set",
    "detector_auroc": "detector's AUROC, by the truth",
    "queue_purity": "synthetic share of the queue, by the truth",
    "pseudo_label_accuracy_real": "right labels of real images, by the truth",
    "pseudo_label_accuracy_synthetic": "right labels of synthetic images, by the truth",
}  # of the last line of run/metrics.jsonl


@options(
    TrainConfig,
    groups={
        "Data": (
            "labeled",
            "pool",
            "run",
            "known_synthetic",
            "ignore_declared",
            "scores",
            "validation",
            "truth",
            "resume",
        ),
        "Recipe": ("recipe.method", "recipe.rule", "recipe.num_steps", "seed"),
        "Network": (
            "network.backbone",
            "network.weights",
            "network.pretrained",
            "network.init_from",
            "network.frozen",
            "network.detector",
            "network.tiles",
            "network.image_size",
        ),
        "Machine": ("machine.device",),
    },
)
def train(
    flags: Flags,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="<file>",
            help="TOML file with any setting of this command, or a recipe that ships with curate: photographs is used "
            "for images of over 64 pixels, cpu for others without a GPU, unless this names another. A recipe replaces "
            "some of the defaults above.",
            rich_help_panel=GENERAL,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train a real/synthetic detector and a classifier on the pool.

    The method is RSMatch. It needs the pool and a few labeled real images; if these have no classes, it trains the
    detector alone.
    """
    from pipelines.compute import devices
    from pipelines.train import plan

    if "labeled" not in flags and config is None:
        raise BadInput("--labeled is missing: give a folder of real images, best with one folder per class.")
    settings = resolve(TrainConfig, flags, config)
    if config is None and (config := plan.recipe_of(settings)) is not None:
        console.note(f"Training with the recipe `{config}`. Use --config to choose another.")
        settings = resolve(TrainConfig, flags, config)
    if not devices.is_first():
        stage.run(settings)  # under torchrun, only rank 0 prints
        return
    with console.progress("train") as on_tick:
        summary = stage.run(settings, on_tick)
    if json:
        console.as_json(asdict(summary))
        return
    facts = {
        "steps": summary.num_steps,
        "unlabeled images": summary.num_unlabeled,
        "labeled images": summary.num_labeled,
        "labeled also in the pool": summary.labeled_in_pool,
        "detector": "none" if summary.quality is None else summary.quality.brief,
        "labels": "unknown" if summary.labels is None else summary.labels.brief,
        **{f"marked: {what}": count for what, count in summary.marked.items()},
        "classes": ", ".join(summary.classes) or "none: the detector alone was trained",
        "took": console.duration(summary.seconds),
        **{words: f"{summary.metrics[name]:.3f}" for name, words in _MEASURED.items() if name in summary.metrics},
    }
    console.facts(f"Trained {settings.recipe.method} into {settings.run}", facts)
    for statement in summary.quality.statements if summary.quality else ():
        console.note(statement)
    for statement in summary.labels.statements if summary.labels else ():
        console.note(statement)
    console.note(f"Next: {console.command('score', pool=settings.pool, run=settings.run)}")
    from pipelines.run import labels  # imports NumPy, which --help does not need

    if warning := labels.warning(summary.labels, bool(summary.classes)):
        console.note(f"Warning: {warning}")
