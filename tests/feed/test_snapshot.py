"""Snapshots: rows by key, followed by changes without a gap, while others write."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import msgspec
import pytest

from app.domain.states import RegistrationState
from app.errors import BadTokenError
from app.feed import tokens
from app.feed.feed import Start
from app.feed.follow import Answer, Follow, Line, Request
from app.feed.items import Filter
from app.feed.tokens import Token
from app.store.database import Database, LostRaceError
from app.store.registrations import REGISTRATIONS
from tests.feed.test_feed import ANY
from tests.feed.writing import STATES, write
from tests.making import node

ENTITIES = [node(number) for number in range(40)]
WRITERS = 3


class Replica:
    """A follower's copy of the rows, which checks that each entity comes in version order."""

    def __init__(self) -> None:
        self.states: dict[UUID, RegistrationState] = {}
        self.versions: dict[UUID, int] = {}
        self.out_of_order = 0
        self.gaps = 0
        self.rows = 0

    def take(self, lines: Sequence[Line]) -> None:
        """Apply some lines."""
        for line in lines:
            if line.kind == "bookmark":
                continue
            item = msgspec.json.decode(line.body)
            entity_id, version = UUID(item["entity_id"]), item["version"]
            known = self.versions.get(entity_id)
            if item["kind"] == "row":
                self.rows += 1
                self.out_of_order += known is not None and version < known
            else:
                self.out_of_order += known is not None and version <= known
                self.gaps += version != (known or 0) + 1
            self.versions[entity_id] = version
            self.states[entity_id] = RegistrationState(item["current_state"])


@asynccontextmanager
async def others_write(database: Database) -> AsyncIterator[None]:
    """Let several writers work within this context."""
    stop = asyncio.Event()

    async def run(seed: int) -> None:
        dice = random.Random(seed)
        while not stop.is_set():
            with suppress(LostRaceError):
                await database.write(write, dice.sample(ENTITIES, 2), lock=True)
            await asyncio.sleep(0.03)

    tasks = [asyncio.create_task(run(seed)) for seed in range(WRITERS)]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def states(database: Database) -> dict[UUID, RegistrationState]:
    """The stored rows."""
    found = await database.read(REGISTRATIONS.get_entity_states, [(each, "registration") for each in ENTITIES])
    return {row.entity_id: row.current_state for row in found.values()}


def ask(after: Token | Start, wanted: Filter = ANY, limit: int = 7, *, snapshot: bool = False) -> Request:
    """A request."""
    return Request(after=after, wanted=wanted, limit=limit, snapshot=snapshot)


@pytest.mark.parametrize("limit", [15, 1000])
async def test_a_snapshot_and_what_follows_are_the_rows(follow: Follow, database: Database, limit: int) -> None:
    """Under writes, each entity comes in version order, none is missed after its row, and all rows end right."""
    await database.write(write, ENTITIES, lock=True)
    replica = Replica()
    answer = await follow.answer(ask(Start.NOW, limit=limit, snapshot=True), wait=0)
    begun = time.monotonic()
    async with others_write(database):
        while answer.next.digest or time.monotonic() - begun < 1:
            assert len(answer.lines) <= limit
            replica.take(answer.lines)
            token = tokens.read(tokens.write(answer.next))
            answer = await follow.answer(ask(token, limit=limit), wait=1)
    replica.take(answer.lines)
    await rest(follow, replica, answer)
    assert (replica.out_of_order, replica.gaps) == (0, 0)
    assert replica.rows == len(ENTITIES)
    assert replica.states == await states(database)


async def rest(follow: Follow, replica: Replica, answer: Answer) -> None:
    """Follow up to the last change."""
    caught_up = False
    while not caught_up:
        answer = await follow.answer(ask(answer.next, limit=1000), wait=0)
        replica.take(answer.lines)
        caught_up = answer.caught_up


async def test_an_interrupted_snapshot_goes_on(follow: Follow, database: Database) -> None:
    """A snapshot resumes from any line's token: rows may repeat, and nothing is missed."""
    await database.write(write, ENTITIES, lock=True)
    begin = ask(Start.NOW, snapshot=True)
    replica = Replica()
    async with others_write(database):
        answer = await follow.answer(begin, wait=0)
        while answer.next.digest:
            kept = answer.lines[: random.randint(0, len(answer.lines))]
            replica.take(kept)
            place = tokens.read(kept[-1].token.decode()) if kept else answer.next if not answer.lines else None
            if place is not None:
                last = place
            answer = await follow.answer(ask(last) if place is not None or replica.rows else begin, wait=0)
    replica.take(answer.lines)
    await rest(follow, replica, answer)
    assert replica.out_of_order == 0
    assert replica.states == await states(database)


async def test_a_snapshot_of_a_state(follow: Follow, database: Database) -> None:
    """A snapshot of a state has its rows, then the rows that enter or leave it."""
    await database.write(write, ENTITIES[:10], lock=True)
    await database.write(write, ENTITIES[:4], lock=True)
    wanted = Filter("registration", states=frozenset({STATES[1]}))
    replica = Replica()
    answer = await follow.answer(ask(Start.NOW, wanted, 3, snapshot=True), wait=0)
    while answer.next.digest:
        replica.take(answer.lines)
        answer = await follow.answer(ask(answer.next, wanted, 3), wait=0)
    replica.take(answer.lines)
    inside = {each for each, state in (await states(database)).items() if state is STATES[1]}
    assert set(replica.states) == inside
    assert len(inside) in {4, 6}
    await database.write(write, ENTITIES[:10], lock=True)
    answer = await follow.answer(ask(answer.next, wanted, 100), wait=5)
    assert len(answer.lines) == 10


async def test_a_snapshot_of_some_entities(follow: Follow, database: Database) -> None:
    """A snapshot of some entities has their rows in pages; an unknown entity has none."""
    await database.write(write, ENTITIES[:10], lock=True)
    wanted = Filter("registration", entity_ids=frozenset({*ENTITIES[:5], node(77)}), node_type="storage")
    replica = Replica()
    answer = await follow.answer(ask(Start.NOW, wanted, 2, snapshot=True), wait=0)
    while answer.next.digest:
        replica.take(answer.lines)
        answer = await follow.answer(ask(answer.next, wanted, 2), wait=0)
    replica.take(answer.lines)
    assert set(replica.states) == set(ENTITIES[:5])


async def test_a_snapshot_is_bound_to_its_filter(follow: Follow, database: Database) -> None:
    """A snapshot's token is refused with other filters than those that chose its rows."""
    await database.write(write, ENTITIES[:10], lock=True)
    answer = await follow.answer(ask(Start.NOW, limit=3, snapshot=True), wait=0)
    with pytest.raises(BadTokenError, match="other filters"):
        await follow.answer(ask(answer.next, Filter("other")), wait=0)


async def test_a_snapshot_row_by_row(follow: Follow, database: Database) -> None:
    """A snapshot works with pages of one row."""
    await database.write(write, ENTITIES[:5], lock=True)
    replica = Replica()
    answer = await follow.answer(ask(Start.NOW, limit=1, snapshot=True), wait=0)
    while answer.next.digest:
        replica.take(answer.lines)
        answer = await follow.answer(ask(answer.next, limit=1), wait=0)
    replica.take(answer.lines)
    assert set(replica.states) == set(ENTITIES[:5])


async def test_an_empty_snapshot(follow: Follow) -> None:
    """An empty snapshot is complete at once, and can be followed."""
    answer = await follow.answer(ask(Start.NOW, snapshot=True), wait=0)
    assert (answer.lines, answer.next.digest) == ([], b"")


async def test_a_stream_begins_with_a_snapshot(
    follow: Follow, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream sends rows, then changes as they happen, bookmarks when idle, and then ends."""
    monkeypatch.setattr("app.feed.follow.BOOKMARK", 0.2)
    monkeypatch.setattr("app.feed.follow.STREAM", 1.5)
    await database.write(write, ENTITIES[:3], lock=True)
    kinds: list[str] = []
    began = time.monotonic()
    async for lines in follow.stream(ask(Start.NOW, snapshot=True)):
        kinds += [line.kind for line in lines]
        if kinds.count("bookmark") == 1:
            await database.write(write, ENTITIES[:1], lock=True)
    assert 1.2 < time.monotonic() - began < 2.5
    assert kinds[:3] == ["row"] * 3
    assert kinds[3] == "bookmark"
    assert "change" in kinds[4:]
