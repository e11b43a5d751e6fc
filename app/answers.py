"""What the service answers: encoded from these types, described by them in OpenAPI, and decoded by the client.

Clients of this release ignore fields that a later release adds.
"""

from typing import Literal
from uuid import UUID

from msgspec import Struct

from app.domain.events import Time
from app.domain.positions import Position
from app.domain.registration import Outcome, Registration
from app.domain.results import Followed, Result
from app.domain.states import RegistrationState
from app.domain.workflows import Workflow
from app.errors import Fault

DeadLetterSource = Literal["consumer", "relay"]  # of a dead letter: a message that came in, or one that was to go out
INVALID = "invalid"  # the outcome of a line that is not an event

# --- Entities ------------------------------------------------------------------------------------------------------


class EntityState(Struct, frozen=True):
    """The state of one entity."""

    entity_id: UUID
    domain: str
    current_state: RegistrationState


class LookupAnswer(Struct, frozen=True):
    """The registrations that were found, in the order asked, and the ids that have none."""

    items: list[Registration]
    missing: list[UUID]


class EntityPage(Struct, frozen=True):
    """A page of registrations, and the cursor of the next one, null on the last."""

    items: list[Registration]
    next_cursor: str | None


class StateCounts(Struct, frozen=True):
    """How many entities of a domain are in each state."""

    domain: str
    counts: dict[RegistrationState, int]
    total: int


class OverdueRegistration(Registration, frozen=True):
    """A registration, and for how many seconds its deadline had passed at `as_of`."""

    overdue_seconds: float


class OverduePage(Struct, frozen=True):
    """A page of overdue registrations, oldest deadline first; `next_deadline` is the earliest one still to come."""

    as_of: Time
    items: list[OverdueRegistration]
    next_cursor: str | None
    next_deadline: Time | None


class Summary(Struct, frozen=True):
    """How many events of an array had which outcome."""

    received: int
    applied: int
    ignored: int
    duplicate: int
    stale: int
    early: int
    conflict: int


class BatchAnswer(Struct, frozen=True):
    """What became of the events of an array, in the order sent."""

    summary: Summary
    results: list[Result]


class StreamSummary(Summary, frozen=True):
    """How many lines of a stream had which outcome; `received` counts the lines that were not blank."""

    invalid: int


class LineResult(Struct, frozen=True, kw_only=True):
    """What became of a line of a stream that was not applied; `line` counts from 1.

    `outcome` is one of Outcome, or `invalid`: then the line is not an event, and `errors` says why.
    """

    line: int
    outcome: str
    reason: str | None = None
    errors: list[Fault] = []
    entity_id: UUID | None = None
    domain: str | None = None
    stands_at: Position | None = None


class Health(Struct, frozen=True):
    """The process is up, or the service is ready."""

    status: str


class Ready(Health, frozen=True):
    """The database answers, and its schema is the expected one."""

    revision: str


class WorkflowPage(Struct, frozen=True):
    """A page of workflows, oldest change first, and the cursor of the next one, null on the last."""

    items: list[Workflow]
    next_cursor: str | None


class Watermark(Struct, frozen=True):
    """How far a partition is read: every message up to `offset` is applied, or is a dead letter.

    `as_of`: what was in the partition by then is in. It is the later one of `message_at` and of `caught_up_at`, when
    there was last seen to be nothing after `offset`; null when neither is known. `message_at` is the time of the
    message at `offset`, where times do not go back; else the newest time up to there, less the most by which one was
    seen to go back. It is older than it was when one goes back further than any before.
    `updated_at` and `consumer`: when it was last written, and by whom.
    """

    topic: str
    partition: int
    offset: int
    as_of: Time | None
    message_at: Time | None
    caught_up_at: Time | None
    updated_at: Time
    consumer: str


class WatermarkList(Struct, frozen=True):
    """How far each partition is read."""

    items: list[Watermark]


class Header(Struct, frozen=True):
    """A header of a message: its value as text, or in base64 where it is none."""

    name: str
    value: str | None
    value_base64: str | None


class DeadMessage(Struct, frozen=True):
    """A message that could not be taken in, or sent, and why.

    `source` is `consumer`, or `relay` for one that was to go out, which has no partition and offset. Key and value
    are there as text, or in base64 where they are none.
    """

    id: int
    source: DeadLetterSource
    topic: str
    partition: int | None
    offset: int | None
    error: str
    created_at: Time
    key: str | None
    key_base64: str | None
    value: str | None
    value_base64: str | None
    headers: list[Header]


class DeadLetterPage(Struct, frozen=True):
    """A page of dead letters, oldest first, and the cursor of the next one, null on the last."""

    items: list[DeadMessage]
    next_cursor: str | None


class Problem(Struct, frozen=True, omit_defaults=True):
    """What went wrong (RFC 9457). `errors` says what is wrong with an input, and where."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[Fault] | None = None


class OrderProblem(Struct, frozen=True, omit_defaults=True):
    """An event that its position keeps out, for now (early) or for good (conflict), as a problem (RFC 9457)."""

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
    events: list[Followed] | None = None


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

    `expected_version` is the one that `If-Match` names, null where it names none or several; `actual_version` and
    `current` are null when there is no row.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str
    expected_version: int | None
    actual_version: int | None
    current: Workflow | None


class ActionProblem(Struct, frozen=True):
    """An action that was applied before, as `version`, and with another state, as a problem (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    action_id: str
    version: int
