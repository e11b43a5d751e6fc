"""Streams that rest: each change is written once for all alike, and whoever can't take it goes on from its place."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import pytest

from app.feed import audience
from app.feed.audience import Audience, GroupKey, Listener
from app.feed.items import Filter, Item
from app.store.changes import BEGINNING, Place
from tests.feed.test_ring import ANY, ids, item
from tests.making import node

LONG = 60.0  # seconds


class Client:
    """A client, which reads or does not."""

    def __init__(self) -> None:
        self.read: list[bytes] = []
        self.reads = True

    def push(self, data: bytes) -> bool:
        """Take it, if it reads."""
        if self.reads:
            self.read.append(data)
        return self.reads


class Streams:
    """An audience, and how often something was written for it."""

    def __init__(self) -> None:
        self.audience = Audience()
        self.written: list[list[int]] = []

    def write(self, items: Sequence[Item]) -> bytes:
        """The ids of the items."""
        self.written.append(ids(list(items)))
        return repr(self.written[-1]).encode()

    def rest(self, client: Client, wanted: Filter = ANY, *, silence: float = LONG, until: float = LONG) -> Listener:
        """Let a stream rest that is at the beginning, for so long."""
        end = asyncio.get_running_loop().time() + until
        return self.audience.join(
            GroupKey(wanted, "ids"),
            self.write,
            lambda at: b"at %d" % at.id,
            client,
            BEGINNING,
            silence=silence,
            until=end,
        )


async def test_what_comes_is_written_once_for_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are, and in order, though they are told in slices."""
    monkeypatch.setattr(audience, "AT_ONCE", 2)
    streams, clients = Streams(), [Client() for _ in range(5)]
    for each in clients:
        streams.rest(each)
    streams.audience.tell([item(1), item(2)], Place(2, 7))
    streams.audience.tell([item(3)], Place(3, 7))
    late = Client()
    streams.rest(late)
    for _ in range(10):
        await asyncio.sleep(0)
    assert streams.written == [[1, 2], [3]]
    assert [each.read for each in clients] == [[b"[1, 2]", b"[3]"]] * 5
    assert late.read == []  # it has read these by itself


async def test_each_is_told_what_its_filter_lets_through() -> None:
    """By the entity, too; and what concerns nobody is written for nobody."""
    streams = Streams()
    one, two, other = Client(), Client(), Client()
    streams.rest(one, Filter("registration", entity_ids=frozenset({node(1)})))
    streams.rest(two, Filter("registration", entity_ids=frozenset({node(1), node(2)})))
    streams.rest(other, Filter("other"))
    streams.audience.tell([item(1), item(2, node(2)), item(3, node(3))], Place(3, 7))
    assert (one.read, two.read, other.read) == ([b"[1]"], [b"[1, 2]"], [])
    assert len(streams.written) == 2


async def test_who_does_not_read_goes_on_from_its_place() -> None:
    """It is told no more, and the others are."""
    streams, slow, quick = Streams(), Client(), Client()
    resting = streams.rest(slow)
    streams.rest(quick)
    streams.audience.tell([item(1)], Place(1, 7))
    slow.reads = False
    streams.audience.tell([item(2)], Place(2, 7))
    await asyncio.wait_for(resting.future, 1)
    assert resting.place == Place(1, 7)
    streams.audience.tell([item(3)], Place(3, 7))
    assert (slow.read, quick.read) == ([b"[1]"], [b"[1]", b"[2]", b"[3]"])


async def test_a_silence_is_broken_by_the_place() -> None:
    """Which has moved on with what does not concern the stream; when its time is over it ends there."""
    streams, client = Streams(), Client()
    resting = streams.rest(client, silence=0.1, until=0.25)
    streams.audience.tell([item(4, domain="other")], Place(4, 7))
    await asyncio.wait_for(resting.future, 2)
    assert client.read == [b"at 4", b"at 4"]
    assert resting.place == Place(4, 7)


async def test_all_are_called() -> None:
    """Each at its place; those who have gone leave nothing behind."""
    streams = Streams()
    wanted = Filter("registration", entity_ids=frozenset({node(1)}))
    gone, others = streams.rest(Client(), wanted), [streams.rest(Client()) for _ in range(3)]
    gone.end()
    gone.end()
    streams.audience.tell([item(1, UUID(int=5))], Place(1, 7))
    streams.audience.call_all()
    assert all(each.future.done() and each.place == Place(1, 7) for each in others)
    assert (streams.audience._groups, streams.audience._others, dict(streams.audience._by_entity)) == ({}, {}, {})
