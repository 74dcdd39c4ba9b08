"""The same crawl again, moved, grown, copied or in other pieces, adds what is new and nothing else."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.pool.manifest import Pool
from tests.pipelines.ingest.crawls import check, content, keys, pack, picture, rejects, run


def folder(path: Path, numbers: range) -> Path:
    path.mkdir(exist_ok=True)
    for number in numbers:
        (path / f"m{number:03d}.jpg").write_bytes(picture(number))
        (path / f"m{number:03d}.txt").write_text(f"caption {number}")
    (path / "z-broken.jpg").write_bytes(b"<html>")
    return path


def test_a_grown_folder_is_read_where_it_is_new(tmp_path: Path) -> None:
    crawl, pool = folder(tmp_path / "crawl", range(30)), tmp_path / "pool"
    run(pool, crawl, shard_size=10)
    before = content(pool)
    (crawl / "a-first.jpg").write_bytes(picture(100))
    (crawl / "m005b.jpg").write_bytes(picture(101))
    grown = run(pool, crawl, shard_size=10)
    assert (grown.shards, grown.skipped, grown.read, grown.kept, grown.again) == (1, 4, 2, 2, 0)
    assert Pool(pool).rows("00004")["member"].to_pylist() == ["a-first.jpg", "m005b.jpg"]
    assert {name: digest for name, digest in content(pool).items() if name in before} == before
    assert run(pool, crawl, shard_size=7).read == 0
    check(pool)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    crawl, pool = folder(tmp_path / "crawl", range(9)), tmp_path / "pool"
    run(pool, crawl)
    (crawl / "m003.jpg").write_bytes(picture(200))
    summary = run(pool, crawl)
    assert (summary.read, summary.kept) == (1, 1)


@pytest.mark.parametrize("how", ["moved", "touched", "copied"])
def test_a_moved_or_copied_crawl_adds_nothing(tmp_path: Path, how: str) -> None:
    crawl, pool = folder(tmp_path / "crawl", range(9)), tmp_path / "pool"
    pack(crawl / "0.tar", [("t.jpg", picture(50)), ("t.txt", b"in a tar"), ("u.jpg", picture(50)), ("v.jpg", b"")])
    pq.write_table(pa.table({"jpg": [picture(60), picture(61)]}), crawl / "0.hf.parquet", row_group_size=1)
    first = run(pool, crawl)
    assert (first.kept, first.rejected) == (12, {"duplicate": 1, "empty": 1, "not_an_image": 1})
    before = content(pool)
    other = tmp_path / "other"
    if how == "moved":
        crawl.rename(other)
    elif how == "copied":
        shutil.copytree(crawl, other, copy_function=shutil.copyfile)
    else:
        other = crawl
    if how != "moved":
        for path in other.iterdir():
            os.utime(path, ns=(1, 1))
    again = run(pool, other)
    assert (again.shards, again.read, again.again) == (0, 0, 0 if how == "moved" else 15)
    assert content(pool) == before
    third = run(pool, other)
    assert (third.shards, third.again, third.skipped) == (0, 0, 3)
    assert content(pool) == before


def test_a_copy_in_other_pieces_adds_what_is_new(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    run(pool, folder(tmp_path / "crawl", range(20)), shard_size=5)
    num_rejects = len(rejects(pool))
    copy = folder(tmp_path / "copy", range(22))
    summary = run(pool, copy, shard_size=8)
    assert (summary.shards, summary.read, summary.kept, summary.again) == (1, 2, 2, 21)
    assert len(rejects(pool)) == num_rejects
    check(pool)


def test_the_same_bytes_with_another_caption_are_a_duplicate_on_record(tmp_path: Path) -> None:
    for name, caption in (("a", b"one"), ("b", b"two")):
        pack(tmp_path / f"{name}.tar", [("0.jpg", picture(0)), ("0.txt", caption)])
    summary = run(tmp_path / "pool", tmp_path / "{a,b}.tar")
    assert (summary.again, summary.rejected) == (0, {"duplicate": 1})
    assert [row["caption"] for row in rejects(tmp_path / "pool")] == ["two"]


def test_small_folders_of_equal_names_and_sizes_are_different(tmp_path: Path) -> None:
    """Unpacked archives often have one time for all files."""
    content = [np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8) for seed in range(2)]
    for name, pixels in zip("ab", content, strict=True):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "0001.bmp"
        path.write_bytes(b"BM" + _bmp(pixels.tobytes()))
        os.utime(path, ns=(0, 0))
    assert run(tmp_path / "pool", tmp_path / "a").kept == 1
    assert run(tmp_path / "pool", tmp_path / "b").kept == 1


def _bmp(pixels: bytes) -> bytes:
    header = (
        (54 + len(pixels)).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    )
    size = (20).to_bytes(4, "little") * 2 + (1).to_bytes(2, "little") + (24).to_bytes(2, "little") + bytes(24)
    return header + size + pixels


def test_units_without_anything_new_are_remembered_across_kills(tmp_path: Path) -> None:
    """The next shard lists them; what comes after the last shard is in run.json."""
    pool = tmp_path / "pool"
    for name, seeds in (("a", [0]), ("b", [0]), ("c", [1]), ("d", [1])):
        pack(tmp_path / f"{name}.tar", [(f"{seed}.jpg", picture(seed)) for seed in seeds])
        os.utime(tmp_path / f"{name}.tar", (ord(name), ord(name)))
    summary = run(pool, tmp_path / "{a,b,c,d}.tar")
    assert (summary.shards, summary.kept, summary.again) == (2, 2, 2)
    assert Pool(pool).shards == ("00000", "00002") and keys(pool) == ["000000000", "000020000"]
    (repeated,) = Pool(pool).stats("00002")["repeated"]
    assert repeated[0] == str(tmp_path / "b.tar")
    (last,) = json.loads((pool / "run.json").read_text())["ingests"][0]["repeated"]
    assert last[0] == str(tmp_path / "d.tar")
    assert run(pool, tmp_path / "{a,b,c,d}.tar").skipped == 4
    check(pool)


def test_other_limits_are_said(tmp_path: Path) -> None:
    crawl, pool = folder(tmp_path / "crawl", range(9)), tmp_path / "pool"
    run(pool, crawl)
    (note,) = run(pool, crawl, min_side=64).notes
    assert note == (
        f"{pool}: what it holds of these sources was ingested with min_side 16, not 64, and stays as it is. To apply "
        "the new options to all images, ingest into a new pool with --pool."
    )
    assert run(pool, crawl).notes == ()
