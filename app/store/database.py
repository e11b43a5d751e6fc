"""One PostgreSQL: its connections, transactions, circuit breaker and health."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import asyncpg

from app.concurrency.breaker import CircuitBreaker
from app.errors import (
    DatabaseDownError,
    PoolExhaustedError,
    PqsError,
    RefusedValuesError,
    SchemaMismatchError,
    UnavailableError,
)
from app.store.failures import BROKEN, NOT_OPEN, REFUSALS, kind_of
from app.store.schema import check_revision, libpq_address

log = logging.getLogger(__name__)

POOL_WAIT = 2.0  # seconds to wait for a free or new connection; then the call is refused
CLOSE_WAIT = 5.0  # seconds to close all connections; then they are cut
NEVER = 2**31  # statements after which asyncpg closes a connection and loses its prepared statements
ANSWER_GRACE = 2.0  # seconds beyond the statement timeout until a silent server counts as down

# Lists the rights that the service needs and its role lacks.
LACKING_RIGHTS = """
SELECT string_agg(format('%s on %s', needed, name), ', ')
FROM (
SELECT needed, name FROM (VALUES
    ('registration_projections', 'SELECT,INSERT,UPDATE'),
    ('registration_state_counts', 'SELECT,INSERT,UPDATE'),
    ('workflow_state', 'SELECT,INSERT,UPDATE'),
    ('workflow_actions', 'SELECT,INSERT,UPDATE,DELETE'),
    ('outbox', 'SELECT,INSERT,UPDATE,DELETE'),
    ('watermarks', 'SELECT,INSERT,UPDATE'),
    ('dead_letters', 'SELECT,INSERT,DELETE'),
    ('api_keys', 'SELECT,UPDATE'),
    ('api_key_revision', 'SELECT'),
    ('workflow_quotas', 'SELECT,UPDATE'),
    ('audit_log', 'SELECT,INSERT'),
    ('changes', 'SELECT,INSERT,UPDATE'),
    ('changes_floor', 'SELECT,INSERT,UPDATE')
) AS tables (name, rights),
unnest(string_to_array(rights, ',')) AS needed
WHERE NOT has_table_privilege(name, needed)
UNION ALL
SELECT needed, 'changes_id_seq' FROM unnest(ARRAY['SELECT', 'USAGE']) AS needed
WHERE NOT has_sequence_privilege('changes_id_seq', needed)
UNION ALL
SELECT needed, 'the slices of changes' FROM unnest(ARRAY['DELETE', 'TRUNCATE']) AS needed
WHERE EXISTS (
    SELECT FROM pg_inherits
    WHERE inhparent = 'changes'::regclass AND NOT has_table_privilege(inhrelid, needed)
)
) AS lacking
"""
# Settings of the planner. A point statement must use the key, whatever its parameters and however large the table:
# PostgreSQL would keep a plan that scans a table of a hundred rows while the table grows. It is planned once, because
# planning takes longer than running.
POINTS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",  # compiling takes longer than running: five times as long for the statements of the metrics
}
SCANS = {"plan_cache_mode": "force_custom_plan", "random_page_cost": "1.1", "jit": "off"}

T = TypeVar("T")
Record = asyncpg.Record
Connection = asyncpg.pool.PoolConnectionProxy  # the rest of the project imports this name, and no driver
P = ParamSpec("P")
Work = Callable[Concatenate[Connection, P], Awaitable[T]]  # a function of a connection and further arguments


class Observer(Protocol):
    """Hears of every piece of work on a database."""

    def done(self, pool: str, name: str, seconds: float, rows: int | None, failure: str | None) -> None:
        """The work `name` took so long on a connection of `pool`. It gave so many rows, or failed in this way."""

    def timed_out(self, pool: str) -> None:
        """A call has waited for a connection of `pool` in vain."""


class LostRaceError(PqsError):
    """Another writer was faster, or PostgreSQL ended a deadlock or serialization failure. Nothing was written."""

    def __init__(self, message: str = "", *, reason: str = "guard") -> None:
        """`reason` is what the metrics call it: guard, rollback or plan."""
        super().__init__(message)
        self.reason = reason


class _PooledConnection(asyncpg.Connection):
    """A connection whose close never fails: the pool closes broken connections in tasks that nobody awaits."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the signature is asyncpg's
        """Close, even if the server is gone."""
        with suppress(*BROKEN):
            await super().close(timeout=timeout)


class Database:
    """One PostgreSQL. Every call runs the given work on a connection, and gives the connection back in any case.

    Errors are UnavailableError and its subclasses; the breaker counts DatabaseDownError. After LostRaceError the
    same work may be done again.

    A `url` that is called is called for each new connection, so that a password can change. Connections that are
    open stay. `name` is that of the pool, for `observer`.

    `scans` is for statements whose best plan depends on their parameters, such as a rare or a common capability.
    PostgreSQL plans each anew, for data in memory or on an SSD; otherwise it would prefer a sort to an index. Without
    `scans` it plans a statement once for each connection, to use the primary key.
    """

    def __init__(
        self,
        url: str | Callable[[], str],
        *,
        pool_size: int,
        statement_timeout: timedelta,
        scans: bool = False,
        breaker: CircuitBreaker | None = None,
        name: str = "primary",
        observer: Observer | None = None,
    ) -> None:
        self.name = name
        self._observer = observer
        self._url = url
        self._size = pool_size
        self._timeout = statement_timeout.total_seconds()
        self._settings = {
            "application_name": "pqs",
            "timezone": "UTC",
            "statement_timeout": str(round(self._timeout * 1000)),
        }
        self._settings |= SCANS if scans else POINTS
        self._pool: asyncpg.Pool[Record] | None = None
        self._opening = asyncio.Lock()
        self._at_hand: list[Connection] = []  # free, kept outside the pool
        self._waiting = 0  # calls that wait for a connection of the pool
        self._closing = False
        self.breaker = breaker or CircuitBreaker()

    @property
    def connections(self) -> tuple[int, int, int]:
        """How many connections are open, how many of them are in use, and how many calls wait for one."""
        if self._pool is None:
            return 0, 0, self._waiting
        size = self._pool.get_size()
        return size, size - self._pool.get_idle_size() - len(self._at_hand), self._waiting

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` with a connection and these arguments. Each of its statements sees a snapshot of its own.

        If the server has closed the connection, or cancelled the read, `work` is called once more.
        """
        with self.breaker.guard():
            # A second read is safe.
            try:
                return await self._do(work, *args, **kwargs)
            except DatabaseDownError as error:  # the server has restarted, and so closed the connection
                if not isinstance(error.__cause__, NOT_OPEN):
                    raise
            except LostRaceError:  # a replica cancels reads that conflict with changes from its primary
                pass
            try:
                return await self._do(work, *args, **kwargs)
            except LostRaceError as error:
                raise UnavailableError("PostgreSQL cancelled the read twice") from error

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` in one transaction.

        When this returns, the transaction is committed. If it raises before the commit, nothing is written. If the
        connection breaks during the commit, the changes may or may not be written.
        """

        async def transaction(connection: Connection) -> T:
            async with connection.transaction():
                return await work(connection, *args, **kwargs)

        transaction.__name__ = _name(work)
        return await self.write_alone(transaction)

    async def write_alone(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work`, each of its statements a transaction of its own: for work that writes with one statement."""
        with self.breaker.guard():
            return await self._do(work, *args, **kwargs)

    async def _do(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with translated():
            connection = await self._take()
            began = time.perf_counter()
            failure, result = cast("str | None", None), cast("T | None", None)
            try:
                result = await work(connection, *args, **kwargs)
            except BROKEN as error:
                failure = kind_of(error)
                # asyncpg may not yet know that this connection is closed, nor that others have broken with it.
                await self._forget_all()
                with suppress(asyncpg.InterfaceError):  # asyncpg knows already
                    connection.terminate()
                await self._give_back(connection)
                raise
            except BaseException as error:
                failure = kind_of(error)
                await self._give_back(connection)
                raise
            finally:
                rows = len(result) if isinstance(result, list | dict) else None
                if self._observer is not None:
                    self._observer.done(self.name, _name(work), time.perf_counter() - began, rows, failure)
            if self._waiting or self._closing:
                await self._give_back(connection)
            else:
                self._at_hand.append(connection)
            return result

    async def _take(self) -> Connection:
        """A free connection, kept at hand or from the pool, which opens new ones.

        Connections in good order bypass the pool: its `acquire` and `release` each take a task, and longer than a
        statement by key.
        """
        while self._at_hand:
            connection = self._at_hand.pop()
            with suppress(asyncpg.InterfaceError):  # it broke, and is back in the pool
                if not connection.is_closed():
                    return connection
            await self._give_back(connection)
        pool = self._pool or await self._open()
        self._waiting += 1
        try:
            return await pool.acquire(timeout=POOL_WAIT)
        except TimeoutError as error:
            if self._observer is not None:
                self._observer.timed_out(self.name)
            if pool.get_size() == self._size and pool.get_idle_size() == 0:
                raise PoolExhaustedError("all database connections are in use") from error
            raise
        except asyncpg.PostgresError as error:  # whatever the reason, there is no connection
            raise _down(error) from error
        finally:
            self._waiting -= 1

    async def _give_back(self, connection: Connection) -> None:
        """Return a connection to the pool, which closes a broken one or passes it to the longest waiting caller."""
        with suppress(*BROKEN):  # if this fails, the pool closes the connection; the work is done
            await cast("asyncpg.Pool[Record]", self._pool).release(connection)

    async def _forget_all(self) -> None:
        """Discard every connection that is not in use now."""
        pool = cast("asyncpg.Pool[Record]", self._pool)
        await pool.expire_connections()
        while self._at_hand:
            await self._give_back(self._at_hand.pop())

    async def _open(self) -> "asyncpg.Pool[Record]":
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    connect=cast("Any", self._connect),  # the stubs spell all its options out
                    min_size=0,
                    max_size=self._size,
                    max_queries=NEVER,
                    command_timeout=self._timeout + ANSWER_GRACE,
                    server_settings=self._settings,
                    reset=_leave_as_it_is,
                    connection_class=_PooledConnection,
                )
            return self._pool

    async def _connect(self, _: object, **options: Any) -> "asyncpg.Connection[Record]":
        """A new connection to the address as it is now."""
        url = self._url if isinstance(self._url, str) else self._url()
        return await asyncpg.connect(libpq_address(url), **options)

    async def check(self) -> str:
        """The schema's revision. Raises SchemaMismatchError for an unexpected one, or if the role lacks a right."""
        expected = check_revision(await self.read(_revision))
        if rights := await self.read(_lacking_rights):
            raise SchemaMismatchError(f"the database role lacks rights: {rights}")
        return expected

    async def close(self) -> None:
        """Close every connection. Cut those that do not answer within CLOSE_WAIT."""
        self._closing = True
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(CLOSE_WAIT):
                while self._at_hand:
                    await self._give_back(self._at_hand.pop())
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


def _name(work: Callable[..., object]) -> str:
    """The name of a piece of work: that of its function."""
    return getattr(work, "__name__", type(work).__name__).lstrip("_")


async def _revision(connection: Connection) -> str | None:
    """The schema's revision, or None if there is no schema."""
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    found: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    return found


async def _lacking_rights(connection: Connection) -> str | None:
    rights: str | None = await connection.fetchval(LACKING_RIGHTS)
    return rights


async def _leave_as_it_is(_connection: object) -> None:
    """Reset nothing: sessions carry no settings, and asyncpg itself ends an open transaction."""


@contextmanager
def watched(connection: Connection, lost: Callable[[], None]) -> Iterator[None]:
    """Call `lost` if the connection ends meanwhile. PostgreSQL then releases the locks of its session."""

    def tell(_connection: object) -> None:
        lost()

    connection.add_termination_listener(tell)
    try:
        yield
    finally:
        with suppress(*BROKEN):  # it has ended, and is back in the pool
            connection.remove_termination_listener(tell)


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into this project's. Their messages go to the log, not to the caller."""
    try:
        yield
    except asyncpg.PostgresError as error:
        raise _named(error) from error
    except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        # The connection cannot be opened, breaks, or stays silent.
        raise _down(error) from error


@contextmanager
def refused_values() -> Iterator[None]:
    """Raise RefusedValuesError if PostgreSQL or its driver refuses a value. Its message goes to the log."""
    try:
        yield
    except REFUSALS as error:
        log.warning("PostgreSQL refused a write: %s", error)
        raise RefusedValuesError("the table does not accept these values; the log says why") from None


async def check_constraints(connection: Connection) -> None:
    """Let PostgreSQL check deferred constraints now, not at the commit."""
    await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")


# Shutting down, crashed, starting up; no such database.
_DOWN = {"57P01", "57P02", "57P03", "3D000"}


def _down(error: BaseException) -> DatabaseDownError:
    log.warning("the database does not answer: %s: %s", type(error).__name__, error)
    return DatabaseDownError("the database does not answer")


def _named(error: asyncpg.PostgresError) -> Exception:
    state = error.sqlstate or ""
    if isinstance(error, asyncpg.PostgresConnectionError) or state[:2] in {"08", "28", "53"} or state in _DOWN:
        return _down(error)
    if state in {"40001", "40P01"}:
        return LostRaceError("PostgreSQL rolled the transaction back because of a concurrent one", reason="rollback")
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return LostRaceError("a migration changed a table of a prepared statement", reason="plan")
    if state in {"57014", "55P03"}:
        return UnavailableError("a statement took too long, and the database cancelled it")
    if state in {"42P01", "42703", "42704"}:
        return SchemaMismatchError("the database's schema is not the one that this code expects; see /readyz")
    if state == "42501":
        log.error("the database role lacks a right: %s", error)
        return UnavailableError("the database role lacks a right; see /readyz")
    if state == "25006":
        return UnavailableError("the database is read-only now")
    return error
