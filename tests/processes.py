"""The `pqs` command and the service in processes of their own. Every wait is bounded."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from app.settings import PREFIX

COMMAND = (sys.executable, "-m", "app")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PATIENCE = 40.0  # seconds until something that must happen counts as not happening
POLL = 0.05  # seconds
LOGGED = re.compile(r'"event": "serving", .*"message": "serving on (https?://[^"]+)"')
ANNOUNCED = re.compile(r"serving on (https?://\S+), docs on (\S+)\n(?:.*\n)*.*/v1/state-counts\S*\n")


def environment(**settings: object) -> dict[str, str]:
    """This process's environment with exactly these settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return own | {PREFIX + name.upper(): str(value) for name, value in settings.items()}


def pqs(*arguments: object, **settings: object) -> "subprocess.CompletedProcess[str]":
    """Run the `pqs` command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(**settings),
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE,
    )


def refusal(run: "subprocess.CompletedProcess[str]") -> str:
    """The one line printed by a command that could not start."""
    assert run.returncode == 1, run
    lines = run.stderr.splitlines()
    [line] = [line for line in lines if line.startswith("pqs: ")]
    assert lines[-1] == line, run  # lines of the log may stand before it
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    return line


def until(condition: Callable[[], object], what: str, *, poll: float = POLL) -> None:
    """Wait until the condition holds; `what` names it in the failure."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(poll)


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie counts as ended."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], check=False, capture_output=True, text=True)
    return state.stdout.strip()[:1] in {"", "Z"}


def command_lines() -> list[str]:
    """Every process: its id, its parent's id, and its command line."""
    listing = ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="]
    return subprocess.run(listing, check=True, capture_output=True, text=True).stdout.splitlines()


def postgres_pid(data_dir: Path) -> int:
    """The process id of the PostgreSQL that runs in a data directory."""
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])


class Service:
    """`pqs serve` on a port of its own, in a process group of its own, as a terminal starts it.

    Its temporary files are in `folder/tmp`, its log is `folder/serve-<n>.log`.
    """

    def __init__(self, folder: Path, *arguments: object, **settings: object) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self._log = folder / f"serve-{len(list(folder.glob('serve-*.log')))}.log"
        self.given = settings
        self.printed = ""
        self.url = ""
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--port", "0", *map(str, arguments)],
                env=environment(**settings) | {"TMPDIR": str(self.temporary)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The id of the process that was started."""
        return self.process.pid

    @property
    def log(self) -> str:
        """The service's log so far."""
        return self._log.read_text()

    def await_announcement(self) -> None:
        """Wait until the service prints its address, or logs it."""
        assert self.process.stdout is not None
        if self.given.get("log_format") == "json":  # then nothing is printed
            until(lambda: LOGGED.search(self.log) or self.process.poll() is not None, "it says where it serves")
            logged = LOGGED.search(self.log)
            assert logged, f"the service did not start:\n{self.log}"
            self.url = logged[1]
            return
        end = time.monotonic() + PATIENCE
        while (announced := ANNOUNCED.search(self.printed)) is None:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            piece = os.read(self.process.stdout.fileno(), 65_536) if ready else b""
            assert piece, f"the service did not start:\n{self.printed}{self.log}"
            self.printed += piece.decode()
        self.url = announced[1]

    def client(self) -> httpx.Client:
        """A client of the service."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE)

    def workers(self) -> list[int]:
        """The ids of its worker processes."""
        processes = [line.split(maxsplit=2) for line in command_lines()]
        return [int(pid) for pid, parent, *args in processes if int(parent) == self.pid and "spawn_main" in str(args)]

    def await_workers(self, count: int, *, without: int | None = None) -> list[int]:
        """Wait until this many workers answer, none of them the named one; returns their ids."""
        found: list[int] = []

        def are_there() -> bool:
            found[:] = self.workers()
            answering = [pid for pid in found if list(self.temporary.glob(f"pqs-metrics-*/counter_{pid}.db"))]
            return len(answering) == count and without not in found

        until(are_there, f"{count} workers answer", poll=0.2)
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the service's first process only, as a supervisor does."""
        self.process.send_signal(number)

    def press_ctrl_c(self) -> None:
        """Interrupt the whole process group, as a terminal does."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGINT)

    def await_end(self) -> int:
        """Wait until the service has ended; returns its exit status."""
        rest, _ = self.process.communicate(timeout=PATIENCE)
        self.printed += rest.decode()
        return self.process.returncode

    def is_alone(self) -> bool:
        """Whether no process of the service's group is left."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False


@contextmanager
def serving(folder: Path, *arguments: object, **settings: object) -> Iterator[Service]:
    """A service that accepts requests; it is stopped at the end unless it has ended."""
    with starting(folder, *arguments, **settings) as service:
        service.await_announcement()
        yield service


@contextmanager
def starting(folder: Path, *arguments: object, **settings: object) -> Iterator[Service]:
    """A service that has been started and not yet awaited."""
    service = Service(folder, *arguments, **settings)
    with service.process:
        try:
            yield service
        finally:
            if service.process.poll() is None:
                service.signal(signal.SIGTERM)
            try:
                service.process.communicate(timeout=PATIENCE)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(service.pid, signal.SIGKILL)
