"""`curate generate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from curate import console


def generate(
    classes: Annotated[
        str | None,
        typer.Option(metavar="NAMES|FILE", help="Class names with commas between, or a .txt file with one a line."),
    ] = None,
    per_class: Annotated[int | None, typer.Option(help="Images of each class.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; a generation begun there goes on.")] = None,
    prompt_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Writes the prompts.  [default: google/flan-t5-base]")
    ] = None,
    image_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Text-to-image pipeline of diffusers: hub or folder.  [default: CompVis/stable-diffusion-v1-4]",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.  [default: the pipeline's]")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.  [default: the pipeline's]")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images, in pixels.  [default: the pipeline's]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts and images.  [default: 0]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at once.  [default: 4]")] = None,
    device: Annotated[Literal["auto", "cuda", "cpu"] | None, typer.Option(help="[default: auto]")] = None,
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"] | None,
        typer.Option(help="Precision of the image model.  [default: auto, float16 on a GPU]"),
    ] = None,
    config: Annotated[str | None, typer.Option(help="TOML file with any setting of this command.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Generate synthetic images of given classes, as WebDataset shards: the other half of a benchmark.

    Needs pip install 'curate[generate]'. Started again it goes on.
    """
    from dataclasses import asdict

    from curate.config import resolve
    from pipelines import generate as stage
    from pipelines.errors import BadInput
    from pipelines.generate import stage as generate_stage

    needed = {"classes": classes, "per-class": per_class, "out": out}
    if config is None and (missing := [name for name, value in needed.items() if value is None]):
        example = "--classes airplane,bird --per-class 100 --out generated/"
        raise BadInput(f"--{missing[0]} is missing: say what to generate, such as {example}.")
    flags = {
        "classes": generate_stage.read_classes(classes) if classes else None, "per_class": per_class, "out": out,
        "prompt_model": prompt_model, "image_model": image_model, "steps": steps, "guidance": guidance, "size": size,
        "seed": seed, "batch_size": batch_size, "device": device, "dtype": dtype,
    }  # fmt: skip
    settings = resolve(stage.GenerateConfig, flags, config)
    with console.progress("generate") as on_tick:
        summary = stage.run(settings, on_tick)
    for note in summary.notes:
        console.note(f"Note: {note}")
    if json:
        console.as_json(asdict(summary))
        return
    shown = {
        "images": summary.images,
        "withheld by the model's safety checker": summary.withheld,
        "prompts": summary.prompts,
        "shards": summary.shards,
        "shards that were there": summary.num_done_before,
        "seconds": summary.seconds,
    }
    console.facts(f"Generated into {summary.out}", shown)
    console.table("Images", [{"class": name, "images": count} for name, count in summary.per_class.items()])
    last = f"{summary.shards - 1:05d}"
    shards = f"{{00000..{last}}}" if summary.shards > 1 else "00000"
    console.note(f'Next: look at some, then bring them into a pool: curate ingest "{summary.out}/{shards}.tar"')
