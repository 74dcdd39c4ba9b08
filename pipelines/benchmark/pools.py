"""Worlds of a benchmark: a labeled set, a contaminated pool and test images, drawn from images of known classes.

The task has all classes, or those that are named. The contamination says which synthetic images the pool holds, beside
its real ones of the task's classes evenly:

    balanced      of the task's classes evenly
    imbalanced    from a fifth of the task's classes only
    off-class     from classes that the task does not have: where none are named, it has the first six tenths
    low-quality   of the task's classes evenly, at a quarter of the resolution

NAME:SHARE holds for that share of the synthetic images, the others being balanced.
"""

import io
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines import ingest
from pipelines.benchmark import sources
from pipelines.benchmark.sources import Source
from pipelines.errors import BadInput
from pipelines.images import encode
from pipelines.storage.atomic import replacing

CONTAMINATIONS = ("balanced", "imbalanced", "off-class", "low-quality")
IMBALANCED_CLASSES = 0.2  # of the task's
TASK_CLASSES = 0.6  # of all, where none are named and the others contaminate
SHRINK = 4
ROW_GROUP = 1000  # images of a shard of the pool
HELD_OUT = 200  # synthetic images of each class that no pool holds, to judge the detector by

Rows = npt.NDArray[np.int64]


class Contamination(NamedTuple):
    """What kind the synthetic images are of, and which share of them; see the module."""

    kind: str
    share: float

    @classmethod
    def parse(cls, spec: str) -> "Contamination":
        """Read NAME or NAME:SHARE; ValueError for what is neither."""
        kind, _, share = spec.partition(":")
        if kind not in CONTAMINATIONS:
            raise ValueError(f"unknown contamination {kind!r}; known: {', '.join(CONTAMINATIONS)}")
        if not 0 < float(share or 1) <= 1:
            raise ValueError(f"{spec}: the share must be above 0 and at most 1")
        return cls(kind, float(share or 1))

    def counts(self, total: int, num_classes: int, num_task: int) -> Rows:
        """How many of `total` synthetic images are of each class, (K,); the first `num_task` are the task's."""
        even = np.zeros(num_classes)
        even[:num_task] = 1
        odd = even.copy()
        if self.kind == "imbalanced":
            odd[max(1, round(IMBALANCED_CLASSES * num_task)) :] = 0
        elif self.kind == "off-class":
            odd = 1 - even
        shares = self.share * odd / odd.sum() + (1 - self.share) * even / even.sum()
        return np.asarray(np.floor(total * shares + 1e-9), dtype=np.int64)

    def task(self, classes: Sequence[str], named: Sequence[str] | None) -> Sequence[str]:
        """Classes of the task, sorted. BadInput where one is not among `classes`, or none is left to contaminate."""
        if not named:
            return classes[: math.ceil(TASK_CLASSES * len(classes))] if self.kind == "off-class" else classes
        if unknown := set(named) - set(classes):
            raise BadInput(f"class {min(unknown)!r}: is none of the images' classes, {', '.join(classes)}.")
        if self.kind == "off-class" and set(named) == set(classes):
            raise BadInput("off-class: the task has all classes, so that none is left to contaminate it; name fewer.")
        return sorted(set(named))


@dataclass(frozen=True, slots=True)
class World:
    """The images that all methods of a seed share."""

    contamination: str
    num_real: int  # unlabeled, in all
    alpha: float  # synthetic images for each of these
    labels: int  # labeled images in all
    seed: int

    @property
    def name(self) -> str:
        """A name for its folder."""
        kind = self.contamination.replace(":", "")
        return f"{kind}-{self.num_real}real-alpha{self.alpha:g}-{self.labels}labels-seed{self.seed}"


class Sources(NamedTuple):
    """Images of one set of classes."""

    real: Source
    synthetic: Source
    test: Source

    @classmethod
    def read(cls, real: Path, synthetic: Path, test: Path, size: int | None) -> "Sources":
        """Find all images; with a `size` they take one common last step (`datasets.matched`)."""
        found = [sources.read(path) for path in (real, synthetic, test)]
        for source, path in zip(found[1:], (synthetic, test), strict=True):
            if odd := set(source.classes) ^ set(found[0].classes):
                raise BadInput(f"{path}: the class {min(odd)!r} is in it or in {real}, but not in both.")
        return cls(*(sources.matched(source, size) if size else source for source in found))


class _Picture(NamedTuple):
    source: Source
    row: int
    synthetic: bool
    degraded: bool = False

    @property
    def stem(self) -> str:
        return f"{'synthetic' if self.synthetic else 'real'}-{self.row:07d}"

    def data(self) -> bytes:
        data = self.source.images[self.row]
        return _degrade(data) if self.degraded else data


def build(
    folder: Path, world: World, sources: Sources, *, num_test: int, task_classes: Sequence[str] | None = None
) -> None:
    """Lay out a world in `folder`, unless it is there: seed/CLASS/*.jpg, test/CLASS/*.jpg, pool/, real/ (the pool
    without synthetic images), held_out.parquet (synthetic images of no pool) and truth.parquet, which comes last.

    The truth numbers the task's classes first, as the sorted folders of seed/ and test/ do, and then the others. All
    draws are by the seed alone: the worlds of one seed share their images as far as they go.
    """
    if (folder / "truth.parquet").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(world.seed)
    contamination = Contamination.parse(world.contamination)
    named = contamination.task(sources.real.classes, task_classes)
    task, classes = range(len(named)), (*named, *(name for name in sources.real.classes if name not in named))
    order = [sources.real.classes.index(name) for name in classes]
    drawn = [[rng.permutation(np.flatnonzero(source.labels == k)) for k in range(len(classes))] for source in sources]
    real, fake, test = ([rows[k] for k in order] for rows in drawn)
    labeled, unlabeled, tested = (count // len(task) for count in (world.labels, world.num_real, num_test))
    if not labeled:
        raise BadInput(f"labels = {world.labels}: is less than one for each of {len(task)} classes.")
    counts = contamination.counts(round(world.alpha * unlabeled * len(task)), len(classes), len(task))
    for k, name in enumerate(classes):
        _check(f"real images of {name!r}", len(real[k]), labeled + unlabeled if k in task else 0)
        _check(f"synthetic images of {name!r}", len(fake[k]), int(counts[k]))

    for part, source, rows in (
        ("seed", sources.real, [real[k][:labeled] for k in task]),
        ("test", sources.test, [test[k][:tested] for k in task]),
    ):
        for k in task:
            target = folder / part / classes[k]
            target.mkdir(parents=True)
            for row in rows[k].tolist():
                (target / f"{row:07d}.jpg").write_bytes(source.images[row])

    bad = contamination.share if contamination.kind == "low-quality" else 0.0
    pool = [_Picture(sources.real, row, False) for k in task for row in real[k][labeled : labeled + unlabeled].tolist()]
    pool += [
        _Picture(sources.synthetic, row, True, degraded=bool(rng.random() < bad))
        for rows, count in zip(fake, counts, strict=True)
        for row in rows[:count].tolist()
    ]
    pool = [pool[i] for i in rng.permutation(len(pool))]
    _ingest(folder, "pool", pool)
    _ingest(folder, "real", [picture for picture in pool if not picture.synthetic])

    left = [(k, row) for k in task for row in fake[k][counts[k] : counts[k] + HELD_OUT].tolist()]
    held_out = {"image": [sources.synthetic.images[row] for _, row in left], "cls": [k for k, _ in left]}
    pq.write_table(pa.table(held_out), folder / "held_out.parquet")
    truth = {
        "key": [picture.stem for picture in pool],
        "is_synthetic": [int(picture.synthetic) for picture in pool],
        "cls": np.argsort(order)[[picture.source.labels[picture.row] for picture in pool]],
    }
    with replacing(folder / "truth.parquet") as temporary:
        pq.write_table(pa.table(truth), temporary)


def _check(what: str, there: int, needed: int) -> None:
    if there < needed:
        raise BadInput(f"{needed} {what} are needed and {there} are there; ask for fewer, or give more.")


def _ingest(folder: Path, name: str, pictures: list[_Picture]) -> None:
    """Write images as one parquet in the form of Hugging Face, and bring them into the pool folder/name."""
    crawl = folder / f"{name}.parquet"
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
    with pq.ParquetWriter(crawl, schema) as writer:
        for start in range(0, len(pictures), ROW_GROUP):
            part = pictures[start : start + ROW_GROUP]
            rows = [{"bytes": picture.data(), "path": f"{picture.stem}.jpg"} for picture in part]
            writer.write_table(pa.table({"image": rows}, schema=schema), ROW_GROUP)
    ingest.run(ingest.IngestConfig(sources=(str(crawl),), pool=folder / name, jobs=1, shard_size=ROW_GROUP, min_side=8))
    crawl.unlink()


def _degrade(data: bytes) -> bytes:
    """Take most of the resolution away: what a poor generator or an enlarged thumbnail leaves."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    width, height = picture.size
    small = picture.resize((max(1, width // SHRINK), max(1, height // SHRINK)), Image.Resampling.BICUBIC)
    return encode.encode(small.resize((width, height), Image.Resampling.BICUBIC), "jpg")
