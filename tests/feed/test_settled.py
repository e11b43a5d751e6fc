"""The first law of the feed: a follower of the settled horizon misses no change, and gets each entity's in order.

Two naive followers go through the same run and fail, which shows that the test can fail.
"""

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from app.feed.reader import ChangeReader
from app.store import changes
from app.store.changes import BEGINNING, Logged
from app.store.database import Connection, Database
from app.store.tables import BLOCK
from tests.feed.writing import SLICE_SECONDS, logged
from tests.feed.writing import after as after_read
from tests.making import node

SECONDS = float(os.environ.get("TEST_FEED_SECONDS", "6"))  # of writing
KILLED_AFTER = (1.0, 2.5)  # seconds that a writing process has before it is killed and replaced, at least and at most
HELD_OPEN = 1.5  # seconds, by a foreign transaction that has written to the log
SETTLED_WITHIN = 10.0  # seconds after the last commit

Seen = tuple[int, UUID, int]  # id, entity and version of a change

EVERYTHING = "SELECT id, entity_id, version FROM changes ORDER BY id"
# Entities of which the log does not have every version that the row has had.
INCOMPLETE = """
    SELECT count(*) FROM registration_projections AS r WHERE version <> (
        SELECT count(DISTINCT version) FROM changes AS c WHERE c.entity_id = r.entity_id AND c.domain = r.domain
    )
"""


class Follower:
    """The changes that a follower has seen, and whether they are right."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def lost(self, written: Sequence[Seen]) -> int:
        """The number of missed changes."""
        return len(set(written) - set(self.seen))

    @property
    def out_of_order(self) -> int:
        """The number of changes that came after a later one of their entity, or twice."""
        newest: dict[UUID, int] = {}
        wrong = 0
        for _, entity_id, version in self.seen:
            wrong += version <= newest.get(entity_id, 0)
            newest[entity_id] = max(version, newest.get(entity_id, 0))
        return wrong


class GreaterThanTheLast(Follower):
    """A follower that asks for ids above the last one it has seen."""

    async def look(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """See the new changes."""
        last = self.seen[-1][0] if self.seen else 0
        rows = await connection.fetch("SELECT id, entity_id, version FROM changes WHERE id > $1 ORDER BY id", last)
        self.seen += [tuple(row) for row in rows]


class BelowTheOldestTransaction(Follower):
    """A follower that reads changes of transactions older than all open ones, in the order of transaction ids."""

    last = 0

    async def look(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """See the new changes."""
        rows = await connection.fetch(
            """
            SELECT id, entity_id, version, CAST(CAST(xmin AS text) AS bigint) AS number FROM changes
            WHERE CAST(CAST(xmin AS text) AS bigint) > $1
                AND CAST(CAST(xmin AS text) AS bigint) < CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)
            ORDER BY number, id
            """,  # noqa: E501
            self.last,
        )
        self.seen += [tuple(row[:3]) for row in rows]
        self.last = max([row["number"] for row in rows], default=self.last)


class Settled(Follower):
    """A follower that gets its changes from the reader."""

    def tell(self, page: Sequence[Logged]) -> None:
        """See the new changes."""
        self.seen += [(each.id, each.entity_id or UUID(int=0), each.version) for each in page]


class Writing:
    """Ten writers in two processes, one of which is killed and replaced, beside unrelated transactions."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def run(self, seconds: float) -> None:
        """Write for this many seconds."""
        end = time.monotonic() + seconds
        running = [await self._start(number, seconds) for number in (1, 2)]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._idle_transaction(seconds))
                group.create_task(self._written_and_held())
                while (left := end - time.monotonic()) > sum(KILLED_AFTER):
                    await asyncio.sleep(random.uniform(*KILLED_AFTER))
                    doomed = running.pop()
                    doomed.kill()
                    await doomed.wait()
                    running.append(await self._start(round(1000 * left), left))
            assert await asyncio.gather(*(process.wait() for process in running)) == [0, 0]
        finally:
            for process in running:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def _start(self, seed: int, seconds: float) -> asyncio.subprocess.Process:
        command = (sys.executable, "-m", "tests.feed.writing", self.url, str(seed), str(seconds))
        return await asyncio.create_subprocess_exec(*command)

    async def _idle_transaction(self, seconds: float) -> None:
        """Hold a transaction open that has an id and a snapshot and does not touch the log."""
        async with _connected(self.url) as connection, connection.transaction(isolation="repeatable_read"):
            await connection.execute("INSERT INTO watermarks VALUES ('a', 1, 1, now(), now(), now(), 'me')")
            await asyncio.sleep(seconds)

    async def _written_and_held(self) -> None:
        """Write to the log in a transaction that stays uncommitted for a while."""
        database = Database(self.url, pool_size=1, statement_timeout=timedelta(seconds=20))

        async def work(connection: Connection) -> None:
            new = after_read(None, node(1000))
            await changes.add(connection, [logged(None, new)], SLICE_SECONDS)
            await asyncio.sleep(HELD_OPEN)

        try:
            await database.write(work)
        finally:
            await database.close()


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def _written(url: str) -> list[Seen]:
    async with _connected(url) as connection:
        return [tuple(row) for row in await connection.fetch(EVERYTHING)]


@asynccontextmanager
async def _looking(
    url: str, look: Callable[["asyncpg.Connection[asyncpg.Record]"], Awaitable[None]]
) -> AsyncIterator[None]:
    """Look repeatedly, and once more at the end."""
    stop = asyncio.Event()

    async def run() -> None:
        async with _connected(url) as connection:
            while not stop.is_set():
                await look(connection)
                await asyncio.sleep(0.003)
            await look(connection)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        stop.set()
        await task


@asynccontextmanager
async def _reading(url: str, follower: Settled) -> AsyncIterator[ChangeReader]:
    database = Database(url, pool_size=2, statement_timeout=timedelta(seconds=20))
    reader = ChangeReader(database, follower.tell, lambda: pytest.fail("the log was lost"), begin=BEGINNING)
    task = asyncio.create_task(reader.run())
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.wait([task])
        await database.close()


async def test_nothing_is_lost_and_an_entity_stays_in_order(database_url: str) -> None:
    """With ten writers, row locks, open transactions and a kill, 0 lost, 0 out of order; naive followers fail."""
    settled, greater, oldest = Settled(), GreaterThanTheLast(), BelowTheOldestTransaction()
    async with (
        _looking(database_url, greater.look),
        _looking(database_url, oldest.look),
        _reading(database_url, settled) as reader,
    ):
        await Writing(database_url).run(SECONDS)
        written = await _written(database_url)
        end = time.monotonic() + SETTLED_WITHIN
        while settled.lost(written) and time.monotonic() < end:  # noqa: ASYNC110 - the reader tells nobody else
            await asyncio.sleep(0.05)
        assert reader.unsettled_seconds == 0.0
        async with _connected(database_url) as connection:
            assert await connection.fetchval(INCOMPLETE) == 0
            assert await connection.fetchval("SELECT count(DISTINCT slice) FROM changes") > 1
    assert len(written) > 50 * SECONDS
    assert (settled.lost(written), settled.out_of_order) == (0, 0)
    assert settled.seen == written
    assert greater.lost(written) > 0
    assert oldest.out_of_order > 0


async def test_an_id_that_is_seen_late_is_not_passed_over(database_url: str) -> None:
    """A follower of greater ids misses the change of a transaction that drew first and commits last; ours waits."""
    settled, greater = Settled(), GreaterThanTheLast()
    one, other = (logged(None, after_read(None, node(number))) for number in (1, 2))
    database = Database(database_url, pool_size=2, statement_timeout=timedelta(seconds=5))
    drawn = asyncio.Event()

    async def slow(connection: Connection) -> None:
        await changes.add(connection, [one], SLICE_SECONDS)
        drawn.set()
        await committed.wait()
        await asyncio.sleep(0.2)

    committed = asyncio.Event()
    async with _looking(database_url, greater.look), _reading(database_url, settled) as reader:
        first = asyncio.create_task(database.write(slow))
        await drawn.wait()
        await database.write(changes.add, [other], SLICE_SECONDS)
        reader.wake()
        await asyncio.sleep(0.1)
        assert settled.seen == []
        assert reader.unsettled_seconds > 0
        committed.set()
        await first
        async with asyncio.timeout(SETTLED_WITHIN):
            while len(settled.seen) < 2:  # noqa: ASYNC110 - the reader tells nobody else
                await asyncio.sleep(0.01)
    await database.close()
    assert [entity_id for _, entity_id, _ in settled.seen] == [node(1), node(2)]
    assert [entity_id for _, entity_id, _ in greater.seen] == [node(2)]


async def test_the_order_of_transactions_is_not_an_entitys(database_url: str) -> None:
    """A transaction that begins first and writes an entity last comes first by its number, and last by its id."""
    settled, oldest = Settled(), BelowTheOldestTransaction()
    new = after_read(None, node(1))
    first, second = logged(None, new), logged(new, after_read(new, node(1)))
    database = Database(database_url, pool_size=2, statement_timeout=timedelta(seconds=5))
    async with _looking(database_url, oldest.look), _reading(database_url, settled) as reader:
        async with _connected(database_url) as early, early.transaction():
            await early.execute("SELECT pg_current_xact_id()")
            await database.write(changes.add, [first], SLICE_SECONDS)
            await early.execute(changes.ADD.text, *changes.ADD.arguments(changes.given([second], SLICE_SECONDS)))
        reader.wake()
        async with asyncio.timeout(SETTLED_WITHIN):
            while len(settled.seen) < 2 or len(oldest.seen) < 2:  # noqa: ASYNC110 - nobody else is told
                await asyncio.sleep(0.01)
    await database.close()
    assert [version for *_, version in settled.seen] == [1, 2]
    assert [version for *_, version in oldest.seen] == [2, 1]


async def test_a_transaction_that_does_not_log_holds_nothing_up(database_url: str) -> None:
    """A change is settled at once beside an open transaction that has written elsewhere."""
    settled = Settled()
    database = Database(database_url, pool_size=2, statement_timeout=timedelta(seconds=5))
    async with _connected(database_url) as foreign, foreign.transaction(), _reading(database_url, settled) as reader:
        await foreign.execute("INSERT INTO watermarks VALUES ('a', 1, 1, now(), now(), now(), 'me')")
        await database.write(changes.add, [logged(None, after_read(None, node(1)))], SLICE_SECONDS)
        reader.wake()
        async with asyncio.timeout(SETTLED_WITHIN):
            while not settled.seen:  # noqa: ASYNC110 - the reader tells nobody else
                await asyncio.sleep(0.01)
    await database.close()


async def test_a_large_statement_draws_more_than_one_block(database: Database) -> None:
    """A statement's ids rise in its order across blocks of ids, and no other statement's ids come between."""
    new = after_read(None, node(1))
    many = [logged(None, new)] * (BLOCK + 10)
    await database.write(changes.add, many, SLICE_SECONDS)
    await database.write(changes.add, [logged(new, after_read(new, node(1)))], SLICE_SECONDS)
    rows = await database.read(changes.read, 0, await database.read(changes.drawn), limit=2 * BLOCK)
    assert [each.version for each in rows] == [1] * len(many) + [2]
    assert len({each.id for each in rows}) == len(many) + 1


def test_the_changes_of_an_entity_are_counted_as_lost_and_out_of_order() -> None:
    """Follower counts one lost change, and as out of order one late and one repeated change."""
    follower = Follower()
    one, two, three = ((number, node(1), number) for number in (1, 2, 3))
    follower.seen = [two, one, two]
    assert follower.lost([one, two, three]) == 1
    assert follower.out_of_order == 2
