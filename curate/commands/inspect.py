"""`curate inspect`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate import console
from curate.config import resolve
from curate.options import ConfigFile, Flags, Json, options
from pipelines import inspect as stage
from pipelines.inspect import DisagreementConfig, DuplicatesConfig, InspectConfig

if TYPE_CHECKING:
    from pipelines.inspect.lookup import Inspection, Item
    from pipelines.inspect.near_duplicates import Copy
    from pipelines.run.neighbors import Facts


@options(
    InspectConfig,
    DisagreementConfig,
    DuplicatesConfig,
    groups={"Data": ("pool", "run"), "Listing": ("neighbors", "top", "radius", "turned", "html")},
    names={"neighbors": "--neighbors -k"},
)
def inspect(
    flags: Flags,
    queries: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY|IMAGE|NAME",
            help=InspectConfig.model_fields["queries"].description,
            show_default=False,
        ),
    ] = None,
    disagreement: Annotated[
        bool,
        typer.Option(
            "--disagreement",
            help="Instead, list the images whose verdict is contradicted by the most neighbors.",
            rich_help_panel="Listing",
        ),
    ] = False,
    near_duplicates: Annotated[
        bool,
        typer.Option(
            "--near-duplicates",
            help="Instead, list groups of copies that differ in size or compression.",
            rich_help_panel="Listing",
        ),
    ] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Show images and their scores beside their nearest neighbors.

    Neighbors are the images of the pool that the model finds most similar.
    """
    asked = {"KEY|IMAGE|NAME": bool(queries), "--disagreement": disagreement, "--near-duplicates": near_duplicates}
    if sum(asked.values()) != 1:
        raise typer.BadParameter(f"give one of {', '.join(asked)}.")
    applies = {
        "neighbors": not near_duplicates,
        "top": not queries,
        "radius": near_duplicates,
        "turned": near_duplicates,
    }
    for path, does in applies.items():
        if path in flags and not does:
            mode = next(name for name in asked if asked[name])
            raise typer.BadParameter(f"--{path} does not apply to {mode}.")
    if near_duplicates:
        _near_duplicates(flags, config, json)
    elif disagreement:
        _disagreement(flags, config, json)
    else:
        _queries(flags | {"queries": tuple(queries or ())}, config, json)


def _queries(flags: Flags, config: str | None, json: bool) -> None:
    settings = resolve(InspectConfig, flags, config)
    with console.progress("index") as on_tick:
        summary = stage.run(settings, on_tick)
    if json:
        found = [_as_json(inspection) for inspection in summary.inspections]
        index = {"index": asdict(summary.index), "neighbors_are_layout": summary.neighbors_are_layout}
        console.as_json(index | {"inspections": found})
        return
    for inspection in summary.inspections:
        show(inspection)
    console.note(_index(summary.index, summary.neighbors_are_layout))
    _next(settings.html, f"see the images, or {_export(settings)}")


def _disagreement(flags: Flags, config: str | None, json: bool) -> None:
    from pipelines.inspect import disagreement

    settings = resolve(DisagreementConfig, flags, config)
    with console.progress("disagreement") as on_tick:
        summary = disagreement.run(settings, on_tick)
    if json:
        found = [_as_json(inspection) for inspection in summary.inspections]
        counts = {"num_images": summary.num_images, "contradicted": summary.contradicted}
        index = {"index": asdict(summary.index), "neighbors_are_layout": summary.neighbors_are_layout}
        console.as_json(index | counts | {"inspections": found})
        return
    facts = {"images": summary.num_images, "contradicted by most of their neighbors": summary.contradicted}
    console.facts("Disagreement", facts)
    rows = [
        {
            "key": inspection.query.key,
            "verdict": _verdict(inspection.query),
            "label": _label(inspection.query),
            "other verdict": inspection.other_verdict,
            "other label": inspection.other_label,
            "member": inspection.query.member,
        }
        for inspection in summary.inspections
    ]
    has_labels = any(row["label"] for row in rows)
    what = "verdict or label" if has_labels or not rows else "verdict"
    rows = _without_empty(rows, "label", "other label")
    console.table(f"How many of {settings.neighbors} nearest neighbors have another {what}", rows)
    console.note(_index(summary.index, summary.neighbors_are_layout))
    look = console.command("inspect", "KEY", pool=settings.pool, run=settings.run)
    _next(settings.html, f"see them with their neighbors, or {look}")


def _near_duplicates(flags: Flags, config: str | None, json: bool) -> None:
    from pipelines.inspect import near_duplicates

    settings = resolve(DuplicatesConfig, flags, config)
    with console.progress("near-duplicates") as on_tick:
        summary = near_duplicates.run(settings, on_tick)
    if json:
        console.as_json(asdict(summary))
        return
    facts = {
        "images": summary.num_images,
        "groups": summary.num_groups,
        "redundant images, all but the best of each group": summary.num_redundant,
        "plain surfaces, not compared": summary.num_plain,
    }
    console.facts("Near-duplicates", facts)
    console.table("Largest groups", [_group(group) for group in summary.groups])
    if not summary.confirmed:
        console.note("Some shards have no scores; their images were compared only by perceptual hash.")
    _next(settings.html, f"see the groups, or {_export(settings, '--drop-near-duplicates')}")


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


def _export(settings: InspectConfig | DuplicatesConfig, *arguments: str) -> str:
    return console.command("export", *arguments, out="clean/", pool=settings.pool, run=settings.run)


def _next(html: Path | None, else_to: str) -> None:
    console.note(f"Next: open {html} in a browser" if html else f"Next: add --html sheet.html to {else_to}")


def _index(index: "Facts", are_layout: bool) -> str:
    of_layout = (
        " Neighbors have similar colors in similar places: no network has learned what the images show."
        if are_layout
        else ""
    )
    if index.exact:
        return f"Neighbors by exact search of {index.num_images:,} images.{of_layout}"
    return (
        f"Neighbors by {index.factory} over {index.num_images:,} images, {index.lists_searched} lists per query: "
        f"recall@10 {index.recall_at_10:.3f} against exact search, measured on {index.num_queries} images.{of_layout}"
    )


def show(inspection: "Inspection") -> None:
    """Print one query and its neighbors."""
    query, count = inspection.query, len(inspection.neighbors)
    facts: dict[str, Any] = {"file": f"{query.member} of {query.source}"}
    if query.tar:
        facts["stored in"] = f"{query.tar}, {query.num_bytes:,} bytes at {query.offset:,}"
    if query.prob_synthetic is not None:
        agree = count - inspection.other_verdict
        facts["verdict"] = f"{query.verdict}: {query.prob_synthetic:.3f} synthetic; {agree} of {count} neighbors agree"
    if inspection.other_label is not None:
        agree = count - inspection.other_label
        facts["label"] = f"{query.pseudo_label}: {query.confidence:.3f} confident; {agree} of {count} neighbors agree"
    facts["declares"] = query.declared or "nothing"
    facts |= {_CRAWL.get(name, name): value for name, value in query.crawl.items()}
    if query.marked:
        facts["marked"] = query.marked
    console.facts(query.name, facts)
    console.table(f"Nearest neighbors of {query.name}", _rows(inspection.neighbors))


_CRAWL = {
    "crawl_key": "name in the crawl", "original_width": "original width", "original_height": "original height",
}  # fmt: skip


def _verdict(item: "Item") -> str:
    judged = item.verdict or "not judged"
    return judged if item.prob_synthetic is None else f"{judged} {item.prob_synthetic:.3f}"


def _label(item: "Item") -> str | None:
    return None if item.pseudo_label is None else f"{item.pseudo_label} {item.confidence:.3f}"


def _without_empty(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """The same rows without those of the named columns that are empty in all of them."""
    empty = {name for name in names if all(row[name] is None for row in rows)}
    return [{name: value for name, value in row.items() if name not in empty} for row in rows]


def _rows(items: "Sequence[Item]") -> list[dict[str, Any]]:
    """Rows that fit a terminal of 80 columns; --json and --html have every field."""
    rows = [
        {
            "key": item.key,
            "distance": f"{item.distance:.4f}",
            "verdict": _verdict(item),
            "label": _label(item),
            "marked": item.marked,
            "declares": item.declared,
            "member": item.member,
        }
        for item in items
    ]
    return _without_empty(rows, "label", "marked", "declares")


def _as_json(inspection: "Inspection") -> dict[str, Any]:
    counts = {"other_verdict": inspection.other_verdict, "other_label": inspection.other_label}
    return asdict(inspection) | counts
