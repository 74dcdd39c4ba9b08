"""The script for the first minutes on a GPU, tried out on a CPU: each part writes its lines, none stops the next."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def dry_run(out: Path, *options: str, timeout_s: float = 1200) -> int:
    command = ["bash", str(ROOT / "tests" / "bench" / "gpu.sh"), "--dry-run", "--out", str(out), *options]
    return subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, timeout=timeout_s).returncode


def lines(out: Path, part: str | None = None, file: str = "lines.jsonl") -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (out / file).read_text().splitlines()]
    return [line for line in read if part in (None, line.get("part"))]


def test_parts_write_their_lines_and_are_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other compilers, and all GPU tests, take minutes on a CPU: `gpu.sh --dry-run` by hand runs them."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k masks")
    parts = ("matrix", "score", "step-cheap", "tests")
    # Much time, because other work may take the cores.
    assert dry_run(tmp_path, "--minutes", "18", "--parts", " ".join(parts)) == 0, (tmp_path / "log.txt").read_text()
    assert [(line["part"], line["status"]) for line in lines(tmp_path) if "status" in line] == [
        (part, "done") for part in parts
    ]
    outcomes = [line["outcome"] for line in lines(tmp_path, "tests") if "test" in line]
    assert len(outcomes) > 1 and set(outcomes) == {"passed"}
    timed = [line for line in lines(tmp_path, "step-cheap") if "wall_ms" in line]
    assert [line["row"] for line in timed] == ["ours, fixmatch", "ours, rsmatch"]
    assert all(line["wall_ms"] > 0 for line in timed)
    measured = {line["what"]: line for line in lines(tmp_path, "score") if "what" in line}
    assert measured["ingest"]["kept"] == 24
    assert measured["score"]["score"] > 0 and measured["score"]["share"] > 0
    assert measured["features"]["features_0_views"] > 0
    trained = lines(tmp_path, file="matrix.jsonl")
    assert {line["method"] for line in trained} == {"fixmatch", "rsmatch"}
    assert all(0 <= line["accuracy"] <= 1 for line in trained)
    before = lines(tmp_path)
    assert dry_run(tmp_path, "--parts", " ".join(parts)) == 0  # nothing is left to do
    assert lines(tmp_path) == before


def test_a_crash_in_one_part_does_not_stop_the_next(tmp_path: Path) -> None:
    carried, out = tmp_path / "carried", tmp_path / "out"
    carried.mkdir()
    (carried / "arrays.npz").write_bytes(b"no archive")
    assert dry_run(out, "--carried", str(carried), "--minutes", "18", "--parts", "matrix step-eager") == 1
    ended = {line["part"]: line["status"] for line in lines(out) if "status" in line}
    assert ended == {"matrix": "failed", "step-eager": "done"}
    assert {line["row"] for line in lines(out, "step-eager") if "wall_ms" in line} == {
        "reference", "ours, fixmatch", "ours, rsmatch",
    }  # fmt: skip


def test_no_part_begins_without_time(tmp_path: Path) -> None:
    assert dry_run(tmp_path, "--minutes", "0") == 1
    assert {line["status"] for line in lines(tmp_path)} == {"no time was left"}
    assert len(lines(tmp_path)) == 8
