"""What waits in the outbox: taken by slots, read in order, removed by id, counted at a bounded price."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from app.store import outbox
from app.store.database import Connection, Database
from app.store.outbox import BACKLOGS, READ, REMOVE, SLOTS, TAKE
from app.store.statements import Statement

# Messages for two destinations by turns, so many for each, spread over the slots.
FILL = """
    INSERT INTO outbox (destination, slot, entity_id, domain, envelope, created_at)
    SELECT destination, i % 64, md5(i::text)::uuid, 'registration', '{}', now() - interval '90 seconds'
    FROM generate_series(1, $1) AS i, unnest(ARRAY['effect:b', 'topic:a']) AS destination
    ORDER BY i
"""
ONE = """
    INSERT INTO outbox (destination, slot, entity_id, domain, envelope)
    VALUES ('topic:a', 0, gen_random_uuid(), 'registration', $1)
"""
MANY = 30_000  # for each destination


async def fill(database: Database, number: int) -> None:
    """Let so many messages wait for each destination."""
    await database.write(lambda connection: connection.execute(FILL, number))


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[Database]:
    """Another process's connections to the same database."""
    database = Database(database_url, pool_size=2, statement_timeout=timedelta(seconds=5))
    yield database
    await database.close()


async def test_a_slot_has_one_holder(database: Database, other: Database) -> None:
    """What one transaction has taken, another one does not get until the first has ended; the rest it does."""
    await fill(database, 1000)

    async def first(connection: Connection) -> tuple[list[int], list[int], list[int]]:
        mine = await outbox.take(connection, "topic:a", most=40)
        return (
            mine,
            await other.write(lambda c: outbox.take(c, "topic:a", most=SLOTS)),
            await other.write(lambda c: outbox.take(c, "effect:b", most=SLOTS)),
        )

    mine, theirs, elsewhere = await database.write(first)
    assert len(mine) == 40
    assert sorted(mine + theirs) == sorted(elsewhere) == list(range(SLOTS))
    assert len(await other.write(lambda c: outbox.take(c, "topic:a", most=SLOTS))) == SLOTS


async def test_a_slot_with_nothing_in_it_is_not_taken(database: Database) -> None:
    """Only slots in which something waits are given."""
    await fill(database, 3)
    assert sorted(await database.write(lambda c: outbox.take(c, "topic:a", most=SLOTS))) == [1, 2, 3]
    assert await database.write(lambda c: outbox.take(c, "topic:c", most=SLOTS)) == []


async def test_messages_are_read_in_the_order_of_their_ids(database: Database) -> None:
    """Of each slot that is asked for the oldest, and nothing of other slots or destinations."""
    await fill(database, 1000)
    read = await database.read(lambda c: outbox.read(c, "topic:a", [3, 5], most=4))
    assert [each.slot for each in read] == [3] * 4 + [5] * 4
    for slot in (3, 5):
        ids = [each.id for each in read if each.slot == slot]
        assert ids == sorted(ids)
        assert ids[0] == min(2 * slot, 2 * slot - 1) + 1


async def test_what_was_committed_late_is_not_removed_with_the_others(database: Database, database_url: str) -> None:
    """A message with a lower id, which was not there yet when the others were read, is there afterwards."""
    late = await asyncpg.connect(database_url)
    try:
        async with late.transaction():
            await late.execute(ONE, "late")
            await database.write(lambda c: c.execute(ONE, "early"))
            read = await database.read(lambda c: outbox.read(c, "topic:a", [0], most=10))
            assert [each.envelope for each in read] == ["early"]
    finally:
        await late.close()
    await database.write(lambda c: outbox.remove(c, "topic:a", read))
    [left] = await database.read(lambda c: outbox.read(c, "topic:a", [0], most=10))
    assert left.envelope == "late"
    assert left.id < read[0].id


async def test_a_small_backlog_is_counted(database: Database) -> None:
    """The number of messages of each destination, and the age of the oldest; nothing where nothing waits."""
    assert await database.read(outbox.backlogs) == []
    await fill(database, 700)
    found = await database.read(outbox.backlogs)
    assert [(each.destination, each.messages) for each in found] == [("effect:b", 700), ("topic:a", 700)]
    assert all(90 <= each.oldest_seconds < 90 + 60 for each in found)


async def test_a_large_backlog_is_estimated(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what is counted, the number is about right, also when the first messages of all slots have gone."""
    monkeypatch.setattr(outbox, "COUNTED", 20)
    await fill(database, MANY)
    await database.write(lambda c: c.execute("DELETE FROM outbox WHERE destination = 'topic:a' AND id < $1", MANY))
    found = {each.destination: each.messages for each in await database.read(outbox.backlogs)}
    assert found == {"effect:b": pytest.approx(MANY, rel=0.02), "topic:a": pytest.approx(MANY / 2, rel=0.02)}


STATEMENTS: dict[str, tuple[Statement, dict[str, object]]] = {
    "take": (TAKE, {"destination": "topic:a", "slots": SLOTS, "most": 16}),
    "read": (READ, {"destination": "topic:a", "slots": [1, 2, 3], "most": 100, "resting": []}),
    "read but some": (READ, {"destination": "topic:a", "slots": [1], "most": 100, "resting": [UUID(int=1)] * 500}),
    "remove": (REMOVE, {"destination": "topic:a", "slots": [1] * 100, "ids": list(range(2, 12_802, 128))}),
    "backlogs": (BACKLOGS, {"slots": SLOTS, "counted": 20}),
}
# Pages of 8 kB that each may touch: for each way down the key, and for each message.
MOST_PAGES = {
    "take": 64 * 5 + 20,
    "read": 3 * 110,
    "read but some": 3 * 110,
    "remove": 100 * 10,
    "backlogs": 2 * 64 * 60,
}


@pytest.mark.parametrize("name", STATEMENTS)
async def test_no_statement_reads_the_whole_outbox(database: Database, name: str) -> None:
    """Each goes by the primary key, and touches as many pages as it needs, however much waits."""
    await fill(database, MANY)
    statement, given = STATEMENTS[name]

    async def explained(connection: Connection) -> dict[str, object]:
        await connection.execute("ANALYZE outbox")
        query = f"EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT JSON) {statement.text}"
        plan: dict[str, object] = json.loads(await connection.fetchval(query, *statement.arguments(given)))[0]["Plan"]
        return plan

    plan = await database.write(explained)
    assert "Seq Scan" not in json.dumps(plan)
    assert "outbox_pkey" in json.dumps(plan)
    assert int(str(plan["Shared Hit Blocks"])) + int(str(plan["Shared Read Blocks"])) <= MOST_PAGES[name]
