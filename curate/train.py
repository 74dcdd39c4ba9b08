"""`curate train`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from curate import console


def train(
    labeled: Annotated[
        Path | None, typer.Option(help="Labeled real images: a folder per class, or CSV/parquet of path and label.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Ingested pool, a folder or URL.  [default: pool]")] = None,
    run: Annotated[Path | None, typer.Option(help="Where to write the model.  [default: run]")] = None,
    validation: Annotated[Path | None, typer.Option(help="Labeled images for accuracy while training.")] = None,
    method: Annotated[
        Literal["rsmatch", "fixmatch", "openmatch", "iomatch", "supervised"] | None,
        typer.Option(help="[default: rsmatch]"),
    ] = None,
    rule: Annotated[
        Literal["fixmatch", "flexmatch", "freematch", "softmatch"] | None,
        typer.Option(help="Which pseudo-labels count, and how much.  [default: fixmatch]"),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="wrn-28-2, small, or timm:NAME.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Safetensors to start the backbone from.")] = None,
    pretrained: Annotated[
        bool | None, typer.Option("--pretrained", help="Start a timm backbone from its hub's weights.")
    ] = None,
    init_from: Annotated[Path | None, typer.Option(help="Run whose trained classifier to start from.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of what the classifier sees, in pixels.  [default: 32]")
    ] = None,
    num_steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="[default: 0]")] = None,
    device: Annotated[Literal["auto", "cuda", "cpu"] | None, typer.Option(help="[default: auto]")] = None,
    truth: Annotated[Path | None, typer.Option(help="Known truth to report against; never trained on.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the run, if there is one.")] = True,
    config: Annotated[
        str | None, typer.Option(help="TOML file, or a recipe that ships: cpu.  [default: cpu without a GPU]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train RSMatch on the pool: a real/synthetic detector and a classifier, from a few labeled real images."""
    from dataclasses import asdict

    from curate.config import resolve
    from pipelines import train as stage
    from pipelines.compute import devices
    from pipelines.errors import BadInput

    if labeled is None and config is None:
        raise BadInput("--labeled is missing: give a folder of real images with one folder per class.")
    if config is None and devices.choose(device or "auto").type == "cpu":
        config = "cpu"
        console.note("No GPU: training by the recipe `cpu`; --config names another.")
    flags = {
        "labeled": labeled, "pool": pool, "run": run, "validation": validation, "recipe.method": method,
        "recipe.rule": rule, "network.backbone": backbone, "network.weights": weights,
        "network.pretrained": pretrained, "network.init_from": init_from, "network.image_size": image_size,
        "recipe.num_steps": num_steps, "seed": seed, "machine.device": device, "truth": truth,
        "resume": None if resume else False,
    }  # fmt: skip
    settings = resolve(stage.TrainConfig, flags, config)
    if not devices.is_first():
        stage.run(settings)  # under torchrun, rank 0 speaks for all
        return
    with console.progress("train") as on_tick:
        summary = stage.run(settings, on_tick)
    if json:
        console.as_json(asdict(summary))
        return
    shown = {
        "steps": summary.num_steps,
        "unlabeled images": summary.num_unlabeled,
        "labeled images": summary.num_labeled,
        "labeled also in the pool": summary.labeled_in_pool,
        "synthetic share, estimated": summary.estimated_share,
        **{f"marked: {what}": count for what, count in summary.marked.items()},
        "classes": ", ".join(summary.classes),
        "seconds": summary.seconds,
    }
    console.facts(f"Trained {settings.recipe.method} into {settings.run}", shown | summary.metrics)
    console.note(f"Next: curate score --pool {settings.pool} --run {settings.run}")
