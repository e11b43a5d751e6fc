"""Folding without a database: the table of order, and the resulting rows and results."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid5

import pytest
from msgspec.structs import replace

from app.domain.events import Event
from app.domain.folding import take_in
from app.domain.order import check_order
from app.domain.positions import Position
from app.domain.projection import REGISTRATION
from app.domain.registration import Registration, Timing
from app.domain.results import EmittedEvent, Outcome, Result
from app.domain.states import RegistrationState
from tests.making import NODE, Json, event

APPLIED, IGNORED, DUPLICATE, STALE, EARLY, CONFLICT = Outcome
MINE = UUID(int=1)
OTHERS = UUID(int=2)
REGISTERED = ["registration.initiated", "registration.accepted", "registration.ack_requested"]


def heartbeat(
    sequence: int, *, entity_id: UUID = NODE, previous: int | None = None, domain: str = "registration"
) -> Event:
    """A heartbeat whose time rises with its sequence."""
    position = {"sequence": sequence} if previous is None else {"sequence": sequence, "previous": previous}
    return event("node.heartbeat", sequence, entity_id=entity_id, position=position, domain=domain)


def initiated(sequence: int = 1, *, entity_id: UUID = NODE, domain: str = "registration") -> Event:
    """An event that begins a registration."""
    return event("registration.initiated", sequence, entity_id=entity_id, domain=domain)


# --- Order ---------------------------------------------------------------------------------------------------------


def seq(number: int, previous: int | None = None) -> Position:
    """The position of a sequence."""
    return Position(sequence=number, previous=previous)


def off(number: int, previous: int | None = None, partition: str = "p") -> Position:
    """The position of an offset in a partition."""
    return Position(partition=partition, offset=number, previous=previous)


def standing_at(position: Position, event_id: UUID) -> Registration:
    """An active row at a position."""
    begun, _ = take_in(
        REGISTRATION, None, replace(event("registration.recorded", 1, data=ACTIVE), position=position), Timing()
    )
    assert begun is not None
    return replace(begun, last_applied_event_id=event_id, version=7)


ACTIVE: Json = {"current_state": "active", "node_type": "compute", "registered_at": "2026-01-01T00:00:00Z"}

# Every line of the table of order, and which counts where two fit: where the row stands (None: there is no row), the
# event's position and id, and the outcome (None: nothing is against it) with a part of its reason.
ORDER = [
    # another track
    (seq(5), off(5), MINE, CONFLICT, "the positions can't be compared: the row stands at sequence 5"),
    (off(5), seq(5), MINE, CONFLICT, "the positions can't be compared: the row stands at partition p offset 5"),
    (off(5), off(9, None, "q"), OTHERS, CONFLICT, "can't be compared: the row stands at partition p offset 5"),
    (off(5), off(3, None, "q"), OTHERS, CONFLICT, "can't be compared"),
    (off(5), off(9, 8, "q"), OTHERS, CONFLICT, "can't be compared"),
    # the same position
    (seq(5), seq(5), MINE, DUPLICATE, "this event has already been applied: the row stands at sequence 5"),
    (seq(5), seq(5, 4), MINE, DUPLICATE, "already been applied"),
    (
        off(5),
        off(5, 4),
        MINE,
        DUPLICATE,
        "this event has already been applied: the row stands at partition p offset 5",
    ),
    (seq(5), seq(5), OTHERS, CONFLICT, f"two events claim one position: sequence 5 is event {MINE}"),
    (seq(5), seq(5, 4), OTHERS, CONFLICT, "two events claim one position"),
    (off(5), off(5), OTHERS, CONFLICT, f"two events claim one position: partition p offset 5 is event {MINE}"),
    # a lower one
    (seq(5), seq(4), OTHERS, STALE, "a later event has already been applied: the row stands at sequence 5"),
    (seq(5), seq(4), MINE, STALE, "a later event has already been applied"),
    (seq(5), seq(0), OTHERS, STALE, "a later event has already been applied"),
    (seq(5), seq(4, 3), OTHERS, STALE, "a later event has already been applied"),
    (off(5), off(4), OTHERS, STALE, "a later event has already been applied: the row stands at partition p offset 5"),
    # something before it is missing
    (None, seq(2, 1), OTHERS, EARLY, "the event at 1 comes before this one, and there is no row yet"),
    (None, seq(1, 0), OTHERS, EARLY, "there is no row yet: send this one again after it"),
    (None, off(9, 3), OTHERS, EARLY, "the event at 3 comes before this one, and there is no row yet"),
    (seq(5), seq(8, 7), OTHERS, EARLY, "the event at 7 comes before this one, and the row stands at sequence 5"),
    (seq(5), seq(7, 6), MINE, EARLY, "send this one again after it"),
    (off(5), off(7, 6), OTHERS, EARLY, "the event at 6 comes before this one, and the row stands at partition p"),
    # nothing is against it
    (None, seq(0), OTHERS, None, ""),
    (None, seq(9), OTHERS, None, ""),
    (None, off(9), OTHERS, None, ""),
    (seq(5), seq(6), OTHERS, None, ""),
    (seq(5), seq(9), MINE, None, ""),
    (seq(5), seq(6, 5), OTHERS, None, ""),
    (seq(5), seq(9, 4), OTHERS, None, ""),
    (off(5), off(6), OTHERS, None, ""),
    (off(5), off(99, 5), OTHERS, None, ""),
]


@pytest.mark.parametrize(("stands_at", "position", "event_id", "outcome", "reason"), ORDER)
def test_the_first_line_of_the_table_of_order_that_fits_counts(
    stands_at: Position | None, position: Position, event_id: UUID, outcome: Outcome | None, reason: str
) -> None:
    """The first matching line of the table of order gives the outcome; the reason names the row's position."""
    row = None if stands_at is None else standing_at(stands_at, MINE)
    refused = check_order(row, replace(initiated(), position=position, event_id=event_id))
    assert (refused and refused[0]) == outcome
    assert reason in (refused[1] if refused else "")


@pytest.mark.parametrize(("stands_at", "position", "event_id", "outcome", "reason"), [c for c in ORDER if c[3]])
def test_an_event_that_is_refused_leaves_the_row_untouched_and_says_where_it_stands(
    stands_at: Position | None, position: Position, event_id: UUID, outcome: Outcome, reason: str
) -> None:
    """A refused event keeps the same row; its result has the row's state, version and position."""
    row = None if stands_at is None else standing_at(stands_at, MINE)
    sent = replace(heartbeat(1), position=position, event_id=event_id)
    after, result = take_in(REGISTRATION, row, sent, Timing())
    assert after is row
    assert result.reason is not None
    assert reason in result.reason
    state, version = (None, None) if row is None else (RegistrationState.ACTIVE, 7)
    assert result == Result(event_id, outcome, result.reason, NODE, "registration", state, version, stands_at)


@pytest.mark.parametrize(("stands_at", "position"), [(case[0], case[1]) for case in ORDER if case[3] is None])
def test_an_event_that_fits_moves_the_row_on(stands_at: Position | None, position: Position) -> None:
    """An applied event moves the row to its position and raises the version by one."""
    row = None if stands_at is None else standing_at(stands_at, MINE)
    sent = replace(event("registration.recorded", 1, data=ACTIVE), position=position, event_id=OTHERS)
    place = replace(position, previous=None)
    after, result = take_in(REGISTRATION, row, sent, Timing())
    assert after is not None
    assert (after.position, after.version) == (place, 1 if row is None else 8)
    state = RegistrationState.ACTIVE
    assert result == Result(OTHERS, APPLIED, None, NODE, "registration", state, after.version, place)


def test_an_ignored_event_is_recorded() -> None:
    """An ignored event changes only position, event id, time, correlation id and version (by one)."""
    row = standing_at(seq(5), MINE)
    sent = event("registration.accepted", 6, correlation_id=str(OTHERS))
    after, result = take_in(REGISTRATION, row, sent, Timing())
    assert after == replace(
        row,
        last_applied_sequence=6,
        last_applied_event_id=sent.event_id,
        updated_at=sent.occurred_at,
        correlation_id=OTHERS,
        version=8,
    )
    reason = "registration.accepted needs pending_registration; the state is active"
    state = RegistrationState.ACTIVE
    assert result == Result(sent.event_id, IGNORED, reason, NODE, "registration", state, 8, seq(6))


def test_an_event_that_begins_nothing_leaves_no_row() -> None:
    """An ignored event of an unknown entity makes no row."""
    sent = heartbeat(3)
    assert take_in(REGISTRATION, None, sent, Timing()) == (
        None,
        Result(sent.event_id, IGNORED, "unknown entity", NODE, "registration", None, None, None),
    )


# --- Triggers ------------------------------------------------------------------------------------------------------


def introspected(sequence: int = 1) -> Event:
    """The data of an introspection."""
    return event("node.introspected", sequence)


def acked(sequence: int, **fields: Any) -> Event:
    """An ack of the node."""
    return event("node.registration_acked", sequence, **fields)


def followed(trigger: Event, types: Sequence[str]) -> list[EmittedEvent]:
    """The ids and types of the events in a result."""
    return [EmittedEvent(uuid5(trigger.event_id, type_), type_) for type_ in types]


def test_a_trigger_that_is_applied_names_what_followed() -> None:
    """An applied trigger's result has the final row, and the ids and types of the events that followed, in order."""
    sent = introspected()
    _, result = take_in(REGISTRATION, None, sent, Timing())
    state, position = RegistrationState.AWAITING_ACK, Position(sequence=1)
    events = followed(sent, REGISTERED)
    assert result == Result(sent.event_id, APPLIED, None, NODE, "registration", state, 3, position, events)


def test_an_ignored_trigger_is_recorded_like_an_ignored_event() -> None:
    """An ignored trigger is recorded with position, id and time, raises the version by one, and has no events."""
    before, _ = take_in(REGISTRATION, None, introspected(), Timing())
    sent = introspected(2)
    after, result = take_in(REGISTRATION, before, sent, Timing())
    assert after is not None
    assert (after.version, after.last_applied_event_id, after.position) == (4, sent.event_id, Position(sequence=2))
    assert (after.current_state, after.updated_at) == (RegistrationState.AWAITING_ACK, sent.occurred_at)
    assert (result.outcome, result.events) == (IGNORED, [])


def test_a_trigger_that_begins_nothing_leaves_no_row() -> None:
    """An ignored trigger for an unknown entity makes no row."""
    after, result = take_in(REGISTRATION, None, acked(3), Timing())
    assert after is None
    assert (result.outcome, result.reason, result.version, result.events) == (IGNORED, "unknown entity", None, [])


@pytest.mark.parametrize("type_", ["node.heartbeat", "registration.ack_received"])
def test_a_fact_names_nothing_that_followed(type_: str) -> None:
    """A heartbeat is its own event, so its result names no events."""
    before, _ = take_in(REGISTRATION, None, introspected(), Timing())
    _, result = take_in(REGISTRATION, before, event(type_, 2), Timing())
    assert (result.outcome, result.events) == (APPLIED, None)
