"""One pass over a pool and its scores, for pages about it: counts, a sample, and the images at the ends.

Memory does not grow with the pool: it holds one shard, one row a class, and the rows that were asked for.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.pool.manifest import Pool, read_parquet
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run.scores import ScoredPool
from pipelines.storage.shards import end_of_samples, sample_spans

BINS = 50  # of the histograms over 0..1
EXAMPLES = 3  # rejected records kept of each reason

_OF_POOL = (
    "key", "shard", "source", "member", "format", "width", "height", "offset", "num_bytes", "sha256", "declared",
)  # fmt: skip
_OF_SCORES = ("prob_synthetic", "synthetic", "pseudo_label", "confidence")

Counts = npt.NDArray[np.int64]


@dataclass
class Rejected:
    """The records that were rejected for one reason, with a few of them: (member, detail)."""

    num_images: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Share:
    """Some images and what was found of them."""

    num_images: int = 0
    num_synthetic: int = 0
    confidence: float = 0.0  # sum


_PARTS = 64  # tables that wait to be put together: one has a cost of its own, however small


class Sample:
    """A uniform sample of at most `size` rows: those of the smallest SHA-256, so that the same images give the same."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._parts: list[pa.Table] = []
        self._num_rows = 0
        self._limit: str | None = None  # none from here on can get in

    def add(self, rows: pa.Table) -> None:
        """Let the rows of a shard compete."""
        if self._limit is not None:
            rows = rows.filter(pc.less(rows["sha256"], self._limit))
        if not rows.num_rows and self._parts:  # of a later shard hardly any can get in
            return
        self._parts.append(rows)
        self._num_rows += rows.num_rows
        if self._num_rows > 2 * self._size or len(self._parts) > _PARTS:
            self._parts = [self.rows()]
            self._num_rows = self._parts[0].num_rows
            if self._num_rows == self._size:
                self._limit = self._parts[0]["sha256"][-1].as_py()

    def rows(self) -> pa.Table:
        """The sample, in the order of the digests: its beginning is a smaller uniform sample."""
        rows = pa.concat_tables(self._parts)
        return rows.take(pc.sort_indices(rows["sha256"])[: self._size]).combine_chunks()


class Best:
    """The `limit` rows of each group with the largest value; ties go to the smaller SHA-256."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: pa.Table | None = None

    def add(self, rows: pa.Table, values: npt.NDArray[np.floating], groups: Sequence[str] | None = None) -> None:
        """Let the rows of a shard compete, by `values` (N,) and within `groups` (N,)."""
        group = pa.array(groups if groups is not None else [""] * rows.num_rows, pa.string())
        rows = rows.append_column("value", pa.array(values, pa.float32())).append_column("group", group)
        self._rows = self._first(rows if self._rows is None else pa.concat_tables([self._rows, self._first(rows)]))

    def _first(self, rows: pa.Table) -> pa.Table:
        order = [("group", "ascending"), ("value", "descending"), ("sha256", "ascending")]
        rows = rows.take(pc.sort_indices(rows, sort_keys=order)).combine_chunks()
        codes = rows["group"].combine_chunks().dictionary_encode().indices.to_numpy()
        starts = np.searchsorted(codes, codes)  # sorted by group, the codes ascend
        return rows.filter(pa.array(np.arange(len(codes)) - starts < self._limit))

    def rows(self, group: str = "") -> pa.Table | None:
        """The best of a group, best first; None where it has none."""
        if self._rows is None:
            return None
        found = self._rows.filter(pc.equal(self._rows["group"], group))
        return found if found.num_rows else None


@dataclass
class Survey:
    """What one pass found; without scores the part that the pool alone tells."""

    num_images: int
    num_bytes: int
    rejected: dict[str, Rejected]
    formats: Counter[str]
    declared: dict[str, Share]  # by what the file says: synthetic, camera, nothing
    classes: dict[str, Share]
    scores: Counts | None  # (BINS,) histogram of prob_synthetic; None without a detector
    confidences: Counts | None  # (BINS,)
    sample: pa.Table
    most_synthetic: Best
    most_real: Best
    least_sure: Best
    synthetic_of_class: Best
    real_of_class: Best

    @property
    def num_rejected(self) -> int:
        """Records that did not get into the pool."""
        return sum(rejected.num_images for rejected in self.rejected.values())

    @property
    def num_synthetic(self) -> int:
        """Images that are called synthetic."""
        return sum(share.num_synthetic for share in self.classes.values())


def survey(
    pool: Pool,
    scored: ScoredPool | None,
    classes: Sequence[str],
    *,
    sample: int,
    gallery: int,
    per_class: int,
    on_tick: OnTick = ignore,
) -> Survey:
    """Go once over the pool and, where there are any, its scores."""
    shards = scored.shards if scored else pool.shards
    picked = Sample(sample)
    threshold = scored.threshold if scored else 0.5
    found = Survey(
        num_images=0, num_bytes=0, rejected=_rejected(pool), formats=Counter(), declared={},
        classes={name: Share() for name in classes}, scores=None, confidences=None, sample=None,
        most_synthetic=Best(gallery), most_real=Best(gallery), least_sure=Best(gallery),
        synthetic_of_class=Best(per_class), real_of_class=Best(per_class),
    )  # fmt: skip
    for done, rows in enumerate(_tables(pool, scored, shards), 1):
        found.num_images += rows.num_rows
        picked.add(rows)
        if rows.num_rows:
            found.num_bytes += pc.sum(rows["num_bytes"]).as_py()
            found.formats.update(rows["format"].to_pylist())
            if scored:
                _count(found, rows, threshold)
            else:
                for kind in rows["declared"].to_pylist():
                    found.declared.setdefault(kind or "nothing", Share()).num_images += 1
        on_tick(Tick(done=done, total=len(shards), unit="shards"))
    found.sample = picked.rows()
    return found


def _tables(pool: Pool, scored: ScoredPool | None, shards: Sequence[str]) -> Iterator[pa.Table]:
    """Rows of one shard after the other, with `row`, their position in it, and `stop`, where their sample ends."""
    for shard in shards:
        rows = scored.rows(shard, (*_OF_POOL, *_OF_SCORES)) if scored else pool.rows(shard, _OF_POOL)
        _, stops = sample_spans(rows["offset"].to_numpy(), end_of_samples(pool.tar(shard)))
        rows = rows.append_column("row", pa.array(np.arange(rows.num_rows, dtype=np.int32)))
        yield rows.append_column("stop", pa.array(stops, pa.int64())).replace_schema_metadata(None)


def _count(found: Survey, rows: pa.Table, threshold: float) -> None:
    """Add the scored rows of a shard."""
    labels, confidence = rows["pseudo_label"].to_pylist(), rows["confidence"].to_numpy()
    synthetic = rows["synthetic"].fill_null(False).to_numpy()
    kinds = [kind or "nothing" for kind in rows["declared"].to_pylist()]
    for names, shares in ((labels, found.classes), (kinds, found.declared)):
        for name, called, sure in zip(names, synthetic.tolist(), confidence.tolist(), strict=True):
            share = shares.setdefault(name, Share())
            share.num_images += 1
            share.num_synthetic += called
            share.confidence += sure
    found.confidences = _histogram(confidence, found.confidences)
    if rows["prob_synthetic"].null_count:  # a run without a detector
        found.least_sure.add(rows, -confidence)
        found.real_of_class.add(rows, confidence, labels)
        return
    probs = rows["prob_synthetic"].to_numpy()
    found.scores = _histogram(probs, found.scores)
    found.most_synthetic.add(rows, probs)
    found.most_real.add(rows, -probs)
    found.least_sure.add(rows, -np.abs(probs - threshold))
    for best, called, values in (
        (found.synthetic_of_class, synthetic, probs),
        (found.real_of_class, ~synthetic, confidence),
    ):
        if called.any():
            best.add(rows.filter(pa.array(called)), values[called], [labels[i] for i in np.flatnonzero(called)])


def _histogram(values: npt.NDArray[np.floating], before: Counts | None) -> Counts:
    counts = np.histogram(values, bins=BINS, range=(0.0, 1.0))[0].astype(np.int64)
    return counts if before is None else before + counts


def _rejected(pool: Pool) -> dict[str, Rejected]:
    found: dict[str, Rejected] = {}
    for shard in pool.shards:
        rows = read_parquet(pool.root / "rejects" / f"{shard}.parquet", ["reason", "member", "detail"])
        for row in rows.to_pylist():
            rejected = found.setdefault(row["reason"], Rejected())
            rejected.num_images += 1
            if len(rejected.examples) < EXAMPLES:
                rejected.examples.append((row["member"], row["detail"]))
    return dict(sorted(found.items(), key=lambda item: -item[1].num_images))
