"""The result of one event."""

from enum import StrEnum
from uuid import UUID

from msgspec import Struct

from app.domain.positions import Position
from app.domain.states import RegistrationState


class Outcome(StrEnum):
    """The result of one event."""

    APPLIED = "applied"
    IGNORED = "ignored"
    DUPLICATE = "duplicate"
    STALE = "stale"
    EARLY = "early"
    CONFLICT = "conflict"


class EmittedEvent(Struct, frozen=True):
    """An event that the service emitted because of a trigger."""

    event_id: UUID
    type: str


class Result(Struct, frozen=True, gc=False, omit_defaults=True):
    """The outcome of one event, and its entity's row after it.

    Without a row `current_state`, `version` and `stands_at` are null. `reason` is null if the event was applied.
    `events` lists the emitted events in their order, only for triggers (a heartbeat is its own event).
    """

    event_id: UUID
    outcome: Outcome
    reason: str | None
    entity_id: UUID
    domain: str
    current_state: RegistrationState | None
    version: int | None
    stands_at: Position | None
    events: list[EmittedEvent] | None = None  # None is left out of the JSON


class HeldResult(Result, frozen=True, gc=False, omit_defaults=True):
    """The result of an event that was refused because its entity is held: a conflict, until its queue is retried."""
