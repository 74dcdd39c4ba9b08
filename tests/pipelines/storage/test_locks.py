"""One command at a time holds a folder; a second one is told which, and the lock of a dead process is gone."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipelines.errors import BadInput, Incompatible
from pipelines.storage import locks

HOLD = """
import sys, time
from pathlib import Path
from pipelines.storage import locks
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds a folder."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux lists the holders of locks")
def test_a_second_process_is_told_the_holder_and_a_kill_frees_the_lock(tmp_path: Path) -> None:
    with hold(tmp_path / "run") as process:
        with pytest.raises(Incompatible) as refused, locks.held(tmp_path / "run"):
            pass
        assert f"{tmp_path}/run: process {process.pid} (" in str(refused.value)
        assert Path(sys.executable).name in str(refused.value) and str(tmp_path / "run") in str(refused.value)
        assert "\n" not in str(refused.value)  # the program has line breaks
        process.send_signal(signal.SIGKILL)
    with locks.held(tmp_path / "run"):
        assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_stays_empty_is_removed_and_any_other_is_kept(tmp_path: Path) -> None:
    with locks.held(tmp_path / "a" / "b"):
        pass
    assert not (tmp_path / "a" / "b").exists()
    with locks.held(tmp_path / "a"):  # was there
        pass
    with locks.held(tmp_path / "b"):
        (tmp_path / "b" / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_that_was_renamed_while_held_leaves_its_name_to_others(tmp_path: Path) -> None:
    with locks.held(tmp_path / "work", called=tmp_path / "out"):
        with (
            pytest.raises(Incompatible, match=f"^{tmp_path}/out: "),
            locks.held(tmp_path / "work", called=tmp_path / "out"),
        ):
            pass
        (tmp_path / "work").rename(tmp_path / "out")
        (tmp_path / "work").mkdir()  # of another process, which has not locked it yet
    assert (tmp_path / "work").exists()


def test_of_many_threads_that_make_and_remove_a_folder_never_two_hold_it(tmp_path: Path) -> None:
    inside, most, times = 0, 0, 0

    def try_often() -> None:
        nonlocal inside, most, times
        for _ in range(300):
            try:
                with locks.held(tmp_path / "run"):
                    inside += 1
                    most, times = max(most, inside), times + 1
                    (tmp_path / "run" / "file").touch()
                    (tmp_path / "run" / "file").unlink()
                    inside -= 1
            except Incompatible:
                pass

    threads = [threading.Thread(target=try_often) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and times > 100


def test_waiting_for_a_folder_ends_when_it_is_free(tmp_path: Path) -> None:
    order, started = list[str](), threading.Event()

    def second() -> None:
        started.set()
        with locks.awaited(tmp_path / "index"):
            order.append("second")

    thread = threading.Thread(target=second)
    with locks.awaited(tmp_path / "index"):
        thread.start()
        started.wait()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_an_error_in_another_folder_names_that(tmp_path: Path) -> None:
    (tmp_path / "pool").touch()
    with (
        pytest.raises(BadInput, match=f"^{tmp_path}/pool/00000.tar: Not a directory\\. Fix this, then run"),
        locks.held(tmp_path / "run"),
    ):
        (tmp_path / "pool" / "00000.tar").read_bytes()


def test_an_error_of_a_descriptor_names_the_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match=f"^{tmp_path}/run: cannot be written, No space left on device\\. "),
        locks.held(tmp_path / "run"),
    ):
        raise OSError(errno.ENOSPC, "full", 7)


def test_a_file_instead_of_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with (
        pytest.raises(BadInput, match=f"^{tmp_path}/run: cannot be written, Not a directory\\. "),
        locks.held(tmp_path / "run"),
    ):
        pass


def test_an_error_that_is_not_the_disks_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), locks.held(tmp_path / "run"):
        os.open(tmp_path / "run", os.O_WRONLY)
