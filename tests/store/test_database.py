"""Database against real servers: ones that refuse, restart, freeze, time out, run full or are read-only."""

import asyncio
import os
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.concurrency.breaker import FAILURES, CircuitBreaker
from app.embedded.postgres import EmbeddedPostgres
from app.errors import (
    DatabaseDownError,
    PoolExhaustedError,
    SchemaMismatchError,
    UnavailableError,
)
from app.store import pool as pool_module
from app.store import schema
from app.store.database import Connection, Database, LostRaceError, Work
from app.store.overdue import now
from app.store.registrations import REGISTRATIONS
from app.store.schema import HEAD
from tests.databases import on_server
from tests.making import NODE

QUICK = timedelta(seconds=0.3)  # a statement time-out that a test can wait for
PATIENT = timedelta(seconds=30)
SECRET = "s3cret-p4ss"


async def one(connection: Connection) -> object:
    """The shortest work."""
    return await connection.fetchval("SELECT 1")


async def sleep(connection: Connection) -> object:
    """Work that takes longer than any test waits."""
    return await connection.fetchval("SELECT pg_sleep(60)")


def open_database(
    url: str, *, pool_size: int = 2, give_up: timedelta = PATIENT, breaker: CircuitBreaker | None = None
) -> Database:
    """A database whose breaker, unless given, never opens."""
    return Database(
        url,
        pool_size=pool_size,
        statement_timeout=give_up,
        breaker=breaker or CircuitBreaker(failures=1_000_000),
    )


@asynccontextmanager
async def opened(
    url: str, *, pool_size: int = 2, give_up: timedelta = PATIENT, breaker: CircuitBreaker | None = None
) -> AsyncIterator[Database]:
    """The same, closed at the end."""
    database = open_database(url, pool_size=pool_size, give_up=give_up, breaker=breaker)
    try:
        yield database
    finally:
        await database.close()


def checked_out(database: Database) -> int:
    """How many connections are in use."""
    assert database._pool is not None
    return database._pool.get_size() - database._pool.get_idle_size() - len(database._at_hand)


async def warm(database: Database, connections: int) -> None:
    """Fill the pool: this many connections are opened, and given back."""
    together = asyncio.Barrier(connections)

    async def work(connection: Connection) -> None:
        await one(connection)
        await together.wait()

    await asyncio.gather(*(database.read(work) for _ in range(connections)))


async def active(url: str) -> int:
    """How many statements of a Database run in this database on the server."""
    connection = await asyncpg.connect(url)
    try:
        found: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'pqs' AND datname = current_database() AND state <> 'idle'"
        )
        return found
    finally:
        await connection.close()


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    """Wait until it holds. A statement whose cancellation got lost ends at its time-out, well before this one."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - what is waited for happens in the server
            await asyncio.sleep(0.01)


class Server:
    """A PostgreSQL only for these tests, to be stopped, killed and frozen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = EmbeddedPostgres(folder, parameters={"fsync": "off"}, sync=False)
        self.url = self.postgres.start()

    @property
    def pid(self) -> int:
        """The postmaster's."""
        return int((self.folder / "postgres" / "postmaster.pid").read_text().split()[0])

    def stop(self) -> None:
        """Shut it down in order."""
        self.postgres.stop()

    def kill(self) -> None:
        """End it with SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        self.postgres.stop()

    def start(self) -> None:
        """Start it again, at the same address."""
        assert self.postgres.start() == self.url

    @contextmanager
    def frozen(self, backends: list[int]) -> Iterator[None]:
        """While this lasts, it takes connections and says nothing."""
        stopped = [self.pid, *backends]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """One such server for this file."""
    with tempfile.TemporaryDirectory(prefix="pqs-") as folder:
        server = Server(Path(folder))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """It, running at the beginning and at the end of each test."""
    yield running
    running.stop()
    running.start()


# --- Servers that are not there --------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [Database.read, Database.write], ids=["read", "write"])
async def test_a_refused_connection(
    tmp_path: Path, call: Callable[[Database, Work[[], object]], Awaitable[object]]
) -> None:
    """A server that is not there is a DatabaseDownError, at once."""
    async with opened(f"postgresql://postgres@/postgres?host={tmp_path}") as database:
        began = time.monotonic()
        with pytest.raises(DatabaseDownError):
            await call(database, one)
        assert time.monotonic() - began < 2
        assert checked_out(database) == 0


async def test_after_five_refusals_the_breaker_answers(tmp_path: Path) -> None:
    """The sixth call does not try to connect, and says how long to wait."""
    async with opened(f"postgresql://postgres@/postgres?host={tmp_path}", breaker=CircuitBreaker()) as database:
        for _ in range(FAILURES):
            with pytest.raises(DatabaseDownError):
                await database.read(one)
        with pytest.raises(UnavailableError) as refused:
            await database.write(one)
        assert not isinstance(refused.value, DatabaseDownError)
        assert timedelta(seconds=1) <= refused.value.retry_after < timedelta(seconds=3)  # it has just opened


async def test_a_name_that_does_not_exist() -> None:
    """A host name that nobody knows is a DatabaseDownError."""
    async with opened("postgresql://postgres@no-such-host.invalid/postgres") as database:
        with pytest.raises(DatabaseDownError):
            await database.read(one)


async def test_a_server_that_takes_connections_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port behind which nobody speaks is a DatabaseDownError after the time that a caller waits."""
    monkeypatch.setattr(pool_module, "POOL_WAIT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        async with opened(f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable") as database:
            async with asyncio.timeout(5):
                with pytest.raises(DatabaseDownError):
                    await database.read(one)
            assert checked_out(database) == 0


async def test_no_such_database(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A database that does not exist is a DatabaseDownError, whose message does not name it."""
    async with opened(on_server(database_url, "no_such_database")) as database:
        with pytest.raises(DatabaseDownError) as raised:
            await database.read(one)
    assert "no_such_database" not in str(raised.value)
    assert "no_such_database" in caplog.text


@pytest.mark.parametrize("call", [Database.read, Database.write], ids=["read", "write"])
async def test_a_database_that_lets_nobody_in(
    database_url: str, call: Callable[[Database, Work[[], object]], Awaitable[object]]
) -> None:
    """A refused connection raises DatabaseDownError, for any reason."""
    name = urlsplit(database_url).path[1:]
    connection = await asyncpg.connect(on_server(database_url, "postgres"))
    try:
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        async with opened(database_url) as database:
            with pytest.raises(DatabaseDownError):
                await call(database, one)
            assert checked_out(database) == 0
            await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            assert await call(database, one) == 1
    finally:
        await connection.close()


async def test_a_wrong_password_is_told_to_nobody(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password is a DatabaseDownError, and stands neither in its message nor in the log."""
    connection = await asyncpg.connect(server.url)
    rules = server.folder / "postgres" / "pg_hba.conf"
    before = rules.read_text()
    try:
        await connection.execute("CREATE ROLE alice LOGIN PASSWORD 'right'")
        rules.write_text("local all alice scram-sha-256\n" + before)
        await connection.execute("SELECT pg_reload_conf()")
        url = server.url.replace("postgres@", f"alice:{SECRET}@")
        right = server.url.replace("postgres@", "alice:right@")

        async def is_refused() -> bool:
            try:
                await (await asyncpg.connect(url)).close()
            except asyncpg.InvalidPasswordError:
                return True
            return False

        await until(is_refused)
        async with opened(url) as database:
            with pytest.raises(DatabaseDownError) as raised:
                await database.write(one)
        async with opened(right) as database:
            assert await database.read(one) == 1
    finally:
        rules.write_text(before)
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute("DROP ROLE alice")
        await connection.close()
    assert "alice" not in str(raised.value)
    assert "alice" in caplog.text
    assert SECRET not in str(raised.value) + repr(raised.value) + caplog.text


# --- Servers that go away --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [Server.stop, Server.kill], ids=["stopped", "killed"])
async def test_reads_outlive_a_restart(server: Server, end: Callable[[Server], None]) -> None:
    """After a restart every read is answered, although each connection of the pool is dead."""
    async with opened(server.url, pool_size=4, breaker=CircuitBreaker()) as database:
        await warm(database, 4)
        end(server)
        server.start()
        assert await asyncio.gather(*(database.read(one) for _ in range(12))) == [1] * 12
        assert checked_out(database) == 0


@pytest.mark.parametrize("end", [Server.stop, Server.kill], ids=["stopped", "killed"])
async def test_writes_recover_after_one_error(server: Server, end: Callable[[Server], None]) -> None:
    """After a restart at most one write fails, with DatabaseDownError, whatever the size of the pool."""
    async with opened(server.url, pool_size=4, breaker=CircuitBreaker()) as database:
        await warm(database, 4)
        end(server)
        server.start()
        failed = 0
        for _ in range(4):
            try:
                await database.write(one)
            except DatabaseDownError:
                failed += 1
        assert failed <= 1
        assert not database.breaker.is_open


async def test_a_write_that_is_cut_off_is_not_done_again(server: Server) -> None:
    """A write whose server dies in the middle is tried once, and fails with DatabaseDownError."""
    begun = asyncio.Event()
    times = 0

    async def work(connection: Connection) -> None:
        nonlocal times
        times += 1
        await one(connection)
        begun.set()
        await sleep(connection)

    async with opened(server.url) as database:
        task = asyncio.create_task(database.write(work))
        async with asyncio.timeout(10):
            await begun.wait()
            server.kill()
            server.start()
            with pytest.raises(DatabaseDownError):
                await task
        assert times == 1
        assert checked_out(database) == 0


async def test_while_it_is_down_reads_fail_and_the_breaker_opens(server: Server) -> None:
    """Reads on a stopped server fail with DatabaseDownError, one failure a call, until the breaker opens."""
    async with opened(server.url, breaker=CircuitBreaker()) as database:
        await warm(database, 2)
        server.stop()
        for _ in range(FAILURES):
            assert not database.breaker.is_open
            with pytest.raises(DatabaseDownError):
                await database.read(one)
        assert database.breaker.is_open
        server.start()


@pytest.mark.parametrize("call", [Database.read, Database.write], ids=["read", "write"])
async def test_a_frozen_server(
    server: Server,
    call: Callable[[Database, Work[[], object]], Awaitable[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that freezes is a DatabaseDownError in bounded time, and costs no connection of the pool."""
    monkeypatch.setattr(pool_module, "ANSWER_GRACE", 0.3)
    monkeypatch.setattr(pool_module, "POOL_WAIT", 0.3)
    answer = QUICK.total_seconds() + 0.3
    async with opened(server.url, pool_size=1, give_up=QUICK) as database:

        async def backend(connection: Connection) -> int:
            pid: int = await connection.fetchval("SELECT pg_backend_pid()")
            return pid

        backends = [await database.read(backend)]
        with server.frozen(backends):
            for bound in (2 * answer, 0.3):  # the pooled connection, with its rollback, and then a new one
                began = time.monotonic()
                with pytest.raises(DatabaseDownError):
                    await call(database, one)
                assert time.monotonic() - began < bound + 1
                assert checked_out(database) == 0
        assert await call(database, one) == 1


async def test_connections_that_the_server_closed(database_url: str) -> None:
    """A pool whose connections were all closed by the server answers every read."""
    async with opened(database_url, pool_size=4) as database:
        await warm(database, 4)
        connection = await asyncpg.connect(database_url)
        try:
            closed = await connection.fetch(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name = 'pqs' AND datname = current_database()"
            )
        finally:
            await connection.close()
        assert len(closed) == 4
        assert await asyncio.gather(*(database.read(one) for _ in range(8))) == [1] * 8


async def test_connections_that_the_server_is_closing(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Reads that come just after the server's goodbye, before asyncpg has seen the end, are answered all the same."""
    connection = await asyncpg.connect(database_url)
    async with opened(database_url, pool_size=4) as database:
        for turns in range(30):
            await warm(database, 4)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'pqs' AND datname = current_database()"
            )
            for _ in range(turns % 5):
                await asyncio.sleep(0)
            assert await asyncio.gather(*(database.read(one) for _ in range(8))) == [1] * 8
            assert checked_out(database) == 0
    await connection.close()
    assert "never retrieved" not in caplog.text


# --- Servers that answer, but not what was hoped for -----------------------------------------------------------


@pytest.mark.parametrize("call", [Database.read, Database.write], ids=["read", "write"])
async def test_a_statement_that_takes_too_long(
    database_url: str, call: Callable[[Database, Work[[], object]], Awaitable[object]]
) -> None:
    """The server gives a statement up: the service is unavailable for it, but the database is not down."""
    async with opened(database_url, pool_size=1, give_up=QUICK, breaker=CircuitBreaker()) as database:
        for _ in range(2):
            with pytest.raises(UnavailableError) as raised:
                await call(database, sleep)
            assert type(raised.value) is UnavailableError
        assert await call(database, one) == 1
        assert await active(database_url) == 0


async def test_a_full_pool(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a free connection a call is sent away soon, and this says nothing to the breaker."""
    monkeypatch.setattr(pool_module, "POOL_WAIT", 0.2)
    held, release = asyncio.Event(), asyncio.Event()

    async def hold(connection: Connection) -> object:
        held.set()
        await release.wait()
        return await one(connection)

    async with opened(database_url, pool_size=1, breaker=CircuitBreaker(failures=1)) as database:
        holder = asyncio.create_task(database.write(hold))
        async with asyncio.timeout(5):
            await held.wait()
            with pytest.raises(PoolExhaustedError):
                await database.read(one)
            assert not database.breaker.is_open
            release.set()
            assert await holder == 1
            assert await database.read(one) == 1


@pytest.mark.parametrize("call", [Database.read, Database.write], ids=["read", "write"])
async def test_a_cancelled_call_gives_its_connection_back(
    database_url: str, call: Callable[[Database, Work[[], object]], Awaitable[object]]
) -> None:
    """A call that is cancelled in the middle of a statement ends it on the server and leaves the pool whole."""
    async with opened(database_url, pool_size=2, breaker=CircuitBreaker()) as database:
        for _ in range(2 * FAILURES):
            task = asyncio.create_task(asyncio.wait_for(call(database, sleep), 30))
            await until(lambda: _has(active(database_url), 1))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: _has(active(database_url), 0))
            assert checked_out(database) == 0
        assert not database.breaker.is_open
        await warm(database, 2)


async def test_a_cancelled_call_on_a_frozen_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is cancelled while its server is frozen ends as cancelled, soon, and keeps no connection."""
    monkeypatch.setattr(pool_module, "POOL_WAIT", 0.3)

    async def backend(connection: Connection) -> int:
        pid: int = await connection.fetchval("SELECT pg_backend_pid()")
        return pid

    async with opened(server.url, pool_size=1) as database:
        with server.frozen([await database.read(backend)]):
            task = asyncio.create_task(database.read(one))
            await asyncio.wait([task], timeout=0.1)
            task.cancel()
            async with asyncio.timeout(5):
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert checked_out(database) == 0
        assert await database.read(one) == 1


async def _has(number: Awaitable[int], wanted: int) -> bool:
    return await number == wanted


async def test_calls_cancelled_at_any_moment(database_url: str) -> None:
    """Calls that are cancelled while they wait, connect, ask or end leave no connection checked out."""
    async with opened(database_url, pool_size=2) as database:
        for milliseconds in range(30):
            tasks = [asyncio.create_task(call(one)) for call in (database.read, database.write) for _ in range(2)]
            await asyncio.wait(tasks, timeout=milliseconds / 1000)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: _has(_number(checked_out(database)), 0))
        await until(lambda: _has(active(database_url), 0))
        await warm(database, 2)


async def _number(number: int) -> int:
    return number


async def test_an_error_of_the_work_reaches_the_caller(database: Database) -> None:
    """An error of the work is raised unchanged, and its changes are undone."""
    await database.write(lambda connection: connection.execute("CREATE TABLE kept (n int)"))

    async def work(connection: Connection) -> None:
        await connection.execute("INSERT INTO kept VALUES (1)")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await database.write(work)
    assert await database.read(lambda connection: connection.fetchval("SELECT count(*) FROM kept")) == 0
    assert checked_out(database) == 0


async def test_work_alone_commits_each_statement(database: Database) -> None:
    """`write_alone` opens no transaction: the changes of a statement stay, even if a later one fails."""
    await database.write(lambda connection: connection.execute("CREATE TABLE kept (n int)"))

    async def work(connection: Connection) -> None:
        await connection.execute("INSERT INTO kept VALUES (1)")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await database.write_alone(work)
    assert await database.read(lambda connection: connection.fetchval("SELECT count(*) FROM kept")) == 1
    assert checked_out(database) == 0


async def test_a_deadlock_is_a_lost_race(database: Database) -> None:
    """Of two transactions that lock each other out one commits, and the other one lost the race."""
    await database.write(lambda connection: connection.execute("CREATE TABLE pair (n int)"))
    await database.write(lambda connection: connection.execute("INSERT INTO pair VALUES (1), (2)"))
    both = asyncio.Barrier(2)

    def lock(*numbers: int) -> Work[[], None]:
        async def work(connection: Connection) -> None:
            await connection.execute("SET LOCAL deadlock_timeout = '10ms'")
            for number in numbers:
                await connection.execute("SELECT FROM pair WHERE n = $1 FOR UPDATE", number)
                if number == numbers[0]:
                    await both.wait()

        return work

    async with asyncio.timeout(10):
        ended = await asyncio.gather(database.write(lock(1, 2)), database.write(lock(2, 1)), return_exceptions=True)
    assert sorted(type(end).__name__ for end in ended) == ["LostRaceError", "NoneType"]


async def test_a_serialization_failure_is_a_lost_race(database: Database) -> None:
    """A transaction that saw an older row than the one it changes lost the race."""
    await database.write(lambda connection: connection.execute("CREATE TABLE single AS SELECT 1 AS n"))

    async def work(connection: Connection) -> None:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await connection.execute("SELECT n FROM single")
        await database.write(lambda other: other.execute("UPDATE single SET n = 2"))
        await connection.execute("UPDATE single SET n = 3")

    with pytest.raises(LostRaceError):
        await database.write(work)


RECOVERY_CONFLICT = (  # what a replica answers to a read that is in the way of its recovery
    "DO $$ BEGIN RAISE 'canceling statement due to conflict with recovery' USING ERRCODE = '40001'; END $$"
)


async def test_a_read_that_a_replica_broke_off_is_done_again(database: Database) -> None:
    """A read that ends in a conflict with recovery is answered by the second attempt."""
    times = 0

    async def work(connection: Connection) -> object:
        nonlocal times
        times += 1
        if times == 1:
            await connection.execute(RECOVERY_CONFLICT)
        return await one(connection)

    assert await database.read(work) == 1
    assert times == 2


async def test_a_read_that_a_replica_keeps_breaking_off(database: Database) -> None:
    """A read that is cancelled twice raises UnavailableError, not LostRaceError."""
    with pytest.raises(UnavailableError) as raised:
        await database.read(lambda connection: connection.execute(RECOVERY_CONFLICT))
    assert type(raised.value) is UnavailableError


async def test_a_migration_under_a_running_service(database_url: str, database: Database) -> None:
    """A table that changes under prepared statements costs a read nothing, and a write one lost race."""

    async def work(connection: Connection) -> object:
        return await REGISTRATIONS.get_entity_state(connection, NODE, "registration")

    async def widen(size: int) -> None:
        connection = await asyncpg.connect(database_url)
        try:
            await connection.execute(f"ALTER TABLE registration_projections ALTER node_version TYPE varchar({size})")
        finally:
            await connection.close()

    assert await database.read(work) is None
    await widen(40)
    assert await database.read(work) is None
    assert await database.write(work) is None
    await widen(50)
    with pytest.raises(LostRaceError):
        await database.write(work)
    assert await database.write(work) is None


@pytest.mark.parametrize("call", [Database.read, Database.write], ids=["read", "write"])
async def test_a_database_without_the_tables(
    empty_database_url: str, call: Callable[[Database, Work[[], object]], Awaitable[object]]
) -> None:
    """A missing table is a SchemaMismatchError, which points at /readyz, and no failure of the database."""
    async with opened(empty_database_url, breaker=CircuitBreaker(failures=1)) as database:
        with pytest.raises(SchemaMismatchError, match="/readyz"):
            await call(database, lambda connection: REGISTRATIONS.get_entity_state(connection, NODE, "registration"))
        assert not database.breaker.is_open


async def test_a_database_without_a_column(database_url: str, database: Database) -> None:
    """A missing column is a SchemaMismatchError."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("ALTER TABLE registration_projections DROP COLUMN correlation_id")
    finally:
        await connection.close()
    with pytest.raises(SchemaMismatchError):
        await database.read(lambda connection: REGISTRATIONS.get_entity_state(connection, NODE, "registration"))


async def test_a_read_only_server(database_url: str) -> None:
    """On a server that takes no writes just now a write is unavailable, and reads go on."""
    connection = await asyncpg.connect(database_url)
    try:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    finally:
        await connection.close()
    async with opened(database_url) as database:
        with pytest.raises(UnavailableError, match="read-only") as raised:
            await database.write(lambda connection: connection.execute("CREATE TABLE kept ()"))
        assert not isinstance(raised.value, DatabaseDownError)
        assert await database.read(one) == 1


async def test_what_is_our_own_mistake_is_not_hidden(database: Database) -> None:
    """A statement that PostgreSQL finds wrong is an error of ours, and comes through as such."""
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await database.read(lambda connection: connection.execute("SELEKT 1"))


# --- check() ---------------------------------------------------------------------------------------------------


async def test_check_finds_the_right_revision(database: Database) -> None:
    """`check` returns the expected revision."""
    assert await database.check() == HEAD


async def set_revision(url: str, statement: str) -> None:
    """Change what the database says of its revision."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_check_of_an_empty_database(empty_database_url: str) -> None:
    """Without a schema, the error lists all revisions as missing, and names `pqs migrate`."""
    async with opened(empty_database_url) as database:
        with pytest.raises(SchemaMismatchError, match=r"has no schema; missing: 0001.*; run `pqs migrate`"):
            await database.check()


async def test_check_of_a_database_that_was_emptied(database_url: str, database: Database) -> None:
    """A database that was migrated down to nothing lacks every revision too."""
    await set_revision(database_url, "DELETE FROM alembic_version")
    with pytest.raises(SchemaMismatchError, match=r"has no schema; missing: 0001.*; run `pqs migrate`"):
        await database.check()


async def test_check_of_a_database_that_is_behind(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an old schema, the error lists the missing revisions, oldest first."""
    later = ("9998", "9999")
    monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, *later))
    monkeypatch.setattr(schema, "HEAD", later[-1])
    with pytest.raises(SchemaMismatchError, match=f"is at revision {HEAD}; missing: 9998, 9999; run `pqs migrate`"):
        await database.check()


async def test_check_of_a_database_that_is_ahead(database_url: str, database: Database) -> None:
    """For a schema of a later release, the error says so."""
    await set_revision(database_url, "UPDATE alembic_version SET version_num = 'from_later'")
    with pytest.raises(SchemaMismatchError, match=r"at revision from_later.*later release"):
        await database.check()


# --- Addresses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
@pytest.mark.parametrize("query", ["", "sslmode=disable", "sslmode=prefer&application_name=other"])
async def test_addresses(database_url: str, scheme: str, query: str) -> None:
    """Each common spelling of an address works, and our own settings go before those in it."""
    parts = urlsplit(database_url)
    url = parts._replace(scheme=scheme, query="&".join(filter(None, [parts.query, query]))).geturl()
    async with opened(url) as database:
        settings = await database.read(
            lambda connection: connection.fetchval(
                "SELECT concat_ws(' ', current_setting('application_name'), current_setting('timezone'))"
            )
        )
        assert settings == "pqs UTC"


async def test_the_clock_is_the_databases(database: Database) -> None:
    """`now` has a zone, and goes on from one call to the next."""
    first = await database.read(now)
    assert first.tzinfo is not None
    assert await database.read(now) > first


async def test_each_pool_has_the_planner_that_it_needs(database_url: str) -> None:
    """The pool for scans plans each execution, the other one plans once; both cancel slow statements."""
    settings = "SELECT concat_ws(' ', current_setting('plan_cache_mode'), current_setting('statement_timeout'))"
    found = []
    for scans in (False, True):
        database = Database(database_url, pool_size=1, statement_timeout=PATIENT, scans=scans)
        found.append(await database.read(lambda connection: connection.fetchval(settings)))
        await database.close()
    assert found == ["force_generic_plan 30s", "force_custom_plan 30s"]


async def test_parameters_are_not_shown(database: Database) -> None:
    """An error of a statement does not hold what nodes say of themselves."""
    with pytest.raises(asyncpg.DivisionByZeroError) as raised:
        await database.read(lambda connection: connection.fetch("SELECT $1::int / 0, $2::text", 1, SECRET))
    assert SECRET not in str(raised.value)
