"""`curate generate`."""

from dataclasses import asdict
from typing import Annotated

import typer

from curate import console
from curate.config import resolve
from curate.options import ConfigFile, Flags, Json, options
from pipelines import generate as stage
from pipelines.errors import BadInput
from pipelines.generate import GenerateConfig


@options(
    GenerateConfig,
    groups={
        "Data": ("per_class", "out", "size", "seed"),
        "Models": ("prompt_model", "image_model", "steps", "guidance"),
        "Machine": ("batch_size", "device", "dtype"),
    },
)
def generate(
    flags: Flags,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="<names|file>",
            help="Names of the classes with commas between them, or a .txt file with one per line.",
            rich_help_panel="Data",
        ),
    ] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Generate synthetic images of given classes.

    They are WebDataset shards, and can be the synthetic half of a benchmark. Needs pip install
    'curate-images[generate]'. Run it again to resume.
    """
    from pipelines.generate.stage import read_classes

    needed = {"--classes": classes, "--per-class": flags.get("per_class"), "--out": flags.get("out")}
    if config is None and (missing := [option for option, value in needed.items() if value is None]):
        example = "--classes airplane,bird --per-class 100 --out generated/"
        raise BadInput(f"{missing[0]} is missing: say what to generate, such as {example}.")
    settings = resolve(GenerateConfig, flags | {"classes": read_classes(classes) if classes else None}, config)
    with console.progress("generate") as on_tick:
        summary = stage.run(settings, on_tick)
    for note in summary.notes:
        console.note(f"Note: {note}")
    if json:
        console.as_json(asdict(summary))
        return
    facts = {
        "images": summary.images,
        "withheld by the model's safety checker": summary.withheld,
        "prompts": summary.prompts,
        "shards": summary.shards,
        "shards generated before": summary.num_done_before,
        "took": console.duration(summary.seconds),
    }
    console.facts(f"Generated into {summary.out}", facts)
    console.table("Images", [{"class": name, "images": count} for name, count in summary.per_class.items()])
    last = f"{summary.shards - 1:05d}"
    shards = f"{{00000..{last}}}" if summary.shards > 1 else "00000"
    ingest = console.command("ingest", f"{summary.out}/{shards}.tar")
    console.note(f"Next: look at some, then bring them into a pool: {ingest}")
