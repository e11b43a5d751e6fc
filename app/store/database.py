"""One PostgreSQL: its connections, transactions, circuit breaker and health."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TypeVar

import asyncpg
import msgspec
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.errors import DatabaseDownError, PoolExhaustedError, PqsError, SchemaMismatchError, UnavailableError
from app.store.breaker import CircuitBreaker
from app.store.schema import check_revision

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 3.0  # seconds, for a server that swallows packets; one that refuses is noticed at once
POOL_WAIT = 2.0  # seconds to wait for a free connection before the caller is sent away
ANSWER_GRACE = 2.0  # seconds beyond the statement time-out, after which a server that says nothing counts as down

# Which of the rights that the service needs its role does not have.
LACKING_RIGHTS = """
SELECT string_agg(needed, ', ') FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS needed
WHERE NOT has_table_privilege('registration_projections', needed)
"""

T = TypeVar("T")
Connection = AsyncConnection  # what the rest of the project calls it: it imports no SQLAlchemy
Work = Callable[[Connection], Awaitable[T]]


class LostRaceError(PqsError):
    """Another writer was faster, or PostgreSQL broke a tie (deadlock, serialization). Nothing was written."""


def create_engine(
    url: str, *, pool_size: int = 1, statement_timeout: timedelta | None = None, scans: bool = False
) -> AsyncEngine:
    """An engine for the PostgreSQL at `url`, a libpq address; asyncpg reads it, so `sslmode` and `host` work.

    `scans` is for statements whose best plan depends on what they are given, such as a rare or a common capability:
    each is planned anew. And they page through indexes: for data in memory or on an SSD, where that is cheap, and not
    for a disk that turns, for which PostgreSQL would now and then rather read all that is overdue, and sort it.
    """
    dsn = url.replace("postgresql+asyncpg://", "postgresql://", 1)
    settings = {"application_name": "pqs", "timezone": "UTC"}
    if scans:
        settings |= {"plan_cache_mode": "force_custom_plan", "random_page_cost": "1.1"}
    command_timeout = None
    if statement_timeout is not None:
        settings["statement_timeout"] = str(round(statement_timeout.total_seconds() * 1000))
        command_timeout = statement_timeout.total_seconds() + ANSWER_GRACE

    async def connect() -> "asyncpg.Connection[asyncpg.Record]":
        return await asyncpg.connect(
            dsn, timeout=CONNECT_TIMEOUT, command_timeout=command_timeout, server_settings=settings
        )

    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,  # what nodes say of themselves is not for the log
        pool_timeout=POOL_WAIT,
        json_serializer=lambda value: msgspec.json.encode(value).decode(),
        json_deserializer=msgspec.json.decode,
    )


class Database:
    """One PostgreSQL. Every call takes the work to do on a connection, and gives the connection back in any case.

    Errors are UnavailableError and what is below it; DatabaseDownError is what the breaker counts. LostRaceError
    says that the same work may be done again.
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
        self._engine = create_engine(url, pool_size=pool_size, statement_timeout=statement_timeout, scans=scans)
        self._reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self.breaker = breaker or CircuitBreaker()

    async def read(self, work: Work[T]) -> T:
        """Do `work`, each of its statements a snapshot of its own. A connection that had gone stale is replaced."""
        async with self.breaker.guard():
            # Reading again is safe.
            try:
                return await self._read(work)
            except DatabaseDownError as error:  # the server closed a pooled connection: it was started anew
                if not isinstance(error.__cause__, exc.DBAPIError):
                    raise
            except LostRaceError:  # a replica breaks reads off that are in the way of what its primary sends
                pass
            try:
                return await self._read(work)
            except LostRaceError as error:
                raise UnavailableError("PostgreSQL broke the read off twice") from error

    async def _read(self, work: Work[T]) -> T:
        async with translated(), self._reading.connect() as connection:
            return await work(connection)

    async def write(self, work: Work[T]) -> T:
        """Do `work` as one transaction. When this returns, it is committed; when it raises before the commit, nothing
        is written; when the connection breaks in the commit, it may be."""
        async with self.breaker.guard(), translated(), self._engine.begin() as connection:
            return await work(connection)

    async def check(self) -> str:
        """The schema's revision. Raises SchemaMismatchError when it is not the one that this code expects, or when
        the role may not read and write."""

        async def revision(connection: AsyncConnection) -> str | None:
            known = await connection.scalar(text("SELECT to_regclass('alembic_version')"))
            if known is None:
                return None
            found: str | None = await connection.scalar(text("SELECT version_num FROM alembic_version"))
            return found

        async def lacking(connection: AsyncConnection) -> str | None:
            rights: str | None = await connection.scalar(text(LACKING_RIGHTS))
            return rights

        expected = check_revision(await self.read(revision))
        if rights := await self.read(lacking):
            raise SchemaMismatchError(f"the database's role lacks the right to {rights} registration_projections")
        return expected

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn the driver's errors into ours. What they say goes to the log, not to the caller."""
    try:
        yield
    except exc.DBAPIError as error:
        raise _named(error) from error
    except exc.TimeoutError as error:
        raise PoolExhaustedError("all database connections are in use") from error
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # asyncpg raises these from connecting, and a TimeoutError from a server that says nothing any more.
        log.warning("the database does not answer: %s: %s", type(error).__name__, error)
        raise DatabaseDownError("the database does not answer") from error


# Being shut down, crashed, starting up; no such database.
_DOWN = {"57P01", "57P02", "57P03", "3D000"}


def _named(error: exc.DBAPIError) -> Exception:
    state = getattr(error.orig, "sqlstate", None) or ""
    if error.connection_invalidated or state[:2] in {"08", "28", "53"} or state in _DOWN:
        log.warning("the database does not answer: %s", error.orig)
        return DatabaseDownError("the database does not answer")
    if state in {"40001", "40P01"}:
        return LostRaceError("PostgreSQL rolled the transaction back for another one")
    if isinstance(getattr(error.orig, "__cause__", None), asyncpg.InvalidCachedStatementError):
        return LostRaceError("a migration changed a table under a prepared statement")
    if state in {"57014", "55P03"}:
        return UnavailableError("the database took too long over a statement, and gave it up")
    if state in {"42P01", "42703", "42704"}:
        return SchemaMismatchError("the database's schema is not the one that this code expects; see /readyz")
    if state == "42501":
        log.error("the database's role lacks a right: %s", error.orig)
        return UnavailableError("the database's role may not do this; see /readyz")
    if state == "25006":
        return UnavailableError("the database is read-only at the moment")
    return error
