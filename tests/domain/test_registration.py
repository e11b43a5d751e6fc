"""The effect of one event on one registration: every row of the table of states."""

from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from typing import Any
from uuid import UUID

import msgspec
import pytest

from app.domain.events import FACT_CLASSES, Fact
from app.domain.positions import Position
from app.domain.registration import Ignored, Registration, Timing, evolve
from app.domain.rows import record
from app.domain.states import RegistrationState
from tests.making import Json, at, event, row, when

PENDING_REGISTRATION = RegistrationState.PENDING_REGISTRATION
ACCEPTED = RegistrationState.ACCEPTED
AWAITING_ACK = RegistrationState.AWAITING_ACK
REJECTED = RegistrationState.REJECTED
ACK_TIMED_OUT = RegistrationState.ACK_TIMED_OUT
ACK_RECEIVED = RegistrationState.ACK_RECEIVED
ACTIVE = RegistrationState.ACTIVE
LIVENESS_EXPIRED = RegistrationState.LIVENESS_EXPIRED

# The default timing but for its numbers, so that no default can stand in for it.
TIMING = Timing(
    ack_timeout=timedelta(seconds=31),
    liveness_interval=timedelta(seconds=61),
    liveness_window=timedelta(seconds=91),
)
CORRELATION = UUID("00000000-0000-4000-8000-00000000c0de")
FACT_TYPES = [str(cls.__struct_config__.tag) for cls in FACT_CLASSES]
SEQUENCE = 100  # of the event under test, and the second in which it occurs


OCCURRED_AT = when(SEQUENCE)


def sent(type_: str, data: Json | None = None, **fields: Any) -> Fact:
    """The event under test, by default with the least data that its type allows."""
    if data is None and type_ == "registration.recorded":
        data = {"current_state": "active", "node_type": "compute", "registered_at": at(5)}
    fact = event(type_, SEQUENCE, data=data, correlation_id=str(CORRELATION), **fields)
    assert isinstance(fact, Fact)
    return fact


def recorded(before: Registration | None, cause: Fact) -> dict[str, object]:
    """The columns that recording an event writes."""
    return {
        "last_applied_event_id": cause.event_id,
        "last_applied_sequence": SEQUENCE,
        "correlation_id": CORRELATION,
        "updated_at": OCCURRED_AT,
        "version": 1 if before is None else before.version + 1,
    }


def changed(before: Registration, cause: Fact) -> dict[str, object]:
    """The columns that the event changes, besides those that recording writes."""
    after = evolve(before, cause, TIMING)
    assert isinstance(after, Registration)
    names = {name for name in after.__struct_fields__ if getattr(after, name) != getattr(before, name)}
    return {name: getattr(after, name) for name in names - recorded(before, cause).keys()}


# For each type, the states that it may meet (None: no row) and where it leads from there. All else is ignored.
ANYTHING = (None, *RegistrationState)
ALIVE = [state for state in RegistrationState if state not in {REJECTED, LIVENESS_EXPIRED}]
TABLE: dict[str, dict[RegistrationState | None, RegistrationState]] = {
    "registration.initiated": dict.fromkeys([None, REJECTED, ACK_TIMED_OUT, LIVENESS_EXPIRED], PENDING_REGISTRATION),
    "registration.accepted": {PENDING_REGISTRATION: ACCEPTED},
    "registration.ack_requested": {ACCEPTED: AWAITING_ACK},
    "registration.rejected": {PENDING_REGISTRATION: REJECTED},
    "registration.ack_timed_out": dict.fromkeys([ACCEPTED, AWAITING_ACK], ACK_TIMED_OUT),
    "registration.ack_received": dict.fromkeys([ACCEPTED, AWAITING_ACK], ACK_RECEIVED),
    "registration.activated": {ACK_RECEIVED: ACTIVE},
    "registration.refreshed": {ACTIVE: ACTIVE},
    "node.heartbeat": {state: state for state in ALIVE},
    "registration.liveness_expired": {ACTIVE: LIVENESS_EXPIRED},
    "registration.recorded": dict.fromkeys(ANYTHING, ACTIVE),
    "registration.forgotten": dict.fromkeys(ANYTHING, REJECTED),
}
BLANK: dict[str, object] = {
    "node_type": "compute",
    "node_version": "1.0.0",
    "capabilities": {},
    "ack_deadline": None,
    "liveness_deadline": None,
    "last_heartbeat_at": None,
    "ack_timeout_emitted_at": None,
    "liveness_timeout_emitted_at": None,
}
# What a tombstone has in place of the node.
EMPTY: dict[str, object] = BLANK | {
    "node_type": "",
    "node_version": "",
    "registered_at": OCCURRED_AT,
    "forgotten_at": OCCURRED_AT,
    "forgotten_permanently": False,
}
# What each type sets beside the state, when it is sent with the least data. What is not named stays as it was.
SETS: dict[str, dict[str, object]] = {
    "registration.initiated": BLANK,
    "registration.accepted": {"ack_deadline": when(SEQUENCE + 31), "ack_timeout_emitted_at": None},
    "registration.ack_requested": {},
    "registration.rejected": {},
    "registration.ack_timed_out": {"ack_timeout_emitted_at": OCCURRED_AT},
    "registration.ack_received": {"ack_deadline": None},
    "registration.activated": {"liveness_deadline": when(SEQUENCE + 61), "liveness_timeout_emitted_at": None},
    "registration.refreshed": {"node_type": "compute", "node_version": "1.0.0", "capabilities": {}},
    "node.heartbeat": {
        "last_heartbeat_at": OCCURRED_AT,
        "liveness_deadline": when(SEQUENCE + 91),
        "liveness_timeout_emitted_at": None,
    },
    "registration.liveness_expired": {"liveness_timeout_emitted_at": OCCURRED_AT},
    "registration.recorded": BLANK | {"registered_at": when(5)},
    "registration.forgotten": EMPTY,
}
# What an ignored event of the type was waiting for, as its reason says it.
EXPECTED = {
    "registration.initiated": "no row, or rejected or ack_timed_out or liveness_expired",
    "registration.accepted": "pending_registration",
    "registration.ack_requested": "accepted",
    "registration.rejected": "pending_registration",
    "registration.ack_timed_out": "accepted or awaiting_ack",
    "registration.ack_received": "accepted or awaiting_ack",
    "registration.activated": "ack_received",
    "registration.refreshed": "active",
    "node.heartbeat": "a state that is not terminal",
    "registration.liveness_expired": "active",
}
CELLS = list(product(FACT_TYPES, ANYTHING))


def test_the_table_is_whole() -> None:
    """The table has a row for every event type, and a cell for every state and for a missing row."""
    assert set(TABLE) == set(SETS) == set(FACT_TYPES)
    assert len(CELLS) == 12 * 9


@pytest.mark.parametrize(("type_", "state"), [cell for cell in CELLS if cell[1] in TABLE[cell[0]]])
def test_an_event_that_the_table_allows_leads_to_its_state_and_sets_what_it_says(
    type_: str, state: RegistrationState | None
) -> None:
    """An allowed event changes only the recorded columns, the state, and the columns that its type sets."""
    before = None if state is None else row(state)
    cause = sent(type_)
    begun = row(PENDING_REGISTRATION, registered_at=OCCURRED_AT)
    changes = SETS[type_] | recorded(before, cause) | {"current_state": TABLE[type_][state]}
    assert evolve(before, cause, TIMING) == msgspec.structs.replace(before or begun, **changes)


@pytest.mark.parametrize(
    ("type_", "state"), [cell for cell in CELLS if cell[1] is not None and cell[1] not in TABLE[cell[0]]]
)
def test_an_event_that_the_table_does_not_allow_is_ignored_with_a_reason(
    type_: str, state: RegistrationState
) -> None:
    """The reason names the event, its need, and the state that it met."""
    assert evolve(row(state), sent(type_), TIMING) == Ignored(
        f"{type_} needs {EXPECTED[type_]}; the state is {state}"
    )


@pytest.mark.parametrize("type_", [type_ for type_ in FACT_TYPES if None not in TABLE[type_]])
def test_an_event_that_begins_nothing_is_ignored_for_an_unknown_entity(type_: str) -> None:
    """Without a row every event is ignored but those that begin a registration."""
    assert evolve(None, sent(type_), TIMING) == Ignored("unknown entity")


def test_recording_an_event_writes_it_down_and_nothing_else() -> None:
    """An ignored event changes id, position, correlation id, time and version (by one), and no other column."""
    before = row(ACTIVE)
    cause = sent("registration.accepted")
    assert record(before, cause) == msgspec.structs.replace(before, **recorded(before, cause))


def test_a_row_follows_its_event_to_a_partition() -> None:
    """The position columns are the event's, and no column of another track keeps a value."""
    cause = sent("node.heartbeat", position={"partition": "t-1", "offset": 8, "previous": 3})
    after = record(row(ACTIVE), cause)
    assert (after.last_applied_partition, after.last_applied_offset, after.last_applied_sequence) == ("t-1", 8, None)
    assert after.position == Position(partition="t-1", offset=8)


def test_an_event_without_a_correlation_id_clears_it() -> None:
    """The row has the correlation id of its last event, or none if that event has none."""
    assert record(row(ACTIVE), event("node.heartbeat", SEQUENCE)).correlation_id is None


@pytest.mark.parametrize("state", [None, REJECTED])
def test_what_begins_a_registration_says_what_the_node_is(state: RegistrationState | None) -> None:
    """A new registration has the type, version and capabilities of its first event."""
    data = {"node_type": "gpu", "node_version": "3.1", "capabilities": {"cuda": [1, {"x": None}]}}
    after = evolve(None if state is None else row(state), sent("registration.initiated", data), TIMING)
    assert isinstance(after, Registration)
    assert {name: getattr(after, name) for name in data} == data


def test_a_registration_keeps_the_time_of_its_first_beginning() -> None:
    """`registered_at` is the time of the first event, and stays when the node registers again."""
    first = evolve(None, sent("registration.initiated"), TIMING)
    assert isinstance(first, Registration)
    assert first.registered_at == OCCURRED_AT
    again = evolve(row(REJECTED), sent("registration.initiated"), TIMING)
    assert isinstance(again, Registration)
    assert again.registered_at == when(18)


@pytest.mark.parametrize("given", [5, 11, 500], ids=["earlier", "the same", "later"])
@pytest.mark.parametrize(
    ("type_", "state"), [("registration.accepted", PENDING_REGISTRATION), ("registration.ack_requested", ACCEPTED)]
)
def test_an_ack_deadline_that_is_given_counts_and_clears_its_marker(
    type_: str, state: RegistrationState, given: float
) -> None:
    """An event's own ack deadline replaces the current one, earlier or later, and its timeout can occur again."""
    after = evolve(row(state), sent(type_, {"ack_deadline": at(given)}), TIMING)
    assert isinstance(after, Registration)
    assert (after.ack_deadline, after.ack_timeout_emitted_at) == (when(given), None)
    assert (after.liveness_deadline, after.liveness_timeout_emitted_at) == (when(12), when(15))


@pytest.mark.parametrize("given", [5, 12, 500], ids=["earlier", "the same", "later"])
@pytest.mark.parametrize(("type_", "state"), [("registration.activated", ACK_RECEIVED), ("node.heartbeat", ACTIVE)])
def test_a_liveness_deadline_that_is_given_counts_and_clears_its_marker(
    type_: str, state: RegistrationState, given: float
) -> None:
    """An event's own liveness deadline replaces the current one, earlier or later, and clears its marker."""
    after = evolve(row(state), sent(type_, {"liveness_deadline": at(given)}), TIMING)
    assert isinstance(after, Registration)
    assert (after.liveness_deadline, after.liveness_timeout_emitted_at) == (when(given), None)
    assert (after.ack_deadline, after.ack_timeout_emitted_at) == (when(11), when(14))


@pytest.mark.parametrize(
    ("type_", "state", "span"), [("registration.activated", ACK_RECEIVED, 61), ("node.heartbeat", ACTIVE, 91)]
)
@pytest.mark.parametrize(
    ("present", "moved"), [(None, True), (-1, True), (0, False), (1, False)], ids=["none", "before", "same", "after"]
)
def test_a_computed_liveness_deadline_never_moves_the_present_one_back(
    type_: str, state: RegistrationState, span: float, present: float | None, moved: bool
) -> None:
    """The later of a computed and the current liveness deadline counts; the marker is cleared in either case."""
    computed = OCCURRED_AT + timedelta(seconds=span)
    stands = None if present is None else computed + timedelta(seconds=present)
    after = evolve(row(state, liveness_deadline=stands), sent(type_), TIMING)
    assert isinstance(after, Registration)
    assert after.liveness_deadline == (computed if moved else stands)
    assert after.liveness_timeout_emitted_at is None


def test_the_default_timing_is_that_of_the_contract() -> None:
    """Without settings a node has 30 s to acknowledge, 60 s after activation and 90 s after a heartbeat."""
    assert Timing() == Timing(
        ack_timeout=timedelta(seconds=30),
        liveness_interval=timedelta(seconds=60),
        liveness_window=timedelta(seconds=90),
    )


@pytest.mark.parametrize("capabilities", [{}, {"gpu": {"cores": 4}}])
def test_activation_replaces_the_capabilities_that_it_gives(capabilities: Json) -> None:
    """Capabilities in an activation replace the old ones entirely, even by an empty object."""
    cause = sent("registration.activated", {"capabilities": capabilities})
    assert changed(row(ACK_RECEIVED), cause)["capabilities"] == capabilities


@pytest.mark.parametrize("state", ALIVE)
@pytest.mark.parametrize("newest", [None, SEQUENCE - 0.000001], ids=["the first", "a newer one"])
def test_a_newer_heartbeat_counts(state: RegistrationState, newest: float | None) -> None:
    """The first or a newer heartbeat moves `last_heartbeat_at` and the deadline, and keeps the state."""
    before = row(state, last_heartbeat_at=None if newest is None else when(newest))
    assert changed(before, sent("node.heartbeat")) == SETS["node.heartbeat"]


def test_a_heartbeat_may_say_when_it_was() -> None:
    """`heartbeat_at` counts instead of the event's time, also for the deadline."""
    assert changed(row(ACTIVE), sent("node.heartbeat", {"heartbeat_at": at(50)})) == {
        "last_heartbeat_at": when(50),
        "liveness_deadline": when(50 + 91),
        "liveness_timeout_emitted_at": None,
    }


@pytest.mark.parametrize("late", [0, 0.000001, 1000], ids=["equal", "just before", "long before"])
@pytest.mark.parametrize("deadline", [{}, {"liveness_deadline": at(10_000)}], ids=["computed", "given"])
def test_a_heartbeat_that_is_not_newer_is_ignored(late: float, deadline: Json) -> None:
    """The reason names the newest heartbeat in UTC and the state; the old heartbeat's own deadline is ignored."""
    newest = when(SEQUENCE).astimezone(timezone(timedelta(hours=2)))
    cause = sent("node.heartbeat", {"heartbeat_at": at(SEQUENCE - late), **deadline})
    assert evolve(row(ACTIVE, last_heartbeat_at=newest), cause, TIMING) == Ignored(
        "node.heartbeat needs a heartbeat after 2026-01-01T00:01:40Z, the newest one; the state is active"
    )


@pytest.mark.parametrize("before", [None, row(REJECTED)], ids=["no row", "a row"])
def test_a_recorded_row_is_written_as_given(before: Registration | None) -> None:
    """`registration.recorded` sets every data column as given, whatever the table of states allows."""
    data = {
        "current_state": "awaiting_ack",
        "node_type": "gpu",
        "registered_at": at(1),
        "node_version": "4",
        "capabilities": {"cuda": True},
        "ack_deadline": at(2),
        "liveness_deadline": at(3),
        "last_heartbeat_at": at(4),
        "ack_timeout_emitted_at": at(5),
        "liveness_timeout_emitted_at": at(6),
    }
    cause = sent("registration.recorded", data)
    assert evolve(before, cause, TIMING) == row(
        AWAITING_ACK,
        node_type="gpu",
        node_version="4",
        capabilities={"cuda": True},
        registered_at=when(1),
        ack_deadline=when(2),
        liveness_deadline=when(3),
        last_heartbeat_at=when(4),
        ack_timeout_emitted_at=when(5),
        liveness_timeout_emitted_at=when(6),
        **recorded(before, cause),
    )


def test_evolving_leaves_the_row_that_it_was_given_alone() -> None:
    """evolve is pure: the same registration and event give the same result again."""
    before, cause = row(PENDING_REGISTRATION), sent("registration.accepted")
    assert evolve(before, cause, TIMING) == evolve(before, cause, TIMING)
    assert before == row(PENDING_REGISTRATION)


def test_times_of_the_last_year_can_be_computed_with() -> None:
    """Deadlines can be computed even from the latest time that an event may have."""
    last = datetime(9998, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    after = evolve(row(ACTIVE), sent("node.heartbeat", occurred_at=last.isoformat()), TIMING)
    assert isinstance(after, Registration)
    assert after.liveness_deadline == last + timedelta(seconds=91)
