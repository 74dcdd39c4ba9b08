"""Build mixtures: real images of known classes, contaminated with synthetic ones whose number and kind are known.

A mixture is a labeled set, a contaminated pool and test images. Its task has all classes, or those that are named. The
pool holds real images of the task's classes, equally many of each. The contamination says which synthetic images it
holds beside them:

    balanced      of the task's classes, equally many of each
    imbalanced    of only a fifth of the task's classes
    off-class     of classes outside the task; if no class is named, the task has the first six tenths
    low-quality   of the task's classes, equally many of each, at a quarter of the resolution

NAME:SHARE applies to that share of the synthetic images; the others are balanced.
"""

import hashlib
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
from pipelines.benchmark.sources import Source, Sources
from pipelines.errors import BadInput
from pipelines.images import encode
from pipelines.storage.atomic import replacing

CONTAMINATIONS = ("balanced", "imbalanced", "off-class", "low-quality")
IMBALANCED_CLASSES = 0.2  # of the task's
TASK_CLASSES = 0.6  # of all classes, if none are named and the others contaminate
SHRINK = 4  # factor by which low-quality images lose resolution
ROW_GROUP = 1000  # images in a shard of the pool
HELD_OUT = 200  # synthetic images of each class, in no pool, to evaluate the detector on

Rows = npt.NDArray[np.int64]


class Contamination(NamedTuple):
    """The kind of the synthetic images, and the share of them that it applies to; see the module."""

    kind: str
    share: float

    @classmethod
    def parse(cls, spec: str) -> "Contamination":
        """Parse NAME or NAME:SHARE. ValueError if it is neither."""
        kind, _, share = spec.partition(":")
        if kind not in CONTAMINATIONS:
            raise ValueError(f"unknown contamination {kind!r}; known: {', '.join(CONTAMINATIONS)}")
        if not 0 < float(share or 1) <= 1:
            raise ValueError(f"{spec}: the share must be above 0 and at most 1")
        return cls(kind, float(share or 1))

    def counts(self, total: int, num_classes: int, num_task: int) -> Rows:
        """How many of `total` synthetic images are of each class (K,); the first `num_task` classes are the task's."""
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
        """Classes of the task, sorted. BadInput if one is not in `classes`, or none is left to contaminate with."""
        if not named:
            return classes[: math.ceil(TASK_CLASSES * len(classes))] if self.kind == "off-class" else classes
        if unknown := set(named) - set(classes):
            raise BadInput(f"There are no images of the class {min(unknown)!r}. Name some of {', '.join(classes)}.")
        if self.kind == "off-class" and set(named) == set(classes):
            raise BadInput("off-class: the task has all classes, so none is left to contaminate it. Name fewer.")
        return sorted(set(named))


@dataclass(frozen=True, slots=True)
class Mixture:
    """What makes a mixture: a cell of the matrix, and a seed. All methods run on the same one."""

    contamination: str  # NAME or NAME:SHARE
    num_real: int  # unlabeled, in all
    alpha: float  # synthetic images for each real one
    labels: int  # labeled images in all
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        kind = self.contamination.replace(":", "")
        return f"{kind}-{self.num_real}real-alpha{self.alpha:g}-{self.labels}labels-seed{self.seed}"


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
    folder: Path, mixture: Mixture, sources: Sources, *, num_test: int, task_classes: Sequence[str] | None = None
) -> None:
    """Write a mixture to `folder`, unless it is there:

        seed/CLASS/*.jpg     the labeled set
        test/CLASS/*.jpg     test images
        pool/                the contaminated pool
        real/                the pool without its synthetic images
        held_out.parquet     synthetic images that are in no pool
        truth.parquet        the truth about the pool; written last, the done file

    The truth numbers the task's classes first, in the order of the sorted folders of seed/ and test/, then the others.
    All draws depend on the seed alone, so the mixtures of one seed share as many images as their sizes allow.
    Raises BadInput if there are too few images.
    """
    if (folder / "truth.parquet").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(mixture.seed)
    contamination = Contamination.parse(mixture.contamination)
    named = contamination.task(sources.real.classes, task_classes)
    task, classes = range(len(named)), (*named, *(name for name in sources.real.classes if name not in named))
    order = [sources.real.classes.index(name) for name in classes]
    drawn = [[rng.permutation(np.flatnonzero(source.labels == k)) for k in range(len(classes))] for source in sources]
    real, fake, test = ([rows[k] for k in order] for rows in drawn)
    labeled, unlabeled, tested = (count // len(task) for count in (mixture.labels, mixture.num_real, num_test))
    if not labeled:
        raise BadInput(f"labels = {mixture.labels} is less than one image for each of {len(task)} classes. Raise it.")
    counts = contamination.counts(round(mixture.alpha * unlabeled * len(task)), len(classes), len(task))
    for k, name in enumerate(classes):
        _check(f"real images of {name!r}", len(real[k]), labeled + unlabeled if k in task else 0)
        _check(f"synthetic images of {name!r}", len(fake[k]), int(counts[k]))

    for k in task:
        _write_images(folder / "seed" / classes[k], sources.real, real[k][:labeled])
    for k in task:
        _write_images(folder / "test" / classes[k], sources.test, test[k][:tested])
    share_degraded = contamination.share if contamination.kind == "low-quality" else 0.0
    pool = [_Picture(sources.real, row, False) for k in task for row in real[k][labeled : labeled + unlabeled].tolist()]
    pool += [
        _Picture(sources.synthetic, row, True, degraded=bool(rng.random() < share_degraded))
        for rows, count in zip(fake, counts, strict=True)
        for row in rows[:count].tolist()
    ]
    pool = [pool[i] for i in rng.permutation(len(pool))]
    _ingest(folder, "pool", pool)
    _ingest(folder, "real", [picture for picture in pool if not picture.synthetic])
    left = [(k, row) for k in task for row in fake[k][counts[k] : counts[k] + HELD_OUT].tolist()]
    held_out = {"image": [sources.synthetic.images[row] for _, row in left], "cls": [k for k, _ in left]}
    pq.write_table(pa.table(held_out), folder / "held_out.parquet")
    _write_truth(folder, pool, np.argsort(order))


def _write_images(folder: Path, source: Source, rows: Rows) -> None:
    folder.mkdir(parents=True)
    for row in rows.tolist():
        (folder / f"{row:07d}.jpg").write_bytes(source.images[row])


def _write_truth(folder: Path, pool: Sequence[_Picture], number: Rows) -> None:
    """Write truth.parquet; `number` (K,) gives each class of the sources its number in the truth."""
    truth = {
        "key": [picture.stem for picture in pool],
        "sha256": [hashlib.sha256(picture.data()).hexdigest() for picture in pool],
        "is_synthetic": [int(picture.synthetic) for picture in pool],
        "cls": number[[picture.source.labels[picture.row] for picture in pool]],
    }
    with replacing(folder / "truth.parquet") as temporary:
        pq.write_table(pa.table(truth), temporary)


def _check(what: str, there: int, needed: int) -> None:
    if there < needed:
        raise BadInput(f"need {needed} {what}, found {there}. Lower --alpha or --num-real, or provide more images.")


def _ingest(folder: Path, name: str, pictures: list[_Picture]) -> None:
    """Write images as one parquet file, in the form of Hugging Face, and ingest it into the pool folder/name."""
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
    """Remove most of the resolution, as a poor generator or an enlarged thumbnail does."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    width, height = picture.size
    small = picture.resize((max(1, width // SHRINK), max(1, height // SHRINK)), Image.Resampling.BICUBIC)
    return encode.encode(small.resize((width, height), Image.Resampling.BICUBIC), "jpg")
