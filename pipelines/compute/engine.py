"""Where the tasks of a stage run: in processes of this machine, or on a Ray cluster.

Both keep the contract of `processes.in_order`: (task, function(task)) in the order of the tasks, few tasks
ahead of the consumer. So what a stage makes does not depend on where it ran. Functions and tasks travel between
processes: they are plain values and functions of modules, and the paths in them are absolute, for on several machines
they must mean the same everywhere (a shared file system, or an object store).

Ray schedules, starts again what a process or a machine was working on when it died, and scales its cluster by the tasks
that wait. It is an optional extra, imported where it is used.
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
from pipelines.errors import BadInput, CurateError, Incompatible

EngineName = Literal["local", "ray"]
Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 2  # tasks that wait or run, for each that the cluster has room for: those that wait make it grow
_PATIENCE_S = 10.0
_STORE_BYTES = 128 << 20  # of shared memory for a Ray of our own: results are rows, images travel in files


class Engine(Protocol):
    """Runs a function over tasks."""

    def in_order(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], retry: Retry[Task] | None = None
    ) -> Iterator[tuple[Task, Result]]:
        """Yield (task, function(task)) in the order of the tasks; what the function raises is raised here.

        With `retry` each task runs in a process that it may be the end of, see `workers.in_order`.
        """
        ...


def choose(name: EngineName, *, jobs: int, address: str | None, cores: int = 1, gpus: int = 0) -> Engine:
    """The engine of that name; `cores` and `gpus` are what a task takes of a Ray cluster."""
    return Local(jobs) if name == "local" else Ray(address, jobs=jobs, cores=cores, gpus=gpus)


class Local:
    """`jobs` processes of this machine; with one, this process itself."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs

    def in_order(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], retry: Retry[Task] | None = None
    ) -> Iterator[tuple[Task, Result]]:
        return processes.in_order(function, tasks, self._jobs, retry)


class Ray:
    """The Ray cluster at `address` or $RAY_ADDRESS; without either one of our own, on `jobs` cores of this machine."""

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
            shared = ray.put(_packed(work_on))  # once, however many tasks
            while True:
                # Less than what is running where a machine was lost.
                room = int(ray.cluster_resources().get("CPU", 1)) // self._cores
                for task in islice(tasks, max(0, max(room, 1) * _AHEAD - len(running))):
                    running.append((task, remote.remote(shared, _packed(task))))
                if not running:
                    return
                task, reference = running.popleft()
                yield task, _result(ray, reference)

    @contextmanager
    def _cluster(self) -> Iterator[Any]:
        """Connect to the cluster, or start one, for as long as the block runs; within a Ray program use its own."""
        try:
            import ray
        except ImportError:
            raise BadInput("--engine ray: Ray is not installed; pip install 'curate[ray]'.") from None
        if ray.is_initialized():
            yield ray
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
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
            reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
            raise BadInput(
                f"--ray-address {self._address or 'local'}: no Ray cluster can be had there ({reason}); "
                "give the address of a running one, or leave it out to start one here."
            ) from None
        try:
            if self._gpus and not self._address and not ray.cluster_resources().get("GPU"):
                raise BadInput("--device cuda: Ray sees no GPU here; use --device cpu, or name a --ray-address.")
            yield ray
        finally:
            ray.shutdown()  # and with it whatever still runs


def _apart(function: Callable[[Task], Result], retry: Retry[Task], task: Task) -> Result:
    """Run a task in a process of its own beside Ray's: what ends it is told to `retry`, not to Ray."""
    ((_, result),) = processes.in_order(function, [task], 1, retry)
    return result


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray itself would ask for minutes."""
    parts = urlsplit(f"//{address.removeprefix('ray://')}")
    if parts.hostname and parts.port:
        create_connection((parts.hostname, parts.port), timeout=_PATIENCE_S).close()


def _packed(value: Any) -> bytes:
    """A value on its way to a worker, which must not read it before it knows where our packages are."""
    from ray import cloudpickle

    return bytes(cloudpickle.dumps(value))


def _in_worker() -> Callable[[bytes, bytes], Any]:
    """What Ray runs. It travels by value: its module might be found in a wrong place, see `curate/__init__.py`."""

    def call(function: bytes, task: bytes) -> Any:
        import pickle  # of what our own command has just sent; no file is read so
        from importlib import import_module

        import_module("curate")  # nothing of it is used, but from here on `pipelines` is ours
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
        raise error.cause from None  # with Ray's own traceback in its message it would be no sentence
    except ray.exceptions.RayError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise CurateError(
            f"Ray gave up a task after its retries ({reason}), most likely for want of memory; the same command goes "
            "on from here."
        ) from None
