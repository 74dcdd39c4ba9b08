"""Python processes that start fast: forks of a server process that has imported the heavy libraries and nothing else.

A fresh interpreter spends 2 to 4 seconds on imports, and a hundred of them took a third of this suite. A fork has its
own arguments, working directory, environment, output and exit code. It imports our packages itself and exits as any
interpreter does. The server has no threads, so forking it is safe. Each pytest process has a server of its own.

Tests of the start itself (what is imported, by which path, how Ctrl-C ends it) run `sys.executable` instead.
"""

import atexit
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
LIBRARIES = (
    "duckdb", "faiss", "jinja2", "PIL.Image", "pyarrow.parquet", "pydantic", "rich.console", "safetensors.torch",
    "starlette.applications", "timm", "torch", "torchvision.transforms.v2", "typer", "upath", "uvicorn",
)  # fmt: skip


class Process:
    """A running fork. Its standard output and error go to files; `changes` are added to our environment."""

    def __init__(self, arguments: Sequence[str], cwd: Path = ROOT, changes: Mapping[str, str] | None = None) -> None:
        self.arguments = arguments
        self._folder = Path(tempfile.mkdtemp(prefix="warm-"))
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | dict(changes or {})
        self.pid = _ask(arguments=arguments, cwd=str(cwd), environment=environment, folder=str(self._folder))

    def wait(self, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Wait until it exits; kill it and raise TimeoutExpired if it takes longer than `timeout_s`."""
        try:
            code = _ask(timeout_s, wait=self.pid)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            _reply(60)
            raise
        out, err = ((self._folder / name).read_text() for name in ("out", "err"))
        shutil.rmtree(self._folder)
        return subprocess.CompletedProcess(self.arguments, code, out, err)


def python(*arguments: str, cwd: Path = ROOT, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ...` or `python -c CODE ...` to its end."""
    return Process(arguments, cwd).wait(timeout_s)


def ranks(arguments: Sequence[str], count: int, cwd: Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command as `count` ranks of one group, with the environment that torchrun gives; their outputs joined."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [Process(arguments, cwd, group | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]
    done = [rank.wait(timeout_s) for rank in started]
    return subprocess.CompletedProcess(
        arguments,
        max((rank.returncode for rank in done), key=abs),
        "".join(rank.stdout for rank in done),
        "".join(rank.stderr for rank in done),
    )


def curate(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `curate ...` in a folder, with 160 columns for its output."""
    return Process(("-m", "curate", *arguments), cwd, {"COLUMNS": "160"}).wait()


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a command that succeeded printed for `--json`."""
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert isinstance(printed, dict)
    return printed


@cache
def _server() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from tests.warm import serve; serve()"]
    server = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[bytes]) -> None:
    server.communicate()


def _ask(timeout_s: float = 300, **request: Any) -> int:
    stdin = _server().stdin
    assert stdin
    stdin.write(json.dumps(request).encode() + b"\n")
    stdin.flush()
    return _reply(timeout_s)


def _reply(timeout_s: float) -> int:
    stdout = _server().stdout
    assert stdout
    if not select.select([stdout], [], [], timeout_s)[0]:
        raise subprocess.TimeoutExpired("a fork", timeout_s)
    return int(stdout.readline())


def serve() -> None:
    """Answer requests, one JSON line each: start a fork (answer: its process id), or wait for one (its exit code).

    In a fork this returns, and the interpreter exits once what the fork runs is done.
    """
    for name in LIBRARIES:
        import_module(name)
    gc.freeze()  # otherwise the collector of an exiting fork touches, and so copies, all pages: a second of work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif not (answer := os.fork()):
            return _become(**request)
        print(answer, flush=True)


def _become(arguments: list[str], cwd: str, environment: dict[str, str], folder: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in enumerate((os.devnull, f"{folder}/out", f"{folder}/err")):
        descriptor = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    option, what, *rest = arguments
    if option == "-m":
        sys.argv, sys.path[0] = ["", *rest], cwd
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = ["-c", *rest], ""
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(what, vars(main))
