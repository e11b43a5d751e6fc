"""The revisions of the schema: the one that this code expects, and the migration to it.

Alembic is imported only where a migration runs; the service itself needs only the revisions' names.
"""

import asyncio
import logging
import time
from pathlib import Path

import asyncpg
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.errors import SchemaMismatchError, StartError, UnusableDatabaseError
from app.store import sequences, sessions

log = logging.getLogger(__name__)

# Every revision, oldest first. A test compares this with Alembic's own list.
REVISIONS = tuple(f"{number:04}" for number in range(1, 17))
HEAD = REVISIONS[-1]
BASE = "base"  # before the first revision: no tables

LOCK_KEY = 0x7071_735F_6D69_67  # "pqs_mig": one migration of a database at a time
LOCK_POLL = 0.1  # seconds
LOCK_SAID = 1.0  # seconds of waiting for the lock until the log says so
LOCK_WAIT = 300.0  # seconds to wait for the lock at most
# Finds who holds an advisory lock whose key is a bigint.
HOLDER = """
SELECT pid FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND classid::bigint = CAST(:key AS bigint) >> 32
    AND objid::bigint = CAST(:key AS bigint) & 4294967295
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
REFUSED = "42"  # the error class of missing rights, and of names that exist already or do not exist
ENCODING = "UTF8"
SETTINGS = {"application_name": "pqs migrate", "idle_in_transaction_session_timeout": "0"}
LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's error when lock_timeout is over


def check_encoding(encoding: str) -> None:
    """Raise UnusableDatabaseError for an encoding that cannot hold every text."""
    if encoding != ENCODING:
        raise UnusableDatabaseError(
            f"the database's encoding is {encoding}, and the service needs {ENCODING}; make it anew with "
            f"ENCODING '{ENCODING}' TEMPLATE template0"
        )


def check_revision(revision: str | None) -> str:
    """`revision` if it is the expected one. Raises SchemaMismatchError, which names the missing revisions."""
    if revision == HEAD:
        return revision
    if revision is not None and revision not in REVISIONS:
        raise SchemaMismatchError(
            f"the database's schema is at revision {revision}, which this code does not know (it expects {HEAD}): "
            "it was migrated by a later release; run that release"
        )
    missing = REVISIONS if revision is None else REVISIONS[REVISIONS.index(revision) + 1 :]
    at = "has no schema" if revision is None else f"is at revision {revision}"
    raise SchemaMismatchError(f"the database {at}; missing: {', '.join(missing)}; run `pqs migrate`")


def create_engine(url: str, *, pool_size: int = 1) -> AsyncEngine:
    """An engine for migrations. The service itself runs its statements with asyncpg (see `statements.py`)."""

    async def connect() -> "asyncpg.Connection[asyncpg.Record]":
        return await sessions.opened(url, SETTINGS)

    return create_async_engine("postgresql+asyncpg://", async_creator=connect, pool_size=pool_size, max_overflow=0)


def script_location() -> Path:
    """The folder of the migrations: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "alembic"


async def is_current(url: str) -> bool:
    """Whether the schema is at HEAD. A start that asks this first saves the import of Alembic."""
    connection = await sessions.opened(url, SETTINGS)
    try:
        check_encoding(connection.get_settings().server_encoding)
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            return False
        return bool(await connection.fetchval("SELECT version_num FROM alembic_version") == HEAD)
    finally:
        await connection.close()


async def initialize_schema(
    engine: AsyncEngine, target: str = HEAD, *, by: str | None = None, lock_wait: float = LOCK_WAIT
) -> tuple[str, str]:
    """Bring the database to revision `target`, up or down, for `pqs migrate`; return the revisions before and after.

    `by` is written to the audit log, if there is one then. It is safe to repeat, and to run twice at once: the second
    run waits for the first, for `lock_wait` seconds at most. At HEAD, sequences that are behind their tables are set,
    as after logical replication. Raises StartError if that time is over, if the database is at a revision that this
    code does not know, if PostgreSQL refuses the migration, or if another session keeps a table locked.
    """
    if target not in (*REVISIONS, BASE):
        raise StartError(f"there is no revision {target}; known are {BASE}, {', '.join(REVISIONS)}")
    async with engine.connect() as guard, engine.connect() as connection:
        await guard.execution_options(isolation_level="AUTOCOMMIT")
        check_encoding(await guard.scalar(text("SELECT current_setting('server_encoding')")) or "")
        await _lock(guard, lock_wait)
        try:
            was = await _revision(connection)
            if was not in (*REVISIONS, BASE):
                raise StartError(f"the database is at revision {was}, which this code does not know; nothing done")
            await connection.run_sync(_run, was, target)
            is_ = await _revision(connection)
            if is_ == HEAD:
                await _mend_sequences(connection)
            if was != is_ and by is not None:
                await _write_down(connection, by, f"from {was} to {is_}")
        except DBAPIError as error:
            state = getattr(error.orig, "sqlstate", None) or ""
            said = getattr(error.orig, "__cause__", None)
            if state.startswith(REFUSED):
                raise StartError(f"PostgreSQL refuses the migration: {said}; the revision was rolled back") from error
            if state != LOCK_NOT_AVAILABLE:
                raise said or error from None  # the driver's own error, which `translated` knows
            raise StartError(
                "another session keeps a table locked that the migration must change; the revision that waited for "
                "the lock was rolled back; run `pqs migrate` again when that session is done"
            ) from error
        finally:
            await guard.scalar(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})
        return was, is_


async def _lock(guard: AsyncConnection, wait: float) -> None:
    """Take the lock of migrations.

    It polls: a statement that waits for the lock would hold a snapshot, and a concurrent index build in the other
    migration would wait for that snapshot.
    """
    began, said = time.monotonic(), False
    while not await guard.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY}):
        waited = time.monotonic() - began
        holder = await guard.scalar(text(HOLDER), {"key": LOCK_KEY})
        if waited > wait:
            raise StartError(
                f"another migration of this database holds the lock, process {holder} of the server, for more than "
                f"{wait:.0f} seconds; run `pqs migrate` again when it has ended"
            )
        if waited > LOCK_SAID and not said:
            log.warning("waiting for another migration of this database, process %s of the server", holder)
            said = True
        await asyncio.sleep(LOCK_POLL)


async def _mend_sequences(connection: AsyncConnection) -> None:
    """Set the sequences that are behind their tables, where this role may."""
    raw = (await connection.get_raw_connection()).driver_connection
    try:
        for each in await sequences.mend(raw):
            log.warning("the sequence %s was behind its table, and goes on after %d", each.sequence, each.id)
    except asyncpg.InsufficientPrivilegeError as error:
        log.warning("a sequence that is behind its table cannot be set: %s", error)


async def _revision(connection: AsyncConnection) -> str:
    revision = BASE
    if await connection.scalar(text("SELECT to_regclass('alembic_version')")) is not None:
        revision = await connection.scalar(text("SELECT version_num FROM alembic_version")) or BASE
    await connection.commit()
    return revision


async def _write_down(connection: AsyncConnection, by: str, target: str) -> None:
    """Write a migration down, after it: each of its revisions was a transaction of its own."""
    if await connection.scalar(text("SELECT to_regclass('audit_log')")) is not None:
        await connection.execute(
            text(
                "INSERT INTO audit_log (principal, action, target, outcome) VALUES (:by, 'migrate', :target, 'done')"
            ),
            {"by": by, "target": target},
        )
    await connection.commit()


def _run(connection: Connection, was: str, target: str) -> None:
    from alembic.config import Config  # noqa: PLC0415

    from alembic import command  # noqa: PLC0415 - see the module's docstring

    config = Config()
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.attributes["connection"] = connection
    order = (BASE, *REVISIONS)
    if order.index(target) < order.index(was):
        command.downgrade(config, target)
    elif target != was:
        command.upgrade(config, target)
