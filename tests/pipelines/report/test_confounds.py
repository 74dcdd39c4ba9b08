import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pipelines.report.statistics import survey

from curate.config import resolve
from pipelines import ingest, score, toy, train
from pipelines.images.check import foreign_images
from pipelines.pool import labeled, truth
from pipelines.pool.manifest import Pool
from pipelines.report import confounds
from pipelines.report.confounds import Audit, Property, audit, look, predictability, read_rows
from pipelines.run.scorer import Scorer
from pipelines.run.scores import ScoredPool
from pipelines.storage.shards import read_samples

NOISE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, format_: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format_, **options)
    return out.getvalue()


def seen(content: bytes) -> dict[str, Any]:
    with foreign_images():
        return look(content)


# What is read from a file


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 51, 75, 90, 95, 100])
def test_the_quality_of_a_jpeg_is_found_in_its_tables(quality: int) -> None:
    assert seen(encoded(NOISE, "JPEG", quality=quality))["JPEG quality"] == quality


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_the_subsampling_of_a_jpeg_is_found_in_its_header(subsampling: str) -> None:
    assert seen(encoded(NOISE, "JPEG", subsampling=subsampling))["chroma subsampling"] == subsampling


def test_other_formats_have_neither_and_a_grey_jpeg_has_no_chroma() -> None:
    for format_ in ("PNG", "WEBP", "GIF"):
        assert seen(encoded(NOISE, format_)).items() >= {"JPEG quality": None, "chroma subsampling": None}.items()
    assert seen(encoded(NOISE[..., 0], "JPEG"))["chroma subsampling"] == "no chroma"


def test_grey_is_what_has_hardly_a_color() -> None:
    grey = np.repeat(NOISE[..., :1], 3, axis=2)
    tinted = grey.clip(0, 250) + np.array([5, 0, 0], dtype=np.uint8)
    colored = grey.clip(0, 240) + np.array([8, 0, 0], dtype=np.uint8)
    found = [seen(encoded(pixels, "PNG"))["greyness"] for pixels in (grey, tinted, colored, NOISE)]
    assert found == ["grey", "grey", "color", "color"]


def test_a_row_is_read_with_what_stood_beside_it(world: Any) -> None:
    pool = Pool.open(world.pool)
    rows = survey(pool, None, (), sample=10_000, gallery=1, per_class=1).sample
    samples = {key: sample for shard in pool.shards for key, sample in read_samples(pool.tar(shard))}
    for row, (image, sidecars) in zip(rows.to_pylist(), read_rows(pool, rows), strict=True):
        whole = samples[row["key"]]
        assert image == whole.pop(row["format"])
        assert sidecars == whole and set(whole) == {"json", "txt"}


# What a property says


def test_what_tells_the_verdict_has_all_of_its_bits() -> None:
    called = np.random.default_rng(0).random(4000) < 0.25
    area, bits, there_are = predictability(called.astype(np.int64), called)
    assert area == pytest.approx(1)
    assert bits == pytest.approx(there_are, abs=0.01) and there_are == pytest.approx(0.81, abs=0.02)


@pytest.mark.parametrize("num_categories", [2, 50, 1000, 4000])
def test_many_categories_that_know_nothing_are_not_taken_to_know(num_categories: int) -> None:
    rng = np.random.default_rng(1)
    area, bits, _ = predictability(rng.integers(0, num_categories, 4000), rng.random(4000) < 0.3)
    assert area < 0.53 and bits < 0.01


def test_a_hundred_sources_with_rates_of_their_own_are_found() -> None:
    rng = np.random.default_rng(2)
    source = rng.integers(0, 100, 4000)
    called = rng.random(4000) < np.where(source % 2, 0.9, 0.1)
    assert predictability(source, called)[0] == pytest.approx(0.9, abs=0.02)


def judged(values: list[Any], called: np.ndarray, of_labeled: list[Any] | None = None) -> Property:
    probs = called.astype(np.float32)
    return confounds._property("size", values, of_labeled or [], called, probs)


def test_a_number_that_tells_in_the_middle_of_its_range_is_found() -> None:
    rng = np.random.default_rng(3)
    width = rng.normal(512, 100, 4000).round()
    called = np.zeros(4000, dtype=bool)
    called[::3] = True
    width[called] = 512  # as a generator makes them; photographs are wider and narrower
    found = judged(width.tolist(), called)
    assert found.auroc is not None and found.auroc > 0.98 and confounds.predicts(found)
    (cell,) = (cell for cell in found.cells if cell.value == "512")
    assert cell.share_synthetic is not None and cell.share_synthetic > 0.98
    assert sum(cell.num_images for cell in found.cells) == 4000


def test_missing_values_and_few_verdicts_say_nothing() -> None:
    called = np.arange(100) % 2 == 0
    found = judged([None, 1.0] * 50, called)
    assert (found.num_images, found.auroc, confounds.predicts(found)) == (50, None, False)
    assert judged([float(i) for i in range(100)], np.arange(100) < 5).auroc is None


def test_labeled_images_of_another_kind_are_told_from_chance() -> None:
    rng = np.random.default_rng(4)
    called = rng.random(4000) < 0.3
    pool = rng.normal(1, 0.2, 4000).tolist()
    same, other = rng.normal(1, 0.2, 40).tolist(), rng.normal(1.3, 0.2, 40).tolist()
    assert not confounds.differs(judged(pool, called, same))
    assert confounds.differs(judged(pool, called, other))
    formats = ["jpg"] * 2000 + ["png"] * 2000
    found = judged(formats, called, ["jpg"] * 40)
    assert found.difference == pytest.approx(0.5) and confounds.differs(found)
    assert [(cell.value, cell.share, cell.labeled_share) for cell in found.cells] == [
        ("jpg", 0.5, 1.0),
        ("png", 0.5, 0.0),
    ]


# A whole audit


def all_of(pool: Path, run: Path, seed: Path | None) -> Audit:
    scored = ScoredPool.open(pool, run)
    sample = survey(scored.pool, scored, scored.classes, sample=5000, gallery=1, per_class=1).sample
    paths = [path for path, _ in labeled.files(seed)] if seed else None
    return audit(scored.pool, sample, paths, Scorer.load(run, "cpu"))


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crawl whose synthetic images are PNG, its real ones JPEG like the labeled; trained and scored."""
    root = tmp_path_factory.mktemp("leaking")
    (root / "crawl").mkdir()
    toy._write_folders(root / "seed", toy._pictures(0, "seed", 40, synthetic=False))
    for i, file in enumerate(toy._pictures(0, "real", 240, synthetic=False)):
        (root / "crawl" / f"{i:05d}-real.jpg").write_bytes(file.data)
    rng = np.random.default_rng(1)
    pictures = toy._generate(rng, toy._scenes(rng, np.arange(120) % 5, richness=1.25))
    for i, pixels_HWC in enumerate(pictures):
        (root / "crawl" / f"{i:05d}.png").write_bytes(encoded(np.rint(pixels_HWC * 255).astype(np.uint8), "PNG"))
    ingest.run(ingest.IngestConfig(sources=(str(root / "crawl"),), pool=root / "pool", jobs=1))
    flags = {"labeled": root / "seed", "pool": root / "pool", "run": root / "run", "num_steps": 30, "device": "cpu"}
    train.run(resolve(train.TrainConfig, flags, "demo"))
    score.run(score.ScoreConfig(pool=root / "pool", run=root / "run", device="cpu"))
    return root


def test_a_detector_that_learned_the_file_format_sets_it_off(leaking: Path) -> None:
    found = all_of(leaking / "pool", leaking / "run", leaking / "seed")
    (format_,) = (each for each in found.properties if each.name == "format")
    assert format_.auroc is not None and format_.auroc > confounds.WARN_AUROC
    assert any("The format alone predicts the verdict" in warning and "of png" in warning for warning in found.warnings)
    assert any("differ from the pool in format" in warning for warning in found.warnings)
    assert all("\n" not in warning for warning in found.warnings)
    assert found.constant["width"] == "32" and found.constant["JPEG quality"] == "92"
    stable = {each.change: each for each in found.stability}
    assert stable["saved again without loss"].flipped == 0
    assert stable["saved again without loss"].mean_change < 1e-4
    assert stable["saved as JPEG of quality 90"].mean_change > 0.02


def test_files_of_the_labeled_set_that_are_gone_are_counted(leaking: Path, tmp_path: Path) -> None:
    paths = [path for path, _ in labeled.files(leaking / "seed")][:5]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(paths[0].read_bytes()[:200])
    values, probs, notes = confounds._of_labeled([*paths, broken, tmp_path / "gone.jpg"], None, lambda tick: None)
    assert len(values["format"]) == 5 and not probs
    assert notes == ("2 of 7 images of the labeled set can no longer be read.",)


def test_verdicts_that_know_the_picture_alone_do_not_set_it_off(world: Any, leaking: Path, tmp_path: Path) -> None:
    """The toy's synthetic images have the format, size and tables of the real ones: the truth as verdict is no leak."""
    shutil.copytree(leaking / "run" / "model", tmp_path / "model")
    score.run(score.ScoreConfig(pool=world.pool, run=tmp_path, device="cpu"))
    known, pool = truth.read(world.truth), Pool.open(world.pool)
    for shard in pool.shards:
        path = tmp_path / "scores" / f"{shard}.parquet"
        table = pq.read_table(path)
        is_synthetic, _ = known.of(pool.rows(shard)["member"].to_pylist())
        for name, values in (("synthetic", is_synthetic == 1), ("prob_synthetic", is_synthetic.astype(np.float32))):
            table = table.set_column(table.column_names.index(name), table.schema.field(name), [values])
        pq.write_table(table, path)
    found = all_of(world.pool, tmp_path, world.seed)
    assert [warning for warning in found.warnings if "flip" not in warning] == []
    assert found.constant["format"] == "jpg" and found.num_labeled == 40
    assert {each.name for each in found.properties} >= {"bytes per pixel", "source"}
