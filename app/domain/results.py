"""What became of one event."""

from uuid import UUID

from msgspec import Struct

from app.domain.positions import Position
from app.domain.registration import Outcome
from app.domain.states import RegistrationState


class EmittedEvent(Struct, frozen=True):
    """An event that the service emitted because of a trigger."""

    event_id: UUID
    type: str


class Result(Struct, frozen=True, gc=False, omit_defaults=True):
    """What became of one event, and how its entity's row stands after it.

    Without a row `current_state`, `version` and `stands_at` are None. `reason` is None when the event was applied.
    `events` is what followed, in its order, and is there for triggers alone (a heartbeat is its own event).
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
