"""Lists: the registrations of a domain that match a filter, page by page. Tombstones are in no list."""

import functools
from datetime import datetime
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    String,
    Uuid,
    bindparam,
    select,
    union_all,
)

from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.store.database import Connection
from app.store.registrations import REGISTRATIONS
from app.store.statements import Statement
from app.store.tables import REGISTRATION_STATE

AT_ONCE = 100  # rows that are fetched in one go; each may have 64 KiB of capabilities


class EntityFilter(Struct, frozen=True, kw_only=True):
    """The filter of a list. None, and no states, match any row of the domain."""

    domain: str
    states: tuple[RegistrationState, ...] = ()
    node_type: str | None = None
    capabilities: dict[str, object] | None = None
    event_id: UUID | None = None
    updated_before: datetime | None = None
    updated_since: datetime | None = None
    ids: tuple[UUID, UUID] | None = None  # the first and the last


_table, _columns = REGISTRATIONS.rows.table, REGISTRATIONS.rows.columns

# The conditions that a list may have besides its domain and states, by the names of their parameters.
_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "after": _table.c.entity_id > bindparam("after", type_=Uuid()),
    "node_type": _table.c.node_type == bindparam("node_type", type_=String()),
    "first": _table.c.entity_id >= bindparam("first", type_=Uuid()),
    "last": _table.c.entity_id <= bindparam("last", type_=Uuid()),
    "updated_since": _table.c.updated_at >= bindparam("updated_since", type_=_table.c.updated_at.type),
    "updated_before": _table.c.updated_at < bindparam("updated_before", type_=_table.c.updated_at.type),
    "capabilities": _table.c.capabilities.contains(bindparam("capabilities", type_=_table.c.capabilities.type)),
    "event_id": _table.c.last_applied_event_id == bindparam("event_id", type_=Uuid()),
}
_FINDING_FEW = {"capabilities", "event_id"}  # each has an index of its own


@functools.cache
def list_statement(conditions: frozenset[str], states: int) -> Statement:
    """The statement for a page of a domain's rows in `states` states, in the order of entity ids.

    A list by domain or state merges one page of each state. Each is read from the same index, in order and only as
    far as needed, so the cost is that of a page, in any domain. A capability or an event id has an index of its own,
    which finds the few rows first.
    """
    found = [_table.c.domain == bindparam("domain", type_=String()), REGISTRATIONS.rows.is_present]
    found += [condition for name, condition in _CONDITIONS.items() if name in conditions]
    limit = bindparam("limit", type_=BigInteger())
    wanted = [bindparam(f"state{number}", type_=REGISTRATION_STATE) for number in range(states)]
    pages = [
        select(*_columns).where(*found, _table.c.current_state.in_(some)).order_by(_table.c.entity_id).limit(limit)
        for some in ([wanted] if conditions & _FINDING_FEW else [[state] for state in wanted])
    ]
    if len(pages) == 1:
        return Statement(pages[0])
    page = union_all(*pages).subquery("page")
    return Statement(select(*page.c).order_by(page.c.entity_id).limit(limit))


async def get_by_state(
    connection: Connection, wanted: EntityFilter, *, after: UUID | None, limit: int
) -> tuple[list[Registration], bool]:
    """The first rows that match the filter, in the order of entity ids, after the id `after` if given.

    They are up to `limit`, and about PAGE_BYTES of JSON; the second value says whether more follow.
    """
    capabilities = None if wanted.capabilities is None else msgspec.json.encode(wanted.capabilities).decode()
    first, last = (None, None) if wanted.ids is None else wanted.ids
    given: dict[str, object] = {
        "after": after,
        "first": first,
        "last": last,
        "updated_since": wanted.updated_since,
        "node_type": wanted.node_type,
        "updated_before": wanted.updated_before,
        "capabilities": capabilities,
        "event_id": wanted.event_id,
    }
    given = {name: value for name, value in given.items() if value is not None}
    states = list(dict.fromkeys(wanted.states or RegistrationState))
    statement = list_statement(frozenset(given), len(states))
    given |= {f"state{number}": state for number, state in enumerate(states)}
    rows = REGISTRATIONS.rows
    records, more = await statement.page(
        connection, limit=limit, at_once=AT_ONCE, json=rows.json_places, domain=wanted.domain, **given
    )
    return [rows.row(record) for record in records], more
