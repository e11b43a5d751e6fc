"""The embedded PostgreSQL, started for real: directories, locks, kills and accounts."""

import importlib.util
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import asyncpg
import pytest

from app.embedded import postgres as embedded
from app.embedded import wheel
from app.embedded.account import Account
from app.embedded.postgres import EmbeddedPostgres, running_url
from app.embedded.socket_directory import SOCKET_PATH_LIMIT, TEMPORARY
from app.embedded.wheel import PACKAGE, binary
from app.errors import StartError

ROOT = Path(__file__).parents[2]
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts PostgreSQL as somebody else")
WITH_SETPRIV = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root with setpriv becomes somebody else"
)

HOLD = """
import sys, time
from pathlib import Path
from app.embedded.postgres import EmbeddedPostgres
print(EmbeddedPostgres(Path(sys.argv[1]), parameters={"fsync": "off"}, sync=False).start(), flush=True)
time.sleep(600)
"""
CYCLE = """
import os, sys
from pathlib import Path
from app.errors import StartError
from app.embedded.postgres import EmbeddedPostgres
try:
    with EmbeddedPostgres(Path(sys.argv[1]), parameters={"fsync": "off"}, sync=False) as url:
        print(url, os.geteuid(), Path(sys.argv[1], "postgres").stat().st_uid)
except StartError as error:
    print("StartError:", error)
"""


def quick(data_dir: Path) -> EmbeddedPostgres:
    """A PostgreSQL that does not wait for the disk to flush."""
    return EmbeddedPostgres(data_dir, parameters={"fsync": "off"}, sync=False)


def psql(url: str, statement: str) -> str:
    """The output of the wheel's psql."""
    command = [str(binary("psql")), "--no-psqlrc", "-At", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", statement]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def python(script: str, *arguments: str | Path) -> list[str]:
    """The command line of a script."""
    return [sys.executable, "-c", script, *map(str, arguments)]


def server_pid(data_dir: Path) -> int:
    """The process id of the PostgreSQL that runs in the directory."""
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie counts as ended."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], check=False, capture_output=True, text=True)
    return state.stdout.strip()[:1] in {"", "Z"}


def await_end(data_dir: Path) -> None:
    """Wait until the PostgreSQL in the directory accepts no more connections."""
    while running_url(data_dir) is not None:
        time.sleep(0.01)


class Hold(Protocol):
    """Start PostgreSQL in a directory from another process; returns that process and the address."""

    def __call__(self, data_dir: Path) -> "tuple[subprocess.Popen[str], str]": ...


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Processes that hold a directory; at the end they are killed, and what they leave behind is stopped."""
    with ExitStack() as stack:

        def clear(data_dir: Path) -> None:
            if running_url(data_dir) is not None:
                with quick(data_dir):
                    pass

        def start(data_dir: Path) -> "tuple[subprocess.Popen[str], str]":
            stack.callback(clear, data_dir)
            command = python(HOLD, data_dir)
            process = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            assert process.stdout is not None
            return process, process.stdout.readline().strip()

        yield start


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every account can enter, as every account can enter the wheel's."""
    nobody = pwd.getpwnam("nobody")
    account = Account(nobody.pw_uid, nobody.pw_gid)
    with tempfile.TemporaryDirectory(prefix="embedded-") as directory:
        Path(directory).chmod(0o755)
        needed = (*Path(directory).resolve().parents, *binary("postgres").resolve().parents)
        if not all(account.may_search(parent) for parent in needed):
            pytest.skip("the wheel, or the temporary directory, is below a closed directory")
        yield Path(directory)


async def test_new_directory_answers(tmp_path: Path) -> None:
    """A new directory, with its parents, becomes a PostgreSQL that asyncpg and psql can use."""
    data_dir = tmp_path / "deep" / "data"
    with quick(data_dir) as url:
        connection = await asyncpg.connect(url)
        try:
            assert await connection.fetchval("SELECT 1") == 1
        finally:
            await connection.close()
        assert psql(url, "SELECT current_user, current_database(), current_setting('data_checksums')") == (
            "postgres|postgres|on"
        )
        assert psql(url, "SHOW listen_addresses") == ""
        assert psql(url, "SELECT datlocprovider, datlocale, pg_encoding_to_char(encoding) FROM pg_database") == (
            "b|C.UTF-8|UTF8\nb|C.UTF-8|UTF8\nb|C.UTF-8|UTF8"
        )
        assert psql(url, "SHOW fsync") == "off"
        assert (data_dir / "run").stat().st_mode & 0o777 == 0o700


def test_data_survives_a_stop(tmp_path: Path) -> None:
    """Committed rows survive a stop and a start, also in a cluster that was flushed to disk."""
    postgres = EmbeddedPostgres(tmp_path)
    with postgres as url:
        psql(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        pid = server_pid(tmp_path)
    assert gone(pid)
    with postgres as url:
        assert psql(url, "SELECT answer FROM kept") == "42"


def test_running_url_and_stop_twice(tmp_path: Path) -> None:
    """The address is known only while PostgreSQL runs; a second stop does nothing."""
    assert running_url(tmp_path) is None
    postgres = quick(tmp_path)
    url = postgres.start()
    try:
        assert running_url(tmp_path) == url
        with pytest.raises(StartError, match="already"):
            postgres.start()
    finally:
        postgres.stop()
    assert running_url(tmp_path) is None
    postgres.stop()


def test_second_holder_is_refused(tmp_path: Path, hold: Hold) -> None:
    """A directory held by another process is refused with that process's id."""
    process, url = hold(tmp_path)
    with pytest.raises(StartError, match=rf"{tmp_path} is in use by process {process.pid}; .*PQS_DATA_DIR"):
        quick(tmp_path).start()
    assert psql(url, "SELECT 1") == "1"


def test_take_over_after_a_kill(tmp_path: Path, hold: Hold, caplog: pytest.LogCaptureFixture) -> None:
    """The PostgreSQL of a killed service runs on; the next holder takes it over unchanged, and stops it."""
    caplog.set_level(logging.INFO, logger=embedded.__name__)
    process, first_url = hold(tmp_path)
    psql(first_url, "CREATE TABLE kept AS SELECT 42 AS answer")
    pid = server_pid(tmp_path)
    process.kill()
    process.wait()
    assert running_url(tmp_path) == first_url
    with quick(tmp_path) as url:
        assert url == first_url
        assert server_pid(tmp_path) == pid
        assert psql(url, "SELECT answer FROM kept") == "42"
    assert f"taking over the PostgreSQL (pid {pid})" in caplog.text
    assert gone(pid)
    assert running_url(tmp_path) is None


def test_take_over_of_a_server_that_stops(tmp_path: Path, hold: Hold) -> None:
    """A PostgreSQL found shutting down is awaited, and then a new one is started."""
    process, first_url = hold(tmp_path)
    pid = server_pid(tmp_path)
    process.kill()
    process.wait()
    client = subprocess.Popen(
        [str(binary("psql")), "-d", first_url, "-c", "SELECT pg_sleep(600)"], stderr=subprocess.DEVNULL
    )
    with client:
        os.kill(pid, signal.SIGINT)
        await_end(tmp_path)  # it says that it stops, a moment before it has
        with quick(tmp_path) as url:
            assert server_pid(tmp_path) != pid
            assert psql(url, "SELECT 1") == "1"


def test_crash_of_the_server(tmp_path: Path) -> None:
    """After a kill -9 of PostgreSQL itself, the next start recovers all commits."""
    postgres = quick(tmp_path)
    with postgres as url:
        psql(url, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        os.kill(server_pid(tmp_path), signal.SIGKILL)
        await_end(tmp_path)
    with postgres as url:
        assert psql(url, "SELECT count(*) FROM kept") == "1000"


def test_number_of_a_dead_server_is_in_use(tmp_path: Path) -> None:
    """A start succeeds despite a stale postmaster.pid with the id of a live process (this one)."""
    with quick(tmp_path):
        stale = (tmp_path / "postgres" / "postmaster.pid").read_text().splitlines()
    (tmp_path / "postgres" / "postmaster.pid").write_text("\n".join([str(os.getpid()), *stale[1:], ""]))
    assert running_url(tmp_path) is None
    with quick(tmp_path) as url:
        assert psql(url, "SELECT 1") == "1"


@pytest.mark.parametrize("name", ["x" * 110, "a,b", "50% \"ü' &=?#"])
def test_awkward_paths(data_dir: Path, name: str) -> None:
    """A path too long for a socket, or with a comma, gets a short socket directory, removed with the server."""
    home = data_dir / name
    with quick(home) as url:
        assert psql(url, "SELECT 1") == "1"
        socket_dir = Path(psql(url, "SHOW unix_socket_directories").strip('"').replace('""', '"'))
        assert socket_dir.is_dir()
        temporary = socket_dir != home / "run"
        too_long = len(os.fsencode(home / "run" / ".s.PGSQL.5432")) > SOCKET_PATH_LIMIT
        assert temporary == (too_long or "," in name)
        assert not temporary or socket_dir.parent.name.startswith("pqs-")
    assert temporary != socket_dir.exists()
    assert not temporary or not socket_dir.parent.exists()


def test_temporary_socket_directory_of_a_crash(tmp_path: Path, hold: Hold) -> None:
    """The next start removes the short socket directory of a killed service and PostgreSQL."""
    data_dir = tmp_path / ("x" * 110)
    process, _ = hold(data_dir)
    old = Path((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[4])
    assert old.parent.parent == Path(tempfile.gettempdir())
    process.kill()
    process.wait()
    os.kill(server_pid(data_dir), signal.SIGKILL)
    await_end(data_dir)
    with quick(data_dir) as url:
        assert psql(url, "SELECT 1") == "1"
        assert not old.parent.exists()


def test_other_version_is_refused(tmp_path: Path) -> None:
    """A cluster of another major version is refused, with both versions named, and left unchanged."""
    pgdata = tmp_path / "postgres"
    pgdata.mkdir()
    (pgdata / "PG_VERSION").write_text("15\n")
    with pytest.raises(StartError, match=r"PostgreSQL 15, .*PostgreSQL 18 is installed; .*pg_upgrade.*PQS_DATA_DIR"):
        quick(tmp_path).start()
    assert [path.name for path in pgdata.iterdir()] == ["PG_VERSION"]


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    """A folder `postgres` that holds other files is not written to."""
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "notes.txt").touch()
    with pytest.raises(StartError, match="not a PostgreSQL cluster"):
        quick(tmp_path).start()


def test_directory_of_others_is_refused(tmp_path: Path) -> None:
    """A directory with foreign content does not become a data directory, and keeps its permissions."""
    tmp_path.chmod(0o755)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(StartError, match=r"holds other files, such as notes\.txt; set PQS_DATA_DIR"):
        quick(tmp_path).start()
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_data_directory_named_like_a_socket_directory() -> None:
    """A data directory in the temporary directory, named like our socket directories there, keeps its data."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as directory:
        postgres = quick(Path(directory))
        with postgres as url:
            psql(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        with postgres as url:
            assert psql(url, "SELECT answer FROM kept") == "42"


def test_file_in_place_of_the_directory(tmp_path: Path) -> None:
    """A data directory that is a file, or below one, is refused by name."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StartError, match=f"{file}.* not a directory"):
        quick(file).start()
    with pytest.raises(StartError, match=f"{file}.*Not a directory"):
        quick(file / "data").start()
    assert running_url(file) is None


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc takes no directories from anyone")
def test_directory_that_can_not_be_made() -> None:
    """If the directory cannot be made, the error names the path and the reason."""
    with pytest.raises(StartError, match=r"/proc/pqs.*No such file.*PQS_DATA_DIR"):
        quick(Path("/proc/pqs")).start()


def test_half_made_cluster_is_replaced(tmp_path: Path) -> None:
    """The leftovers of an interrupted initdb are removed."""
    left_over = tmp_path / "postgres.new"
    left_over.mkdir()
    (left_over / "PG_VERSION").write_text("18\n")
    with quick(tmp_path) as url:
        assert psql(url, "SELECT 1") == "1"
    assert not left_over.exists()


def test_kill_while_the_cluster_is_made(tmp_path: Path) -> None:
    """After a kill during initdb, the next start waits for initdb to end and begins again."""
    with subprocess.Popen(python(HOLD, tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not (tmp_path / "postgres.new" / "PG_VERSION").exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    with quick(tmp_path) as url:
        assert psql(url, "SELECT 1") == "1"


def test_server_that_does_not_start(tmp_path: Path) -> None:
    """The failure of a start is reported with the end of PostgreSQL's log, and frees the directory."""
    with pytest.raises(StartError, match=r'(?s)did not start.*unrecognized configuration parameter "no_such"'):
        EmbeddedPostgres(tmp_path, parameters={"no_such": "1"}, sync=False).start()
    with quick(tmp_path) as url:
        assert psql(url, "SELECT 1") == "1"


def test_without_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel, the error says what to install or to set."""
    monkeypatch.setattr(wheel, "PACKAGE", "no_such_package")
    with pytest.raises(StartError, match=r"extra `embedded`.*PQS_DATABASE_URL"):
        quick(tmp_path).start()


def test_package_is_not_imported() -> None:
    """The wheel's own module, whose import has side effects, is not imported into the process."""
    assert importlib.util.find_spec(PACKAGE) is not None
    assert PACKAGE not in sys.modules


@AS_ROOT
def test_root_with_an_open_path(open_path: Path) -> None:
    """Root runs PostgreSQL as another account, which can enter but not list the directory, without capabilities."""
    data_dir = open_path / "data"
    with quick(data_dir) as url:
        assert psql(url, "SELECT 1") == "1"
        status = Path(f"/proc/{server_pid(data_dir)}/status").read_text()
        assert "\nUid:\t0" not in status
        assert "\nCapEff:\t0000000000000000" in status
        assert data_dir.stat().st_mode & 0o777 == 0o711
        assert (data_dir / "postgres").stat().st_mode & 0o777 == 0o700


@WITH_SETPRIV
def test_root_below_a_closed_directory(tmp_path: Path) -> None:
    """Below a directory that only root can enter, PostgreSQL starts, and permissions stay unchanged."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    data_dir = closed / "data"
    with quick(data_dir) as url:
        assert psql(url, "SELECT 1") == "1"
        assert "\nUid:\t0" not in Path(f"/proc/{server_pid(data_dir)}/status").read_text()
        assert data_dir.stat().st_mode & 0o777 == 0o700
    assert closed.stat().st_mode & 0o777 == 0o700


@AS_ROOT
def test_root_without_setpriv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without setpriv, the error names the closed directory and the alternatives."""
    tmp_path.chmod(0o700)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(StartError, match=r"cannot enter .*; run the service as another user.*setpriv"):
        quick(tmp_path / "data").start()


def run_as(account: Account, data_dir: Path) -> str:
    """The result of another account that starts and stops PostgreSQL in the directory."""
    done = subprocess.run(
        [*account.prefix, *python(CYCLE, data_dir)], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


@pytest.fixture
def nobody() -> Account:
    """An ordinary account that may enter closed directories, since the interpreter may lie below one."""
    entry = pwd.getpwnam("nobody")
    return Account(entry.pw_uid, entry.pw_gid).passing(ROOT)


@WITH_SETPRIV
def test_ordinary_user(open_path: Path, nobody: Account) -> None:
    """An ordinary user runs PostgreSQL as themselves, and still can after root has, as with `sudo`."""
    nobody.give(open_path)
    data_dir = open_path / "data"
    assert run_as(nobody, data_dir).endswith(f"&port=5432 {nobody.uid} {nobody.uid}")
    assert data_dir.stat().st_mode & 0o777 == 0o700
    with quick(data_dir) as url:
        assert psql(url, "SELECT 1") == "1"
    assert run_as(nobody, data_dir).endswith(f"&port=5432 {nobody.uid} {nobody.uid}")


@WITH_SETPRIV
def test_not_writable(open_path: Path, nobody: Account) -> None:
    """A directory that an ordinary user cannot write to is refused with the path and the reason."""
    if "+dac_read_search" not in "".join(nobody.prefix):
        pytest.skip("the capability that is left here lets everything be written to")
    refused = run_as(nobody, open_path)
    assert refused.startswith("StartError:")
    assert f"{open_path}/service.lock: Permission denied" in refused
