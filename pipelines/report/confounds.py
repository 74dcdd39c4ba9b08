"""Looks for confounds: properties of the files, not of the pictures, that predict the verdict or set the labeled images
apart.

A detector that learned the file format looks as good as one that learned to see. So for each property of the files,
the audit measures how well it alone predicts the verdict, and how much the labeled images differ in it from the pool,
which is where a detector would have learned it. It also measures whether verdicts survive invisible changes.

    properties    what is asked of the files
    association   how a property is judged
    stability     what invisible changes do to the verdicts

In: a sample of a scored pool and the labeled set's files. Out: values, which `pipelines.report.page` shows.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines.pool.labeled_files import File
from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick, Tick, ignore
from pipelines.report import properties, stability
from pipelines.report.stability import Stability
from pipelines.run import association
from pipelines.run.association import Cell, Property

if TYPE_CHECKING:
    from pipelines.run.scorer import Scorer

INSPECTED = 4_000  # images of the sample whose files are opened
LABELED = 1_000  # files of the labeled set that are read
CHANGED = 500  # images of the sample that are changed and scored again
CHANGED_PHOTOGRAPHS = 20  # of those whose features take a fifth of a second each
# Saved once more as a JPEG of quality 90, 2 % of the verdicts on a crawl flip; if the detector learned the file format,
# 34 % do. So few images must not warn by chance: 2 of 20 are no warning yet, 3 are.
WARN_FLIPPED, AT_LEAST_FLIPPED = 0.1, 0.05

_BATCH = 64  # images scored at a time
_ADVICE_ELSE = "trust verdicts only among images that are alike in it, or make the images alike and train again"
_ADVICE = dict.fromkeys(
    ("source", "domain"), "look at images of both kinds with `curate inspect` before you trust its verdicts"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """All findings."""

    properties: tuple[Property, ...]
    constant: dict[str, str]  # properties that are the same in all images, with their value
    num_labeled: int
    labeled_probs: tuple[float, ...]  # prob_synthetic of the labeled images; empty without a detector
    stability: tuple[Stability, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]  # what could not be examined, and why


@dataclass(frozen=True, kw_only=True, slots=True)
class Labeled:
    """What the files of the labeled set tell."""

    values: dict[str, list[Any]]  # of each property
    probs: tuple[float, ...]  # prob_synthetic; empty without a detector
    notes: tuple[str, ...]


def audit(
    pool: Pool,
    sample: pa.Table,
    labeled: Sequence[File] | None,
    scorer: "Scorer | None",
    on_tick: OnTick = ignore,
) -> Audit:
    """Examine all properties of `sample`, rows of `pipelines.report.survey`, whose first files are opened.

    `scorer` is None without a detector. Raises CorruptShard if an image that the pool lists is missing.
    """
    has_verdict = "synthetic" in sample.column_names and not sample["synthetic"].null_count
    verdict = sample["synthetic"].to_numpy() if has_verdict else None
    probs = sample["prob_synthetic"].to_numpy() if has_verdict else None
    unsure = np.array(sample["verdict"].to_pylist()) == "unsure" if has_verdict else None
    of_pool = properties.of_manifest(sample) | properties.of_files(pool, sample.slice(0, INSPECTED), on_tick)
    of_labeled = read_labeled(labeled or (), scorer, on_tick)
    judged, constant = [], {}
    for name, values in of_pool.items():
        among = of_labeled.values.get(name, [])
        if len(different := {value for value in (*values, *among) if value is not None}) == 1:
            (value,) = different
            constant[name] = f"{value:g}" if isinstance(value, float) else str(value)
        elif different:
            judged.append(association.judge(name, values, among, verdict, probs, unsure))
    count = CHANGED_PHOTOGRAPHS if scorer and scorer.model.frozen is not None else CHANGED
    changed = stability.measure(pool, sample.slice(0, count), scorer, on_tick) if scorer and has_verdict else ()
    return Audit(
        properties=tuple(sorted(judged, key=lambda each: -(each.auroc or 0))),
        constant=constant,
        num_labeled=len(of_labeled.values.get("format", [])),
        labeled_probs=of_labeled.probs,
        stability=changed,
        warnings=(*(sentence for each in judged for sentence in _warnings(each)), *_unstable(changed)),
        notes=of_labeled.notes,
    )


def read_labeled(paths: Sequence[File], scorer: "Scorer | None", on_tick: OnTick) -> Labeled:
    """Properties and scores of the labeled set's files; files that are no longer readable images are noted."""
    values = defaultdict[str, list[Any]](list)
    probs: list[float] = []
    num_read = 0
    for start in range(0, len(paths), _BATCH):
        contents = []
        for content, found in properties.of_labeled(paths[start : start + _BATCH]):
            contents.append(content)
            for name, value in found.items():
                values[name].append(value)
        if scorer and contents and scorer.model.frozen is None:
            probs += scorer.prob_synthetic(contents).tolist()
        num_read += len(contents)
        on_tick(Tick(done=min(start + _BATCH, len(paths)), total=len(paths), unit="labeled images"))
    if scorer and num_read and scorer.model.frozen is not None:  # training has kept what its panel says of them
        probs = list(scorer.model.config.held_out)
    lost = len(paths) - num_read
    notes = (f"{lost} of {len(paths)} images of the labeled set can no longer be read.",) if lost else ()
    return Labeled(values=dict(values), probs=tuple(probs), notes=notes)


def _warnings(found: Property) -> Iterator[str]:
    """One sentence for each thing that is wrong with a property."""
    if association.predicts(found):
        assert found.bits is not None and found.bits_of_verdict is not None
        yield (
            f"The {found.name} alone predicts the verdict (AUROC {found.auroc:.2f}, "
            f"{found.bits / found.bits_of_verdict:.0%} of its information){_extremes(found.cells)}. The detector may "
            f"have learned it instead of the pictures: {_ADVICE.get(found.name, _ADVICE_ELSE)}."
        )
    if association.differs(found):
        cell = max(found.cells, key=lambda cell: abs((cell.labeled_share or 0.0) - cell.share))
        yield (
            f"The labeled images differ from the pool in {found.name} (by {found.difference:.0%}): "
            f"{cell.labeled_share or 0.0:.0%} of them and {cell.share:.0%} of the pool are {cell.value}. Use labeled "
            "images that went through the same pipeline as the crawl."
        )


def _unstable(found: Sequence[Stability]) -> Iterator[str]:
    for each in found:
        if each.flipped >= WARN_FLIPPED and each.flipped_interval[0] > AT_LEAST_FLIPPED:
            yield (
                f"{each.flipped:.0%} of the verdicts flip if the image is {each.change}: they depend on how a file was "
                'saved, not on what it shows. Export with a margin, such as --where "prob_synthetic < 0.1".'
            )


def _extremes(cells: Sequence[Cell]) -> str:
    """The values that are called synthetic most and least often, in words."""
    judged = [
        (cell.share_synthetic, cell.value)
        for cell in cells
        if cell.share_synthetic is not None and cell.num_images >= 10
    ]
    if len(judged) < 2:
        return ""
    (high, most), (low, least) = max(judged), min(judged)
    return f": {high:.0%} of {most} is called synthetic, {low:.0%} of {least}"
