"""A script without `if __name__ == "__main__"` runs once, however many processes `curate.ingest` starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import curate
from tests.conftest import World
from tests.warm import ROOT

pytestmark = pytest.mark.slow

EXPENSIVE = """\
from pathlib import Path

with Path("runs.txt").open("a") as file:
    file.write("the module\\n")
"""
SCRIPT = """\
import sys

sys.path.insert(0, ".")  # where the module lies that takes long to import
import expensive

with open("runs.txt", "a") as file:
    file.write("the script\\n")

import curate

summary = curate.ingest("crawl", pool="pool", jobs=2, shard_size=100)
print(summary.kept)
"""


@pytest.mark.parametrize("is_typed", [False, True], ids=["a file", "standard input"])
def test_a_script_without_a_guard_runs_once(world: World, tmp_path: Path, is_typed: bool) -> None:
    (tmp_path / "crawl").symlink_to(world.root / "crawl")
    (tmp_path / "expensive.py").write_text(EXPENSIVE)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *([] if is_typed else ["script.py"])],
        input=SCRIPT if is_typed else None,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert (tmp_path / "runs.txt").read_text().splitlines() == ["the module", "the script"]
    assert int(done.stdout) == len(curate.Pool(tmp_path / "pool")) == len(curate.Pool(world.pool))
    assert len(curate.Pool(tmp_path / "pool").opened.shards) > 1
