"""What the service answers, as values. Fields that a later release adds are passed over."""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from app.domain.positions import Position
from app.domain.registration import Outcome, Registration
from app.domain.states import RegistrationState
from app.domain.workflows import Workflow
from app.errors import Fault


class EntityPage(Struct, frozen=True):
    """A page of registrations, in the order of entity ids; `next_cursor` is None on the last one."""

    items: list[Registration]
    next_cursor: str | None


class Lookup(Struct, frozen=True):
    """The registrations that were found, in the order asked, and the ids that have none."""

    items: list[Registration]
    missing: list[UUID]


class StateCounts(Struct, frozen=True):
    """How many entities of a domain are in each of the eight states, and in all."""

    domain: str
    counts: dict[RegistrationState, int]
    total: int


class OverdueRegistration(Registration, frozen=True):
    """A registration, and for how many seconds its deadline had passed at the page's `as_of`."""

    overdue_seconds: float


class OverduePage(Struct, frozen=True):
    """A page of overdue registrations, oldest deadline first.

    `as_of` is the moment asked about, the same on all pages of one scan; `next_deadline` the earliest one still to
    come, None when there is none; `next_cursor` is None on the last page.
    """

    as_of: datetime
    items: list[OverdueRegistration]
    next_cursor: str | None
    next_deadline: datetime | None


class EventResult(Struct, frozen=True):
    """What became of one event, and how its entity's row stands after it (None: there is no row)."""

    event_id: UUID
    outcome: Outcome
    reason: str | None
    entity_id: UUID
    domain: str
    current_state: RegistrationState | None
    version: int | None
    stands_at: Position | None


class Summary(Struct, frozen=True):
    """How many events had which outcome."""

    received: int
    applied: int
    ignored: int
    duplicate: int
    stale: int
    early: int
    conflict: int


class BatchResult(Struct, frozen=True):
    """What became of an array of events, in the order sent."""

    summary: Summary
    results: list[EventResult]


class StreamSummary(Summary, frozen=True):
    """How many lines of a stream had which outcome; `invalid` ones are no events."""

    invalid: int


class LineResult(Struct, frozen=True, kw_only=True):
    """What became of a line of a stream that was not applied; `line` counts from 1.

    `outcome` is one of Outcome, or `invalid`: the line is no event, and `errors` says why.
    """

    line: int
    outcome: str
    reason: str | None = None
    errors: list[Fault] = []
    entity_id: UUID | None = None
    domain: str | None = None
    stands_at: Position | None = None


class WorkflowPage(Struct, frozen=True):
    """A page of workflows, oldest change first; `next_cursor` is None on the last one."""

    items: list[Workflow]
    next_cursor: str | None


class Ready(Struct, frozen=True):
    """The database answers, and its schema is at `revision`, the one that the service expects."""

    status: str
    revision: str
