"""`pqs verify` as a process: the state counts against a full count."""

import asyncio

import asyncpg
import pytest

from app.projection.projector import Projector
from tests.making import event, node
from tests.processes import pqs, refusal
from tests.store.test_schema import migrated

COUNTS = "registration_state_counts"
WELL = "the state counts equal a full count\n"


async def verified(url: str) -> tuple[int, str]:
    """The exit status and the output of the command."""
    run = await asyncio.to_thread(pqs, "verify", database_url=url)
    assert run.stderr == ""
    return run.returncode, run.stdout


async def change(url: str, statement: str) -> None:
    """Change the counters directly in the database."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
async def counted_url(database_url: str, projector: Projector) -> str:
    """The address of a database with two nodes pending and one accepted, and one pending in another domain."""
    await projector.persist([event("registration.initiated", 1, entity_id=node(number)) for number in range(3)])
    await projector.persist([event("registration.accepted", 2, entity_id=node(0))])
    await projector.persist([event("registration.initiated", 1, domain="edge")])
    return database_url


async def test_all_is_well(counted_url: str) -> None:
    """If all counts are right the status is 0, and one line says so."""
    assert await verified(counted_url) == (0, WELL)


async def test_no_rows_and_no_counters(database_url: str) -> None:
    """An empty database passes."""
    assert await verified(database_url) == (0, WELL)


async def test_it_says_what_differs(counted_url: str) -> None:
    """Wrong counts give status 1, and a line each: a count too high, a count missing, a count without rows."""
    await change(counted_url, f"UPDATE {COUNTS} SET count = count + 1000 WHERE current_state = 'accepted'")
    await change(counted_url, f"DELETE FROM {COUNTS} WHERE domain = 'edge'")
    await change(
        counted_url, f"INSERT INTO {COUNTS} VALUES ('nowhere', 'active', 0, 3), ('nowhere', 'active', 1, -1)"
    )
    status, said = await verified(counted_url)
    assert status == 1
    assert said.splitlines() == [
        "domain edge, pending_registration: kept 0, counted 1",
        "domain nowhere, active: kept 2, counted 0",
        "domain registration, accepted: kept 1,001, counted 1",
    ]
    await change(counted_url, f"UPDATE {COUNTS} SET count = count - 1000 WHERE current_state = 'accepted'")
    await change(counted_url, f"INSERT INTO {COUNTS} VALUES ('edge', 'pending_registration', 7, 1)")
    await change(counted_url, f"UPDATE {COUNTS} SET count = -3 WHERE domain = 'nowhere' AND slot = 1")
    assert await verified(counted_url) == (0, WELL)


async def test_a_schema_without_counters(empty_database_url: str) -> None:
    """A database at an older revision is refused in one line, with status 1."""
    await migrated(empty_database_url, "0001")
    run = await asyncio.to_thread(pqs, "verify", database_url=empty_database_url)
    assert "schema" in refusal(run)
