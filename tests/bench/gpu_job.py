"""The main job on photographs with a GPU, as a person runs it; and some steps of a backbone trained end to end.

    python tests/bench/gpu_job.py --device cuda --lines lines.jsonl [--crawl FOLDER]

FOLDER holds crawl/, seed/ and truth.parquet, as `tools/make_native_crawl.py` of the shared data lays them out; without
it photographs are drawn. The commands `curate ingest`, `train` and `score` run as processes, with their start. A line
of `--lines` for each command: its seconds, and of a score also what it says against the truth.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests import photographs

BACKBONE = "timm:tf_efficientnet_lite0"  # its weights are installed with curate
HOW = {"as by default": (), "end to end": ("--no-frozen", "--num-steps", "100")}


def draw(home: Path) -> None:
    """A crawl of 48 photographs, a third of them synthetic, and a labeled set of 16."""
    photographs.write(home / "crawl", range(32), synthetic=False)
    photographs.write(home / "crawl", range(16), synthetic=True)
    photographs.write(home / "seed", range(100, 116), synthetic=False, classes=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--crawl", type=Path)
    parser.add_argument("--num-steps", type=int, help="of both classifiers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        source = args.crawl or home
        if args.crawl is None:
            draw(home)

        def run(what: str, *command: str) -> None:
            started = time.monotonic()
            done = subprocess.run([sys.executable, "-m", "curate", *command, "--json"], stdout=subprocess.PIPE)
            line: dict[str, Any] = {"part": "job", "what": what, "seconds": round(time.monotonic() - started, 1)}
            if done.returncode:
                line["error"] = f"exit code {done.returncode}"
            elif command[0] == "score":
                line["truth"] = json.loads(done.stdout)["truth"]
            print(line, done.stdout.decode()[-3000:], flush=True)
            with args.lines.open("a") as file:
                file.write(json.dumps(line) + "\n")

        truth = ("--truth", str(source / "truth.parquet")) if args.crawl else ()
        pool = ("--pool", str(home / "pool"))
        run("ingest", "ingest", str(source / "crawl"), *pool)
        steps = ("--num-steps", str(args.num_steps)) if args.num_steps else ()
        for how, options in HOW.items():
            of_run = (*pool, "--run", str(home / how), "--device", args.device)
            labeled = ("--labeled", str(source / "seed"), "--backbone", BACKBONE)
            run(f"train, {how}", "train", *of_run, *labeled, *options, *steps)
            run(f"score, {how}", "score", *of_run, *truth)


if __name__ == "__main__":
    main()
