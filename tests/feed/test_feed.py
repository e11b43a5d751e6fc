"""Following: pages from memory and from the table, waits, bounds, and places that are gone."""

import asyncio
import time
from collections.abc import Sequence

import asyncpg
import pytest

from app.domain.changes import Change, ChangeOutcome, change
from app.domain.states import RegistrationState
from app.errors import ChangesGoneError, TooManyFollowersError
from app.feed import feed as feed_module
from app.feed import ring as ring_module
from app.feed.feed import Feed, Page, Start, spread
from app.feed.items import Filter
from app.feed.reader import ChangeReader
from app.store import changes
from app.store.changes import BEGINNING, Place
from app.store.database import Connection, Database
from tests.feed.conftest import MOST
from tests.making import node, row

ANY = Filter("registration")
SLICE_SECONDS = 3600


def made(number: int, entity: int = 1, state: RegistrationState = RegistrationState.ACTIVE) -> Change:
    """The change that takes an entity to this version."""
    now = row(state, entity_id=node(entity), version=number)
    before = row(RegistrationState.ACK_RECEIVED, entity_id=node(entity), version=number - 1)
    return change(
        before, now, now.last_applied_event_id, "registration.activated", ChangeOutcome.APPLIED, now.updated_at
    )


async def write(database: Database, some: Sequence[Change]) -> None:
    """Commit changes."""
    await database.write(changes.add, some, SLICE_SECONDS)


async def waiting(feed: Feed, number: int = 1) -> None:
    """Wait until this many followers wait."""
    while feed.waiting < number:  # noqa: ASYNC110 - nobody is told
        await asyncio.sleep(0.01)


def versions(page: Page) -> list[int]:
    """The versions of a page's changes."""
    return [item.version for item in page.items]


async def test_from_the_beginning_page_by_page(feed: Feed, database: Database) -> None:
    """Each change comes once, in order; the last page says that there is nothing more."""
    await write(database, [made(number) for number in range(1, 6)])
    seen: list[list[int]] = []
    place: Place | Start = Start.OLDEST
    with feed.following():
        for _ in range(3):
            page = await feed.page(place, ANY, limit=2, wait=0)
            seen.append(versions(page))
            place = page.place
        assert page.caught_up
        last = await feed.page(place, ANY, limit=2, wait=0)
    assert seen == [[1, 2], [3, 4], [5]]
    assert (versions(last), last.place, last.caught_up) == ([], page.place, True)


async def test_a_wait_ends_with_the_change(feed: Feed, database: Database) -> None:
    """A waiting follower gets a change as soon as it is settled, without the changes before it."""
    await write(database, [made(1)])
    with feed.following():
        task = asyncio.create_task(feed.page(Start.NOW, ANY, limit=10, wait=20))
        await waiting(feed)
        began = time.monotonic()
        await write(database, [made(2)])
        feed.wake()
        assert versions(await task) == [2]
    assert time.monotonic() - began < 1


async def test_another_process_wakes_by_an_announcement(feed: Feed, database: Database) -> None:
    """Another process's announcement wakes the reader, well before the second after which the reader polls."""
    with feed.following():
        task = asyncio.create_task(feed.page(Start.NOW, ANY, limit=10, wait=20))
        await waiting(feed)
        await asyncio.sleep(0.2)  # the reader listens
        began = time.monotonic()
        await write(database, [made(1)])
        await database.write_alone(changes.announce)
        assert versions(await task) == [1]
    assert time.monotonic() - began < 0.7


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """While this is not set, readers see nothing new: their process is behind."""
    gate, look = asyncio.Event(), ChangeReader._look
    gate.set()

    async def held(self: ChangeReader) -> bool:
        await gate.wait()
        return await look(self)

    monkeypatch.setattr(ChangeReader, "_look", held)
    return gate


async def test_a_place_ahead_of_this_process(feed: Feed, database: Database, gate: asyncio.Event) -> None:
    """A follower whose place is from a process that is ahead waits for this one: no change comes a second time."""
    await write(database, [made(1)])
    with feed.following():
        await feed.newest()
        gate.clear()
        await write(database, [made(2)])
        ahead = await database.read(changes.newest, await database.read(changes.drawn))
        task = asyncio.create_task(feed.page(ahead, ANY, limit=10, wait=5))
        await asyncio.sleep(0.2)
        await write(database, [made(3)])
        gate.set()
        feed.wake()
        assert versions(await task) == [3]


@pytest.mark.parametrize("wait", [0.0, 0.6])
async def test_a_place_never_goes_back(feed: Feed, database: Database, gate: asyncio.Event, wait: float) -> None:
    """As long as this process stays behind, a follower keeps its place."""
    await write(database, [made(1)])
    with feed.following():
        await feed.newest()
        gate.clear()
        await write(database, [made(2)])
        ahead = await database.read(changes.newest, await database.read(changes.drawn))
        page = await feed.page(ahead, ANY, limit=10, wait=wait)
    assert (page.items, page.place, page.caught_up) == ([], ahead, False)


async def test_a_wait_without_a_change_moves_on(feed: Feed, database: Database) -> None:
    """Changes outside the filter advance the place; the wait ends within its last tenth."""
    wanted = Filter("registration", entity_ids=frozenset({node(2)}))
    with feed.following():
        began = await feed.newest()
        task = asyncio.create_task(feed.page(began, wanted, limit=10, wait=0.6))
        await waiting(feed)
        start = time.monotonic()
        await write(database, [made(1)])
        feed.wake()
        page = await task
        assert 0.45 < time.monotonic() - start < 0.8
        assert page.items == []
        assert page.place.id > began.id
        assert page.caught_up


def test_waits_end_at_different_times() -> None:
    """A wait ends after 0.9 to 1.0 of the time asked for, at random."""
    waits = [spread(10) for _ in range(200)]
    assert 9 <= min(waits) < 9.2
    assert 9.8 < max(waits) <= 10


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (ANY, [1, 2, 3]),
        (Filter("other"), []),
        (Filter("registration", entity_ids=frozenset({node(2), node(3)})), [2]),
        (Filter("registration", states=frozenset({RegistrationState.ACTIVE})), [1, 2]),
        (Filter("registration", states=frozenset({RegistrationState.ACK_RECEIVED})), [1, 2, 3]),
        (Filter("registration", states=frozenset({RegistrationState.REJECTED})), [3]),
        (Filter("registration", node_type="storage"), [1, 2, 3]),
        (Filter("registration", node_type="compute"), []),
        (Filter("registration", types=frozenset({"registration.activated"})), [1, 2, 3]),
        (Filter("registration", types=frozenset({"registration.rejected"})), []),
    ],
    ids=str,
)
@pytest.mark.parametrize("from_memory", [True, False])
async def test_filters(feed: Feed, database: Database, wanted: Filter, found: list[int], from_memory: bool) -> None:
    """A state filter matches the state before or after the change, in memory as in the table."""
    three = [made(1), made(2, 2), made(3, 1, RegistrationState.REJECTED)]
    with feed.following():
        if from_memory:
            await feed.newest()
        await write(database, three)
        page = await feed.page(BEGINNING, wanted, limit=10, wait=0)
    assert versions(page) == found


async def test_a_slow_follower_reads_on_from_the_table(
    feed: Feed, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes that memory has dropped come from the table, and then those in memory: each once, in order."""
    monkeypatch.setattr(feed_module, "PAGE", 7)
    feed_ring = ring_module.Ring

    def small(begin: Place) -> ring_module.Ring:
        return feed_ring(begin, capacity=10)

    monkeypatch.setattr(feed_module, "Ring", small)
    seen: list[int] = []
    with feed.following():
        place = await feed.newest()
        for first in range(1, 51, 5):
            await write(database, [made(number) for number in range(first, first + 5)])
        feed.wake()
        while len(seen) < 50:
            page = await feed.page(place, ANY, limit=4, wait=5)
            seen += versions(page)
            place = page.place
    assert seen == list(range(1, 51))


async def test_a_waiting_follower_holds_no_connection(feed: Feed, feed_database: Database, database_url: str) -> None:
    """With the largest number of waiting followers, only the reader's two connections are open, both idle."""
    with feed.following():
        await feed.newest()
    tasks = [asyncio.create_task(follow(feed)) for _ in range(MOST)]
    await waiting(feed, MOST)
    await asyncio.sleep(0.3)
    connection = await asyncpg.connect(database_url)
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pqs'"
    assert await connection.fetchval(others) == 2
    await connection.close()
    assert feed.followers == MOST
    with pytest.raises(TooManyFollowersError, match="50 requests follow the changes here already"):
        await follow(feed)
    feed.stop()
    assert [versions(page) for page in await asyncio.gather(*tasks)] == [[]] * MOST
    assert feed.followers == 0


async def follow(feed: Feed) -> Page:
    """Wait for a change."""
    with feed.following():
        return await feed.page(Start.NOW, ANY, limit=10, wait=30)


async def test_the_reader_runs_only_while_somebody_follows(feed_database: Database, database_url: str) -> None:
    """The reader ends some time after the last follower, and restarts for the next, who misses no change."""
    feed = Feed(feed_database, most=5, linger=0.05)
    with feed.following():
        place = await feed.newest()
    await asyncio.sleep(0.2)
    assert feed._task is None
    assert feed.unsettled_seconds == 0.0
    await write(feed_database, [made(1)])
    with feed.following():
        assert versions(await feed.page(place, ANY, limit=10, wait=0)) == [1]
    await feed.close()


# --- Places that are gone -------------------------------------------------------------------------------------------


async def gone(feed: Feed, place: Place | Start) -> str:
    """The reason for which a place is refused."""
    with feed.following(), pytest.raises(ChangesGoneError) as refused:
        await feed.page(place, ANY, limit=10, wait=0)
    return refused.value.reason


async def test_a_place_of_another_past(feed: Feed, database: Database) -> None:
    """A place with another mark, or an id that this database has not given, is refused."""
    await write(database, [made(1), made(2)])
    with feed.following():
        page = await feed.page(BEGINNING, ANY, limit=1, wait=0)
    assert await gone(feed, Place(page.place.id, page.place.mark + 1)) == "history"
    assert await gone(feed, Place(page.place.id + 2, page.place.mark)) == "history"
    assert await gone(feed, Place(2**62, 5)) == "history"


async def test_a_restored_database_is_noticed_while_somebody_waits(feed: Feed, database: Database) -> None:
    """If another change has taken the last one's id, as after a restore, the place is refused, not passed over."""
    await write(database, [made(1)])
    with feed.following():
        first = await feed.page(BEGINNING, ANY, limit=1, wait=0)
        await write(database, [made(2)])
        feed.wake()
        second = await feed.page(first.place, ANY, limit=1, wait=5)
        task = asyncio.create_task(feed.page(second.place, ANY, limit=1, wait=10))
        await waiting(feed)

        async def restore(connection: Connection) -> None:
            await connection.execute(f"DELETE FROM changes WHERE id = {second.place.id}")
            await connection.execute(f"SELECT setval('changes_id_seq', {first.place.id})")

        await database.write(restore)
        await write(database, [made(2, 9)])
        feed.wake()
        with pytest.raises(ChangesGoneError) as refused:
            await task
        assert refused.value.reason == "history"
        assert versions(await feed.page(first.place, ANY, limit=5, wait=0)) == [2]


async def test_an_erased_change_is_no_item_and_a_good_place(feed: Feed, database: Database) -> None:
    """An erased change is not listed, and its place stays valid."""
    await write(database, [made(1), made(2), made(3)])
    with feed.following():
        second = (await feed.page(BEGINNING, ANY, limit=2, wait=0)).place

    async def erase(connection: Connection) -> None:
        emptied = "entity_id = NULL, domain = NULL, version = NULL, current_state = NULL"
        await connection.execute(f"UPDATE changes SET {emptied} WHERE version = 2")

    await database.write(erase)
    with feed.following():
        assert versions(await feed.page(BEGINNING, ANY, limit=5, wait=0)) == [1, 3]
        assert versions(await feed.page(second, ANY, limit=5, wait=0)) == [3]


async def test_the_database_goes_away_and_comes_back(feed: Feed, database: Database, database_url: str) -> None:
    """If the reader's connections are cut it reconnects by itself, and the follower notices nothing."""
    with feed.following():
        task = asyncio.create_task(feed.page(Start.NOW, ANY, limit=10, wait=20))
        await waiting(feed)
        connection = await asyncpg.connect(database_url)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'pqs'"
        )
        await connection.close()
        await write(database, [made(1)])
        assert versions(await task) == [1]
