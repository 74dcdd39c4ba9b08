"""Ingest keeps or rejects every image exactly once, and the same crawl always makes the same pool."""

import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import webdataset

from pipelines import ingest
from pipelines.errors import BadInput, CorruptShard, Incompatible
from pipelines.images.rejects import Reason
from pipelines.ingest import IngestConfig
from pipelines.ingest import stage as ingest_stage
from pipelines.pool.manifest import Pool, key_of
from pipelines.progress import Tick
from pipelines.storage.shards import read_samples
from tests.pipelines.ingest.crawls import check, content, junk, keys, pack, picture, rejects, run


def test_every_reason_is_given_and_every_image_kept(tmp_path: Path) -> None:
    good = [("a.jpg", picture(0)), ("a.json", b'{"url": 1}'), ("a.txt", b"caption"), ("b.png", picture(3, kind="PNG"))]
    tar = pack(tmp_path / "crawl/0.tar", [*good, *junk()])
    with tarfile.open(tar) as whole_tar:
        end = whole_tar.getmembers()[-1].offset_data + tarfile.BLOCKSIZE
    tar.write_bytes(tar.read_bytes()[:end])  # at the boundary of two members, as a killed writer may leave it
    os.mkfifo(tmp_path / "crawl/z-not_a_file.jpg")
    summary = run(tmp_path / "pool", tmp_path / "crawl")
    found = {Path(row["member"]).stem.removeprefix("z-"): row for row in rejects(tmp_path / "pool") if row["member"]}
    assert {name: row["reason"] for name, row in found.items()} == {name: name for name in found}
    nameless = [row["reason"] for row in rejects(tmp_path / "pool") if not row["member"]]
    assert nameless == [Reason.INCOMPLETE_ARCHIVE]
    given = {row["reason"] for row in rejects(tmp_path / "pool")}
    elsewhere = {Reason.UNREADABLE, Reason.TOO_SLOW, Reason.CRASHED}  # tests may run as root; see test_worker
    assert given == {str(reason) for reason in Reason} - elsewhere
    assert found["duplicate"]["detail"] == "duplicate of 000000000"
    assert all(row["detail"] for row in rejects(tmp_path / "pool"))
    assert (summary.read, summary.kept) == (len(found) + 3, 2)
    rows = Pool(tmp_path / "pool").rows("00000").to_pylist()
    assert [(row["key"], row["member"], row["format"], row["width"]) for row in rows] == [
        ("000000000", "a.jpg", "jpg", 40),
        ("000000001", "b.png", "png", 40),
    ]
    assert dict(read_samples(tmp_path / "pool/00000.tar"))["000000000"] == {
        "jpg": picture(0),
        "json": b'{"url": 1}',
        "txt": b"caption",
    }
    check(tmp_path / "pool")


def test_a_wrong_extension_is_corrected_and_hostile_suffixes_are_dropped(tmp_path: Path) -> None:
    files = [("a.jpg", picture(0, kind="PNG")), ("a.näme", b"1"), ("a." + "x" * 90, b"2"), ("a.cls", b"7")]
    pack(tmp_path / "0.tar", files)
    run(tmp_path / "pool", tmp_path / "0.tar")
    assert list(read_samples(tmp_path / "pool/00000.tar")) == [
        ("000000000", {"png": picture(0, kind="PNG"), "cls": b"7"})
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its file to the gc
def test_plain_webdataset_reads_the_pool(crawl: Path, tmp_path: Path) -> None:
    run(tmp_path / "pool", crawl)
    tars = [str(path) for path in sorted(tmp_path.glob("pool/*.tar"))]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == keys(tmp_path / "pool")
    assert all(sample["jpg"].size == (40, 40) and sample["json"]["url"] for sample in samples)


def test_duplicates_name_the_first_with_the_same_bytes(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", [("a.jpg", picture(0)), ("b.jpg", picture(1))])
    pack(
        tmp_path / "1.tar", [("c.jpg", picture(2)), ("d.jpg", picture(1)), ("e.jpg", picture(1)), ("f.jpg", picture(3))]
    )
    run(tmp_path / "pool", tmp_path / "{0,1}.tar")
    assert [(row["member"], row["detail"]) for row in rejects(tmp_path / "pool")] == [
        ("d.jpg", "duplicate of 000000001"),
        ("e.jpg", "duplicate of 000000001"),
    ]
    assert keys(tmp_path / "pool") == [key_of(0, 0), key_of(0, 1), key_of(1, 0), key_of(1, 3)]
    check(tmp_path / "pool")


def test_a_shard_of_duplicates_is_on_record(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", [("a.jpg", picture(0)), ("a.txt", b"img_0012")])
    pack(tmp_path / "1.tar", [("b.jpg", picture(0)), ("b.txt", b"a dog on a beach"), ("b.json", b'{"url": "u"}')])
    summary = run(tmp_path / "pool", tmp_path / "{0,1}.tar")
    assert (summary.shards, summary.kept, summary.images) == (2, 1, 1)
    (row,) = rejects(tmp_path / "pool")
    assert (row["member"], row["duplicate_of"]) == ("b.jpg", "000000000")
    assert (row["caption"], row["metadata"]) == ("a dog on a beach", '{"url": "u"}')
    check(tmp_path / "pool")
    assert run(tmp_path / "pool", tmp_path / "{0,1}.tar").skipped == 2


@pytest.mark.parametrize("jobs", [2, 3])
def test_the_number_of_jobs_changes_no_byte(crawl: Path, whole: dict[str, str], tmp_path: Path, jobs: int) -> None:
    run(tmp_path / "pool", crawl, jobs=jobs)
    assert content(tmp_path / "pool") == whole


def test_a_second_run_adds_nothing_and_touches_nothing(crawl: Path, whole: dict[str, str], tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    run(pool, crawl)
    before = {path: path.stat().st_mtime_ns for path in pool.rglob("0*")}
    again = run(pool, crawl, crawl / "00001.tar")
    assert (again.shards, again.skipped, again.read) == (0, 7, 0)
    assert {path: path.stat().st_mtime_ns for path in pool.rglob("0*")} == before
    assert content(pool) == whole
    assert len(json.loads((pool / "run.json").read_text())["ingests"]) == 2


def test_further_sources_add_shards_without_duplicates(crawl: Path, whole: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for seed in (0, 100_000, 100_001):  # the first is in the crawl
        (folder / f"{seed}.jpg").write_bytes(picture(seed))
    run(tmp_path / "pool", crawl)
    summary = run(tmp_path / "pool", crawl, folder)
    assert (summary.shards, summary.skipped, summary.read, summary.kept) == (1, 6, 3, 2)
    assert summary.rejected == {"duplicate": 1}
    check(tmp_path / "pool")
    now = content(tmp_path / "pool")
    assert {name: now[name] for name in whole} == whole
    assert rejects(tmp_path / "pool")[-1]["detail"] == f"duplicate of {keys(tmp_path / 'pool')[0]}"
    run(tmp_path / "at once", crawl, folder)
    assert content(tmp_path / "at once") == now


def test_run_json_and_ticks_tell_what_was_done(crawl: Path, tmp_path: Path) -> None:
    ticks = list[Tick]()
    config = IngestConfig(sources=(str(crawl),), pool=tmp_path / "pool", jobs=1)
    summary = ingest.run(config, ticks.append)
    assert [tick.done for tick in ticks] == sorted(tick.done for tick in ticks)
    assert ticks[-1].done == ticks[-1].total == summary.read == 240
    (recorded,) = json.loads((tmp_path / "pool/run.json").read_text())["ingests"]
    assert recorded["summary"]["kept"] == summary.kept
    assert recorded["config"]["min_side"] == 16 and recorded["input_digest"] and recorded["versions"]["pillow"]


# What cannot be done


def test_a_second_ingest_at_a_time_is_refused_with_the_name_of_the_first(crawl: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"

    def second(tick: Tick) -> None:
        with pytest.raises(Incompatible, match=f"process {os.getpid()} .*python.* is writing into it"):
            run(pool, crawl)

    ingest.run(IngestConfig(sources=(str(crawl),), pool=pool, jobs=1), second)
    check(pool)


def test_a_folder_that_is_no_pool_is_left_alone(crawl: Path, tmp_path: Path) -> None:
    mine = pack(tmp_path / "mine/00000.tar", [("a.jpg", picture(0))])
    before = mine.read_bytes()
    with pytest.raises(Incompatible, match="not empty and not a pool"):
        run(tmp_path / "mine", crawl)
    assert mine.read_bytes() == before and list(mine.parent.iterdir()) == [mine]
    with pytest.raises(BadInput, match="cannot be written, Not a directory"):
        run(mine, crawl)


def test_a_run_is_no_pool(crawl: Path, tmp_path: Path) -> None:
    """Although it also has a run.json."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text('{"config": {}, "summary": {}}')
    with pytest.raises(Incompatible, match="not empty and not a pool"):
        run(tmp_path / "mine", crawl)


def test_bad_sources_leave_no_pool_behind(crawl: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        run(tmp_path / "pool", crawl, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no image"):
        run(tmp_path / "pool", tmp_path / "empty")
    assert not (tmp_path / "pool").exists()


def test_a_pool_that_is_full_says_so_before_it_starts(
    crawl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_stage, "MAX_SHARDS", 5)
    with pytest.raises(BadInput, match="room for 5 more shards, and these sources make 6"):
        run(tmp_path / "pool", crawl)


def test_stats_that_do_not_say_what_the_shard_was_made_from(crawl: Path, tmp_path: Path) -> None:
    run(tmp_path / "pool", crawl)
    (tmp_path / "pool/00003_stats.json").write_text('{"successes": 1}')
    with pytest.raises(CorruptShard, match=r"00003_stats\.json"):
        run(tmp_path / "pool", crawl)


def test_the_digests_are_on_disk_during_the_run_only(crawl: Path, tmp_path: Path) -> None:
    seen = list[bool]()

    def look(tick: Tick) -> None:
        seen.append(any((tmp_path / "pool/.partial").rglob("digests.sqlite")))

    ingest.run(IngestConfig(sources=(str(crawl),), pool=tmp_path / "pool", jobs=1), look)
    assert all(seen) and not (tmp_path / "pool/.partial").exists()


# Crawls that the real img2dataset wrote

FIXTURES = Path(__file__).parents[4] / "shared" / "fixtures"


@pytest.mark.skipif(not FIXTURES.exists(), reason="the img2dataset fixtures are not beside this checkout")
@pytest.mark.parametrize("name", ["img2dataset-default", "img2dataset-webp"])
def test_crawls_of_the_real_img2dataset(name: str, tmp_path: Path) -> None:
    summary = run(tmp_path / "pool", FIXTURES / name)
    promised = sum(json.loads(path.read_text())["successes"] for path in (FIXTURES / name).glob("*_stats.json"))
    assert summary.read == promised and set(summary.rejected) <= {"duplicate"}
    assert summary.kept + Counter(summary.rejected).total() == promised
    check(tmp_path / "pool")
