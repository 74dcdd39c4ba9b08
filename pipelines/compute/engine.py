"""Runs the tasks of a stage in processes of this machine, or on a Ray cluster.

Both keep the contract of `processes.in_order`: (task, function(task)) in the order of the tasks, few tasks ahead of the
consumer. So the output of a stage does not depend on where it ran. Functions and tasks are sent between processes, so
they must be functions of modules and plain values. Paths in them must be absolute, and mean the same on every machine
(on a shared file system or an object store).

Ray schedules tasks, reruns them when their process or machine dies, and scales its cluster by the number of waiting
tasks. It is an optional extra, imported where it is used.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from socket import create_connection
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from pipelines.compute import processes
from pipelines.compute.processes import Retry
from pipelines.distribution import pip_install
from pipelines.errors import BadInput, CurateError, Incompatible, why

EngineName = Literal["local", "ray"]
Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 2  # tasks waiting or running, for each that the cluster has room for: waiting tasks make it grow
_PATIENCE_S = 10.0
_STORE_BYTES = (
    128 << 20
)  # of shared memory if Ray is started here; enough, as tasks return rows and images are in files


class Engine(Protocol):
    """Runs a function over tasks."""

    def in_order(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], retry: Retry[Task] | None = None
    ) -> Iterator[tuple[Task, Result]]:
        """Yield (task, function(task)) in the order of the tasks; an exception of the function is raised here.

        With `retry` each task runs in a process of its own that it may crash, see `processes.in_order`.
        """
        ...


def choose(name: EngineName, *, jobs: int, address: str | None, cores: int = 1, gpus: int = 0) -> Engine:
    """Make the engine called `name`; `cores` and `gpus` are what one task takes of a Ray cluster."""
    return Local(jobs) if name == "local" else Ray(address, jobs=jobs, cores=cores, gpus=gpus)


class Local:
    """Runs tasks in `jobs` processes of this machine; with one job, in this process."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs

    def in_order(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], retry: Retry[Task] | None = None
    ) -> Iterator[tuple[Task, Result]]:
        return processes.in_order(function, tasks, self._jobs, retry)


class Ray:
    """Runs tasks on the Ray cluster at `address` or $RAY_ADDRESS, or else on one started here, with `jobs` cores."""

    def __init__(self, address: str | None, *, jobs: int, cores: int, gpus: int) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._jobs, self._cores, self._gpus = jobs, cores, gpus

    def in_order(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], retry: Retry[Task] | None = None
    ) -> Iterator[tuple[Task, Result]]:
        tasks = iter(tasks)
        work_on = function if retry is None else partial(_apart, function, retry)
        running: deque[tuple[Task, Any]] = deque()
        with self._cluster() as ray:
            remote = ray.remote(_in_worker()).options(
                num_cpus=self._cores, num_gpus=self._gpus, name=getattr(function, "__name__", "curate")
            )
            shared = ray.put(_packed(work_on))  # once for all tasks
            while True:
                # After the loss of a machine, this may be less than what is running.
                room = int(ray.cluster_resources().get("CPU", 1)) // self._cores
                for task in islice(tasks, max(0, max(room, 1) * _AHEAD - len(running))):
                    running.append((task, remote.remote(shared, _packed(task))))
                if not running:
                    return
                task, reference = running.popleft()
                yield task, _result(ray, reference)

    @contextmanager
    def _cluster(self) -> Iterator[Any]:
        """Connect to the cluster, or start one, for the duration of the block; within a Ray program use its cluster."""
        try:
            import ray
        except ImportError:
            raise BadInput(f"--engine ray: Ray is not installed; {pip_install('ray')}.") from None
        if ray.is_initialized():
            yield ray
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray reports its use to its makers
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        try:
            if self._address and self._address != "local":
                _knock(self._address)
                ray.init(address=self._address, **quiet)
            else:
                ray.init(
                    address="local",
                    num_cpus=max(self._jobs, self._cores),
                    include_dashboard=False,
                    object_store_memory=_STORE_BYTES,
                    **quiet,
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise BadInput(
                f"--ray-address {self._address or 'local'}: cannot connect to a Ray cluster there ({why(error)}); "
                "give the address of a running one, or leave it out to start one here."
            ) from None
        try:
            if self._gpus and not self._address and not ray.cluster_resources().get("GPU"):
                raise BadInput("--device cuda: Ray sees no GPU here; use --device cpu, or name a --ray-address.")
            yield ray
        finally:
            ray.shutdown()  # also stops running tasks


def _apart(function: Callable[[Task], Result], retry: Retry[Task], task: Task) -> Result:
    """Run a task in a process of its own beside Ray's worker, so that `retry` handles its death instead of Ray."""
    ((_, result),) = processes.in_order(function, [task], 1, retry)
    return result


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    parts = urlsplit(f"//{address.removeprefix('ray://')}")
    if parts.hostname and parts.port:
        create_connection((parts.hostname, parts.port), timeout=_PATIENCE_S).close()


def _packed(value: Any) -> bytes:
    """Pickle a value for a worker, which must not unpickle it before it can find our packages."""
    from ray import cloudpickle

    return bytes(cloudpickle.dumps(value))


def _in_worker() -> Callable[[bytes, bytes], Any]:
    """Make the function that Ray runs. It is sent by value: by name, Ray might find another `pipelines` package."""

    def call(function: bytes, task: bytes) -> Any:
        import pickle  # only for what our own command has just sent, never for files
        from importlib import import_module

        import_module("curate")  # after this, `pipelines` is ours, see `curate/__init__.py`
        return pickle.loads(function)(pickle.loads(task))

    return call


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ImportError):
            raise Incompatible(
                f"Ray's workers cannot load curate ({error.cause}); install the same version on every machine."
            ) from None
        raise error.cause from None  # `error` itself has a traceback in its message
    except ray.exceptions.RayError as error:
        raise CurateError(
            f"Ray gave up on a task after its retries ({why(error)}), most likely for lack of memory. "
            "Run the same command again to resume."
        ) from None
