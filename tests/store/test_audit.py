"""The audit log: written with each act, read in pages, and never changed."""

import asyncpg
import pytest
from msgspec.structs import asdict

from app.store import audit
from app.store.audit import Act, LoggedAct
from app.store.database import Connection, Database

ACT = Act(
    principal="key:ops",
    action="entities.forget",
    target="registration/7a1c5f7e-9d53-4c58-8a3c-1f0e2d3c4b5a",
    correlation_id="c-1",
    peer="192.0.2.1",
)


async def page_of(connection: Connection, before: int = audit.NEWEST, limit: int = 10) -> list[LoggedAct]:
    """A page of the audit log."""
    return await audit.get_page(connection, before=before, limit=limit)


async def test_an_act_is_read_back(database: Database) -> None:
    """An act is read back with an id and the database's time."""
    await database.write(audit.add, ACT)
    [entry] = await database.read(page_of)
    assert {name: value for name, value in asdict(entry).items() if name not in {"id", "at"}} == asdict(ACT)
    assert entry.id == 1


async def test_an_act_that_is_rolled_back_is_not_in_the_log(database: Database) -> None:
    """An entry is written in the act's transaction, so a rollback of the act removes the entry."""

    async def fail(connection: Connection) -> None:
        await audit.add(connection, ACT)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await database.write(fail)
    assert await database.read(page_of) == []


async def test_pages_are_newest_first(database: Database) -> None:
    """Pages give each entry once, newest first, by the primary key."""

    async def work(connection: Connection) -> None:
        for number in range(7):
            await audit.add(connection, Act(principal="p", action="a", target=str(number)))

    await database.write(work)
    found: list[str] = []
    before = audit.NEWEST
    while page := await database.read(page_of, before, 3):
        found += [entry.target for entry in page]
        before = page[-1].id
    assert found == ["6", "5", "4", "3", "2", "1", "0"]

    async def plan(connection: Connection) -> str:
        rows = await connection.fetch(
            f"EXPLAIN {audit.LIST.text}", *audit.LIST.arguments({"before": audit.NEWEST, "limit": 3})
        )
        return "\n".join(row[0] for row in rows)

    assert "Index Scan Backward using audit_log_pkey" in await database.read(plan)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET principal = 'nobody'",
        "DELETE FROM audit_log",
        "TRUNCATE audit_log",
        """INSERT INTO audit_log (id, principal, action, target, outcome) OVERRIDING SYSTEM VALUE
        VALUES (1, 'x', 'x', 'x', 'x') ON CONFLICT (id) DO UPDATE SET principal = 'nobody'""",
    ],
)
async def test_an_entry_stays_as_it_is(database: Database, database_url: str, statement: str) -> None:
    """No role, not even the superuser, can change or remove an entry."""
    await database.write(audit.add, ACT)
    connection = await asyncpg.connect(database_url)
    try:
        with pytest.raises(
            asyncpg.RaiseError, match=r"^audit_log is insert-only: (UPDATE|DELETE|TRUNCATE) is refused$"
        ):
            await connection.execute(statement)
        assert await connection.fetchval("SELECT string_agg(principal, ',') FROM audit_log") == "key:ops"
    finally:
        await connection.close()


async def test_a_strange_name_does_not_hinder_an_act(database: Database) -> None:
    """Characters that PostgreSQL cannot store are escaped in an entry, and long values are cut."""
    await database.write(audit.add, Act(principal="p" * 400, action="a", target="a\0b\ud800" + "x" * 5000))
    [entry] = await database.read(page_of)
    assert (len(entry.principal), entry.target[:9], len(entry.target)) == (300, "a\\u0000b?", 4000)
