"""Every stage killed at random moments and started again, until it is done: is the result that of an undisturbed run?

    OMP_NUM_THREADS=1 nice python tests/bench/kill.py --work WORK [--moments 50] [--seed 0] [--stage train] [--out FILE]

Makes the toy world, runs `curate ingest`, `train`, `score` and `export` on it undisturbed, and then each again with
SIGKILL, SIGTERM and Ctrl-C (SIGINT to the process group, as a terminal sends it) in turn. A killed run is resumed by
the same command and killed again; where one comes to its end, its files are compared and the next chain begins. The
runs that are killed are forked from this process, which has all imports behind it, so that the moments fall into their
work. They are drawn evenly from the CPU time that the whole stage takes: on a busy machine, too, it is killed as often
early as late. Ingest has workers in every other chain, and its moments are by the wall clock there. The last run of all
is `python -m curate`.

Compared byte for byte: all files of the pool but run.json; of the run model/, checkpoint/, metrics.jsonl, scores/,
embeddings/ and thresholds.json; all files of the export. run.json and scores.json hold times. Of classifier.pt2, a ZIP
archive, the members are compared without their names' common folder and dates. After each kill, too, what bears the
mark of being done must be as it will be. Prints one JSON line a stage: `mismatches`, `torn`, `lost` and `doubled` must
be 0, and `odd_exits` empty.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Ctrl-C is 130; training takes SIGTERM for Ctrl-C.
EXITS = {signal.SIGKILL: {-9}, signal.SIGTERM: {-15, 130}, signal.SIGINT: {130}}
TIMED = {"run.json", "scores.json"}
PATIENCE_S = 300.0  # from a signal to the end of the process

Digests = dict[str, str]


@dataclass(frozen=True)
class Stage:
    """A command, what it writes below the working folder, and which of that bears a mark."""

    name: str
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]  # compared
    scratch: tuple[str, ...] = ()  # removed with them before a chain
    marked: Callable[[Digests], set[str]] = field(default=lambda files: set())


def stages(work: Path) -> list[Stage]:
    places = ("--pool", str(work / "pool"), "--run", str(work / "run"))
    return [
        Stage("ingest", (str(work / "crawl"), *places[:2]), ("pool",), marked=_shards),
        Stage(
            "train",
            ("--config", str(work / "kill.toml"), "--labeled", str(work / "seed"), "--validation", str(work / "test"),
             "--truth", str(work / "truth.parquet"), *places),
            ("run/model", "run/checkpoint", "run/metrics.jsonl"), ("run",), _model,
        ),
        Stage("score", places, ("run/scores", "run/embeddings", "run/thresholds.json"), ("run/scores.json",), _scores),
        Stage(
            "export", ("--out", str(work / "clean"), "--keep", "all", "--where", "confidence > 0.3", *places),
            ("clean",), (".clean.partial", ".clean.before"), _export,
        ),
    ]  # fmt: skip


def _shards(files: Digests) -> set[str]:
    done = [name.removesuffix("_stats.json").removeprefix("pool/") for name in files if name.endswith("_stats.json")]
    ends = (".tar", ".parquet", "_stats.json")
    return {f"pool/{shard}{end}" for shard in done for end in ends} | {f"pool/rejects/{s}.parquet" for s in done}


def _model(files: Digests) -> set[str]:
    names = (
        "config.json",
        "classifier.safetensors",
        "detector.safetensors",
        "classifier.pt2",
        "detector.pt2",
        "README.md",
    )
    return {f"run/model/{name}" for name in names} if "run/model/config.json" in files else set()


def _scores(files: Digests) -> set[str]:
    done = [Path(name).stem for name in files if name.startswith("run/scores/") and name.endswith(".parquet")]
    done = [shard for shard in done if not shard.startswith(".")]
    return {f"run/scores/{shard}.parquet" for shard in done} | {f"run/embeddings/{shard}.npy" for shard in done}


def _export(files: Digests) -> set[str]:
    return {name for name in files if name.startswith("clean/")}


def make_world(work: Path, num_real: int, shard_size: int, num_steps: int) -> None:
    from pipelines import toy

    toy.make(work, num_real=num_real, alpha=0.5, labels_per_class=8, num_test=50, shard_size=shard_size)
    recipe = {
        "network": {"backbone": "small"},
        "recipe": {"num_steps": num_steps, "batch_size": 8, "unlabeled_ratio": 2, "warmup": 0.25},
        "machine": {"log_every": 5, "checkpoint_every": 10, "evaluate_every": 20, "device": "cpu"},
    }
    tables = (
        f"[{group}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for group, values in recipe.items()
    )
    (work / "kill.toml").write_text("".join(tables))


def digests(work: Path, outputs: tuple[str, ...]) -> Digests:
    """Digest of every file below some outputs, by its name."""
    found: Digests = {}
    for output in outputs:
        root = work / output
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.is_file() and (path.name not in TIMED or output == "clean"):
                found[str(path.relative_to(work))] = _digest(path)
    return found


def _digest(path: Path) -> str:
    if path.suffix == ".pt2":
        with zipfile.ZipFile(path) as archive:
            members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        return hashlib.sha256(repr(sorted(members.items())).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differing(ours: Digests, theirs: Digests) -> set[str]:
    return {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}


def wipe(work: Path, stage: Stage) -> None:
    for name in (*stage.outputs, *stage.scratch):
        path = work / name
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def finish(stage: Stage, work: Path) -> None:
    """Run a stage to its end, as a user does."""
    command = [sys.executable, "-m", "curate", stage.name, *stage.arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=work)


def fork(stage: Stage, options: list[str], log: Path) -> int:
    """Start a stage in a child that has all imports behind it; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        from curate.app import main as curate

        sys.argv = ["curate", stage.name, *stage.arguments, *options]
        curate()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:  # before or after anything of the stage: Python's own end
        code = 130
    finally:
        os._exit(code)


def clock_of(process: int) -> float:
    """CPU seconds that a process has spent (Linux has a clock for each)."""
    return time.clock_gettime((~process << 3) | 2)


def wait(child: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> int | None:
    """Exit code of a child, minus the signal that ended it; None where it still runs after so long."""
    deadline = clock() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        try:
            if clock() >= deadline:
                return None
        except OSError:
            continue  # it has just ended
        time.sleep(0.002)


def cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def measure(stage: Stage, work: Path, moments: int, seed: int) -> dict[str, Any]:
    """Kill one stage at so many moments; see the module."""
    rng = random.Random(f"{seed} {stage.name}")
    log = work / f"{stage.name}.log"
    wipe(work, stage)
    started, spent = time.monotonic(), cpu_of_children()
    options = ["--jobs", "1"] if stage.name == "ingest" else []
    assert wait(fork(stage, options, log), 3600) == 0, log.read_text()[-2000:]
    wall_s, cpu_s = time.monotonic() - started, cpu_of_children() - spent
    whole = digests(work, stage.outputs)
    wrong, torn, odd = set[str](), set[str](), list[str]()
    outcomes, signals, chains, kills = Counter[str](), Counter[str](), 1, 0
    wipe(work, stage)
    while kills < moments:
        before = digests(work, (*stage.outputs, *stage.scratch))
        has_workers = stage.name == "ingest" and chains % 2 == 0
        child = fork(stage, ["--jobs", "2"] if has_workers else options, log)
        if has_workers:
            code = wait(child, rng.uniform(0, wall_s))
        else:
            code = wait(child, rng.uniform(0, cpu_s), partial(clock_of, child))
        if code is None:
            number = SIGNALS[kills % len(SIGNALS)]
            (os.killpg if number == signal.SIGINT else os.kill)(child, number)
            code = wait(child, PATIENCE_S)
            if code is None:
                odd.append(f"{PATIENCE_S:.0f} s after {number.name} it still ran")
                os.kill(child, signal.SIGKILL)
                code = wait(child, PATIENCE_S)
            kills += 1
            signals[number.name] += 1
            now = digests(work, (*stage.outputs, *stage.scratch))
            outcomes["after the end" if code == 0 else "in the middle" if now != before else "before the start"] += 1
            print(
                f"{stage.name}: {kills} of {moments} moments, last {code} after {number.name}",
                file=sys.stderr,
                flush=True,
            )
            torn |= {name for name in stage.marked(now) if now.get(name) != whole.get(name)}
            if code != 0:
                if code not in EXITS[number]:
                    odd.append(f"{code} after {number.name}")
                continue
        elif code:
            odd.append(f"{code} undisturbed: {log.read_text()[-300:]}")
        wrong |= differing(digests(work, stage.outputs), whole)
        chains += 1
        wipe(work, stage)
    finish(stage, work)
    wrong |= differing(digests(work, stage.outputs), whole)
    lost, doubled = LEDGERS[stage.name](work)
    return {
        "stage": stage.name,
        "moments": kills,
        "signals": dict(signals),
        "outcomes": dict(outcomes),
        "chains_to_the_end": chains,
        "whole_wall_s": round(wall_s, 2),
        "whole_cpu_s": round(cpu_s, 2),
        "files": len(whole),
        "mismatches": len(wrong),
        "torn": len(torn),
        "lost": lost,
        "doubled": doubled,
        "odd_exits": odd,
        "names": sorted(wrong | torn)[:10],
    }


# Nothing lost, nothing doubled: counted from outside, not by what the stage says of itself


def _tables(folder: Path, column: str) -> list[str]:
    import pyarrow.parquet as pq

    return [value for path in sorted(folder.glob("*.parquet")) for value in pq.read_table(path)[column].to_pylist()]


def _missing_and_more(found: Counter[str], expected: Counter[str]) -> tuple[int, int]:
    return (expected - found).total(), (found - expected).total()


def _ledger_of_ingest(work: Path) -> tuple[int, int]:
    """Every member of the crawl is kept or rejected, once; and every picture is kept, once by its bytes."""
    members, pictures = Counter[str](), dict[str, str]()
    import tarfile

    import pyarrow.parquet as pq

    kinds = {row["key"]: row["kind"] for row in pq.read_table(work / "truth.parquet").to_pylist()}
    for path in sorted((work / "crawl").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    members[member.name] += 1
                    file = tar.extractfile(member)
                    assert file is not None
                    if kinds[member.name.removesuffix(".jpg")] in ("real", "synthetic", "duplicate"):
                        pictures[member.name] = hashlib.sha256(file.read()).hexdigest()
    pool = work / "pool"
    on_record = Counter(_tables(pool, "member") + _tables(pool / "rejects", "member"))
    lost, doubled = _missing_and_more(on_record, members)
    less, more = _missing_and_more(Counter(_tables(pool, "sha256")), Counter(set(pictures.values())))
    return lost + less, doubled + more


def _ledger_of_train(work: Path) -> tuple[int, int]:
    """Every log step has one line, and the last step."""
    recipe = tomllib.loads((work / "kill.toml").read_text())
    num_steps, every = recipe["recipe"]["num_steps"], recipe["machine"]["log_every"]
    expected = {*range(every, num_steps + 1, every), num_steps}
    lines = [json.loads(line)["step"] for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    return _missing_and_more(Counter(map(str, lines)), Counter(map(str, expected)))


def _ledger_of_score(work: Path) -> tuple[int, int]:
    """Every image of the pool has one row."""
    return _missing_and_more(
        Counter(_tables(work / "run" / "scores", "key")), Counter(_tables(work / "pool", "key"))
    )  # fmt: skip


def _ledger_of_export(work: Path) -> tuple[int, int]:
    """Every image of the pool is kept or dropped, once, and every kept one is in a tar, once."""
    import tarfile

    clean = work / "clean"
    keys = _tables(clean, "key")  # of kept.parquet and dropped.parquet
    lost, doubled = _missing_and_more(Counter(keys), Counter(_tables(work / "pool", "key")))
    packed = Counter[str]()
    for path in clean.glob("*.tar"):
        with tarfile.open(path) as tar:
            packed.update(name.removesuffix(".jpg") for name in tar.getnames() if name.endswith(".jpg"))
    import pyarrow.parquet as pq

    less, more = _missing_and_more(packed, Counter(pq.read_table(clean / "kept.parquet")["key"].to_pylist()))
    return lost + less, doubled + more


LEDGERS = {
    "ingest": _ledger_of_ingest,
    "train": _ledger_of_train,
    "score": _ledger_of_score,
    "export": _ledger_of_export,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    parser.add_argument("--moments", type=int, default=50, help="of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=int, default=3000, help="real images in the crawl; half as many are synthetic")
    parser.add_argument("--shard", type=int, default=100, help="images in a shard of the crawl")
    parser.add_argument("--steps", type=int, default=60, help="of training")
    parser.add_argument("--stage", action="append", help="this stage alone; those before it are run undisturbed")
    parser.add_argument("--out", type=Path, help="append the lines to this file, too")
    args = parser.parse_args()
    work: Path = args.work.resolve()
    if not (work / "truth.parquet").exists():
        work.mkdir(parents=True, exist_ok=True)
        make_world(work, args.real, args.shard, args.steps)
    os.chdir(work)
    for module in (*(f"pipelines.{stage.name}.stage" for stage in stages(work)), "curate.app", "curate.config"):
        importlib.import_module(module)
    importlib.import_module("torch._dynamo")  # what torch.export loads when it is first used

    sound = True
    for stage in stages(work):
        if args.stage and stage.name not in args.stage:
            finish(stage, work)
            continue
        line = measure(stage, work, args.moments, args.seed)
        sound &= not (line["mismatches"] or line["torn"] or line["lost"] or line["doubled"] or line["odd_exits"])
        print(json.dumps(line), flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    command = [sys.executable, "-m", "curate", "verify", "--pool", str(work / "pool"), "--run", str(work / "run")]
    verified = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, cwd=work, check=False)
    problems = json.loads(verified.stdout)["problems"]
    print(json.dumps({"verify": len(problems), "problems": problems[:5]}), flush=True)
    sys.exit(0 if sound and not problems else 1)


if __name__ == "__main__":
    main()
