"""Requests and answers. Answers are encoded from these types, and the OpenAPI document is written from them."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from app.domain.events import DEFAULT_DOMAIN, Time
from app.domain.folding import Followed
from app.domain.positions import Position
from app.domain.registration import Outcome, Registration
from app.domain.states import RegistrationState
from app.domain.workflows import MAX_STATE, SchemaVersion, State, Workflow
from app.errors import Fault
from app.store.dead_letters import Source
from app.store.watermarks import Watermark
from app.wire.events import EARLIEST, LATEST

MAX_LIMIT = 1000  # rows in a page
DEFAULT_LIMIT = 100
MAX_LOOKUP = 1000  # entity ids in one lookup


# --- Requests: query parameters, read by FastAPI -------------------------------------------------------------------


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a string here holds NUL, which PostgreSQL cannot store")
    return value


def _instant(value: object) -> datetime:
    """A time in UTC, read by the rules for events; pydantic's own would accept 1700000000."""
    try:
        time = msgspec.convert(value, Time)
    except msgspec.ValidationError:
        raise ValueError("a time with a zone was expected, such as 2026-01-01T00:00:00Z") from None
    if not EARLIEST <= time <= LATEST:
        raise ValueError("a time lies in the years 1900 to 9998, in UTC")
    return time.astimezone(UTC)


def _cut(value: object) -> object:
    """A limit; a larger value is cut to MAX_LIMIT."""
    if not isinstance(value, str):
        return value
    if not (value.isascii() and value.isdigit()):
        raise ValueError("an integer of at least 1 was expected")
    return min(int(value.lstrip("0")[:20] or "0"), MAX_LIMIT)


Text = Annotated[str, AfterValidator(_no_nul)]
Instant = Annotated[datetime, BeforeValidator(_instant)]
Limit = Annotated[
    int,
    Field(ge=1, description=f"The most rows of a page; a value above {MAX_LIMIT:,} is cut to it."),
    BeforeValidator(_cut),
]
Cursor = Annotated[str, Field(description="`next_cursor` of the page before this one, sent with the same filters.")]


class DomainQuery(BaseModel):
    """A query for one domain. Unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")

    domain: Annotated[Text, Field(min_length=1, max_length=128, description="The domain of the entities.")] = (
        DEFAULT_DOMAIN
    )


class PageQuery(DomainQuery):
    """A query for a page of a domain."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


class RowsQuery(BaseModel):
    """A query for a page of a list without domains."""

    model_config = ConfigDict(extra="forbid")

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


class WorkflowQuery(BaseModel):
    """A query for a page of workflows."""

    model_config = ConfigDict(extra="forbid")

    updated_since: (
        Annotated[
            Instant,
            Field(
                description="Rows whose `updated_at` is this or later. Poll from the last one seen minus the "
                "statement timeout: commits can overtake each other."
            ),
        ]
        | None
    ) = None
    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


class EntityQuery(PageQuery):
    """A query for a page of entities."""

    state: Annotated[list[RegistrationState], Field(description="Rows in this state; repeat it for several.")] = []
    node_type: Annotated[Text, Field(description="Rows with this node type.")] | None = None
    capability: Annotated[
        list[Text], Field(description='Rows whose capabilities contain `{"<name>": true}`; repeat it for several.')
    ] = []
    capabilities: Annotated[Text, Field(description="Rows whose capabilities contain this JSON object.")] | None = (
        None
    )
    event_id: Annotated[UUID, Field(description="Rows whose last applied event is this one.")] | None = None
    updated_before: (
        Annotated[Instant, Field(description="Rows whose `updated_at` is before this, such as stuck nodes.")] | None
    ) = None


class OverdueQuery(PageQuery):
    """A query for a page of overdue entities."""

    as_of: (
        Annotated[
            Instant,
            Field(description="Compare deadlines with this time; default: the database's clock, kept in the cursor."),
        ]
        | None
    ) = None


class EventsQuery(BaseModel):
    """A query to send events."""

    model_config = ConfigDict(extra="forbid")

    dry_run: Annotated[bool, Field(description="Answer the outcomes, but write nothing.")] = False


class NoQuery(BaseModel):
    """A call that takes no query parameters."""

    model_config = ConfigDict(extra="forbid")


class Lookup(Struct, forbid_unknown_fields=True):
    """The ids of the entities to look up."""

    entity_ids: Annotated[list[UUID], Meta(max_length=MAX_LOOKUP)]


class WorkflowCommit(Struct, forbid_unknown_fields=True):
    """The next state of a workflow, and its provenance."""

    state: Annotated[State, Meta(description=f"At most {MAX_STATE:,} bytes as compact JSON.")]
    provenance: Annotated[dict[str, object], Meta(extra_json_schema={"$ref": "#/components/schemas/Provenance"})]
    schema_version: SchemaVersion = 1


# --- Answers -------------------------------------------------------------------------------------------------------


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
    counts: dict[str, int]
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

    received: int = 0
    applied: int = 0
    ignored: int = 0
    duplicate: int = 0
    stale: int = 0
    early: int = 0
    conflict: int = 0


class StreamSummary(Summary, frozen=True):
    """How many lines of a stream had which outcome; `received` counts the lines that were not blank."""

    invalid: int = 0


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
    source: Source
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


class OrderProblem(Struct, frozen=True):
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
    events: list[Followed] | UnsetType = UNSET


class InterruptedProblem(Struct, frozen=True):
    """The database failed in the middle of a stream, as a problem (RFC 9457): send the lines after these again."""

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


encode = msgspec.json.encode
