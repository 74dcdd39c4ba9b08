"""What a person's marks add to a training: labeled images, and examples for the detector.

Images of the pool that are marked real and labeled join the labeled set and leave the unlabeled part. The others that
are marked stay unlabeled and are examples for the detector (`models.marked.Marked`).
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models.marked import Marked
from pipelines.errors import BadInput
from pipelines.images.views import ViewMaker, Views
from pipelines.pool.labeled import Labeled
from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows
from pipelines.run import marks
from pipelines.run.marks import Mark


@dataclass(frozen=True)
class Training:
    """A labeled set and the unlabeled rows of a pool with marks applied; images that marks labeled come last."""

    examples: Labeled
    rows: Rows
    marked: Marked | None = None  # indices into `rows`
    fingerprint: str | None = None  # of the marks that were used; None where none was
    counts: dict[str, int] = field(default_factory=dict)  # images that marks made labeled, real or synthetic

    @property
    def num_labeled_by_marks(self) -> int:
        """How many of the labeled images marks have labeled."""
        return self.counts.get("labeled", 0)


def join(pool: Pool, examples: Labeled, run: Path, decoder: ViewMaker) -> Training:
    """Apply the marks of `run` to a labeled set and a pool.

    Raises BadInput for a label that is no class of the labeled set, and for a labeled image that is marked synthetic.
    """
    current = {sha256: mark for sha256, mark in marks.read(run).current.items() if mark.verdict != "skip"}
    if not examples.classes:  # a label then only says that an image is real
        current = {sha256: mark.model_copy(update={"label": None}) for sha256, mark in current.items()}
    for mark in current.values():
        _check(mark, examples, marks.path(run))
    rows = Rows.of_pool(pool, without=examples.digests)
    by_key = _by_key(pool, current)
    if not (found := _found(rows, by_key)):
        return Training(examples, rows)
    labeled = [(row, mark) for row, mark in found if mark.label is not None]
    if labeled:
        examples = _extended(examples, rows, labeled, decoder)
        rows = Rows.of_pool(pool, without=examples.digests)
    real, synthetic, off_class = (
        torch.tensor([row for row, mark in _found(rows, by_key) if mark.verdict in verdicts], dtype=torch.int64)
        for verdicts in (("real", "off-class"), ("synthetic",), ("off-class",))
    )
    used = sorted((mark.sha256, mark.verdict, mark.label or "") for _, mark in found)
    return Training(
        examples,
        rows,
        Marked(real, synthetic, len(examples.labels), off_class),
        hashlib.sha256(json.dumps(used).encode()).hexdigest()[:16],
        {
            "labeled": len(labeled),
            "real": len(real) - len(off_class),
            "synthetic": len(synthetic),
            **({"off_class": len(off_class)} if len(off_class) else {}),
        },
    )


def _check(mark: Mark, examples: Labeled, file: Path) -> None:
    if mark.label is not None and mark.label not in examples.classes:
        raise BadInput(
            f"{file}: {mark.key} is labeled {mark.label!r}, which is not a class of the labeled set "
            f"({', '.join(examples.classes)}). Label it again in `curate review`, or add that class."
        )
    if mark.verdict == "synthetic" and mark.sha256 in examples.digests:
        raise BadInput(
            f"{file}: {mark.key} is marked synthetic, but the labeled set holds it as a real image. Remove it "
            "there, or mark it again in `curate review`."
        )


def _by_key(pool: Pool, current: Mapping[str, Mark]) -> dict[str, Mark]:
    """Marks of images in the pool, by their present keys."""
    if not current:
        return {}
    tables = pool.tables(["key", "sha256"])
    pairs = (
        pair for table in tables for pair in zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    )
    return {key: current[sha256] for key, sha256 in pairs if sha256 in current}


def _found(rows: Rows, by_key: Mapping[str, Mark]) -> list[tuple[int, Mark]]:
    return [(row, by_key[key]) for row, key in enumerate(rows.key.tolist()) if key in by_key] if by_key else []


def _extended(examples: Labeled, rows: Rows, labeled: list[tuple[int, Mark]], decoder: ViewMaker) -> Labeled:
    numbers = [row for row, _ in labeled]
    with ThreadPoolExecutor() as threads:
        views = decoder.batch([mark.key for _, mark in labeled], rows.read(numbers), threads)
    images = torch.cat((examples.views.images, views.images))
    shared = examples.views.tiles is examples.views.images and views.tiles is views.images
    tiles = images if shared else torch.cat((examples.views.tiles, views.tiles))
    labels = torch.tensor([examples.classes.index(mark.label) for _, mark in labeled if mark.label is not None])
    digests = examples.sha256 + tuple(mark.sha256 for _, mark in labeled)
    return Labeled(Views(images, tiles), torch.cat((examples.labels, labels)), examples.classes, digests)
