"""The promises of ingest: nothing lost, nothing twice, and the same bytes however often it was killed."""

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipelines import ingest
from pipelines.errors import BadInput, CorruptShard, Incompatible
from pipelines.images.rejects import Reason
from pipelines.ingest import IngestConfig, Summary
from pipelines.ingest import stage as ingest_stage
from pipelines.pool.manifest import POOL_SCHEMA, REJECT_SCHEMA, Pool, key_of
from pipelines.progress import Tick
from pipelines.storage.shards import read_samples, read_spans

Files = list[tuple[str, bytes]]


def picture(seed: int, side: int = 40, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


def pack(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def junk() -> Files:
    """One file for each reason that a tar can give, and what should become of it by its name."""
    return [
        ("empty.jpg", b""),
        ("not_an_image.jpg", b"<!doctype html>"),
        ("unsupported_format.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("truncated.jpg", picture(1)[:300]),
        ("corrupt.png", picture(1, kind="PNG")[:60] + bytes(300) + b"IEND\xaeB`\x82"),
        ("too_small.png", picture(1, 15, "PNG")),
        ("too_many_pixels.png", picture(1, 400, "PNG")),
        ("too_many_bytes.jpg", bytes(200_001)),
        ("duplicate.jpg", picture(0)),
        ("../unsafe_name.jpg", picture(2)),
        ("missing.json", b"{}"),
    ]


def make_crawl(root: Path, num_shards: int = 6, per_shard: int = 40) -> Path:
    """Shards with junk, and with duplicates within and across them."""
    rng = random.Random(0)
    for shard in range(num_shards):
        files: Files = []
        for row in range(per_shard):
            key = f"{shard:05d}{row:04d}"
            number = shard * per_shard + row
            seed = rng.randrange(number) if number and rng.random() < 0.2 else number
            content = picture(seed) if rng.random() > 0.1 else b"<html>"
            meta = json.dumps({"key": key, "url": f"https://example.invalid/{key}"}).encode()
            files += [(f"{key}.jpg", content), (f"{key}.json", meta), (f"{key}.txt", b"")]
        pack(root / f"{shard:05d}.tar", files)
    return root


def run(pool: Path, *sources: Path | str, **options: Any) -> Summary:
    options = {"jobs": 1, "max_pixels": 100_000, "max_bytes": 200_000, "shard_size": 50} | options
    return ingest.run(IngestConfig(sources=tuple(map(str, sources)), pool=pool, **options))


def content(pool: Path) -> dict[str, str]:
    """Digest of every file of a pool but the one that knows times."""
    return {
        str(path.relative_to(pool)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(pool.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def rejects(pool: Path) -> list[dict[str, str]]:
    return [row for path in sorted(pool.glob("rejects/*.parquet")) for row in pq.read_table(path).to_pylist()]


def keys(pool: Path) -> list[str]:
    return [key for table in Pool(pool).tables(["key"]) for key in table["key"].to_pylist()]


def check(pool: Path) -> None:
    """What holds in every pool: files, schemas, counts, offsets, digests and samples agree."""
    opened = Pool.open(pool)
    seen = set[str]()
    for shard in opened.shards:
        rows, stats = opened.rows(shard), opened.stats(shard)
        rejected = pq.read_table(pool / "rejects" / f"{shard}.parquet")
        assert rows.schema.equals(POOL_SCHEMA) and rejected.schema.equals(REJECT_SCHEMA)
        assert stats["successes"] == rows.num_rows
        assert stats["count"] == rows.num_rows + rejected.num_rows
        assert stats["count"] == stats["successes"] + stats["failed_to_download"] + stats["failed_to_resize"]
        assert sum(stats["status_dict"].values()) == stats["count"]
        spans = zip(rows["offset"].to_pylist(), rows["num_bytes"].to_pylist(), strict=True)
        images = list(read_spans(opened.tar(shard), spans))
        assert [hashlib.sha256(image).hexdigest() for image in images] == rows["sha256"].to_pylist()
        samples = dict(read_samples(opened.tar(shard)))
        assert list(samples) == rows["key"].to_pylist()
        for row, image in zip(rows.to_pylist(), images, strict=True):
            assert samples[row["key"]][row["format"]] == image
            assert row["shard"] == shard and row["sha256"] not in seen
            seen.add(row["sha256"])
    assert not list(pool.glob(".*")) and not list(pool.rglob("*.tmp"))


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_crawl(tmp_path_factory.mktemp("source") / "crawl")


@pytest.fixture(scope="module")
def whole(crawl: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pool of `crawl` that nothing interrupted."""
    pool = tmp_path_factory.mktemp("whole") / "pool"
    run(pool, crawl)
    check(pool)
    return content(pool)


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
    elsewhere = {Reason.UNREADABLE, Reason.TOO_SLOW, Reason.CRASHED}  # tests may run as root; see test_sift
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


def test_a_wrong_extension_is_put_right_and_hostile_suffixes_stay_out(tmp_path: Path) -> None:
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


def test_a_shard_of_which_nothing_is_left_is_still_done(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", [("a.jpg", picture(0))])
    pack(tmp_path / "1.tar", [("a.jpg", picture(0))])
    summary = run(tmp_path / "pool", tmp_path / "{0,1}.tar")
    assert (summary.shards, summary.kept, summary.images) == (2, 1, 1)
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


# Interruptions

KILL_SCRIPT = """
import os, signal, sys
from pathlib import Path
from pipelines import ingest
if __name__ == "__main__":  # spawned workers import this file
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits it as ignored
    moment, jobs, pool, *sources = sys.argv[1:]
    countdown = int(moment)
    rename = Path.replace
    def replace(self, target):
        # Each commit renames four files: to be killed around each of them is the hardest case.
        global countdown
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        done = rename(self, target)
        return done
    Path.replace = replace
    ingest.run(ingest.IngestConfig(sources=tuple(sources), pool=Path(pool), jobs=int(jobs),
               max_pixels=100_000, max_bytes=200_000, shard_size=50))
"""


def start(script: Path, *arguments: object) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)


@pytest.mark.parametrize(("moment", "jobs"), [(1, 1), (2, 1), (3, 2), (4, 1), (5, 1), (6, 1), (12, 2), (25, 1)])
def test_killed_at_any_rename_a_rerun_gives_the_same_bytes(
    crawl: Path, whole: dict[str, str], tmp_path: Path, moment: int, jobs: int
) -> None:
    script, pool = tmp_path / "killed.py", tmp_path / "pool"
    script.write_text(KILL_SCRIPT)
    process = start(script, moment, jobs, pool, crawl)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    done = content(pool)
    assert done.items() != whole.items()
    finished = [name for name in done if name.endswith("_stats.json")]
    assert all(done[name] == whole[name] for name in finished)
    run(pool, crawl)
    assert content(pool) == whole
    check(pool)


@pytest.mark.slow
def test_killed_at_any_time_with_workers_running_a_rerun_gives_the_same_bytes(tmp_path: Path) -> None:
    crawl = make_crawl(tmp_path / "crawl", num_shards=8, per_shard=150)
    run(tmp_path / "whole", crawl)
    script, pool = tmp_path / "run.py", tmp_path / "pool"
    script.write_text(KILL_SCRIPT)
    for shards_done in (0, 2, 5):
        process = start(script, -1, 2, pool, crawl)
        while len(list(pool.glob("*_stats.json"))) < shards_done or not pool.exists():
            time.sleep(0.005)
            assert process.poll() is None
        time.sleep(0.03)
        process.kill()
        process.communicate(timeout=60)
    process = start(script, -1, 2, pool, crawl)
    assert process.communicate(timeout=60) == (None, b"") and process.returncode == 0
    assert content(pool) == content(tmp_path / "whole")
    check(pool)


def test_workers_do_not_outlive_a_killed_parent(
    crawl: Path, tmp_path: Path, processes_of: Callable[[int], list[int]]
) -> None:
    script, pool = tmp_path / "run.py", tmp_path / "pool"
    script.write_text(KILL_SCRIPT)
    process = start(script, 9, 2, pool, crawl)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and processes_of(process.pid):
        time.sleep(0.05)
    assert not processes_of(process.pid)


@pytest.mark.slow
def test_ctrl_c_leaves_a_pool_that_goes_on(tmp_path: Path) -> None:
    crawl = make_crawl(tmp_path / "crawl", num_shards=8, per_shard=150)
    script, pool = tmp_path / "run.py", tmp_path / "pool"
    script.write_text(KILL_SCRIPT)
    process = start(script, -1, 2, pool, crawl)
    while not list(pool.glob("*_stats.json")):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert said.count(b"Traceback") == 1 and said.rstrip().endswith(b"KeyboardInterrupt")
    assert not (pool / ".partial").exists()
    run(pool, crawl)
    run(tmp_path / "whole", crawl)
    assert content(pool) == content(tmp_path / "whole")


# What cannot be done


def test_two_at_once_is_one_sentence_that_names_the_other(crawl: Path, tmp_path: Path) -> None:
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
    """Though it has a run.json, too."""
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


def test_memory_of_digests_is_on_disk_and_goes_with_the_run(crawl: Path, tmp_path: Path) -> None:
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
