"""What a person waits for before anything happens: CPU-seconds of each command's start, of errors, and of reports.

    python tests/bench/waits.py [--other CHECKOUT] [--runs 5] [--pool POOL --run RUN [RUN ...]]

Each command runs in a process of its own; with --other, in turn with the same command of another checkout. With a pool,
`curate verify` and a report of each RUN are measured as well; reports are written to a temporary folder.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from curate.app import COMMANDS

ROOT = Path(__file__).parents[2]
STARTS = (("--help",), *((name, "-h") for name in COMMANDS))
MISTAKES = (
    ("scroe",), ("report", "--nope"), ("ingest",), ("train", "--labeled", "nowhere", "--pool", "nowhere"),
    ("score", "--pool", "nowhere"), ("report", "--pool", "nowhere"), ("inspect", "KEY", "--pool", "nowhere"),
    ("review", "--pool", "nowhere"), ("export", "--out", "out", "--pool", "nowhere"), ("verify", "--pool", "nowhere"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="checkout to compare with")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pool", type=Path)
    parser.add_argument("--run", type=Path, nargs="*", default=[])
    parser.add_argument("--reports-only", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = [] if args.reports_only else [*STARTS, *MISTAKES]
        if args.pool and not args.reports_only:
            commands.append(("verify", "--pool", str(args.pool.resolve())))
        for run in args.run:
            where = ("--pool", str(args.pool.resolve()), "--run", str(run.resolve()))
            commands.append(("report", *where, "--map", "pca", "--out", f"{folder}/report.html"))
        for command in commands:
            seconds: dict[Path, list[float]] = {ROOT: []} | ({args.other: []} if args.other else {})
            for _ in range(args.runs):
                for checkout, measured in seconds.items():
                    measured.append(cpu_seconds(command, checkout, Path(folder)))
            shown = "   ".join(f"{statistics.median(s):.2f} ({min(s):.2f} to {max(s):.2f})" for s in seconds.values())
            print(f"{shown}   curate {' '.join(command)}", flush=True)


def cpu_seconds(command: Sequence[str], checkout: Path, folder: Path) -> float:
    """User and system time of a command, whatever its exit code, in an empty working directory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    subprocess.run([sys.executable, "-m", "curate", *command], cwd=folder, env=environment, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
