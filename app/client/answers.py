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


class Followed(Struct, frozen=True):
    """An event that followed from a trigger."""

    event_id: UUID
    type: str


class EventResult(Struct, frozen=True):
    """What became of one event, and how its entity's row stands after it (None: there is no row).

    `events` is what followed from a trigger, in its order: empty where nothing did, None for what is no trigger.
    """

    event_id: UUID
    outcome: Outcome
    reason: str | None
    entity_id: UUID
    domain: str
    current_state: RegistrationState | None
    version: int | None
    stands_at: Position | None
    events: list[Followed] | None = None


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


class Watermark(Struct, frozen=True):
    """How far a partition of Kafka is read: every message up to `offset` is applied, or is a dead letter.

    What was in the partition by `as_of` is in; that is the later one of `message_at` and of `caught_up_at`, when
    there was last seen to be nothing after `offset`. `message_at` is the time of the message at `offset`, where times
    do not go back; else the newest time up to there, less the most by which one was seen to go back. None: it is not
    known.
    """

    topic: str
    partition: int
    offset: int
    as_of: datetime | None
    message_at: datetime | None
    caught_up_at: datetime | None
    updated_at: datetime
    consumer: str


class WatermarkList(Struct, frozen=True):
    """A watermark for each partition of which something was read, by topic and partition."""

    items: list[Watermark]


class Header(Struct, frozen=True):
    """A header of a message: its value as text, or in base64 where it is none; both are None when it has none."""

    name: str
    value: str | None
    value_base64: str | None


class DeadLetter(Struct, frozen=True):
    """A message that could not be taken in (`source` is `consumer`), or sent (`relay`), and why.

    One that was to go out has no partition and offset, and its destination as `topic`. Key and value are there as
    text, or in base64 where they are none.
    """

    id: int
    source: str
    topic: str
    partition: int | None
    offset: int | None
    error: str
    created_at: datetime
    key: str | None
    key_base64: str | None
    value: str | None
    value_base64: str | None
    headers: list[Header]


class DeadLetterPage(Struct, frozen=True):
    """A page of dead letters, oldest first; `next_cursor` is None on the last one."""

    items: list[DeadLetter]
    next_cursor: str | None


class Ready(Struct, frozen=True):
    """The database answers, and its schema is at `revision`, the one that the service expects."""

    status: str
    revision: str
