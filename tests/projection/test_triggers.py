"""Triggers through the projector: the six outcomes of events, and followed events in the same transaction."""

from typing import Any

from app.domain.events import Event, Introspected
from app.domain.positions import Position
from app.domain.registration import Registration, Timing
from app.domain.results import Outcome
from app.domain.states import RegistrationState
from app.projection.projector import Projector
from app.store.database import Connection, Database
from app.store.registrations import REGISTRATIONS
from tests.making import NODE, event, node

APPLIED, IGNORED, DUPLICATE, STALE, EARLY, CONFLICT = Outcome


def introspected(sequence: int = 1) -> Event:
    """An introspection of the node."""
    return event("node.introspected", sequence)


def acked(sequence: int, **fields: Any) -> Event:
    """An ack of the node."""
    return event("node.registration_acked", sequence, **fields)


async def row_of(database: Database) -> Registration | None:
    """The node's stored row."""

    async def work(connection: Connection) -> Registration | None:
        return await REGISTRATIONS.get_entity_state(connection, NODE, "registration")

    return await database.read(work)


async def test_order_is_checked_once_for_the_trigger(projector: Projector, database: Database) -> None:
    """A trigger has the six outcomes of an event, and four of them leave the row unchanged."""
    sent = [
        (introspected(5), APPLIED),
        (introspected(5), DUPLICATE),
        (acked(4), STALE),
        (acked(9, position={"sequence": 9, "previous": 8}), EARLY),
        (acked(5), CONFLICT),
        (acked(6, position={"partition": "p", "offset": 6}), CONFLICT),
        (introspected(6), IGNORED),
        (acked(7), APPLIED),
    ]
    results = await projector.persist([trigger for trigger, _ in sent])
    assert [result.outcome for result in results] == [outcome for _, outcome in sent]
    assert [result.version for result in results] == [3, 3, 3, 3, 3, 3, 4, 6]
    assert [len(result.events or []) for result in results] == [3, 0, 0, 0, 0, 0, 0, 2]
    row = await row_of(database)
    assert row is not None
    assert (row.version, row.last_applied_event_id) == (6, sent[-1][0].event_id)
    assert (row.current_state, row.position) == (RegistrationState.ACTIVE, Position(sequence=7))


async def test_a_whole_life_by_triggers_alone(projector: Projector, database: Database) -> None:
    """Introspection, ack, heartbeat and leaving take a node through its states, and round again."""
    types = [
        "node.introspected",
        "node.registration_acked",
        "node.heartbeat",
        "node.deregistered",
        "node.introspected",
    ]
    results = await projector.persist([event(type_, place) for place, type_ in enumerate(types, start=1)])
    assert [result.current_state for result in results] == [
        "awaiting_ack",
        "active",
        "active",
        "liveness_expired",
        "awaiting_ack",
    ]
    row = await row_of(database)
    assert row is not None
    assert row.version == 3 + 2 + 1 + 1 + 3


async def test_triggers_and_facts_of_many_nodes_mix_in_a_batch(projector: Projector) -> None:
    """By position, each node's events and triggers are folded in order, however they arrived."""
    sent: list[Event] = []
    for number in range(3):
        sent += [
            event("node.heartbeat", 3, entity_id=node(number)),
            event("registration.ack_received", 2, entity_id=node(number)),
            event("node.introspected", 1, entity_id=node(number)),
        ]
    results = await projector.persist(sent, by_position=True)
    assert [result.version for result in results] == [5, 4, 3] * 3
    assert {result.outcome for result in results} == {APPLIED}


async def test_foreseeing_a_trigger_names_what_would_follow(projector: Projector, database: Database) -> None:
    """A dry run of a trigger has the real result, and writes nothing."""
    foreseen = await projector.foresee([introspected(), acked(2)])
    assert await row_of(database) is None
    assert foreseen == await projector.persist([introspected(), acked(2)])


async def test_the_deadlines_are_those_of_the_timing(projector: Projector, database: Database) -> None:
    """The node gets the ack timeout at its introspection, and the liveness interval at its ack."""
    sent = introspected()
    assert isinstance(sent, Introspected)
    await projector.persist([sent])
    waiting = await row_of(database)
    assert waiting is not None
    assert waiting.ack_deadline == sent.occurred_at + Timing().ack_timeout
    ack = acked(2)
    await projector.persist([ack])
    active = await row_of(database)
    assert active is not None
    assert (active.ack_deadline, active.liveness_deadline) == (None, ack.occurred_at + Timing().liveness_interval)
