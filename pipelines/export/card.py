"""The README.md of an export, a dataset card: what is in it, how far to trust it, and the lines that load it.

The block at its head tells Hugging Face which files are the data. There is no date: equal exports are equal bytes.
"""

import html
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from pipelines.distribution import VERSION
from pipelines.errors import MissingArtifact
from pipelines.export.config import ExportConfig, Summary
from pipelines.export.rows import Rows
from pipelines.export.shape import OURS, Shape
from pipelines.run import verdicts
from pipelines.run.quality import Quality
from pipelines.run.verdicts import Thresholds

_MANY = 100  # classes, from which the card leaves the table of them to kept.parquet

LICENSE = (
    "curate does not know the licenses of these images. They keep those of their sources: `source` and `member` in "
    "`kept.parquet` say where each image came from, and what the crawl knew of it (URL, license) is in its JSON."
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is said of an export."""

    name: str  # of its folder
    config: ExportConfig
    summary: Summary
    types: Mapping[str, str]  # of the fields in the JSON, by name
    common: frozenset[str]  # suffixes of further members
    formats: Mapping[str, int]  # images by format
    has_detector: bool
    has_scores: bool
    told: Quality | None
    thresholds: Thresholds | None

    @classmethod
    def of(
        cls,
        rows: Rows,
        config: ExportConfig,
        shape: Shape,
        summary: Summary,
        told: Quality | None,
        formats: Mapping[str, int],
    ) -> Self:
        """Gather the facts of an export of `rows`."""
        thresholds = None
        if rows.has_detector:
            with suppress(MissingArtifact):  # scores can be exported without them
                thresholds = verdicts.load(rows.scored.folder)
        return cls(
            name=config.out.name or "export",
            config=config,
            summary=summary,
            types=shape.types(),
            common=shape.common,
            formats=dict(sorted(formats.items(), key=lambda item: (-item[1], item[0]))),
            has_detector=rows.has_detector,
            has_scores=rows.has_scores,
            told=told,
            thresholds=thresholds,
        )

    @property
    def pattern(self) -> str:
        """Names of the shards, as a glob."""
        return "[0-9]*.parquet" if self.config.format == "parquet" else "*.tar"

    @property
    def has_labels(self) -> bool:
        """Whether each sample has a `.cls`: ours, or the crawl's."""
        return bool(self.summary.per_class) or "cls" in self.common


def text(facts: Facts) -> str:
    """Write the card, in Markdown."""
    sections = [
        _head(facts),
        f"# {_safe(facts.name)}\n\n{facts.summary.kept:,} of the {facts.summary.pool:,} images of a pool, chosen by "
        f"curate {VERSION}: every image decodes to its end, and its bytes "
        "are those that were crawled.",
        _section("What is in it", _content(facts)),
        _section("How it was chosen", _choice(facts)),
        _section("How far to trust it", _trust(facts)),
        _section("License", [LICENSE]),
        _section("How to load it", _loaders(facts)),
    ]
    return "\n\n".join(sections) + "\n"


def _head(facts: Facts) -> str:
    return "\n".join(
        (
            "---",
            "configs:",
            "- config_name: default",
            "  data_files:",
            "  - split: train",
            f'    path: "{facts.pattern}"',
            "license: other",
            "tags:",
            "- curate",
            "---",
        )
    )


def _section(title: str, paragraphs: Iterable[str]) -> str:
    return "\n\n".join([f"## {title}", *(part for part in paragraphs if part)])


def _content(facts: Facts) -> Iterable[str]:
    summary = facts.summary
    fields = ", ".join(f"`{_safe(name)}`" for name in facts.types if name != OURS)
    captions = (
        f"{summary.captions:,} images have a caption; that of the others is empty."
        if summary.captions
        else "No image has a caption."
    )
    yield _table(
        ("", "count"),
        [
            ("images", f"{summary.kept:,}"),
            ("shards", f"{summary.shards:,}"),
            ("MB of images", f"{summary.num_bytes / 1e6:,.1f}"),
            *((f"images in {name}", f"{count:,}") for name, count in facts.formats.items()),
        ],
    )
    if facts.config.format == "webdataset":
        yield (
            "Each image is a member `KEY.jpg`, whatever its format: its bytes are untouched, readers go by them, and "
            "`curate.format` in `KEY.json` says what they are."
        )
    yield captions
    if fields:
        yield f"Fields of the JSON beside `curate`: {fields}. A field that some images lack is text, empty there."
    if summary.left_out:
        listed = ", ".join(f"`.{_safe(suffix)}` ({count:,} images)" for suffix, count in summary.left_out.items())
        yield f"Not all images have a file {listed}: those were left out, so that all samples are alike."
    if summary.per_class and len(summary.per_class) <= _MANY:
        rows = ((str(i), _safe(name), f"{count:,}") for i, (name, count) in enumerate(summary.per_class.items()))
        yield _table(("class index", "class", "images"), rows)


def _choice(facts: Facts) -> Iterable[str]:
    config, summary = facts.config, facts.summary
    named = {"keep": config.keep}
    for name in type(config).model_fields:
        if name not in ("out", "pool", "run", "keep", "jobs", "engine", "ray_address", "shard_size", "format"):
            value = getattr(config, name)
            if value != type(config).model_fields[name].default:
                named[name] = value
    yield _table(("option", "value"), ((f"`{name}`", f"`{_safe(str(value))}`") for name, value in named.items()))
    if summary.dropped:
        rows = [
            (reason.replace("_", " "), f"{count:,}", f"{100 * count / summary.pool:.1f} %")
            for reason, count in summary.dropped.items()
        ]
        yield _table(("dropped", "images", "of the pool"), rows)
    yield "`dropped.parquet` has the reason for each image that was dropped, `kept.parquet` lists the others."


def _trust(facts: Facts) -> Iterable[str]:
    if not facts.has_scores:
        yield "Nothing was scored: no one has looked for synthetic images, and there are no labels by a model."
    elif not facts.has_detector:
        yield "No detector was trained: no one has looked for synthetic images."
    else:
        statements = facts.told.statements if facts.told else (facts.summary.warning,)
        yield " ".join(_safe(statement) for statement in statements)
        if facts.thresholds:
            limits = facts.thresholds
            yield (
                f"An image is called synthetic from a probability of {limits.synthetic_from:.3f} (`prob_synthetic`), "
                f"and real below {limits.real_below:.3f}. {limits.statement}"
            )
    if facts.summary.per_class:
        yield (
            "Labels (`.cls`, `pseudo_label`) are a model's, or a person's where `curate.marked` is not empty. "
            "-1 stands for none."
        )
        yield _safe(facts.summary.labels)
    elif facts.has_labels:
        yield "Labels (`.cls`) are the crawl's own."


def _loaders(facts: Facts) -> Iterable[str]:
    name, caption = _plain(facts.name), facts.summary.captions > 0
    extra = '"cls"' if facts.has_labels else '"txt"' if caption else '"json"'
    if facts.config.format == "parquet":
        yield _code(f'from datasets import load_dataset\ndataset = load_dataset("{name}", split="train")')
        return
    last = max(facts.summary.shards - 1, 0)
    shards = f"{name}/{{00000..{last:05d}}}.tar" if last else f"{name}/00000.tar"
    yield _code(
        "import webdataset as wds\n"
        f'dataset = wds.WebDataset("{shards}", shardshuffle=100).decode("pil").to_tuple("jpg", {extra})'
    )
    yield _code(f'from datasets import load_dataset\ndataset = load_dataset("{name}", split="train")')
    label = ',"label":"cls"' if facts.has_labels else ',"caption":"txt"' if caption else ""
    kind = "ImageClassificationSample" if facts.has_labels else "CaptioningSample" if caption else "ImageSample"
    yield _code(
        f"energon prepare --non-interactive --split-ratio 8,1,1 --sample-type {kind} "
        f'--field-map \'{{"image":"jpg"{label}}}\' {name}/',
        "sh",
    )
    if caption:
        yield _code(
            f'python -m open_clip_train.main --dataset-type webdataset --train-data "{shards}" '
            f"--train-num-samples {facts.summary.kept}",
            "sh",
        )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _code(lines: str, language: str = "python") -> str:
    return f"```{language}\n{lines}\n```"


def _safe(name: str) -> str:
    """A name for Markdown, in one line: HTML, table borders and backticks in it stay text."""
    return html.escape(" ".join(name.split()), quote=False).replace("|", "\\|").replace("`", "'")


def _plain(name: str) -> str:
    """A name for a line of code."""
    return "".join(char for char in name if char.isalnum() or char in " ._-") or "export"
