"""What the page and the summary say of a pool that would do harm, and of pools and runs that lack something."""

import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from markupsafe import escape
from PIL import Image

from models.recipe import Recipe
from pipelines import report, score, train
from pipelines.errors import BadInput, Incompatible, MissingArtifact
from pipelines.images.check import foreign_images
from pipelines.pool.manifest import Pool
from pipelines.report import Summary, maps, pictures
from pipelines.report.history import toml
from pipelines.run import outside, quality
from pipelines.storage.atomic import write_json
from tests.pipelines.report.reports import settings

# The text


class Outline(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.drawings: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]
        self.drawings += [found] if tag == "svg" else []


def test_charts_say_what_they_show_and_nothing_is_asked_for_from_outside(page: str) -> None:
    outline = Outline(page)
    assert len(outline.ids) == len(set(outline.ids))
    charts = [drawing for drawing in outline.drawings if drawing["class"] == "chart"]
    assert len(charts) >= 6
    for chart in charts:
        assert chart["role"] == "img"
        assert set((chart["aria-labelledby"] or "").split()) <= set(outline.ids)
    assert all(drawing.get("aria-hidden") == "true" for drawing in outline.drawings if drawing not in charts)
    for link in outline.links:
        assert link.startswith("data:image/webp;base64,") or link.removeprefix("#") in outline.ids


def test_the_page_and_the_summary_tell_the_same(home: Path, written: Summary, page: str) -> None:
    assert written.num_images == 151 and written.num_rejected == 2 and written.num_unscored == 0
    assert written.num_bytes == len(page.encode())
    assert written.out == str(home / "run" / "report.html")
    assert written.audit is not None and written.audit.num_labeled == 20 and len(written.audit.labeled_probs) == 20
    assert "Something can be mended." in page  # the training's alarm
    assert (
        page.index("Something can be mended.") < page.index('class="tiles"') < page.index('id="pool"')
    )  # warnings first
    assert "20 labeled images" in page and f"{written.synthetic_share:.1%}" in page
    assert "domain" in {each.name for each in written.audit.properties}


def test_the_page_says_how_far_to_trust_the_detector(home: Path, page: str, tmp_path: Path) -> None:
    assert quality.UNMEASURED in page  # the model of the other tests was never measured
    assert all(f"evil{i}.invalid" in page for i in range(3))  # the domains
    shutil.copytree(home / "run", tmp_path / "run")
    rng = torch.Generator().manual_seed(0)
    weak = quality.measure(torch.randn(500, generator=rng), torch.randn(50, generator=rng), declared_share=0.031)
    quality.save(tmp_path / "run", weak)
    text = Path(report.run(settings(home, run=tmp_path / "run")).out).read_text(encoding="utf-8")
    assert quality.UNMEASURED not in text
    assert text.count("It can hardly tell these images apart: do not delete by it.") == 2  # overview and section
    for statement in weak.statements:
        assert str(escape(statement)) in text
    assert "3.1%" in text and "no upper bound is known" in text
    body = text.split("<body>")[1].replace("curate export --out clean/", "")
    assert "clean" not in body.replace("That does not make the pool clean", "")


def test_thumbnails_are_small_and_carry_pixels_alone(page: str) -> None:
    sizes = set()
    for data in set(re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", page)):
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            sizes.add(picture.size)
            assert not picture.getexif() and set(picture.info) <= {"loop", "background", "timestamp", "duration"}
    assert sizes == {(32, 32), (256, 192), (112, 84), (56, 42), (520, 480)}  # the last one holds the tiles of the map


@pytest.mark.parametrize("side", [48, 300])
def test_pictures_that_nothing_compresses_keep_the_page_under_5_mb(side: int) -> None:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, "PNG")
    with foreign_images():
        for format_, most in (
            (pictures.LARGE, pictures.LARGE_BYTES),
            (pictures.SMALL, pictures.SMALL_BYTES),
            (pictures.TINY, pictures.TINY_BYTES),
        ):
            assert len(pictures.bounded(out.getvalue(), format_, most).content) <= most
    galleries = 4 * pictures.GALLERY * pictures.LARGE_BYTES  # one is of the comparison
    classes = 2 * pictures.CLASSES_SHOWN * pictures.CLASS_PICTURES * pictures.SMALL_BYTES
    assert (galleries + classes + pictures.NEIGHBOR_BYTES + maps.SHEET_BYTES) * 4 / 3 < 4_200_000


def test_configurations_repeat_the_stages(home: Path, page: str) -> None:
    training = train.TrainConfig(
        labeled=home / "seed", pool=home / "pool", run=home / "run", recipe=Recipe(num_steps=40)
    )
    assert toml(training.model_dump(mode="json")).replace('"', "&#34;") in page
    assert f"curate ingest {home}/crawl.tar --config ingest-1.toml" in page


# What need not be there


def test_a_pool_alone_is_shown_with_what_to_run(home: Path, tmp_path: Path) -> None:
    summary = report.run(settings(home, run=tmp_path / "run"))
    text = (tmp_path / "run" / "report.html").read_text()
    assert summary.audit is None and summary.synthetic_share is None
    assert summary.next.startswith("curate train --labeled SEED") and "No scores yet." in text
    assert text.count("<img src=") == 24


def test_a_trained_run_without_scores_says_to_score(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run" / "model", tmp_path / "run" / "model")
    assert report.run(settings(home, run=tmp_path / "run")).next.startswith("curate score --pool")


def test_a_run_without_a_detector(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run" / "model", tmp_path / "run" / "model")
    values = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    write_json(tmp_path / "run" / "model" / "config.json", values | {"method": "fixmatch", "has_detector": False})
    score.run(score.ScoreConfig(pool=home / "pool", run=tmp_path / "run", device="cpu"))
    summary = report.run(settings(home, run=tmp_path / "run", labeled=home / "seed"))
    text = Path(summary.out).read_text()
    assert summary.synthetic_share is None and summary.audit is not None
    assert all(each.auroc is None for each in summary.audit.properties) and not summary.audit.stability
    assert any(each.difference is not None for each in summary.audit.properties)
    assert "No detector." in text and "Called synthetic" not in text and "Most synthetic" not in text
    assert ">Unsure<" not in text


def test_a_labeled_set_that_is_gone_is_said_to_be_and_a_wrong_one_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    values = json.loads((tmp_path / "run" / "run.json").read_text())
    values["config"]["labeled"] = str(tmp_path / "moved")
    write_json(tmp_path / "run" / "run.json", values)
    summary = report.run(settings(home, run=tmp_path / "run"))
    assert summary.audit is not None and summary.audit.num_labeled == 0
    assert "The labeled set is not where training read it" in Path(summary.out).read_text()
    with pytest.raises(BadInput, match="moved"):
        report.run(settings(home, run=tmp_path / "run", labeled=tmp_path / "moved"))


def test_scores_of_another_model_and_a_missing_pool_are_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    weights = tmp_path / "run" / "model" / "detector.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(Incompatible, match="run `curate score`"):
        report.run(settings(home, run=tmp_path / "run"))
    with pytest.raises(MissingArtifact, match="curate ingest"):
        report.run(settings(home, pool=tmp_path / "nothing"))
    with pytest.raises(BadInput, match="--out"):
        report.run(settings(home, run=tmp_path / "none", out=tmp_path / "run" / "run.json" / "page.html"))


# Compared with an earlier run


def test_an_earlier_run_is_compared_image_by_image(home: Path, tmp_path: Path) -> None:
    earlier = shutil.copytree(home / "run", tmp_path / "earlier")
    file = next((earlier / "scores").glob("*.parquet"))
    table = pq.read_table(file)
    then = ["synthetic"] * 10 + ["unsure"] * 5 + table["verdict"].to_pylist()[15:]
    prob = np.concatenate([[0.999], table["prob_synthetic"].to_numpy()[1:]]).astype(np.float32)
    for name, values in (("verdict", then), ("prob_synthetic", prob)):
        column = table.schema.get_field_index(name)
        table = table.set_column(column, table.schema.field(name), pa.array(values))
    pq.write_table(table, file)
    summary = report.run(settings(home, against=earlier, out=tmp_path / "page.html"))
    now = pq.read_table(home / "run" / "scores" / file.name)
    changed = sum(one != other for one, other in zip(then, now["verdict"].to_pylist(), strict=True))
    assert summary.num_changed == changed > 0
    text = (tmp_path / "page.html").read_text()
    assert f"{changed} of 151 images have another verdict" in text and "0 another pseudo-label" in text
    assert text.index("The largest changes of the score") < text.index("was 0.999")
    with pytest.raises(MissingArtifact, match="--against"):
        report.run(settings(home, against=tmp_path / "nothing"))


# The size of the pool


@pytest.mark.slow
def test_pools_of_any_size_make_pages_of_one_size(home: Path, written: Summary, tmp_path: Path) -> None:
    """Ten times the shards, each with its own digests, add their numbers to the page and nothing else."""
    pool, run = tmp_path / "pool", tmp_path / "run"
    shutil.copytree(home / "run" / "model", run / "model")
    shutil.copyfile(home / "run" / "thresholds.json", run / "thresholds.json")
    for folder in (pool / "rejects", run / "scores", run / "embeddings"):
        folder.mkdir(parents=True)
    rows, scores = (pq.read_table(home / part / "00000.parquet") for part in ("pool", "run/scores"))
    for number in range(10):
        shard = f"{number:05d}"
        keys = [shard + key[5:] for key in rows["key"].to_pylist()]
        digests = [hashlib.sha256(f"{shard}{digest}".encode()).hexdigest() for digest in rows["sha256"].to_pylist()]
        table = rows
        for name, values in (("key", keys), ("sha256", digests), ("shard", [shard] * len(keys))):
            table = table.set_column(rows.column_names.index(name), rows.schema.field(name), pa.array(values))
        pq.write_table(table, pool / f"{shard}.parquet")
        mark = {**scores.schema.metadata, b"shard": Pool(pool).digest(shard).encode()}
        named = scores.set_column(0, scores.schema.field("key"), pa.array(keys))
        pq.write_table(named.replace_schema_metadata(mark), run / "scores" / f"{shard}.parquet")
        for source, target in (
            (home / "pool" / "00000.tar", pool / f"{shard}.tar"),
            (home / "pool" / "00000_stats.json", pool / f"{shard}_stats.json"),
            (home / "pool" / "rejects" / "00000.parquet", pool / "rejects" / f"{shard}.parquet"),
            (home / "run" / "embeddings" / "00000.npy", run / "embeddings" / f"{shard}.npy"),
        ):
            shutil.copyfile(source, target)
    summary = report.run(settings(home, pool=pool, run=run, labeled=home / "seed"))
    assert summary.num_images == 10 * written.num_images and summary.num_rejected == 10 * written.num_rejected
    assert (
        summary.num_bytes < written.num_bytes + 100_000 + maps.SHEET_BYTES * 4 / 3
    )  # more of the map's places are taken


def test_scores_from_outside_and_declared_images_are_on_the_page(untrained: Path, tmp_path: Path) -> None:
    shutil.copytree(untrained / "run", tmp_path / "run")
    pool = Pool.open(untrained / "pool")
    keys = [key for table in pool.tables(["key"]) for key in table["key"].to_pylist()]
    pq.write_table(pa.table({"key": keys[:100], "value": [0.25] * 50 + [0.75] * 50}), tmp_path / "a.parquet")
    outside.store(tmp_path / "run", outside.read(pool, [f"nice={tmp_path / 'a.parquet'}"]), trained=False)
    written = report.run(settings(untrained, run=tmp_path / "run", out=tmp_path / "page.html"))
    page = Path(written.out).read_text(encoding="utf-8")
    (row,) = re.findall(r'<tr><th scope="row" class="name">nice</th>.*?</tr>', page)
    assert [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", row)][:4] == ["100", "0.25", "0.5", "0.75"]
    declared = sum(kind == "camera" for table in pool.tables(["declared"]) for kind in table["declared"].to_pylist())
    assert declared and f"of {declared} images; 95 % confidence interval" in page
