"""The projection row of one entity, evolve(): the row after one event, and the six outcomes of an event."""

from datetime import UTC, datetime, timedelta
from typing import assert_never
from uuid import UUID

from msgspec import Struct

from app.domain.events import (
    Accepted,
    AckReceived,
    AckRequested,
    AckTimedOut,
    Activated,
    Capabilities,
    EventBase,
    Fact,
    Forgotten,
    Heartbeat,
    Initiated,
    Introspected,
    LivenessExpired,
    Recorded,
    RecordedData,
    Refreshed,
    Rejected,
    Time,
)
from app.domain.positions import Position
from app.domain.rows import record
from app.domain.states import SOURCES, RegistrationState

UNKNOWN_ENTITY = "unknown entity"
UNDESCRIBED = ""  # in a tombstone: the description of the node, in columns that cannot be null


class Timing(Struct, frozen=True, kw_only=True):
    """The time that a node has when an event gives no deadline.

    `correct_until` is the latest time that a correct clock can show now; None if it is not known.
    """

    ack_timeout: timedelta = timedelta(seconds=30)
    liveness_interval: timedelta = timedelta(seconds=60)
    liveness_window: timedelta = timedelta(seconds=90)
    correct_until: datetime | None = None


class Registration(Struct, frozen=True, gc=False, omit_defaults=True):
    """The projection row of one entity. The fields are the columns of `registration_projections`, in their order.

    The row of a forgotten entity is a tombstone: `forgotten_at` is set, and nothing in it describes the node. It is
    in no answer, so the JSON of a row has the last two fields never.
    """

    entity_id: UUID
    domain: str
    current_state: RegistrationState
    node_type: str
    node_version: str
    capabilities: Capabilities
    ack_deadline: Time | None
    liveness_deadline: Time | None
    last_heartbeat_at: Time | None
    ack_timeout_emitted_at: Time | None
    liveness_timeout_emitted_at: Time | None
    last_applied_event_id: UUID
    last_applied_partition: str | None
    last_applied_offset: int | None
    last_applied_sequence: int | None
    registered_at: Time
    updated_at: Time
    correlation_id: UUID | None
    version: int
    forgotten_at: Time | None = None
    forgotten_permanently: bool | None = None

    @property
    def position(self) -> Position:
        """The position of the row in its source."""
        return Position(
            sequence=self.last_applied_sequence,
            partition=self.last_applied_partition,
            offset=self.last_applied_offset,
        )

    def needs_ack_timeout_event(self, now: datetime) -> bool:
        """Whether the node missed its `ack_deadline` by `now`, and no event has said so yet."""
        return (
            self.current_state.requires_ack()
            and self.ack_timeout_emitted_at is None
            and self.ack_deadline is not None
            and self.ack_deadline < now
        )

    def needs_liveness_timeout_event(self, now: datetime) -> bool:
        """Whether the node missed its `liveness_deadline` by `now`, and no event has said so yet."""
        return (
            self.current_state.requires_liveness()
            and self.liveness_timeout_emitted_at is None
            and self.liveness_deadline is not None
            and self.liveness_deadline < now
        )


class Ignored(Struct, frozen=True):
    """The event changes nothing, and why."""

    reason: str


def evolve(registration: Registration | None, event: Fact, timing: Timing) -> Registration | Ignored:
    """The row after `event` (`registration` is the row before it, None when there is none), or why nothing changes.

    The caller has checked the order. The row that is returned has the event recorded in it: its id, position,
    correlation id and time; its version is one higher.
    """
    if registration is not None and registration.forgotten_at is not None and (why := kept_out(registration, event)):
        return why
    if isinstance(event, Recorded):
        return _recorded(registration, event)
    if isinstance(event, Initiated):
        return _initiated(registration, event)
    if isinstance(event, Forgotten):
        return tombstone(registration, event)
    if registration is None:
        return Ignored(UNKNOWN_ENTITY)
    match event:
        case Accepted():
            changes = _ack_deadline(event.data.ack_deadline or event.occurred_at + timing.ack_timeout)
            return _transition(registration, event, RegistrationState.ACCEPTED, changes)
        case AckRequested():
            changes = _ack_deadline(event.data.ack_deadline) if event.data.ack_deadline else {}
            return _transition(registration, event, RegistrationState.AWAITING_ACK, changes)
        case Rejected():
            return _transition(registration, event, RegistrationState.REJECTED, {})
        case AckTimedOut():
            changes = {"ack_timeout_emitted_at": event.occurred_at}
            return _transition(registration, event, RegistrationState.ACK_TIMED_OUT, changes)
        case AckReceived():
            return _transition(registration, event, RegistrationState.ACK_RECEIVED, {"ack_deadline": None})
        case Activated():
            computed = event.occurred_at + timing.liveness_interval
            changes = _liveness_deadline(registration, event.data.liveness_deadline, computed)
            if event.data.capabilities is not None:
                changes["capabilities"] = event.data.capabilities
            return _transition(registration, event, RegistrationState.ACTIVE, changes)
        case Heartbeat() | Refreshed():
            return _kept_state(registration, event, timing)
        case LivenessExpired():
            changes = {"liveness_timeout_emitted_at": event.occurred_at}
            return _transition(registration, event, RegistrationState.LIVENESS_EXPIRED, changes)
        case _:
            assert_never(event)


# --- Forgetting ----------------------------------------------------------------------------------------------------


def tombstone(registration: Registration | None, event: Forgotten) -> Registration:
    """The row after a forget, from any state or without a row: it keeps the place, the version and the times.

    A tombstone that is forgotten again stays permanent if it was, and keeps the later time.
    """
    forgotten_at, permanent = event.occurred_at, event.data.permanent
    if registration is not None and registration.forgotten_at is not None:
        forgotten_at = max(forgotten_at, registration.forgotten_at)
        permanent = permanent or registration.forgotten_permanently is True
    return Registration(
        entity_id=event.entity_id,
        domain=event.domain,
        current_state=RegistrationState.REJECTED,
        node_type=UNDESCRIBED,
        node_version=UNDESCRIBED,
        capabilities={},
        ack_deadline=None,
        liveness_deadline=None,
        last_heartbeat_at=None,
        ack_timeout_emitted_at=None,
        liveness_timeout_emitted_at=None,
        last_applied_event_id=event.event_id,
        last_applied_partition=event.position.partition,
        last_applied_offset=event.position.offset,
        last_applied_sequence=event.position.sequence,
        registered_at=forgotten_at,
        updated_at=event.occurred_at,
        correlation_id=event.correlation_id,
        version=1 if registration is None else registration.version + 1,
        forgotten_at=forgotten_at,
        forgotten_permanently=permanent,
    )


def kept_out(registration: Registration, event: EventBase) -> Ignored | None:
    """Why a tombstone ignores this event; None if it lets it through, and for a row that is not a tombstone.

    A tombstone lets another forget through and, unless it is permanent, the begin of a registration after the forget.
    """
    forgotten_at = registration.forgotten_at
    if forgotten_at is None or isinstance(event, Forgotten):
        return None
    if registration.forgotten_permanently:
        return Ignored(f"forgotten: the entity was forgotten for good at {in_utc(forgotten_at)}")
    if isinstance(event, Initiated | Introspected | Recorded) and event.occurred_at > forgotten_at:
        return None
    return Ignored(
        f"forgotten: the entity was forgotten at {in_utc(forgotten_at)}; only an event that begins a registration "
        "and occurred later begins it anew"
    )


# --- Transitions ---------------------------------------------------------------------------------------------------

# What an event changes: names of columns and their new values.
_Changes = dict[str, object]


def _transition(
    registration: Registration, event: Fact, target: RegistrationState, changes: _Changes
) -> Registration | Ignored:
    if not registration.current_state.can_transition_to(target):
        return Ignored(f"{event.type} needs {_sources(target)}; the state is {registration.current_state}")
    return record(registration, event, current_state=target, **changes)


def _sources(target: RegistrationState) -> str:
    return " or ".join(SOURCES[target])


def _ack_deadline(deadline: datetime) -> _Changes:
    """A new deadline can time out again: the event that sets it clears its marker."""
    return {"ack_deadline": deadline, "ack_timeout_emitted_at": None}


def _liveness_deadline(registration: Registration, given: datetime | None, computed: datetime) -> _Changes:
    """The given deadline; without one, the later of the computed deadline and the row's."""
    deadline = given or max(computed, registration.liveness_deadline or computed)
    return {"liveness_deadline": deadline, "liveness_timeout_emitted_at": None}


def _initiated(registration: Registration | None, event: Initiated) -> Registration | Ignored:
    target = RegistrationState.PENDING_REGISTRATION
    if registration is not None and not registration.current_state.can_transition_to(target):
        return Ignored(f"{event.type} needs no row, or {_sources(target)}; the state is {registration.current_state}")
    registered_at = event.occurred_at
    if registration is not None and registration.forgotten_at is None:
        registered_at = registration.registered_at
    return _row(
        registration,
        event,
        RecordedData(
            current_state=target,
            node_type=event.data.node_type,
            node_version=event.data.node_version,
            capabilities=event.data.capabilities,
            registered_at=registered_at,
        ),
    )


def _recorded(registration: Registration | None, event: Recorded) -> Registration:
    return _row(registration, event, event.data)


def _row(registration: Registration | None, event: Initiated | Recorded, data: RecordedData) -> Registration:
    """A whole new row; of the present one only the version is continued."""
    return Registration(
        entity_id=event.entity_id,
        domain=event.domain,
        current_state=data.current_state,
        node_type=data.node_type,
        node_version=data.node_version,
        capabilities=data.capabilities,
        ack_deadline=data.ack_deadline,
        liveness_deadline=data.liveness_deadline,
        last_heartbeat_at=data.last_heartbeat_at,
        ack_timeout_emitted_at=data.ack_timeout_emitted_at,
        liveness_timeout_emitted_at=data.liveness_timeout_emitted_at,
        last_applied_event_id=event.event_id,
        last_applied_partition=event.position.partition,
        last_applied_offset=event.position.offset,
        last_applied_sequence=event.position.sequence,
        registered_at=data.registered_at,
        updated_at=event.occurred_at,
        correlation_id=event.correlation_id,
        version=1 if registration is None else registration.version + 1,
    )


def _kept_state(registration: Registration, event: Heartbeat | Refreshed, timing: Timing) -> Registration | Ignored:
    """After an event that leads to no other state."""
    if isinstance(event, Refreshed):
        return _refreshed(registration, event)
    return _heartbeat(registration, event, timing)


def _refreshed(registration: Registration, event: Refreshed) -> Registration | Ignored:
    if not registration.current_state.is_active():
        return Ignored(f"{event.type} needs {RegistrationState.ACTIVE}; the state is {registration.current_state}")
    return record(
        registration,
        event,
        node_type=event.data.node_type,
        node_version=event.data.node_version,
        capabilities=event.data.capabilities,
    )


def _heartbeat(registration: Registration, event: Heartbeat, timing: Timing) -> Registration | Ignored:
    state = registration.current_state
    if state.is_terminal():
        return Ignored(f"{event.type} needs a state that is not terminal; the state is {state}")
    heartbeat_at = event.data.heartbeat_at or event.occurred_at
    newest = registration.last_heartbeat_at
    # No correct clock can have made the newest heartbeat: this one replaces it, and lowers its deadline.
    is_wrong = newest is not None and timing.correct_until is not None and newest > timing.correct_until
    if newest is not None and heartbeat_at <= newest and not is_wrong:
        return Ignored(f"{event.type} needs a heartbeat after {in_utc(newest)}, the newest one; the state is {state}")
    computed = heartbeat_at + timing.liveness_window
    given = event.data.liveness_deadline or (computed if is_wrong else None)
    changes = _liveness_deadline(registration, given, computed)
    return record(registration, event, last_heartbeat_at=heartbeat_at, **changes)


def in_utc(time: datetime) -> str:
    """The time as answers have it."""
    return time.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
