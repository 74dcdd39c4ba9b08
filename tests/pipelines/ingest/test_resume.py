"""However often ingest is killed, running it again makes the pool of an uninterrupted run, byte for byte."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipelines.ingest.crawls import check, content, make_crawl, run

pytestmark = pytest.mark.slow

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


def test_after_ctrl_c_a_rerun_gives_the_same_bytes(tmp_path: Path) -> None:
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
