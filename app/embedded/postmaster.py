"""A PostgreSQL server that runs, or ran: what its postmaster.pid says, and whether that is still so."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote


class PidFile(NamedTuple):
    """What PostgreSQL writes into postmaster.pid."""

    pid: int
    port: int
    socket_dir: str
    ready: bool

    @classmethod
    def read(cls, pgdata: Path) -> "PidFile | None":
        """What stands there, or None when there is nothing, or not yet enough."""
        try:
            lines = (pgdata / "postmaster.pid").read_text().splitlines()
            return cls(int(lines[0]), int(lines[3]), lines[4], len(lines) > 7 and lines[7].strip() == "ready")
        except (FileNotFoundError, NotADirectoryError, IndexError, ValueError):
            return None

    @property
    def url(self) -> str:
        """A libpq URI. The port stands in it, so that a PGPORT in a client's environment changes nothing."""
        return f"postgresql://postgres@/postgres?host={quote(self.socket_dir, safe='')}&port={self.port}"


def running(pgdata: Path) -> PidFile | None:
    """The server of `pgdata`, or None when none is there."""
    server = PidFile.read(pgdata)
    return server if server is not None and is_postmaster(server.pid, pgdata, server) else None


def is_postmaster(pid: int, pgdata: Path, server: PidFile | None = None) -> bool:
    """Whether `pid` is the PostgreSQL of `pgdata`: no zombie, and no other process that got the number since.

    Where there is no /proc to ask, it is when it is alive and, given `server`, takes connections.
    """
    if not Path("/proc/self/cmdline").exists():
        return is_alive(pid) and (server is None or _takes_connections(server))
    try:
        program, *arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    if Path(os.fsdecode(program)).name != "postgres":
        return False
    with suppress(OSError):  # where tracing is not allowed, this is closed
        return Path(f"/proc/{pid}/cwd").samefile(pgdata)
    with suppress(OSError, ValueError):
        return Path(os.fsdecode(arguments[arguments.index(b"-D") + 1])).samefile(pgdata)
    return False


def is_alive(pid: int) -> bool:
    """Whether there is a process of that number, ours or not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _takes_connections(server: PidFile) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(f"{server.socket_dir}/.s.PGSQL.{server.port}")
        except OSError:
            return False
    return True
