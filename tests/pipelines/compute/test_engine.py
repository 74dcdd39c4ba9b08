"""Local processes and a real local Ray keep one contract, also where Ray's workers are killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest

from pipelines import export, ingest, score
from pipelines.compute.engine import Engine, EngineName, Local, Ray
from pipelines.errors import BadInput, CorruptShard, CurateError
from pipelines.pool.manifest import Pool
from tests.conftest import World, save_untrained
from tests.pipelines.compute.tasks import die, die_of_odd_ones, die_once, next_to_it, refuse, slow_double

ROOT = Path(__file__).parents[3]


# First, for within a Ray program its own cluster is used whatever the address.
@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:port"])
def test_an_address_without_a_cluster_is_one_sentence(address: str) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with pytest.raises(BadInput, match="cannot connect to a Ray cluster there"):
        list(Ray(address, jobs=1, cores=1, gpus=0).in_order(slow_double, [1]))


@pytest.fixture(scope="module")
def ray() -> Iterator[Callable[[], Engine]]:
    """A real local Ray that is up for all tests of this file; engines find it and leave it running."""
    package = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    package.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False,
        logging_level="error",
    )  # fmt: skip
    yield lambda: Ray(None, jobs=2, cores=1, gpus=0)
    package.shutdown()


def test_what_ends_its_process_is_told_to_retry_on_either(ray: Callable[[], Engine]) -> None:
    for engine in (Local(2), ray()):
        results = [result for _, result in engine.in_order(die_of_odd_ones, range(3), next_to_it)]
        assert results == [0, 2, 2]


def test_ray_gives_what_local_processes_give_and_takes_few_tasks_ahead(ray: Callable[[], Engine]) -> None:
    taken = list[int]()

    def tasks() -> Iterator[int]:
        for number in range(12):
            taken.append(number)
            yield number

    results = []
    for done, found in enumerate(ray().in_order(slow_double, tasks())):
        results.append(found)
        assert len(taken) <= done + 4
    assert results == list(Local(1).in_order(slow_double, range(12)))


def test_an_error_of_a_task_is_the_same_sentence(ray: Callable[[], Engine]) -> None:
    with pytest.raises(CorruptShard) as raised:
        list(ray().in_order(refuse, range(4)))
    assert str(raised.value) == "00002.tar: is cut."


def test_a_worker_that_is_killed_is_replaced(ray: Callable[[], Engine], tmp_path: Path) -> None:
    marks = [tmp_path / "a", tmp_path / "b"]
    found = list(ray().in_order(die_once, marks))
    assert [mark for mark, _ in found] == marks and all(mark.exists() for mark in marks)


def test_a_task_that_kills_every_worker_is_one_sentence(ray: Callable[[], Engine]) -> None:
    with pytest.raises(CurateError, match="gave up on a task after its retries"):
        list(ray().in_order(die, range(1)))


@pytest.mark.slow
def test_packages_of_our_names_in_the_working_directory_do_not_reach_the_workers(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    for name in ("models", "pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a package of the user')")
    script = (
        "import sys; sys.path.insert(0, ''); import curate\n"
        "from pipelines.compute.engine import Ray\n"
        "from pipelines.pool.manifest import shard_of\n"
        "print(list(Ray(None, jobs=1, cores=1, gpus=0).in_order(shard_of, ['000010002'])))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[('000010002', '00001')]", done.stderr


def test_without_ray_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(BadInput, match=r"pip install 'curate-images\[ray\]'"):
        list(Ray(None, jobs=1, cores=1, gpus=0).in_order(slow_double, [1]))


# The stages


def _busy_workers() -> list[int]:
    """Processes of our own Ray that are at a task: Ray gives them that name, and they descend from us."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cmdline").read_bytes().startswith(b"ray::curate"):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                grandparent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
                if grandparent == os.getpid() or parent == os.getpid():
                    found.append(int(path.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


@contextmanager
def killed(count: int, ready: Callable[[], bool]) -> Iterator[None]:
    """Kill `count` of Ray's workers in the middle of their tasks, from when `ready` says so."""
    left, done = count, threading.Event()

    def kill() -> None:
        nonlocal left
        while left and not done.wait(0.002):
            for process in _busy_workers() if ready() else ():
                os.kill(process, signal.SIGKILL)
                left -= 1
                break

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        done.set()
        killer.join()
    assert not left, "no worker was at work to be killed"


def content(root: Path) -> dict[str, bytes]:
    """Bytes of all files but those that know times."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(root)): path.read_bytes() for path in paths if path.name not in {"run.json", "scores.json"}
    }


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for Ray's workers in /proc")
def test_ingest_on_ray_with_workers_killed_makes_the_same_pool(
    world: World, ray: Callable[[], Engine], tmp_path: Path
) -> None:
    pool, sources = tmp_path / "pool", (str(world.root / "crawl"),)
    with killed(2, lambda: any(pool.glob(".partial/*/*.tar*"))):
        summary = ingest.run(ingest.IngestConfig(sources=sources, pool=pool, engine="ray", jobs=2))
    assert summary.images == Pool(world.pool).num_images
    assert content(pool) == content(world.pool)
    assert not list(pool.glob(".*"))


def test_score_on_ray_writes_the_same_scores(world: World, ray: Callable[[], Engine], tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for run in (here, there):
        save_untrained(run)
    summary = score.run(score.ScoreConfig(pool=world.pool, run=here, device="cpu"))
    ticks = list[int]()
    config = score.ScoreConfig(pool=world.pool, run=there, device="cpu", engine="ray")
    again = score.run(config, lambda tick: ticks.append(tick.done))
    assert content(there) == content(here)
    assert replace(again, seconds=0, folder=str(here)) == replace(summary, seconds=0)
    assert ticks == list(accumulate(Pool(world.pool).counts))


def test_export_on_ray_with_a_worker_killed_writes_the_same_shards(
    world: World, untrained: Path, ray: Callable[[], Engine], tmp_path: Path
) -> None:
    run = untrained / "run"

    def written(name: str, engine: EngineName) -> dict[str, bytes]:
        out = tmp_path / name / "clean"  # whose name is in its README
        config = export.ExportConfig(
            out=out, pool=world.pool, run=run, keep="all", shard_size=60, jobs=1, engine=engine, ray_address="local"
        )
        export.run(config)
        return content(out)

    whole = written("here", "local")
    with killed(1, lambda: any(tmp_path.glob("there/.clean.partial/*.tar*"))):
        assert written("there", "ray") == whole
