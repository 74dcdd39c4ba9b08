"""The main job on a real contaminated crawl, as a user runs it, against its truth; and again with kills.

    python tests/bench/main_job.py --shared ../shared --work WORK --json figures.json [--kill]

Makes the crawl with `tools/make_crawl.py` (20,000 CIFAR-10 images, 10,000 of Stable Diffusion 1.4, 250 labels, junk),
runs `curate ingest`, `train --config cpu`, `score` and `export` as processes, and checks what they left. With --kill a
second pool and run are made by the same commands, each killed with SIGKILL at three moments and started again: every
file must come out the same, byte for byte, but those that hold times.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import webdataset as wds
from PIL import Image

from pipelines.run.evaluation import auroc

TIMED = {"run.json", "scores.json", "README.md", "classifier.pt2"}  # hold times, paths, or an archive's dates
WHERE = "prob_synthetic < 0.3"
CURATE = [sys.executable, "-m", "curate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=Path("figures.json"))
    parser.add_argument("--size", type=int, default=32, help="24: the pipeline-matched crawl")
    parser.add_argument("--kill", action="store_true")
    args = parser.parse_args()
    work: Path = args.work.resolve()
    if not (work / "truth.parquet").exists():
        make = [sys.executable, str(args.shared / "tools" / "make_crawl.py"), "--out", str(work), "--junk"]
        options = ["--labels-per-class", "25", "--real", "20000", "--alpha", "0.5", "--size", str(args.size)]
        subprocess.run([*make, *options], check=True)
    figures: dict[str, Any] = {}

    def record(name: str, value: Any) -> None:
        figures[name] = value
        print(name, json.dumps(value), flush=True)
        args.json.write_text(json.dumps(figures, indent=2) + "\n")

    whole = Stages(work, "whole")
    for stage in ("ingest", "train", "score", "export"):
        started = time.monotonic()
        result = json.loads(subprocess.run(whole.command(stage), check=True, stdout=subprocess.PIPE, cwd=work).stdout)
        record(stage, {**result, "wall_s": round(time.monotonic() - started, 1)})
    record("rejects", check_ingest(work, whole))
    record("detector", check_scores(work, whole))
    record("exported", check_export(work, whole))
    if args.kill:
        record("kills", check_kills(work, whole, figures))


class Stages:
    """The commands of one pool and run."""

    def __init__(self, work: Path, name: str) -> None:
        self.pool, self.run, self.clean = (work / name / part for part in ("pool", "run", "clean"))
        self._work = work

    def command(self, stage: str) -> list[str]:
        pool, run = ["--pool", str(self.pool)], ["--run", str(self.run)]
        work = self._work
        options = {
            "ingest": [str(work / "crawl"), *pool],
            "train": ["--config", "cpu", "--labeled", str(work / "seed"), "--validation", str(work / "test"),
                      "--truth", str(work / "truth.parquet"), *pool, *run],
            "score": ["--truth", str(work / "truth.parquet"), *pool, *run],
            "export": ["--out", str(self.clean), "--where", WHERE, "--keep", "all", *pool, *run],
        }  # fmt: skip
        return [*CURATE, stage, *options[stage], "--json"]


def tables(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def truth_of(work: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in pq.read_table(work / "truth.parquet").to_pylist()}


def stem(member: str) -> str:
    return Path(member).name.split(".")[0]


def check_ingest(work: Path, stages: Stages) -> dict[str, Any]:
    """Every junk file rejected for the right reason, every other one kept."""
    truth = truth_of(work)
    kept, rejected = tables(stages.pool), tables(stages.pool / "rejects")
    assert len(kept) + len(rejected) == len(truth)
    reasons = Counter((truth[stem(row["member"])]["kind"], row["reason"]) for row in rejected)
    kinds = Counter(truth[stem(row["member"])]["kind"] for row in kept)
    return {
        "kept": dict(sorted(kinds.items())),
        "rejected": {f"{kind} as {reason}": count for (kind, reason), count in sorted(reasons.items())},
    }


def check_scores(work: Path, stages: Stages) -> dict[str, Any]:
    """AUROC from the score files by the truth, over all and without grey images; pseudo-labels by kind."""
    truth, rows = truth_of(work), tables(stages.pool)
    scores = {row["key"]: row for row in tables(stages.run / "scores")}
    classes = json.loads((stages.run / "model" / "config.json").read_text())["classes"]
    prob = np.array([scores[row["key"]]["prob_synthetic"] for row in rows])
    known = [truth[stem(row["member"])] for row in rows]
    synthetic = np.array([row["is_synthetic"] == 1 for row in known])
    right = np.array(
        [scores[row["key"]]["pseudo_label"] == classes[fact["cls"]] for row, fact in zip(rows, known, strict=True)]
    )
    grey = np.array([is_grey(data) for data in pixels(stages.pool, rows)])
    return {
        "auroc": round(auroc(prob, synthetic), 4),
        "auroc_without_grey": round(auroc(prob[~grey], synthetic[~grey]), 4),
        "synthetic_share": round(float(synthetic.mean()), 4),
        "called_synthetic": round(float((prob >= 0.5).mean()), 4),
        "pseudo_label_accuracy_real": round(float(right[~synthetic].mean()), 4),
        "pseudo_label_accuracy_synthetic": round(float(right[synthetic].mean()), 4),
    }


def pixels(pool: Path, rows: list[dict[str, Any]]) -> list[np.ndarray]:
    result = []
    for row in rows:
        with (pool / f"{row['shard']}.tar").open("rb") as file:
            file.seek(row["offset"])
            with Image.open(io.BytesIO(file.read(row["num_bytes"]))) as picture:
                result.append(np.asarray(picture.convert("RGB")))
    return result


def is_grey(pixels_HWC: np.ndarray) -> bool:
    return float(np.ptp(pixels_HWC.mean((0, 1)))) < 6


def check_export(work: Path, stages: Stages) -> dict[str, Any]:
    """Plain webdataset reads the export, and each image's bytes are those of the crawl."""
    truth, pool = truth_of(work), {row["key"]: row for row in tables(stages.pool)}
    crawl = {}
    for path in sorted((work / "crawl").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    file = tar.extractfile(member)
                    assert file is not None
                    crawl[stem(member.name)] = file.read()
    count = synthetic = 0
    shards = [str(path) for path in sorted(stages.clean.glob("*.tar"))]
    for sample in wds.WebDataset(shards, shardshuffle=False):
        name = stem(pool[sample["__key__"]]["member"])
        assert sample["jpg"] == crawl[name]
        assert int(sample["cls"]) in range(10)
        count += 1
        synthetic += truth[name]["is_synthetic"] == 1
    kept, dropped = (pq.read_table(stages.clean / f"{name}.parquet").num_rows for name in ("kept", "dropped"))
    assert kept == count
    assert kept + dropped == len(pool)
    before = sum(truth[stem(row["member"])]["is_synthetic"] == 1 for row in pool.values()) / len(pool)
    return {
        "where": WHERE,
        "images": count,
        "equal_bytes": count,
        "synthetic_share_before": round(before, 4),
        "synthetic_share_after": round(synthetic / count, 4),
    }


def check_kills(work: Path, whole: Stages, figures: dict[str, Any]) -> dict[str, Any]:
    """Kill each stage at a quarter, a half and three quarters of its time, start it again, compare all files."""
    shutil.rmtree(work / "killed", ignore_errors=True)
    killed = Stages(work, "killed")
    result: dict[str, Any] = {}
    for stage, ours, theirs in (
        ("ingest", killed.pool, whole.pool),
        ("train", killed.run / "model", whole.run / "model"),
        ("score", killed.run / "scores", whole.run / "scores"),
    ):
        moments = []
        for _ in range(3):
            child = subprocess.Popen(killed.command(stage), stdout=subprocess.DEVNULL, cwd=work)
            time.sleep(figures[stage]["wall_s"] / 4)
            moments.append("killed" if child.poll() is None else "had finished")
            child.kill()
            child.wait()
        subprocess.run(killed.command(stage), check=True, stdout=subprocess.DEVNULL, cwd=work)
        result[stage] = {"moments": moments, "differing": differing(ours, theirs)}
    result["metrics_same"] = (killed.run / "metrics.jsonl").read_bytes() == (whole.run / "metrics.jsonl").read_bytes()
    result["embeddings_differing"] = differing(killed.run / "embeddings", whole.run / "embeddings")
    return result


def differing(ours: Path, theirs: Path) -> list[str]:
    def contents(root: Path) -> dict[str, bytes]:
        files = (path for path in root.rglob("*") if path.is_file() and path.name not in TIMED)
        # config.json of a model names its pool, the one thing that differs on purpose
        return {str(path.relative_to(root)): path.read_bytes().replace(b"/killed/", b"/whole/") for path in files}

    first, second = contents(ours), contents(theirs)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


if __name__ == "__main__":
    main()
