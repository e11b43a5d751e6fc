"""The problems that the service answers (RFC 9457), defined once for the service and its client."""

from uuid import UUID

from msgspec import Struct

from app.domain.events import Time
from app.domain.positions import Position
from app.domain.registration import Registration
from app.domain.results import EmittedEvent, Outcome
from app.domain.states import RegistrationState
from app.domain.workflows import Workflow
from app.errors import Fault


class Problem(Struct, frozen=True, omit_defaults=True):
    """An error (RFC 9457). `errors` lists the faults of the input, with their places."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[Fault] | None = None


class OrderProblem(Struct, frozen=True, omit_defaults=True):
    """An event whose position is too early for now, or in conflict for good, as a problem (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    event_id: UUID
    outcome: Outcome
    reason: str | None
    entity_id: UUID
    domain: str
    current_state: RegistrationState | None
    version: int | None
    stands_at: Position | None
    events: list[EmittedEvent] | None = None


class HeldProblem(Struct, frozen=True):
    """The entity is held, as a problem (RFC 9457): `queue` is the path of its queue."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    entity_id: UUID
    queue: str


class InterruptedProblem(Struct, frozen=True):
    """A stream was broken off, as a problem (RFC 9457): the database failed, or too many lines were faults.

    Nothing after the first `committed_lines` lines is stored: send the lines after these again.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str
    committed_lines: int


class StateProblem(Struct, frozen=True):
    """A workflow that is not at the version that a commit builds on, as a problem (RFC 9457).

    `expected_version` is the version in `If-Match`, null if it names none or several. `actual_version` and `current`
    are null if there is no row.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str
    expected_version: int | None
    actual_version: int | None
    current: Workflow | None


class GoneProblem(Struct, frozen=True):
    """A token whose changes are not in the log any more, as a problem (RFC 9457).

    `reason` is `expired` or `history` (the database has another past). To begin anew: `oldest` is a token, `snapshot`
    a URL.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str
    reason: str
    oldest: str
    snapshot: str


class HistoryGoneProblem(Struct, frozen=True):
    """The change log does not go back to `moment` (`as_of` as it was sent), as a problem (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    moment: str


class Reached(Struct, frozen=True):
    """How far a partition is applied; null where nothing of it is."""

    topic: str
    partition: int
    offset: int | None


class LateProblem(Struct, frozen=True):
    """A read that waited in vain for what it demands, as a problem (RFC 9457).

    `current` is the entity's row as it is, null without one; `stands_at` is its position. `watermarks` are those of
    the partitions that the read waited for, null where it waited for none.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str
    current: Registration | None
    stands_at: Position | None
    watermarks: list[Reached] | None


class TrackProblem(Struct, frozen=True):
    """A read that waits for a sequence, of an entity whose row stands in a partition, as a problem (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    stands_at: Position


class ForgottenProblem(Struct, frozen=True):
    """A read of a forgotten entity, as a problem (RFC 9457): since when, and whether it was forgotten for good."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    entity_id: UUID
    domain: str
    forgotten_at: Time
    permanent: bool


class ActionProblem(Struct, frozen=True):
    """An action that was already applied, as `version`, with another state, as a problem (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    action_id: str
    version: int
