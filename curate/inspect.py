"""`curate inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.inspect import Inspection, Item


def inspect(
    queries: Annotated[
        list[str],
        typer.Argument(metavar="KEY|IMAGE...", help="Keys of the pool, image files, or folders of images."),
    ],
    pool: Annotated[Path | None, typer.Option(help="Ingested pool.  [default: pool]")] = None,
    run: Annotated[Path | None, typer.Option(help="Run that scored it.  [default: run]")] = None,
    neighbors: Annotated[int | None, typer.Option("--neighbors", "-k", help="How many to show.  [default: 10]")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a contact sheet, one HTML file.")] = None,
    config: Annotated[str | None, typer.Option(help="TOML file with any setting of this command.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show an image's scores beside those of the images that the model finds most like it."""
    from curate.config import resolve
    from pipelines import inspect as stage

    flags = {"queries": tuple(queries), "pool": pool, "run": run, "neighbors": neighbors, "html": html}
    settings = resolve(stage.InspectConfig, flags, config)
    with console.progress("index") as on_tick:
        inspections = stage.run(settings, on_tick)
    if json:
        console.as_json({"inspections": [_as_json(inspection) for inspection in inspections]})
        return
    for inspection in inspections:
        show(inspection)
    if settings.html:
        console.note(f"Next: open {settings.html} in a browser")
    else:
        console.note("Next: add --html sheet.html to see the images, or curate export --out clean/")


def show(inspection: "Inspection") -> None:
    """Print one query and its neighbors."""
    query, count = inspection.query, len(inspection.neighbors)
    facts: dict[str, Any] = {"file": f"{query.member} of {query.source}"}
    if query.prob_synthetic is not None:
        agree = count - inspection.other_verdict
        facts["verdict"] = f"{query.verdict}: {query.prob_synthetic:.3f} synthetic; {agree} of {count} neighbors agree"
    agree = count - inspection.other_label
    facts["label"] = f"{query.pseudo_label}: {query.confidence:.3f} confident; {agree} of {count} neighbors agree"
    facts["declares"] = query.declared or "nothing"
    console.facts(query.name, facts)
    console.table(f"Nearest neighbors of {query.name}", _rows(inspection.neighbors))


def _rows(items: "Sequence[Item]") -> list[dict[str, Any]]:
    """Rows that fit a terminal of 80 columns; --json and --html have every field."""
    rows = [
        {
            "key": item.key,
            "distance": f"{item.distance:.4f}",
            "verdict": item.verdict if item.prob_synthetic is None else f"{item.verdict} {item.prob_synthetic:.3f}",
            "label": f"{item.pseudo_label} {item.confidence:.3f}",
            "declares": item.declared,
            "member": item.member,
        }
        for item in items
    ]
    if not any(item.declared for item in items):
        for row in rows:
            del row["declares"]
    return rows


def _as_json(inspection: "Inspection") -> dict[str, Any]:
    from dataclasses import asdict

    counts = {"other_verdict": inspection.other_verdict, "other_label": inspection.other_label}
    return asdict(inspection) | counts
