"""Whatever fails around a stage, it says so and goes on later; nothing is lost or doubled."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from pipelines import export, ingest, inspect, report, score, train, verify
from pipelines.errors import BadInput, CurateError, Incompatible
from pipelines.ingest.seen import Digests
from pipelines.progress import OnTick, Tick, ignore
from pipelines.storage import locks
from tests.conftest import World
from tests.warm import python

ROOT = Path(__file__).parents[2]
TIMED = {"run.json", "scores.json"}
STEPS = 24
CHECKPOINT_EVERY = 6


@dataclass(frozen=True)
class Home:
    """Folders of a pool, a run and an export, and the stages that write them."""

    root: Path
    world: World

    @property
    def pool(self) -> Path:
        return self.root / "pool"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def clean(self) -> Path:
        return self.root / "clean"

    def ingest(self, on_tick: OnTick = ignore, jobs: int = 1) -> ingest.Summary:
        return ingest.run(
            ingest.IngestConfig(sources=(str(self.world.root / "crawl"),), pool=self.pool, jobs=jobs), on_tick
        )

    def train(self, on_tick: OnTick = ignore) -> train.Summary:
        settings: dict[str, Any] = {
            "network": {"backbone": "small"},
            "recipe": {"num_steps": STEPS, "batch_size": 8, "unlabeled_ratio": 2, "warmup": 0.25},
            "machine": {"log_every": 4, "checkpoint_every": CHECKPOINT_EVERY, "device": "cpu"},
        }
        # All train on the same pool: the model names its pool, and its bytes must be equal.
        return train.run(
            train.TrainConfig(labeled=self.world.seed, pool=self.world.pool, run=self.run, **settings), on_tick
        )

    def score(self, on_tick: OnTick = ignore) -> score.Summary:
        return score.run(score.ScoreConfig(pool=self.world.pool, run=self.run, device="cpu"), on_tick)

    def export(self, on_tick: OnTick = ignore) -> export.Summary:
        config = export.ExportConfig(
            out=self.clean, pool=self.world.pool, run=self.run, keep="all", shard_size=300, jobs=1
        )
        return export.run(config, on_tick)

    def stage(self, name: str) -> Callable[..., Any]:
        stages: dict[str, Callable[..., Any]] = {
            "ingest": self.ingest, "train": self.train, "score": self.score, "export": self.export
        }  # fmt: skip
        return stages[name]

    def files(self, stage: str) -> dict[str, bytes]:
        """What a stage leaves, but for what holds times or is compared as an archive by the kill harness."""
        places = {
            "ingest": [self.pool], "train": [self.run / "model", self.run / "metrics.jsonl"],
            "score": [self.run / "scores", self.run / "embeddings"], "export": [self.clean],
        }  # fmt: skip
        files = [path for place in places[stage] for path in ([place] if place.is_file() else place.rglob("*"))]
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in files
            if path.is_file() and path.name not in TIMED and path.suffix != ".pt2"
        }


STAGES = ("ingest", "train", "score", "export")


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """All stages, undisturbed."""
    home = Home(tmp_path_factory.mktemp("whole"), world)
    for name in STAGES:
        home.stage(name)()
    return home


def prepare(home: Home, whole: Home, stage: str) -> None:
    """Give `home` what the stages before `stage` have left."""
    if stage in ("score", "export"):
        shutil.copytree(whole.run / "model", home.run / "model")
    if stage == "export":
        shutil.copytree(whole.run / "scores", home.run / "scores")
        for name in ("thresholds.json", "labels.json", "quality.json"):
            if (whole.run / name).exists():
                shutil.copy(whole.run / name, home.run)


# The disk


@dataclass(frozen=True)
class Disk:
    """A small file system of its own."""

    root: Path

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.root)], check=True)

    def fill(self) -> None:
        """Leave no space on it."""
        with suppress(OSError), (self.root / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root may mount a small disk")
    root = tmp_path / "disk"
    root.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(root)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield Disk(root)
    subprocess.run(["umount", str(root)], check=True)


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_fills_up_is_one_sentence_and_later_the_rest_is_done(
    stage: str, world: World, whole: Home, disk: Disk
) -> None:
    home = Home(disk.root, world)
    prepare(home, whole, stage)

    def fill(tick: Tick) -> None:
        if stage != "train" or (tick.unit == "steps" and tick.done == CHECKPOINT_EVERY + 1):
            disk.fill()

    with pytest.raises(BadInput, match=r"No space left on device.*run the same command again") as refused:
        home.stage(stage)(fill)
    assert "\n" not in str(refused.value)
    assert not [path for path in disk.root.rglob(".*") if path.is_file()]
    (disk.root / "filler").unlink()
    summary = home.stage(stage)()
    assert home.files(stage) == whole.files(stage)
    if stage == "train":
        assert summary.resumed_at == CHECKPOINT_EVERY  # what was saved before the disk was full


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_from_the_start_is_one_sentence(stage: str, world: World, whole: Home, disk: Disk) -> None:
    home = Home(disk.root, world)
    prepare(home, whole, stage)
    disk.fill()
    with pytest.raises(BadInput, match="No space left on device"):
        home.stage(stage)()
    (disk.root / "filler").unlink()
    home.stage(stage)()
    assert home.files(stage) == whole.files(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_may_not_be_written_is_one_sentence(stage: str, world: World, whole: Home, disk: Disk) -> None:
    home = Home(disk.root, world)
    prepare(home, whole, stage)
    before = sorted(disk.root.rglob("*"))
    disk.remount("ro")
    with pytest.raises(BadInput, match=r"Read-only file system.*run the same command again"):
        home.stage(stage)()
    assert sorted(disk.root.rglob("*")) == before
    disk.remount("rw")
    home.stage(stage)()
    assert home.files(stage) == whole.files(stage)


def test_without_root_a_limit_on_files_is_one_sentence_and_exit_1(world: World, whole: Home, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[network]\nbackbone = "small"\n[recipe]\nnum_steps = 2\nbatch_size = 8\nunlabeled_ratio = 2\n'
        '[machine]\ndevice = "cpu"\n'
    )
    options = ["--labeled", str(world.seed), "--pool", str(world.pool), "--run", str(tmp_path / "run")]
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "

    def curate_train(before: str) -> subprocess.CompletedProcess[str]:
        return python("-c", before + "import curate.app; curate.app.main()", "train", "--config", str(recipe), *options)

    done = curate_train(limit)
    assert done.returncode == 1
    assert "File too large" in done.stderr and "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    done = curate_train("")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_memory_of_digests_outgrows_the_disk(disk: Disk) -> None:
    disk.remount("size=1m")
    numbers = range(600_000)  # more than the cache holds
    with pytest.raises(OSError, match="No space left on device"), Digests(disk.root / "digests") as digests:
        digests.add_all((hashlib.sha256(str(i).encode()).digest() for i in numbers), (f"{i:09d}" for i in numbers))


# The source


def crawl_of(world: World, root: Path) -> Path:
    shutil.copytree(world.root / "crawl", root / "crawl")
    return root / "crawl"


def bring(crawl: Path, pool: Path, on_tick: OnTick = ignore) -> ingest.Summary:
    return ingest.run(ingest.IngestConfig(sources=(str(crawl),), pool=pool, jobs=1, shard_size=50), on_tick)


def pool_files(pool: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(pool)): path.read_bytes()
        for path in pool.rglob("*")
        if path.is_file() and path.name != "run.json"
    }


@pytest.mark.parametrize("fault", ["grows", "is cut", "is gone"])
def test_a_tar_that_changes_under_the_reader_is_not_taken(fault: str, world: World, tmp_path: Path) -> None:
    crawl, pool = crawl_of(world, tmp_path), tmp_path / "pool"
    for number in range(2, 5):  # other images: what a pool holds is not read again
        with tarfile.open(crawl / "00001.tar") as read, tarfile.open(crawl / f"{number:05d}.tar", "w") as written:
            for member in read:
                file = read.extractfile(member)
                assert file is not None
                content = file.read() + bytes([number]) * member.name.endswith("png")
                member.name, member.size = member.name.replace("00001", f"{number:05d}", 1), len(content)
                written.addfile(member, io.BytesIO(content))
    tars = sorted(crawl.glob("*.tar"))
    tar = tars[-1]  # far from the first, after which it changes: a shard is read while the one before is committed
    content, status = tar.read_bytes(), tar.stat()

    def spoil(tick: Tick) -> None:
        if tick.figures["shards"] != 1:
            return
        if fault == "grows":
            with tar.open("ab") as file:
                file.write(bytes(512))
        elif fault == "is cut":
            tar.write_bytes(content[: len(content) // 1024 * 512])
        else:
            tar.unlink()

    sentence = "cannot be read .No such file" if fault == "is gone" else f"{tar.name}: changed while it was read"
    with pytest.raises(BadInput, match=f"{sentence}.*run the same command again"):
        bring(crawl, pool, spoil)
    made = len(list(pool.glob("*.tar")))
    assert made == len(tars) - 1 - (fault == "is gone")  # which is seen before the shard before it is read
    tar.write_bytes(content)
    os.utime(tar, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert bring(crawl, pool).skipped == made
    bring(crawl, tmp_path / "undisturbed")
    assert pool_files(pool) == pool_files(tmp_path / "undisturbed")


@pytest.mark.parametrize("fault", ["is replaced", "is gone"])
def test_a_file_that_changes_under_the_reader_is_not_taken(fault: str, world: World, tmp_path: Path) -> None:
    folder, pool = tmp_path / "folder", tmp_path / "pool"
    folder.mkdir()
    for path in world.test.rglob("*.jpg"):
        shutil.copy2(path, folder)
    file = max(folder.iterdir())
    content = file.read_bytes()

    def spoil(tick: Tick) -> None:
        if tick.done == 10:
            file.write_bytes(content[:100]) if fault == "is replaced" else file.unlink()

    config = ingest.IngestConfig(sources=(str(folder),), pool=pool, jobs=1, shard_size=10)
    with pytest.raises(BadInput, match="folder: changed while it was read"):
        ingest.run(config, spoil)
    file.write_bytes(content)
    ingest.run(config)
    assert {row["sha256"] for row in rows_of(pool)} == {
        hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.jpg")
    }


def rows_of(pool: Path) -> list[dict[str, Any]]:
    from pipelines.pool.manifest import Pool

    return [row for table in Pool.open(pool).tables() for row in table.to_pylist()]


# Processes


def test_a_worker_that_is_killed_costs_nothing_but_time(world: World, whole: Home, tmp_path: Path) -> None:
    home = Home(tmp_path, world)
    killed = list[int]()

    def kill_one(tick: Tick) -> None:
        if not killed and (workers := active_children()):
            killed.append(workers[0].pid or 0)
            workers[0].kill()

    with suppress(CurateError):  # it may also be replaced
        home.ingest(kill_one, jobs=2)
    assert killed
    home.ingest()
    assert home.files("ingest") == whole.files("ingest")


def test_two_writers_of_one_folder_are_one_and_readers_are_let_in(world: World, whole: Home, tmp_path: Path) -> None:
    home = Home(tmp_path, world)
    prepare(home, whole, "export")
    shutil.copytree(whole.run / "embeddings", home.run / "embeddings")
    who = f"process {os.getpid()} "
    with locks.held(home.run):
        for stage in ("train", "score"):
            with pytest.raises(Incompatible, match=f"{home.run}: {who}"):
                home.stage(stage)()
        look = inspect.InspectConfig(queries=("000000000",), pool=world.pool, run=home.run)
        assert inspect.run(look).inspections
        page = report.ReportConfig(pool=world.pool, run=home.run, out=tmp_path / "report.html", device="cpu")
        assert report.run(page).num_bytes
        assert verify.run(verify.VerifyConfig(pool=world.pool, run=home.run)).problems == ()
        home.export()

    def second(tick: Tick) -> None:
        with pytest.raises(Incompatible, match=f"{home.clean}: {who}"):
            home.export()

    home.export(second)
    assert home.files("export") == whole.files("export")


def test_an_export_of_scores_that_change_meanwhile_is_refused(world: World, whole: Home, tmp_path: Path) -> None:
    home = Home(tmp_path, world)
    prepare(home, whole, "export")
    home.export()
    before = home.files("export")

    def score_otherwise(tick: Tick) -> None:
        config = score.ScoreConfig(pool=world.pool, run=home.run, device="cpu", max_false_positive_rate=0.2)
        score.run(config)

    with pytest.raises(Incompatible, match="changed during the export"):
        home.export(score_otherwise)
    assert home.files("export") == before


# The clock


def test_no_stage_believes_a_clock(world: World, whole: Home, tmp_path: Path) -> None:
    """All that is there was made in 2100 or in 1980, as where the clock was set: nothing is done again or left out."""
    home = Home(tmp_path / "home", world)
    shutil.copytree(whole.root, home.root)
    for i, path in enumerate(sorted(home.root.rglob("*"))):
        os.utime(path, (i % 2 * 3_786_912_000 + 315_532_800,) * 2)
    assert home.ingest().skipped == len(list(world.pool.glob("*.tar")))
    assert home.train().resumed_at == STEPS
    assert home.score().num_scored_before == len(list(world.pool.glob("*.tar")))
    home.export()
    for stage in STAGES:
        assert home.files(stage) == whole.files(stage)


# Kills and power


@pytest.mark.slow
def test_every_stage_survives_kills(tmp_path: Path) -> None:
    """The short version of tests/bench/kill.py: SIGKILL, SIGTERM and Ctrl-C once each."""
    harness = ROOT / "tests" / "bench" / "kill.py"
    options = ["--work", str(tmp_path / "work"), "--moments", "3", "--real", "120", "--steps", "12"]
    done = subprocess.run(
        [sys.executable, str(harness), *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("stage") for line in lines] == [*STAGES, None]
    assert all(line["moments"] == 3 and not line["mismatches"] + line["lost"] + line["doubled"] for line in lines[:-1])


_CALL = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)")
_UNFINISHED = re.compile(r"(\d+) +(.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")
_DESCRIPTOR = re.compile(r"\d+<([^>]*)>")
_PATH = re.compile(r'"([^"]*)"')


@dataclass(frozen=True)
class Call:
    """A system call that succeeded, and the files that it is about."""

    name: str
    paths: tuple[str, ...]


def calls(trace: Path, below: Path) -> list[Call]:
    """Calls on files below a folder, in the order in which they returned."""
    pending, found = dict[str, str](), list[Call]()
    for line in trace.read_text(errors="replace").splitlines():
        if cut := _UNFINISHED.fullmatch(line):
            pending[cut[1]] = cut[2]
            continue
        if rest := _RESUMED.fullmatch(line):
            line = f"{rest[1]} {pending.pop(rest[1], '')}{rest[2]}"
        if (call := _CALL.match(line)) and not call[4].startswith("-"):
            paths = tuple(_PATH.findall(call[3]) if call[2].startswith("rename") else _DESCRIPTOR.findall(call[3]))
            if paths and all(path.startswith(str(below)) for path in paths):
                found.append(Call(call[2], paths))
    return found


def test_data_are_on_the_disk_before_their_names_and_marks_come_last(world: World, tmp_path: Path) -> None:
    """By the real system calls of all stages: what a power failure could reorder is held apart by a sync."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    home, trace = Home(tmp_path / "home", world), tmp_path / "trace"
    script = (
        "import sys; from pathlib import Path; from tests.pipelines.test_faults import Home, STAGES, World\n"
        "home = Home(Path(sys.argv[1]), World(Path(sys.argv[2])))\n"
        "for stage in STAGES: home.stage(stage)()\n"
    )
    traced = "trace=write,writev,pwrite64,pwritev,ftruncate,fsync,fdatasync,rename,renameat,renameat2"
    command = ["strace", "-f", "-y", "-s", "0", "-e", traced, "-o", str(trace)]
    done = subprocess.run(
        [*command, sys.executable, "-c", script, str(home.root), str(world.root)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if "ptrace" in done.stderr and done.returncode:
        pytest.skip("strace may trace nothing here")
    assert done.returncode == 0, done.stderr
    unsynced, named, awaited = set[str](), list[str](), None
    for call in calls(trace, home.root):
        if call.name.startswith("rename"):
            source, target = call.paths
            if Path(target).name.startswith("."):  # a library that has temporary names of its own
                unsynced = {target if path == source else path for path in unsynced}
                continue
            assert awaited is None, f"{target} was named before the name before it was on the disk"
            assert not {path for path in unsynced if path == source or path.startswith(f"{source}/")}
            awaited = str(Path(target).parent)
            named.append(str(Path(target).relative_to(home.root)))
        elif call.name in ("fsync", "fdatasync"):
            unsynced.discard(call.paths[0])
            awaited = None if call.paths[0] == awaited else awaited
        else:
            unsynced.add(call.paths[0])
    assert awaited is None
    assert "run/checkpoint/state.safetensors" in named  # and by then metrics.jsonl was synced:
    assert all("/pool/.partial/" in path for path in unsynced)  # scratch, made anew by each ingest

    def order(*names: str) -> None:
        places = [named.index(name) for name in names]
        assert places == sorted(places), names

    for shard in (path.stem for path in (home.root / "pool").glob("*.tar")):
        order(f"pool/{shard}.tar", f"pool/{shard}.parquet", f"pool/rejects/{shard}.parquet", f"pool/{shard}_stats.json")
        order(f"run/embeddings/{shard}.npy", f"run/scores/{shard}.parquet")
    for name in ("classifier.safetensors", "detector.safetensors", "classifier.pt2", "detector.pt2", "README.md"):
        order(f"run/model/{name}", "run/model/config.json")
    assert named[-1] == "clean"
