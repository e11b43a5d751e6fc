"""What is asked: query parameters and bodies. What is answered is in `app/answers.py`."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta, Struct
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from app.domain.events import DEFAULT_DOMAIN, Time
from app.domain.states import RegistrationState
from app.domain.workflows import MAX_STATE, SchemaVersion, State
from app.wire.events import EARLIEST, LATEST

MAX_LIMIT = 1000  # rows in a page
DEFAULT_LIMIT = 100
MAX_LOOKUP = 1000  # entity ids in one lookup


# --- Questions: query parameters, read by FastAPI ------------------------------------------------------------------


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a string here holds NUL, which PostgreSQL cannot keep")
    return value


def _instant(value: object) -> datetime:
    """A time, read as those in events are (pydantic alone would take 1700000000 for one), in UTC."""
    try:
        time = msgspec.convert(value, Time)
    except msgspec.ValidationError:
        raise ValueError("a time with a zone was expected, such as 2026-01-01T00:00:00Z") from None
    if not EARLIEST <= time <= LATEST:
        raise ValueError("a time lies in the years 1900 to 9998, in UTC")
    return time.astimezone(UTC)


def _cut(value: object) -> object:
    """A limit; one that is too large is cut."""
    if not isinstance(value, str):
        return value
    if not (value.isascii() and value.isdigit()):
        raise ValueError("an integer from 1 on was expected")
    return min(int(value.lstrip("0")[:20] or "0"), MAX_LIMIT)


Text = Annotated[str, AfterValidator(_no_nul)]
Instant = Annotated[datetime, BeforeValidator(_instant)]
Limit = Annotated[
    int,
    Field(ge=1, description=f"How many rows a page has at most; more than {MAX_LIMIT:,} is cut to that."),
    BeforeValidator(_cut),
]
Cursor = Annotated[str, Field(description="`next_cursor` of the page before this one, beside the same filters.")]


class DomainQuery(BaseModel):
    """Which domain is asked for. Parameters that are not known are refused."""

    model_config = ConfigDict(extra="forbid")

    domain: Annotated[Text, Field(min_length=1, max_length=128, description="The domain of the entities.")] = (
        DEFAULT_DOMAIN
    )


class PageQuery(DomainQuery):
    """Which page of a list."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


class RowsQuery(BaseModel):
    """Which page of a list that knows no domains."""

    model_config = ConfigDict(extra="forbid")

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


class WorkflowQuery(BaseModel):
    """Which page of the workflows."""

    model_config = ConfigDict(extra="forbid")

    updated_since: (
        Annotated[
            Instant,
            Field(
                description="The row's `updated_at` is this or later. Poll from the last one seen, less the "
                "statement time-out: commits can overtake each other."
            ),
        ]
        | None
    ) = None
    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


class EntityQuery(PageQuery):
    """Which entities a list has."""

    state: Annotated[list[RegistrationState], Field(description="One of these states; may be repeated.")] = []
    node_type: Annotated[Text, Field(description="This node type.")] | None = None
    capability: Annotated[
        list[Text], Field(description='`{"<name>": true}` is contained in the capabilities; may be repeated.')
    ] = []
    capabilities: Annotated[Text, Field(description="A JSON object to be contained in the capabilities.")] | None = (
        None
    )
    event_id: Annotated[UUID, Field(description="The event that the row took in last.")] | None = None
    updated_before: (
        Annotated[Instant, Field(description="The row's `updated_at` is before this: nodes that are stuck.")] | None
    ) = None


class OverdueQuery(PageQuery):
    """Which overdue entities."""

    as_of: (
        Annotated[
            Instant,
            Field(description="The moment to ask about, else the database's clock; a cursor keeps the first page's."),
        ]
        | None
    ) = None


class EventsQuery(BaseModel):
    """How events are taken in."""

    model_config = ConfigDict(extra="forbid")

    dry_run: Annotated[bool, Field(description="Tell the outcomes and write nothing.")] = False


class NoQuery(BaseModel):
    """A call that takes no query parameters."""

    model_config = ConfigDict(extra="forbid")


class Lookup(Struct, forbid_unknown_fields=True):
    """Which entities to look up."""

    entity_ids: Annotated[list[UUID], Meta(max_length=MAX_LOOKUP)]


class WorkflowCommit(Struct, forbid_unknown_fields=True):
    """The next state of a workflow, and where it comes from."""

    state: Annotated[State, Meta(description=f"At most {MAX_STATE:,} bytes as compact JSON.")]
    provenance: Annotated[dict[str, object], Meta(extra_json_schema={"$ref": "#/components/schemas/Provenance"})]
    schema_version: SchemaVersion = 1


encode = msgspec.json.encode
