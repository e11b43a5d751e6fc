"""Tombstones: what makes one, what it ignores, what begins its entity anew, and what an operator's forget adds."""

from itertools import product
from typing import Any
from uuid import UUID, uuid5

import pytest
from msgspec.structs import replace

from app.domain.changes import ChangeOutcome, Logging, log_of
from app.domain.decider import Decision, decide, deregister, forget
from app.domain.events import EVENT_TYPES, Event, Forgotten, ForgottenData
from app.domain.folding import take_in
from app.domain.positions import Position
from app.domain.projection import REGISTRATION
from app.domain.registration import Ignored, Registration, Timing, evolve
from app.domain.results import Outcome
from app.domain.states import RegistrationState
from tests.making import NODE, Json, event, row, when

TIMING = Timing()
FORGOTTEN_AT = 100  # seconds after the start
DATA: dict[str, Json] = {
    "registration.recorded": {
        "current_state": "active",
        "node_type": "compute",
        "registered_at": "2026-01-01T00:00:00Z",
    }
}
BEGINNING = ("registration.initiated", "node.introspected", "registration.recorded")
OTHERS = [type_ for type_ in EVENT_TYPES if type_ not in BEGINNING and type_ != "registration.forgotten"]
NAME = (NODE, "registration")


def sent(type_: str, second: int, **fields: Any) -> Event:
    """An event at this sequence, which occurred at this second."""
    return event(type_, second, data=fields.pop("data", DATA.get(type_)), **fields)


def buried(before: Registration | None = None, *, permanent: bool = False) -> Registration:
    """A tombstone since FORGOTTEN_AT."""
    cause = sent("registration.forgotten", FORGOTTEN_AT, data={"permanent": permanent})
    assert isinstance(cause, Forgotten)
    after = evolve(before, cause, TIMING)
    assert isinstance(after, Registration)
    return after


def taken(before: Registration, cause: Event) -> tuple[Registration, Outcome, str | None]:
    """The row after the event, and the outcome."""
    after, result = take_in(REGISTRATION, before, cause, TIMING)
    assert after is not None
    return after, result.outcome, result.reason


# --- Tombstones ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [None, *RegistrationState], ids=str)
def test_a_tombstone_says_nothing_of_the_node_and_continues_the_version(state: RegistrationState | None) -> None:
    """Whatever the row was: only key, place, times and version are left of it."""
    before = None if state is None else row(state)
    after = buried(before)
    assert (after.forgotten_at, after.forgotten_permanently) == (when(FORGOTTEN_AT), False)
    assert (after.current_state, after.node_type, after.node_version) == (RegistrationState.REJECTED, "", "")
    assert (after.capabilities, after.registered_at, after.correlation_id) == ({}, when(FORGOTTEN_AT), None)
    assert after.position == Position(sequence=FORGOTTEN_AT)
    assert after.version == (1 if before is None else before.version + 1)


@pytest.mark.parametrize(("type_", "permanent"), list(product(OTHERS, (False, True))))
def test_a_tombstone_ignores_an_event_that_begins_nothing(type_: str, permanent: bool) -> None:
    """However late it occurred; it is recorded, and the row stays a tombstone."""
    before, cause = buried(row(RegistrationState.ACTIVE), permanent=permanent), sent(type_, 200)
    after, outcome, reason = taken(before, cause)
    assert (outcome, (reason or "").split(":")[0]) == (Outcome.IGNORED, "forgotten")
    recorded = {
        "last_applied_event_id": cause.event_id,
        "last_applied_sequence": 200,
        "updated_at": when(200),
        "version": before.version + 1,
    }
    assert after == replace(before, **recorded)


@pytest.mark.parametrize("type_", BEGINNING)
def test_what_begins_a_registration_after_the_forget_begins_it_anew(type_: str) -> None:
    """Nothing of the registration before is in the row, but that its version goes on."""
    before, cause = buried(row(RegistrationState.ACTIVE)), sent(type_, 101)
    after, outcome, _ = taken(before, cause)
    alone, _ = take_in(REGISTRATION, None, cause, TIMING)
    assert outcome is Outcome.APPLIED
    assert alone is not None
    assert after == replace(alone, version=before.version + alone.version)


@pytest.mark.parametrize(("type_", "occurred"), list(product(BEGINNING, (99, 100))))
def test_what_began_a_registration_before_the_forget_is_ignored(type_: str, occurred: int) -> None:
    """It has a later place, but it speaks of the node that was forgotten."""
    _, outcome, reason = taken(buried(), sent(type_, 200, occurred_at=f"2026-01-01T00:01:{occurred - 60}Z"))
    assert outcome is Outcome.IGNORED
    assert reason == (
        "forgotten: the entity was forgotten at 2026-01-01T00:01:40Z; only an event that begins a registration and "
        "occurred later begins it anew"
    )


@pytest.mark.parametrize("type_", BEGINNING)
def test_nothing_begins_a_permanent_tombstone_anew(type_: str) -> None:
    """For good is for good."""
    _, outcome, reason = taken(buried(permanent=True), sent(type_, 200))
    assert (outcome, reason) == (
        Outcome.IGNORED,
        "forgotten: the entity was forgotten for good at 2026-01-01T00:01:40Z",
    )


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_an_event_behind_a_tombstone_is_stale(type_: str) -> None:
    """Whatever it is, the row stays as it was."""
    before = buried()
    after, outcome, _ = taken(before, sent(type_, 99))
    assert (after, outcome) == (before, Outcome.STALE)


@pytest.mark.parametrize(
    ("before", "again", "after"),
    [(False, False, False), (False, True, True), (True, False, True), (True, True, True)],
)
def test_a_tombstone_that_is_forgotten_again_stays_permanent(before: bool, again: bool, after: bool) -> None:
    """A second forget can make it permanent, and never takes that back."""
    cause = sent("registration.forgotten", 200, data={"permanent": again})
    assert taken(buried(permanent=before), cause)[0].forgotten_permanently is after


@pytest.mark.parametrize(("occurred", "since"), [("00:00:01", 100), ("00:03:00", 180)])
def test_a_tombstone_keeps_the_later_time_of_two_forgets(occurred: str, since: int) -> None:
    """So a forget whose clock is behind brings no event through that the one before kept out."""
    cause = sent("registration.forgotten", 200, occurred_at=f"2026-01-01T{occurred}Z")
    after, _, _ = taken(buried(), cause)
    assert (after.forgotten_at, after.registered_at) == (when(since), when(since))


def test_of_a_second_forget_nobody_else_hears() -> None:
    """Two services that read each other's events would else forget an entity back and forth for ever."""
    cause = sent("registration.forgotten", 200)
    assert isinstance(cause, Forgotten)
    decision = decide(buried(), cause, TIMING)
    assert isinstance(decision, Decision)
    assert (decision.events, [each.name for each in decision.intents]) == ((), ["postgres.upsert_registration"])


# --- The change log ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logging", [Logging.TRANSITIONS, Logging.ALL])
@pytest.mark.parametrize("type_", [*OTHERS, *BEGINNING, "registration.forgotten"])
def test_what_a_tombstone_meets_is_no_change(type_: str, logging: Logging) -> None:
    """For those who follow, the entity is gone: one that they hear of again would come back."""
    log, before, cause = log_of(logging), buried(permanent=True), sent(type_, 200)
    assert log is not None
    after, outcome, reason = taken(before, cause)
    assert log(before, cause, outcome, reason, after) is None


@pytest.mark.parametrize("state", [None, *RegistrationState], ids=str)
def test_a_forget_is_a_change_without_a_row(state: RegistrationState | None) -> None:
    """From any state, `rejected` included; with the reason that was given, and nothing of the node."""
    log, before = log_of(Logging.TRANSITIONS, rows=True), None if state is None else row(state)
    cause = sent("registration.forgotten", FORGOTTEN_AT, data={"reason": "scrapped"})
    assert log is not None
    change = log(before, cause, Outcome.APPLIED, None, buried(before))
    assert change is not None
    assert (change.outcome, change.reason, change.type) == (ChangeOutcome.FORGOTTEN, "scrapped", cause.type)
    assert (change.before, change.current_state, change.node_type) == (state, RegistrationState.REJECTED, "")
    assert change.row is None


@pytest.mark.parametrize("state", [RegistrationState.REJECTED, RegistrationState.ACTIVE])
def test_a_registration_that_begins_anew_is_a_change_from_nothing(state: RegistrationState) -> None:
    """Also where the state of the tombstone's row is the state that it leads to."""
    log, before = log_of(Logging.TRANSITIONS), buried()
    cause = sent("registration.recorded", 200, data=DATA["registration.recorded"] | {"current_state": str(state)})
    after, outcome, reason = taken(before, cause)
    assert log is not None
    change = log(before, cause, outcome, reason, after)
    assert change is not None
    assert (change.outcome, change.before, change.current_state) == (ChangeOutcome.APPLIED, None, state)


# --- An operator's acts --------------------------------------------------------------------------------------------


def test_an_operators_forget_keeps_the_place_of_the_row() -> None:
    """It has no place in the source: the source's own next event still fits, and its last one is a duplicate."""
    before = row(RegistrationState.ACTIVE)
    decision = forget(NAME, before, Position(sequence=99), ForgottenData(reason="x"), when(200), UUID(int=7))
    assert isinstance(decision, Decision)
    after = decision.row
    assert (after.position, after.last_applied_event_id) == (before.position, before.last_applied_event_id)
    assert (after.forgotten_at, after.updated_at, after.correlation_id) == (when(200), when(200), UUID(int=7))
    assert after.version == before.version + 1
    [cause] = decision.events
    assert cause.event_id == uuid5(NODE, f"registration forgotten {after.version}")
    assert cause.data == ForgottenData(reason="x")


def test_an_operators_forget_without_a_row_needs_a_position() -> None:
    """With one, it makes a tombstone there."""
    assert forget(NAME, None, None, ForgottenData(), when(200)) == Ignored("unknown entity")
    decision = forget(NAME, None, Position(partition="t-0", offset=9), ForgottenData(permanent=True), when(200))
    assert isinstance(decision, Decision)
    assert (decision.row.position, decision.row.version) == (Position(partition="t-0", offset=9), 1)
    assert (decision.row.forgotten_at, decision.row.forgotten_permanently) == (when(200), True)


LEFT = {
    RegistrationState.PENDING_REGISTRATION: RegistrationState.REJECTED,
    RegistrationState.ACCEPTED: RegistrationState.ACK_TIMED_OUT,
    RegistrationState.AWAITING_ACK: RegistrationState.ACK_TIMED_OUT,
    RegistrationState.ACTIVE: RegistrationState.LIVENESS_EXPIRED,
}


@pytest.mark.parametrize(("state", "left"), LEFT.items())
def test_an_eviction_leads_where_the_nodes_own_message_does(
    state: RegistrationState, left: RegistrationState
) -> None:
    """With the same event and intents, and without a place in the source."""
    before = row(state)
    evicted = deregister(before, when(200))
    own = decide(before, sent("node.deregistered", 200), TIMING)  # type: ignore[arg-type]  # a trigger
    assert isinstance(evicted, Decision)
    assert isinstance(own, Decision)
    assert [each.type for each in evicted.events] == [each.type for each in own.events]
    assert [each.name for each in evicted.intents] == [each.name for each in own.intents]
    kept = {
        "last_applied_event_id": before.last_applied_event_id,
        "last_applied_sequence": before.last_applied_sequence,
    }
    assert evicted.row == replace(own.row, correlation_id=before.correlation_id, **kept)
    assert evicted.row.current_state is left


@pytest.mark.parametrize("state", [state for state in RegistrationState if state not in LEFT])
def test_an_eviction_from_any_other_state_is_ignored(state: RegistrationState) -> None:
    """The reason says which states it needs."""
    assert deregister(row(state), when(200)) == Ignored(
        f"node.deregistered needs pending_registration or accepted or awaiting_ack or active; the state is {state}"
    )
