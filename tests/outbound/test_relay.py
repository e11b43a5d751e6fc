"""The relay: all messages arrive, in each entity's order, despite failures of relays and of destinations."""

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace

from app.concurrency.worker import working
from app.domain.intents import Intent
from app.domain.registration import Timing
from app.errors import BusError, IntentError, MessageRefusedError, NotNowError
from app.outbound import relay as relay_module
from app.outbound.bus import Keyed
from app.outbound.consul import Consul
from app.outbound.delivery import Delivery, Destination, Rests, one_by_one, to_handler, to_topic
from app.outbound.kafka import KafkaBus
from app.outbound.memory import MemoryBus
from app.outbound.relay import LANES, Relay
from app.projection.entries import EntryBuilder
from app.projection.projector import Projector
from app.settings import BusKind, Settings
from app.store import dead_letters, outbox
from app.store.database import Connection, Database
from app.store.outbox import Backlog, Entry, PendingMessage
from app.wire.envelopes import Envelope, in_digits
from tests.broker import Broker, built_in_broker, read_topic
from tests.conftest import application
from tests.consul import consul
from tests.making import START, event, node

TOPIC = "registration-events"
EVENTS, EFFECTS = f"topic:{TOPIC}", "effect:consul"
CONSUL = {"consul.register": "consul", "consul.deregister": "consul"}
PATIENCE = 60.0  # seconds; only a test that fails waits that long
WAY = ("node.introspected", "node.registration_acked", "node.deregistered")  # 3, 2 and 1 events follow; 2 intents
SEQUENCES = [1, 2, 3, 4, 5, 6]  # of the events of one such way


@asynccontextmanager
async def relaying(database_url: str, *destinations: Destination, share: int = 1) -> AsyncIterator[Relay]:
    """A running relay, as one process has it."""
    size = max(1, len(destinations) * LANES)
    database = Database(database_url, pool_size=size, statement_timeout=timedelta(seconds=5))
    relay = Relay(database, destinations, share=share)
    try:
        async with working(relay):
            yield relay
    finally:
        await database.close()


async def until(condition: Callable[[], Awaitable[object]], what: str) -> None:
    """Poll until the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - what is waited for is in the database
            await asyncio.sleep(0.01)


async def waiting(database: Database) -> list[Backlog]:
    """The content of the outbox."""
    return await database.read(outbox.backlogs)


async def drained(database: Database) -> None:
    """Wait until the outbox is empty."""

    async def is_empty() -> bool:
        return not await waiting(database)

    await until(is_empty, "the outbox is empty")


async def send(projector: Projector, nodes: Sequence[UUID], *, first: int = 1, types: Sequence[str] = WAY) -> None:
    """Register these nodes and let them leave."""
    for place, type_ in enumerate(types, start=first):
        await projector.persist([event(type_, place, entity_id=each) for each in nodes])


def told(values: Sequence[bytes]) -> dict[str, list[int]]:
    """The sequences of each entity, in the order in which each first arrived."""
    sequences: dict[str, list[int]] = {}
    for value in values:
        envelope = Envelope.from_json(value)
        row = sequences.setdefault(str(envelope.subject), [])
        if envelope.sequence not in row:
            row.append(envelope.sequence)
    return sequences


def entity_of(message: PendingMessage) -> UUID:
    """The entity of a message."""
    return UUID(message.key.decode())


class Hand:
    """A destination that accepts all messages, unless a test changes that."""

    def __init__(self, name: str = EVENTS) -> None:
        self.taken: list[PendingMessage] = []
        self.errors: dict[UUID, Exception] = {}  # by entity
        self.faults: dict[tuple[UUID, int], Exception] = {}  # by entity and sequence
        self.held: set[UUID] = set()  # entities whose messages are never answered
        self.held_at: set[int] = set()  # sequences
        self.calls = 0
        self.open = asyncio.Event()  # while it is not set, nothing is answered
        self.open.set()
        self.destination = Destination(name, one_by_one(self.take), 100)

    async def take(self, message: PendingMessage) -> None:
        """Accept a message."""
        self.calls += 1
        await self.open.wait()
        sequence = Envelope.from_json(message.envelope).sequence
        if entity_of(message) in self.held or sequence in self.held_at:
            await asyncio.Event().wait()
        error = self.errors.get(entity_of(message)) or self.faults.get((entity_of(message), sequence))
        if error is not None:
            raise error
        self.taken.append(message)

    @property
    def told(self) -> dict[str, list[int]]:
        """The sequences of each entity, in the order of arrival."""
        return told([each.envelope for each in self.taken])


@pytest.fixture
def sending(database: Database) -> Projector:
    """A projector with a bus and a Consul."""
    return Projector(database, Timing(), EntryBuilder(TOPIC, CONSUL))


@pytest.fixture
def to_bus(database: Database) -> Projector:
    """A projector with only a bus."""
    return Projector(database, Timing(), EntryBuilder(TOPIC))


NODES = [node(number) for number in range(100)]
ALL = {str(each): SEQUENCES for each in NODES}


async def test_what_waits_arrives_and_is_removed(to_bus: Projector, database: Database, database_url: str) -> None:
    """Every message reaches its topic unchanged, under its entity's key, and leaves the outbox."""
    await send(to_bus, NODES)
    bus = MemoryBus()
    async with relaying(database_url, to_topic(TOPIC, bus)):
        await drained(database)
    messages = bus.messages(TOPIC)
    assert told([each.value for each in messages]) == ALL
    assert len(messages) == len(NODES) * len(SEQUENCES)
    assert all(each.key == Envelope.from_json(each.value).key for each in messages)
    assert {each.headers["content-type"] for each in messages} == {b"application/cloudevents+json; charset=UTF-8"}


async def test_several_relays_keep_each_entitys_order(
    to_bus: Projector, database: Database, database_url: str, kafka: Broker, topic: str
) -> None:
    """With three relays on Kafka at work while nodes come and go, each node's events arrive once and in order."""
    projector = Projector(database, Timing(), EntryBuilder(topic))
    buses = [KafkaBus(kafka.servers) for _ in range(3)]
    try:
        async with (
            relaying(database_url, to_topic(topic, buses[0])),
            relaying(database_url, to_topic(topic, buses[1])),
            relaying(database_url, to_topic(topic, buses[2])),
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
    """While one relay is held up with its share of the slots, another sends the rest; no message goes twice."""
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
    """A message that cannot be sent now is retried, and delays only the later messages of its own entity."""
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
    """A permanently refused message becomes a dead letter, and does not hold back later ones."""
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


async def letters_of(database: Database) -> dict[str, list[int]]:
    """The sequences of the dead letters by entity; each letter occurs once."""
    letters, _ = await database.read(lambda connection: dead_letters.get_page(connection, after=0, limit=100))
    values = [each.value or b"" for each in letters]
    assert len(set(values)) == len(values)
    return told(values)


async def test_of_an_entry_stays_what_waits(to_bus: Projector, database: Database, database_url: str) -> None:
    """If one message of an entry fails, it and its entity's later ones stay; those that arrived are not resent."""
    slot = [UUID(int=number * outbox.SLOTS) for number in range(1, 6)]  # one row has the messages of all
    await send(to_bus, slot)
    hand = Hand()
    hand.faults[slot[0], 2] = BusError("not now")
    async with relaying(database_url, hand.destination):

        async def the_others_are_through() -> bool:
            return [each.messages for each in await waiting(database)] == [len(SEQUENCES) - 1]

        await until(the_others_are_through, "all but one node are through")
        calls = hand.calls

        async def was_tried_again() -> bool:
            return hand.calls >= calls + 2

        await until(was_tried_again, "the message was tried twice more")
        hand.faults.clear()
        await drained(database)
    assert hand.told == {str(each): SEQUENCES for each in slot}
    assert len(hand.taken) == len(slot) * len(SEQUENCES)
    mine = [Envelope.from_json(each.envelope).sequence for each in hand.taken if entity_of(each) == slot[0]]
    assert mine == SEQUENCES


async def test_what_is_refused_is_set_aside_at_once(to_bus: Projector, database: Database, database_url: str) -> None:
    """A refused message becomes one dead letter at once, even if the next message of its entry must wait."""
    await send(to_bus, NODES[:2])
    hand = Hand()
    hand.faults = {
        (NODES[0], 1): MessageRefusedError("too large"),
        (NODES[0], 2): BusError("not now"),
        (NODES[1], 3): MessageRefusedError("too large"),  # the last one of its entry
    }
    async with relaying(database_url, hand.destination):

        async def one_is_through() -> bool:
            return [each.messages for each in await waiting(database)] == [len(SEQUENCES) - 1]

        await until(one_is_through, "the other node's are through")
        calls = hand.calls

        async def was_tried_again() -> bool:
            return hand.calls >= calls + 2

        await until(was_tried_again, "the node was tried twice more")
        assert await letters_of(database) == {str(NODES[1]): [3], str(NODES[0]): [1]}
        del hand.faults[NODES[0], 2]
        await drained(database)
    assert await letters_of(database) == {str(NODES[1]): [3], str(NODES[0]): [1]}
    left_out = {str(NODES[0]): SEQUENCES[1:], str(NODES[1]): [each for each in SEQUENCES if each != 3]}
    assert hand.told == left_out


async def test_nodes_that_consul_forbids_hold_up_no_other(database: Database, database_url: str) -> None:
    """More forbidden nodes than fit in a pass do not block the allowed ones, and are registered once allowed."""
    in_one_slot = [UUID(int=number * outbox.SLOTS) for number in range(1, 25)]
    forbidden, allowed = in_one_slot[:12], in_one_slot[12:]
    with consul() as agent:
        agent.forbidden = {f"registration.{each}" for each in forbidden}
        handler = Consul(agent.url, backoff=timedelta(0))
        await send(Projector(database, Timing(), EntryBuilder(None, CONSUL)), forbidden + allowed, types=WAY[:1])
        small = replace(to_handler("consul", handler.handle), page=5)
        async with relaying(database_url, small):

            async def the_allowed_are_there() -> bool:
                return len(agent.services) == len(allowed)

            await until(the_allowed_are_there, "the others are registered")
            assert not handler.breaker.is_open
            agent.forbidden.clear()
            await drained(database)
        await handler.close()
    assert sorted(agent.services) == sorted(f"registration.{each}" for each in forbidden + allowed)


async def test_an_entity_rests_twice_as_long_each_time(to_bus: Projector, database: Database) -> None:
    """An entity's back-off doubles until its message succeeds; back-offs and their number are limited."""
    await send(to_bus, NODES[:1])

    async def work(connection: Connection) -> list[PendingMessage]:
        return await outbox.read(connection, EVENTS, range(outbox.SLOTS), most=1)

    message, *_ = await database.read(work)
    rests, now, waits = Rests(EVENTS), 0.0, list[float]()
    for _ in range(9):
        delivery = await delivered(message, NotNowError("not now"))
        rests.learn(delivery, now)
        began = now
        while rests.at(now):
            now += 0.5
        waits.append(now - began)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    for ended in (None, IntentError("never")):  # it arrived, or is set aside: the next one begins anew
        rests.learn(await delivered(message, ended), now)
        rests.learn(await delivered(message, NotNowError("not now")), now)
        assert rests.at(now + 0.5) == [message.key.decode()]
        assert rests.at(now + 1.0) == []
    first, second, _ = await database.read(work)

    async def second_waits(each: PendingMessage) -> None:
        if each is second:
            raise NotNowError("not now")

    for rest in (2, 4, 8):  # that an earlier message of the same entry arrives, again and again, is no end of it
        delivery = Delivery(Destination(EVENTS, one_by_one(second_waits), 1), [first, second])
        await delivery.end()
        rests.learn(delivery, now)
        assert rests.at(now + rest - 0.5) == [first.key.decode()]
        assert rests.at(now + rest) == []


async def delivered(message: PendingMessage, error: Exception | None) -> Delivery:
    """A delivery of one message that was accepted or raised this error."""

    async def take(_: PendingMessage) -> None:
        if error is not None:
            raise error

    delivery = Delivery(Destination(EVENTS, one_by_one(take), 1), [message])
    await delivery.end()
    return delivery


async def test_a_consul_that_is_down_does_not_hold_up_the_bus(
    sending: Projector, database: Database, database_url: str
) -> None:
    """Events go out while Consul fails; intents for Consul are carried out when it is back, in order."""
    bus = MemoryBus()
    with consul() as agent:
        agent.answers = [503] * 1000
        handler = Consul(agent.url, backoff=timedelta(0))
        async with relaying(database_url, to_topic(TOPIC, bus), to_handler("consul", handler.handle)):
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
    """While the broker is down messages pile up and are counted; afterwards they arrive in each node's order.

    Here the Kafka client gives up each attempt soon, so that messages are really retried.
    """
    with built_in_broker() as broker:
        broker.create_topic(TOPIC)
        bus = KafkaBus(broker.servers, delivery_timeout=timedelta(milliseconds=200))
        broker.go_down()
        async with relaying(database_url, to_topic(TOPIC, bus)) as relay:
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
        values = [each.value for each in read_topic(broker, TOPIC)]
    assert told(values) == ALL


HOUR = 3600  # seconds
BACKLOG_NODES, STEPS = 1000, 20


async def an_hour_of_messages(database_url: str) -> None:
    """Fill the outbox with an hour of messages, of all nodes in turn; the oldest is an hour old."""
    template = Envelope(
        id=node(0), source="", type="x", subject=node(0), time=START, partitionkey=node(0), digits="0", data={}
    )
    rows = []
    for sequence in range(1, STEPS + 1):
        for number in range(BACKLOG_NODES):
            id_ = node(number)
            envelope = replace(template, subject=id_, partitionkey=id_, digits=in_digits(sequence), id=uuid4())
            written_at = datetime.now(UTC) - timedelta(seconds=HOUR * (STEPS - sequence + 1) / STEPS)
            value = envelope.to_json().decode()
            rows.append((EVENTS, outbox.slot_of(id_), value, written_at))
    columns = ("destination", "slot", "envelope", "created_at")
    connection = await asyncpg.connect(database_url)
    try:
        await connection.copy_records_to_table("outbox", records=rows, columns=columns)
    finally:
        await connection.close()


async def test_a_service_drains_the_backlog_of_an_hour(settings: Settings, database_url: str) -> None:
    """While the broker is down the metrics show the backlog's size and age; then all of it arrives in order."""
    await an_hour_of_messages(database_url)
    with built_in_broker() as broker:
        broker.create_topic(TOPIC, partitions=8)
        broker.go_down()
        changes = {"bus": BusKind.KAFKA, "kafka": broker.servers, "topic_out": TOPIC}
        async with application(settings.model_copy(update=changes)) as client:

            async def told_of(name: str) -> float:
                lines = (await client.get("/metrics")).text.splitlines()
                [line] = [each for each in lines if each.startswith(f'{name}{{destination="{EVENTS}"}}')]
                return float(line.rpartition(" ")[2])

            assert await told_of("pqs_outbox_messages") == BACKLOG_NODES * STEPS
            assert await told_of("pqs_outbox_oldest_seconds") >= HOUR
            broker.come_up()

            async def is_drained() -> bool:
                return await told_of("pqs_outbox_messages") == 0

            await until(is_drained, "nothing waits any more")
            assert await told_of("pqs_outbox_oldest_seconds") == 0
        values = [each.value for each in read_topic(broker, TOPIC)]  # the client's attempts may have left repeats
    assert told(values) == {str(node(each)): list(range(1, STEPS + 1)) for each in range(BACKLOG_NODES)}


async def test_a_relay_that_loses_its_database_begins_anew(
    to_bus: Projector, database: Database, database_url: str
) -> None:
    """If PostgreSQL ends its session, the relay gives up the messages under way and sends them again."""
    await send(to_bus, NODES)
    hand = Hand()
    hand.open.clear()
    async with relaying(database_url, hand.destination):

        async def is_sending() -> bool:
            return hand.calls > 0

        await until(is_sending, "the relay has begun")
        ended = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
            " WHERE locktype = 'advisory' AND datname = current_database()"  # others migrate meanwhile
        )
        assert await database.read(lambda connection: connection.fetchval(ended))
        hand.open.set()
        await drained(database)
    assert hand.told == ALL


async def test_what_is_on_its_way_comes_to_its_end(to_bus: Projector, database: Database, database_url: str) -> None:
    """A closing relay waits for the messages that it has sent, removes them, and begins no others."""
    await send(to_bus, NODES[:5], types=WAY[:1])
    hand = Hand()
    hand.open.clear()
    async with relaying(database_url, hand.destination, share=outbox.SLOTS):

        async def is_sending() -> bool:
            return hand.calls == 5

        await until(is_sending, "the first message of each node is on its way")
        asyncio.get_running_loop().call_later(0.1, hand.open.set)  # when the relay has been stopped
    assert hand.told == {str(each): [1, 2, 3] for each in NODES[:5]}
    assert await waiting(database) == []


@pytest.mark.parametrize(
    ("held", "held_at", "arrived"),
    [({NODES[0]}, set(), {NODES[1]: [1, 2, 3]}), (set(), {2}, {NODES[0]: [1], NODES[1]: [1]})],
    ids=["one node", "the second message of each"],
)
async def test_what_does_not_end_is_given_up_when_closing(
    to_bus: Projector,
    database: Database,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    held: set[UUID],
    held_at: set[int],
    arrived: dict[UUID, list[int]],
) -> None:
    """At closing, messages without an answer within the grace period stay; those that arrived are removed."""
    monkeypatch.setattr(relay_module, "GRACE", 0.2)
    await send(to_bus, NODES[:2], types=WAY[:1])
    hand = Hand()
    hand.held, hand.held_at = held, held_at
    async with relaying(database_url, hand.destination, share=outbox.SLOTS):

        async def the_rest_is_through() -> bool:
            return hand.calls == 4

        await until(the_rest_is_through, "what is answered is through")
    assert hand.told == {str(each): sequences for each, sequences in arrived.items()}
    assert [each.messages for each in await waiting(database)] == [2 * 3 - sum(map(len, arrived.values()))]


async def test_a_relay_that_is_called_for_nothing_does_not_run_each_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a relay is woken, it reads the outbox only a few times a second."""
    looks, take = 0, outbox.take

    async def counted(*arguments: Any, **named: Any) -> list[int]:
        nonlocal looks
        looks += 1
        return await take(*arguments, **named)

    monkeypatch.setattr(outbox, "take", counted)
    loop = asyncio.get_running_loop()
    async with relaying(database_url, Hand().destination) as relay:
        end = loop.time() + 1.0
        while loop.time() < end:
            relay.wake()
            await asyncio.sleep(0.005)
    assert 2 <= looks <= 1.0 / relay_module.PAUSE + 2


async def test_what_is_given_up_when_closing_is_no_trouble(
    to_bus: Projector,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A relay that closes logs nothing about messages that it gives up itself."""
    monkeypatch.setattr(relay_module, "GRACE", 0.2)
    await send(to_bus, NODES[:1], types=WAY[:1])
    hand = Hand()
    hand.held = {NODES[0]}
    with caplog.at_level(logging.INFO, logger="app.outbound.relay"):
        async with relaying(database_url, hand.destination):

            async def is_sending() -> bool:
                return hand.calls > 0

            await until(is_sending, "the message is on its way")
    assert caplog.messages == []


async def test_a_report_that_was_cancelled_is_no_trouble(to_bus: Projector, database: Database) -> None:
    """A cancelled message is neither arrived nor refused nor delayed, and is no trouble of the pass."""
    await send(to_bus, NODES[:1], types=WAY[:1])

    async def work(connection: Connection) -> list[PendingMessage]:
        return await outbox.read(connection, EVENTS, range(outbox.SLOTS), most=1)

    async def cancelled(_: PendingMessage) -> None:
        raise asyncio.CancelledError

    delivery = Delivery(Destination(EVENTS, one_by_one(cancelled), 1), await database.read(work))
    await delivery.end()
    assert (delivery.arrived, delivery.refused, delivery.not_now, delivery.trouble) == ([], [], [], None)


async def test_a_row_that_names_nobody_is_set_aside(database: Database, database_url: str) -> None:
    """An unreadable entry becomes a dead letter, and the entries after it are sent."""
    garbage = ["", "no JSON", "{}", '{"partitionkey":"' + 35 * "x" + 'é"}', '{"partitionkey":"']

    async def write(connection: Connection) -> None:
        for each in garbage:
            await outbox.add(connection, Entry(EFFECTS, 0, None, 1, each))

    await database.write(write)
    taken: list[Intent] = []

    async def handle(intent: Intent) -> None:
        taken.append(intent)

    await send(Projector(database, Timing(), EntryBuilder(None, CONSUL)), NODES, types=WAY[:1])
    async with relaying(database_url, to_handler("consul", handle)):
        await drained(database)
        letters, _ = await database.read(lambda c: dead_letters.get_page(c, after=0, limit=100))
    assert sorted(each.value or b"" for each in letters) == sorted(each.encode() for each in garbage)
    assert {each.entity_id for each in taken} == set(NODES)


class HeldBus(MemoryBus):
    """A bus that accepts messages, and answers when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()

    async def publish_all(
        self, topic: str, messages: Sequence[Keyed], headers: Mapping[str, bytes]
    ) -> dict[int, BusError]:
        """Publish, and wait for the test."""
        failed = await super().publish_all(topic, messages, headers)
        await self.open.wait()
        return failed


async def test_a_delivery_that_waits_for_its_bus_holds_up_no_other() -> None:
    """Each delivery takes the least used bus; a delivery that is given up frees its bus for the next."""
    held, free = HeldBus(), MemoryBus()
    destination = to_topic(TOPIC, held, free)
    messages = [
        PendingMessage(1, (0, 1), b"a", b"1"),
        PendingMessage(1, (0, 1), b"b", b"2"),
        PendingMessage(1, (0, 1), b"a", b"3"),
    ]
    waits = Delivery(destination, messages)
    await asyncio.sleep(0)
    for _ in range(2):
        goes = Delivery(destination, messages)
        async with asyncio.timeout(PATIENCE):
            await goes.end()
        assert goes.arrived == [messages[0], messages[1], messages[2]]
    assert waits.arrived == []
    waits.give_up()
    await asyncio.sleep(0)
    held.open.set()
    last = Delivery(destination, messages)
    async with asyncio.timeout(PATIENCE):
        await last.end()
    assert [message.value for message in held.messages(TOPIC)] == [b"1", b"2", b"1", b"2", b"3"]
    assert len(last.arrived) == len(messages)


async def test_what_was_sent_is_let_go(to_bus: Projector, database: Database) -> None:
    """A finished delivery frees its messages at once, without a cycle for the garbage collector."""
    await send(to_bus, NODES)

    async def work(connection: Connection) -> list[PendingMessage]:
        return await outbox.read(connection, EVENTS, range(outbox.SLOTS), most=100)

    gc.collect()
    gc.disable()
    try:
        delivery = Delivery(to_topic(TOPIC, MemoryBus()), await database.read(work))
        await delivery.end()
        delivery.give_up()
        assert delivery.arrived
        over = weakref.ref(delivery)
        del delivery
        assert over() is None
    finally:
        gc.enable()


async def test_an_idle_relay_wakes_for_what_this_process_writes(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit with messages wakes the relay of the same process, which otherwise polls."""
    monkeypatch.setattr(relay_module, "POLL", PATIENCE)
    entries = EntryBuilder(TOPIC)
    hand = Hand()
    async with relaying(database_url, hand.destination) as relay:
        entries.on_commit = relay.wake
        for first in (1, 4, 7):
            await send(Projector(database, Timing(), entries), NODES[:1], first=first)
            await drained(database)
    assert hand.told == {str(NODES[0]): list(range(1, 19))}


async def test_an_idle_relay_looks_for_what_others_write(
    to_bus: Projector, database: Database, database_url: str
) -> None:
    """An idle relay finds another process's messages by polling."""
    hand = Hand()
    async with relaying(database_url, hand.destination):
        for first in (1, 4):
            await send(to_bus, NODES[:1], first=first)
            await drained(database)
    assert hand.told == {str(NODES[0]): list(range(1, 13))}
