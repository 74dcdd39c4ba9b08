"""Files appear complete, even if two processes write the same one at a time."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from pipelines.storage.atomic import replacing

WRITE = """
import sys
from pathlib import Path
from pipelines.storage.atomic import replacing
with replacing(Path(sys.argv[1])) as temporary, temporary.open("w") as file:
    print("at it", flush=True)
    sys.stdin.readline()
    file.write("theirs" * 1000)
"""


def test_two_writers_of_one_file_take_turns_and_both_files_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    theirs = subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert theirs.stdin is not None and theirs.stdout is not None
    assert theirs.stdout.readline() == b"at it\n"
    opened = Event()

    def write() -> None:
        with replacing(path) as temporary:
            opened.set()
            temporary.write_text("ours")

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        assert not opened.wait(0.5)
        assert theirs.communicate(b"go on\n") == (b"", None)
        assert theirs.returncode == 0
        written.result(timeout=60)
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


def test_many_at_once_leave_one_whole_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"

    def write(letter: str) -> None:
        with replacing(path) as temporary, temporary.open("w") as file:
            for _ in range(100):
                file.write(letter)
                file.flush()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, "abcdefgh" * 4))
    assert len(path.read_text()) == 100
    assert len(set(path.read_text())) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_of_a_killed_process_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    killed = subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert killed.stdout is not None and killed.stdout.readline() == b"at it\n"
    killed.kill()
    killed.communicate()
    (left,) = tmp_path.iterdir()
    left.write_text("a longer text than the new one")
    with replacing(path) as temporary:
        assert temporary == left
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="no more"), replacing(path) as temporary:
        temporary.write_text("new")
        raise ValueError("no more")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
