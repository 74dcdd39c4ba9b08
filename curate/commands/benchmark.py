"""`curate benchmark`."""

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from curate import console
from curate.config import read_toml, resolve
from curate.options import GENERAL, Flags, Json, options
from pipelines import benchmark as stage
from pipelines.benchmark import BenchmarkConfig
from pipelines.distribution import pip_install
from pipelines.errors import BadInput

_RECIPE = "benchmark-cpu"
_NAMES = {
    "methods": "--method",
    "contaminations": "--contamination",
    "alphas": "--alpha",
    "classes": "--class",
    "learning_rates": "--learning-rate",
}


@options(
    BenchmarkConfig,
    groups={
        "Data": ("real", "synthetic", "test", "photographs", "out", "size"),
        "Matrix": ("methods", "contaminations", "alphas", "labels", "seeds", "classes", "num_real", "learning_rates"),
        "Machine": ("jobs",),
    },
    names=_NAMES,
    recipe=read_toml(_RECIPE),
)
def benchmark(
    flags: Flags,
    download: Annotated[
        Literal["cifar10", "cifar100", "tinyimagenet"] | None,
        typer.Option(help="Data set to fetch into OUT/data and use for --real and --test.", rich_help_panel="Data"),
    ] = None,
    num_steps: Annotated[
        int | None, typer.Option(metavar="<int>", min=1, help="Training steps of each run.", rich_help_panel="Matrix")
    ] = None,
    config: Annotated[
        str,
        typer.Option(
            metavar="<file>",
            help="TOML file with any setting of this command, or a recipe that ships with curate: benchmark-cpu, "
            "benchmark-cpu-four, benchmark-gpu.",
            rich_help_panel=GENERAL,
        ),
    ] = _RECIPE,
    json: Json = False,
) -> None:
    """Compare methods on contaminated pools of known images.

    Writes a table with confidence intervals, and plots.
    """
    from pipelines.benchmark import downloads, table
    from pipelines.benchmark.methods import merged

    if missing := [name for name in ("scipy", "matplotlib") if find_spec(name) is None]:
        raise BadInput(f"curate benchmark needs {missing[0]}: {pip_install('benchmark')}.")
    if download is None and config == _RECIPE:
        absent = [name for name in ("real", "synthetic", "test") if name not in flags]
        if absent:
            raise BadInput(f"--{absent[0]} is missing: give a folder with one folder of images per class, or parquet.")
    if download:
        fetched = downloads.fetch(download, Path(flags.get("out", "benchmark")) / "data")
        flags = {"real": fetched / "train.parquet", "test": fetched / "test.parquet"} | flags
    settings = resolve(BenchmarkConfig, flags, config, names=_NAMES)
    if num_steps is not None:
        settings = settings.model_copy(update={"train": merged(settings.train, {"recipe": {"num_steps": num_steps}})})
    with console.progress("benchmark") as on_tick:
        summary = stage.run(settings, on_tick)
    if json:
        console.as_json(asdict(summary))
        return
    for rows in table.grouped(summary.table, table.CELL).values():
        console.table(table.title(rows[0]), table.shown(rows))
    console.note(f"Next: look at {settings.out}/table.md and {', '.join(summary.figures)}")
