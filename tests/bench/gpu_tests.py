"""Runs the tests marked gpu, and appends a line for each to a file as it ends; what has passed before is left out.

Each file of tests/gpu runs in a process of its own, beside the others: most of their time is the host's.

    python tests/bench/gpu_tests.py --lines lines.jsonl [--device cpu]

With `--device cpu` the tests try themselves out on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Reporter:
    """A plugin of pytest that keeps the file of lines."""

    def __init__(self, path: Path, device: str) -> None:
        self._path, self._device = path, device

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        written = [json.loads(line) for line in self._path.read_text().splitlines()] if self._path.exists() else []
        passed = {line["test"] for line in written if line.get("outcome") == "passed"}
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
        items[:] = [item for item in items if item.nodeid not in passed]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:  # set up, and torn down
            return
        line = {
            "part": "tests",
            "test": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
            "device": self._device,
        }
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            line["error"] = (crash.message if crash else str(report.longrepr)).partition("\n")[0][:500]
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--file", type=Path, help="only this one")
    args = parser.parse_args()
    if args.file is None:
        files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
        running = [subprocess.Popen([sys.executable, *sys.argv, "--file", str(file)]) for file in files]
        raise SystemExit(max(process.wait() for process in running))
    os.environ["CURATE_GPU_TESTS_ON"] = args.device
    # A warning of another version of a library says nothing of the GPU.
    options = ["-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    code = pytest.main([*options, str(args.file)], plugins=[Reporter(args.lines, args.device)])
    raise SystemExit(0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else int(code))


if __name__ == "__main__":
    main()
