"""Confounds: does something that has nothing to do with the picture tell the verdict, or the labeled images?

A detector that learned the file format looks as good as one that learned to see. So each property of the files is
asked, alone, how well it predicts the verdict, and how much the labeled images differ in it from the pool, which is
where a detector would have learned it. And a verdict that changes when the same picture is saved once more is worth
little.

In: a sample of a scored pool and the labeled set's files. Out: values; `pipelines.report` shows them.
"""

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageOps, JpegImagePlugin

from pipelines.images.check import Accepted, Limits, examine, foreign_images
from pipelines.pool.manifest import Pool
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run.evaluation import auroc
from pipelines.storage.shards import read_spans_across, sample_start
from pipelines.storage.tar import MAX_MEMBER_BYTES, read_tar

if TYPE_CHECKING:
    from pipelines.run.scorer import Scorer


INSPECTED = 4_000  # images of the sample whose files are opened
LABELED = 1_000  # files of the labeled set that are read
STABILITY = 500  # images that are changed and scored again

# A property is warned of where, of two images with different verdicts, it alone tells which is which three times in
# four; or where it holds a fifth of what there is to know about the verdict, which catches a property that tells few
# images, but these for sure. Greyness, which does differ between photographs and diffusion images (15 % of Stable
# Diffusion's small images are grey, 3 % of CIFAR's), stays far below both: 0.55 and 0.02.
WARN_AUROC = 0.75
WARN_SHARE = 0.2
# A fifth of the labeled images would have to be others for the two to look alike.
WARN_DIFFERENCE = 0.2
# Saved once more as a JPEG of quality 90, 2 % of the verdicts on such a crawl flip; where the detector learned the file
# format, 34 %.
WARN_FLIPPED = 0.1
MIN_VERDICTS = 20  # of either kind; of fewer nothing is said

_ADVICE_ELSE = "trust verdicts only among images that are alike in it, or make the images alike and train again"
_ADVICE = dict.fromkeys(
    ("source", "domain"), "look at images of both kinds with `curate inspect` before you trust its verdicts"
)

GREY = 6.0  # mean difference between an image's strongest and weakest channel, of 255, below which it counts as grey
BINS = 12  # of a numeric property
CELLS = 8  # shown of a property with many values
_FOLDS = 5
_DRAWS = 200
_DECODED_SIDE = 256  # larger JPEGs are decoded at a fraction of their size to be told grey from color
_SCORED_AT_ONCE = 64
_LIMITS = Limits(min_side=1, max_pixels=1 << 31, max_bytes=1 << 28)

# ITU-T T.81, table K.1: the luminance table that the quality setting of libjpeg scales.
_LUMINANCE = np.array(
    [
        16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
        14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
        49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
    ]
)  # fmt: skip

Codes = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Images that share a value of a property, or a range of values."""

    value: str
    num_images: int  # of the sample
    share: float  # of the sample's images
    share_synthetic: float | None  # of these; None without a detector, or without an image
    mean_prob: float | None  # mean prob_synthetic of these
    labeled_share: float | None  # share of the labeled images that have it; None without a labeled set


@dataclass(frozen=True, kw_only=True, slots=True)
class Property:
    """What one property of the files says about the verdict and the labeled set; None where that cannot be said."""

    name: str
    num_images: int
    auroc: float | None  # of predicting the verdict from it alone, 0.5..1
    bits: float | None  # what it tells about the verdict, on images that were not used to learn it
    bits_of_verdict: float | None  # what there is to tell
    difference: float | None  # between labeled set and pool, 0..1: the share of images in which they disagree
    noise: float | None  # the difference that chance alone exceeds once in a hundred times
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stability:
    """What a change that nobody sees does to the verdicts."""

    change: str
    num_images: int
    flipped: float  # share of the verdicts
    mean_change: float  # of prob_synthetic, absolute


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """All of it. `constant` lists the properties, with their value, in which all images are alike."""

    properties: tuple[Property, ...]
    constant: dict[str, str]
    num_labeled: int
    labeled_probs: tuple[float, ...]  # prob_synthetic of the labeled images; empty without a detector
    stability: tuple[Stability, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]  # what could not be looked at, and why


def audit(
    pool: Pool,
    sample: pa.Table,
    labeled: Sequence[Path] | None,
    scorer: "Scorer | None",
    on_tick: OnTick = ignore,
) -> Audit:
    """Ask all properties of `sample`, rows of `pipelines.report.statistics`; the first of them are opened.

    `scorer` is None without a detector. Raises CorruptShard where an image that the pool lists is gone.
    """
    has_verdict = "synthetic" in sample.column_names and not sample["synthetic"].null_count
    verdict = sample["synthetic"].to_numpy() if has_verdict else None
    probs = sample["prob_synthetic"].to_numpy() if has_verdict else None
    of_pool = _of_manifest(sample)
    opened = list(_opened(pool, sample.slice(0, INSPECTED), on_tick))
    of_pool |= {name: [look[name] for look in opened] for name in _LOOKED_AT}
    of_labeled, labeled_probs, notes = _of_labeled(labeled or (), scorer, on_tick)
    properties, constant = [], {}
    for name, values in of_pool.items():
        among = of_labeled.get(name, [])
        if len(different := {value for value in (*values, *among) if value is not None}) == 1:
            (value,) = different
            constant[name] = f"{value:g}" if isinstance(value, float) else str(value)
        elif different:
            properties.append(_property(name, values, among, verdict, probs))
    stability = _stability(pool, sample.slice(0, STABILITY), scorer, on_tick) if scorer and has_verdict else ()
    return Audit(
        properties=tuple(sorted(properties, key=lambda each: -(each.auroc or 0))),
        constant=constant,
        num_labeled=len(of_labeled.get("format", [])),
        labeled_probs=labeled_probs,
        stability=stability,
        warnings=(*(sentence for each in properties for sentence in _warnings(each)), *_unstable(stability)),
        notes=notes,
    )


def predicts(found: Property) -> bool:
    """Whether a property alone predicts the verdict well enough to be warned of."""
    if found.auroc is None or found.bits is None or not found.bits_of_verdict:
        return False
    return found.auroc >= WARN_AUROC or found.bits >= WARN_SHARE * found.bits_of_verdict


def differs(found: Property) -> bool:
    """Whether labeled set and pool differ so much in a property, beyond chance, that it is to be warned of."""
    if found.difference is None or found.noise is None:
        return False
    return found.difference >= max(WARN_DIFFERENCE, found.noise)


def _warnings(found: Property) -> Iterator[str]:
    """One sentence for each thing that is wrong with a property."""
    if predicts(found):
        assert found.bits is not None and found.bits_of_verdict is not None
        yield (
            f"The {found.name} alone predicts the verdict (AUROC {found.auroc:.2f}, "
            f"{found.bits / found.bits_of_verdict:.0%} of what there is to know){_extremes(found.cells)}; the detector "
            f"may have learned it instead of the pictures: {_ADVICE.get(found.name, _ADVICE_ELSE)}."
        )
    if differs(found):
        cell = max(found.cells, key=lambda cell: abs((cell.labeled_share or 0.0) - cell.share))
        yield (
            f"The labeled images differ from the pool in {found.name} (by {found.difference:.0%}): "
            f"{cell.labeled_share or 0.0:.0%} of them and {cell.share:.0%} of the pool are {cell.value}; take labeled "
            "images that went through the same pipeline as the crawl."
        )


def _unstable(found: Sequence[Stability]) -> Iterator[str]:
    for each in found:
        if each.flipped >= WARN_FLIPPED:
            yield (
                f"Of the verdicts {each.flipped:.0%} flip when the image is {each.change}: they rest on how a file was "
                'saved, not on what is in it; export with a margin, such as --where "prob_synthetic < 0.1".'
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


# The properties of a file


_LOOKED_AT = ("JPEG quality", "chroma subsampling", "greyness", "domain")


def _of_manifest(rows: pa.Table) -> dict[str, list[Any]]:
    size = _of_size(*(rows[name].to_numpy() for name in ("width", "height", "num_bytes")))
    return {"format": rows["format"].to_pylist(), **size, "source": rows["source"].to_pylist()}


def _of_size(width: npt.ArrayLike, height: npt.ArrayLike, num_bytes: npt.ArrayLike) -> dict[str, list[float]]:
    w, h, b = (np.asarray(values, dtype=float) for values in (width, height, num_bytes))
    values = {"width": w, "height": h, "aspect": (w / h).round(3), "bytes per pixel": b / (w * h)}
    return {name: value.tolist() for name, value in values.items()}


def _opened(pool: Pool, rows: pa.Table, on_tick: OnTick) -> Iterator[dict[str, Any]]:
    """What the files themselves say, in the order of `rows`."""
    with foreign_images():
        for done, (content, sidecars) in enumerate(read_rows(pool, rows), 1):
            yield look(content) | {"domain": _domain(sidecars)}
            on_tick(Tick(done=done, total=rows.num_rows, unit="files"))


def read_rows(pool: Pool, rows: pa.Table) -> Iterator[tuple[bytes, dict[str, bytes]]]:
    """Image and sidecars by suffix of each row of `pipelines.report.statistics`, in the order of `rows`."""
    listed = rows.select(["key", "shard", "offset", "num_bytes", "stop", "format"]).to_pylist()
    starts = [sample_start(row["offset"]) for row in listed]
    spans = [(pool.tar(row["shard"]), start, row["stop"] - start) for row, start in zip(listed, starts, strict=True)]
    for row, start, span in zip(listed, starts, read_spans_across(spans), strict=True):
        members = read_tar(io.BytesIO(span), MAX_MEMBER_BYTES)
        sample = {name.partition(".")[2]: data for name, data in members if name.startswith(f"{row['key']}.")}
        sample.pop(row["format"], None)
        image = row["offset"] - start
        yield span[image : image + row["num_bytes"]], {k: v for k, v in sample.items() if isinstance(v, bytes)}


def _domain(sidecars: dict[str, bytes]) -> str | None:
    """Host that the crawl's JSON names as the image's origin."""
    try:
        return urlsplit(str(json.loads(sidecars["json"])["url"])).hostname
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def look(content: bytes) -> dict[str, Any]:
    """JPEG quality (1..100) and subsampling, None for other formats, and whether an image is in color.

    Call within `foreign_images`; the bytes must be those of an image that can be decoded.
    """
    with Image.open(io.BytesIO(content)) as image:
        found = {"JPEG quality": jpeg_quality(image), "chroma subsampling": _subsampling(image)}
        image.draft("RGB", (_DECODED_SIDE, _DECODED_SIDE))
        pixels_HWC = np.asarray(image.convert("RGB"), dtype=np.int16)
    spread = float((pixels_HWC.max(2) - pixels_HWC.min(2)).mean())
    return found | {"greyness": "grey" if spread < GREY else "color"}


def jpeg_quality(image: Image.Image) -> float | None:
    """The quality of libjpeg (jcparam.c) whose luminance table is nearest to that of a JPEG; None for other formats."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return None
    table = np.asarray(tables[min(tables)], dtype=np.int64)
    if table.shape != (64,):
        return None
    quality = np.arange(1, 101)
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    scaled = ((_LUMINANCE * percent[:, None] + 50) // 100).clip(1, 255)
    return float(quality[np.abs(scaled - table).sum(1).argmin()])


def _subsampling(image: Image.Image) -> str | None:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    if len(image.layer) != 3:
        return "no chroma"
    (_, across, down, _), chroma = image.layer[0], image.layer[1]
    names = {(1.0, 1.0): "4:4:4", (2.0, 1.0): "4:2:2", (2.0, 2.0): "4:2:0", (1.0, 2.0): "4:4:0", (4.0, 1.0): "4:1:1"}
    return names.get((across / chroma[1], down / chroma[2]), "other")


def _of_labeled(
    paths: Sequence[Path], scorer: "Scorer | None", on_tick: OnTick
) -> tuple[dict[str, list[Any]], tuple[float, ...], tuple[str, ...]]:
    """Properties and scores of the labeled set's files; source and domain are not theirs to have."""
    values = defaultdict[str, list[Any]](list)
    probs: list[float] = []
    num_read = 0
    for start in range(0, len(paths), _SCORED_AT_ONCE):
        contents = []
        for content, found in _readable(paths[start : start + _SCORED_AT_ONCE]):
            contents.append(content)
            for name, value in found.items():
                values[name].append(value)
        if scorer and contents:
            scores = scorer.score(contents)
            probs += scores.prob_synthetic.tolist() if scores.prob_synthetic is not None else []
        num_read += len(contents)
        on_tick(Tick(done=min(start + _SCORED_AT_ONCE, len(paths)), total=len(paths), unit="labeled images"))
    lost = len(paths) - num_read
    notes = (f"{lost} of {len(paths)} images of the labeled set can no longer be read.",) if lost else ()
    return dict(values), tuple(probs), notes


def _readable(paths: Sequence[Path]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Bytes and properties of those files that are images."""
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError:
            continue
        with foreign_images():
            found = examine(content, None, _LIMITS)
            if isinstance(found, Accepted):
                size = _of_size([found.width], [found.height], [len(content)])
                yield content, {"format": found.format, **{k: v[0] for k, v in size.items()}, **look(content)}


# What a property says


class _Binning:
    """Values of a property as codes: a code for each value that is frequent, and for each range between quantiles."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.ordered = not isinstance(values[0], str)
        if not self.ordered:
            self.labels = sorted(set(values))
            self._codes = {label: code for code, label in enumerate(self.labels)}
            return
        numbers = np.asarray(values, dtype=float)
        distinct, counts = np.unique(numbers, return_counts=True)
        frequent = distinct if len(distinct) <= BINS else distinct[counts >= len(numbers) / BINS / 2]
        rest = numbers[~np.isin(numbers, frequent)]
        cuts = np.unique(np.quantile(rest, np.arange(1, BINS) / BINS)) if len(rest) else np.empty(0)
        # A frequent value is the range from itself to the next number.
        self._starts = np.unique([-np.inf, *cuts, *frequent, *np.nextafter(frequent, np.inf)])
        codes = np.searchsorted(self._starts, numbers, side="right") - 1
        used = np.unique(codes)
        self._starts = self._starts[used]
        self.labels = [_range(numbers[codes == code]) for code in used]

    def __call__(self, values: Sequence[Any]) -> Codes:
        if self.ordered:
            return (np.searchsorted(self._starts, np.asarray(values, dtype=float), side="right") - 1).clip(0)
        return np.array([self._codes[value] for value in values], dtype=np.int64)


def _range(values: npt.NDArray[np.floating[Any]]) -> str:
    low, high = f"{values.min():.4g}", f"{values.max():.4g}"
    return low if low == high else f"{low}–{high}"


def _property(
    name: str,
    values: Sequence[Any],
    among_labeled: Sequence[Any],
    verdict: Bools | None,
    probs: npt.NDArray[np.float32] | None,
) -> Property:
    """Judge one property; `values` are those of the sample's first images, None where a file has no such thing."""
    has = np.array([value is not None for value in values], dtype=bool)
    present = [value for value in values if value is not None]
    labeled = [value for value in among_labeled if value is not None]
    binning = _Binning([*present, *labeled])
    codes, labeled_codes, num = binning(present), binning(labeled), len(binning.labels)
    counts, labeled_counts = np.bincount(codes, minlength=num), np.bincount(labeled_codes, minlength=num)
    difference, noise = _difference(counts, labeled_counts, binning.ordered) if labeled and present else (None, None)
    predicted = None
    synthetic, prob_sums = None, None
    if verdict is not None and probs is not None:
        called = verdict[: len(values)][has]
        synthetic = np.bincount(codes, called, minlength=num)
        prob_sums = np.bincount(codes, probs[: len(values)][has], minlength=num)
        if min(called.sum(), (~called).sum()) >= MIN_VERDICTS:
            predicted = predictability(codes, called)
            if binning.ordered:
                straight = auroc(np.asarray(present, dtype=float), called)
                predicted = (max(predicted[0], straight, 1 - straight), *predicted[1:])
    cells = _cells(binning, counts, labeled_counts if labeled else None, synthetic, prob_sums)
    return Property(
        name=name,
        num_images=len(present),
        auroc=predicted and round(predicted[0], 4),
        bits=predicted and round(predicted[1], 4),
        bits_of_verdict=predicted and round(predicted[2], 4),
        difference=difference,
        noise=noise,
        cells=cells,
    )


def predictability(codes: Codes, called: Bools) -> tuple[float, float, float]:
    """How well the categories `codes` (N,) predict `called` (N,): AUROC, bits, and the bits that there are.

    Every image is judged by the rate of its category among the images of the other folds, so that many categories of
    few images each, such as the files of a crawl, do not look as if they knew. The AUROC is the folds' mean.
    """
    fold = np.arange(len(codes)) % _FOLDS  # the sample's order is random
    num = int(codes.max()) + 1
    shape = _FOLDS, num
    images = np.bincount(fold * num + codes, minlength=_FOLDS * num).reshape(shape)
    hits = np.bincount(fold * num + codes, called, minlength=_FOLDS * num).reshape(shape)
    images, hits = images.sum(0) - images, hits.sum(0) - hits  # of the other folds
    base = (hits.sum(1, keepdims=True) + 0.5) / (images.sum(1, keepdims=True) + 1)
    rate = ((hits + base) / (images + 1))[fold, codes]  # one image's worth of the base rate
    areas = [auroc(rate[fold == k], called[fold == k]) for k in range(_FOLDS)]
    prior = base[fold, 0]
    gain = np.where(called, np.log2(rate / prior), np.log2((1 - rate) / (1 - prior)))
    share = called.mean()
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    return max(0.5, float(np.nanmean(areas))), max(0.0, float(gain.mean())), float(entropy)


def _difference(counts: Codes, labeled_counts: Codes, ordered: bool) -> tuple[float, float]:
    """How much two sets of images differ in a property, 0..1, and what chance alone makes of sets of these sizes.

    Total variation; for ordered values Kolmogorov and Smirnov's, which needs fewer images.
    """

    def distance(some: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        gap = some / some.sum(-1, keepdims=True) - other / other.sum(-1, keepdims=True)
        return np.asarray(np.abs(gap.cumsum(-1)).max(-1) if ordered else np.abs(gap).sum(-1) / 2)

    rng = np.random.default_rng(0)
    both = (counts + labeled_counts) / (counts + labeled_counts).sum()
    draws = [rng.multinomial(int(some.sum()), both, _DRAWS) for some in (counts, labeled_counts)]
    return (
        round(float(distance(counts, labeled_counts)), 4),
        round(float(np.quantile(distance(draws[0], draws[1]), 0.99)), 4),
    )


def _shares(counts: Codes) -> npt.NDArray[np.float64]:
    return np.asarray(counts / max(counts.sum(), 1))  # of none there are none


def _cells(
    binning: _Binning,
    counts: Codes,
    labeled_counts: Codes | None,
    synthetic: npt.NDArray[Any] | None,
    prob_sums: npt.NDArray[Any] | None,
) -> tuple[Cell, ...]:
    """The cross-tabulation: all ranges of a number, the most frequent of other values and the rest as one."""
    groups = [[code] for code in range(len(counts))]
    if not binning.ordered:
        total = counts if labeled_counts is None else _shares(counts) + _shares(labeled_counts)
        order = np.argsort(-total, kind="stable").tolist()
        groups = [[code] for code in order[:CELLS]] + ([order[CELLS:]] if len(order) > CELLS else [])
    cells = []
    for group in groups:
        num = int(counts[group].sum())
        cells.append(
            Cell(
                value=binning.labels[group[0]] if len(group) == 1 else f"{len(group)} others",
                num_images=num,
                share=round(num / max(int(counts.sum()), 1), 4),
                share_synthetic=_ratio(synthetic, group, num),
                mean_prob=_ratio(prob_sums, group, num),
                labeled_share=_ratio(labeled_counts, group, labeled_counts.sum() if labeled_counts is not None else 0),
            )
        )
    return tuple(cells)


def _ratio(sums: npt.NDArray[Any] | None, group: list[int], num: int) -> float | None:
    return None if sums is None or not num else round(float(sums[group].sum() / num), 4)


# What a change that nobody sees does to the verdict


def _stability(pool: Pool, rows: pa.Table, scorer: "Scorer", on_tick: OnTick) -> tuple[Stability, ...]:
    changes: dict[str, Callable[[Image.Image], bytes]] = {
        "saved again without loss": _as_png,
        "saved as JPEG of quality 90": _as_jpeg,
        "cropped by one pixel": _cropped,
    }
    probs, verdict = rows["prob_synthetic"].to_numpy(), rows["synthetic"].to_numpy()
    flips, moves, done = dict.fromkeys(changes, 0), dict.fromkeys(changes, 0.0), 0
    for start in range(0, rows.num_rows, _SCORED_AT_ONCE):
        part = slice(start, start + _SCORED_AT_ONCE)
        pictures = []
        with foreign_images():
            for content, _ in read_rows(pool, rows.slice(start, _SCORED_AT_ONCE)):
                with Image.open(io.BytesIO(content)) as opened:
                    pictures.append(ImageOps.exif_transpose(opened).convert("RGB"))
        for name, change in changes.items():
            scores = scorer.score([change(picture) for picture in pictures])
            assert scores.prob_synthetic is not None and scores.synthetic is not None
            flips[name] += int((scores.synthetic != verdict[part]).sum())
            moves[name] += float(np.abs(scores.prob_synthetic - probs[part]).sum())
        done += len(pictures)
        on_tick(Tick(done=done, total=rows.num_rows, unit="images changed"))
    return tuple(
        Stability(
            change=name, num_images=done, flipped=round(flips[name] / done, 4), mean_change=round(moves[name] / done, 4)
        )
        for name in changes
    )


def _as_png(picture: Image.Image) -> bytes:
    return _saved(picture, "PNG")


def _as_jpeg(picture: Image.Image) -> bytes:
    return _saved(picture, "JPEG", quality=90)


def _cropped(picture: Image.Image) -> bytes:
    return _saved(picture.crop((1, 1, max(picture.width, 2), max(picture.height, 2))), "PNG")


def _saved(picture: Image.Image, format_: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, format_, **options)
    return out.getvalue()
