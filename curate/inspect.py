"""`curate inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate import console

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipelines.inspect import InspectConfig
    from pipelines.inspect.config import DisagreementConfig, DuplicatesConfig
    from pipelines.inspect.lookup import Inspection, Item
    from pipelines.inspect.near_duplicates import Copy
    from pipelines.run.neighbors import Facts


def inspect(
    queries: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY|IMAGE]...", help="Keys of the pool, image files, or folders of images."),
    ] = None,
    disagreement: Annotated[
        bool, typer.Option("--disagreement", help="Instead: images whose neighborhood contradicts their verdict most.")
    ] = False,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates", help="Instead: groups of copies that differ in size or compression.")
    ] = False,
    pool: Annotated[str | None, typer.Option(help="Ingested pool, a folder or URL.  [default: pool]")] = None,
    run: Annotated[Path | None, typer.Option(help="Run that scored it.  [default: run]")] = None,
    neighbors: Annotated[int | None, typer.Option("--neighbors", "-k", help="How many to show.  [default: 10]")] = None,
    top: Annotated[int | None, typer.Option(help="How many images or groups to list.  [default: 50]")] = None,
    radius: Annotated[
        int | None, typer.Option(help="Bits of 64 in which hashes of near-duplicates differ at most.  [default: 4]")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a contact sheet, one HTML file.")] = None,
    config: Annotated[str | None, typer.Option(help="TOML file with any setting of this command.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show an image's scores beside those of the images that the model finds most like it."""
    asked = {"KEY|IMAGE": bool(queries), "--disagreement": disagreement, "--near-duplicates": near_duplicates}
    if sum(asked.values()) != 1:
        raise typer.BadParameter(f"give one of {', '.join(asked)}.")
    belongs = {"--neighbors": not near_duplicates, "--top": not queries, "--radius": near_duplicates}
    for option, value in (("--neighbors", neighbors), ("--top", top), ("--radius", radius)):
        if value is not None and not belongs[option]:
            raise typer.BadParameter(f"{option} has no meaning with {next(name for name in asked if asked[name])}.")

    flags = {"pool": pool, "run": run, "html": html}
    if near_duplicates:
        _near_duplicates(flags | {"top": top, "radius": radius}, config, json)
    elif disagreement:
        _disagreement(flags | {"top": top, "neighbors": neighbors}, config, json)
    else:
        _queries(flags | {"queries": tuple(queries or ()), "neighbors": neighbors}, config, json)


def _queries(flags: dict[str, Any], config: str | None, json: bool) -> None:
    from dataclasses import asdict

    from curate.config import resolve
    from pipelines import inspect as stage

    settings = resolve(stage.InspectConfig, flags, config)
    with console.progress("index") as on_tick:
        summary = stage.run(settings, on_tick)
    if json:
        found = [_as_json(inspection) for inspection in summary.inspections]
        console.as_json({"index": asdict(summary.index), "inspections": found})
        return
    for inspection in summary.inspections:
        show(inspection)
    console.note(_index(summary.index))
    _next(settings.html, f"see the images, or curate export --out clean/ {_places(settings)}")


def _disagreement(flags: dict[str, Any], config: str | None, json: bool) -> None:
    from dataclasses import asdict

    from curate.config import resolve
    from pipelines.inspect import DisagreementConfig, disagreement

    settings = resolve(DisagreementConfig, flags, config)
    with console.progress("disagreement") as on_tick:
        summary = disagreement.run(settings, on_tick)
    if json:
        found = [_as_json(inspection) for inspection in summary.inspections]
        counts = {"num_images": summary.num_images, "contradicted": summary.contradicted}
        console.as_json({"index": asdict(summary.index), **counts, "inspections": found})
        return
    console.facts(
        "Disagreement", {"images": summary.num_images, "contradicted by most of their neighbors": summary.contradicted}
    )
    _pictures((inspection.query.name, inspection.query) for inspection in summary.inspections)
    rows = [
        {
            "key": inspection.query.key,
            "verdict": _verdict(inspection.query),
            "label": f"{inspection.query.pseudo_label} {inspection.query.confidence:.3f}",
            "other verdict": inspection.other_verdict,
            "other label": inspection.other_label,
            "member": inspection.query.member,
        }
        for inspection in summary.inspections
    ]
    console.table(f"How many of {settings.neighbors} nearest neighbors have another verdict or label", rows)
    console.note(_index(summary.index))
    _next(settings.html, f"see them with their neighbors, or curate inspect KEY {_places(settings)}")


def _near_duplicates(flags: dict[str, Any], config: str | None, json: bool) -> None:
    from dataclasses import asdict

    from curate.config import resolve
    from pipelines.inspect import DuplicatesConfig, near_duplicates

    settings = resolve(DuplicatesConfig, flags, config)
    with console.progress("near-duplicates") as on_tick:
        summary = near_duplicates.run(settings, on_tick)
    if json:
        console.as_json(asdict(summary))
        return
    facts = {
        "images": summary.num_images,
        "groups": summary.num_groups,
        "images beside the best of their group": summary.num_redundant,
        "plain surfaces, not compared": summary.num_plain,
    }
    console.facts("Near-duplicates", facts)
    console.table("Largest groups", [_group(group) for group in summary.groups])
    if not summary.confirmed:
        console.note("Some shards have no scores: their images were compared by perceptual hash alone.")
    _next(settings.html, f"see the groups, or curate export --drop-near-duplicates --out clean/ {_places(settings)}")


def _group(group: "Sequence[Copy]") -> dict[str, Any]:
    first, *others = group
    return {
        "images": len(group),
        "best": first.key,
        "size": f"{first.width}x{first.height}",
        "other": others[0].key + (f" and {len(others) - 1} more" if len(others) > 1 else ""),
        "bits apart": max(copy.bits for copy in others),
        "member": first.member,
    }


def _places(settings: "InspectConfig | DisagreementConfig | DuplicatesConfig") -> str:
    return f"--pool {settings.pool} --run {settings.run}"


def _next(html: Path | None, else_to: str) -> None:
    console.note(f"Next: open {html} in a browser" if html else f"Next: add --html sheet.html to {else_to}")


def _index(index: "Facts") -> str:
    if index.exact:
        return f"Neighbors by exact search of {index.num_images:,} images."
    return (
        f"Neighbors by {index.factory} over {index.num_images:,} images, {index.lists_searched} lists a query: "
        f"recall@10 {index.recall_at_10:.3f} against exact search, measured on {index.num_queries} images."
    )


def show(inspection: "Inspection") -> None:
    """Print one query and its neighbors."""
    query, count = inspection.query, len(inspection.neighbors)
    facts: dict[str, Any] = {"file": f"{query.member} of {query.source}"}
    if query.tar:
        facts["lies in"] = f"{query.tar}, {query.num_bytes:,} bytes at {query.offset:,}"
    if query.prob_synthetic is not None:
        agree = count - inspection.other_verdict
        facts["verdict"] = f"{query.verdict}: {query.prob_synthetic:.3f} synthetic; {agree} of {count} neighbors agree"
    agree = count - inspection.other_label
    facts["label"] = f"{query.pseudo_label}: {query.confidence:.3f} confident; {agree} of {count} neighbors agree"
    facts["declares"] = query.declared or "nothing"
    if query.marked:
        facts["marked"] = query.marked
    console.facts(query.name, facts)
    _pictures([(query.name, query), *((f"{item.distance:.4f}", item) for item in inspection.neighbors)])
    console.table(f"Nearest neighbors of {query.name}", _rows(inspection.neighbors))


def _pictures(items: "Iterable[tuple[str, Item]]") -> None:
    """Small pictures with a line below each, where the terminal has the colors for them."""
    if console.shows_pictures():
        from pipelines.images.check import foreign_images
        from pipelines.images.thumbnails import thumbnail
        from pipelines.inspect.lookup import content_of

        with foreign_images():
            pictures = [(line, thumbnail(content_of(item), console.PICTURE_SIDE)) for line, item in items]
        console.pictures(pictures)


def _verdict(item: "Item") -> str:
    return item.verdict if item.prob_synthetic is None else f"{item.verdict} {item.prob_synthetic:.3f}"


def _rows(items: "Sequence[Item]") -> list[dict[str, Any]]:
    """Rows that fit a terminal of 80 columns; --json and --html have every field."""
    rows = [
        {
            "key": item.key,
            "distance": f"{item.distance:.4f}",
            "verdict": _verdict(item),
            "label": f"{item.pseudo_label} {item.confidence:.3f}",
            "marked": item.marked,
            "declares": item.declared,
            "member": item.member,
        }
        for item in items
    ]
    for name in ("marked", "declares"):
        if not any(row[name] for row in rows):
            for row in rows:
                del row[name]
    return rows


def _as_json(inspection: "Inspection") -> dict[str, Any]:
    from dataclasses import asdict

    counts = {"other_verdict": inspection.other_verdict, "other_label": inspection.other_label}
    return asdict(inspection) | counts
