"""Dead letters and watermarks through the client, with the whole application."""

import asyncio

import msgspec
import pytest

from app.domain.positions import Position
from app.domain.results import Outcome
from app.store import dead_letters, outbox, watermarks
from app.store.database import Connection, Database
from app.store.dead_letters import RELAY, Letter
from app.store.watermarks import NOTHING_READ, Advance, FoundPartition
from pqs_client import (
    Client,
    ConflictError,
    ConnectionFailedError,
    Header,
    HeldError,
    InvalidError,
    LetterFilter,
    LetterRun,
    MessagePlace,
    NotFoundError,
)
from tests.client.proxy import Proxy
from tests.inbound.test_holding import Log, poisoned
from tests.making import NODE, event_json, life, node, when
from tests.processes import PATIENCE
from tests.wire.test_envelopes import envelope

INITIATED = msgspec.json.encode(event_json("registration.initiated", 1))


def letter(offset: int, value: bytes = INITIATED) -> Letter:
    """A message that could not be applied."""
    headers: dead_letters.MessageHeaders = [("text", b"x"), ("bytes", b"\xff"), ("none", None)]
    return Letter(
        topic="nodes", partition=3, offset=offset, key=b"\xff", value=value, headers=headers, error="unreadable"
    )


async def add(database: Database, *letters: Letter) -> None:
    """Store letters as dead letters."""
    await database.write(lambda connection: dead_letters.add(connection, letters))


async def ids(pqs: Client, limit: int | None = None) -> list[list[int]]:
    """The ids on each page."""
    return [[item.id for item in page.items] async for page in pqs.dead_letters.pages(limit=limit)]


async def test_a_dead_letter_is_a_value(pqs: Client, database: Database) -> None:
    """A dead letter has position, error and contents, as text or in base64."""
    await add(
        database, letter(7), Letter(source=RELAY, topic="effect:consul", key=None, value=None, headers=[], error="")
    )
    [page] = [page async for page in pqs.dead_letters.pages()]
    came_in, goes_out = page.items
    assert (came_in.source, came_in.topic, came_in.partition, came_in.offset) == ("consumer", "nodes", 3, 7)
    assert (came_in.error, came_in.created_at.tzinfo is None) == ("unreadable", False)
    assert (came_in.key, came_in.key_base64) == (None, "/w==")
    assert (came_in.value, came_in.value_base64) == (INITIATED.decode(), None)
    assert came_in.headers == [Header("text", "x", None), Header("bytes", None, "/w=="), Header("none", None, None)]
    assert (goes_out.source, goes_out.topic, goes_out.partition, goes_out.value) == (
        "relay",
        "effect:consul",
        None,
        None,
    )


async def test_pages_of_dead_letters_are_followed_to_the_end(pqs: Client, database: Database) -> None:
    """Pages have each letter once, oldest first, and at most the limit; a cursor starts further on."""
    await add(database, *(letter(offset) for offset in range(5)))
    assert await ids(pqs, limit=2) == [[1, 2], [3, 4], [5]]
    first = await anext(pqs.dead_letters.pages(limit=2))
    [rest] = [page async for page in pqs.dead_letters.pages(cursor=first.next_cursor)]
    assert [item.id for item in rest.items] == [3, 4, 5]


async def test_a_retry_says_what_became_of_the_event(pqs: Client, database: Database) -> None:
    """A retry applies the event at its own position, and removes the letter."""
    await add(database, letter(7))
    result = await pqs.dead_letters.retry(1)
    assert result is not None
    assert (result.outcome, result.entity_id) == (Outcome.APPLIED, NODE)
    assert result.stands_at == Position(partition="nodes-3", offset=7)
    assert await ids(pqs) == [[]]


async def test_a_retry_of_what_was_to_go_out_has_no_outcome(pqs: Client, database: Database) -> None:
    """A retried outgoing message is back in the outbox, its letter is gone, and there is no event result."""
    value = envelope().to_json()
    await add(database, Letter(source=RELAY, topic="effect:consul", key=None, value=value, headers=[], error=""))
    assert await pqs.dead_letters.retry(1) is None
    assert await ids(pqs) == [[]]
    [waiting] = await database.read(outbox.backlogs)
    assert (waiting.destination, waiting.messages) == ("effect:consul", 1)


async def test_what_still_is_not_taken_in_stays(pqs: Client, database: Database) -> None:
    """A conflicting or invalid event raises its error, and its letter stays."""
    await pqs.events.send(event_json("registration.initiated", 1))
    await add(database, letter(7), letter(8, b"{}"))
    with pytest.raises(ConflictError) as conflict:
        await pqs.dead_letters.retry(1)
    assert conflict.value.stands_at == Position(sequence=1)
    with pytest.raises(InvalidError):
        await pqs.dead_letters.retry(2)
    assert await ids(pqs) == [[1, 2]]


async def test_a_dead_letter_is_removed(pqs: Client, database: Database) -> None:
    """A removed letter is gone; removing or retrying it again raises NotFoundError."""
    await add(database, letter(7))
    await pqs.dead_letters.delete(1)
    assert await ids(pqs) == [[]]
    with pytest.raises(NotFoundError, match="there is no dead letter 1"):
        await pqs.dead_letters.delete(1)
    with pytest.raises(NotFoundError):
        await pqs.dead_letters.retry(1)


@pytest.mark.parametrize("call", ["retry", "delete"])
async def test_what_takes_a_letter_away_is_sent_once(proxy: Proxy, call: str) -> None:
    """A removal or retry whose answer is lost may be done, so it is not repeated: it would find no letter."""
    proxy.lose_answers = 1
    async with Client(proxy.url) as client:
        with pytest.raises(ConnectionFailedError) as caught:
            await getattr(client.dead_letters, call)(1)
    assert caught.value.perhaps_done


async def test_watermarks_are_values(pqs: Client, database: Database) -> None:
    """Each partition has its offset, and the time up to which all its messages are applied."""
    assert await pqs.watermarks() == []

    async def work(connection: Connection) -> None:
        advance = Advance(topic="nodes", partition=3, expected=NOTHING_READ, offset=4, message_at=when(1))
        await watermarks.find(connection, [FoundPartition("nodes", 3)], "me")
        await watermarks.advance(connection, [advance], "me")

    await database.write(work)
    [watermark] = await pqs.watermarks()
    assert (watermark.topic, watermark.partition, watermark.offset, watermark.consumer) == ("nodes", 3, 4, "me")
    assert (watermark.as_of, watermark.message_at, watermark.caught_up_at) == (when(1), when(1), None)


async def until_finished(pqs: Client, run: LetterRun) -> tuple[int, int, int]:
    """How many letters of a run matched, are done and failed, at its end."""
    async with asyncio.timeout(PATIENCE):
        while (run := await pqs.dead_letters.run(run.id)).finished_at is None:  # noqa: ASYNC110 - another worker finishes it
            await asyncio.sleep(0.02)
    return run.matched, run.done, run.failed


async def test_letters_that_match_are_read_retried_and_removed(pqs: Client, database: Database) -> None:
    """A filter chooses the letters of pages and of bulk calls; one letter is read by its id."""
    await add(database, letter(7), letter(8, b"{}"), letter(9, b"{"))
    wanted = LetterFilter(source="consumer", topic="nodes", since=when(0))
    [page] = [page async for page in pqs.dead_letters.pages(wanted, newest_first=True)]
    assert [item.offset for item in page.items] == [9, 8, 7]
    assert await pqs.dead_letters.get(page.items[0].id) == page.items[0]
    assert await until_finished(pqs, await pqs.dead_letters.retry_all(wanted)) == (3, 1, 2)
    assert await until_finished(pqs, await pqs.dead_letters.delete_all(LetterFilter(topic="racks"))) == (0, 0, 0)
    assert await until_finished(pqs, await pqs.dead_letters.delete_all()) == (2, 2, 0)


async def test_a_held_entity_is_retried_or_skipped(pqs: Client, database: Database) -> None:
    """What it waits for is a value; a retry that fails, and an event for it, raise HeldError."""
    log = Log(database)
    for number in (1, 2):
        first, second, *others = life(node(number))
        await log.take(first, poisoned(second), *others)
    [page] = [page async for page in pqs.dead_letters.held_pages()]
    assert {item.messages for item in page.items} == {3}
    assert await pqs.dead_letters.held(page.items[0].entity_id) == page.items[0]
    with pytest.raises(HeldError) as held:
        await pqs.dead_letters.retry_held(node(1))
    assert held.value.entity_id == node(1)
    with pytest.raises(HeldError):
        await pqs.events.send(event_json("node.heartbeat", 9, entity_id=node(1)))
    skipped = await pqs.dead_letters.skip_held(node(2))
    assert skipped.skipped == MessagePlace("nodes", 0, 6)
    await log.mend()
    assert (await pqs.dead_letters.retry_held(node(1))).summary.applied == 4
    with pytest.raises(NotFoundError):
        await pqs.dead_letters.held(node(1))
