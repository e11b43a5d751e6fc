"""The supervisor of workers: it replaces workers that end or hang, and gives up if they never start."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import gone, until

PATIENCE = 20.0  # seconds; only a test that fails waits that long
PLACES = 2
SCRIPT = """
import logging, os, signal, socket, sys, time

def work(listener, signs):
    mark = os.path.join(os.environ["MARKS"], str(os.getpid()))
    kind = open(os.environ["KIND"]).read()
    if kind == "fails":
        sys.exit(3)
    if kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(float(os.environ.get("SLOW", "0")))
    open(mark, "w").close()
    while True:
        if not os.path.exists(mark + ".hang"):
            signs.send_bytes(b".")
        time.sleep(0.05)

if __name__ == "__main__":
    from app.errors import StartError
    from app.runtime import supervisor
    logging.basicConfig(format="%(message)s")
    supervisor.KILLED_AFTER = 0.5
    supervisor.AGAIN = 0.1
    sockets = [socket.socket() for _ in range(2)]
    try:
        supervisor.Supervisor(work, sockets, patience=0.5, hanging=float(os.environ.get("HANGING", "10"))).run()
    except KeyboardInterrupt:
        print("stopped")
    except StartError as error:
        print(f"failed: {error}")
"""


class Supervised:
    """A supervisor of two idle workers.

    In `environment`, SLOW is the duration of a start, HANGING the time a worker may be silent, both in seconds.
    """

    def __init__(self, folder: Path, kind: str = "well", **environment: str) -> None:
        self._marks = folder / "marks"
        self._marks.mkdir()
        self._kind = folder / "kind"
        self.behave(kind)
        script = folder / "supervised.py"
        script.write_text(SCRIPT)
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, script],
                env=os.environ
                | {"MARKS": str(self._marks), "KIND": str(self._kind), "PYTHONPATH": "."}
                | environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def behave(self, kind: str) -> None:
        """Set the kind of new workers: well, fails, stubborn."""
        self._kind.write_text(kind)

    @property
    def log(self) -> str:
        """The supervisor's log so far."""
        return self._log.read_text()

    def workers(self) -> list[int]:
        """The process ids of the workers that have begun and live."""
        found = [int(path.name) for path in self._marks.iterdir() if path.suffix == ""]
        return sorted(pid for pid in found if not gone(pid))

    def await_workers(self, *without: int) -> list[int]:
        """Wait until every place has a worker that is not one of these."""
        found: list[int] = []

        def are_there() -> bool:
            found[:] = self.workers()  # looked at once: what is returned is what was waited for
            return len(found) == PLACES and not set(found) & set(without)

        until(are_there, "the workers are there")
        return found

    def hang(self, pid: int) -> None:
        """Stop a worker's signs of life."""
        (self._marks / f"{pid}.hang").touch()

    def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Stop the supervisor, and return its output."""
        self.process.send_signal(number)
        printed, _ = self.process.communicate(timeout=PATIENCE)
        return printed


@contextmanager
def supervised(folder: Path, kind: str = "well", **environment: str) -> Iterator[Supervised]:
    """A supervisor that is stopped at the end."""
    supervised = Supervised(folder, kind, **environment)
    try:
        yield supervised
    finally:
        if supervised.process.poll() is None:
            os.killpg(supervised.process.pid, signal.SIGKILL)
        for pid in supervised.workers():
            os.kill(pid, signal.SIGKILL)
        supervised.process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_all(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C both stop the workers; the command sees either as a Ctrl-C."""
    with supervised(tmp_path) as service:
        service.await_workers()
        assert service.end(number) == "stopped\n"
        assert (service.workers(), service.log) == ([], "")


def test_a_worker_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    """A worker that does not stop in time is killed, and one line says so."""
    with supervised(tmp_path) as service:
        before = service.await_workers()
        service.behave("stubborn")
        os.kill(before[0], signal.SIGKILL)
        new = (set(service.await_workers(before[0])) - set(before)).pop()
        assert service.end() == "stopped\n"
        assert service.log.splitlines()[1:] == [f"worker [{new}] did not stop in time, and was killed"]
        assert service.workers() == []


def test_a_dead_worker_is_replaced(tmp_path: Path) -> None:
    """A dead worker is replaced at once, with one line in the log."""
    with supervised(tmp_path) as service:
        one, two = service.await_workers()
        os.kill(one, signal.SIGKILL)
        assert two in service.await_workers(one)
        assert service.log == f"worker [{one}] ended with status -9; another one starts in 0 seconds\n"


def test_a_hanging_worker_is_replaced(tmp_path: Path) -> None:
    """A worker without signs of life is killed and replaced, with one line in the log."""
    with supervised(tmp_path, HANGING="1") as service:
        one, two = service.await_workers()
        service.hang(one)
        assert two in service.await_workers(one)
        [line] = service.log.splitlines()
        assert line.startswith(f"worker [{one}] gave no sign of life for 1 seconds, and was killed")


def test_a_slow_start_is_no_fault(tmp_path: Path) -> None:
    """A worker may take longer to start than a worker may hang."""
    with supervised(tmp_path, SLOW="2.5", HANGING="2") as service:
        workers = service.await_workers()
        time.sleep(1)
        assert (service.workers(), service.log) == (workers, "")


def test_a_service_that_cannot_start_ends(tmp_path: Path) -> None:
    """If a first worker fails, all workers are stopped, and the error names the failed one."""
    with supervised(tmp_path, "fails") as service:
        printed, _ = service.process.communicate(timeout=PATIENCE)
    assert re.fullmatch(
        r"failed: worker \[\d+\] ended with status 3 before it was ready; the log says why\n", printed
    )


def test_a_successor_that_cannot_start_is_tried_again(tmp_path: Path) -> None:
    """A failing replacement is retried at growing intervals; the others serve until it starts."""
    with supervised(tmp_path) as service:
        one, two = service.await_workers()
        service.behave("fails")
        os.kill(one, signal.SIGKILL)
        until(lambda: len(re.findall("ended with status 3", service.log)) >= 2, "it is tried twice")
        assert service.workers() == [two]
        service.behave("well")
        assert two in service.await_workers(one)


def test_a_restart_goes_on_to_the_first_failure(tmp_path: Path) -> None:
    """SIGHUP replaces all workers; if a new worker fails, its predecessor and the later workers stay."""
    with supervised(tmp_path) as service:
        before = service.await_workers()
        service.process.send_signal(signal.SIGHUP)
        now = service.await_workers(*before)
        assert service.log == ""
        service.behave("fails")
        service.process.send_signal(signal.SIGHUP)
        until(lambda: "and aborting the restart" in service.log, "it is given up")
        assert service.workers() == now
        assert len(service.log.splitlines()) == 1
