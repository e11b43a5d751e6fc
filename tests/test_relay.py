"""The relay: what the outbox holds arrives, in each entity's order, whatever happens to relays and the other side."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import pytest

from app import relay as relay_module
from app.bus.envelopes import Envelope
from app.bus.kafka import KafkaBus
from app.bus.memory import MemoryBus
from app.domain.registration import Timing
from app.effects.consul import Consul
from app.errors import BusError, IntentError, MessageRefusedError
from app.outgoing import Outgoing
from app.projector import Projector
from app.relay import LANES, Destination, Relay, to_handler, to_topic
from app.store import dead_letters, outbox
from app.store.database import Database
from app.store.outbox import Backlog, Pending
from tests.broker import Broker, built_in_broker, read_topic
from tests.consul import consul
from tests.making import event, node

TOPIC = "registration-events"
EVENTS, EFFECTS = f"topic:{TOPIC}", "effect:consul"
CONSUL = {"consul.register": "consul", "consul.deregister": "consul"}
PATIENCE = 60.0  # seconds; only a test that fails waits that long
WAY = ("node.introspected", "node.registration_acked", "node.deregistered")  # 3, 2 and 1 events follow; 2 intents
SEQUENCES = [1, 2, 3, 4, 5, 6]  # of the events of one such way


@asynccontextmanager
async def relaying(database_url: str, *destinations: Destination, share: int = 4) -> AsyncIterator[Relay]:
    """A relay at work, as one process has it."""
    size = max(1, len(destinations) * LANES)
    database = Database(database_url, pool_size=size, statement_timeout=timedelta(seconds=5))
    relay = Relay(database, destinations, share=share)
    relay.start()
    try:
        yield relay
    finally:
        await relay.close()
        await database.close()


async def until(condition: Callable[[], Awaitable[object]], what: str) -> None:
    """Ask again and again until the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - what is waited for is in the database
            await asyncio.sleep(0.01)


async def waiting(database: Database) -> list[Backlog]:
    """What the outbox holds."""
    return await database.read(outbox.backlogs)


async def drained(database: Database) -> None:
    """Wait until the outbox is empty."""

    async def is_empty() -> bool:
        return not await waiting(database)

    await until(is_empty, "the outbox is empty")


async def send(projector: Projector, nodes: Sequence[UUID], *, first: int = 1, types: Sequence[str] = WAY) -> None:
    """Let these nodes come and go."""
    for place, type_ in enumerate(types, start=first):
        await projector.persist([event(type_, place, entity_id=each) for each in nodes])


def told(values: Sequence[bytes]) -> dict[str, list[int]]:
    """The sequences of each entity, in the order in which they first arrived."""
    sequences: dict[str, list[int]] = {}
    for value in values:
        envelope = Envelope.from_json(value)
        row = sequences.setdefault(envelope.subject, [])
        if envelope.sequence not in row:
            row.append(envelope.sequence)
    return sequences


class Hand:
    """A destination that takes what it is given, unless a test wants it otherwise."""

    def __init__(self, name: str = EVENTS) -> None:
        self.taken: list[Pending] = []
        self.errors: dict[UUID, Exception] = {}  # by entity
        self.held: set[UUID] = set()  # entities whose messages are never answered
        self.calls = 0
        self.open = asyncio.Event()  # while it is not set, nothing is answered
        self.open.set()
        self.destination = Destination(name, lambda message: asyncio.ensure_future(self.take(message)), 100)

    async def take(self, message: Pending) -> None:
        """Take a message."""
        self.calls += 1
        await self.open.wait()
        if message.entity_id in self.held:
            await asyncio.Event().wait()
        if (error := self.errors.get(message.entity_id)) is not None:
            raise error
        self.taken.append(message)

    @property
    def told(self) -> dict[str, list[int]]:
        """The sequences of each entity, in their order."""
        return told([each.envelope.encode() for each in self.taken])


@pytest.fixture
def sending(database: Database) -> Projector:
    """A projector with a bus and a Consul."""
    return Projector(database, Timing(), Outgoing(TOPIC, CONSUL))


@pytest.fixture
def to_bus(database: Database) -> Projector:
    """A projector with a bus alone."""
    return Projector(database, Timing(), Outgoing(TOPIC))


NODES = [node(number) for number in range(100)]
ALL = {str(each): SEQUENCES for each in NODES}


async def test_what_waits_arrives_and_is_removed(to_bus: Projector, database: Database, database_url: str) -> None:
    """Every message goes to its topic as it was kept, under its entity's key, and none is left."""
    await send(to_bus, NODES)
    bus = MemoryBus()
    async with relaying(database_url, to_topic(bus, TOPIC)):
        await drained(database)
    messages = bus.messages(TOPIC)
    assert told([each.value for each in messages]) == ALL
    assert len(messages) == len(NODES) * len(SEQUENCES)
    assert all(each.key == Envelope.from_json(each.value).key for each in messages)
    assert {each.headers["content-type"] for each in messages} == {b"application/cloudevents+json; charset=UTF-8"}


async def test_several_relays_keep_each_entitys_order(
    to_bus: Projector, database: Database, database_url: str, kafka: Broker, topic: str
) -> None:
    """With three relays at work on Kafka while nodes come and go, each node's events are there once and in order."""
    projector = Projector(database, Timing(), Outgoing(topic))
    buses = [KafkaBus(kafka.servers) for _ in range(3)]
    try:
        async with (
            relaying(database_url, to_topic(buses[0], topic)),
            relaying(database_url, to_topic(buses[1], topic)),
            relaying(database_url, to_topic(buses[2], topic)),
        ):
            for first in (1, 4, 7):
                await send(projector, NODES, first=first)
            await drained(database)
    finally:
        for bus in buses:
            await bus.close()
    values = [each.value for each in read_topic(kafka, topic, len(NODES) * 18)]
    assert told(values) == {str(each): list(range(1, 19)) for each in NODES}


async def test_slots_are_shared(to_bus: Projector, database: Database, database_url: str) -> None:
    """While one relay is held up with its share of the slots, another one sends the rest; no message goes twice."""
    await send(to_bus, NODES)
    slow, quick = Hand(), Hand()
    slow.open.clear()
    quick.taken = slow.taken  # both send to the same place
    async with relaying(database_url, slow.destination):

        async def has_its_share() -> bool:
            return slow.calls > 0

        await until(has_its_share, "the first relay has begun")
        async with relaying(database_url, quick.destination):

            async def got_something() -> bool:
                return quick.calls > 0

            await until(got_something, "the second relay sends")
            slow.open.set()
            await drained(database)
    assert slow.told == ALL
    assert len(slow.taken) == len(NODES) * len(SEQUENCES)


async def test_a_failure_holds_its_own_entity_up_and_no_other(
    to_bus: Projector, database: Database, database_url: str
) -> None:
    """A message that cannot be sent now keeps its successors back; everybody else's go, and it is tried again."""
    await send(to_bus, NODES)
    hand = Hand()
    hand.errors[NODES[0]] = BusError("not now")
    async with relaying(database_url, hand.destination):

        async def all_but_one_are_through() -> bool:
            return [each.messages for each in await waiting(database)] == [len(SEQUENCES)]

        await until(all_but_one_are_through, "the others are through")
        assert len(hand.taken) == (len(NODES) - 1) * len(SEQUENCES)
        hand.errors.clear()
        await drained(database)
    assert hand.told == ALL


@pytest.mark.parametrize("error", [MessageRefusedError("too large"), IntentError("no")], ids=["bus", "handler"])
async def test_what_is_refused_for_good_is_set_aside(
    to_bus: Projector, database: Database, database_url: str, error: Exception
) -> None:
    """A message that is never accepted becomes a dead letter, and does not keep its successors back."""
    await send(to_bus, NODES[:3])
    hand = Hand()
    hand.errors[NODES[1]] = error
    async with relaying(database_url, hand.destination):
        await drained(database)
    assert hand.told == {str(each): SEQUENCES for each in (NODES[0], NODES[2])}
    letters, more = await database.read(lambda connection: dead_letters.get_page(connection, after=0, limit=100))
    assert not more
    assert told([each.value or b"" for each in letters]) == {str(NODES[1]): SEQUENCES}
    assert {(each.source, each.topic, each.error) for each in letters} == {("relay", EVENTS, str(error))}


async def test_a_consul_that_is_down_does_not_hold_up_the_bus(
    sending: Projector, database: Database, database_url: str
) -> None:
    """Events go out while Consul fails; what Consul missed is carried out when it is there again, in order."""
    bus = MemoryBus()
    with consul() as agent:
        agent.answers = [500] * 1000
        handler = Consul(agent.url, backoff=timedelta(0))
        async with relaying(database_url, to_topic(bus, TOPIC), to_handler("consul", handler.handle)):
            await send(sending, NODES[:4])
            await send(sending, NODES[:2], first=4, types=WAY[:1])

            async def bus_is_done() -> bool:
                return [each.destination for each in await waiting(database)] == [EFFECTS]

            await until(bus_is_done, "the bus has its messages")
            assert agent.services == {}
            agent.answers = []
            handler.breaker._opened_at = None  # its minute is over
            await drained(database)
        await handler.close()
    assert set(agent.services) == {f"registration.{each}" for each in NODES[:2]}
    assert agent.wrong == []


async def test_a_broker_that_comes_back_gets_its_backlog(
    to_bus: Projector, database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While the broker is down messages pile up, and can be counted; then they arrive, each node's in order.

    The Kafka client gives each attempt up soon here, so that messages are really tried again.
    """
    with built_in_broker() as broker:
        broker.create_topic(TOPIC)
        bus = KafkaBus(broker.servers, delivery_timeout=timedelta(milliseconds=200))
        broker.go_down()
        async with relaying(database_url, to_topic(bus, TOPIC)) as relay:
            await send(to_bus, NODES)
            relay.wake()

            async def was_told() -> bool:
                return f"messages for {EVENTS} wait: " in caplog.text

            await until(was_told, "the relay has met the broker's absence")
            [backlog] = await waiting(database)
            assert (backlog.destination, backlog.messages) == (EVENTS, len(NODES) * len(SEQUENCES))
            assert backlog.oldest_seconds > 0
            broker.come_up()
            await drained(database)
        await bus.close()
        values = [each.value for each in read_topic(broker, TOPIC, len(NODES) * len(SEQUENCES))]
    assert told(values) == ALL


async def test_a_relay_that_loses_its_database_begins_anew(
    to_bus: Projector, database: Database, database_url: str
) -> None:
    """When PostgreSQL ends its session, the relay lets go of what it was sending, and sends it again."""
    await send(to_bus, NODES)
    hand = Hand()
    hand.open.clear()
    async with relaying(database_url, hand.destination):

        async def is_sending() -> bool:
            return hand.calls > 0

        await until(is_sending, "the relay has begun")
        ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory'"
        assert await database.read(lambda connection: connection.fetchval(ended))
        hand.open.set()
        await drained(database)
    assert hand.told == ALL


async def test_what_is_on_its_way_comes_to_its_end(to_bus: Projector, database: Database, database_url: str) -> None:
    """A relay that is closed waits for what it has sent, and removes that; it begins nothing more."""
    await send(to_bus, NODES[:5], types=WAY[:1])
    hand = Hand()
    hand.open.clear()
    async with relaying(database_url, hand.destination, share=64) as relay:

        async def is_sending() -> bool:
            return hand.calls == 5

        await until(is_sending, "the first message of each node is on its way")
        closing = asyncio.create_task(relay.close())
        await asyncio.sleep(0)
        hand.open.set()
        await closing
    assert hand.told == {str(each): [1, 2, 3] for each in NODES[:5]}
    assert await waiting(database) == []


async def test_what_does_not_end_is_given_up_when_closing(
    to_bus: Projector, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not answered within the grace stays in the outbox; what has arrived by then is removed."""
    monkeypatch.setattr(relay_module, "GRACE", 0.2)
    await send(to_bus, NODES[:2], types=WAY[:1])
    hand = Hand()
    hand.held = {NODES[0]}
    async with relaying(database_url, hand.destination):

        async def one_is_through() -> bool:
            return hand.calls == 4

        await until(one_is_through, "one node is through, the other one is not")
    assert hand.told == {str(NODES[1]): [1, 2, 3]}
    assert [each.messages for each in await waiting(database)] == [3]


async def test_an_idle_relay_wakes_for_what_this_process_writes(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit with messages wakes the relay of the same process, which else looks from time to time."""
    monkeypatch.setattr(relay_module, "POLL", PATIENCE)
    outgoing = Outgoing(TOPIC)
    hand = Hand()
    async with relaying(database_url, hand.destination) as relay:
        outgoing.on_commit = relay.wake
        for first in (1, 4, 7):
            await send(Projector(database, Timing(), outgoing), NODES[:1], first=first)
            await drained(database)
    assert hand.told == {str(NODES[0]): list(range(1, 19))}


async def test_an_idle_relay_looks_for_what_others_write(
    to_bus: Projector, database: Database, database_url: str
) -> None:
    """What another process has written is found without a word from it."""
    hand = Hand()
    async with relaying(database_url, hand.destination):
        for first in (1, 4):
            await send(to_bus, NODES[:1], first=first)
            await drained(database)
    assert hand.told == {str(NODES[0]): list(range(1, 13))}
