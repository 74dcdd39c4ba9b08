"""How well the panel tells photographs from generated images at native resolution, without a synthetic label.

    python tests/bench/native.py --work /tmp/native

reads ../shared/data/native-matched.parquet and native-wild.parquet, ingests each set once as it is, saved as JPEG 80,
and at 256 pixels, computes the features beside these pools, and then draws seeds as make_native_crawl.py does: labeled
real images, a pool, and images that are known to be synthetic. Each draw is judged by the product's own code. It prints
a Markdown table: AUROC on the pool (mean of five seeds, least and most), how often the tool's own 95 % interval holds
it and how wide that is, the lower bound of the share, and the images called synthetic.
"""

import argparse
import io
import random
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps

from models.frozen import Frozen
from models.panel import Panel
from pipelines import ingest
from pipelines.compute import devices
from pipelines.ingest import IngestConfig
from pipelines.pool.features import FeatureReader, FeatureStore
from pipelines.pool.manifest import Pool
from pipelines.review import order
from pipelines.run import evaluation, weights
from pipelines.train.photographs import DECLARED_CAMERA, DECLARED_SYNTHETIC, Evidence, Judged, judge

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "MPO": "jpg"}
SEEDS = range(5)


@dataclass(frozen=True)
class Setting:
    """One line of the table."""

    title: str
    images: str  # matched or wild
    labels: int
    alpha: float
    known: int = 0  # synthetic images that are known, outside the pool
    marks: int = 0  # a person's, in the order of `curate review`
    variant: str = "as-is"
    declared: bool = True
    without: tuple[str, ...] = ()  # witnesses that are left out
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageSet:
    """Features and facts of all images of a set, row by row."""

    keys: list[str]
    synthetic: np.ndarray
    declared: list[str | None]
    features: torch.Tensor
    embeddings: np.ndarray
    widths: dict[str, int] = field(default_factory=dict)


def changed(content: bytes, variant: str) -> bytes:
    if variant == "as-is":
        return content
    opened = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    saved = io.BytesIO()
    if variant == "jpeg-80":
        opened.save(saved, "JPEG", quality=80)
    else:
        scale = 256 / min(opened.size)
        opened.resize((round(opened.width * scale), round(opened.height * scale)), Image.Resampling.BICUBIC).save(
            saved, "PNG"
        )
    return saved.getvalue()


def load(name: str, variant: str, work: Path) -> ImageSet:
    table = pq.read_table(DATA / f"native-{name}.parquet").to_pylist()
    crawl, pool = work / f"{name}-{variant}-crawl", work / f"{name}-{variant}-pool"
    if not pool.exists():
        crawl.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(table), 250):
            with tarfile.open(crawl / f"{start // 250:05d}.tar", "w") as tar:
                for row in table[start : start + 250]:
                    content = changed(row["image"], variant)
                    suffix = {"as-is": SUFFIX[row["format"]], "jpeg-80": "jpg", "256": "png"}[variant]
                    info = tarfile.TarInfo(f"{row['key']}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        ingest.run(IngestConfig(sources=(str(crawl),), pool=pool, jobs=2))
    opened = Pool.open(pool)
    frozen = Frozen(
        weights.EMBEDDED,
        weights.embedded_weights(weights.EMBEDDED) or {},
        224,
        devices.autocast("auto", torch.device("cpu")),
    )
    store = FeatureStore(opened, FeatureReader(frozen, 4, 2))
    views = [each for _, each in store.shards()]
    features = torch.cat([each.tiles for each in views])
    embeddings = torch.cat([each.images[:, 0] for each in views]).float().numpy()
    rows = [row for part in opened.tables(["member", "declared"]) for row in part.to_pylist()]
    truth = {row["key"]: int(row["is_synthetic"]) for row in table}
    keys = [Path(row["member"]).stem for row in rows]
    synthetic = np.array([truth[key] for key in keys])
    return ImageSet(keys, synthetic, [row["declared"] for row in rows], features, embeddings, store.reader.widths)


def draw(images: ImageSet, name: str, setting: Setting, seed: int) -> tuple[list[int], list[int], list[int]]:
    """Labeled, pool and known rows, as make_native_crawl.py draws them."""
    at = {key: i for i, key in enumerate(images.keys)}
    table = pq.read_table(DATA / f"native-{name}.parquet", columns=["key", "is_synthetic"]).to_pylist()
    rng = random.Random(seed)
    rng.shuffle(table)
    kept = [row for row in table if row["key"] in at]
    real, fake = ([at[row["key"]] for row in kept if row["is_synthetic"] == side] for side in (0, 1))
    labeled, real = real[: setting.labels], real[setting.labels :]
    known, fake = fake[: setting.known], fake[setting.known :]
    if len(fake) < round(setting.alpha * len(real)):
        real = real[: int(len(fake) / setting.alpha)]
    return labeled, real + fake[: round(setting.alpha * len(real))], known


def run(images: ImageSet, setting: Setting, seed: int) -> dict[str, float]:
    labeled, pool, known = draw(images, setting.images, setting, seed)
    truth = images.synthetic[pool] == 1
    says = [images.declared[row] if setting.declared else None for row in pool]
    synthetic = torch.tensor([DECLARED_SYNTHETIC * (each == "synthetic") for each in says], dtype=torch.float64)
    real = torch.tensor([DECLARED_CAMERA * (each == "camera") for each in says], dtype=torch.float64)
    features, widths = chosen(images, setting)
    measures = (synthetic > 0) & (not known)

    def judged_by_panel() -> tuple[Panel, Judged]:
        panel = Panel(widths)
        parts = features[pool], features[labeled], features[known], real, synthetic, measures
        return panel, judge(panel, Evidence(*parts, len(labeled), bool(known)))

    panel, judged = judged_by_panel()
    if setting.marks:
        doubt = order.uncertainty((judged.scores - panel.threshold).sigmoid().numpy(), judged.unsure_from)
        embeddings = images.embeddings[pool]
        for row in order.order(doubt, order.clusters(lambda: [embeddings], len(pool)))[: setting.marks].tolist():
            real[row], synthetic[row] = float(not truth[row]), float(truth[row])
        panel, judged = judged_by_panel()
    found, quality = judged.scores.numpy(), judged.quality
    low, high = quality.auroc_interval or (0.5, 1.0)
    auroc = evaluation.auroc(found, truth) if truth.any() else float("nan")
    share = float(truth.mean())
    return {
        "auroc": auroc,
        "estimate": quality.auroc or float("nan"),
        "width": high - low,
        "covered": float(low <= auroc <= high),
        "share": share,
        "at_least": quality.share_at_least,
        "share_holds": float(quality.share_at_least <= share + 1e-9),
        "called": float((found >= panel.threshold.item()).mean()),
    }


def chosen(images: ImageSet, setting: Setting) -> tuple[torch.Tensor, dict[str, int]]:
    parts = dict(zip(images.widths, images.features[:, :-1].split(list(images.widths.values()), 1), strict=True))
    kept = {
        name: part
        for name, part in parts.items()
        if name not in setting.without and (not setting.only or name in setting.only)
    }
    fold = images.features[:, -1:]
    return torch.cat((*kept.values(), fold), 1).float(), {name: part.shape[1] for name, part in kept.items()}


def settings(widths: dict[str, int]) -> Iterator[Setting]:
    for name, labels, alpha in (("matched", 60, 1.0), ("wild", 150, 0.5)):
        base = (name, labels, alpha)
        yield Setting(f"{name}, {labels} labels, alpha {alpha:g}", *base)
        yield Setting(f"{name}: nothing declared is used", *base, declared=False)
        yield Setting(f"{name}: 20 known synthetic images", *base, known=20)
        yield Setting(f"{name}: 50 known synthetic images", *base, known=50)
        yield Setting(f"{name}: 50 marks in the order of review", *base, marks=50)
        for variant in ("jpeg-80", "256"):
            yield Setting(f"{name}: all at {variant}", *base, variant=variant)
            yield Setting(f"{name}: all at {variant}, 50 known", *base, variant=variant, known=50)
        for other in (0.0, 0.1, 0.5, 2.0):
            if other != alpha:
                yield Setting(f"{name}: alpha {other:g}", name, labels, other)
        for count in (30, 150, 500):
            if count != labels and (name == "wild" or count < 150):
                yield Setting(f"{name}: {count} labels", name, count, alpha)
        for witness in widths:
            yield Setting(f"{name}: only {witness}", *base, only=(witness,), declared=False)
            yield Setting(f"{name}: without {witness}", *base, without=(witness,), declared=False)


def line(setting: Setting, results: list[dict[str, float]]) -> str:
    def mean(name: str) -> float:
        return (
            float(np.nanmean([each[name] for each in results]))
            if any(np.isfinite(each[name]) for each in results)
            else float("nan")
        )

    aurocs = [each["auroc"] for each in results]
    covered = sum(each["covered"] for each in results)
    shares = sum(each["share_holds"] for each in results)
    return (
        f"| {setting.title} | {mean('auroc'):.3f} ({min(aurocs):.3f} to {max(aurocs):.3f}) | {mean('estimate'):.3f}, "
        f"{covered:.0f} of {len(results)} | {mean('width'):.2f} | {mean('share'):.3f}; {mean('at_least'):.3f}, "
        f"{shares:.0f} of {len(results)} | {100 * mean('called'):.1f} % |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pattern", default="", help="only lines whose title has this")
    given = parser.parse_args()
    devices.keep_freed_memory(torch.device("cpu"))
    sets = {(name, "as-is"): load(name, "as-is", given.work) for name in ("matched", "wild")}
    torch.set_num_threads(1)
    print(
        "| | AUROC | estimate; intervals that hold | width | share; bound, holds | called |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for setting in sorted(settings(sets["wild", "as-is"].widths), key=lambda each: each.variant != "as-is"):
        if given.pattern not in setting.title:
            continue
        at = (setting.images, setting.variant)
        if at not in sets:
            torch.set_num_threads(2)
            sets[at] = load(*at, given.work)
            torch.set_num_threads(1)
        with ProcessPoolExecutor(2) as processes:
            found = list(processes.map(run, [sets[at]] * len(SEEDS), [setting] * len(SEEDS), SEEDS))
        print(line(setting, found), flush=True)


if __name__ == "__main__":
    main()
