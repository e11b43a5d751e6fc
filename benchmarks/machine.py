"""The machine of the benchmark: its PostgreSQL, its child processes, and their memory.

The processes listen on the loopback interface or a Unix socket, and have ended when `Machine.close` returns.
"""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import asyncpg

from app.embedded.postgres import EmbeddedPostgres

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT = 60.0  # seconds until a service answers
STOP_TIMEOUT = 20.0  # seconds for a child to end by itself
REST = 0.5  # seconds; a process that uses the processor for at most RESTING seconds in this time is idle
TICKS = os.sysconf("SC_CLK_TCK")  # a second (proc(5))
RESTING = 1.5 / TICKS
STATEMENT_TIMEOUT = 1800.0  # seconds: the largest table takes minutes to load

# The same for everybody who is measured. Every commit waits for the disk; checkpoints and vacuum are run by hand,
# before each part, so that they fall into nobody's round.
PARAMETERS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "maintenance_work_mem": "512MB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "max_connections": "300",
}
MUST_BE_ON = ("fsync", "synchronous_commit", "full_page_writes")


class BenchmarkError(Exception):
    """A program is missing, did not start, or gave a wrong answer."""


class Child:
    """A process and its children, in a session of its own, so that only the benchmark itself gets Ctrl-C."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PQS_", "PG"))}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env=inherited | environment,
                start_new_session=True,
            )

    def answers(self, port: int, path: str) -> None:
        """Wait until `path` answers 200. Raises BenchmarkError if the process ends or never answers."""
        end = time.monotonic() + START_TIMEOUT
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise BenchmarkError(f"{self._log.stem} ended at its start:\n{self._tail()}")
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=START_TIMEOUT) as client:
                client.sendall(request)
                if client.recv(64).startswith(b"HTTP/1.1 200"):
                    return
            time.sleep(0.005)
        raise BenchmarkError(f"{self._log.stem} does not answer {path}:\n{self._tail()}")

    def rest(self) -> None:
        """Wait until all its processes are idle: some may still be starting when the first one answers."""
        end = time.monotonic() + START_TIMEOUT
        worked = -1.0
        while time.monotonic() < end:
            before, worked = worked, self.worked()
            if worked <= before + RESTING:
                return
            time.sleep(REST)

    def worked(self) -> float:
        """Seconds of processor time used by the processes of its session."""
        return sum(each.seconds for each in processes().values() if each.session == self.process.pid)

    def pids(self) -> list[int]:
        """The processes of its session."""
        return [pid for pid, each in processes().items() if each.session == self.process.pid]

    def workers(self) -> list[int]:
        """The serving processes: the children of the first process, or the process itself."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return found or [self.process.pid]

    def stop(self) -> None:
        """End the process, and every process that it left in its session."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-10:])


class Machine:
    """A temporary folder, a PostgreSQL in it, and the children that are running."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="pqs-bench-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self._children: list[Child] = []
        self._postgres = EmbeddedPostgres(self.folder / "data", parameters=PARAMETERS)
        self._url = ""

    def start(self) -> None:
        """Start PostgreSQL, and check that its commits are durable."""
        self._url = self._postgres.start()
        for name in MUST_BE_ON:
            if (value := self.ask("postgres", f"SHOW {name}")) != "on":
                raise BenchmarkError(f"{name} is {value}; it must be on")

    def close(self) -> None:
        """Stop everything and remove the folder."""
        for child in self._children:
            child.stop()
        self._postgres.stop()
        self._temporary.cleanup()

    def url(self, database: str) -> str:
        """The libpq address of a database on the server."""
        return urlsplit(self._url)._replace(path=f"/{database}").geturl()

    @property
    def socket_dir(self) -> str:
        """The directory of the server's Unix socket."""
        return parse_qs(urlsplit(self._url).query)["host"][0]

    def ask(self, database: str, query: str, *arguments: object) -> object:
        """Run one statement; returns the first value of its first row."""
        return asyncio.run(self._ask(self.url(database), query, arguments))

    @staticmethod
    async def _ask(url: str, query: str, arguments: tuple[object, ...]) -> object:
        connection = await asyncpg.connect(url, timeout=START_TIMEOUT)
        try:
            return await connection.fetchval(query, *arguments, timeout=STATEMENT_TIMEOUT)
        finally:
            await connection.close(timeout=START_TIMEOUT)

    def postgres_pids(self) -> list[int]:
        """The processes of the server, the one that started the others first."""
        first = int((self.folder / "data" / "postgres" / "postmaster.pid").read_text().split()[0])
        return [first, *(pid for pid, each in processes().items() if each.parent == first)]

    def postgres_worked(self) -> float:
        """Seconds of processor time used by the server's processes, those that have ended included."""
        first, *others = self.postgres_pids()
        running = processes()
        working = (running[pid].seconds for pid in (first, *others) if pid in running)
        return sum(working) + running[first].of_children

    def rest(self, database: str) -> None:
        """Vacuum a database, so that earlier measurements do not slow down later ones."""
        self.ask(database, "VACUUM (ANALYZE)")
        self.ask(database, "CHECKPOINT")

    def spawn(self, name: str, command: Sequence[str | Path], **environment: str) -> Child:
        """Start a child. It is stopped at the latest when the machine is closed."""
        child = Child(command, self.folder / f"{name}.log", environment)
        self._children.append(child)
        return child

    def run(self, command: Sequence[str | Path], *, timeout: float, **environment: str) -> str:
        """Run a program to its end; returns its output. Raises BenchmarkError if it fails."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PQS_", "PG"))}
        try:
            done = subprocess.run(
                [str(part) for part in command],
                capture_output=True,
                text=True,
                timeout=timeout,
                cwd=ROOT,
                env=inherited | environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{command[0]} took longer than {timeout:.0f} s") from None
        if done.returncode != 0:
            raise BenchmarkError(f"{' '.join(str(part) for part in command)}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def pqs(self, *arguments: str, database: str) -> str:
        """Run a `pqs` command on a database."""
        command = [sys.executable, "-m", "app", *arguments]
        return self.run(command, timeout=STATEMENT_TIMEOUT, PQS_DATABASE_URL=self.url(database))


class Process(NamedTuple):
    """What proc(5) says about a process: its parent, its session, and seconds of processor time."""

    parent: int
    session: int
    seconds: float
    of_children: float  # the ones that have ended


def processes() -> dict[int, Process]:
    """All processes by their ids."""
    found: dict[int, Process] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = [int(field) for field in path.read_text().rpartition(")")[2].split()[1:15]]  # from the fourth on
            used, of_children = sum(fields[10:12]) / TICKS, sum(fields[12:14]) / TICKS
            found[int(path.parent.name)] = Process(fields[0], fields[2], used, of_children)
    return found


def free_port() -> int:
    """A free loopback port, outside the kernel's range of ports for outgoing connections."""
    while True:
        port = random.randrange(12_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def resident(pid: int, *, peak: bool = False) -> int:
    """Bytes of memory that a process holds now, or its peak since `reset_peak`."""
    name = "VmHWM:" if peak else "VmRSS:"
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(name)[2].split()[0]) * 1024


def reset_peak(pid: int) -> None:
    """Restart the count of a process's peak memory (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
