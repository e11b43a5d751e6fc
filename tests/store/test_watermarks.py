"""Watermarks move from where they are known to stand, and not otherwise."""

from collections.abc import Sequence
from typing import Any

import pytest

from app.store import watermarks
from app.store.database import Connection, Database
from app.store.watermarks import NOTHING_READ, Advance, Drop, FoundPartition, LostPlaceError, PartitionProgress
from app.wire.answers import Watermark
from tests.making import when


def advance(expected: int, offset: int, **fields: Any) -> Advance:
    """A move of one watermark."""
    return Advance(**{"topic": "nodes", "partition": 0, "expected": expected, "offset": offset, **fields})


async def move(database: Database, advances: Sequence[Advance]) -> list[Watermark]:
    """All watermarks after a transaction that moves some."""

    async def work(connection: Connection) -> list[Watermark]:
        new = [FoundPartition(each.topic, each.partition) for each in advances if each.expected == NOTHING_READ]
        await watermarks.find(connection, new, "me")
        await watermarks.advance(connection, advances, "me")
        return await watermarks.get_all(connection)

    return await database.write(work)


async def test_a_watermark_moves_on_from_where_it_stands(database: Database) -> None:
    """Each move says from where, and the place is there to be read on from."""
    await move(database, [advance(NOTHING_READ, 4)])
    [moved] = await move(database, [advance(4, 9, message_at=when(3))])
    assert (moved.offset, moved.message_at, moved.as_of) == (9, when(3), when(3))
    asked = [FoundPartition("nodes", 0), FoundPartition("nodes", 1)]
    assert await database.write(watermarks.find, asked, "me") == {
        ("nodes", 0): PartitionProgress(9, None),
        ("nodes", 1): PartitionProgress(NOTHING_READ, None),
    }


async def test_a_topic_keeps_its_first_id(database: Database) -> None:
    """The id that a topic has when it is first read is stored, once it is known, and does not change."""
    for told, stored in ((None, None), ("one", "one"), ("two", "one"), (None, "one")):
        found = await database.write(watermarks.find, [FoundPartition("nodes", 0, told)], "me")
        assert found["nodes", 0].topic_id == stored


async def test_a_topic_that_is_read_anew_has_no_watermarks(database: Database) -> None:
    """Restarting a topic removes its watermarks and no others."""
    await database.write(
        watermarks.find, [FoundPartition("nodes", 0), FoundPartition("nodes", 1), FoundPartition("nodes-1", 0)], "me"
    )
    await database.write(watermarks.restart, "nodes")
    assert [(each.topic, each.partition) for each in await database.read(watermarks.get_all)] == [("nodes-1", 0)]


async def test_only_an_unused_watermark_is_dropped(database: Database) -> None:
    """A watermark that was written lately is in use; an unknown one is not there."""
    await database.write(watermarks.find, [FoundPartition("nodes", 0)], "me")
    assert await database.write(watermarks.drop, "nodes", 0) is Drop.IN_USE
    assert await database.write(watermarks.drop, "nodes", 1) is Drop.UNKNOWN
    assert await database.write(watermarks.drop, "nodes", 0, unused=0.0) is Drop.DONE
    assert await database.read(watermarks.get_all) == []


@pytest.mark.parametrize("expected", [NOTHING_READ, 3, 5])
async def test_a_watermark_elsewhere_takes_all_of_it_back(database: Database, expected: int) -> None:
    """When one of them does not stand as expected nothing is written."""
    before = await move(database, [advance(NOTHING_READ, 4)])
    with pytest.raises(LostPlaceError):
        await move(database, [advance(NOTHING_READ, 1, partition=1), advance(expected, 9)])
    assert await database.read(watermarks.get_all) == before


async def test_a_watermark_that_was_removed_is_not_made_anew(database: Database) -> None:
    """A running consumer does not restore a watermark that an operator has removed to read a partition again."""
    with pytest.raises(LostPlaceError):
        await move(database, [advance(4, 9)])
    assert await database.read(watermarks.get_all) == []


async def test_to_be_caught_up_changes_nothing_else(database: Database) -> None:
    """A watermark that is confirmed where it stands keeps its message's time, and its time does not go back."""
    [before] = await move(database, [advance(NOTHING_READ, 4, message_at=when(3), caught_up=10.0**9)])
    assert before.caught_up_at is not None
    [after] = await move(database, [advance(4, 4, caught_up=0.0)])
    assert (after.offset, after.message_at) == (4, when(3))
    assert after.caught_up_at == before.caught_up_at


async def test_a_time_that_was_wrong_goes_back(database: Database) -> None:
    """When a batch shows that a partition is not read as far as was thought, the earlier time counts."""
    await move(database, [advance(NOTHING_READ, 4, message_at=when(600))])
    [moved] = await move(database, [advance(4, 9, message_at=when(3))])
    assert (moved.message_at, moved.as_of) == (when(3), when(3))


async def test_a_time_that_is_still_to_come_says_nothing(database: Database) -> None:
    """Neither in a new watermark nor in one that moves on does a wrong clock count as read up to now."""
    [made] = await move(database, [advance(NOTHING_READ, 4, message_at=when(10.0**9))])
    assert (made.offset, made.message_at, made.as_of) == (4, None, None)
    await move(database, [advance(4, 5, message_at=when(3))])
    [moved] = await move(database, [advance(5, 6, message_at=when(10.0**9))])
    assert (moved.offset, moved.message_at, moved.as_of) == (6, None, None)
