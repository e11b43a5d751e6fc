"""decide(): the events and intents that follow from a trigger; expire(): those that follow from a passed deadline;
forget() and deregister(): those that follow from an operator's request.

Pure, like evolve(): the clock is the trigger's own `occurred_at`; for the others it is passed in.
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
    Forgotten,
    ForgottenData,
    Heartbeat,
    Initiated,
    Introspected,
    LivenessExpired,
    Name,
    Refreshed,
    RegistrationAcked,
    Rejected,
    Trigger,
)
from app.domain.intents import Intent
from app.domain.positions import Position
from app.domain.registration import UNKNOWN_ENTITY, Ignored, Registration, Timing, evolve, kept_out, tombstone
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
    event: only the row follows from it, and its version rises by one. A forget is its own event as well, and the one
    that follows; from another forget of a tombstone only the row follows.
    """
    if registration is not None and registration.forgotten_at is not None:
        ignored = kept_out(registration, trigger)
        if ignored is not None:
            return ignored
    if isinstance(trigger, Forgotten):
        return _forgotten(registration, trigger, tombstone(registration, trigger))
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
    if registration is not None and registration.current_state.is_active():
        return _refreshed(registration, trigger, timing)
    if registration is not None and not registration.current_state.can_transition_to(_S.PENDING_REGISTRATION):
        expected = f"no row, or {' or '.join((_S.ACTIVE, *SOURCES[_S.PENDING_REGISTRATION]))}"
        return _ignored(registration, trigger, expected, why="registration in progress: ")
    deadline = trigger.occurred_at + timing.ack_timeout
    events = (
        _following(Initiated, trigger, trigger.data),
        _following(Accepted, trigger),
        _following(AckRequested, trigger, AckDeadlineData(ack_deadline=deadline)),
    )
    after = _after(registration, trigger, events, timing)
    return Decision(events, (intents.upsert(after, registration), intents.register(after)), after)


def _refreshed(registration: Registration, trigger: Introspected, timing: Timing) -> Decision:
    events = (_following(Refreshed, trigger, trigger.data),)
    after = _after(registration, trigger, events, timing)
    return Decision(events, (intents.update(after, registration), intents.register(after)), after)


def _acked(registration: Registration, trigger: RegistrationAcked, timing: Timing) -> Decision | Ignored:
    match registration.current_state:
        case _S.ACCEPTED | _S.AWAITING_ACK:
            events = (_following(AckReceived, trigger), _following(Activated, trigger))
            after = _after(registration, trigger, events, timing)
            return Decision(events, (intents.update(after, registration), intents.activate(after)), after)
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


def _forgotten(registration: Registration | None, event: Forgotten, after: Registration) -> Decision:
    """What follows from the forget that leads to this tombstone: of a second one nobody else has to hear."""
    upsert = intents.upsert(after, registration)
    if registration is not None and registration.forgotten_at is not None:
        return Decision((), (upsert,), after)
    return Decision((event,), (upsert, intents.deregister(after)), after)


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
    return _ended(registration, cls, expiry_id(registration, deadline), now, registration.correlation_id)


def _ended(
    registration: Registration,
    cls: type[Rejected | AckTimedOut | LivenessExpired],
    event_id: UUID,
    now: datetime,
    correlation_id: UUID | None,
) -> Decision:
    """What follows when an event of this class, which has no place in the source, ends a registration."""
    event = cls(
        event_id=event_id,
        entity_id=registration.entity_id,
        domain=registration.domain,
        position=registration.position,
        occurred_at=now,
        correlation_id=correlation_id,
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
    return _id_without_place((registration.entity_id, registration.domain), deadline, registration)


def _id_without_place(name: Name, kind: str, registration: Registration | None) -> UUID:
    """The id of an event that has no place in the source: whoever finds the same row makes the same event."""
    entity_id, domain = name
    version = 1 if registration is None else registration.version + 1
    return uuid5(entity_id, f"{domain} {kind} {version}")


def deregister(registration: Registration, now: datetime, correlation_id: UUID | None = None) -> Decision | Ignored:
    """The event and intents that follow when an operator evicts a node at `now`: as from its `node.deregistered`.

    Like the event of a passed deadline, this one has no place in the source: `last_applied_*` stay as they are, and
    the node's own next event still fits. Without a correlation id of its own it has the row's.
    """
    left = _LEFT.get(registration.current_state)
    if left is None:
        type_ = str(Deregistered.__struct_config__.tag)
        return Ignored(f"{type_} needs {' or '.join(_LEFT)}; the state is {registration.current_state}")
    event_id = _id_without_place((registration.entity_id, registration.domain), "deregistered", registration)
    return _ended(registration, left, event_id, now, correlation_id or registration.correlation_id)


def forget(
    name: Name,
    registration: Registration | None,
    position: Position | None,
    data: ForgottenData,
    now: datetime,
    correlation_id: UUID | None = None,
) -> Decision | Ignored:
    """The event and intents that follow when an operator has an entity forgotten at `now`.

    The event has no place in the source: the tombstone keeps the row's position. Without a row it takes `position`;
    without that, either, there is nothing to forget.
    """
    stands_at = position if registration is None else registration.position
    if stands_at is None:
        return Ignored(UNKNOWN_ENTITY)
    entity_id, domain = name
    event = Forgotten(
        event_id=_id_without_place(name, "forgotten", registration),
        entity_id=entity_id,
        domain=domain,
        position=stands_at,
        occurred_at=now,
        correlation_id=correlation_id,
        data=data,
    )
    after = tombstone(registration, event)
    if registration is not None:
        after = replace(after, last_applied_event_id=registration.last_applied_event_id)
    return _forgotten(registration, event, after)
