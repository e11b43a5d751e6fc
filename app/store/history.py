"""What the change log says about one entity, and about one event: every statement of histories."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import cast
from uuid import UUID

from msgspec import Struct
from sqlalchemy import ARRAY, BigInteger, ColumnElement, String, Table, Uuid, any_, bindparam, null, or_, select, text
from sqlalchemy.dialects.postgresql import TIMESTAMP

from app.domain.registration import Registration
from app.store.changes import COLUMNS, Logged, logged
from app.store.database import Connection
from app.store.registrations import REGISTRATIONS
from app.store.statements import Statement
from app.store.tables import ChangeRow

# Not quoted: vulture would take the import for unused.
_table = cast(Table, ChangeRow.__table__)  # noqa: TC006
_LIMIT = bindparam("limit", type_=BigInteger())
_OF_ENTITY = (
    _table.c.entity_id == bindparam("of_entity", type_=Uuid()),
    _table.c.domain == bindparam("of_domain", type_=String()),
)
# A row may have 64 KiB, and a page 1,000 changes.
_WITHOUT_ROW = (*COLUMNS[:-1], null())

MAX_OF_EVENT = 100  # changes that one event id has, and rows that stand at it: ids need not be unique


class Clock(StrEnum):
    """Which time of a change counts."""

    KNOWN = "known"  # when the service stored it
    OCCURRED = "occurred"  # when it happened


class Order(StrEnum):
    """The order of a history."""

    ASC = "asc"  # oldest first
    DESC = "desc"


# --- One entity ----------------------------------------------------------------------------------------------------

# An entity's changes after a place, the oldest first, and before one, the newest first. The index has them in order.
PAGES = {
    Order.ASC: Statement(
        select(*_WITHOUT_ROW)
        .where(*_OF_ENTITY, _table.c.id > bindparam("place", type_=BigInteger()))
        .order_by(_table.c.id)
        .limit(_LIMIT)
    ),
    Order.DESC: Statement(
        select(*_WITHOUT_ROW)
        .where(*_OF_ENTITY, _table.c.id < bindparam("place", type_=BigInteger()))
        .order_by(_table.c.id.desc())
        .limit(_LIMIT)
    ),
}
_ENDS = {Order.ASC: -1, Order.DESC: 2**63 - 1}  # the places before all and after all


async def page(
    connection: Connection, entity_id: UUID, domain: str, *, order: Order, place: int | None, limit: int
) -> tuple[list[Logged], bool]:
    """Up to `limit` changes of an entity beyond the change `place`, and whether more follow. Their `row` is None."""
    place = _ENDS[order] if place is None else place
    rows = await PAGES[order].rows(connection, of_entity=entity_id, of_domain=domain, place=place, limit=limit + 1)
    return [logged(row) for row in rows[:limit]], len(rows) > limit


async def oldest(connection: Connection, entity_id: UUID, domain: str) -> Logged | None:
    """The first change of an entity that the log still has, without its row."""
    found, _ = await page(connection, entity_id, domain, order=Order.ASC, place=None, limit=1)
    return found[0] if found else None


def _at(column: ColumnElement[datetime]) -> Statement:
    as_of = bindparam("as_of", type_=TIMESTAMP(timezone=True))
    return Statement(select(*COLUMNS).where(*_OF_ENTITY, column <= as_of).order_by(_table.c.id.desc()).limit(1))


# An entity's last change up to a moment, by either clock. The changes after it are read and passed over.
AT = {Clock.KNOWN: _at(_table.c.changed_at), Clock.OCCURRED: _at(_table.c.occurred_at)}


async def at(connection: Connection, entity_id: UUID, domain: str, as_of: datetime, clock: Clock) -> Logged | None:
    """The last change of an entity, in the order of its versions, that the clock puts at `as_of` or before."""
    rows = await AT[clock].rows(connection, of_entity=entity_id, of_domain=domain, as_of=as_of)
    return logged(rows[0]) if rows else None


# Since when the log is complete: since what was removed from it, or else since its first change.
BEGAN = Statement(
    text("""
SELECT coalesce(
    (SELECT max(changed_at) FROM changes_floor),
    (SELECT changed_at FROM changes ORDER BY id LIMIT 1),
    now()
)
""")
)


async def began(connection: Connection) -> datetime:
    """Since when the log is complete."""
    return cast("datetime", await BEGAN.value(connection))


# --- One event -----------------------------------------------------------------------------------------------------


class OfEvent(Struct, frozen=True):
    """The changes that an event made, and the rows that stand at it."""

    changes: Sequence[Logged]
    rows: Sequence[Registration]


def _readable(domain: ColumnElement[str]) -> ColumnElement[bool]:
    domains = bindparam("domains", type_=ARRAY(String()))
    return or_(domains.is_(None), domain == any_(domains))


_event = bindparam("of_event", type_=Uuid())
_standing = REGISTRATIONS.rows.table

# The changes that an event made.
BY_EVENT = Statement(
    select(*_WITHOUT_ROW)
    .where(_table.c.event_id == _event, _readable(_table.c.domain))
    .order_by(_table.c.id)
    .limit(_LIMIT)
)

# The rows that stand at an event.
STANDING = Statement(
    select(*REGISTRATIONS.rows.columns)
    .where(_standing.c.last_applied_event_id == _event, _readable(_standing.c.domain))
    .limit(_LIMIT)
)


async def of_event(connection: Connection, event_id: UUID, domains: Sequence[str] | None) -> OfEvent:
    """What there is of an event in these domains, None for all: up to MAX_OF_EVENT changes and as many rows."""
    given = {"of_event": event_id, "domains": None if domains is None else list(domains), "limit": MAX_OF_EVENT}
    changes = await BY_EVENT.rows(connection, **given)
    rows = await STANDING.rows(connection, **given)
    return OfEvent([logged(row) for row in changes], [REGISTRATIONS.rows.row(row) for row in rows])
