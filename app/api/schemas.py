"""Requests: query parameters and bodies. Answers are in `app/wire/answers.py`."""

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta, Struct
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from app.api.queries import with_plus
from app.domain.events import DEFAULT_DOMAIN, Reason, Time
from app.domain.positions import MAX_NUMBER, Position
from app.domain.states import RegistrationState
from app.domain.workflows import MAX_KEY, MAX_STATE, SchemaVersion, State
from app.store.history import Clock, Order
from app.store.workflow_lists import ListOrder
from app.wire.answers import DeadLetterSource
from app.wire.events import EARLIEST, LATEST
from app.wire.values import cut, integer_of

MAX_LIMIT = 1000  # rows in a page
DEFAULT_LIMIT = 100
MAX_LOOKUP = 1000  # entity ids in one lookup
MAX_WAIT = 60  # seconds
MAX_FOLLOWED = 100  # entity ids in one filter
MAX_PARTITIONS = 100  # partitions that a read waits for
# The beginning of a UUID: 1 to 32 digits, without dashes or with all of them.
ID_PREFIX = (
    "^(?:[0-9A-Fa-f]{1,32}|[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{0,4}|[0-9A-Fa-f]{4}-(?:[0-9A-Fa-f]{0,4}|[0-9A-Fa-f]{4}-"
    "(?:[0-9A-Fa-f]{0,4}|[0-9A-Fa-f]{4}-[0-9A-Fa-f]{0,12}))))$"
)
OFFSET = r"^[A-Za-z0-9._-]{1,249}-[0-9]{1,9}:[0-9]{1,18}$"  # a topic, a partition of it, and an offset


# --- Requests: query parameters, read by FastAPI -------------------------------------------------------------------


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a string here holds NUL, which PostgreSQL cannot store")
    return value


def _instant(value: object) -> datetime:
    """A time in UTC, read by the rules for events; pydantic's own would accept 1700000000."""
    try:
        time = msgspec.convert(cut(with_plus(value)) if isinstance(value, str) else value, Time)
    except msgspec.ValidationError:
        raise ValueError("a time with a zone was expected, such as 2026-01-01T00:00:00Z") from None
    if not EARLIEST <= time <= LATEST:
        raise ValueError("a time lies in the years 1900 to 9998, in UTC")
    return time.astimezone(UTC)


def _cut(value: object) -> object:
    """A limit; a larger value is cut to MAX_LIMIT."""
    if not isinstance(value, str):
        return value
    number = int(value.lstrip("0")[:20] or "0") if value.isascii() and value.isdigit() else integer_of(value.encode())
    if number is None or number < 0:
        raise ValueError("an integer of at least 1 was expected")
    return min(number, MAX_LIMIT)


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


class FreshQuery(DomainQuery):
    """A read that may wait until everything up to some offsets is applied."""

    wait: (
        Annotated[
            float,
            Field(
                ge=0, le=MAX_WAIT, description="How many seconds to wait for the conditions; it wins over `Prefer`."
            ),
        ]
        | None
    ) = None
    min_offset: Annotated[
        list[Annotated[str, Field(pattern=OFFSET)]],
        Field(
            max_length=MAX_PARTITIONS,
            description="`<topic>-<partition>:<offset>`: with everything applied up to this offset; may be repeated.",
        ),
    ] = []
    late: (
        Annotated[
            Literal["stale"],
            Field(description="Answer what there is, with `PQS-Late: true`, where 504 would be the answer."),
        ]
        | None
    ) = None


class RowQuery(FreshQuery):
    """A read of one entity that may wait for its row."""

    after_version: (
        Annotated[int, Field(ge=0, le=MAX_NUMBER, description="With a version above this one; else 304.")] | None
    ) = None
    until: Annotated[
        list[RegistrationState],
        Field(
            description="When the entity is in this state, or has passed through it since `after_version`, or since "
            "the call began; may be repeated for any of several."
        ),
    ] = []
    min_sequence: (
        Annotated[int, Field(ge=0, le=MAX_NUMBER, description="With everything applied up to this sequence.")] | None
    ) = None


class MomentQuery(RowQuery):
    """A query for one entity: as it is, as it will be, or as it was at a moment."""

    as_of: (
        Annotated[
            Instant,
            Field(
                description="As it was at this time. Needs the change log; for the whole row also PQS_CHANGES_ROWS."
            ),
        ]
        | None
    ) = None
    clock: Annotated[
        Clock,
        Field(
            description="What `as_of` is compared with: when the service stored a change (`known`), or when it "
            "happened (`occurred`)."
        ),
    ] = Clock.KNOWN


class ChangesQuery(DomainQuery):
    """Which changes are followed, and from where on."""

    after: (
        Annotated[
            str,
            Field(
                description="`next` of the answer before: begin after it. `now`: with the next change. `start`, or "
                "left out: with the oldest change that is kept."
            ),
        ]
        | None
    ) = None
    wait: Annotated[
        float, Field(ge=0, le=MAX_WAIT, description="How many seconds to wait for a change where there is none.")
    ] = 0
    limit: Limit = DEFAULT_LIMIT
    entity_id: Annotated[
        list[UUID], Field(max_length=MAX_FOLLOWED, description="Of one of these entities; may be repeated.")
    ] = []
    state: Annotated[
        list[RegistrationState],
        Field(description="In one of these states before the change or after it; may be repeated."),
    ] = []
    node_type: Annotated[Text, Field(description="Of this node type.")] | None = None
    type: Annotated[list[Text], Field(description="By an event of one of these types; may be repeated.")] = []
    include: Annotated[Literal["row"], Field(description="Each change with the row after it.")] | None = None
    snapshot: Annotated[
        bool, Field(description="Begin with a snapshot: all rows by key, then the changes since. Follow `next`.")
    ] = False


class PageQuery(FreshQuery):
    """A query for a page of a domain."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


class HistoryQuery(PageQuery):
    """A query for a page of an entity's history."""

    order: Annotated[Order, Field(description="`asc`: the oldest change first; `desc`: the newest.")] = Order.ASC


class RowsQuery(BaseModel):
    """A query for a page of a list without domains."""

    model_config = ConfigDict(extra="forbid")

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


class LetterFilterQuery(BaseModel):
    """The filters of dead letters: a letter matches when it matches all of them."""

    model_config = ConfigDict(extra="forbid")

    source: (
        Annotated[
            DeadLetterSource,
            Field(description="Messages that came in (`consumer`), or that were to go out (`relay`)."),
        ]
        | None
    ) = None
    topic: Annotated[Text, Field(min_length=1, max_length=300, description="Messages of this topic.")] | None = None
    error: (
        Annotated[Text, Field(min_length=1, max_length=300, description="Messages whose `error` contains this text.")]
        | None
    ) = None
    entity_id: Annotated[UUID, Field(description="Incoming messages about this entity.")] | None = None
    since: Annotated[Instant, Field(description="Messages that failed at this time or later.")] | None = None


class LettersQuery(LetterFilterQuery):
    """A query for a page of dead letters."""

    order: Annotated[Order, Field(description="`asc`: the oldest letter first; `desc`: the newest.")] = Order.ASC
    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


class WorkflowQuery(BaseModel):
    """A query for a page of workflows."""

    model_config = ConfigDict(extra="forbid")

    order: Annotated[
        ListOrder,
        Field(
            description="`oldest`: the oldest change first; `newest`: the newest change first; `key`: by key, in the "
            "order of its bytes in UTF-8."
        ),
    ] = ListOrder.OLDEST
    key_prefix: (
        Annotated[Text, Field(min_length=1, max_length=MAX_KEY, description="Rows whose keys begin with this.")]
        | None
    ) = None
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
    id_prefix: (
        Annotated[
            str,
            Field(
                max_length=36,
                pattern=ID_PREFIX,
                description="Rows whose id begins with this: hexadecimal digits, with a UUID's dashes or without.",
            ),
        ]
        | None
    ) = None
    event_id: Annotated[UUID, Field(description="Rows whose last applied event is this one.")] | None = None
    updated_before: (
        Annotated[Instant, Field(description="Rows whose `updated_at` is before this, such as stuck nodes.")] | None
    ) = None
    updated_since: Annotated[Instant, Field(description="Rows whose `updated_at` is this or later.")] | None = None


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


class Forget(Struct, forbid_unknown_fields=True):
    """How an entity is to be forgotten. All may be left out, and so may the body."""

    reason: Reason | None = None
    erase: bool = False
    permanent: bool = False
    position: Position | None = None


class Deregister(Struct, forbid_unknown_fields=True):
    """Why a node is evicted. It may be left out, and so may the body."""

    reason: Reason | None = None


class WorkflowCommit(Struct, forbid_unknown_fields=True):
    """The next state of a workflow, and its provenance."""

    state: Annotated[
        State, Meta(description=f"A JSON object that is not empty, of at most {MAX_STATE:,} bytes when compact.")
    ]
    provenance: Annotated[dict[str, object], Meta(extra_json_schema={"$ref": "#/components/schemas/Provenance"})]
    schema_version: SchemaVersion = 1


encode = msgspec.json.encode
