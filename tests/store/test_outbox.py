"""The outbox: entries are locked by slot, read in order, removed by id, and counted at a bounded cost."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.store import outbox
from app.store.database import POINTS, Connection, Database
from app.store.outbox import BACKLOGS, READ, REMOVE, ROOM, SHORTEN, SLOTS, TAKE, Entry, Lines
from app.store.statements import Statement

# Messages for two destinations by turns, so many for each, spread over the slots.
FILL = """
    INSERT INTO outbox (destination, slot, intent_entity_id, envelope, created_at)
    SELECT destination, i % 4, md5(i::text)::uuid, '{}', now() - interval '90 seconds'
    FROM generate_series(1, $1) AS i, unnest(ARRAY['effect:b', 'topic:a']) AS destination
    ORDER BY i
"""
ONE = """
    INSERT INTO outbox (destination, slot, envelope)
    VALUES ('topic:a', 0, $1)
"""
MANY = 30_000  # for each destination


async def fill(database: Database, number: int) -> None:
    """Add this many messages for each destination."""
    await database.write(lambda connection: connection.execute(FILL, number))


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[Database]:
    """Another process's connections to the same database."""
    database = Database(database_url, pool_size=2, statement_timeout=timedelta(seconds=5))
    yield database
    await database.close()


async def test_a_slot_has_one_holder(database: Database, other: Database) -> None:
    """A slot locked by one transaction is not given to another until the first ends; other slots are."""
    await fill(database, 1000)

    async def first(connection: Connection) -> tuple[list[int], list[int], list[int]]:
        mine = await outbox.take(connection, "topic:a", most=3)
        return (
            mine,
            await other.write(lambda c: outbox.take(c, "topic:a", most=SLOTS)),
            await other.write(lambda c: outbox.take(c, "effect:b", most=SLOTS)),
        )

    mine, theirs, elsewhere = await database.write(first)
    assert len(mine) == 3
    assert sorted(mine + theirs) == sorted(elsewhere) == list(range(SLOTS))
    assert len(await other.write(lambda c: outbox.take(c, "topic:a", most=SLOTS))) == SLOTS


async def test_a_slot_with_nothing_in_it_is_not_taken(database: Database) -> None:
    """Only slots with waiting entries are given."""
    await fill(database, 3)
    assert sorted(await database.write(lambda c: outbox.take(c, "topic:a", most=SLOTS))) == [1, 2, 3]
    assert await database.write(lambda c: outbox.take(c, "topic:c", most=SLOTS)) == []


async def test_messages_are_read_in_the_order_of_their_ids(database: Database) -> None:
    """A read gives the oldest entries of each requested slot, and none of other slots or destinations."""
    await fill(database, 1000)
    read = await database.read(lambda c: outbox.read(c, "topic:a", [1, 3], most=4))
    ids = [each.id for each in read]
    assert [(each + 1) // 2 for each in ids] == [SLOTS * row + slot for slot in (1, 3) for row in range(4)]


async def test_what_was_committed_late_is_not_removed_with_the_others(database: Database, database_url: str) -> None:
    """An entry with a lower id that was committed after the read survives the removal of the others."""
    late = await asyncpg.connect(database_url)
    try:
        async with late.transaction():
            await late.execute(ONE, "late")
            await database.write(lambda c: c.execute(ONE, "early"))
            read = await database.read(lambda c: outbox.read(c, "topic:a", [0], most=10))
            assert [each.envelope for each in read] == [b"early"]
    finally:
        await late.close()
    await database.write(lambda c: outbox.remove(c, {each.id: each.place for each in read}))
    [left] = await database.read(lambda c: outbox.read(c, "topic:a", [0], most=10))
    assert left.envelope == b"late"
    assert left.id < read[0].id


async def test_what_was_moved_is_not_removed(database: Database) -> None:
    """A removal needs id and place of an entry, so another row at that place stays."""
    await fill(database, 1)
    [mine] = await database.read(lambda c: outbox.read(c, "topic:a", [1], most=10))
    [other] = await database.read(lambda c: outbox.read(c, "effect:b", [1], most=10))
    await database.write(lambda c: outbox.remove(c, {mine.id: other.place}))
    assert [each.messages for each in await database.read(outbox.backlogs)] == [1, 1]
    await database.write(lambda c: outbox.remove(c, {mine.id: mine.place}))
    assert [each.destination for each in await database.read(outbox.backlogs)] == ["effect:b"]


async def test_an_entry_has_its_messages_in_order(database: Database) -> None:
    """The messages of an entry are read in written order, counted one by one, and removed together."""
    told = ['{"a": "\u00e9"}', "{}", "{}"]
    await database.write(lambda c: outbox.add(c, Entry("topic:a", 3, None, 3, "\n".join(told))))
    read = await database.read(lambda c: outbox.read(c, "topic:a", [3], most=10))
    assert [each.envelope for each in read] == [each.encode() for each in told]
    assert [each.messages for each in await database.read(outbox.backlogs)] == [3]
    await database.write(lambda c: outbox.remove(c, {read[0].id: read[0].place}))
    assert await database.read(outbox.backlogs) == []


async def test_what_is_kept_of_an_entry_stays_in_its_place(database: Database) -> None:
    """Messages kept from an entry are read in their order, before any written after the entry."""
    entity_id, other = UUID(int=3), UUID(int=3 + SLOTS)
    lines = [f'{{"partitionkey":"{each}","n":{place}}}' for place, each in enumerate([entity_id, other, entity_id])]
    await database.write(lambda c: outbox.add(c, Entry("topic:a", 3, None, 3, "\n".join(lines))))
    await database.write(lambda c: outbox.add(c, Entry("topic:a", 3, None, 1, lines[0])))
    first, second, third, last = await database.read(lambda c: outbox.read(c, "topic:a", [3], most=10))
    keys = [str(each).encode() for each in (entity_id, other, entity_id, entity_id)]
    assert [each.key for each in (first, second, third, last)] == keys
    await database.write(lambda c: outbox.keep(c, [[second, third]]))
    read = await database.read(lambda c: outbox.read(c, "topic:a", [3], most=10))
    assert [each.envelope for each in read] == [second.envelope, third.envelope, last.envelope]
    assert [each.id for each in read] == [first.id, first.id, last.id]
    assert [each.messages for each in await database.read(outbox.backlogs)] == [3]


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(1, 3), st.integers(1, ROOM)), max_size=60))
def test_packed_entries_have_the_same_messages_in_order(drawn: list[tuple[int, int, int]]) -> None:
    """Packing keeps each slot's messages in order and each group whole, with as few entries as the room allows."""
    given_ = [
        Lines(slot, messages, b"".join(b"%d.%d" % (place, each) + b"x" * size + b"\n" for each in range(messages)))
        for place, (slot, messages, size) in enumerate(drawn)
    ]
    rows = outbox.packed("a", given_)
    for slot in range(SLOTS):
        here = [row for row in rows if row.slot == slot]
        mine = [each for each in given_ if each.slot == slot]
        assert "".join(row.envelope + "\n" for row in here).encode() == b"".join(each.lines for each in mine)
        sizes = [len(row.envelope.encode()) for row in here]
        assert all(size < ROOM for row, size in zip(here, sizes, strict=True) if row.messages > 3)
        assert all(one + two + 2 > ROOM for one, two in pairwise(sizes))
    assert all((row.destination, row.intent_entity_id) == ("topic:a", None) for row in rows)
    assert [row.messages for row in rows] == [row.envelope.count("\n") + 1 for row in rows]


async def test_a_small_backlog_is_counted(database: Database) -> None:
    """A small backlog has each destination's exact number and oldest age; an empty one has no entry."""
    assert await database.read(outbox.backlogs) == []
    await fill(database, 700)
    found = await database.read(outbox.backlogs)
    assert [(each.destination, each.messages) for each in found] == [("effect:b", 700), ("topic:a", 700)]
    assert all(90 <= each.oldest_seconds < 90 + 60 for each in found)


async def test_a_large_backlog_is_estimated(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the counted messages the number is about right, even after the first of all slots have gone."""
    monkeypatch.setattr(outbox, "COUNTED", 20)
    await fill(database, MANY)
    await database.write(lambda c: c.execute("DELETE FROM outbox WHERE destination = 'topic:a' AND id < $1", MANY))
    found = {each.destination: each.messages for each in await database.read(outbox.backlogs)}
    assert found == {"effect:b": pytest.approx(MANY, rel=0.02), "topic:a": pytest.approx(MANY / 2, rel=0.02)}


# Entries with their places, in the first page.
SOME = {id_: (0, id_) for id_ in range(1, 60, 2)}
STATEMENTS: dict[str, tuple[Statement, dict[str, object]]] = {
    "take": (TAKE, {"destination": "topic:a", "slots": SLOTS, "most": 2}),
    "read": (READ, {"destination": "topic:a", "slots": [1, 2, 3], "most": 100, "resting": []}),
    "read but some": (READ, {"destination": "topic:a", "slots": [1], "most": 100, "resting": [UUID(int=1)] * 500}),
    "remove": (REMOVE, {"places": list(SOME.values()), "ids": list(SOME)}),
    "keep": (
        SHORTEN,
        {
            "places": list(SOME.values()),
            "ids": list(SOME),
            "envelopes": ["{}"] * len(SOME),
            "messages": [1] * len(SOME),
        },
    ),
    "backlogs": (BACKLOGS, {"slots": SLOTS, "counted": 20}),
}
# Pages of 8 kB that each may touch: for each way down the key, and for each entry.
MOST_PAGES = {
    "take": SLOTS * 5 + 20,
    "read": 3 * 110,
    "read but some": 3 * 110,
    "remove": len(SOME) * 3,
    "keep": len(SOME) * 20,
    "backlogs": 2 * SLOTS * 60,
}


@pytest.mark.parametrize("planned_for", ["an empty outbox", "a full one"])
@pytest.mark.parametrize("name", STATEMENTS)
async def test_no_statement_reads_the_whole_outbox(
    database: Database, database_url: str, name: str, planned_for: str
) -> None:
    """Each statement reads only the pages and rows it needs, however full the outbox, now or when it was planned."""
    statement, given = STATEMENTS[name]
    values = ", ".join(literal(value) for value in statement.arguments(given))
    connection = await asyncpg.connect(database_url, server_settings=POINTS)
    try:
        await connection.execute(f"PREPARE it AS {statement.text}")
        if planned_for == "a full one":
            await fill(database, MANY)
        await connection.execute("VACUUM (ANALYZE) outbox")
        await connection.execute(f"EXPLAIN EXECUTE it ({values})")
        if planned_for == "an empty outbox":
            await fill(database, MANY)
        query = f"EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT JSON) EXECUTE it ({values})"
        plan = json.loads(await connection.fetchval(query))[0]["Plan"]
    finally:
        await connection.close()
    assert "Seq Scan" not in json.dumps(plan)
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= MOST_PAGES[name]
    assert most_rows(plan) <= MOST_PAGES[name]


def literal(value: object) -> str:
    """A value as an SQL literal of the type needed."""
    return "'" + (",".join(f'"{each}"' for each in value).join("{}") if isinstance(value, list) else str(value)) + "'"


def most_rows(plan: dict[str, Any]) -> int:
    """The largest number of rows that a step of a plan has read."""
    looked_at = plan["Actual Rows"] + sum(plan.get(f"Rows Removed by {by}", 0) for by in ("Filter", "Join Filter"))
    return max(int(looked_at * plan["Actual Loops"]), *(most_rows(each) for each in plan.get("Plans", [])), 0)
