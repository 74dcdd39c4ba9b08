"""Surveys a pool and its scores in one pass: counts, a uniform sample, and the images with extreme scores.

Memory does not grow with the pool: it holds one shard, a row for each class, and the rows that were asked for.
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
from pipelines.run import domains
from pipelines.run.evaluation import NO_DECLARATIONS, DeclaredCheck
from pipelines.run.scores import ScoredPool
from pipelines.storage.shards import read_spans_across

BINS = 50  # of the histograms over 0..1
EXAMPLES = 3  # rejected records listed for each reason
MAX_TABLES = 64  # of a sample, before they are merged: each has a cost of its own, however small

_OF_POOL = (
    "key", "shard", "source", "member", "format", "width", "height", "offset", "num_bytes", "sha256", "declared",
    "declared_by", "domain", "url", "caption",
)  # fmt: skip
_OF_SCORES = ("prob_synthetic", "synthetic", "verdict", "pseudo_label", "confidence", "marked")

Counts = npt.NDArray[np.int64]


@dataclass
class Rejected:
    """The records that were rejected for one reason."""

    num_images: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)  # the first of them: (member, detail)


@dataclass
class Share:
    """Counts of some of the images; without a detector all verdicts are 0."""

    num_images: int = 0
    num_unsure: int = 0
    num_synthetic: int = 0
    confidence: float = 0.0  # sum

    @property
    def num_real(self) -> int:
        """Number of images that are neither called synthetic nor unsure."""
        return self.num_images - self.num_unsure - self.num_synthetic


@dataclass
class Values:
    """Scores from outside, in a few numbers; images without a value do not count."""

    num_images: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    sums: dict[bool, float] = field(default_factory=lambda: {False: 0.0, True: 0.0})  # by the detector's verdict
    counts: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})

    def add(self, values: npt.NDArray[np.float32], synthetic: npt.NDArray[np.bool_]) -> None:
        """Add the values (N,) of a shard, nan where there is none, by whether images are called synthetic (N,)."""
        there = np.isfinite(values)
        for verdict in (False, True):
            mine = values[there & (synthetic == verdict)].astype(np.float64)
            self.sums[verdict] += float(mine.sum())
            self.counts[verdict] += len(mine)
        if there.any():
            self.num_images += int(there.sum())
            self.low, self.high = min(self.low, float(values[there].min())), max(self.high, float(values[there].max()))

    def mean(self, *verdicts: bool) -> float | None:
        """Mean value of the images with one of these verdicts; None if there are none."""
        count = sum(self.counts[verdict] for verdict in verdicts)
        return sum(self.sums[verdict] for verdict in verdicts) / count if count else None


class Sample:
    """A uniform sample of at most `size` rows: those with the smallest SHA-256, the same for the same images.

    `tables` holds rows that are still in the running.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.tables: list[pa.Table] = []
        self._num_rows = 0
        self._limit: str | None = None  # rows with this SHA-256 or a larger one cannot be in the sample

    def add(self, rows: pa.Table) -> None:
        """Consider the rows of a shard."""
        if self._limit is not None:
            rows = rows.filter(pc.less(rows["sha256"], self._limit))
        if not rows.num_rows and self.tables:  # common for later shards
            return
        self.tables.append(rows)
        self._num_rows += rows.num_rows
        if self._num_rows > 2 * self._size or len(self.tables) > MAX_TABLES:
            self.tables = [self.rows()]
            self._num_rows = self.tables[0].num_rows
            if self._num_rows == self._size:
                self._limit = self.tables[0]["sha256"][-1].as_py()

    def rows(self) -> pa.Table:
        """The sample in the order of SHA-256, so that its beginning is a smaller uniform sample."""
        rows = pa.concat_tables(self.tables)
        return rows.take(pc.sort_indices(rows["sha256"])[: self._size]).combine_chunks()


class Best:
    """The `limit` rows of each group with the largest values; ties go to the smaller SHA-256."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: pa.Table | None = None

    def add(self, rows: pa.Table, values: npt.NDArray[np.floating], groups: Sequence[str] | None = None) -> None:
        """Consider the rows of a shard, with their `values` (N,) and `groups` (N,)."""
        group = pa.array(groups if groups is not None else [""] * rows.num_rows, pa.string())
        rows = rows.append_column("value", pa.array(values, pa.float32())).append_column("group", group)
        self._rows = self._first(rows if self._rows is None else pa.concat_tables([self._rows, self._first(rows)]))

    def _first(self, rows: pa.Table) -> pa.Table:
        order = [("group", "ascending"), ("value", "descending"), ("sha256", "ascending")]
        rows = rows.take(pc.sort_indices(rows, sort_keys=order)).combine_chunks()
        codes = rows["group"].combine_chunks().dictionary_encode().indices.to_numpy()
        starts = np.searchsorted(codes, codes)  # as rows are sorted by group, the codes ascend
        return rows.filter(pa.array(np.arange(len(codes)) - starts < self._limit))

    def rows(self, group: str = "") -> pa.Table | None:
        """The best rows of a group, best first; None if it has none."""
        if self._rows is None:
            return None
        found = self._rows.filter(pc.equal(self._rows["group"], group))
        return found if found.num_rows else None


@dataclass
class Survey:
    """What one pass found; without scores only what the pool alone tells."""

    num_images: int
    num_bytes: int
    rejected: dict[str, Rejected]
    formats: Counter[str]
    declared: dict[str, Share]  # by what the file says: synthetic, camera, nothing
    domains: dict[str, Share]  # at most `domains.MOST`; see `pipelines.run.domains`
    classes: dict[str, Share]  # empty without classes
    scores: Counts | None  # (BINS,) histogram of prob_synthetic; None without a detector
    confidences: Counts | None  # (BINS,); None without classes
    sample: pa.Table
    most_synthetic: Best
    most_real: Best
    least_sure: Best
    synthetic_of_class: Best
    real_of_class: Best
    check: DeclaredCheck = NO_DECLARATIONS  # of the model's verdicts, whatever a person has marked
    outside: dict[str, Values] = field(default_factory=dict)  # by name of the scores

    @property
    def num_rejected(self) -> int:
        """Number of records that did not get into the pool."""
        return sum(rejected.num_images for rejected in self.rejected.values())

    @property
    def num_synthetic(self) -> int:
        """Number of images that are called synthetic."""
        return sum(share.num_synthetic for share in self.declared.values())

    @property
    def num_unsure(self) -> int:
        """Number of images whose verdict is unsure."""
        return sum(share.num_unsure for share in self.declared.values())


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
    """Read the pool and its scores, if there are any, once.

    `sample` is the number of rows to sample, `gallery` the number of images with the highest and lowest scores to keep
    and `per_class` that of each class and verdict. Raises CorruptShard if a tar is missing.
    """
    shards = scored.shards if scored else pool.shards
    outside = scored.outside.names if scored else ()
    picked = Sample(sample)
    threshold = scored.threshold if scored else 0.5
    found = Survey(
        num_images=0, num_bytes=0, rejected=_rejected(pool), formats=Counter(), declared={}, domains={},
        classes={name: Share() for name in classes}, scores=None, confidences=None, sample=None,
        most_synthetic=Best(gallery), most_real=Best(gallery), least_sure=Best(gallery),
        synthetic_of_class=Best(per_class), real_of_class=Best(per_class), outside={name: Values() for name in outside},
    )  # fmt: skip
    for done, rows in enumerate(tables(pool, scored, shards), 1):
        found.num_images += rows.num_rows
        picked.add(rows)
        if rows.num_rows:
            found.num_bytes += pc.sum(rows["num_bytes"]).as_py()
            found.formats.update(rows["format"].to_pylist())
            if scored:
                _count(found, rows, threshold)
            else:
                for names, shares in ((_declared(rows), found.declared), (domains.of_rows(rows), found.domains)):
                    for name in names:
                        _share(shares, name).num_images += 1
        on_tick(Tick(done=done, total=len(shards), unit="shards"))
    found.sample = picked.rows()
    return found


def tables(pool: Pool, scored: ScoredPool | None, shards: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of each shard, with `row`, their number in it."""
    for shard in shards:
        rows = (
            scored.rows(shard, (*_OF_POOL, *_OF_SCORES, *scored.outside.names))
            if scored
            else pool.rows(shard, _OF_POOL)
        )
        rows = rows.append_column("row", pa.array(np.arange(rows.num_rows, dtype=np.int32)))
        yield rows.replace_schema_metadata(None)


def _count(found: Survey, rows: pa.Table, threshold: float) -> None:
    """Add the scored rows of a shard."""
    has_classes, has_detector = not rows["pseudo_label"].null_count, not rows["prob_synthetic"].null_count
    labels, confidence = rows["pseudo_label"].to_pylist(), rows["confidence"].fill_null(0).to_numpy()
    synthetic = rows["synthetic"].fill_null(False).to_numpy()
    verdicts = rows["verdict"].to_pylist()
    groups = [(_declared(rows), found.declared), (domains.of_rows(rows), found.domains)]
    for names, shares in [*groups, (labels, found.classes)] if has_classes else groups:
        for name, verdict, sure in zip(names, verdicts, confidence.tolist(), strict=True):
            share = _share(shares, name)
            share.num_images += 1
            share.num_unsure += verdict == "unsure"
            share.num_synthetic += verdict == "synthetic"
            share.confidence += sure
    for name, values in found.outside.items():
        values.add(rows[name].fill_null(np.nan).to_numpy(), synthetic)
    if has_classes:
        found.confidences = _histogram(confidence, found.confidences)
    if not has_detector:
        found.least_sure.add(rows, -confidence)
        found.real_of_class.add(rows, confidence, labels)
        return
    probs = rows["prob_synthetic"].to_numpy()
    found.check += DeclaredCheck.of(rows["declared"], pa.chunked_array([pa.array(probs >= threshold)]))
    found.scores = _histogram(probs, found.scores)
    found.most_synthetic.add(rows, probs)
    found.most_real.add(rows, -probs)
    found.least_sure.add(rows, -np.abs(probs - threshold))
    if not has_classes:
        return
    verdict = np.array(verdicts)
    for best, called, values in (
        (found.synthetic_of_class, verdict == "synthetic", probs),
        (found.real_of_class, verdict == "real", confidence),
    ):
        if called.any():
            best.add(rows.filter(pa.array(called)), values[called], [labels[i] for i in np.flatnonzero(called)])


def _declared(rows: pa.Table) -> list[str]:
    return [kind or "nothing" for kind in rows["declared"].to_pylist()]


def _share(shares: dict[str, Share], name: str) -> Share:
    """The share of a name; those of names beyond the first `domains.MOST` are one."""
    if name not in shares:
        return shares.setdefault(name if len(shares) < domains.MOST else domains.OTHER, Share())
    return shares[name]


def _histogram(values: npt.NDArray[np.floating], before: Counts | None) -> Counts:
    counts = np.histogram(values, bins=BINS, range=(0.0, 1.0))[0].astype(np.int64)
    return counts if before is None else before + counts


def read_rows(pool: Pool, rows: pa.Table) -> Iterator[bytes]:
    """Image file of each of `rows`, which are rows of a survey, in their order."""
    listed = rows.select(["shard", "offset", "num_bytes"]).to_pylist()
    return read_spans_across([(pool.tar(row["shard"]), row["offset"], row["num_bytes"]) for row in listed])


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
