"""`curate benchmark`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from curate import console


def benchmark(
    real: Annotated[
        Path | None, typer.Option(help="Real images: a folder per class, parquet, or WebDataset shards with .cls.")
    ] = None,
    synthetic: Annotated[Path | None, typer.Option(help="Synthetic images of the same classes, likewise.")] = None,
    test: Annotated[Path | None, typer.Option(help="Real test images, likewise.")] = None,
    photographs: Annotated[
        Path | None,
        typer.Option(help="Larger real images, likewise: is their way of scaling taken for a trace of a generator?"),
    ] = None,
    download: Annotated[
        Literal["cifar10", "cifar100", "tinyimagenet"] | None,
        typer.Option(help="Fetch this data set for --real and --test; into OUT/data."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the results go.  [default: benchmark]")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Repeat for several; an unknown name lists all that there are.")
    ] = None,
    contamination: Annotated[
        list[str] | None,
        typer.Option(help="balanced, imbalanced, off-class or low-quality; NAME:SHARE for a part; repeat for several."),
    ] = None,
    alpha: Annotated[
        list[float] | None, typer.Option(help="Synthetic images for each real one; repeat for several.")
    ] = None,
    labels: Annotated[list[int] | None, typer.Option(help="Labeled images in all; repeat for several.")] = None,
    seeds: Annotated[int | None, typer.Option(help="[default: 3]")] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="A class of the task; repeat for several.  [default: all]")
    ] = None,
    num_real: Annotated[
        list[int] | None, typer.Option(help="Real images of the pool; repeat for several.  [default: 6000]")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Send all images through one common resize and JPEG.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs side by side.  [default: 1]")] = None,
    learning_rate: Annotated[
        list[float] | None, typer.Option(help="Repeat for several, of which the best of each method counts.")
    ] = None,
    num_steps: Annotated[int | None, typer.Option(min=1, help="Training steps of each run.")] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="TOML file, or a protocol that ships: benchmark-cpu, benchmark-cpu-four, benchmark-gpu.  "
            "[default: benchmark-cpu]"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare methods on contaminated pools of known images: a table with confidence intervals, and plots."""
    from dataclasses import asdict
    from importlib.util import find_spec

    from curate.config import resolve
    from pipelines import benchmark as stage
    from pipelines.benchmark import downloads, table
    from pipelines.benchmark.methods import merged
    from pipelines.errors import BadInput

    if missing := [name for name in ("scipy", "matplotlib") if find_spec(name) is None]:
        raise BadInput(f"curate benchmark needs {missing[0]}: pip install 'curate[benchmark]'.")
    if download is None and config is None:
        given = {"--real": real, "--synthetic": synthetic, "--test": test}
        if absent := [name for name, value in given.items() if value is None]:
            raise BadInput(f"{absent[0]} is missing: give a folder with one folder of images per class, or parquet.")
    if download:
        fetched = downloads.fetch(download, (out or Path("benchmark")) / "data")
        real, test = real or fetched / "train.parquet", test or fetched / "test.parquet"
    flags: dict[str, Any] = {
        "real": real, "synthetic": synthetic, "test": test, "photographs": photographs, "out": out, "methods": method,
        "contaminations": contamination, "classes": classes, "num_real": num_real, "alphas": alpha, "labels": labels,
        "learning_rates": learning_rate, "seeds": seeds, "size": size, "jobs": jobs,
    }  # fmt: skip
    options = {
        "methods": "--method", "contaminations": "--contamination", "classes": "--class", "alphas": "--alpha",
        "learning_rates": "--learning-rate",
    }  # fmt: skip
    settings = resolve(stage.BenchmarkConfig, flags, config or "benchmark-cpu", options=options)
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
