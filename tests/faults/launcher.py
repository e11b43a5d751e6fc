"""A process that has imported the service, and forks each `pqs` command of a campaign: a start takes no second.

A child is a process like any other: it has a session, an environment and a log of its own, and runs the command from
its beginning. A child that has ended stays a zombie until `wait`, so that its id belongs to nobody else.

As a program, `python -m tests.faults.launcher MODULE[:FUNCTION]`, it imports the module and calls the
function (a fault to plant, say), and reads requests from standard input, a line each.
"""

import faulthandler
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from msgspec import Struct

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = ("app.cli.serve", "app.cli.workers", "app.main")


class Start(Struct, frozen=True, tag=True):
    """Start a command; the answer is the id of its process."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: str


class Wait(Struct, frozen=True, tag=True):
    """Wait for the end of a child; the answer is its exit status, negative for a signal."""

    pid: int


class Launcher:
    """The process, for the campaign. It may be used from several threads."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, self._module],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Start a command; returns the id of its process."""
        return self._ask(Start(tuple(arguments), environment, str(log)))

    def wait(self, pid: int) -> int:
        """Wait for the end of a child that ends soon; returns its exit status, negative for a signal."""
        return self._ask(Wait(pid))

    def _ask(self, request: Start | Wait) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())


def _serve(name: str) -> None:
    for each in IMPORTED:
        importlib.import_module(each)
    module, _, planted = name.partition(":")
    found = importlib.import_module(module)
    if planted:
        getattr(found, planted)()
    for line in sys.stdin.buffer:
        request: Start | Wait = msgspec.json.decode(line, type=Start | Wait)
        match request:
            case Start() as start:
                answer = os.fork()
                if answer == 0:
                    _become(start)
            case Wait(pid):
                answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _become(start: Start) -> None:
    """Run the command, in the child. Does not return."""
    os.setsid()
    log = os.open(start.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # of a command that hangs, the log gets the stacks
    os.environ.clear()
    os.environ.update(start.environment)
    sys.argv[1:] = start.arguments
    status = 1
    try:
        importlib.import_module("app.cli").pqs(prog_name="pqs")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1])
