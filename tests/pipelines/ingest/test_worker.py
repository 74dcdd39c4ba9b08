"""An image that hangs or crashes its decoder costs only itself: it is tried twice, then put on record."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import ingest
from pipelines.ingest import IngestConfig
from pipelines.ingest.worker import progress_file
from pipelines.pool.manifest import Pool
from pipelines.progress import Tick, ignore
from tests.pipelines.ingest.crawls import pack, picture

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def endless_jpeg(num_scans: int = 100_000, side: int = 2000) -> bytes:
    """A progressive JPEG with many scans, each of which says in 14 bytes that nothing changes in 62,500 blocks.

    The file is valid, small and of a permitted size, and takes minutes to decode; with more scans, days.
    """
    out = io.BytesIO()
    Image.new("L", (side, side), 128).save(out, "JPEG", progressive=True, quality=50)
    content = out.getvalue()
    scan, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:end] + content[scan:end] * num_scans + content[end:]


def rejects(pool: Path) -> list[tuple[str, str, str]]:
    rows = [row for path in sorted(pool.glob("rejects/*.parquet")) for row in pq.read_table(path).to_pylist()]
    return [(row["member"], row["reason"], row["detail"]) for row in rows]


def files(pool: Path) -> dict[str, bytes]:
    return {str(path.relative_to(pool)): path.read_bytes() for path in pool.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards; the second has an endless image and a copy of it."""
    folder = tmp_path_factory.mktemp("crawl")
    endless = endless_jpeg()
    for shard in range(3):
        images = [(f"{row}.jpg", picture(10 * shard + row)) for row in range(6)]
        if shard == 1:
            images[2], images[4] = ("2.jpg", endless), ("4.jpg", endless)
        pack(folder / f"{shard:05d}.tar", images)
    return folder


SCRIPT = """
import resource, sys
from pathlib import Path
from pipelines.ingest import IngestConfig, run
if __name__ == "__main__":
    crawl, pool, jobs, seconds, cpu_seconds, num_bytes = sys.argv[1:]
    for kind, limit in ((resource.RLIMIT_CPU, int(cpu_seconds)), (resource.RLIMIT_AS, int(num_bytes))):
        if limit:
            resource.setrlimit(kind, (limit, resource.RLIM_INFINITY))
    config = IngestConfig(sources=(crawl,), pool=Path(pool), jobs=int(jobs), max_seconds=float(seconds),
                          max_pixels=1 << 30)
    print(run(config).read)
"""


def start(
    script: Path, crawl: Path, pool: Path, *, jobs: int = 1, seconds: float = 60, cpu_seconds: int = 0, memory: int = 0
) -> subprocess.Popen[bytes]:
    """Ingest in a separate process, under system limits that its workers inherit."""
    script.write_text(SCRIPT)
    arguments = map(str, (script, crawl, pool, jobs, seconds, cpu_seconds, memory))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, start_new_session=True
    )


def test_an_endless_image_is_rejected_and_its_neighbors_are_kept(crawl: Path, tmp_path: Path) -> None:
    for jobs in (1, 2):
        pool = tmp_path / str(jobs)
        summary = ingest.run(IngestConfig(sources=(str(crawl),), pool=pool, jobs=jobs, max_seconds=1))
        assert (summary.read, summary.kept, summary.rejected) == (18, 16, {"too_slow": 2})
        assert rejects(pool) == [(f"{row}.jpg", "too_slow", "not decoded within 1 s, tried twice") for row in (2, 4)]
        assert not (pool / ".partial").exists()
        (pool / "run.json").unlink()  # the only file with times
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_a_process_that_the_system_kills_costs_the_image_that_it_was_decoding(crawl: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "run.py", crawl, tmp_path / "pool", cpu_seconds=3)
    assert process.communicate(timeout=120)[0] == b"18\n"
    detail = "decoding it ends the process (SIGXCPU), tried twice"
    assert rejects(tmp_path / "pool") == [(f"{row}.jpg", "crashed", detail) for row in (2, 4)]
    assert Pool(tmp_path / "pool").num_images == 16


def test_an_image_too_large_for_the_memory_costs_only_itself(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("I;16", (14_000, 14_000)).save(out, "PNG")  # 400 MB, in a file of 0.4 MB
    (tmp_path / "crawl").mkdir()
    images = [("0.jpg", picture(0)), ("1.png", out.getvalue()), ("2.jpg", picture(2))]
    pack(tmp_path / "crawl/0.tar", images)
    process = start(tmp_path / "run.py", tmp_path / "crawl", tmp_path / "pool", memory=700_000_000)
    assert process.communicate(timeout=120)[0] == b"3\n"
    assert [row[:2] for row in rejects(tmp_path / "pool")] == [("1.png", "crashed")]
    assert "no memory left" in rejects(tmp_path / "pool")[0][2]


def test_the_rest_of_a_source_too_large_for_the_memory_is_on_record(tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    # One image of 80 MB in a dictionary, and a hundred references to it: 8 GB, in a file of kilobytes.
    images = pa.DictionaryArray.from_arrays(pa.array([0] + [1] * 100), pa.array([picture(0), bytes(80_000_000)]))
    path = tmp_path / "crawl/0.parquet"
    options = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 30, "store_schema": False}
    pq.write_table(pa.table({"jpg": images}), path, **options)
    assert path.stat().st_size < 1 << 20
    pack(tmp_path / "crawl/1.tar", [("1.jpg", picture(1))])
    process = start(tmp_path / "run.py", tmp_path / "crawl", tmp_path / "pool", memory=700_000_000)
    assert process.communicate(timeout=120)[0] == b"102\n"
    assert {reason for _, reason, _ in rejects(tmp_path / "pool")} == {"incomplete_archive"}
    assert Pool(tmp_path / "pool").rows("00001")["member"].to_pylist() == ["1.jpg"]


def test_processes_that_are_killed_once_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    for shard in range(6):
        pack(tmp_path / f"crawl/{shard}.tar", [(f"{row}.jpg", picture(400 * shard + row)) for row in range(400)])
    num_killed = 0

    def kill_once(at: int) -> Callable[[Tick], None]:
        """Kill all processes after `at` shards; not twice, since a shard may take longer than that."""
        has_killed = False

        def kill(tick: Tick) -> None:
            nonlocal num_killed, has_killed
            if tick.figures["shards"] == at and not has_killed:
                has_killed = True
                for child in active_children():
                    child.kill()
                    child.join()
                    num_killed += 1

        return kill

    pools = list[dict[str, bytes]]()
    for jobs, on_tick in ((1, ignore), (1, kill_once(1)), (1, kill_once(3)), (2, kill_once(1)), (2, kill_once(3))):
        config = IngestConfig(sources=(str(tmp_path / "crawl"),), pool=tmp_path / f"pool{len(pools)}", jobs=jobs)
        assert ingest.run(config, on_tick).kept == 2400
        (config.pool / "run.json").unlink()
        pools.append(files(config.pool))
    assert num_killed >= 4
    assert all(pool == pools[0] for pool in pools)


def test_a_worker_that_hangs_does_not_outlive_a_killed_parent(
    crawl: Path, tmp_path: Path, processes_of: Callable[[int], list[int]]
) -> None:
    process = start(tmp_path / "run.py", crawl, tmp_path / "pool")
    progress = progress_file(tmp_path / f"pool/.partial/{process.pid}", 1)
    while not (progress.exists() and progress.read_bytes() == (2).to_bytes(8, sys.byteorder)):
        time.sleep(0.02)
        assert process.poll() is None
    assert len(processes_of(process.pid)) > 1
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and processes_of(process.pid):
        time.sleep(0.02)
    assert not processes_of(process.pid)
