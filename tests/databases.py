"""Databases for tests, on one running PostgreSQL: each is migrated and empty, as if it were new.

Creating and dropping a database takes longer than most tests. So a test's database is emptied and reused by the next
test of the process, or dropped if emptying would not restore it.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from app.store.schema import create_engine, initialize_schema

SERVER = "TESTS_POSTGRES"  # the variable with the server's address, for the worker processes
TEMPLATE = "pqs_template"
PATIENCE = 5.0  # seconds for the sessions that a test has closed, or killed, to be gone
POLL = 0.005  # seconds

State = Sequence[asyncpg.Record]  # of all that is no table's content: equal when nothing was changed

# Where PostgreSQL writes down what a database is: its schema, rights, settings and statistics.
CATALOGS = (
    "pg_attrdef",
    "pg_attribute",
    "pg_class",
    "pg_constraint",
    "pg_database WHERE datname = current_database()",
    "pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())",
    "pg_default_acl",
    "pg_depend",
    "pg_enum",
    "pg_event_trigger",
    "pg_extension",
    "pg_index",
    "pg_namespace",
    "pg_policy",
    "pg_proc",
    "pg_publication",
    "pg_rewrite",
    "pg_statistic",
    "pg_statistic_ext",
    "pg_trigger",
    "pg_type",
    "alembic_version",
)
# Whatever is written or removed there changes one of these numbers.
STATE = " UNION ALL ".join(f"SELECT count(*), max(xmin::text::bigint) FROM {catalog}" for catalog in CATALOGS)

OTHERS = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)
# The tables that were written to, committed or not, and those that were vacuumed or analyzed.
TOUCHED = (
    "SELECT string_agg(oid::regclass::text, ', ') FROM pg_class"
    " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'"
    " AND (pg_relation_size(oid) > 0 OR reltuples >= 0)"
)
# No table owns this sequence, as the slices of the change log share it.
RESTART_CHANGES = "ALTER SEQUENCE changes_id_seq RESTART"
USED_SEQUENCES = "SELECT count(*) FROM pg_sequences WHERE last_value IS NOT NULL"

_free: list[tuple[str, State]] = []  # the names of databases that nobody uses


def on_server(url: str, database: str) -> str:
    """The address of another database on the same server."""
    return urlsplit(url)._replace(path=f"/{database}").geturl()


async def make_template(url: str) -> None:
    """Migrate, once, the template from which every database is copied."""
    async with _connected(url) as connection:
        await connection.execute(f"DROP DATABASE IF EXISTS {TEMPLATE}")
        await connection.execute(f"CREATE DATABASE {TEMPLATE}")
    engine = create_engine(on_server(url, TEMPLATE), pool_size=2)
    try:
        await initialize_schema(engine)
    finally:
        await engine.dispose()


@asynccontextmanager
async def new_database() -> AsyncIterator[str]:
    """The address of a migrated, empty database for one user."""
    name, state = _free.pop() if _free else await _made()
    cleared = None
    try:
        yield _address(name)
        cleared = await _cleared(name, state)
    finally:
        if cleared is None:
            await _drop(name)
        else:
            _free.append((name, cleared))


@asynccontextmanager
async def bare_database(options: str = "") -> AsyncIterator[str]:
    """The address of a new database without a schema; `options` are those of CREATE DATABASE."""
    name = await _create(f"template0 {options}")
    try:
        yield _address(name)
    finally:
        await _drop(name)


async def drop_free() -> None:
    """Drop all free databases, on a server that outlives the tests."""
    while _free:
        name, _ = _free.pop()
        await _drop(name)


async def _made() -> tuple[str, State]:
    name = await _create(TEMPLATE)
    async with _connected(_address(name)) as connection:
        return name, await connection.fetch(STATE)


async def _create(template: str) -> str:
    name = f"test_{uuid4().hex}"
    async with _connected(os.environ[SERVER]) as server:
        await server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    return name


async def _drop(name: str) -> None:
    async with _connected(os.environ[SERVER]) as server:
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def _cleared(name: str, state: State) -> State | None:
    """Empty a database, and return its state; None if it must not be reused.

    It must not if a session is still open, or if anything other than the tables' content has changed.
    """
    try:
        async with asyncio.timeout(PATIENCE), _connected(_address(name)) as connection:
            while await connection.fetchval(OTHERS):  # noqa: ASYNC110 - the sessions are in other processes
                await asyncio.sleep(POLL)
            if await connection.fetch(STATE) != state:
                return None
            if touched := await connection.fetchval(TOUCHED):
                await connection.execute(f"TRUNCATE {touched} RESTART IDENTITY CASCADE")
                await connection.execute(RESTART_CHANGES)
                await connection.execute("SELECT pg_stat_force_next_flush()")  # of what that counted
            await connection.execute("SELECT pg_stat_reset()")
            return None if await connection.fetchval(USED_SEQUENCES) else await connection.fetch(STATE)
    except (TimeoutError, asyncpg.PostgresError, OSError):
        return None


def _address(name: str) -> str:
    return on_server(os.environ[SERVER], name)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()
