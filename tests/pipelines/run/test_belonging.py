"""Several pools of one run: pools whose images have the same names and keys are scored, read and exported apart."""

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipelines import export, ingest, report, score
from pipelines.errors import BadInput, CorruptShard, Incompatible
from pipelines.export import ExportConfig
from pipelines.pool.manifest import Pool, read_parquet
from pipelines.progress import Tick
from pipelines.run import belonging, marks, outside, quality
from pipelines.run.neighbors import Index
from pipelines.run.scores import ScoredPool
from pipelines.score import ScoreConfig
from tests.conftest import save_untrained

pytestmark = pytest.mark.slow

IMAGES = 30
PER_SHARD = 20


def image(seed: int) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((40, 40), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def make_pool(folder: Path, name: str, first: int, images: int = IMAGES) -> Path:
    """A pool of images first, first + 1, ..., which are called 0.png, 1.png, ..."""
    crawl = folder / f"crawl-{name}"
    crawl.mkdir()
    for i in range(images):
        (crawl / f"{i:03d}.png").write_bytes(image(first + i))
    config = ingest.IngestConfig(sources=(str(crawl),), pool=folder / name, jobs=1, shard_size=PER_SHARD)
    ingest.run(config)
    return folder / name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pools a and b, of the same keys and other images, and a run/ that has scored none."""
    home = tmp_path_factory.mktemp("pools")
    make_pool(home, "a", 0)
    make_pool(home, "b", 1000)
    save_untrained(home / "run")
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "home")
    return tmp_path / "home"


def config(home: Path, pool: str, **changes: object) -> ScoreConfig:
    return ScoreConfig.model_validate({"pool": home / pool, "run": home / "run", "device": "cpu", **changes})


def files(folder: Path) -> dict[str, bytes]:
    """Contents of all files of a run but the folder of another pool, and but those with times."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "scores.json")
    named = {str(path.relative_to(folder)): path.read_bytes() for path in found}
    return {name: content for name, content in named.items() if not name.startswith("pools/")}


def test_pools_with_the_same_keys_are_scored_and_exported_apart(home: Path) -> None:
    assert Pool(home / "a").rows("00000")["key"].equals(Pool(home / "b").rows("00000")["key"])
    first = score.run(config(home, "a"))
    of_a = files(home / "run")
    second = score.run(config(home, "b", max_false_positive_rate=None))
    assert first.folder == str(home / "run")
    assert files(home / "run") == of_a  # nothing of a was touched
    folder = Path(second.folder)
    assert folder.parent == home / "run" / "pools"
    a, b = ScoredPool.open(home / "a", home / "run"), ScoredPool.open(home / "b", home / "run")
    assert b.folder == folder
    probs = [scored.rows("00000")["prob_synthetic"].to_pylist() for scored in (a, b)]
    assert probs[0] != probs[1]
    # What a run that knows b alone says of it is the same.
    shutil.copytree(home / "run" / "model", home / "alone" / "model")
    score.run(config(home, "b", run=home / "alone"))
    for part in ("scores", "embeddings"):
        assert files(home / "alone" / part) == files(folder / part)

    for name, start in (("a", 0), ("b", 1000)):
        export.run(ExportConfig(out=home / f"out-{name}", pool=home / name, run=home / "run", keep="all"))
        kept = read_parquet(home / f"out-{name}" / "kept.parquet", ["key", "sha256", "prob_synthetic"])
        assert kept["sha256"].to_pylist() == [hashlib.sha256(image(start + i)).hexdigest() for i in range(IMAGES)]
        scored = a if name == "a" else b
        expected = [value for shard in scored.shards for value in scored.rows(shard)["prob_synthetic"].to_pylist()]
        assert kept["prob_synthetic"].to_pylist() == pytest.approx(expected)


def test_a_further_pool_is_resumed_grows_and_moves(home: Path) -> None:
    score.run(config(home, "a"))
    folder = Path(score.run(config(home, "b")).folder)
    whole = files(folder)
    (folder / "scores" / "00001.parquet").unlink()
    again = score.run(config(home, "b"))
    assert again.num_scored_before == 1
    assert files(folder) == whole
    (home / "b").rename(home / "moved")
    assert score.run(config(home, "moved")).num_scored_before == 2
    make_pool(home, "more", 5000, images=3)
    ingest.run(ingest.IngestConfig(sources=(str(home / "crawl-more"),), pool=home / "moved", jobs=1))
    grown = score.run(config(home, "moved"))
    assert (grown.folder, grown.num_scored_before, grown.num_images) == (str(folder), 2, IMAGES + 3)


def test_calls_that_share_a_further_pool_write_into_its_folder(home: Path) -> None:
    score.run(config(home, "a"))
    parts = [score.run(config(home, "b", shard_index=i, num_shards=2)) for i in range(2)]
    assert len({part.folder for part in parts}) == 1
    assert score.run(config(home, "b")).num_scored_before == 2


def test_thresholds_index_report_and_scores_from_outside_are_of_their_pool(home: Path) -> None:
    run = home / "run"
    score.run(config(home, "a"))
    folder = Path(score.run(config(home, "b")).folder)
    a, b = ScoredPool.open(home / "a", run), ScoredPool.open(home / "b", run)
    for scored in (a, b):
        index = Index.open(scored)
        vector = scored.embeddings("00001")[3]
        nearest = index.search(vector[None], 1)[0][0]
        assert (nearest.shard, nearest.row) == ("00001", 3)
        assert nearest.distance < 1e-5
    assert (run / "index" / "index.json").exists()
    assert (folder / "index" / "index.json").exists()
    for name, value in (("a", 1.0), ("b", 2.0)):
        rows = Pool(home / name).rows("00000")
        given = pa.table({"key": rows["key"], "nice": [value] * rows.num_rows})
        pq.write_table(given, home / f"{name}.parquet")
        score.run(config(home, name, scores=(f"nice={home / name}.parquet",)))
    for name, value in (("a", 1.0), ("b", 2.0)):
        scored = ScoredPool.open(home / name, run)
        assert set(scored.rows("00000", ["nice"])["nice"].to_pylist()) == {value}
    assert report.run(report.ReportConfig(pool=home / "a", run=run, device="cpu")).out == str(run / "report.html")
    assert report.run(report.ReportConfig(pool=home / "b", run=run, device="cpu")).out == str(folder / "report.html")


def test_scores_that_a_run_was_trained_with_are_columns_of_every_pool(home: Path) -> None:
    run = home / "run"
    digests = sorted(hashlib.sha256(image(seed)).hexdigest() for seed in (0, 1000))
    values = np.array([0.25, 0.75], dtype=np.float32)
    trained = outside.Outside(np.array(digests, dtype="S64"), {"witness": values})
    outside.store(run, trained, trained=True)
    score.run(config(home, "a"))
    score.run(config(home, "b"))
    for name, seed in (("a", 0), ("b", 1000)):
        of = dict(zip(digests, values.tolist(), strict=True))[hashlib.sha256(image(seed)).hexdigest()]
        column = ScoredPool.open(home / name, run).rows("00000", ["witness"])["witness"].to_pylist()
        assert column[0] == of
        assert column[1:] == [None] * (PER_SHARD - 1)
    rows = Pool(home / "b").rows("00000")
    pq.write_table(pa.table({"key": rows["key"], "value": [1.0] * rows.num_rows}), home / "w.parquet")
    with pytest.raises(Incompatible, match="trained with scores of this name"):
        score.run(config(home, "b", scores=(f"witness={home / 'w.parquet'}",)))


def test_marks_go_by_the_image_and_stay_with_their_pool(home: Path) -> None:
    run = home / "run"
    score.run(config(home, "a"))
    score.run(config(home, "b"))
    row = Pool(home / "a").rows("00000").slice(0, 1).to_pylist()[0]
    marks.append(run, [marks.Mark(sha256=row["sha256"], key=row["key"], verdict="synthetic")])
    for name, expected in (("a", "synthetic"), ("b", None)):
        assert ScoredPool.open(home / name, run).rows("00000", ["marked"])["marked"][0].as_py() == expected


def test_what_training_measured_is_said_of_its_pool_alone(home: Path) -> None:
    run = home / "run"
    measured = quality.measure(torch.linspace(-3, 3, 200), torch.linspace(-4, 1, 60))
    quality.save(run, measured)
    assert score.run(config(home, "a")).quality == measured
    assert score.run(config(home, "b")).quality is None
    settings = {"run": run, "keep": "all", "jobs": 1}
    warnings = [
        export.run(ExportConfig.model_validate({"out": home / "out", "pool": home / name, **settings})).warning
        for name in ("a", "b")
    ]
    assert warnings == [measured.warning, quality.UNMEASURED]


def test_a_new_training_gives_the_run_to_its_pool(home: Path) -> None:
    run = home / "run"
    score.run(config(home, "a"))
    belonging.give(run, Pool.open(home / "b"))
    with pytest.raises(Incompatible, match="has the scores of other images"):
        ScoredPool.open(home / "b", run).rows("00000")
    assert score.run(config(home, "b")).folder == str(run)
    assert score.run(config(home, "a")).folder != str(run)


def test_a_first_shard_without_images_does_not_make_pools_equal(home: Path) -> None:
    for name in ("c", "d"):
        junk = home / f"junk-{name}"
        junk.mkdir()
        for i in range(3):
            (junk / f"{i}.png").write_bytes(b"<html>not found</html>")
        make = ingest.IngestConfig(sources=(str(junk), str(home / f"crawl-{'ab'['cd'.index(name)]}")), pool=home / name)
        ingest.run(make.model_copy(update={"jobs": 1}))
    c, d = Pool.open(home / "c"), Pool.open(home / "d")
    assert c.counts[0] == d.counts[0] == 0
    assert c.identity != d.identity


def test_a_damaged_record_is_one_sentence(home: Path) -> None:
    score.run(config(home, "a"))
    (home / "run" / "pool.json").write_text("{")
    with pytest.raises(CorruptShard, match=r"pool\.json does not say which pool the run is of"):
        score.run(config(home, "b"))


def test_the_truth_of_another_crawl_is_refused(home: Path) -> None:
    for name, start in (("a", 0), ("b", 1000)):
        keys = [f"{i:03d}" for i in range(IMAGES)]
        digests = [hashlib.sha256(image(start + i)).hexdigest() for i in range(IMAGES)]
        table = pa.table({"key": keys, "is_synthetic": [i % 2 for i in range(IMAGES)], "sha256": digests})
        pq.write_table(table, home / f"truth-{name}.parquet")
    pq.write_table(table.drop_columns("sha256"), home / "names.parquet")
    found = score.run(config(home, "a", truth=home / "truth-a.parquet")).truth
    assert found is not None
    assert found["synthetic_share"] == 0.5
    with pytest.raises(BadInput, match=r"truth-b\.parquet is of another crawl: 30 of its keys are names in .*/a,"):
        score.run(config(home, "a", truth=home / "truth-b.parquet"))
    notes = list[str]()

    def on_tick(tick: Tick) -> None:
        if tick.note:
            notes.append(tick.note)

    score.run(config(home, "a", truth=home / "names.parquet"), on_tick)
    assert ["knows images by name alone" in note for note in notes] == [True]
