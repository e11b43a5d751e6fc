"""Retention: whole slices at once, mixed slices in batches, and the answers to followers of removed changes."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from app.errors import ChangesGoneError, UnavailableError
from app.feed import tokens
from app.feed.feed import Feed, Start
from app.feed.retention import Retention
from app.store import changes
from app.store.database import Connection, Database
from app.store.tables import SLICES
from tests.feed.test_feed import ANY, made, versions, write

KEEP = timedelta(days=7)
SLICE = timedelta(seconds=changes.slice_seconds(KEEP))


async def age(database: Database, version: int, age: timedelta, number: int) -> None:
    """Make a change this old, in this slice."""

    async def work(connection: Connection) -> None:
        await connection.execute(
            "UPDATE changes SET changed_at = clock_timestamp() - $1::interval, slice = $2 WHERE version = $3",
            age,
            number,
            version,
        )

    await database.write(work)


async def left(database: Database) -> list[int]:
    """The versions of the changes still in the log."""

    async def work(connection: Connection) -> list[int]:
        return [row[0] for row in await connection.fetch("SELECT version FROM changes ORDER BY id")]

    return await database.read(work)


def test_slices_last_as_long_as_what_is_kept() -> None:
    """Fourteen slices cover the retention time; of the sixteen, one more is written and one is emptied."""
    assert timedelta(hours=12) == SLICE
    assert changes.slice_seconds(timedelta(seconds=1)) == 1


async def test_a_slice_is_emptied_when_all_of_it_has_expired(database: Database) -> None:
    """A slice with one change that has not expired stays unchanged for a while."""
    await write(database, [made(number) for number in range(1, 6)])
    for version, days, number in [(1, 9, 0), (2, 8, 0), (3, 7.2, 1), (4, 6.9, 1), (5, 0, 2)]:
        await age(database, version, timedelta(days=days), number)
    await Retention(database, KEEP).remove()
    assert await left(database) == [3, 4, 5]


async def test_a_slice_of_two_ages_loses_the_old_ones(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice with old and new changes loses the old ones in batches."""
    monkeypatch.setattr(changes, "DELETE_BATCH", 2)
    await write(database, [made(number) for number in range(1, 8)])
    for version in range(1, 6):
        await age(database, version, KEEP + 2 * SLICE, 3)
    for version in (6, 7):
        await age(database, version, timedelta(), 3)
    await Retention(database, KEEP).remove()
    assert await left(database) == [6, 7]


async def test_what_is_removed_has_expired_for_followers(feed: Feed, database: Database) -> None:
    """The newest removed change is the oldest valid place; an earlier place is refused."""
    await write(database, [made(number) for number in range(1, 5)])
    with feed.following():
        first = await feed.page(Start.OLDEST, ANY, limit=1, wait=0)
        second = await feed.page(first.place, ANY, limit=1, wait=0)
    await feed.close()
    for version in (1, 2):
        await age(database, version, timedelta(days=8), 5)
    await Retention(database, KEEP).remove()
    feed.stopping = False
    with feed.following():
        with pytest.raises(ChangesGoneError) as refused:
            await feed.page(first.place, ANY, limit=5, wait=0)
        assert refused.value.reason == "expired"
        oldest = tokens.read(refused.value.oldest).place
        assert oldest == second.place
        for place in (oldest, Start.OLDEST):
            assert versions(await feed.page(place, ANY, limit=5, wait=0)) == [3, 4]


async def test_a_log_that_is_all_removed_has_a_place(feed: Feed, database: Database) -> None:
    """After all changes are removed, followers continue from the log's end, and new readers begin there."""
    await write(database, [made(1)])
    await age(database, 1, timedelta(days=8), 5)
    await Retention(database, KEEP).remove()
    with feed.following():
        end = await feed.newest()
        assert end.id > 0
        await write(database, [made(2)])
        assert versions(await feed.page(end, ANY, limit=5, wait=0)) == [2]


async def test_a_slice_that_is_read_is_emptied_later(database: Database, database_url: str) -> None:
    """A slice that is being read is emptied later, so no query waits long behind the retention."""
    await write(database, [made(1)])
    await age(database, 1, timedelta(days=8), 5)
    connection = await asyncpg.connect(database_url)
    async with connection.transaction():
        await connection.execute("SELECT count(*) FROM changes")
        with pytest.raises(UnavailableError):
            await Retention(database, KEEP).remove()
    await connection.close()
    await Retention(database, KEEP).remove()
    assert await left(database) == []


async def test_a_removal_holds_up_no_reader(database: Database, database_url: str) -> None:
    """A transaction that deletes from a slice does not count as a writer to the log."""
    await write(database, [made(1)])
    connection = await asyncpg.connect(database_url)
    async with connection.transaction():
        await connection.execute("DELETE FROM changes_03 WHERE id = 1")
        assert await database.read(changes.writers) == frozenset()
        await connection.execute("DELETE FROM changes WHERE id = 1")
        assert len(await database.read(changes.writers)) == 1
    await connection.close()


async def test_it_goes_on_by_itself(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """The retention runs until it is stopped, and removes expired changes by itself."""
    await write(database, [made(1)])
    await age(database, 1, timedelta(seconds=30), 5)
    stop = asyncio.Event()
    task = asyncio.create_task(Retention(database, timedelta(seconds=3)).run(stop))
    async with asyncio.timeout(10):
        while await left(database):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.05)
    stop.set()
    await task
    assert not caplog.records


async def test_every_slice_is_looked_at(database: Database) -> None:
    """The retention checks each of the sixteen slices, by its own name."""
    for number in range(SLICES):
        await write(database, [made(number + 1)])
        await age(database, number + 1, timedelta(days=8), number)
    await Retention(database, KEEP).remove()
    assert await left(database) == []
