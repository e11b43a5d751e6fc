"""Events and intents that follow leave through the outbox, in the transaction of their trigger or deadline."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import cast
from uuid import uuid5

import asyncpg
import msgspec
import pytest

from app.domain.decider import Deadline, Decision, expire
from app.domain.events import Event
from app.domain.folding import Save, take_in
from app.domain.intents import DeregisterService, Intent, RegisterService
from app.domain.projection import REGISTRATION
from app.domain.registration import Timing
from app.domain.states import RegistrationState
from app.projection.entries import EntryBuilder
from app.projection.projector import Projector
from app.store.database import Connection, Database
from app.store.outbox import SLOTS, slot_of
from app.store.registrations import REGISTRATIONS
from app.wire.envelopes import SEQUENCE_DIGITS, SOURCE, Envelope
from app.wire.events import read_event
from tests.making import NODE, START, Json, event, event_json, node, row, when

TOPIC = "registration-events"
CONSUL = {"consul.register": "consul", "consul.deregister": "consul"}
EVENTS, EFFECTS = f"topic:{TOPIC}", "effect:consul"
INTENT: msgspec.json.Decoder[Intent] = msgspec.json.Decoder(Intent)
PATIENCE = 60.0  # seconds; only a test that fails waits that long

OUTBOX = """
    SELECT
        destination, slot, line.envelope, CAST(line.envelope::jsonb ->> 'partitionkey' AS uuid) AS entity_id,
        count(*) OVER (PARTITION BY id) = messages AS counted
    FROM outbox AS o, regexp_split_to_table(o.envelope, '\n') WITH ORDINALITY AS line (envelope, place)
    ORDER BY id, place
"""


async def outbox(database: Database) -> list[asyncpg.Record]:
    """Every message in the outbox, oldest first."""
    messages: list[asyncpg.Record] = await database.read(lambda connection: connection.fetch(OUTBOX))
    assert all(each["counted"] for each in messages)
    return messages


def envelopes(messages: Sequence[asyncpg.Record], destination: str) -> list[Envelope]:
    """The envelopes for this destination."""
    return [Envelope.from_json(each["envelope"].encode()) for each in messages if each["destination"] == destination]


def told(messages: Sequence[asyncpg.Record]) -> list[tuple[str, str, int]]:
    """The destination, type and sequence of each message."""
    read = [(each["destination"], Envelope.from_json(each["envelope"].encode())) for each in messages]
    return [(destination, envelope.type, envelope.sequence) for destination, envelope in read]


@pytest.fixture
def sending(database: Database) -> Projector:
    """A projector with a bus and a Consul."""
    return Projector(database, Timing(), EntryBuilder(TOPIC, CONSUL))


async def test_what_follows_is_kept_for_the_bus_and_for_consul(sending: Projector, database: Database) -> None:
    """The outbox gets every followed event, in order and with its version, and Consul's intents."""
    types = ["node.introspected", "node.registration_acked", "node.heartbeat", "node.deregistered"]
    for place, type_ in enumerate(types, start=1):
        await sending.persist([event(type_, place)])
    assert told(await outbox(database)) == [
        (EVENTS, "registration.initiated", 1),
        (EVENTS, "registration.accepted", 2),
        (EVENTS, "registration.ack_requested", 3),
        (EFFECTS, "consul.register", 3),
        (EVENTS, "registration.ack_received", 4),
        (EVENTS, "registration.activated", 5),
        (EVENTS, "registration.liveness_expired", 7),
        (EFFECTS, "consul.deregister", 7),
    ]


async def test_an_envelope_says_what_the_event_says(sending: Projector, database: Database) -> None:
    """An envelope has its event's id, type, subject, key, time in UTC, version, correlation id and data."""
    data = {"node_type": "gpu", "node_version": "2.0", "capabilities": {"tags": ["a"], "ü": [None, 1.5]}}
    given: Json = {"domain": "edge", "correlation_id": str(node(7)), "occurred_at": "2026-01-01T05:30:01.25+05:30"}
    sent = event("node.introspected", 1, data=data, **given)
    await sending.persist([sent])
    initiated, accepted, requested = envelopes(await outbox(database), EVENTS)
    time = START + timedelta(seconds=1.25)
    for place, each in enumerate((initiated, accepted, requested), start=1):
        assert (each.id, each.source) == (uuid5(sent.event_id, each.type), SOURCE)
        assert (each.subject, each.partitionkey, each.domain) == (NODE, NODE, "edge")
        assert (each.time, each.sequence, each.correlationid) == (time, place, node(7))
    assert (initiated.data, accepted.data) == (data, {})
    assert requested.data == {"ack_deadline": "2026-01-01T00:00:31.250000Z"}


async def test_what_goes_out_is_written_in_one_way(sending: Projector, database: Database) -> None:
    """Times go out in UTC with Z, whatever their offset was; the default domain is always left out."""
    given: Json = {"domain": "registration", "occurred_at": "2026-01-01T05:30:01.25+05:30"}
    await sending.persist([event("node.introspected", 1, **given)])
    messages = await outbox(database)
    assert {each["destination"] for each in messages} == {EVENTS, EFFECTS}
    for each in messages:
        written = msgspec.json.decode(each["envelope"])
        assert written["time"] == "2026-01-01T00:00:01.250000Z"
        assert "domain" not in written
        assert len(written["sequence"]) == SEQUENCE_DIGITS


async def test_what_goes_out_can_be_taken_in_elsewhere(sending: Projector, database: Database) -> None:
    """Read as events at their sequences, the envelopes fold to the same registration."""
    for place, type_ in enumerate(["node.introspected", "node.registration_acked", "node.deregistered"], start=1):
        await sending.persist([event(type_, place)])
    copy = None
    for each in envelopes(await outbox(database), EVENTS):
        fields = {"occurred_at": each.time, "event_id": each.id, "position": {"sequence": each.sequence}}
        json = event_json(each.type, 1, entity_id=each.subject, data=cast("dict[str, object]", each.data), **fields)
        copy, _ = take_in(REGISTRATION, copy, read_event(msgspec.json.encode(json)), Timing())
    original = await database.read(lambda c: REGISTRATIONS.get_entity_state(c, NODE, "registration"))
    assert copy is not None
    assert original is not None
    same: Json = {"last_applied_event_id": NODE, "last_applied_sequence": 1}
    assert msgspec.structs.replace(copy, **same) == msgspec.structs.replace(original, **same)


async def test_an_intent_says_what_its_handler_needs(sending: Projector, database: Database) -> None:
    """An intent's envelope has the intent as data, and an id made from its event's id."""
    data = {"node_type": "gpu", "capabilities": {"tags": ["a", "b"]}}
    await sending.persist([event("node.introspected", 1, data=data), event("node.deregistered", 2)])
    messages = await outbox(database)
    first, second = envelopes(messages, EFFECTS)
    requested, timed_out = envelopes(messages, EVENTS)[2:]
    assert (first.id, second.id) == (uuid5(requested.id, "consul.register"), uuid5(timed_out.id, "consul.deregister"))
    read = [INTENT.decode(msgspec.json.encode(each.data)) for each in (first, second)]
    assert read == [
        RegisterService(
            entity_id=NODE,
            domain="registration",
            node_type="gpu",
            tags=("a", "b"),
            version=3,
            capabilities={"tags": ["a", "b"]},
        ),
        DeregisterService(entity_id=NODE, domain="registration"),
    ]


@pytest.mark.parametrize(
    ("entries", "destinations"),
    [
        (EntryBuilder(), set()),
        (EntryBuilder(TOPIC), {EVENTS}),
        (EntryBuilder(None, CONSUL), {EFFECTS}),
        (EntryBuilder("other", CONSUL), {"topic:other", EFFECTS}),
    ],
    ids=["nowhere", "the bus", "Consul", "both"],
)
async def test_nothing_is_kept_for_what_is_off(
    database: Database, entries: EntryBuilder, destinations: set[str]
) -> None:
    """Without a bus no event is written to the outbox; an intent without a handler is not either."""
    await Projector(database, Timing(), entries).persist([event("node.introspected", 1)])
    assert {each["destination"] for each in await outbox(database)} == destinations


@pytest.mark.parametrize(
    "sent",
    [
        [event("registration.initiated", 1), event("registration.accepted", 2)],
        [event("node.registration_acked", 1)],
        [event("registration.initiated", 1), event("node.heartbeat", 2), event("node.introspected", 3)],
    ],
    ids=["facts", "an unknown entity", "a heartbeat, and an ignored trigger"],
)
async def test_nothing_is_kept_when_nothing_followed(
    sending: Projector, database: Database, sent: list[Event]
) -> None:
    """Facts from outside are not published again."""
    await sending.persist(sent)
    assert await outbox(database) == []


async def test_a_repeat_sends_nothing_again(sending: Projector, database: Database) -> None:
    """A duplicate, stale, early or conflicting trigger adds nothing to the outbox."""
    await sending.persist([event("node.introspected", 5)])
    before = await outbox(database)
    await sending.persist(
        [
            event("node.introspected", 5),
            event("node.registration_acked", 4),
            event("node.registration_acked", 9, position={"sequence": 9, "previous": 8}),
            event("node.registration_acked", 5),
        ]
    )
    assert await outbox(database) == before


async def test_foreseeing_sends_nothing(sending: Projector, database: Database) -> None:
    """A dry run writes nothing to the outbox."""
    await sending.foresee([event("node.introspected", 1)])
    assert await outbox(database) == []


async def test_a_batch_keeps_each_nodes_messages_in_order(sending: Projector, database: Database) -> None:
    """In a batch of many nodes, each node's messages are in version order, all in its slot."""
    types = ["node.introspected", "node.registration_acked", "node.deregistered"]
    sent = [event(type_, place, entity_id=node(n)) for place, type_ in enumerate(types, start=1) for n in range(50)]
    await sending.persist(sent)
    messages = await outbox(database)
    assert len(messages) == 50 * 8
    for number in range(50):
        mine = [each for each in messages if each["entity_id"] == node(number)]
        sequences = [(destination, sequence) for destination, _, sequence in told(mine)]
        assert [sequence for destination, sequence in sequences if destination == EVENTS] == [1, 2, 3, 4, 5, 6]
        assert [sequence for destination, sequence in sequences if destination == EFFECTS] == [3, 6]
        assert {each["slot"] for each in mine} == {slot_of(node(number))}


def test_a_slot_is_that_of_the_entity_id() -> None:
    """An entity id has the same slot in every domain, and many ids use all slots."""
    assert {slot_of(node(number)) for number in range(2000)} == set(range(SLOTS))


async def test_writers_that_race_keep_each_nodes_messages_in_order(database: Database) -> None:
    """With several writers at the same nodes, entries by id have each version once and in order."""
    projectors = [Projector(database, Timing(), EntryBuilder(TOPIC, CONSUL)) for _ in range(4)]
    types = ["node.introspected", "node.registration_acked", "node.deregistered"] * 4
    log = [event(type_, place, entity_id=node(n)) for place, type_ in enumerate(types, start=1) for n in range(5)]

    async def write(projector: Projector) -> None:
        for start in range(0, len(log), 5):
            await projector.persist(log[start : start + 5])

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(write(projector) for projector in projectors))
    for number in range(5):
        mine = [each for each in await outbox(database) if each["entity_id"] == node(number)]
        events = [sequence for destination, _, sequence in told(mine) if destination == EVENTS]
        assert events == list(range(1, 25))


async def test_a_write_that_is_lost_leaves_no_message(database: Database) -> None:
    """If the row has changed since it was read, neither row nor message is written."""
    before, decisions = None, list[Decision]()
    after, _ = take_in(REGISTRATION, before, event("node.introspected", 1), Timing(), decisions)
    assert after is not None
    messages = EntryBuilder(TOPIC).build(decisions)
    gone = msgspec.structs.replace(after, version=9)

    async def work(connection: Connection) -> None:
        await REGISTRATIONS.upsert.save(connection, [Save(after, gone)], messages)

    with pytest.raises(Exception, match="another writer changed a row"):
        await database.write_alone(work)
    assert await outbox(database) == []


async def test_a_passed_deadline_is_sent_too(database: Database) -> None:
    """A timeout event goes to the bus with its version, and Consul is told, beside the row's update."""
    before = row(RegistrationState.ACTIVE, liveness_deadline=START, liveness_timeout_emitted_at=None)
    decision = expire(before, Deadline.LIVENESS, when(5))
    assert isinstance(decision, Decision)

    async def work(connection: Connection) -> None:
        await REGISTRATIONS.upsert.save(connection, [Save(before, None)])
        messages = EntryBuilder(TOPIC, CONSUL).build([decision])
        await REGISTRATIONS.upsert.save(connection, [Save(decision.row, before)], messages)

    await database.write(work)
    assert told(await outbox(database)) == [
        (EVENTS, "registration.liveness_expired", 22),
        (EFFECTS, "consul.deregister", 22),
    ]


async def test_the_time_of_a_message_is_the_databases(sending: Projector, database: Database) -> None:
    """`created_at` is the start of the writing transaction, so that a backlog has an age."""
    before, after = "SELECT clock_timestamp()", "SELECT min(created_at) > $1 AND max(created_at) < clock_timestamp()"
    moment = await database.read(lambda connection: connection.fetchval(before))
    await sending.persist([event("node.introspected", 1)])
    assert await database.read(lambda connection: connection.fetchval(f"{after} FROM outbox", moment))
