"""Two PostgreSQL servers of a campaign: a primary with a synchronous standby, on a small disk, behind a proxy."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.proxy import Proxy
from tests.postgres.servers import PATIENCE, Postgres, give, servers_folder

DATABASE, ROLE, SUPERUSER = "pqs", "service", "postgres"
DISK = "2g"  # of both servers
PAGE = 4096  # bytes
POLL = 0.02  # seconds
SETTINGS = {
    "wal_retrieve_retry_interval": "100ms",
    "max_wal_size": "256MB",
    "min_wal_size": "64MB",
    "wal_sender_timeout": "5s",
    "log_min_messages": "fatal",
    "autovacuum_naptime": "5s",
}
WRITE = "CREATE TABLE IF NOT EXISTS written (at timestamptz); INSERT INTO written SELECT now()"
IN_STEP = (
    "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum')"
    " AND flush_lsn >= '{}'::pg_lsn"
)


class Cluster:
    """The servers, and what an operator does with them."""

    def __init__(self, folder: Path, disk: Path | None, primary: Postgres) -> None:
        self.primary, self.standby = primary, Postgres(folder, "other")
        self._disk = disk
        for name, value in SETTINGS.items():
            primary.set(name, value)
        self.standby.follow(primary)
        primary.set("synchronous_standby_names", "*")
        self.proxy = Proxy(primary.port, self.standby.port)

    def url(self, role: str = ROLE) -> str:
        """The address of whichever server is the primary, through the proxy."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.proxy.ports.values())
        return f"postgresql://{role}@{hosts}/{DATABASE}?target_session_attrs=read-write"

    def sql(self, statement: str) -> str:
        """Run a statement on the primary, as a superuser; returns its output."""
        return self.primary.sql(statement, DATABASE)

    def backends(self) -> list[int]:
        """The ids of the processes that serve the service's sessions."""
        found = self.sql(f"SELECT pid FROM pg_stat_activity WHERE usename = '{ROLE}'")
        return [int(pid) for pid in found.splitlines()]

    def disconnect(self) -> None:
        """End all sessions of the service."""
        self.sql(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{ROLE}'")

    def start(self, server: Postgres) -> None:
        """Start a server that has ended, and wait until it answers. The processes of a killed one end later."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                server.start()
            except AssertionError:
                if time.monotonic() > end:
                    raise
                time.sleep(POLL)
            else:
                return

    def kill(self, server: Postgres) -> None:
        """kill -9 of a server's first process; the others notice."""
        server.stop(signal.SIGKILL)

    def lose(self, server: Postgres) -> None:
        """kill -9 of all processes of a server, as if its machine were gone."""
        pids = server.processes()
        self.kill(server)
        for pid in pids:
            with suppress(FileNotFoundError, ProcessLookupError):
                if b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    def revive(self) -> None:
        """Wait until both servers answer, and start one that has ended."""
        for server in (self.primary, self.standby):
            while not server.answers():
                if not server.runs():
                    self.start(server)
                time.sleep(POLL)

    def await_writes(self) -> float:
        """Wait until a commit succeeds, with both servers up; returns that moment."""
        self.revive()
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.primary.sql(WRITE)
            except AssertionError:
                if time.monotonic() > end:
                    raise
                time.sleep(POLL)
            else:
                return time.monotonic()

    def await_step(self) -> None:
        """Wait until the standby has everything that the primary has acknowledged, and goes on to get it."""
        self.revive()
        position = self.sql("SELECT pg_current_wal_lsn()")
        end = time.monotonic() + PATIENCE
        while self.sql(IN_STEP.format(position)) != "1":
            assert time.monotonic() < end, self.sql("SELECT * FROM pg_stat_replication")
            time.sleep(POLL)

    def fail_over(self) -> float:
        """Lose the primary and promote the standby; returns when that took writes. The lost one follows it then."""
        self.await_step()
        lost, new = self.primary, self.standby
        self.lose(lost)
        new.set("synchronous_standby_names", "")  # else it would wait for a standby that is not there yet
        new.promote()
        new.sql(WRITE)
        back = time.monotonic()
        self.primary, self.standby = new, lost
        lost.follow(new)
        new.set("synchronous_standby_names", "*")
        time.sleep(0.3)  # until each session has read that
        self.await_step()
        return back

    def pause(self, seconds: float) -> None:
        """Stop all processes of the primary for a while."""
        stopped = self.primary.processes()
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            if number is signal.SIGSTOP:
                time.sleep(seconds)

    @property
    def has_small_disk(self) -> bool:
        """Whether the disk can be filled."""
        return self._disk is not None

    def fill_disk(self, seconds: float) -> None:
        """Leave no room on the disk for a while."""
        assert self._disk is not None
        ballast = self._disk / "ballast"
        try:
            with ballast.open("wb") as file:
                size = 256 * 2**20  # others take room meanwhile: what does not fit is halved
                while size >= PAGE:
                    try:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
                    except OSError:
                        size //= 2
            time.sleep(seconds)
        finally:
            ballast.unlink()
        self.revive()

    def stop(self) -> None:
        """End both servers."""
        for server in (self.standby, self.primary):
            server.stop(signal.SIGQUIT)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system in memory below a folder; None where it cannot be mounted."""
    mounted = folder / "disk"
    mounted.mkdir()
    give(mounted)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0777", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        yield None
        return
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


@contextmanager
def clustered() -> Iterator[Cluster]:
    """A new cluster with an empty database, and a proxy in front."""
    with servers_folder() as folder, small_disk(folder) as disk:
        data = (disk or folder) / "data"
        data.mkdir()
        give(data)
        primary = Postgres.new(data)
        try:
            cluster = Cluster(data, disk, primary)
        except BaseException:
            primary.stop(signal.SIGQUIT)
            raise
        try:
            with cluster.proxy:
                yield cluster
        finally:
            cluster.stop()
