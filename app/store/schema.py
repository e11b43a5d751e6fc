"""The revisions of the schema: the one that this code expects, and the migration to it.

Alembic is imported only where a migration runs; the service itself needs only the revisions' names.
"""

import asyncio
from pathlib import Path

import asyncpg
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.errors import SchemaMismatchError, StartError

# Every revision, oldest first. A test compares this with Alembic's own list.
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0012")
HEAD = REVISIONS[-1]
BASE = "base"  # before the first revision: no tables

LOCK_KEY = 0x7071_735F_6D69_67  # "pqs_mig": one migration of a database at a time
LOCK_POLL = 0.1  # seconds
REFUSED = "42"  # the error class of missing rights, and of names that exist already or do not exist
CONNECT_TIMEOUT = 3.0  # seconds
LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's error when lock_timeout is over


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


def libpq_address(url: str) -> str:
    """The address in the form that libpq and asyncpg accept."""
    return url.replace("postgresql+asyncpg://", "postgresql://", 1)


def create_engine(url: str, *, pool_size: int = 1) -> AsyncEngine:
    """An engine for migrations. The service itself runs its statements with asyncpg (see `statements.py`)."""

    async def connect() -> "asyncpg.Connection[asyncpg.Record]":
        return await asyncpg.connect(libpq_address(url), timeout=CONNECT_TIMEOUT)

    return create_async_engine("postgresql+asyncpg://", async_creator=connect, pool_size=pool_size, max_overflow=0)


def script_location() -> Path:
    """The folder of the migrations: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "alembic"


async def is_current(url: str) -> bool:
    """Whether the schema is at HEAD. A start that asks this first saves the import of Alembic."""
    connection = await asyncpg.connect(libpq_address(url), timeout=CONNECT_TIMEOUT)
    try:
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            return False
        return bool(await connection.fetchval("SELECT version_num FROM alembic_version") == HEAD)
    finally:
        await connection.close()


async def initialize_schema(engine: AsyncEngine, target: str = HEAD, *, by: str | None = None) -> tuple[str, str]:
    """Bring the database to revision `target`, up or down, for `pqs migrate`; return the revisions before and after.

    `by` is written to the audit log, if there is one then. It is safe to repeat, and to run twice at once: the second
    run waits for the first. Raises StartError if the database is at a revision that this code does not know, if
    PostgreSQL refuses the migration, or if another session keeps a table locked.
    """
    if target not in (*REVISIONS, BASE):
        raise StartError(f"there is no revision {target}; known are {BASE}, {', '.join(REVISIONS)}")
    async with engine.connect() as guard, engine.connect() as connection:
        # Poll for the lock: a statement that waits for it would hold a snapshot, and a concurrent index build in the
        # other migration would wait for that snapshot.
        await guard.execution_options(isolation_level="AUTOCOMMIT")
        while not await guard.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY}):  # noqa: ASYNC110 - the lock is in another process
            await asyncio.sleep(LOCK_POLL)
        try:
            was = await _revision(connection)
            if was not in (*REVISIONS, BASE):
                raise StartError(f"the database is at revision {was}, which this code does not know; nothing done")
            await connection.run_sync(_run, was, target)
            is_ = await _revision(connection)
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
