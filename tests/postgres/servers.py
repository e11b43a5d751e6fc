"""Real servers for tests: PostgreSQL 15 with replicas, PgBouncer and HAProxy, on loopback, each with its own folder.

They are Debian's packages; a test without its server is skipped and names it. PostgreSQL and PgBouncer refuse to run
as root, so under root they run as the user `postgres`.
"""

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Self

import asyncpg
import httpx
import pytest

from tests.edge.programs import free_port, program

BINARIES = Path("/usr/lib/postgresql/15/bin")
PATIENCE = 60.0  # seconds; only a test that fails waits that long
POLL = 0.05  # seconds
BACK_WITHIN = 2.0  # seconds, of the database being back
PARAMETERS = {"fsync": "off", "max_connections": "100", "shared_buffers": "32MB", "unix_socket_directories": ""}
OWNER = "postgres"


def _account() -> dict[str, int]:
    """The account of the servers, as arguments for subprocess.Popen."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(OWNER)
    return {"user": entry.pw_uid, "group": entry.pw_gid}


def give(path: Path) -> None:
    """Give a folder or file to the servers' account."""
    if account := _account():
        os.chown(path, account["user"], account["group"])


@contextmanager
def servers_folder() -> Iterator[Path]:
    """A folder that the servers can enter."""
    folder = Path(tempfile.mkdtemp(prefix="pqs-servers-"))
    folder.chmod(0o755)
    give(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Postgres:
    """A PostgreSQL 15: started, stopped, killed, copied and promoted."""

    def __init__(self, folder: Path, name: str = "primary") -> None:
        self.folder, self.port = folder / name, free_port()
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def new(cls, folder: Path, name: str = "primary", *options: str) -> Self:
        """A new, running cluster; `options` are those of initdb."""
        if not BINARIES.is_dir():
            pytest.skip("PostgreSQL 15 is not installed (the package postgresql-15)")
        self = cls(folder, name)
        self._run("initdb", "--pgdata", self.folder, "--username", OWNER, "--auth=trust", "--no-sync", *options)
        with (self.folder / "postgresql.conf").open("a") as file:
            file.writelines(f"{key} = '{value}'\n" for key, value in PARAMETERS.items())
        with (self.folder / "pg_hba.conf").open("a") as file:
            file.write("host replication all 127.0.0.1/32 trust\n")
        self.start()
        return self

    def replica(self, name: str = "replica", *, synchronous: bool = False) -> "Postgres":
        """A running standby that follows this server."""
        copy = Postgres(self.folder.parent, name)
        copy.follow(self)
        if synchronous:
            self.set("synchronous_standby_names", "*")
        return copy

    def follow(self, primary: "Postgres") -> None:
        """Become a running standby of another server, with a new copy of its data. The server must be down."""
        shutil.rmtree(self.folder, ignore_errors=True)
        address = ("--host=127.0.0.1", f"--port={primary.port}", "--username", OWNER)
        self._run(
            "pg_basebackup", *address, "--pgdata", self.folder, "--write-recovery-conf", "--no-sync", "-c", "fast"
        )
        self.start()

    def url(self, database: str = OWNER, *, role: str = OWNER, port: int | None = None) -> str:
        """The address of a database on this server; `port` is that of a proxy in front."""
        return f"postgresql://{role}@127.0.0.1:{port or self.port}/{database}"

    def start(self, *, await_answer: bool = True) -> None:
        """Start the server at the same address."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [BINARIES / "postgres", "-D", self.folder, "-p", str(self.port), "-c", "listen_addresses=127.0.0.1"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                **_account(),  # type: ignore[call-overload]  # user and group
            )
        end = time.monotonic() + PATIENCE
        while await_answer and not self.answers():
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end
            time.sleep(POLL)

    def runs(self) -> bool:
        """Whether its first process has not ended."""
        return self._process is not None and self._process.poll() is None

    def processes(self) -> list[int]:
        """The ids of its processes, the first one's at the front."""
        assert self._process is not None
        listing = ["ps", "-o", "pid=", "--ppid", str(self._process.pid)]
        found = subprocess.run(listing, check=False, capture_output=True, text=True).stdout.split()
        return [self._process.pid, *map(int, found)]

    def answers(self) -> bool:
        """Whether the server accepts connections now."""
        return self._run("pg_isready", "--host=127.0.0.1", f"--port={self.port}", check=False).returncode == 0

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT disconnects the sessions, SIGQUIT is a crash."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE)

    def promote(self) -> None:
        """Make a standby the primary, and wait until it is."""
        self._run("pg_ctl", "promote", "--pgdata", self.folder, "--wait")

    def set(self, name: str, value: str) -> None:
        """Change a setting of the server, and reload it."""
        with (self.folder / "postgresql.auto.conf").open("a") as file:
            file.write(f"{name} = '{value}'\n")
        self._run("pg_ctl", "reload", "--pgdata", self.folder)

    def sql(self, statement: str, database: str = OWNER) -> str:
        """Run a statement; returns its output."""
        done = self._run("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement, self.url(database))
        return done.stdout.decode().strip()

    def _run(self, name: str, *arguments: object, check: bool = True) -> "subprocess.CompletedProcess[bytes]":
        done: subprocess.CompletedProcess[bytes] = subprocess.run(
            [BINARIES / name, *map(str, arguments)],
            capture_output=True,
            check=False,
            cwd="/",
            timeout=PATIENCE,
            **_account(),  # type: ignore[call-overload]  # user and group
        )
        assert not check or done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        return done


async def fetch(url: str, statement: str) -> list[asyncpg.Record]:
    """The rows of a statement."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(statement)
    finally:
        await connection.close()


@contextmanager
def _in_foreground(command: list[object], port: int, log: Path, **options: object) -> Iterator[None]:
    """Run a program that listens on a port within this context."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            **options,  # type: ignore[call-overload]  # user and group
        )
    with process:
        try:
            end = time.monotonic() + PATIENCE
            while True:
                with suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end
                time.sleep(POLL)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def pgbouncer(folder: Path, postgres: Postgres, mode: str, *, size: int = 20) -> Iterator[int]:
    """The port of a PgBouncer in this pool mode, with its defaults except for the pools' size."""
    path, port = program("pgbouncer"), free_port()
    configuration, users = folder / "pgbouncer.ini", folder / "users.txt"
    users.write_text(f'"{OWNER}" ""\n')
    configuration.write_text(
        f"[databases]\n* = host=127.0.0.1 port={postgres.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nauth_type = trust\nauth_file = {users}\npool_mode = {mode}\nunix_socket_dir =\n"
        f"default_pool_size = {size}\nlogfile =\npidfile =\n"
    )
    with _in_foreground([path, configuration], port, folder / "pgbouncer.log", **_account()):
        yield port


@contextmanager
def haproxy(folder: Path, *servers: Postgres) -> Iterator[int]:
    """The port of an HAProxy that forwards to the first of these servers that listens."""
    path, port = program("haproxy"), free_port()
    configuration = folder / "haproxy.cfg"
    lines = [
        f"  server s{number} 127.0.0.1:{server.port} check inter 200ms fall 1 rise 1 on-marked-down shutdown-sessions"
        + (" backup" if number else "")
        for number, server in enumerate(servers)
    ]
    configuration.write_text(
        "defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1h\n  timeout server 1h\n"
        f"listen postgres\n  bind 127.0.0.1:{port}\n" + "\n".join(lines) + "\n"
    )
    with _in_foreground([path, "-db", "-f", configuration], port, folder / "haproxy.log"):
        yield port


# --- Load ----------------------------------------------------------------------------------------------------------


Ask = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]


class Load:
    """Requests at a steady pace, one task for each kind, and the time at which each kind was last refused."""

    def __init__(self) -> None:
        self.statuses: dict[str, list[tuple[float, int]]] = {}

    def first_success_after(self, moment: float) -> dict[str, float]:
        """Seconds from this moment until each kind is answered, and always answered after that."""
        found = {}
        for kind, seen in self.statuses.items():
            bad = max((at for at, status in seen if status >= 500 and at > moment), default=moment)
            after = [at for at, status in seen if at > bad and status < 500]
            assert after, f"{kind} is not answered again"
            found[kind] = after[0] - moment
        return found


@asynccontextmanager
async def loaded(url: str, ask: Mapping[str, Ask], *, pace: float) -> AsyncIterator[Load]:
    """Send requests of each kind within this context, `pace` a second."""
    load, stop = Load(), asyncio.Event()

    async def go_on(kind: str, client: httpx.AsyncClient) -> None:
        seen = load.statuses.setdefault(kind, [])
        while not stop.is_set():
            began = time.monotonic()
            answer = await ask[kind](client)
            seen.append((time.monotonic(), answer.status_code))
            await asyncio.sleep(max(0.0, began + 1 / pace - time.monotonic()))

    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        tasks = [asyncio.create_task(go_on(kind, client)) for kind in ask]
        try:
            yield load
        finally:
            stop.set()
            await asyncio.gather(*tasks)
