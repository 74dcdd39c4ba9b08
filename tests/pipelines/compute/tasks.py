"""Tasks for the tests of the engines. This file imports little, because every worker process imports it."""

import os
import signal
import time
from pathlib import Path

from pipelines.errors import CorruptShard


def slow_double(number: int) -> int:
    time.sleep(0.02 * (number % 3))
    return 2 * number


def refuse(number: int) -> int:
    if number == 2:
        raise CorruptShard("00002.tar: is cut.")
    return number


def die_once(mark: Path) -> int:
    """Be killed in the middle of the first attempt."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_of_odd_ones(number: int) -> int:
    if number % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def next_to_it(number: int, exit_code: int) -> int:
    assert exit_code == -signal.SIGKILL
    return number + 1
