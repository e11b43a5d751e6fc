"""The commands of `pqs` as processes that are killed, stopped, continued and started again, always at one address."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx

from tests.edge.programs import free_port
from tests.faults.launcher import Launcher
from tests.processes import command_lines, environment

PATIENCE = 60.0  # seconds for a process to be at work
POLL = 0.02  # seconds
STOPS_WITHIN = 20.0  # seconds after SIGTERM


class Program:
    """One `pqs` command in a process group of its own; its log is a file that is appended to at each start."""

    def __init__(
        self, launcher: Launcher, folder: Path, name: str, *arguments: object, settings: Mapping[str, object]
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.environment = environment(**settings) | {"TMPDIR": str(folder)}
        self.pid: int | None = None  # of the first process of the group
        self._launcher = launcher
        self._arguments = [str(each) for each in arguments]

    def start(self, *options: str) -> None:
        """Start it, with more options once, and wait until it is at work as far as that can be seen."""
        self.pid = self._launcher.start([*self._arguments, *options], self.environment, self.log)
        self.await_work()

    def await_work(self) -> None:
        """Wait until it is at work: a worker is so at once."""

    def runs(self) -> bool:
        """Whether it has not ended."""
        if self.pid is None:
            return False
        with suppress(FileNotFoundError):
            return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group, which exists until `await_end`."""
        assert self.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """End the whole group by SIGKILL."""
        if self.pid is not None:
            self.signal(signal.SIGKILL)
            self._launcher.wait(self.pid)
            with suppress(ProcessLookupError):
                while True:  # its workers end a moment later, and hold its port until then
                    os.killpg(self.pid, 0)
                    time.sleep(POLL)
            self.pid = None

    def stop(self) -> None:
        """End it as an operator does; by force if it takes too long."""
        if self.pid is None:
            return
        self.signal(signal.SIGCONT)
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        end = time.monotonic() + STOPS_WITHIN
        while self.runs() and time.monotonic() < end:
            time.sleep(POLL)
        self.kill()

    def resident(self) -> int:
        """The resident memory of the group's processes, in bytes."""
        listing = ["ps", "-o", "rss=", "--sid", str(self.pid)]
        done = subprocess.run(listing, check=False, capture_output=True, text=True)
        return sum(int(line) for line in done.stdout.split()) * 1024


class Serving(Program):
    """`pqs serve` at one port."""

    def __init__(
        self, launcher: Launcher, folder: Path, name: str, *arguments: object, settings: Mapping[str, object]
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(launcher, folder, name, "serve", "--port", self.port, *arguments, settings=settings)

    def await_work(self) -> None:
        """Wait until it accepts connections."""
        end = time.monotonic() + PATIENCE
        while True:
            assert self.runs(), self.log.read_text()[-4000:]
            assert time.monotonic() < end, f"{self.name} does not listen"
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            time.sleep(POLL)

    def await_readiness(self) -> None:
        """Wait until it answers, which a service whose workers still start does not."""
        end = time.monotonic() + PATIENCE
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=PATIENCE).status_code == 200:
                    return
            assert time.monotonic() < end, f"{self.name} is not ready"
            time.sleep(POLL)

    def workers(self) -> list[int]:
        """The ids of its worker processes, if it has any."""
        processes = [line.split(maxsplit=2) for line in command_lines()]
        return [int(pid) for pid, parent, *args in processes if int(parent) == self.pid and "spawn_main" in str(args)]
