"""Messages behind a dead letter: they wait, in order, until it is retried or skipped."""

import asyncio
import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.decider import Deadline
from app.domain.positions import Position
from app.domain.registration import Timing
from app.domain.results import HeldResult, Result
from app.errors import InvalidInputError, UnreadableError
from app.inbound.holding import MessageRead, Sorting, Unfit
from app.inbound.letters import Letters, NotHeldError
from app.projection.clock import DatabaseClock
from app.projection.projector import Projector
from app.store import dead_letters, held
from app.store.database import Connection, Database
from app.store.held import Held, HeldError
from app.store.registrations import REGISTRATIONS
from app.wire.messages import KafkaMessage, read_message
from tests.making import Json, event, event_json, life, node
from tests.strategies import stored

ROWS = "SELECT (to_jsonb(t) - 'last_applied_partition')::text FROM registration_projections AS t ORDER BY entity_id"
POISON = {"color": "red"}  # a field that no event has
MEND = "SET value = convert_to(replace(convert_from(value, 'UTF8'), ',\"color\":\"red\"', ''), 'UTF8')"
EMPTY = "TRUNCATE registration_projections, registration_state_counts, dead_letters, held_entities, held_messages"


async def nothing(_connection: Connection, _results: list[Result]) -> None:
    """Do nothing more."""


def message(value: Json | bytes | None, offset: int, *, topic: str = "nodes", **fields: Any) -> KafkaMessage:
    """A message of partition 0."""
    encoded = msgspec.json.encode(value) if isinstance(value, dict) else value
    key = str(value["entity_id"]).encode() if isinstance(value, dict) and "entity_id" in value else None
    return KafkaMessage(topic, 0, offset, **{"key": key, "headers": [], **fields}, value=encoded)


def read(each: KafkaMessage) -> MessageRead:
    """What a consumer makes of a message."""
    try:
        return read_message(each)
    except (InvalidInputError, UnreadableError) as error:
        return Unfit(str(error))


class Log:
    """A partition that is written and taken in, as a consumer does."""

    def __init__(self, database: Database, *, holds: bool = True) -> None:
        self.database = database
        self.projector = Projector(database, Timing())
        self.letters = Letters(self.projector, DatabaseClock(database, timedelta(minutes=5)))
        self.offsets = itertools.count()
        self._holds = holds

    async def take(self, *values: Json | bytes, topic: str = "nodes") -> Sorting:
        """Take a batch in."""
        messages = [message(value, next(self.offsets), topic=topic) for value in values]
        sorting = Sorting(messages, [read(each) for each in messages], holds=self._holds)

        async def write(connection: Connection, results: list[Result]) -> None:
            await sorting.write(connection, results)

        await self.projector.persist_chosen(sorting.choose, revise=sorting.revise, also=write)
        return sorting

    async def held(self, entity_id: UUID) -> Held | None:
        """Whether an entity is held, and how."""
        return await self.database.read(held.get, entity_id)

    async def versions(self) -> dict[UUID, int]:
        """The versions of all rows."""
        query = "SELECT entity_id, version FROM registration_projections"
        return {row[0]: row[1] for row in await self.database.read(lambda connection: connection.fetch(query))}

    async def number(self, table: str) -> int:
        """How many rows a table has."""
        query = f"SELECT count(*) FROM {table}"
        number: int = await self.database.read(lambda connection: connection.fetchval(query))
        return number

    async def mend(self) -> None:
        """Let the code know the field that it did not: here, by taking it out."""
        for table in ("dead_letters", "held_messages"):
            await self.execute(f"UPDATE {table} {MEND}")

    async def execute(self, statement: str) -> None:
        """Execute a statement."""
        await self.database.write(lambda connection: connection.execute(statement))


@pytest.fixture
def log(database: Database) -> Log:
    """A partition that is taken in, with letters that hold."""
    return Log(database)


def poisoned(value: Json) -> Json:
    """The same event with a field that is refused."""
    return value | POISON


def heartbeat(number: int, sequence: int) -> Json:
    """A heartbeat of a node."""
    return event_json("node.heartbeat", sequence, entity_id=node(number))


async def test_a_transition_that_fails_holds_its_entity_alone(log: Log) -> None:
    """Later messages of the entity wait, in the batch and in later ones, and others go on."""
    first, second, *others = life(node(1))
    await log.take(first, poisoned(second), *others, *life(node(2)))
    await log.take(heartbeat(1, 9), heartbeat(2, 9))
    assert await log.versions() == {node(1): 1, node(2): 6}
    found = await log.held(node(1))
    assert found is not None
    assert (found.offset, found.messages, found.passed) == (1, 4, 0)
    assert await log.number("dead_letters") == 1


async def test_a_retry_takes_in_the_letter_and_everything_behind_it(log: Log) -> None:
    """The row is the one that the log without poison gives, and nothing is held any more."""
    first, second, *others = life(node(1))
    await log.take(first, poisoned(second), *others)
    with pytest.raises(HeldError, match="nodes-0 offset 1 fails again"):
        await log.letters.retry_queue(node(1), nothing)
    assert await log.versions() == {node(1): 1}
    await log.mend()
    answer = await log.letters.retry_queue(node(1), nothing)
    assert (answer.summary.applied, answer.skipped, answer.messages) == (4, None, 0)
    assert await log.versions() == {node(1): 5}
    assert [await log.number(each) for each in ("dead_letters", "held_entities", "held_messages")] == [0, 0, 0]
    await log.take(heartbeat(1, 9))
    assert await log.versions() == {node(1): 6}
    with pytest.raises(NotHeldError):
        await log.letters.retry_queue(node(1), nothing)


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in two"])
async def test_a_retry_stops_at_the_first_message_that_fails(log: Log, together: bool) -> None:
    """A message behind the letter may fail as well: nothing is written, and the answer names it."""
    first, second, third, *others = life(node(1))
    bad = [first, poisoned(second), third, {**others[0], "data": {"size": 1}}, others[1]]
    for batch in [bad] if together else [bad[:2], bad[2:]]:
        await log.take(*batch)
    await log.mend()
    with pytest.raises(HeldError, match=r"nodes-0 offset 3 fails again.*size"):
        await log.letters.retry_queue(node(1), nothing)
    assert await log.versions() == {node(1): 1}
    assert await log.number("held_messages") == 3


async def test_a_skip_leaves_out_one_message_that_fails(log: Log) -> None:
    """What comes before it is applied, what comes behind up to the next that fails, which is then the letter."""
    values = [event_json("node.heartbeat", sequence, entity_id=node(1)) for sequence in range(10, 16)]
    bad = {**life(node(1))[1], "data": {"size": 1}}
    await log.take(*life(node(1)), poisoned(bad), values[0], bad, values[1], bad, values[2])
    answer = await log.letters.skip(node(1), nothing)
    assert answer.skipped is not None
    assert (answer.skipped.offset, answer.summary.applied, answer.messages) == (5, 1, 4)
    found = await log.held(node(1))
    assert found is not None
    assert (found.offset, found.messages, "size" in found.error) == (7, 3, True)
    assert [await log.number(each) for each in ("dead_letters", "held_messages")] == [1, 3]
    await log.letters.skip(node(1), nothing)
    answer = await log.letters.skip(node(1), nothing)
    assert (answer.summary.applied, answer.messages) == (1, 0)
    assert await log.versions() == {node(1): 8}
    assert [await log.number(each) for each in ("dead_letters", "held_entities", "held_messages")] == [0, 0, 0]


@pytest.mark.parametrize("sent", ["value", "header"])
async def test_a_heartbeat_that_fails_holds_nothing(database: Database, sent: str) -> None:
    """It is a dead letter, of an entity that is held as well, and others of its entity go on."""
    log = Log(database)
    bad = poisoned(heartbeat(1, 8)) if sent == "value" else heartbeat(1, 8)
    headers = [("ce_type", b"node.heartbeat"), ("ce_subject", str(node(1)).encode())] if sent == "header" else []
    each = message(bad, 99, headers=headers)
    await log.take(*life(node(1)))
    sorting = Sorting([each], [Unfit("no event")], holds=True)

    async def write(connection: Connection, results: list[Result]) -> None:
        await sorting.write(connection, results)

    await log.projector.persist_chosen(sorting.choose, revise=sorting.revise, also=write)
    await log.take(heartbeat(1, 9))
    assert await log.versions() == {node(1): 6}
    assert [await log.number(each) for each in ("dead_letters", "held_entities")] == [1, 0]


async def test_a_transition_in_conflict_holds_what_comes_behind_it(log: Log) -> None:
    """Messages behind it in its batch are not applied, though they would fit; after a rebase all are."""
    await log.projector.persist([event("registration.initiated", 1, entity_id=node(1))])
    second, *others = life(node(1))[1:]
    sorting = await log.take(second, *others, *life(node(2)))
    assert (len(sorting.letters), sorting.held) == (1, 3)
    assert await log.versions() == {node(1): 1, node(2): 5}
    place = Position(partition="nodes-0", offset=-1)
    await log.database.write(REGISTRATIONS.rebase, node(1), "registration", place)
    await log.letters.retry_queue(node(1), nothing)
    assert await log.versions() == {node(1): 6, node(2): 5}


async def test_with_pass_nothing_waits(database: Database) -> None:
    """PQS_DEAD_LETTERS=pass: what comes behind a letter is applied."""
    log = Log(database, holds=False)
    first, second, *others = life(node(1))
    await log.take(first, poisoned(second), *others, heartbeat(1, 9))
    assert await log.versions() == {node(1): 6 - 1}
    assert [await log.number(each) for each in ("dead_letters", "held_entities")] == [1, 0]


async def test_messages_that_find_no_room_pass(
    log: Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind a full queue they are applied, counted and logged; the entity is still held."""
    monkeypatch.setattr(held, "MAX_MESSAGES", 2)
    first, second, *others = life(node(1))
    sorting = await log.take(first, poisoned(second), *others[:2])
    assert (sorting.held, sorting.passed) == (2, 0)
    sorting = await log.take(others[2], heartbeat(1, 9))
    sorting.tell()
    assert (sorting.held, sorting.passed) == (0, 2)
    found = await log.held(node(1))
    assert found is not None
    assert (found.messages, found.passed) == (2, 2)
    assert await log.versions() == {node(1): 3}
    assert "2 messages of entity" in caplog.text


async def test_letters_of_too_many_entities_hold_nothing(
    log: Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond the bound a letter is one as before: later messages pass it."""
    monkeypatch.setattr(held, "MAX_ENTITIES", 1)
    bad = [poisoned(life(node(number))[1]) for number in range(3)]
    sorting = await log.take(*(life(node(number))[0] for number in range(3)), *bad, *map(_heartbeat, range(3)))
    sorting.tell()
    assert (sorting.held, sorting.passed) == (1, 2)
    assert sorted((await log.versions()).values()) == [1, 2, 2]
    assert "2 dead letters hold nothing" in caplog.text


def _heartbeat(number: int) -> Json:
    return heartbeat(number, 9)


async def test_an_event_of_a_held_entity_is_refused(log: Log) -> None:
    """Whoever sends it: one event, an array, or a dry run; events of others in the same batch are applied."""
    await log.take(life(node(1))[0], poisoned(life(node(1))[1]))
    mine = event("registration.accepted", 2, entity_id=node(1))
    other = event("registration.initiated", 1, entity_id=node(2))
    for results in (await log.projector.foresee([mine, other]), await log.projector.persist([mine, other])):
        assert isinstance(results[0], HeldResult)
        assert (results[0].outcome, results[0].version, results[1].outcome) == ("conflict", 1, "applied")
    assert await log.versions() == {node(1): 1, node(2): 1}
    new = event("node.heartbeat", 2, entity_id=node(3))
    await log.take(poisoned(life(node(3))[0]))
    [result] = await Projector(log.database, Timing()).persist([new])  # one that has no row, and knows of no hold
    assert isinstance(result, HeldResult)


async def test_a_hold_between_reading_and_writing_refuses_the_write(log: Log) -> None:
    """The statement that writes looks, too: an event whose entity is held meanwhile is refused, not applied."""
    mine = event("registration.initiated", 1)
    queries = 0

    class Late(Projector):
        async def _fold_unheld(self, connection: Connection, events: Any, **more: Any) -> Any:
            nonlocal queries
            folded = await super()._fold_unheld(connection, events, **more)
            queries += 1
            if queries == 1:
                await log.take(poisoned(event_json("registration.initiated", 1)))
            return folded

    [result] = await Late(log.database, Timing()).persist([mine])
    assert isinstance(result, HeldResult)
    assert queries == 2
    assert await log.versions() == {}


async def test_a_held_entity_is_not_overdue(log: Log) -> None:
    """It is in no list and no metric of overdue entities, nor is its deadline the next one; after the retry it is."""
    first, second, third, fourth, fifth = life(node(1))
    await log.take(first, second, third, poisoned(fourth), fifth)

    async def overdue(connection: Connection) -> tuple[int, object, bool]:
        scan = REGISTRATIONS.overdue[Deadline.ACK]
        late = await scan.get_overdue(
            connection, "registration", as_of=event("node.heartbeat", 99).occurred_at, after=None, limit=9
        )
        early = await scan.get_overdue(
            connection, "registration", as_of=event("node.heartbeat", 1).occurred_at, after=None, limit=9
        )
        return len(late.items), early.next_deadline, await scan.oldest_seconds(connection) > 0

    assert await log.database.read(overdue) == (0, None, False)
    await log.database.write(lambda connection: connection.execute("DELETE FROM held_entities"))
    number, following, is_late = await log.database.read(overdue)
    assert (number, following is None, is_late) == (1, False, True)


async def test_a_letter_that_holds_is_not_removed_alone(log: Log) -> None:
    """Neither a removal nor a retry of the letter alone leaves the messages behind it without order."""
    await log.take(life(node(1))[0], poisoned(life(node(1))[1]), heartbeat(1, 9))
    found = await log.held(node(1))
    assert found is not None
    assert not await log.database.write(dead_letters.remove, found.letter_id)
    await log.mend()
    letter = await log.database.read(dead_letters.get, found.letter_id)
    assert letter is not None
    result = await log.letters.retry(letter, nothing)
    assert isinstance(result, HeldResult)
    assert await log.number("dead_letters") == 1


async def test_a_message_that_comes_during_a_retry_is_behind_it(log: Log) -> None:
    """A consumer waits for the retry, and then applies the message: it is neither lost in a queue nor ahead of it."""
    first, second, *others = life(node(1))
    await log.take(first, poisoned(second), *others)
    await log.mend()
    retried, coming = asyncio.Event(), asyncio.Event()

    async def wait(_connection: Connection, _results: list[Result]) -> None:
        retried.set()
        await coming.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(log.letters.retry_queue(node(1), wait))
        await retried.wait()
        taking = group.create_task(log.take(heartbeat(1, 9)))
        await asyncio.sleep(0.2)
        assert not taking.done()
        coming.set()
    assert await log.versions() == {node(1): 6}
    assert [await log.number(each) for each in ("dead_letters", "held_entities", "held_messages")] == [0, 0, 0]


async def test_what_postgresql_refuses_is_found_in_a_queue(log: Log) -> None:
    """The message is named by a retry, and a skip leaves out that one and no other."""
    long = event_json("registration.initiated", 20, entity_id=node(1), data={"node_type": "x" * 30})
    await log.take(life(node(1))[0], poisoned(event_json("registration.rejected", 3, entity_id=node(1))), long)
    await log.take(event_json("registration.initiated", 30, entity_id=node(1)))
    await log.database.write(
        lambda connection: connection.execute(
            "ALTER TABLE registration_projections ADD CHECK (char_length(node_type) < 20)"
        )
    )
    await log.mend()
    with pytest.raises(HeldError, match="nodes-0 offset 2 fails again"):
        await log.letters.retry_queue(node(1), nothing)
    answer = await log.letters.skip(node(1), nothing)
    assert answer.skipped is not None
    assert (answer.skipped.offset, answer.summary.applied, answer.messages) == (2, 2, 0)


NODES = 3


def interleaved(draw: st.DrawFn) -> list[Json]:
    """The lives of some nodes and their heartbeats, mixed."""
    left = [
        [*life(node(number)), heartbeat(number, 9), *life(node(number), first=10)[:2], heartbeat(number, 19)]
        for number in range(NODES)
    ]
    log = []
    while any(left):
        chosen = draw(st.sampled_from([each for each in left if each]))
        log.append(chosen.pop(0))
    return log


@st.composite
def poisoned_logs(draw: st.DrawFn) -> tuple[list[Json], set[int], list[int]]:
    """A log, the places of its poison, which are transitions, and where its batches end."""
    log = interleaved(draw)
    places = [place for place, each in enumerate(log) if each["type"] != "node.heartbeat"]
    bad = draw(st.sets(st.sampled_from(places), max_size=6))
    ends = sorted(draw(st.sets(st.integers(1, len(log) - 1), max_size=6)))
    return log, bad, [*ends, len(log)]


@given(drawn=poisoned_logs())
@stored
async def test_any_poison_mended_and_retried_is_the_log_without_poison(
    database: Database, drawn: tuple[list[Json], set[int], list[int]]
) -> None:
    """Whatever transitions fail, and however the log is cut into batches: the rows are the same, byte for byte."""
    values, bad, ends = drawn

    async def rows(poison: set[int], batches: Sequence[tuple[int, int]]) -> list[object]:
        await database.write(lambda connection: connection.execute(EMPTY))
        log = Log(database)
        for begin, end in batches:
            batch = [poisoned(each) if place in poison else each for place, each in enumerate(values)][begin:end]
            await log.take(*batch)
        await log.mend()
        for each in await database.read(lambda c: held.get_page(c, after=UUID(int=0), limit=9)):
            await log.letters.retry_queue(each.entity_id, nothing)
        assert await log.number("dead_letters") == 0
        return [row[0] for row in await database.read(lambda connection: connection.fetch(ROWS))]

    cut = list(itertools.pairwise([0, *ends]))
    assert await rows(bad, cut) == await rows(set(), [(0, len(values))])
