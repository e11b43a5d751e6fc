"""What the change log says about one recorded event: the state before and after, and where the row stands."""

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from msgspec import Struct

from app.domain.events import Deregistered, EventBase, Forgotten, Introspected, RegistrationAcked
from app.domain.registration import Registration
from app.domain.results import Outcome
from app.domain.states import RegistrationState

# The triggers that the log always has. A heartbeat is a trigger too, and the log must cost it nothing.
TRIGGERS = (Introspected, RegistrationAcked, Deregistered)


class Logging(StrEnum):
    """Which recorded events the change log has."""

    TRANSITIONS = "transitions"  # those that changed a state, and every trigger but the heartbeat
    ALL = "all"
    OFF = "off"


class ChangeOutcome(StrEnum):
    """What made a change: an event that was applied or ignored, or an act of the service."""

    APPLIED = "applied"
    IGNORED = "ignored"
    SWEPT = "swept"
    DEREGISTERED = "deregistered"
    REBASED = "rebased"
    FORGOTTEN = "forgotten"
    REBUILT = "rebuilt"


class Change(Struct, frozen=True, gc=False):
    """A change as it is written. The database adds its id, its mark and `changed_at`.

    `before` is None when there was no row, or only a tombstone. `event_id` is None when no event made the change.
    `row` is the row after it, or None where rows are not logged, and for a tombstone.
    """

    entity_id: UUID
    domain: str
    node_type: str
    version: int
    event_id: UUID | None
    type: str
    outcome: ChangeOutcome
    reason: str | None
    before: RegistrationState | None
    current_state: RegistrationState
    partition: str | None
    offset: int | None
    sequence: int | None
    occurred_at: datetime
    correlation_id: UUID | None
    row: Registration | None = None


# From the row before an event (None: none), the event, its outcome and reason, and the row after it: its change, or
# None where the log has none.
Log = Callable[[Registration | None, EventBase, Outcome, str | None, Registration], Change | None]


def log_of(logging: Logging, *, rows: bool = False) -> Log | None:
    """What decides which changes are logged, and makes them; None when the log is off."""
    if logging is Logging.OFF:
        return None
    everything = logging is Logging.ALL

    def log(
        before: Registration | None, event: EventBase, outcome: Outcome, reason: str | None, after: Registration
    ) -> Change | None:
        state = None if before is None or before.forgotten_at is not None else before.current_state
        if after.forgotten_at is not None:
            if not isinstance(event, Forgotten) or (state is None and before is not None):
                return None  # for those who follow, the entity was gone already
            made_by, reason = ChangeOutcome.FORGOTTEN, event.data.reason
        elif state is after.current_state and not everything and not isinstance(event, TRIGGERS):
            return None
        else:
            made_by = ChangeOutcome(outcome.value)
        return change(before, after, event.event_id, event.type, made_by, event.occurred_at, reason, rows=rows)

    return log


def change(
    before: Registration | None,
    after: Registration,
    event_id: UUID | None,
    type_: str,
    outcome: ChangeOutcome,
    occurred_at: datetime,
    reason: str | None = None,
    *,
    rows: bool = False,
) -> Change:
    """The change from one row to the next."""
    return Change(
        after.entity_id,
        after.domain,
        after.node_type,
        after.version,
        event_id,
        type_,
        outcome,
        reason,
        None if before is None or before.forgotten_at is not None else before.current_state,
        after.current_state,
        after.last_applied_partition,
        after.last_applied_offset,
        after.last_applied_sequence,
        occurred_at,
        after.correlation_id,
        after if rows and after.forgotten_at is None else None,
    )
