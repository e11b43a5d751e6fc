"""decide(): the events and intents that follow from a trigger; expire(): those that follow from a passed deadline.

Pure, like evolve(): the clock is the trigger's own `occurred_at`; for a deadline it is passed in.
"""

from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar, assert_never
from uuid import UUID, uuid5

from msgspec import Struct
from msgspec.structs import replace

from app.domain import intents
from app.domain.events import (
    Accepted,
    AckDeadlineData,
    AckReceived,
    AckRequested,
    AckTimedOut,
    Activated,
    Data,
    Deregistered,
    EventBase,
    Fact,
    Heartbeat,
    Initiated,
    Introspected,
    LivenessExpired,
    RegistrationAcked,
    Rejected,
    Trigger,
)
from app.domain.intents import Intent
from app.domain.registration import UNKNOWN_ENTITY, Ignored, Registration, Timing, evolve
from app.domain.row_type import R
from app.domain.states import SOURCES, RegistrationState


class Decision(Struct, Generic[R], frozen=True):
    """What follows: the events in their order, the intents, and the row as evolve() makes it of these events."""

    events: tuple[EventBase, ...]
    intents: tuple[Intent, ...]
    row: R


class Deadline(StrEnum):
    """Which deadline has passed."""

    ACK = "ack"
    LIVENESS = "liveness"


_S = RegistrationState
_AWAITING = " or ".join(SOURCES[_S.ACK_RECEIVED])
# The event that ends a registration whose node leaves, by state.
_LEFT: dict[RegistrationState, type[Rejected | AckTimedOut | LivenessExpired]] = {
    _S.PENDING_REGISTRATION: Rejected,
    _S.ACCEPTED: AckTimedOut,
    _S.AWAITING_ACK: AckTimedOut,
    _S.ACTIVE: LivenessExpired,
}


def decide(registration: Registration | None, trigger: Trigger, timing: Timing) -> Decision | Ignored:
    """The events and intents that follow from `trigger` for `registration` (None: no row yet), or why none do.

    The caller has checked the order. The events have the trigger's position, time and correlation id, and the id
    uuid5(trigger's id, type); evolve() allows each of them, one after the other. The row that they lead to has the
    trigger's id as `last_applied_event_id`, and its version rises by one for each of them. A heartbeat is its own
    event: only the row follows from it, and its version rises by one.
    """
    if isinstance(trigger, Introspected):
        return _introspected(registration, trigger, timing)
    if registration is None:
        return Ignored(UNKNOWN_ENTITY)
    match trigger:
        case RegistrationAcked():
            return _acked(registration, trigger, timing)
        case Heartbeat():
            after = evolve(registration, trigger, timing)
            return (
                after if isinstance(after, Ignored) else Decision((), (intents.update(after, registration),), after)
            )
        case Deregistered():
            return _deregistered(registration, trigger, timing)
        case _:
            assert_never(trigger)


def _introspected(registration: Registration | None, trigger: Introspected, timing: Timing) -> Decision | Ignored:
    if registration is not None and not registration.current_state.can_transition_to(_S.PENDING_REGISTRATION):
        why = "active" if registration.current_state.is_active() else "registration in progress"
        expected = f"no row, or {' or '.join(SOURCES[_S.PENDING_REGISTRATION])}"
        return _ignored(registration, trigger, expected, why=f"{why}: ")
    deadline = trigger.occurred_at + timing.ack_timeout
    events = (
        _following(Initiated, trigger, trigger.data),
        _following(Accepted, trigger),
        _following(AckRequested, trigger, AckDeadlineData(ack_deadline=deadline)),
    )
    after = _after(registration, trigger, events, timing)
    return Decision(events, (intents.upsert(after, registration), intents.register(after)), after)


def _acked(registration: Registration, trigger: RegistrationAcked, timing: Timing) -> Decision | Ignored:
    match registration.current_state:
        case _S.ACCEPTED | _S.AWAITING_ACK:
            events = (_following(AckReceived, trigger), _following(Activated, trigger))
            after = _after(registration, trigger, events, timing)
            return Decision(events, (intents.update(after, registration),), after)
        case _S.ACK_RECEIVED | _S.ACTIVE:
            why = "duplicate ack"
        case _S.PENDING_REGISTRATION:
            why = "ack too early"
        case _S.ACK_TIMED_OUT:
            why = "ack too late"
        case _S.REJECTED | _S.LIVENESS_EXPIRED:
            why = "terminal state"
        case never:
            assert_never(never)
    return _ignored(registration, trigger, _AWAITING, why=f"{why}: ")


def _deregistered(registration: Registration, trigger: Deregistered, timing: Timing) -> Decision | Ignored:
    left = _LEFT.get(registration.current_state)
    if left is None:
        return _ignored(registration, trigger, " or ".join(_LEFT))
    events = (_following(left, trigger),)
    after = _after(registration, trigger, events, timing)
    return Decision(events, (intents.update(after, registration), intents.deregister(after)), after)


def _ignored(registration: Registration, trigger: Trigger, expected: str, *, why: str = "") -> Ignored:
    return Ignored(f"{why}{trigger.type} needs {expected}; the state is {registration.current_state}")


F = TypeVar("F", bound=Fact)


def _following(cls: type[F], trigger: Trigger, data: Data | None = None) -> F:
    """An event that follows from `trigger`; without `data` it has its type's default."""
    given = {} if data is None else {"data": data}
    return cls(
        event_id=uuid5(trigger.event_id, str(cls.__struct_config__.tag)),
        entity_id=trigger.entity_id,
        domain=trigger.domain,
        position=trigger.position,
        occurred_at=trigger.occurred_at,
        correlation_id=trigger.correlation_id,
        **given,  # type: ignore[arg-type]  # each type has its own data, and gets it
    )


def _after(
    registration: Registration | None, trigger: Trigger, events: tuple[Fact, ...], timing: Timing
) -> Registration:
    """The row after the events, with the trigger recorded in it."""
    for event in events:
        evolved = evolve(registration, event, timing)
        assert isinstance(evolved, Registration), evolved  # noqa: S101 - the tables agree, and a test tries every cell
        registration = evolved
    assert registration is not None  # noqa: S101 - there is at least one event
    return replace(registration, last_applied_event_id=trigger.event_id)


def expire(registration: Registration, deadline: Deadline, now: datetime) -> Decision | Ignored:
    """The event and intents that follow when `deadline` has passed at `now`, the database's clock; or why none do.

    One event follows. Its id is uuid5 of the entity, its domain, the deadline and the version that it leads to: two
    sweeps that find the same row make the same event. It has no place in the source, so `last_applied_*` and
    `correlation_id` stay as they are, and the source's next event still fits.
    """
    match deadline:
        case Deadline.ACK:
            needed = registration.needs_ack_timeout_event(now)
            cls: type[AckTimedOut | LivenessExpired] = AckTimedOut
        case Deadline.LIVENESS:
            needed = registration.needs_liveness_timeout_event(now)
            cls = LivenessExpired
        case never:
            assert_never(never)
    if not needed:
        return Ignored(_why_not_needed(registration, deadline))
    event = cls(
        event_id=expiry_id(registration, deadline),
        entity_id=registration.entity_id,
        domain=registration.domain,
        position=registration.position,
        occurred_at=now,
        correlation_id=registration.correlation_id,
    )
    evolved = evolve(registration, event, Timing())  # nothing in it depends on the timing
    assert isinstance(evolved, Registration), evolved  # noqa: S101 - see _after
    after = replace(evolved, last_applied_event_id=registration.last_applied_event_id)
    return Decision((event,), (intents.update(after, registration), intents.deregister(after)), after)


def _why_not_needed(registration: Registration, deadline: Deadline) -> str:
    state = registration.current_state
    if deadline is Deadline.ACK:
        waits, emitted_at = state.requires_ack(), registration.ack_timeout_emitted_at
    else:
        waits, emitted_at = state.requires_liveness(), registration.liveness_timeout_emitted_at
    if not waits:
        return f"no {deadline} deadline counts; the state is {state}"
    if emitted_at is not None:
        return f"the timeout event of the {deadline} deadline was already emitted"
    return f"the {deadline} deadline has not passed"


def expiry_id(registration: Registration, deadline: Deadline) -> UUID:
    """The id of the event that a passed deadline of this row becomes."""
    return uuid5(registration.entity_id, f"{registration.domain} {deadline} {registration.version + 1}")
