import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw

from models.classifier import Classifier
from models.detector import Detector
from pipelines import export, ingest
from pipelines.errors import MissingArtifact
from pipelines.export import ExportConfig
from pipelines.inspect import near_duplicates
from pipelines.inspect.config import DuplicatesConfig
from pipelines.pool.manifest import Pool
from pipelines.run import model
from pipelines.score import ScoreConfig
from pipelines.score import run as score

NUM_ORIGINALS = 30
HOSTILE = "<img src=x onerror=alert(1)>"


def picture(rng: np.random.Generator) -> Image.Image:
    """Smooth patches in colors, as different from each other as photographs are."""
    small = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    return small.resize((96, 80), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Originals 0 to 29; of the first ten three copies each, of which the PNG has the most pixels; plain surfaces."""
    root = tmp_path_factory.mktemp("copies")
    (root / "crawl").mkdir()
    rng = np.random.default_rng(3)
    for i in range(NUM_ORIGINALS):
        image = picture(rng)
        files = {f"{i:02d}-original.jpg": encoded(image, "JPEG", quality=95)}
        if i < 10:
            files[f"{i:02d}-recoded.jpg"] = encoded(image, "JPEG", quality=40)
            files[f"{i:02d}-small.webp"] = encoded(image.resize((48, 40)), "WEBP", quality=80)
            files[f"{i:02d}-large.png"] = encoded(image.resize((144, 120), Image.Resampling.LANCZOS), "PNG")
        for name, content in files.items():
            (root / "crawl" / (f"{HOSTILE}{name}" if i == 0 else name)).write_bytes(content)
    for grey in range(0, 250, 10):
        flat = Image.new("RGB", (64, 64), (grey, grey, 255 - grey))
        (root / "crawl" / f"flat-{grey}.png").write_bytes(encoded(flat, "PNG"))
        (root / "crawl" / f"flat-{grey}.jpg").write_bytes(encoded(flat, "JPEG", quality=80))
        ramp = Image.linear_gradient("L").point(lambda v, g=grey: v * (g + 50) // 300)  # type: ignore[misc]
        (root / "crawl" / f"ramp-{grey}.png").write_bytes(encoded(ramp, "PNG"))
        frame = Image.new("L", (64, 64), grey)
        ImageDraw.Draw(frame).rectangle((0, 0, 63, 7), fill=255 - grey)
        (root / "crawl" / f"bar-{grey}.png").write_bytes(encoded(frame, "PNG"))
    ingest.run(ingest.IngestConfig(sources=(str(root / "crawl"),), pool=root / "pool", jobs=1))
    return root / "pool"


@pytest.fixture(scope="module")
def run(pool: Path) -> Path:
    run = pool.parent / "run"
    torch.manual_seed(0)
    config = model.ModelConfig(
        classes=("a", "b"), method="rsmatch", backbone="small", image_size=32, detector_size=32, num_steps=0,
        pool="pool",
    )  # fmt: skip
    model.save(run / "model", config, Classifier("small", 2).eval(), Detector().eval())
    score(ScoreConfig(pool=pool, run=run, device="cpu"))
    return run


def names(found: near_duplicates.Summary) -> list[list[str]]:
    return sorted(sorted(copy.member.removeprefix(HOSTILE) for copy in group) for group in found.groups)


COPIES = [
    sorted(f"{i:02d}-{name}" for name in ("original.jpg", "recoded.jpg", "small.webp", "large.png")) for i in range(10)
]


@pytest.mark.slow
@pytest.mark.parametrize("scored", [False, True])
def test_copies_are_grouped_and_nothing_else_is(pool: Path, run: Path, scored: bool) -> None:
    found = near_duplicates.run(DuplicatesConfig(pool=pool, run=run if scored else pool / "none"))
    assert names(found) == COPIES
    assert (found.num_groups, found.num_redundant, found.confirmed) == (10, 30, scored)
    assert all(group[0].member.endswith("large.png") and group[0].bits == 0 for group in found.groups)
    assert all(copy.bits <= 8 for group in found.groups for copy in group)


def test_plain_surfaces_are_in_no_group(pool: Path) -> None:
    found = near_duplicates.run(DuplicatesConfig(pool=pool, run=pool / "none"))
    rows = Pool.open(pool).rows("00000").to_pylist()
    plain = [row for row in rows if row["member"].startswith(("flat", "ramp", "bar"))]
    assert len(plain) >= 60  # of 100, for equal files were rejected as duplicates
    assert found.num_plain == len(plain)
    assert len({row["phash"] for row in plain}) < 20  # else this would say nothing


def test_embeddings_have_a_say_where_there_are_scores(pool: Path, run: Path) -> None:
    embeddings = np.load(run / "embeddings" / "00000.npy").astype(np.float32)
    members = Pool.open(pool).rows("00000", ["member"])["member"].to_pylist()
    found = near_duplicates.run(DuplicatesConfig(pool=pool, run=run, max_distance=0))
    assert found.num_groups < 10
    copy, original = members.index("03-recoded.jpg"), members.index("03-original.jpg")
    embeddings[copy] = -embeddings[original]
    own_run = run.parent / "turned"
    shutil.copytree(run, own_run)
    np.save(own_run / "embeddings" / "00000.npy", embeddings.astype(np.float16))
    groups = names(near_duplicates.run(DuplicatesConfig(pool=pool, run=own_run)))
    assert groups == [[name for name in group if name != "03-recoded.jpg"] for group in COPIES]


def test_scores_of_another_pool_have_no_say(run: Path, world: Any) -> None:
    found = near_duplicates.run(DuplicatesConfig(pool=world.pool, run=run))
    assert (found.confirmed, found.num_images) == (False, Pool.open(world.pool).num_images)


def test_crops_are_found_on_request(tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    rng = np.random.default_rng(7)
    for i in range(8):
        image = picture(rng).resize((160, 120), Image.Resampling.BICUBIC)
        (tmp_path / "crawl" / f"{i}-whole.png").write_bytes(encoded(image, "PNG"))
        left, top = int(rng.integers(0, 9)), int(rng.integers(0, 7))
        crop = image.crop((left, top, left + 152, top + 114)).resize((100, 75))
        (tmp_path / "crawl" / f"{i}-crop.jpg").write_bytes(encoded(crop, "JPEG", quality=80))
    (tmp_path / "crawl" / "flat.png").write_bytes(encoded(Image.new("RGB", (90, 90), "red"), "PNG"))
    ingest.run(ingest.IngestConfig(sources=(str(tmp_path / "crawl"),), pool=tmp_path / "pool", jobs=1))
    found = names(near_duplicates.run(DuplicatesConfig(pool=tmp_path / "pool", run=tmp_path / "none", cropped=True)))
    assert found == [[f"{i}-crop.jpg", f"{i}-whole.png"] for i in range(8)]
    config = {"keep": "all", "drop_near_duplicates": True, "cropped": True}
    summary = export.run(
        ExportConfig(out=tmp_path / "out", pool=tmp_path / "pool", run=tmp_path / "none", jobs=1, **config)
    )
    assert (summary.kept, summary.dropped) == (9, {"near_duplicate": 8})


def test_without_a_pool_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="run `curate ingest"):
        near_duplicates.run(DuplicatesConfig(pool=tmp_path))


def test_the_page_shows_each_group_and_is_harmless(pool: Path, run: Path, tmp_path: Path) -> None:
    found = near_duplicates.run(DuplicatesConfig(pool=pool, run=run, top=3, html=tmp_path / "sheet.html"))
    page = (tmp_path / "sheet.html").read_text()
    assert len(found.groups) == 3
    assert page.count("<img ") == 12
    assert page.count('<img src="data:image/') == 12
    near_duplicates.run(DuplicatesConfig(pool=pool, run=run, html=tmp_path / "sheet.html"))
    page = (tmp_path / "sheet.html").read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;00-large.png" in page and HOSTILE not in page


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words and small things on white, blank pages; a picture with its mirror image and its quarter turns."""
    root = tmp_path_factory.mktemp("odd")
    (root / "crawl").mkdir()
    rng = np.random.default_rng(5)
    for text in ("404", "Login", "Sorry", "No image"):
        page = Image.new("RGB", (640, 480), "white")
        ImageDraw.Draw(page).text((250, 220), text, fill="black", font_size=40)
        (root / "crawl" / f"word-{text}.png").write_bytes(encoded(page, "PNG"))
        (root / "crawl" / f"word-{text}-copy.jpg").write_bytes(encoded(page.resize((480, 360)), "JPEG", quality=80))
    for i in range(5):
        page = Image.new("RGB", (600, 224), "white")
        page.paste(picture(rng).resize((40, 40)), (20 + i, 20))
        (root / "crawl" / f"thing-{i}.png").write_bytes(encoded(page, "PNG"))
        (root / "crawl" / f"blank-{i}.png").write_bytes(encoded(Image.new("RGB", (90 + i, 90), "white"), "PNG"))
    image = picture(rng)
    (root / "crawl" / "turned-0.png").write_bytes(encoded(image, "PNG"))
    (root / "crawl" / "turned-0.txt").write_text("the best copy")
    for i in range(1, 4):
        (root / "crawl" / f"turned-{i}.jpg").write_bytes(encoded(image.rotate(90 * i, expand=True), "JPEG"))
        (root / "crawl" / f"turned-{i}.txt").write_text(f"another caption, {i}")
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((72, 60))
    (root / "crawl" / "turned-4.jpg").write_bytes(encoded(mirrored, "JPEG"))
    ingest.run(ingest.IngestConfig(sources=(str(root / "crawl"),), pool=root / "pool", jobs=1))
    return root / "pool"


WORDS = sorted(sorted((f"word-{text}.png", f"word-{text}-copy.jpg")) for text in ("404", "Login", "Sorry", "No image"))


def test_what_stands_on_white_must_agree_too(odd: Path) -> None:
    assert names(near_duplicates.run(DuplicatesConfig(pool=odd, run=odd / "none"))) == WORDS


def test_mirrored_and_rotated_copies_are_found_on_request(odd: Path) -> None:
    found = names(near_duplicates.run(DuplicatesConfig(pool=odd, run=odd / "none", turned=True)))
    assert found == [["turned-0.png", *(f"turned-{i}.jpg" for i in range(1, 5))], *WORDS]


# The export


def test_an_export_needs_no_scores_and_has_the_captions_of_dropped_copies_on_record(odd: Path, tmp_path: Path) -> None:
    config = {"keep": "all", "drop_near_duplicates": True, "turned": True, "where": "member like 'turned%'"}
    export.run(ExportConfig(out=tmp_path / "out", pool=odd, run=odd / "none", **config))
    (kept,) = pq.read_table(tmp_path / "out" / "kept.parquet").to_pylist()
    assert kept["member"] == "turned-0.png"
    rows = [row for row in pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist() if row["match"]]
    assert [(row["match"], row["how"]) for row in rows] == [(kept["key"], "near")] * 4
    assert [row["caption"] for row in rows] == [*(f"another caption, {i}" for i in range(1, 4)), None]


def reasons(out: Path) -> dict[str, str]:
    rows = pq.read_table(out / "dropped.parquet").to_pylist()
    return {row["key"]: row["reason"] for row in rows}


def test_the_export_keeps_the_best_copy_of_each_group(pool: Path, run: Path, tmp_path: Path) -> None:
    config = ExportConfig(out=tmp_path / "out", pool=pool, run=run, keep="all", drop_near_duplicates=True)
    summary = export.run(config)
    groups = near_duplicates.run(DuplicatesConfig(pool=pool, run=run)).groups
    assert reasons(tmp_path / "out") == {copy.key: "near_duplicate" for group in groups for copy in group[1:]}
    assert summary.dropped == {"near_duplicate": 30}
    assert summary.kept + 30 == summary.pool


def test_the_best_copy_is_taken_from_those_that_may_be_kept(pool: Path, run: Path, tmp_path: Path) -> None:
    others = {"keep": "all", "where": "format <> 'png'", "drop_near_duplicates": True}
    summary = export.run(ExportConfig(out=tmp_path / "out", pool=pool, run=run, **others))
    kept = {row["member"] for row in pq.read_table(tmp_path / "out" / "kept.parquet").to_pylist()}
    assert {f"{i:02d}-original.jpg" for i in range(1, NUM_ORIGINALS)} <= kept
    assert summary.dropped["near_duplicate"] == 20
    assert summary.kept + sum(summary.dropped.values()) == summary.pool


def test_per_class_counts_what_is_left_of_the_copies(pool: Path, run: Path, tmp_path: Path) -> None:
    others = {"keep": "all", "where": "member not like 'flat%'", "drop_near_duplicates": True}
    all_left = export.run(ExportConfig(out=tmp_path / "a", pool=pool, run=run, **others)).per_class
    limit = max(all_left.values()) - 3
    summary = export.run(ExportConfig(out=tmp_path / "b", pool=pool, run=run, per_class=limit, **others))
    assert summary.per_class == {name: min(limit, count) for name, count in all_left.items()}
    assert summary.dropped["near_duplicate"] == 30
