"""Every statement over `registration_projections`, and row ↔ Registration beside it.

Each statement is built from the columns of the table, so that a new column needs no change here.
"""

import functools
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import cast
from uuid import UUID

from msgspec import Struct
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    FromClause,
    Row,
    Select,
    String,
    Table,
    Uuid,
    bindparam,
    column,
    func,
    select,
    text,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP, insert

from app.domain.positions import Comparison, Position, compare
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.store.database import Connection, LostRaceError
from app.store.tables import ACK_DUE, LIVENESS_DUE, REGISTRATION_STATE, RegistrationProjection

Key = tuple[UUID, str]  # entity_id, domain


class Save(Struct, frozen=True):
    """A row to write, and the version that was read before it: None when there was no row."""

    registration: Registration
    read_version: int | None


class EntityFilter(Struct, frozen=True, kw_only=True):
    """Which rows of a domain a list has. None, and no states, mean any."""

    domain: str
    states: tuple[RegistrationState, ...] = ()
    node_type: str | None = None
    capabilities: dict[str, object] | None = None
    event_id: UUID | None = None
    updated_before: datetime | None = None


DueKey = tuple[datetime, UUID]  # deadline, entity_id: the order of an overdue scan


class Overdue(Struct, frozen=True):
    """A page of an overdue scan: the rows, and the earliest deadline that has not passed."""

    items: list[Registration]
    next_deadline: datetime | None


_table = cast(Table, RegistrationProjection.__table__)  # noqa: TC006 - quoted, vulture takes the import for unused
_columns = tuple(_table.c)
_keys = (_table.c.entity_id, _table.c.domain)


def _registration(row: Row[tuple[object, ...]]) -> Registration:
    """A row of all columns, in their order, as a Registration."""
    return Registration(*row)  # type: ignore[call-arg, arg-type]  # the fields are the columns; a test compares them


def _arrays(*columns: ColumnElement[object], name: str) -> FromClause:
    """A table with a row for each item of the arrays, which are bound by the columns' names and an `s`."""
    arrays = (bindparam(f"{c.key}s", type_=ARRAY(c.type)) for c in columns)
    derived = func.unnest(*arrays).table_valued(*(column(str(c.key), c.type) for c in columns), name=name)
    return derived.render_derived()


# --- Point reads -----------------------------------------------------------------------------------------------

# The rows of some entities of one domain: what point reads and lookups are.
_READ = select(*_columns).where(
    _table.c.entity_id == func.any(bindparam("entity_ids", type_=ARRAY(Uuid()))),
    _table.c.domain == bindparam("domain", type_=String()),
)

# The state of one entity, and nothing else.
_READ_STATE = select(_table.c.current_state).where(
    _table.c.entity_id == bindparam("entity_id", type_=Uuid()),
    _table.c.domain == bindparam("domain", type_=String()),
)


async def get_entity_states(
    connection: Connection, entity_ids: Iterable[UUID], domain: str
) -> dict[UUID, Registration]:
    """The registrations of those entities that have one."""
    rows = await connection.execute(_READ, {"entity_ids": list(entity_ids), "domain": domain})
    return {registration.entity_id: registration for registration in map(_registration, rows)}


async def get_entity_state(connection: Connection, entity_id: UUID, domain: str) -> Registration | None:
    """The registration of one entity, or None."""
    return (await get_entity_states(connection, [entity_id], domain)).get(entity_id)


async def get_registration_status(connection: Connection, entity_id: UUID, domain: str) -> RegistrationState | None:
    """The state of one entity, or None."""
    state: RegistrationState | None = await connection.scalar(_READ_STATE, {"entity_id": entity_id, "domain": domain})
    return state


async def is_stale(connection: Connection, entity_id: UUID, domain: str, position: Position) -> bool:
    """Whether `position` is behind its entity's row. Nothing is written; without a row nothing is behind it."""
    registration = await get_entity_state(connection, entity_id, domain)
    return registration is not None and compare(position, registration.position) is Comparison.LOWER


# --- The ordered upsert ----------------------------------------------------------------------------------------

_asked = _arrays(*_keys, name="asked")
_new = _arrays(*_columns, cast("ColumnElement[object]", column("read_version", BigInteger())), name="new")

# The rows that a batch is folded onto, in the order of their keys.
_READ_KEYS = (
    select(*_columns)
    .join(_asked, (_table.c.entity_id == _asked.c.entity_id) & (_table.c.domain == _asked.c.domain))
    .order_by(*_keys)
)

# The same, each row locked before the next: two batches that share rows wait for each other instead of deadlocking.
_LOCK_KEYS = _READ_KEYS.with_for_update(of=_table)

# New rows. One that somebody else has inserted since is left alone, and missing in the count.
_INSERT = (
    insert(_table)
    .from_select(_columns, select(*(_new.c[c.key] for c in _columns)))
    .on_conflict_do_nothing(index_elements=_keys)
)

# Known rows, guarded by the version that was read. One that has moved on is left alone, and missing in the count.
_UPDATE = (
    update(_table)
    .where(
        _table.c.entity_id == _new.c.entity_id,
        _table.c.domain == _new.c.domain,
        _table.c.version == _new.c.read_version,
    )
    .values({c: _new.c[c.key] for c in _columns if not c.primary_key})
)


async def read_for_fold(connection: Connection, keys: Iterable[Key], *, lock: bool) -> dict[Key, Registration]:
    """The rows that a batch is folded onto, by key; locked until the transaction ends when `lock`."""
    ordered = sorted(keys)
    rows = await connection.execute(
        _LOCK_KEYS if lock else _READ_KEYS,
        {"entity_ids": [entity_id for entity_id, _ in ordered], "domains": [domain for _, domain in ordered]},
    )
    return {(registration.entity_id, registration.domain): registration for registration in map(_registration, rows)}


async def save(connection: Connection, saves: Iterable[Save]) -> None:
    """Write the rows, in the order of their keys, known ones before new ones.

    Raises LostRaceError when a row is not as it was read; the transaction is then to be rolled back, because the
    other rows are written already.
    """
    ordered = sorted(saves, key=lambda save: (save.registration.entity_id, save.registration.domain))
    for statement, rows in (
        (_UPDATE, [save for save in ordered if save.read_version is not None]),
        (_INSERT, [save for save in ordered if save.read_version is None]),
    ):
        if rows and (await connection.execute(statement, _bound(rows))).rowcount != len(rows):
            raise LostRaceError("another writer changed a row that this batch had read")


def _bound(saves: Sequence[Save]) -> dict[str, list[object]]:
    """The rows as one array a column."""
    arrays: dict[str, list[object]] = {
        f"{c.key}s": [getattr(save.registration, c.key) for save in saves] for c in _columns
    }
    arrays["read_versions"] = [save.read_version for save in saves]
    return arrays


# --- Lists -----------------------------------------------------------------------------------------------------


# The conditions that a list may have beside its domain and states, by the name of what they are given.
_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "after": _table.c.entity_id > bindparam("after", type_=Uuid()),
    "node_type": _table.c.node_type == bindparam("node_type", type_=String()),
    "updated_before": _table.c.updated_at < bindparam("updated_before", type_=_table.c.updated_at.type),
    "capabilities": _table.c.capabilities.contains(bindparam("capabilities", type_=_table.c.capabilities.type)),
    "event_id": _table.c.last_applied_event_id == bindparam("event_id", type_=Uuid()),
}
_FINDING_FEW = {"capabilities", "event_id"}  # each has an index of its own


@functools.cache
def list_statement(conditions: frozenset[str], states: int) -> Select[tuple[object, ...]]:
    """A page of a domain's rows in so many states, in the order of entity ids.

    By state, or by domain alone, it is merged from one page of each state, each read off the same index in order and
    only as far as needed: so it costs what a page costs, in any domain. A capability or an event id has an index
    that finds the few rows first.
    """
    found = [_table.c.domain == bindparam("domain", type_=String())]
    found += [condition for name, condition in _CONDITIONS.items() if name in conditions]
    limit = bindparam("limit", type_=BigInteger())
    wanted = [bindparam(f"state{number}", type_=REGISTRATION_STATE) for number in range(states)]
    pages = [
        select(*_columns).where(*found, _table.c.current_state.in_(some)).order_by(_table.c.entity_id).limit(limit)
        for some in ([wanted] if conditions & _FINDING_FEW else [[state] for state in wanted])
    ]
    if len(pages) == 1:
        return pages[0]
    page = union_all(*pages).subquery("page")
    return select(*page.c).order_by(page.c.entity_id).limit(limit)


async def get_by_state(
    connection: Connection, wanted: EntityFilter, *, after: UUID | None, limit: int
) -> list[Registration]:
    """The first `limit` rows that the filter lets through, in the order of entity ids, after `after` if given."""
    given = {
        "after": after,
        "node_type": wanted.node_type,
        "updated_before": wanted.updated_before,
        "capabilities": wanted.capabilities,
        "event_id": wanted.event_id,
    }
    given = {name: value for name, value in given.items() if value is not None}
    states = list(dict.fromkeys(wanted.states or RegistrationState))
    rows = await connection.execute(
        list_statement(frozenset(given), len(states)),
        {"domain": wanted.domain, "limit": limit, **given, **{f"state{n}": state for n, state in enumerate(states)}},
    )
    return [_registration(row) for row in rows]


# How many rows are in each state of a domain.
_COUNT = (
    select(_table.c.current_state, func.count())
    .where(_table.c.domain == bindparam("domain", type_=String()))
    .group_by(_table.c.current_state)
)


async def count_by_state(connection: Connection, domain: str) -> dict[RegistrationState, int]:
    """How many entities of the domain are in each of the states, the empty ones included."""
    counts = dict.fromkeys(RegistrationState, 0)
    for state, count in await connection.execute(_COUNT, {"domain": domain}):
        counts[state] = count
    return counts


# --- Overdue scans ---------------------------------------------------------------------------------------------


class _Scan:
    """The statements of one overdue scan. `due` is the predicate of its partial index, to the letter."""

    def __init__(self, deadline: ColumnElement[datetime], due: str) -> None:
        as_of = bindparam("as_of", type_=TIMESTAMP(timezone=True))
        rows = (_table.c.domain == bindparam("domain", type_=String()), text(due))
        # The passed deadlines, oldest first.
        self.first = (
            select(*_columns)
            .where(*rows, deadline < as_of)
            .order_by(deadline, _table.c.entity_id)
            .limit(bindparam("limit", type_=BigInteger()))
        )
        # The same from a row on.
        self.after = self.first.where(
            tuple_(deadline, _table.c.entity_id)
            > tuple_(bindparam("after_deadline", type_=TIMESTAMP(timezone=True)), bindparam("after_id", type_=Uuid()))
        )
        # The earliest deadline that has not passed.
        self.next = select(func.min(deadline)).where(*rows, deadline >= as_of)


ACK_SCAN = _Scan(_table.c.ack_deadline, ACK_DUE)
LIVENESS_SCAN = _Scan(_table.c.liveness_deadline, LIVENESS_DUE)

# The database's clock.
_NOW = select(func.clock_timestamp())


async def now(connection: Connection) -> datetime:
    """What the database's clock says."""
    return cast("datetime", await connection.scalar(_NOW))


async def get_overdue_ack_registrations(
    connection: Connection, domain: str, *, as_of: datetime, after: DueKey | None, limit: int
) -> Overdue:
    """Nodes that had to acknowledge before `as_of`, oldest deadline first, unless their time-out is out."""
    return await _overdue(connection, ACK_SCAN, domain, as_of, after, limit)


async def get_overdue_liveness_registrations(
    connection: Connection, domain: str, *, as_of: datetime, after: DueKey | None, limit: int
) -> Overdue:
    """Nodes that had to be heard of before `as_of`, oldest deadline first, unless their time-out is out."""
    return await _overdue(connection, LIVENESS_SCAN, domain, as_of, after, limit)


async def _overdue(
    connection: Connection, scan: _Scan, domain: str, as_of: datetime, after: DueKey | None, limit: int
) -> Overdue:
    asked: dict[str, object] = {"domain": domain, "as_of": as_of}
    if after is None:
        rows = await connection.execute(scan.first, {**asked, "limit": limit})
    else:
        begin = {"after_deadline": after[0], "after_id": after[1]}
        rows = await connection.execute(scan.after, {**asked, **begin, "limit": limit})
    items = [_registration(row) for row in rows]
    return Overdue(items, await connection.scalar(scan.next, asked))


# --- By hand ---------------------------------------------------------------------------------------------------

# Another track for one entity: position and version change, nothing else.
_REBASE = (
    update(_table)
    .where(
        _table.c.entity_id == bindparam("of_entity", type_=Uuid()),
        _table.c.domain == bindparam("of_domain", type_=String()),
    )
    .values(
        last_applied_sequence=bindparam("sequence"),
        last_applied_partition=bindparam("partition"),
        last_applied_offset=bindparam("offset"),
        version=_table.c.version + 1,
    )
    .returning(*_columns)
)


async def rebase(
    connection: Connection, entity_id: UUID, domain: str, position: Position
) -> tuple[Registration, Registration] | None:
    """Move an entity to `position`, on whatever track that is; the row before and after, or None without a row."""
    before = (await read_for_fold(connection, [(entity_id, domain)], lock=True)).get((entity_id, domain))
    if before is None:
        return None
    moved = await connection.execute(
        _REBASE,
        {
            "of_entity": entity_id,
            "of_domain": domain,
            "sequence": position.sequence,
            "partition": position.partition,
            "offset": position.offset,
        },
    )
    return before, _registration(moved.one())
