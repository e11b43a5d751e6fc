"""One PostgreSQL: its connections, transactions, circuit breaker and health."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Concatenate, ParamSpec, TypeVar, cast

import asyncpg

from app.breaker import CircuitBreaker
from app.errors import (
    DatabaseDownError,
    PoolExhaustedError,
    PqsError,
    RefusedValuesError,
    SchemaMismatchError,
    UnavailableError,
)
from app.store.schema import check_revision, libpq_address

log = logging.getLogger(__name__)

POOL_WAIT = 2.0  # seconds to wait for a connection, a free one or a new one, before the caller is sent away
CLOSE_WAIT = 5.0  # seconds for the server to hear that the service stops
NEVER = 2**31  # statements after which asyncpg closes a connection, and loses what it has prepared
ANSWER_GRACE = 2.0  # seconds beyond the statement time-out, after which a server that says nothing counts as down

# The rights that the service needs and its role does not have.
LACKING_RIGHTS = """
SELECT string_agg(format('%s on %s', needed, name), ', ')
FROM (VALUES
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
"""
# asyncpg's errors for a connection that the server has closed. The last one is raised when the server has announced
# the end and asyncpg has not noticed it yet: https://github.com/MagicStack/asyncpg/issues/784
NOT_OPEN = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
BROKEN = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)

# What the planner is told. A point statement goes by the key, whatever it is given and however large the table is. A
# plan that reads a table of a hundred rows from end to end would be kept while the table grows; and to plan a
# statement takes longer than to run it.
POINTS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",  # to compile a statement takes longer than to run it: five times, for what the metrics ask
}
SCANS = {"plan_cache_mode": "force_custom_plan", "random_page_cost": "1.1", "jit": "off"}

# Errors about values: a wrong type or range, a violated constraint, a trigger's refusal, or too large.
REFUSED = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.PLPGSQLError,
    asyncpg.ProgramLimitExceededError,
)

T = TypeVar("T")
Record = asyncpg.Record
Connection = asyncpg.pool.PoolConnectionProxy  # what the rest of the project calls it: it imports no driver
P = ParamSpec("P")
Work = Callable[Concatenate[Connection, P], Awaitable[T]]  # what is done on a connection, and with which arguments


class LostRaceError(PqsError):
    """Another writer was faster, or PostgreSQL broke a tie (deadlock, serialization). Nothing was written."""


class _PooledConnection(asyncpg.Connection):
    """A connection whose end is never an error: the pool closes one that broke in a task that nobody awaits."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the signature is asyncpg's
        """Say goodbye if that still works, and close."""
        with suppress(*BROKEN):
            await super().close(timeout=timeout)


class Database:
    """One PostgreSQL. Every call takes the work to do on a connection, and gives the connection back in any case.

    Errors are UnavailableError and what is below it; DatabaseDownError is what the breaker counts. LostRaceError
    says that the same work may be done again.

    `scans` is for statements whose best plan depends on what they are given, such as a rare or a common capability:
    each is planned anew, and for data in memory or on an SSD: else PostgreSQL would rather sort than walk an index.
    Without it statements are planned once for each connection, and go by the primary key.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int,
        statement_timeout: timedelta,
        scans: bool = False,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._url = libpq_address(url)
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
        self._at_hand: list[Connection] = []  # not in use, and not in the pool
        self._waiting = 0  # for a connection of the pool
        self._closing = False
        self.breaker = breaker or CircuitBreaker()

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` with a connection and the arguments given. Each of its statements is a snapshot of its own.

        A connection that has gone stale is replaced.
        """
        with self.breaker.guard():
            # Reading again is safe.
            try:
                return await self._do(work, *args, **kwargs)
            except DatabaseDownError as error:  # the server closed a pooled connection: it was started anew
                if not isinstance(error.__cause__, NOT_OPEN):
                    raise
            except LostRaceError:  # a replica breaks reads off that are in the way of what its primary sends
                pass
            try:
                return await self._do(work, *args, **kwargs)
            except LostRaceError as error:
                raise UnavailableError("PostgreSQL broke the read off twice") from error

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` in one transaction.

        When this returns, it is committed. When it raises before the commit, nothing is written. When the connection
        breaks during the commit, it may be written.
        """

        async def transaction(connection: Connection) -> T:
            async with connection.transaction():
                return await work(connection, *args, **kwargs)

        return await self.write_alone(transaction)

    async def write_alone(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work`, each of its statements a transaction of its own: for work that writes by one statement."""
        with self.breaker.guard():
            return await self._do(work, *args, **kwargs)

    async def _do(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with translated():
            connection = await self._take()
            try:
                result = await work(connection, *args, **kwargs)
            except BROKEN:
                # asyncpg may not know yet that it is closed, nor that the others are, which may have broken with it.
                await self._forget_all()
                with suppress(asyncpg.InterfaceError):  # it knows
                    connection.terminate()
                await self._give_back(connection)
                raise
            except BaseException:
                await self._give_back(connection)
                raise
            if self._waiting or self._closing:
                await self._give_back(connection)
            else:
                self._at_hand.append(connection)
            return result

    async def _take(self) -> Connection:
        """A connection: one that is at hand, or from the pool, which makes new ones.

        The pool's own ways take a task each and more time than a statement by key, so what is given back in good
        order goes past it.
        """
        while self._at_hand:
            connection = self._at_hand.pop()
            with suppress(asyncpg.InterfaceError):  # it broke, and the pool has taken it back
                if not connection.is_closed():
                    return connection
            await self._give_back(connection)
        pool = self._pool or await self._open()
        self._waiting += 1
        try:
            return await pool.acquire(timeout=POOL_WAIT)
        except TimeoutError as error:
            if pool.get_size() == self._size and pool.get_idle_size() == 0:
                raise PoolExhaustedError("all database connections are in use") from error
            raise
        except asyncpg.PostgresError as error:  # whatever it says to that, there is no connection
            raise _down(error) from error
        finally:
            self._waiting -= 1

    async def _give_back(self, connection: Connection) -> None:
        """Return a connection to the pool, which closes it if broken, or gives it to the longest waiting caller."""
        with suppress(*BROKEN):  # a connection that can't be given back is closed, and what was done is done
            await cast("asyncpg.Pool[Record]", self._pool).release(connection)

    async def _forget_all(self) -> None:
        """Replace every connection that is not in use now."""
        pool = cast("asyncpg.Pool[Record]", self._pool)
        await pool.expire_connections()
        while self._at_hand:
            await self._give_back(self._at_hand.pop())

    async def _open(self) -> "asyncpg.Pool[Record]":
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=self._size,
                    max_queries=NEVER,
                    command_timeout=self._timeout + ANSWER_GRACE,
                    server_settings=self._settings,
                    reset=_leave_as_it_is,
                    connection_class=_PooledConnection,
                )
            return self._pool

    async def check(self) -> str:
        """The schema's revision. Raises SchemaMismatchError when it is not the one that this code expects, or when
        the role may not read and write."""
        expected = check_revision(await self.read(_revision))
        if rights := await self.read(_lacking_rights):
            raise SchemaMismatchError(f"the database's role lacks a right: {rights}")
        return expected

    async def close(self) -> None:
        """Close every connection; a connection that does not answer is cut."""
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


async def _revision(connection: Connection) -> str | None:
    """The schema's revision, None without one."""
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    found: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    return found


async def _lacking_rights(connection: Connection) -> str | None:
    rights: str | None = await connection.fetchval(LACKING_RIGHTS)
    return rights


async def _leave_as_it_is(_connection: object) -> None:
    """Sessions carry no settings, and asyncpg itself ends an open transaction: nothing is left to be reset."""


@contextmanager
def watched(connection: Connection, lost: Callable[[], None]) -> Iterator[None]:
    """Call `lost` when the connection ends meanwhile; what its session held is then released."""

    def tell(_connection: object) -> None:
        lost()

    connection.add_termination_listener(tell)
    try:
        yield
    finally:
        with suppress(*BROKEN):  # it has ended, and the pool has it back
            connection.remove_termination_listener(tell)


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours. Their messages go to the log, not to the caller."""
    try:
        yield
    except asyncpg.PostgresError as error:
        raise _named(error) from error
    except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        # A connection that can't be made, that breaks, or over which nothing comes any more.
        raise _down(error) from error


@contextmanager
def refused_values() -> Iterator[None]:
    """Raise RefusedValuesError when PostgreSQL or its driver refuses a value; their message goes to the log."""
    try:
        yield
    except REFUSED as error:
        log.warning("a write was refused: %s", error)
        raise RefusedValuesError("the table does not take these values; the log says why") from None


async def check_constraints(connection: Connection) -> None:
    """Have PostgreSQL check deferred constraints now, not at the commit."""
    await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")


# Being shut down, crashed, starting up; no such database.
_DOWN = {"57P01", "57P02", "57P03", "3D000"}


def _down(error: BaseException) -> DatabaseDownError:
    log.warning("the database does not answer: %s: %s", type(error).__name__, error)
    return DatabaseDownError("the database does not answer")


def _named(error: asyncpg.PostgresError) -> Exception:
    state = error.sqlstate or ""
    if isinstance(error, asyncpg.PostgresConnectionError) or state[:2] in {"08", "28", "53"} or state in _DOWN:
        return _down(error)
    if state in {"40001", "40P01"}:
        return LostRaceError("PostgreSQL rolled the transaction back for another one")
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return LostRaceError("a migration changed a table under a prepared statement")
    if state in {"57014", "55P03"}:
        return UnavailableError("the database took too long over a statement, and gave it up")
    if state in {"42P01", "42703", "42704"}:
        return SchemaMismatchError("the database's schema is not the one that this code expects; see /readyz")
    if state == "42501":
        log.error("the database's role lacks a right: %s", error)
        return UnavailableError("the database's role may not do this; see /readyz")
    if state == "25006":
        return UnavailableError("the database is read-only at the moment")
    return error
