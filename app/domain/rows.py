"""The columns that the row of every projection has, and how a row records an event."""

from datetime import datetime
from typing import Any, ClassVar, Protocol, TypeVar, cast
from uuid import UUID

from msgspec.structs import replace

from app.domain.events import EventBase
from app.domain.positions import Position


class Row(Protocol):
    """The row of one entity, a frozen msgspec Struct whose fields are the table's columns in their order."""

    __struct_fields__: ClassVar[tuple[str, ...]]

    @property
    def entity_id(self) -> UUID:
        """With `domain`, the primary key."""

    @property
    def domain(self) -> str:
        """With `entity_id`, the primary key."""

    @property
    def last_applied_event_id(self) -> UUID:
        """The last event that the row recorded."""

    @property
    def position(self) -> Position:
        """The position of that event: the columns `last_applied_partition`, `last_applied_offset`,
        `last_applied_sequence`."""

    @property
    def updated_at(self) -> datetime:
        """The time at which the last recorded event occurred."""

    @property
    def correlation_id(self) -> UUID | None:
        """That event's correlation id."""

    @property
    def version(self) -> int:
        """Counts the changes of the row, from 1."""


R = TypeVar("R", bound=Row)


def record(row: R, event: EventBase, **changes: object) -> R:
    """The row with `changes`, and with `event` recorded in it. An ignored event is recorded without changes."""
    recorded = replace(
        cast("Any", row),
        last_applied_event_id=event.event_id,
        last_applied_partition=event.position.partition,
        last_applied_offset=event.position.offset,
        last_applied_sequence=event.position.sequence,
        correlation_id=event.correlation_id,
        updated_at=event.occurred_at,
        version=row.version + 1,
        **changes,
    )
    return cast("R", recorded)


def moved(row: R, position: Position) -> R:
    """The row on another track: only its position and version change."""
    on_track = replace(
        cast("Any", row),
        last_applied_partition=position.partition,
        last_applied_offset=position.offset,
        last_applied_sequence=position.sequence,
        version=row.version + 1,
    )
    return cast("R", on_track)
