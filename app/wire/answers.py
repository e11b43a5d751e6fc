"""The answers of the service: it encodes these types, OpenAPI describes them, and the client decodes them.

Clients of this release ignore fields that a later release adds.
"""

from typing import Literal
from uuid import UUID

from msgspec import Struct

from app.domain.changes import ChangeOutcome
from app.domain.events import Time
from app.domain.positions import Position
from app.domain.registration import Registration
from app.domain.results import EmittedEvent, Result
from app.domain.states import RegistrationState
from app.domain.workflows import Workflow
from app.errors import Fault

DeadLetterSource = Literal["consumer", "relay"]  # of a dead letter: an incoming or an outgoing message
INVALID = "invalid"  # the outcome of a line that is not an event
FORBIDDEN = "forbidden"  # the outcome of a line whose sender may not write events of its domain

# --- Entities ------------------------------------------------------------------------------------------------------


class EntityState(Struct, frozen=True):
    """The state of one entity."""

    entity_id: UUID
    domain: str
    current_state: RegistrationState


class LookupAnswer(Struct, frozen=True):
    """The registrations that were found, in the order of the ids, and the ids without one."""

    items: list[Registration]
    missing: list[UUID]


class EntityPage(Struct, frozen=True):
    """A page of registrations, and the cursor of the next one, null on the last."""

    items: list[Registration]
    next_cursor: str | None


class StateCounts(Struct, frozen=True):
    """The number of a domain's entities in each state."""

    domain: str
    counts: dict[RegistrationState, int]
    total: int


class OverdueRegistration(Registration, frozen=True, kw_only=True):
    """A registration, with the seconds since its deadline at `as_of`."""

    overdue_seconds: float


class OverduePage(Struct, frozen=True):
    """A page of overdue registrations, oldest deadline first; `next_deadline` is the earliest one after `as_of`."""

    as_of: Time
    items: list[OverdueRegistration]
    next_cursor: str | None
    next_deadline: Time | None


class Summary(Struct, frozen=True):
    """The number of an array's events by outcome."""

    received: int
    applied: int
    ignored: int
    duplicate: int
    stale: int
    early: int
    conflict: int


class BatchAnswer(Struct, frozen=True):
    """The results of an array's events, in the order sent."""

    summary: Summary
    results: list[Result]


class StreamSummary(Summary, frozen=True, omit_defaults=True):
    """The number of a stream's lines by outcome; `received` counts the lines that are not blank.

    `forbidden` is there only if the sender may not write the domains of some lines.
    """

    invalid: int
    forbidden: int = 0


class LineResult(Struct, frozen=True, kw_only=True):
    """The result of a stream's line that was not applied; `line` counts from 1.

    `outcome` is one of Outcome, or `invalid`: then the line is not an event; or `forbidden`: then the sender may not
    write events of its domain. `errors` says why.
    """

    line: int
    outcome: str
    reason: str | None = None
    errors: list[Fault] = []
    entity_id: UUID | None = None
    domain: str | None = None
    stands_at: Position | None = None


class Health(Struct, frozen=True):
    """The process is up."""

    status: str


class Ready(Health, frozen=True, omit_defaults=True):
    """The database answers, and its schema is the expected one.

    Only callers with `operations:read` are told the `revision`, and why the replica is not used.
    """

    revision: str | None = None
    read_database: str | None = None


class SnapshotProgress(Struct, frozen=True):
    """How far the rows are published to the topic of snapshots.

    Everything up to the change `change_id` is, null where nothing is yet. `bootstrapping` is true while all rows are
    being published, or are about to be; `rows` have been published by the last such bootstrap. `at_work` says whether
    somebody publishes now. `requested` counts the bootstraps that were asked for, the first one included.
    """

    topic: str
    change_id: int | None
    bootstrapping: bool
    rows: int
    begun_at: Time | None
    finished_at: Time | None
    at_work: bool
    requested: int


class WorkflowPage(Struct, frozen=True):
    """A page of workflows, oldest change first, and the cursor of the next one, null on the last."""

    items: list[Workflow]
    next_cursor: str | None


class Watermark(Struct, frozen=True):
    """The progress in a partition: every message up to `offset` is applied or is a dead letter.

    All messages that were in the partition at `as_of` are applied or dead letters. It is the later one of
    `message_at` and `caught_up_at`, null if neither is known. `caught_up_at` is the last time when the partition
    ended at `offset`. `message_at` is the time of the message at `offset`; if times went back, it is the newest time
    up to there, minus the largest step back. So it becomes older when a time goes back further than any before.
    `consumer` wrote the watermark last, at `updated_at`. At offset -1 nothing was read yet.
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
    """The progress in each partition."""

    items: list[Watermark]


class Header(Struct, frozen=True):
    """A header of a message: its value as text, or in base64 if it is not text."""

    name: str
    value: str | None
    value_base64: str | None


class DeadMessage(Struct, frozen=True):
    """A message that could not be applied or sent, and the reason.

    `source` is `consumer`, or `relay` for an outgoing message, which has no partition and offset. Key and value are
    given as text, or in base64 if they are not text.
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


class MessagePlace(Struct, frozen=True):
    """Where a message was read."""

    topic: str
    partition: int
    offset: int


class HeldEntity(Struct, frozen=True):
    """An entity that is held: `letter_id` is the dead letter that holds it, and `error` why.

    `messages` wait behind the letter. `passed` found no room there: they were applied, so the letter may be stale.
    `queue` is the path of this answer.
    """

    entity_id: UUID
    held_at: Time
    letter_id: int
    topic: str
    partition: int
    offset: int
    error: str
    messages: int
    passed: int
    queue: str


class HeldPage(Struct, frozen=True):
    """A page of held entities, in the order of their ids, and the cursor of the next one, null on the last."""

    items: list[HeldEntity]
    next_cursor: str | None


class QueueAnswer(Struct, frozen=True):
    """What became of a held entity's queue: the messages that were taken in, by outcome, and those that still wait.

    `skipped` is the message that was left out, null for none. At 0 `messages` the entity is held no longer.
    """

    entity_id: UUID
    summary: Summary
    skipped: MessagePlace | None
    messages: int


class LetterRun(Struct, frozen=True):
    """A bulk call over dead letters: how many matched at its beginning, and how many are done and failed.

    Letters that others removed meanwhile are done. `finished_at` is null until all are worked off.
    """

    id: UUID
    action: Literal["retry", "delete"]
    started_at: Time
    finished_at: Time | None
    matched: int
    done: int
    failed: int


class AuditEntry(Struct, frozen=True):
    """Who did what: written in the act's own transaction, and never changed.

    `principal` is who did it, `action` what (such as `dead-letters.retry`), `target` to what, `peer` from where.
    """

    id: int
    at: Time
    principal: str
    action: str
    target: str
    outcome: str
    correlation_id: str | None
    peer: str | None


class AuditPage(Struct, frozen=True):
    """A page of the audit log, newest first, and the cursor of the next one, null on the last."""

    items: list[AuditEntry]
    next_cursor: str | None


class ChangeItem(Struct, frozen=True, kw_only=True, tag="change", tag_field="kind", gc=False):
    """A change as it is answered, by the feed and by a history. `row` is there where it was asked for."""

    id: int
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
    stands_at: Position
    occurred_at: Time
    changed_at: Time
    correlation_id: UUID | None


class RowItem(Registration, frozen=True, tag="row", tag_field="kind"):
    """A row in a snapshot."""


class ChangesPage(Struct, frozen=True):
    """Changes, and within a snapshot rows, in an order that is right for each entity.

    `next` is the token to go on with, also where there are no items. `caught_up`: nothing more is known.
    """

    items: list[ChangeItem | RowItem]
    next: str
    caught_up: bool


class EntityHistory(Struct, frozen=True):
    """A page of one entity's changes, and the cursor of the next one, null on the last.

    `complete` is false where the log does not go back to the entity's beginning.
    """

    items: list[ChangeItem]
    next_cursor: str | None
    complete: bool


class EventRecord(Struct, frozen=True):
    """What there is of an event: the changes that it made, and the rows that stand at it now."""

    event_id: UUID
    changes: list[ChangeItem]
    rows: list[Registration]


class Erased(Struct, frozen=True):
    """How much an erasing forget has removed: changes that were emptied, dead letters, and outgoing messages."""

    changes: int
    dead_letters: int
    messages: int


class ForgetAnswer(Struct, frozen=True):
    """The tombstone of a forgotten entity; `erased` is null where nothing was to be erased.

    An event up to `stands_at` is stale. A later one is ignored, unless it begins a registration and occurred after
    `forgotten_at`; where `permanent` is true, in any case.
    """

    entity_id: UUID
    domain: str
    forgotten_at: Time
    permanent: bool
    version: int
    stands_at: Position
    erased: Erased | None


class DeregisterAnswer(Struct, frozen=True):
    """An eviction: `applied`, or `ignored` with the reason where the node's state has no registration to end.

    `events` lists the event that followed; an ignored eviction leaves the row as it is, its version included.
    """

    entity_id: UUID
    domain: str
    outcome: Literal["applied", "ignored"]
    reason: str | None
    current_state: RegistrationState
    version: int
    stands_at: Position
    events: list[EmittedEvent]
