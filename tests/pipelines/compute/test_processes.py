"""Results come in order, and a process that dies raises an error instead of blocking forever."""

import os
import time
from collections.abc import Iterator

import pytest

from pipelines.compute.processes import in_order
from pipelines.errors import CurateError


def slow_double(number: int) -> int:
    time.sleep(0.02 * (number % 3))
    return 2 * number


def die(number: int) -> int:
    os._exit(9)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_order_and_few_tasks_ahead(jobs: int) -> None:
    taken = list[int]()

    def tasks() -> Iterator[int]:
        for number in range(12):
            taken.append(number)
            yield number

    for done, (task, result) in enumerate(in_order(slow_double, tasks(), jobs)):
        assert (task, result) == (done, 2 * done)
        assert len(taken) <= done + 2 * jobs
    assert len(taken) == 12


def test_a_process_that_dies_is_one_sentence() -> None:
    with pytest.raises(CurateError, match="A worker process died"):
        list(in_order(die, range(4), 2))
