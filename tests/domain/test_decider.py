"""Decisions on triggers and passed deadlines: every cell of the table."""

from collections.abc import Sequence
from datetime import timedelta
from itertools import product
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.domain.decider import Deadline, Decision, decide, expire
from app.domain.events import TRIGGER_CLASSES, AckTimedOut, Fact, Forgotten, LivenessExpired, Trigger
from app.domain.intents import (
    ActivateService,
    DeregisterService,
    Intent,
    Payload,
    RegisterService,
    UpdateRegistration,
    UpsertRegistration,
)
from app.domain.registration import Ignored, Registration, Timing, evolve
from app.domain.states import RegistrationState
from tests.making import NODE, Json, at, event, row, when
from tests.strategies import pure, triggers_and_rows

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
SEQUENCE = 100  # of the trigger under test, and the second in which it occurs
ANYTHING = (None, *RegistrationState)
TRIGGER_TYPES = [str(cls.__struct_config__.tag) for cls in TRIGGER_CLASSES]

REGISTERED = ["registration.initiated", "registration.accepted", "registration.ack_requested"]
ACTIVATED = ["registration.ack_received", "registration.activated"]
UPSERT, UPDATE = "postgres.upsert_registration", "postgres.update_registration"
REGISTER, ACTIVATE, DEREGISTER = "consul.register", "consul.activate", "consul.deregister"

# For each trigger and state (None: no row) the events that follow, or how the reason begins why none do.
TABLE: dict[str, dict[RegistrationState | None, list[str] | str]] = {
    "node.introspected": {
        None: REGISTERED,
        PENDING_REGISTRATION: "registration in progress",
        ACCEPTED: "registration in progress",
        AWAITING_ACK: "registration in progress",
        REJECTED: REGISTERED,
        ACK_TIMED_OUT: REGISTERED,
        ACK_RECEIVED: "registration in progress",
        ACTIVE: ["registration.refreshed"],
        LIVENESS_EXPIRED: REGISTERED,
    },
    "node.registration_acked": {
        None: "unknown entity",
        PENDING_REGISTRATION: "ack too early",
        ACCEPTED: ACTIVATED,
        AWAITING_ACK: ACTIVATED,
        REJECTED: "terminal state",
        ACK_TIMED_OUT: "ack too late",
        ACK_RECEIVED: "duplicate ack",
        ACTIVE: "duplicate ack",
        LIVENESS_EXPIRED: "terminal state",
    },
    "node.heartbeat": {
        None: "unknown entity",
        PENDING_REGISTRATION: [],
        ACCEPTED: [],
        AWAITING_ACK: [],
        REJECTED: "node.heartbeat needs a state that is not terminal",
        ACK_TIMED_OUT: [],
        ACK_RECEIVED: [],
        ACTIVE: [],
        LIVENESS_EXPIRED: "node.heartbeat needs a state that is not terminal",
    },
    "node.deregistered": {
        None: "unknown entity",
        PENDING_REGISTRATION: ["registration.rejected"],
        ACCEPTED: ["registration.ack_timed_out"],
        AWAITING_ACK: ["registration.ack_timed_out"],
        REJECTED: "node.deregistered needs",
        ACK_TIMED_OUT: "node.deregistered needs",
        ACK_RECEIVED: "node.deregistered needs",
        ACTIVE: ["registration.liveness_expired"],
        LIVENESS_EXPIRED: "node.deregistered needs",
    },
    "registration.forgotten": {state: ["registration.forgotten"] for state in ANYTHING},
}
INTENTS = {
    "node.introspected": [UPSERT, REGISTER],
    "node.registration_acked": [UPDATE, ACTIVATE],
    "node.heartbeat": [UPDATE],
    "node.deregistered": [UPDATE, DEREGISTER],
    "registration.forgotten": [UPSERT, DEREGISTER],
}
# What an ignored trigger was waiting for, as its reason says it.
EXPECTED = {
    "node.introspected": "no row, or active or rejected or ack_timed_out or liveness_expired",
    "node.registration_acked": "accepted or awaiting_ack",
    "node.heartbeat": "a state that is not terminal",
    "node.deregistered": "pending_registration or accepted or awaiting_ack or active",
}
CELLS = list(product(TABLE, ANYTHING))
FOLLOWED = [cell for cell in CELLS if isinstance(TABLE[cell[0]][cell[1]], list)]
IGNORED = [cell for cell in CELLS if isinstance(TABLE[cell[0]][cell[1]], str)]


def sent(type_: str, data: Json | None = None, **fields: Any) -> Trigger:
    """The trigger under test."""
    trigger = event(type_, SEQUENCE, data=data, correlation_id=str(CORRELATION), **fields)
    assert isinstance(trigger, Trigger)
    return trigger


def standing(state: RegistrationState | None) -> Registration | None:
    """A row in this state, whose newest heartbeat is older than the trigger."""
    return None if state is None else row(state)


def decided(registration: Registration | None, trigger: Trigger) -> Decision:
    """The decision; fails if the trigger was ignored."""
    decision = decide(registration, trigger, TIMING)
    assert isinstance(decision, Decision), decision
    return decision


def names(intents: Sequence[Payload]) -> list[str]:
    """The names of these intents."""
    return [intent.name for intent in intents]


def folded(registration: Registration | None, events: Sequence[Fact], timing: Timing) -> Registration:
    """The row that evolve() makes of the events."""
    for each in events:
        evolved = evolve(registration, each, timing)
        assert isinstance(evolved, Registration), evolved
        registration = evolved
    assert registration is not None
    return registration


def applied(registration: Registration | None, intent: Intent) -> Registration:
    """The row that results from the `postgres.*` intent."""
    if isinstance(intent, UpsertRegistration):
        assert intent.read_version == (None if registration is None else registration.version)
        return intent.registration
    assert isinstance(intent, UpdateRegistration)
    assert registration is not None
    assert intent.read_version == registration.version
    return replace(registration, **intent.changes)


# --- Triggers ------------------------------------------------------------------------------------------------------


def test_the_table_is_whole() -> None:
    """The table has a row for every trigger, and a cell for every state and for a missing row."""
    assert set(TABLE) == set(INTENTS) == set(TRIGGER_TYPES)
    assert {type_: list(cells) for type_, cells in TABLE.items()} == {type_: list(ANYTHING) for type_ in TABLE}
    assert len(FOLLOWED) + len(IGNORED) == 5 * 9


@pytest.mark.parametrize(("type_", "state"), FOLLOWED)
def test_the_events_and_intents_that_the_table_names_follow(type_: str, state: RegistrationState | None) -> None:
    """A decision has exactly the table's events and intents, in the table's order."""
    decision = decided(standing(state), sent(type_))
    assert [each.type for each in decision.events] == TABLE[type_][state]
    refreshes = type_ == "node.introspected" and state is ACTIVE
    assert names(decision.intents) == ([UPDATE, REGISTER] if refreshes else INTENTS[type_])


@pytest.mark.parametrize(("type_", "state"), [cell for cell in IGNORED if cell[1] is not None])
def test_a_trigger_from_which_nothing_follows_is_ignored_with_a_reason(
    type_: str, state: RegistrationState | None
) -> None:
    """An ignored trigger's reason begins with the table's words and names its need and the state it met."""
    ignored = decide(standing(state), sent(type_), TIMING)
    assert isinstance(ignored, Ignored)
    assert ignored.reason.startswith(str(TABLE[type_][state]))
    assert ignored.reason.endswith(f"{type_} needs {EXPECTED[type_]}; the state is {state}")


@pytest.mark.parametrize("type_", [type_ for type_, state in IGNORED if state is None])
def test_a_trigger_for_an_unknown_entity_is_ignored(type_: str) -> None:
    """Without a row, every trigger but an introspection is ignored."""
    assert decide(None, sent(type_), TIMING) == Ignored("unknown entity")


@pytest.mark.parametrize(("type_", "state"), FOLLOWED)
def test_what_follows_has_the_place_and_time_of_its_trigger(type_: str, state: RegistrationState | None) -> None:
    """A followed event has its trigger's entity, domain, position, time and correlation id, and a derived id."""
    trigger = sent(type_, domain="edge")
    for each in decided(standing(state), trigger).events:
        own = isinstance(trigger, Forgotten)  # it is what follows
        assert each.event_id == (trigger.event_id if own else uuid5(trigger.event_id, each.type))
        assert (each.key, each.position, each.occurred_at, each.correlation_id) == (
            trigger.key,
            trigger.position,
            trigger.occurred_at,
            CORRELATION,
        )


@pytest.mark.parametrize(("type_", "state"), FOLLOWED)
def test_the_row_is_what_evolve_makes_of_the_events(type_: str, state: RegistrationState | None) -> None:
    """The row has one version more for each event and the trigger's id; a heartbeat is its own event."""
    before, trigger = standing(state), sent(type_)
    decision = decided(before, trigger)
    facts = decision.events or [trigger]
    after = folded(before, [each for each in facts if isinstance(each, Fact)], TIMING)
    assert decision.row == replace(after, last_applied_event_id=trigger.event_id)
    assert decision.row.version == (0 if before is None else before.version) + len(facts)


@pytest.mark.parametrize(("type_", "state"), FOLLOWED)
def test_the_postgres_intent_leads_to_that_row(type_: str, state: RegistrationState | None) -> None:
    """The `postgres.*` intent leads to the decision's row, from the row at the version that it names."""
    before = standing(state)
    decision = decided(before, sent(type_))
    assert applied(before, decision.intents[0]) == decision.row


def test_an_introspection_registers_the_node_as_it_says() -> None:
    """The registration has the introspection's data, and an ack deadline of its time plus the ack timeout."""
    data: Json = {"node_type": "gpu", "node_version": "3.1", "capabilities": {"tags": ["a", "b"]}}
    decision = decided(None, sent("node.introspected", data))
    after = decision.row
    assert {name: getattr(after, name) for name in data} == data
    assert (after.current_state, after.ack_deadline, after.registered_at) == (
        AWAITING_ACK,
        when(SEQUENCE + 31),
        when(SEQUENCE),
    )


def test_an_ack_makes_the_node_active_until_its_liveness_is_due() -> None:
    """An ack clears the ack deadline, and sets the liveness deadline to its time plus the interval."""
    after = decided(row(AWAITING_ACK), sent("node.registration_acked")).row
    assert (after.current_state, after.ack_deadline, after.liveness_deadline) == (ACTIVE, None, when(SEQUENCE + 61))


def test_a_heartbeat_that_is_not_newer_is_ignored_in_evolves_words() -> None:
    """decide ignores an old heartbeat for the same reason as evolve, and has no rule of its own."""
    before, trigger = row(ACTIVE, last_heartbeat_at=when(SEQUENCE)), sent("node.heartbeat")
    assert isinstance(trigger, Fact)
    assert decide(before, trigger, TIMING) == evolve(before, trigger, TIMING)


@pytest.mark.parametrize(
    ("capabilities", "tags"),
    [
        ({"tags": ["a", "b"]}, ("a", "b")),
        ({"tags": ["a", 1, None, ["b"]]}, ("a",)),
        ({"tags": "a"}, ()),
        ({"tags": {"a": True}}, ()),
        ({}, ()),
    ],
    ids=["strings", "others among them", "one string", "an object", "none"],
)
def test_a_node_is_registered_in_consul_with_its_tags(capabilities: Json, tags: tuple[str, ...]) -> None:
    """Type, domain, capabilities, the strings among their tags, and the version that the row has then; not alive yet.

    Its ack makes it pass.
    """
    data = {"node_type": "gpu", "capabilities": capabilities}
    decision = decided(row(REJECTED), sent("node.introspected", data, domain="edge"))
    described: Json = {"entity_id": NODE, "domain": "edge", "node_type": "gpu", "tags": tags}
    described["capabilities"] = capabilities
    assert decision.intents[1] == RegisterService(**described, version=24)
    acked = decided(decision.row, sent("node.registration_acked", domain="edge"))
    assert acked.intents[1] == ActivateService(**described, version=26, passing=True)


def test_an_active_node_that_describes_itself_anew_is_refreshed() -> None:
    """Its type, version and capabilities are replaced, its state and deadlines stay, and Consul hears of its tags."""
    before = row(ACTIVE)
    data: Json = {"node_type": "gpu", "node_version": "3.1", "capabilities": {"tags": ["new"]}}
    decision = decided(before, sent("node.introspected", data))
    assert {name for name in before.__struct_fields__ if getattr(decision.row, name) != getattr(before, name)} == {
        *data,
        *("last_applied_event_id", "last_applied_sequence", "updated_at", "correlation_id", "version"),
    }
    assert {name: getattr(decision.row, name) for name in data} == data
    intent = decision.intents[1]
    assert isinstance(intent, RegisterService)
    assert (intent.tags, intent.passing) == (("new",), True)


def test_a_node_that_leaves_is_forgotten_by_consul() -> None:
    """A node that leaves is deregistered from Consul by its entity and domain."""
    intent = decided(row(ACTIVE, domain="edge"), sent("node.deregistered", domain="edge")).intents[1]
    assert intent == DeregisterService(entity_id=NODE, domain="edge")


@given(triggers_and_rows())
@pure
def test_whatever_the_row_holds_what_follows_is_allowed_and_folds_to_the_row(
    drawn: tuple[Registration | None, Trigger],
) -> None:
    """For any row and trigger, evolve accepts each event that follows, and reaches the decision's row."""
    before, trigger = drawn
    decision = decide(before, trigger, TIMING)
    if isinstance(decision, Ignored):
        return
    facts = [each for each in decision.events or [trigger] if isinstance(each, Fact)]
    after = folded(before, facts, TIMING)
    assert decision.row == replace(after, last_applied_event_id=trigger.event_id)
    assert applied(before, decision.intents[0]) == decision.row


@given(triggers_and_rows())
@pure
def test_deciding_leaves_the_row_alone_and_gives_the_same_again(drawn: tuple[Registration | None, Trigger]) -> None:
    """decide is pure: it changes no row, and decides the same again."""
    before, trigger = drawn
    copy = None if before is None else replace(before)
    assert decide(before, trigger, TIMING) == decide(before, trigger, TIMING)
    assert before == copy


# --- Passed deadlines ----------------------------------------------------------------------------------------------

EXPIRES = {
    Deadline.ACK: ("registration.ack_timed_out", {ACCEPTED, AWAITING_ACK}, ACK_TIMED_OUT),
    Deadline.LIVENESS: ("registration.liveness_expired", {ACTIVE}, LIVENESS_EXPIRED),
}
DEADLINE_AND_MARKER = {
    Deadline.ACK: ("ack_deadline", "ack_timeout_emitted_at"),
    Deadline.LIVENESS: ("liveness_deadline", "liveness_timeout_emitted_at"),
}
NOW = when(5000)


def overdue(state: RegistrationState, deadline: Deadline, **changes: object) -> Registration:
    """A row whose deadline has passed, and whose timeout was not emitted."""
    due, marker = DEADLINE_AND_MARKER[deadline]
    return row(state, **{due: when(4999), marker: None, **changes})


@pytest.mark.parametrize("deadline", Deadline)
@pytest.mark.parametrize("state", RegistrationState)
def test_a_passed_deadline_acts_in_the_states_that_wait_for_it(deadline: Deadline, state: RegistrationState) -> None:
    """In a state that awaits the deadline, one event follows, with an update and a call to Consul; else nothing."""
    type_, states, _ = EXPIRES[deadline]
    decision = expire(overdue(state, deadline), deadline, NOW)
    if state in states:
        assert isinstance(decision, Decision)
        assert [each.type for each in decision.events] == [type_]
        assert names(decision.intents) == [UPDATE, DEREGISTER]
    else:
        assert decision == Ignored(f"no {deadline} deadline counts; the state is {state}")


EXPIRING = [(deadline, state) for deadline, (_, states, _) in EXPIRES.items() for state in sorted(states)]


@pytest.mark.parametrize(("deadline", "state"), EXPIRING)
@pytest.mark.parametrize("partition", [None, "nodes-3"])
def test_a_passed_deadline_changes_state_marker_time_and_version_alone(
    deadline: Deadline, state: RegistrationState, partition: str | None
) -> None:
    """The row keeps its position, event id and correlation id, so that the source's next event fits."""
    place: Json = {"last_applied_sequence": None, "last_applied_partition": partition, "last_applied_offset": 8}
    before = overdue(state, deadline, **(place if partition else {}))
    decision = expire(before, deadline, NOW)
    assert isinstance(decision, Decision)
    changes = {"current_state": EXPIRES[deadline][2], DEADLINE_AND_MARKER[deadline][1]: NOW}
    assert decision.row == replace(before, updated_at=NOW, version=22, **changes)
    assert applied(before, decision.intents[0]) == decision.row


@pytest.mark.parametrize(("deadline", "state"), EXPIRING)
def test_the_event_of_a_passed_deadline_is_named_by_what_it_leads_to(
    deadline: Deadline, state: RegistrationState
) -> None:
    """The event id is the same for the same row; another entity, domain or version gives another id."""

    def id_of(**changes: object) -> UUID:
        decision = expire(overdue(state, deadline, **changes), deadline, NOW + timedelta(seconds=len(changes)))
        assert isinstance(decision, Decision)
        return decision.events[0].event_id

    assert id_of() == id_of(last_heartbeat_at=None) == uuid5(NODE, f"registration {deadline} 22")
    assert len({id_of(), id_of(domain="edge"), id_of(version=22), id_of(entity_id=UUID(int=1))}) == 4


@pytest.mark.parametrize(("deadline", "state"), EXPIRING)
def test_the_event_of_a_passed_deadline_occurs_now(deadline: Deadline, state: RegistrationState) -> None:
    """The event has the given clock's time and the row's position."""
    decision = expire(overdue(state, deadline), deadline, NOW)
    assert isinstance(decision, Decision)
    [timed_out] = decision.events
    assert (timed_out.occurred_at, timed_out.position.sequence, timed_out.correlation_id) == (NOW, 17, UUID(int=20))


@pytest.mark.parametrize(("deadline", "state"), EXPIRING)
@pytest.mark.parametrize(
    ("due", "emitted", "reason"),
    [
        (None, None, "the {} deadline has not passed"),
        (5000, None, "the {} deadline has not passed"),
        (5001, None, "the {} deadline has not passed"),
        (4999, 4999.5, "the timeout event of the {} deadline was already emitted"),
    ],
    ids=["no deadline", "just now", "later", "emitted"],
)
def test_nothing_follows_twice_or_too_early(
    deadline: Deadline, state: RegistrationState, due: float | None, emitted: float | None, reason: str
) -> None:
    """A deadline acts only if it lies before the given time and its timeout was not emitted."""
    names = DEADLINE_AND_MARKER[deadline]
    values = (None if moment is None else when(moment) for moment in (due, emitted))
    before = row(state, **dict(zip(names, values, strict=True)))
    assert expire(before, deadline, NOW) == Ignored(reason.format(deadline))


@given(st.sampled_from(Deadline), triggers_and_rows(), st.sampled_from([0, 5000, 10**9]))
@pure
def test_whatever_the_row_holds_its_time_out_is_allowed_once(
    deadline: Deadline, drawn: tuple[Registration | None, Trigger], seconds: float
) -> None:
    """evolve accepts the timeout event, and the same deadline then has no further effect."""
    before, _ = drawn
    decision = Ignored("") if before is None else expire(before, deadline, when(seconds))
    if before is None or isinstance(decision, Ignored):
        return
    [event_of_it] = decision.events
    assert isinstance(event_of_it, AckTimedOut | LivenessExpired)
    assert isinstance(evolve(before, event_of_it, TIMING), Registration)
    assert isinstance(expire(decision.row, deadline, when(2 * 10**9)), Ignored)


def test_a_registration_that_ran_out_can_begin_anew() -> None:
    """After a timeout the source's next introspection registers the node again."""
    ended = expire(overdue(ACTIVE, Deadline.LIVENESS), Deadline.LIVENESS, NOW)
    assert isinstance(ended, Decision)
    again = event("node.introspected", 18, occurred_at=at(5001))
    assert isinstance(again, Trigger)
    assert decided(ended.row, again).row.current_state is AWAITING_ACK
