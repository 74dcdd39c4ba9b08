"""The pool as a person browses it: compact columns in memory, filters and orders over them, and the image files.

It takes about 100 bytes of memory an image: the columns that filters need are in arrays, and everything else is read
when an image is opened. A row here is an image's number among all scored shards in order.
"""

import threading
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import BadInput
from pipelines.pool.manifest import CRAWL_COLUMNS, shard_of
from pipelines.progress import OnTick, ignore
from pipelines.review import neighborhood, order, region, search
from pipelines.review.filters import Filter, Order
from pipelines.run import marks, verdicts
from pipelines.run.marks import Judgment, Mark, Verdict
from pipelines.run.neighbors import Index, Neighbor
from pipelines.run.scores import ScoredPool
from pipelines.run.verdicts import VERDICTS
from pipelines.storage.shards import read_spans

MAX_NEIGHBORHOODS = 200_000  # images; in larger pools disagreement is not counted, as it would take too many minutes
BINS = 50  # of the histogram
NO_SCORE = -1.0  # prob_synthetic if no detector was trained
SUGGESTED = 100  # images that a person is asked to mark before the next training
MOST_AT_ONCE = 100_000  # images that one action may mark

_MARKS: tuple[Verdict, ...] = ("real", "synthetic", "off-class", "skip")
_NONE = -1
_SEARCHES = 8  # whose results are kept, a byte an image

Rows = npt.NDArray[np.int32]


class Gallery:
    """A scored pool with its marks. It can be used from several threads."""

    def __init__(self, scored: ScoredPool, on_tick: OnTick = ignore) -> None:
        self.scored = ScoredPool(scored.pool, scored.run)  # without marks: what the model says
        self.classes = scored.classes
        self.thresholds = verdicts.load(scored.folder)
        self._shard_number = {shard: number for number, shard in enumerate(scored.shards)}
        self.starts = [0, *accumulate(scored.num_rows(shard) for shard in scored.shards)]
        self._columns()
        self.index = Index.open(scored, on_tick)
        self.neighborhood = (
            neighborhood.find(self.index, self._model_labels, self.synthetic, on_tick)
            if len(self) <= MAX_NEIGHBORHOODS
            else None
        )
        self._found = lru_cache(maxsize=_SEARCHES)(self._search)
        self._lock = threading.Lock()
        self._orders: dict[Order, Rows] = {"suggested": self._suggested()}
        self.marked: npt.NDArray[np.int8]  # (N,) index of a person's verdict, -1 if not marked
        self.marked_labels: npt.NDArray[np.int16]  # (N,) index of a person's class, -1 if not labeled
        self._size = 0  # bytes of the marks file that were read
        self._read_marks()

    def __len__(self) -> int:
        """Number of scored images."""
        return self.starts[-1]

    @property
    def has_detector(self) -> bool:
        """Whether the run has a detector, and so verdicts."""
        return bool(self.prob[0] != NO_SCORE)

    def _columns(self) -> None:
        names = (
            "key", "sha256", "offset", "num_bytes", "prob_synthetic", "synthetic", "verdict", "pseudo_label",
            "confidence",
        )  # fmt: skip
        number = {name: i for i, name in enumerate(self.classes)}
        parts: list[tuple[npt.NDArray[Any], ...]] = []
        for shard in self.scored.shards:
            rows = self.scored.rows(shard, names)
            parts.append(
                (
                    np.array(rows["key"].to_pylist(), dtype=np.bytes_),
                    _bytes(rows["sha256"].to_pylist()),
                    rows["offset"].to_numpy(),
                    rows["num_bytes"].to_numpy(),
                    rows["prob_synthetic"].fill_null(NO_SCORE).to_numpy(),
                    rows["synthetic"].fill_null(False).to_numpy(),
                    _codes(rows["verdict"]),
                    np.array([number.get(name, _NONE) for name in rows["pseudo_label"].to_pylist()], dtype=np.int16),
                    rows["confidence"].fill_null(0).to_numpy(),
                )
            )
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        self._keys, self._digests, self._offsets, self._sizes, *of_model = columns
        # What the model says; `verdicts` are numbers in VERDICTS, -1 without a detector.
        self.prob, self.synthetic, self.verdicts, self._model_labels, self.confidence = of_model
        self._by_key = np.argsort(self._keys).astype(np.int32)
        self._by_digest = np.argsort(self._digests).astype(np.int32)

    def _row_of(self, neighbor: Neighbor) -> int:
        return self.starts[self._shard_number[neighbor.shard]] + neighbor.row

    # Marks

    def refresh(self) -> None:
        """Read the marks file again if another page on the same run has added marks."""
        with self._lock:
            if self._size_on_disk() != self._size:
                self._read_marks()

    def mark(self, keys: Sequence[str], judgment: Judgment) -> list[int]:
        """Mark images as one action; returns their rows. Raises BadInput for an unknown key or label."""
        self._check(judgment)
        return self._write([self.row(key) for key in keys], judgment)

    def mark_all(self, wanted: Filter, count: int, judgment: Judgment) -> int:
        """Mark all images that pass a filter as one action; returns their number.

        Raises BadInput if they are not `count`, the number that the person was shown, or more than MOST_AT_ONCE.
        """
        self._check(judgment)
        rows = self.view(wanted)
        if len(rows) != count:
            raise BadInput(f"{len(rows):,} images pass these filters by now, not {count:,}. Reload and look again.")
        if len(rows) > MOST_AT_ONCE:
            raise BadInput(f"At most {MOST_AT_ONCE:,} images can be marked at once. Narrow the filters.")
        return len(self._write(rows.tolist(), judgment))

    def _check(self, judgment: Judgment) -> None:
        label = judgment.label
        if label is not None and label not in self.classes:
            known = f"none of the classes ({', '.join(self.classes)})" if self.classes else "no class: the run has none"
            raise BadInput(f"label {label!r} is {known}.")

    def _write(self, rows: list[int], judgment: Judgment) -> list[int]:
        verdict, label = judgment.verdict, judgment.label
        made = [Mark(sha256=self.sha256(row), key=self.key(row), verdict=verdict, label=label) for row in rows]
        with self._lock:
            written = marks.append(self.scored.run, made)
            if self._size + written != self._size_on_disk():
                self._read_marks()  # others have added marks as well
            else:
                self.marked[rows] = _MARKS.index(verdict)
                self.marked_labels[rows] = _NONE if label is None else self.classes.index(label)
                self.can_undo, self._size = True, self._size + written
        return rows

    def undo(self) -> list[int]:
        """Undo the latest action; returns the rows of its images."""
        with self._lock:
            self._read_marks()
            undone = marks.undo(self.scored.run) if self.can_undo else ()
            self._read_marks()
        return [int(row) for row in self._rows_of(undone)]

    def _read_marks(self) -> None:
        self._size = self._size_on_disk()  # taken first, so that marks added meanwhile are read again the next time
        found = marks.read(self.scored.run)
        marked = np.full(len(self), _NONE, dtype=np.int8)
        labels = np.full(len(self), _NONE, dtype=np.int16)
        for row in self._rows_of(list(found.current)):
            mark = found.current[self.sha256(row)]
            marked[row] = _MARKS.index(mark.verdict)
            if mark.label in self.classes:
                labels[row] = self.classes.index(mark.label)
        self.marked, self.marked_labels = marked, labels  # replaced whole, as other threads read them
        self.can_undo = bool(len(self._rows_of(found.last)))  # the last action may be of another pool

    def _size_on_disk(self) -> int:
        file = marks.path(self.scored.run)
        return file.stat().st_size if file.exists() else 0

    def _rows_of(self, digests: Sequence[str]) -> Rows:
        """Rows of the images with these SHA-256, as far as the pool has them."""
        wanted = _bytes(digests)
        ranks = np.searchsorted(self._digests, wanted, sorter=self._by_digest)
        rows = self._by_digest[np.minimum(ranks, len(self) - 1)]
        return np.asarray(rows[self._digests[rows] == wanted], dtype=np.int32)

    # Queries

    def row(self, key: str) -> int:
        """Row of a key; BadInput if no scored image has it."""
        wanted = key.encode("ascii", "replace")
        rank = int(np.searchsorted(self._keys, wanted, sorter=self._by_key))
        if rank == len(self) or self._keys[row := int(self._by_key[rank])] != wanted:
            raise BadInput(f"{key}: no scored image of {self.scored.pool.root} has this key. Reload the page.")
        return row

    def key(self, row: int) -> str:
        """Key of a row."""
        return str(self._keys[row].decode())

    def sha256(self, row: int) -> str:
        """SHA-256 of an image's bytes, in hexadecimal."""
        return bytes(self._digests[row]).ljust(32, b"\0").hex()

    def content(self, row: int) -> bytes:
        """The bytes of the image file, as it was crawled."""
        span = int(self._offsets[row]), int(self._sizes[row])
        (content,) = read_spans(self.scored.pool.tar(shard_of(self.key(row))), [span])
        return content

    def view(self, wanted: Filter) -> Rows:
        """Rows that pass a filter, in its order."""
        order = self._order(wanted.order)
        passed = self._passed(wanted)
        if self.has_detector:
            passed &= (self.prob >= np.float32(wanted.low)) & (self.prob <= np.float32(wanted.high))
        return order[passed[order]]

    def histogram(self, wanted: Filter) -> list[int]:
        """Number of images by score, in BINS equal bins; the filter's range of scores is ignored."""
        counts, _ = np.histogram(self.prob[self._passed(wanted)], BINS, (0, 1))
        return [int(count) for count in counts]

    def counts(self) -> dict[str, int]:
        """Number of images by mark; those labeled are among the real ones."""
        numbers: dict[str, int] = {verdict: int((self.marked == i).sum()) for i, verdict in enumerate(_MARKS)}
        return numbers | {"labeled": int((self.marked_labels != _NONE).sum())}

    def progress(self, order: Order) -> tuple[int, int]:
        """How many of the first images of an order are marked, and how many these are: SUGGESTED, or all images."""
        first = self._order(order)[:SUGGESTED]
        return int((self.marked[first] != _NONE).sum()), len(first)

    @cached_property
    def map(self) -> region.Map:
        """Where each image lies on the map."""
        return region.draw(lambda: (self.scored.embeddings(shard) for shard in self.scored.shards), len(self))

    def describe(self, row: int) -> dict[str, Any]:
        """What the grid shows about an image."""
        marked, label = int(self.marked[row]), int(self.marked_labels[row])
        prob = float(self.prob[row])
        return {
            "row": int(row),
            "key": self.key(row),
            "version": self.sha256(row)[:12],
            "prob_synthetic": None if prob == NO_SCORE else round(prob, 4),
            "verdict": None if prob == NO_SCORE else VERDICTS[self.verdicts[row]],
            "pseudo_label": self.classes[self._model_labels[row]] if self.classes else None,
            "confidence": round(float(self.confidence[row]), 4) if self.classes else None,
            "marked": None if marked == _NONE else _MARKS[marked],
            "label": None if label == _NONE else self.classes[label],
        }

    def detail(self, row: int, neighbors: int) -> dict[str, Any]:
        """Everything that is known about an image, and its nearest neighbors."""
        number = self._shard_number[shard_of(self.key(row))]
        shard, in_shard = self.scored.shards[number], row - self.starts[number]
        names = ("source", "member", "format", "width", "height", "num_bytes", "declared", "declared_by", "probs")
        outside = self.scored.outside.names
        (facts,) = self.scored.rows(shard, (*names, *outside)).slice(in_shard, 1).to_pylist()
        probs = [float(prob) for prob in facts.pop("probs") or ()]
        embedding = np.asarray(self.scored.embeddings(shard)[in_shard : in_shard + 1], dtype=np.float32)
        (found,) = self.index.search(embedding, neighbors + 1)
        others = [(self._row_of(neighbor), neighbor.distance) for neighbor in found]
        best = sorted(zip(probs, self.classes, strict=True), reverse=True)[:5]
        return {
            **self.describe(row),
            "outside": {name: facts.pop(name) for name in outside},
            **facts,
            "crawl": self._crawl(shard, in_shard),
            "probs": [{"label": name, "prob": round(prob, 4)} for prob, name in best],
            "neighbors": [
                {**self.describe(other), "distance": round(distance or 0.0, 4)}
                for other, distance in [pair for pair in others if pair[0] != row][:neighbors]
            ],
        }

    def _crawl(self, shard: str, row: int) -> dict[str, Any]:
        """What the crawl says of an image, by column of the manifest."""
        pool = self.scored.pool
        (said,) = pool.rows(shard, [*CRAWL_COLUMNS, *pool.facts.names]).slice(row, 1).to_pylist()
        return {name: value for name, value in said.items() if value is not None}

    def _passed(self, wanted: Filter) -> npt.NDArray[np.bool_]:
        """Which rows (N,) pass a filter, ignoring its range of scores; marks take precedence over the model."""
        passed = np.ones(len(self), dtype=bool)
        if wanted.verdict != "any":
            by_person = map(marks.OF_DETECTOR.get, _MARKS)  # of skipped images, the model's
            codes = [_NONE if verdict is None else VERDICTS.index(verdict) for verdict in by_person]
            said = np.where(self.marked == _NONE, _NONE, np.array(codes, dtype=np.int8)[self.marked])
            passed &= np.where(said == _NONE, self.verdicts, said) == VERDICTS.index(wanted.verdict)
        if wanted.label is not None:
            number = self.classes.index(wanted.label) if wanted.label in self.classes else len(self.classes)
            passed &= np.where(self.marked_labels == _NONE, self._model_labels, self.marked_labels) == number
            passed &= self.marked != _MARKS.index("off-class")
        match wanted.marked:
            case "no" | "yes":
                passed &= (self.marked == _NONE) == (wanted.marked == "no")
            case "labeled":
                passed &= self.marked_labels != _NONE
            case "real" | "synthetic" | "off-class" | "skip":
                passed &= self.marked == _MARKS.index(wanted.marked)
        if wanted.text.strip():
            passed &= self._found(wanted.text)
        if wanted.region:
            passed &= self.map.inside(wanted.region)
        return passed

    def _search(self, text: str) -> npt.NDArray[np.bool_]:
        return search.search(self.scored.pool, self.scored.shards, text)

    def _order(self, name: Order) -> Rows:
        if name not in self._orders:
            self._orders[name] = self._sorted(name)
        return self._orders[name]

    def _sorted(self, name: Order) -> Rows:
        shares = self.neighborhood
        match name:
            case "suggested":
                return self._suggested()
            case "labels" if self.classes:
                return self._to_label()
            case "synthetic":
                by = -self.prob
            case "real":
                by = self.prob
            case "threshold":
                by = abs(self.prob - np.float32(self.thresholds.synthetic_from))
            case "other_label" if shares is not None:
                by = -shares.other_label
            case "other_verdict" if shares is not None:
                by = -shares.other_verdict
            case _:
                by = np.zeros(len(self), dtype=np.float32)
        return np.asarray(np.argsort(by, kind="stable"), dtype=np.int32)

    def _to_label(self) -> Rows:
        """Images whose label helps most; those that are called synthetic, which are not labeled, come last."""
        shards = self.scored.shards
        probs = (np.stack(self.scored.rows(shard, ["probs"])["probs"].to_numpy()) for shard in shards)
        doubt = np.concatenate([order.margin_doubt(each) for each in probs])
        return order.to_label(doubt, ~self.synthetic, lambda: map(self.scored.embeddings, shards), self._labeled())

    def _labeled(self) -> npt.NDArray[np.float32]:
        """Embeddings (L, D) of the labeled images; none where training kept none."""
        from pipelines.run import calibration  # not before: torch takes seconds to load

        evidence = calibration.load(self.scored.run)
        return np.empty((0, 1), np.float32) if evidence is None else evidence.references.float().numpy()

    def _suggested(self) -> Rows:
        doubt = order.uncertainty(self.prob, self.scored.real_below) if self.has_detector else 1 - self.confidence
        if self.neighborhood is not None:
            doubt = doubt + np.float32(order.DISAGREEMENT) * self.neighborhood.other_label
        groups = order.clusters(lambda: (self.scored.embeddings(shard) for shard in self.scored.shards), len(self))
        return order.order(doubt, groups * max(1, len(self.classes)) + self._model_labels)


def _bytes(digests: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """SHA-256 in hexadecimal as an array (N,) of 32 bytes each."""
    return np.frombuffer(bytes.fromhex("".join(digests)), dtype="S32")


def _codes(column: pa.ChunkedArray) -> npt.NDArray[np.int8]:
    """Verdicts as numbers (N,) in VERDICTS, -1 for null."""
    numbers = pc.index_in(column, pa.array(VERDICTS)).fill_null(_NONE)
    return np.asarray(numbers.to_numpy(), dtype=np.int8)
