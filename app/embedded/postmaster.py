"""The postmaster.pid of a PostgreSQL server, and the check whether that server still runs."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote


class PidFile(NamedTuple):
    """The contents of postmaster.pid."""

    pid: int
    port: int
    socket_dir: str
    ready: bool

    @classmethod
    def read(cls, pgdata: Path) -> "PidFile | None":
        """The file's contents, or None if it is missing or incomplete."""
        try:
            lines = (pgdata / "postmaster.pid").read_text().splitlines()
            return cls(int(lines[0]), int(lines[3]), lines[4], len(lines) > 7 and lines[7].strip() == "ready")
        except (FileNotFoundError, NotADirectoryError, IndexError, ValueError):
            return None

    @property
    def url(self) -> str:
        """A libpq URI. It names the port, so that a PGPORT in a client's environment changes nothing."""
        return f"postgresql://postgres@/postgres?host={quote(self.socket_dir, safe='')}&port={self.port}"


def running(pgdata: Path) -> PidFile | None:
    """The running server of `pgdata`, or None."""
    server = PidFile.read(pgdata)
    return server if server is not None and is_postmaster(server.pid, pgdata, server) else None


def is_postmaster(pid: int, pgdata: Path, server: PidFile | None = None) -> bool:
    """Whether `pid` is the PostgreSQL of `pgdata`, and not a zombie or another process with a reused number.

    Without /proc, a process counts if it is alive and, given `server`, accepts connections.
    """
    if not Path("/proc/self/cmdline").exists():
        return is_alive(pid) and (server is None or _takes_connections(server))
    try:
        program, *arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    if Path(os.fsdecode(program)).name != "postgres":
        return False
    with suppress(OSError):  # readable only where tracing is allowed
        return Path(f"/proc/{pid}/cwd").samefile(pgdata)
    with suppress(OSError, ValueError):
        return Path(os.fsdecode(arguments[arguments.index(b"-D") + 1])).samefile(pgdata)
    return False


def is_alive(pid: int) -> bool:
    """Whether a process with this number exists, of any user."""
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
