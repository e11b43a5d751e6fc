"""Waits for entities: how many reads they cost, and that they hold no connection."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from app.concurrency.lanes import LARGEST
from app.domain.events import Name
from app.domain.registration import Registration, Timing
from app.errors import UnavailableError
from app.feed.feed import Feed
from app.feed.watches import Found, Wanted, Watches
from app.projection.batching import Reader
from app.projection.changes import ChangeLog
from app.projection.projector import Projector
from app.store.database import Database
from tests.making import event, node

MANY = 1000
HELD = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"


class Counting(Reader):
    """A reader that says how many entities each of its statements was for."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, joining=True)
        self.reads: list[int] = []

    async def _read(self, names: list[Name]) -> list[Registration | None]:
        self.reads.append(len(names))
        return await super()._read(names)


@pytest.fixture
async def reader(database: Database) -> AsyncIterator[Counting]:
    """It, on a database."""
    reader = Counting(database)
    yield reader
    await reader.close()


@pytest.fixture
async def watches(feed_database: Database, database: Database, reader: Counting) -> AsyncIterator[Watches]:
    """Waits that are woken by a log."""
    feed = Feed(feed_database, most=MANY)
    watches = Watches(feed, database, reader.ask, logged=True)
    yield watches
    await watches.close()
    await feed.close()


async def waiting(watches: Watches, *numbers: int) -> list["asyncio.Task[Found]"]:
    """A wait for the next version of each of these nodes."""
    tasks = []
    for number in numbers:
        wanted = Wanted(after_version=1)
        tasks.append(asyncio.create_task(watches.get((node(number), "registration"), wanted, 50)))
        if number % 500 == 0:
            await asyncio.sleep(0.2)  # so many questions do not wait at once
    async with asyncio.timeout(20):
        while watches.count < len(tasks):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    return tasks


async def test_a_thousand_that_are_woken_are_one_read(
    watches: Watches, reader: Counting, database: Database, database_url: str
) -> None:
    """Of as many as a statement takes; and as long as they wait, no connection is busy."""
    log = ChangeLog()
    log.on_save = watches.committed
    projector = Projector(database, Timing(), log=log)
    await projector.persist([event("registration.initiated", 1, entity_id=node(number)) for number in range(MANY)])
    tasks = await waiting(watches, *range(MANY))
    connection = await asyncpg.connect(database_url)
    assert min([await connection.fetchval(HELD) for _ in range(10)]) == 1  # the one that asks
    await connection.close()
    reader.reads.clear()
    await projector.persist([event("registration.accepted", 2, entity_id=node(number)) for number in range(MANY)])
    found = await asyncio.gather(*tasks)
    assert {each.row.version for each in found if each.row is not None} == {2}
    assert reader.reads == [LARGEST] * (MANY // LARGEST)
    assert watches.count == 0


async def test_a_thousand_for_one_entity_share_a_read(watches: Watches, reader: Counting, database: Database) -> None:
    """It begins after the commit that woke them."""
    log = ChangeLog()
    log.on_save = watches.committed
    projector = Projector(database, Timing(), log=log)
    await projector.persist([event("registration.initiated", 1, entity_id=node(1))])
    tasks = await waiting(watches, *[1] * 400)
    reader.reads.clear()
    await projector.persist([event("registration.accepted", 2, entity_id=node(1))])
    found = await asyncio.gather(*tasks)
    assert {each.row.version for each in found if each.row is not None} == {2}
    assert reader.reads == [1]


async def test_a_wait_that_is_cancelled_leaves_nothing(watches: Watches) -> None:
    """Nobody waits any more."""
    [task] = await waiting(watches, 7)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert watches.count == 0
    assert not watches._watches


async def test_a_database_that_is_down_ends_a_wait(feed_database: Database) -> None:
    """With its error, and at once."""
    down = Database("postgresql://nobody@127.0.0.1:1/nothing", pool_size=1, statement_timeout=timedelta(seconds=1))
    reader = Counting(down)
    feed = Feed(feed_database, most=1)
    with pytest.raises(UnavailableError):
        await Watches(feed, down, reader.ask, logged=True).get((node(1), "registration"), Wanted(), 50)
    await feed.close()
