"""An export without the copies of a test set, and without what the network sees as one."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from pipelines import export, ingest
from pipelines.errors import BadInput
from pipelines.pool.manifest import Pool
from pipelines.progress import Tick
from tests.pipelines.export.exports import settings, write_scores

HELD_OUT = 12


def picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((120, 96), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def copy_of(number: int) -> bytes:
    """The test image `number`, as a crawl may hold it."""
    image = picture(number)
    make = [
        lambda: encoded(image, quality=92),
        lambda: encoded(image.resize((70, 56)), "PNG"),
        lambda: encoded(image, quality=60),
        lambda: encoded(image.crop((6, 0, 120, 91)), "WEBP", quality=80),
        lambda: encoded(ImageOps.mirror(image), quality=85),
    ]
    return make[number % 5]()


HOW = ("exact", "near", "near", "near", "mirrored")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crawl of 40 pictures, ten of which are copies of the test set's twelve, with blank ones in both."""
    root = tmp_path_factory.mktemp("leaks")
    (root / "crawl").mkdir()
    (root / "test" / "disc").mkdir(parents=True)
    for number in range(HELD_OUT):
        (root / "test" / "disc" / f"{number:02d}.jpg").write_bytes(encoded(picture(number), quality=92))
    (root / "test" / "notes.txt").write_text("not an image")
    (root / "test" / "blank.png").write_bytes(encoded(Image.new("RGB", (50, 50), "white"), "PNG"))
    (root / "crawl" / "blank.png").write_bytes(encoded(Image.new("RGB", (60, 60), "white"), "PNG"))
    for number in range(10):
        (root / "crawl" / f"copy-{number}.jpg").write_bytes(copy_of(number))
        (root / "crawl" / f"copy-{number}.txt").write_text(f"caption {number}")
    for number in range(100, 129):
        (root / "crawl" / f"other-{number}.jpg").write_bytes(encoded(picture(number)))
    ingest.run(ingest.IngestConfig(sources=(str(root / "crawl"),), pool=root / "pool", jobs=1))
    return root


def dropped(out: Path, pool: Path) -> dict[str, tuple[str, str, str]]:
    members = {row["key"]: row["member"] for row in Pool.open(pool).rows("00000").to_pylist()}
    rows = pq.read_table(out / "dropped.parquet").to_pylist()
    return {members[row["key"]]: (row["match"], row["how"], row["caption"]) for row in rows if row["match"]}


def test_copies_of_a_test_set_are_dropped_and_what_matched_what_is_on_record(home: Path, tmp_path: Path) -> None:
    config = settings(tmp_path / "out", home / "pool", tmp_path / "run", keep="all", exclude=(str(home / "test"),))
    summary = export.run(config)
    expected = {
        f"copy-{number}.jpg": (f"{home}/test/disc/{number:02d}.jpg", HOW[number % 5], f"caption {number}")
        for number in range(10)
    }
    assert dropped(tmp_path / "out", home / "pool") == expected
    assert (summary.dropped, summary.kept) == ({"held_out": 10}, 30)
    assert "held out" in (tmp_path / "out" / "README.md").read_text()


def test_the_test_set_may_be_a_tar_or_parquet(home: Path, tmp_path: Path) -> None:
    images = sorted((home / "test" / "disc").iterdir())
    with tarfile.open(tmp_path / "test.tar", "w") as tar:
        for path in images:
            tar.add(path, path.name)
    column = pa.array([{"bytes": path.read_bytes(), "path": path.name} for path in images])
    pq.write_table(pa.table({"image": column, "label": list(range(HELD_OUT))}), tmp_path / "test.parquet")
    for name, first in (("test.tar", "test.tar:01.jpg"), ("test.parquet", "test.parquet:1")):
        out = tmp_path / "out"
        export.run(settings(out, home / "pool", tmp_path / "run", keep="all", exclude=(str(tmp_path / name),)))
        found = dropped(out, home / "pool")
        assert len(found) == 10
        assert found["copy-1.jpg"][0] == f"{tmp_path}/{first}"


def test_held_out_images_that_cannot_be_decoded_are_told_and_have_exact_copies_only(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    whole = (home / "test" / "disc" / "00.jpg").read_bytes()
    (folder / os.fsdecode(b"\xe9.jpg")).write_bytes(whole)
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 4] + b"\xff\xd9")
    (folder / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    os.mkfifo(folder / "pipe.jpg")
    ticks = list[Tick]()
    config = settings(tmp_path / "out", home / "pool", tmp_path / "run", keep="all", exclude=(str(folder),))
    export.run(config, ticks.append)
    assert dropped(tmp_path / "out", home / "pool") == {
        "copy-0.jpg": (f"{tmp_path}/caf\\xe9/\\xe9.jpg", "exact", "caption 0")
    }
    (note,) = [tick.note for tick in ticks if tick.note]
    assert note.endswith("of 3 held-out images cannot be decoded: only exact copies of them are found.")


def test_a_source_without_images_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, says in (("empty", "holds no image"), ("nowhere", "No such file")):
        with pytest.raises(BadInput, match=says):
            export.run(
                settings(tmp_path / "out", home / "pool", tmp_path / "run", keep="all", exclude=(str(tmp_path / name),))
            )
    assert not (tmp_path / "out").exists()


def test_semantic_duplicates_leave_the_best_copy_and_nobody_far_from_one(home: Path, tmp_path: Path) -> None:
    pool, run = Pool.open(home / "pool"), tmp_path / "run"
    write_scores(pool, run)
    (run / "embeddings").mkdir()
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(8, 16))
    of = rng.integers(0, 8, pool.num_images)
    vectors = centers[of] + 0.02 * rng.normal(size=(pool.num_images, 16))
    np.save(run / "embeddings" / "00000.npy", vectors.astype(np.float16))
    summary = export.run(settings(tmp_path / "out", home / "pool", run, keep="all", semantic_duplicates=0.05))
    rows = pool.rows("00000").to_pylist()
    best = {}
    for row, group in sorted(zip(rows, of.tolist(), strict=True), key=lambda pair: (
        -pair[0]["width"] * pair[0]["height"], -pair[0]["num_bytes"], pair[0]["key"])):  # fmt: skip
        best.setdefault(group, row["key"])
    kept = pq.read_table(tmp_path / "out" / "kept.parquet")["key"].to_pylist()
    assert sorted(kept) == sorted(best.values())
    assert summary.dropped == {"semantic_duplicate": pool.num_images - len(best)}
    matches = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    group_of = {row["key"]: group for row, group in zip(rows, of.tolist(), strict=True)}
    assert all(row["match"] == best[group_of[row["key"]]] and row["how"].startswith("semantic") for row in matches)


def test_semantic_duplicates_need_embeddings(home: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no embeddings"):
        export.run(settings(tmp_path / "out", home / "pool", tmp_path / "run", keep="all", semantic_duplicates=0.1))
