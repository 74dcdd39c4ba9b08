"""Training from shards on 224-pixel photographs: how much of its time does it wait for images?

    python tests/bench/streamed.py --photos ../shared/data/photos-224.parquet --json streamed.json

Ingests the photographs (each so often repeated, with a comment of its own, that they are not duplicates), then trains
the same steps in alternation from the shards and from memory, and reports of each run the share of the steps' time that
was spent waiting, the seconds, and the peak memory.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

CHILD = """
import json, resource, sys
from pipelines.train import TrainConfig, run
summary = run(TrainConfig.model_validate_json(sys.argv[1]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": summary.seconds, "waiting_share": summary.waiting_share, "peak_bytes": peak}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=Path("streamed.json"))
    parser.add_argument("--repeat", type=int, default=5, help="copies of each photograph in the pool")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--num-steps", type=int, default=30)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        lay_out(args.photos, work, args.repeat)
        pool = work / "pool"
        command = [sys.executable, "-m", "curate", "ingest", str(work / "crawl"), "--pool", str(pool)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results: dict[str, list[dict[str, Any]]] = {"stream": [], "memory": []}
        for number in range(args.runs):
            for memory, runs in results.items():
                runs.append(train(work, pool, memory, args.image_size, args.num_steps, number))
                print(memory, json.dumps(runs[-1]), flush=True)
    table = {
        memory: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for memory, runs in results.items()
    }
    args.json.write_text(
        json.dumps({"options": vars(args) | {"photos": "", "json": ""}, "runs": results, "median": table}, indent=2)
    )
    print(json.dumps(table, indent=2))


def lay_out(photos: Path, work: Path, repeat: int) -> None:
    """Write a labeled folder (5 photographs of each class) and a crawl of the others."""
    seen: dict[str, int] = {}
    for row in pq.read_table(photos).to_pylist():
        name = row["class_name"]
        seen[name] = seen.get(name, 0) + 1
        is_labeled = seen[name] <= 5
        folder = work / ("seed" if is_labeled else "crawl") / name
        folder.mkdir(parents=True, exist_ok=True)
        for copy in range(1 if is_labeled else repeat):
            comment = f"copy {copy}".encode()
            segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            (folder / f"{row['key']}-{copy}.jpg").write_bytes(row["jpg"][:2] + segment + row["jpg"][2:])


def train(work: Path, pool: Path, memory: str, image_size: int, num_steps: int, number: int) -> dict[str, Any]:
    """One training in a process of its own; loading and start are in `seconds`, not in the share."""
    settings = {
        "labeled": str(work / "seed"),
        "pool": str(pool),
        "run": str(work / f"run-{memory}-{number}"),
        "backbone": "small",
        "image_size": image_size,
        "batch_size": 16,
        "unlabeled_ratio": 4,
        "num_steps": num_steps,
        "warmup": 0.0,
        "detector_init": "random",
        "memory": memory,
    }
    command = [sys.executable, "-c", CHILD, json.dumps(settings)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


if __name__ == "__main__":
    main()
