"""Run a function over many tasks on several processes, with the results in the order of the tasks."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import active_children, connection, get_context, parent_process
from signal import SIG_IGN, SIGINT, signal
from threading import Thread
from typing import TypeVar

from pipelines.errors import CurateError

_AHEAD = 2  # tasks that wait or run, for each process

Task = TypeVar("Task")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(function: Callable[[Task], Result], tasks: Iterable[Task], jobs: int) -> Iterator[tuple[Task, Result]]:
    """Yield (task, function(task)) in order; few tasks ahead of the consumer, so that memory stays bounded.

    With one job everything happens in this process. Raises CurateError if a process dies.
    """
    if jobs == 1:
        for task in tasks:
            yield task, function(task)
        return
    tasks = iter(tasks)
    running: deque[tuple[Task, Future[Result]]] = deque()
    with _processes(jobs) as processes:
        while True:
            for task in islice(tasks, jobs * _AHEAD - len(running)):
                running.append((task, processes.submit(function, task)))
            if not running:
                return
            task, future = running.popleft()
            yield task, future.result()


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    before = active_children()
    processes = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_start)
    try:
        yield processes
    except BrokenProcessPool:
        raise CurateError(
            "A worker process died, most likely for want of memory; the same command goes on from here, "
            "with fewer --jobs it takes less."
        ) from None
    finally:
        # Whatever ends us (done, an error, Ctrl-C), nobody waits for results any more.
        processes.shutdown(wait=False, cancel_futures=True)
        for process in active_children():
            if process not in before:
                process.terminate()


def _start() -> None:
    """Prepare a worker: Ctrl-C is the parent's business, and a parent that was killed must not be outlived."""
    signal(SIGINT, SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    Thread(target=leave_with_parent, daemon=True).start()
