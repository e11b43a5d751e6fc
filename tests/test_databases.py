"""A test's database is as new, whatever an earlier test did to the one that it had."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests import databases
from tests.databases import new_database, on_server

INSERT = (
    "INSERT INTO dead_letters (source, topic, headers, error) SELECT 'relay', n, '', '' FROM generate_series(1, 99) n"
)
TABLES = "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
# What there is besides rows.
REST = (
    (
        "SELECT oid, relname, relowner, relchecks, reloptions, relacl::text, pg_relation_size(oid)"
        " FROM pg_class WHERE oid >= 16384 ORDER BY oid"
    ),
    # Not those of indexes: of an empty one the planner takes the file's size, whatever is written here.
    "SELECT relname, relpages, reltuples FROM pg_class WHERE oid >= 16384 AND relkind <> 'i' ORDER BY oid",
    (
        "SELECT attrelid, attnum, attname, atttypid, atttypmod, attnotnull, attisdropped FROM pg_attribute"
        " WHERE attrelid >= 16384 ORDER BY 1, 2"
    ),
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE oid >= 16384 ORDER BY oid",
    "SELECT tgname FROM pg_trigger",
    "SELECT proname FROM pg_proc WHERE oid >= 16384",
    "SELECT enumlabel FROM pg_enum ORDER BY enumsortorder",
    "SELECT nspname FROM pg_namespace ORDER BY 1",
    "SELECT tablename, attname FROM pg_stats WHERE schemaname = 'public'",
    "SELECT sequencename, last_value FROM pg_sequences ORDER BY 1",
    "SELECT current_setting('work_mem'), version_num FROM alembic_version",
    # The looking itself reads the revision.
    (
        "SELECT relname, n_tup_ins, n_tup_upd, n_tup_del, n_live_tup, seq_scan, idx_scan FROM pg_stat_user_tables"
        " WHERE relname <> 'alembic_version' ORDER BY 1"
    ),
    "SELECT indexrelname, idx_scan FROM pg_stat_user_indexes ORDER BY 1",
    "SELECT datacl::text, datconnlimit FROM pg_database WHERE datname = current_database()",
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
    (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    ),
)


@pytest.fixture(autouse=True)
async def none_is_free(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The first database of a test here is really new."""
    monkeypatch.setattr(databases, "_free", [])
    yield
    await databases.drop_free()


async def seen(url: str) -> list[object]:
    """What a test could see of its database."""
    connection = await asyncpg.connect(url)
    try:
        rest = [[tuple(row) for row in await connection.fetch(query)] for query in REST]
        names = [name for (name,) in await connection.fetch(TABLES)]
        return [*rest, *[await connection.fetchval(f'SELECT count(*) FROM "{name}"') for name in names]]
    finally:
        await connection.close()


async def change(url: str, *statements: str) -> None:
    """Do this to a database, each in a transaction of its own."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement.replace("{name}", urlsplit(url).path[1:]))
    finally:
        await connection.close()


async def exists(url: str) -> bool:
    """Whether a database is there."""
    connection = await asyncpg.connect(on_server(url, "postgres"))
    try:
        name = urlsplit(url).path[1:]
        return bool(await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", name))
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "statements",
    [
        [],
        [INSERT],
        [f"BEGIN; {INSERT}; ROLLBACK"],
        [INSERT, "DELETE FROM dead_letters", "VACUUM dead_letters"],
        [f"{INSERT}; SELECT count(*) FROM dead_letters; UPDATE dead_letters SET error = 'other'"],
        ["SELECT pg_advisory_lock(7); LISTEN something; SET work_mem = '1GB'"],
        ["VACUUM ANALYZE outbox, registration_projections"],
    ],
    ids=["nothing", "rows", "rows rolled back", "rows deleted", "rows changed", "a session's own", "vacuum"],
)
async def test_rows_are_gone_and_the_database_is_used_again(statements: list[str]) -> None:
    """Whatever was written to the tables, the next test gets the same database, and can't tell it from a new one."""
    async with new_database() as url:
        await change(url, *statements)
    async with new_database() as again, new_database() as new:
        assert again == url
        assert await seen(again) == await seen(new)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (n int)",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA mine",
        "CREATE SEQUENCE mine",
        "DROP INDEX registration_projections_by_event",
        "ALTER TABLE outbox ADD COLUMN mine int",
        "ALTER TABLE outbox ALTER COLUMN created_at DROP DEFAULT",
        "ALTER TABLE outbox SET (autovacuum_enabled = off)",
        "ALTER TABLE watermarks DROP CONSTRAINT watermarks_numbers",
        "ALTER TYPE registration_state ADD VALUE 'mine'",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'registration_projections_by_event'::regclass",
        "UPDATE alembic_version SET version_num = '9999'",
        "DELETE FROM alembic_version",
        "GRANT SELECT ON outbox TO PUBLIC",
        f"{INSERT}; ANALYZE dead_letters",
        "SELECT nextval('outbox_id_seq')",
        "ALTER DATABASE {name} SET work_mem = '1GB'",
        "ALTER DATABASE {name} CONNECTION LIMIT 9",
        "REVOKE CONNECT ON DATABASE {name} FROM PUBLIC",
    ],
)
async def test_a_database_that_is_no_longer_as_it_was_is_dropped(statement: str) -> None:
    """What emptying the tables does not bring back is seen, and nobody gets that database again."""
    async with new_database() as url:
        await change(url, statement)
    assert not await exists(url)


async def test_a_database_that_lets_nobody_in_is_dropped() -> None:
    """One that can't be looked at is not used again."""
    async with new_database() as url:
        await change(on_server(url, "postgres"), f"ALTER DATABASE {urlsplit(url).path[1:]} ALLOW_CONNECTIONS false")
    assert not await exists(url)


async def test_a_session_that_stays_costs_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets a database in which somebody else could still write."""
    monkeypatch.setattr(databases, "PATIENCE", 0.2)
    async with new_database() as url:
        left_open = await asyncpg.connect(url)
    assert not await exists(url)
    left_open.terminate()


async def test_an_error_costs_the_database() -> None:
    """Where the end of a test is not known, neither is what still goes on in its database."""
    with pytest.raises(ArithmeticError):
        async with new_database() as url:
            raise ArithmeticError
    assert not await exists(url)


async def test_two_at_once_are_two() -> None:
    """A database has one user at a time."""
    async with new_database() as one, new_database() as two:
        assert one != two
