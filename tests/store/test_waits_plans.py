"""The plans of what reads that wait ask for, and of erasing: by the keys, and never by a scan of rows or changes."""

import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import pytest

from app.store import erasure, waits
from app.store.database import Connection, Database
from app.store.statements import Statement
from tests.databases import new_database
from tests.feed.test_plans import fill
from tests.making import node
from tests.store.test_plans import buffers, explain, explain_generic, indexes, kinds

ENTITY = UUID(bytes=hashlib.md5(b"entity 7", usedforsecurity=False).digest())
OF_ENTITY = {f"changes_{number:02}_entity_id_id_idx" for number in range(16)}


@pytest.fixture(scope="module")
async def filled() -> AsyncIterator[Database]:
    """A change log with rows in every slice, 10,000 registrations, dead letters, and messages that wait."""
    async with new_database() as url:
        database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=30))
        await database.write(fill)
        await database.write(_fill)
        yield database
        await database.close()


ROWS = """
INSERT INTO registration_projections (entity_id, domain, current_state, node_type, node_version, capabilities,
    last_applied_event_id, last_applied_sequence, registered_at, updated_at, version)
SELECT md5('entity ' || n)::uuid, 'registration', 'active', 'compute', '1', '{}', gen_random_uuid(), 1, now(), now(),
    1
FROM generate_series(1, 10000) AS n
"""
LETTERS = """
INSERT INTO dead_letters (source, topic, partition, "offset", key, value, headers, error)
SELECT 'consumer', 'nodes', 0, n, '', convert_to(repeat('x', 500), 'UTF8'), '[]', 'no'
FROM generate_series(1, 5000) AS n
"""
MESSAGES = """
INSERT INTO outbox (destination, slot, envelope)
SELECT 'topic:out', n % 64, repeat('x', 500) FROM generate_series(1, 6400) AS n
"""


async def _fill(connection: Connection) -> None:
    for each in (ROWS, LETTERS, MESSAGES, "ANALYZE registration_projections, dead_letters, outbox"):
        await connection.execute(each)


async def test_versions_are_read_by_the_key(filled: Database) -> None:
    """As many rows as are asked for, whatever their order."""
    names = [UUID(bytes=hashlib.md5(b"entity %d" % n, usedforsecurity=False).digest()) for n in range(1, 101)]
    given: dict[str, object] = {"entity_ids": names, "domains": ["registration"] * len(names)}
    plan = await filled.read(explain, waits.VERSIONS, given)
    assert "Seq Scan" not in kinds(plan)
    assert indexes(plan) == {"registration_projections_pkey"}
    assert buffers(plan) <= 400


async def test_a_state_that_was_passed_is_found_by_the_entity(filled: Database) -> None:
    """Only the changes of one entity are read."""
    given: dict[str, object] = {
        "entity_id": ENTITY,
        "domain": "registration",
        "after": 1,
        "to": 2**62,
        "states": ["active"],
    }
    plan = await filled.read(explain, waits.REACHED, given)
    assert "Seq Scan" not in kinds(plan)
    assert indexes(plan) == OF_ENTITY
    assert buffers(plan) <= 200


@pytest.mark.parametrize("statement", [waits.VERSIONS, waits.REACHED], ids=["versions", "reached"])
async def test_prepared_statements_of_waits_never_scan(filled: Database, statement: Statement) -> None:
    """Whatever they are given."""
    plan = await filled.read(explain_generic, statement)
    assert "Seq Scan" not in kinds(plan)


async def test_letters_are_looked_through_page_by_page(filled: Database) -> None:
    """In the order of their key: no page reads more than its own letters."""
    given: dict[str, object] = {"after": 1000, "most": erasure.PAGE, "spellings": [f"%{node(1)}%"]}
    plan = await filled.read(explain, erasure.NAMING, given)
    assert "dead_letters_pkey" in indexes(plan)
    assert "Seq Scan" not in kinds(plan)
    assert buffers(plan) <= 100


@pytest.mark.parametrize(
    "statement", [erasure.REMOVE, erasure.DROP, erasure.SHORTEN], ids=["remove", "drop", "shorten"]
)
async def test_what_is_erased_is_removed_by_its_key(filled: Database, statement: Statement) -> None:
    """Letters by their ids, messages by the outbox's key."""
    plan = await filled.read(explain_generic, statement)
    assert "Seq Scan" not in kinds(plan)


async def test_messages_that_wait_are_those_of_one_slot(filled: Database) -> None:
    """An entity's messages are in one slot of the outbox: no other is read."""
    plan = await filled.read(explain, erasure.WAITING, {"slot": 5, "spelling": f"%{node(1)}%"})
    assert "Seq Scan" not in kinds(plan)
