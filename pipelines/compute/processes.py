"""Runs a function over many tasks in several processes, with the results in the order of the tasks.

A task may kill its process: a decoder crashes, or memory runs out. The caller's `retry` then decides what to run
instead, in a new process; the other processes are not disturbed.
"""

import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from signal import SIG_DFL, SIG_IGN, SIGALRM, SIGINT, signal
from threading import Thread
from types import ModuleType
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

from pipelines.errors import CurateError

AHEAD = 2  # tasks waiting or running, for each process
NO_MEMORY = 71  # exit code of a process that stopped because it was refused memory

Task = TypeVar("Task")
Result = TypeVar("Result")
Retry: TypeAlias = Callable[[Task, int], Task]


def usable_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    jobs: int,
    retry: Retry[Task] | None = None,
) -> Generator[tuple[Task, Result], None, None]:
    """Yield (task, function(task)) in order, few tasks ahead of the consumer, so that memory stays bounded.

    If `task` kills its process, `retry(task, exit code)` returns the task to run instead (the code is minus the number
    of the signal, as in `multiprocessing`). Without `retry`, the death of a process raises CurateError, and with one
    job everything runs in this process. An exception of the function is raised here.
    """
    if jobs == 1 and retry is None:
        for task in tasks:
            yield task, function(task)
        return
    tasks = iter(tasks)
    running: deque[_Run[Task, Result]] = deque()
    idle: list[_Process[Task, Result]] = []
    try:
        while True:
            running.extend(_Run(task) for task in islice(tasks, jobs * AHEAD - len(running)))
            if not running:
                return
            _assign(running, idle, function, jobs)
            if running[0].is_done:
                run = running.popleft()
                yield run.task, run.result()
            else:
                _collect(running, idle, retry or _give_up)
    finally:
        # At the end, and also after an error or Ctrl-C, nobody waits for results any more.
        for process in [*idle, *(run.process for run in running if run.process)]:
            process.end()


class _Run(Generic[Task, Result]):
    """A task with its state: waiting, in a process, or done."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.process: _Process[Task, Result] | None = None
        self.is_done = False
        self._outcome: Result | Exception

    def finish(self, outcome: Any) -> None:
        self._outcome, self.is_done = outcome, True

    def result(self) -> Result:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def _assign(
    running: Iterable[_Run[Task, Result]],
    idle: list["_Process[Task, Result]"],
    function: Callable[[Task], Result],
    jobs: int,
) -> None:
    """Give waiting tasks to idle processes, in order; start processes while there are fewer than `jobs`."""
    num_busy = sum(run.process is not None for run in running)
    for run in running:
        if num_busy == jobs:
            return
        if run.process is None and not run.is_done:
            run.process = _taken(idle) or _Process(function)
            run.process.send(run.task)
            num_busy += 1


def _taken(idle: list["_Process[Task, Result]"]) -> "_Process[Task, Result] | None":
    """Take an idle process that still lives: the death of another is none of the next task's."""
    while idle:
        process = idle.pop()
        if process.is_alive:
            return process
        process.end()
    return None


def _collect(
    running: Iterable[_Run[Task, Result]],
    idle: list["_Process[Task, Result]"],
    retry: Retry[Task],
) -> None:
    """Wait until at least one process has a result or has died."""
    busy = {run.process.pipe: run for run in running if run.process}
    for pipe in connection.wait(list(busy)):
        run = busy[pipe]  # type: ignore[index]
        process, run.process = run.process, None
        assert process is not None
        try:
            run.finish(process.receive())
            idle.append(process)
        except (EOFError, OSError):
            run.task = retry(run.task, process.end())


def _give_up(task: Any, exit_code: int) -> NoReturn:
    raise CurateError(
        "A worker process died, most likely for lack of memory. Run the same command again to resume; fewer --jobs "
        "take less memory."
    )


class _Process(Generic[Task, Result]):
    """A process that runs one task after the other, with our end of the pipe to it."""

    def __init__(self, function: Callable[[Task], Result]) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, theirs), daemon=True)
        with _without_script():
            self._process.start()
        theirs.close()  # so that the pipe closes when the process dies

    def send(self, task: Task) -> None:
        with suppress(BrokenPipeError):  # it has just died, which `receive` will notice
            self.pipe.send(task)

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.is_alive()

    def receive(self) -> Any:
        return self.pipe.recv()

    def end(self) -> int:
        """Terminate the process if it is still running; return its exit code."""
        self.pipe.close()
        self._process.terminate()
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


@contextmanager
def _without_script() -> Iterator[None]:
    """Start a process that does not run the user's script once more, as `multiprocessing` has it.

    No function that is sent is of a script. Running it again would import all that it imports, and a script without
    `if __name__ == "__main__"` would start over in each process.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _serve(function: Callable[[Any], Any], pipe: Any) -> None:
    """Run tasks until the pipe closes. The parent handles Ctrl-C; if the parent is killed, this process exits, too."""
    signal(SIGINT, SIG_IGN)
    signal(SIGALRM, SIG_DFL)  # a timer that runs out kills this process, even while C code keeps the interpreter
    Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionResetError):  # reset if the parent had not read the last result
            return
        try:
            outcome = function(task)
        except MemoryError:
            os._exit(NO_MEMORY)  # as if the system had killed this process, which it might do the next time
        except Exception as error:
            error.add_note(f"In a worker process:\n{traceback.format_exc()}")
            outcome = error
        try:
            pipe.send(outcome)
        except (BrokenPipeError, ConnectionResetError):
            return  # the parent was killed


def _leave_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
