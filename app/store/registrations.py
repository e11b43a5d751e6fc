"""Every statement over `registration_projections`, and row ↔ Registration beside it.

Each statement is built from the columns of the table, so that a new column needs no change here.
"""

import functools
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from operator import attrgetter
from typing import NamedTuple, cast
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Struct
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    String,
    Table,
    Uuid,
    any_,
    bindparam,
    case,
    column,
    func,
    literal_column,
    null,
    select,
    text,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP, array, insert

from app.domain.decider import Deadline
from app.domain.events import Key
from app.domain.folding import Save
from app.domain.positions import Comparison, Position, compare
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.store import outbox
from app.store.database import Connection, LostRaceError, Record, refused_values
from app.store.outbox import Entry
from app.store.statements import Statement
from app.store.tables import ACK_DUE, LIVENESS_DUE, REGISTRATION_STATE, RegistrationProjection, StateCount

SLOTS = 16  # of each counter: transactions that change states take turns at them


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


PassedKey = tuple[str, datetime, UUID]  # domain, deadline, entity_id: the order of what the sweep reads
EARLIEST = datetime(1, 1, 1, tzinfo=UTC)
BEFORE_ALL: PassedKey = ("", EARLIEST, UUID(int=0))


class Passed(Struct, frozen=True):
    """A page of passed deadlines: the rows that may expire, the time of the read, and where the next page begins.

    `after` is None when there is no next page.
    """

    items: list[Registration]
    now: datetime
    after: PassedKey | None


# Not quoted: vulture would take the import for unused.
_table = cast(Table, RegistrationProjection.__table__)  # noqa: TC006
_counts = cast(Table, StateCount.__table__)  # noqa: TC006
_columns = tuple(_table.c)
_keys = (_table.c.entity_id, _table.c.domain)
_STATES = {state.value: state for state in RegistrationState}
_decode = msgspec.json.Decoder(dict[str, object]).decode


def _registration(row: Record) -> Registration:
    """A row of all columns, in their order, as a Registration."""
    entity_id, domain, state, node_type, node_version, capabilities, *rest = row
    return Registration(entity_id, domain, _STATES[state], node_type, node_version, _decode(capabilities), *rest)


def _arrays(*columns: ColumnElement[object], name: str) -> FromClause:
    """A table with a row for each item of the arrays, which are bound by the table's and the columns' names."""
    arrays = (bindparam(f"{name}_{c.key}", type_=ARRAY(c.type)) for c in columns)
    derived = func.unnest(*arrays).table_valued(*(column(str(c.key), c.type) for c in columns), name=name)
    return derived.render_derived(name=name)


def _is_row_of(entity_id: ColumnElement[UUID], domain: ColumnElement[str]) -> ColumnElement[bool]:
    """Which row is an entity's, to be found by the primary key alone.

    What is joined on to the domain keeps the indexes out that begin with it: while the table is small they look as
    good to the planner, and the plan is kept while the table grows. So is one that joins an array with a small table
    by `=`: it reads the table from end to end, and looks for each row in the array. `= ANY` is joined by no other way
    than looking for each key in the index.
    """
    return (_table.c.entity_id == any_(array([entity_id]))) & (_table.c.domain.concat(literal_column("''")) == domain)


# --- Point reads -----------------------------------------------------------------------------------------------

_asked = _arrays(*_keys, name="asked")

# The rows of some entities: what point reads and lookups are, and what a batch is folded onto.
_READ_KEYS = select(*_columns).join(_asked, _is_row_of(_asked.c.entity_id, _asked.c.domain))
READ = Statement(_READ_KEYS)

# The same in the order of their keys, each row locked before the next: two batches that share rows wait for each
# other instead of deadlocking.
LOCK = Statement(_READ_KEYS.order_by(*_asked.c).with_for_update(of=_table))

# The same, without those that somebody else has locked.
LOCK_FREE = Statement(_READ_KEYS.order_by(*_asked.c).with_for_update(of=_table, skip_locked=True))

# The state of one entity, and nothing else.
READ_STATE = Statement(
    select(_table.c.current_state).where(
        _is_row_of(bindparam("entity_id", type_=Uuid()), bindparam("domain", type_=String()))
    )
)


async def get_entity_states(
    connection: Connection, keys: Sequence[Key], *, lock: bool = False
) -> dict[Key, Registration]:
    """The registrations of those entities that have one, by key; locked until the transaction ends when `lock`."""
    rows = await (LOCK if lock else READ).rows(
        connection,
        asked_entity_id=[entity_id for entity_id, _ in keys],
        asked_domain=[domain for _, domain in keys],
    )
    return {(row[0], row[1]): _registration(row) for row in rows}


async def lock_unchanged(connection: Connection, read: Sequence[Registration]) -> list[Registration]:
    """Those of the rows that are still as they were read, locked until the transaction ends.

    It waits for nobody: a row that somebody else has locked is left out.
    """
    rows = await LOCK_FREE.rows(
        connection, asked_entity_id=[each.entity_id for each in read], asked_domain=[each.domain for each in read]
    )
    versions = {(row["entity_id"], row["domain"]): row["version"] for row in rows}
    return [each for each in read if versions.get((each.entity_id, each.domain)) == each.version]


async def get_entity_state(connection: Connection, entity_id: UUID, domain: str) -> Registration | None:
    """The registration of one entity, or None."""
    return (await get_entity_states(connection, [(entity_id, domain)])).get((entity_id, domain))


async def get_registration_status(connection: Connection, entity_id: UUID, domain: str) -> RegistrationState | None:
    """The state of one entity, or None."""
    state = await READ_STATE.value(connection, entity_id=entity_id, domain=domain)
    return None if state is None else _STATES[str(state)]


async def is_stale(connection: Connection, entity_id: UUID, domain: str, position: Position) -> bool:
    """Whether `position` is behind its entity's row. Nothing is written; without a row nothing is behind it."""
    registration = await get_entity_state(connection, entity_id, domain)
    return registration is not None and compare(position, registration.position) is Comparison.LOWER


# --- The ordered upsert ----------------------------------------------------------------------------------------


class Extent(IntEnum):
    """How much of the known rows a batch writes. What all of them keep as it is, is not sent to the database."""

    HEARTBEAT = 0
    TRANSITION = 1
    WHOLE = 2


_STEADY = ("node_type", "node_version", "capabilities", "registered_at")  # in a transition
_CALM = ("current_state", "ack_deadline", "ack_timeout_emitted_at")  # in a heartbeat, as well
_CLEARED = "liveness_timeout_emitted_at"  # by a heartbeat
_steady = attrgetter(*_STEADY)
_calm = attrgetter(*_CALM)

# The columns that are sent for each: the key, and what is written.
_SENT = {
    extent: tuple(str(c.key) for c in _columns if c.key not in kept)
    for extent, kept in {
        Extent.HEARTBEAT: {*_STEADY, *_CALM, _CLEARED},
        Extent.TRANSITION: {*_STEADY},
        Extent.WHOLE: set[str](),
    }.items()
}
_values = {extent: attrgetter(*names) for extent, names in _SENT.items()}


class Writes(NamedTuple):
    """What a batch writes: to known rows (None: there are none), new rows, counters, and entries of the outbox."""

    known: Extent | None
    new: bool
    counts: bool
    sends: bool = False


@functools.cache
def save_statement(writes: Writes) -> Statement:
    """One statement that writes a batch, all of it or, by an error, nothing.

    `updated`: the known rows, each guarded by the version that was read. `inserted`: the new rows; one that somebody
    else has inserted since is left alone. After the rows `sent`: the messages for the outbox, and `counted`: what the
    counters gain and lose. Where fewer rows were written than there are, a division by zero rolls the statement
    back: that saves the two round trips of a transaction around it.
    """
    written = []
    if writes.known is not None:
        sent = [_table.c[name] for name in _SENT[writes.known]]
        read_version = cast("ColumnElement[object]", column("read_version", BigInteger()))
        known = _arrays(*sent, read_version, name="known")
        changes = {c: known.c[str(c.key)] for c in sent if not c.primary_key}
        cleared = {_table.c[_CLEARED]: null()} if writes.known is Extent.HEARTBEAT else {}
        written.append(
            update(_table)
            .where(_is_row_of(known.c.entity_id, known.c.domain), _table.c.version == known.c.read_version)
            .values(changes | cleared)
            .returning(literal_column("1").label("one"))
            .cte("updated")
        )
    if writes.new:
        new = _arrays(*_columns, name="new")
        written.append(
            insert(_table)
            .from_select(_columns, select(*new.c))
            .on_conflict_do_nothing(index_elements=_keys)
            .returning(literal_column("1").label("one"))
            .cte("inserted")
        )
    first, *others = (select(func.count()).select_from(rows).scalar_subquery() for rows in written)
    hits: ColumnElement[int] = first
    for other in others:
        hits = hits + other
    complete = hits == bindparam("rows_to_write", type_=BigInteger())
    one, zero = literal_column("1", Integer()), literal_column("0", Integer())
    checked: ColumnElement[int] = one // case((complete, one), else_=zero)
    statement = select(checked)
    if writes.sends:
        statement = statement.add_cte(outbox.sending(complete))
    if writes.counts:
        gains = _arrays(_counts.c.domain, _counts.c.current_state, _counts.c.slot, _counts.c.count, name="gains")
        counting = insert(_counts).from_select(
            tuple(_counts.c), select(*gains.c).where(complete).order_by(gains.c.domain, gains.c.current_state)
        )
        counted = (
            counting.on_conflict_do_update(
                index_elements=_counts.primary_key, set_={"count": _counts.c.count + counting.excluded.count}
            )
            .returning(literal_column("1").label("one"))
            .cte("counted")
        )
        statement = statement.add_cte(counted)
    return Statement(statement)


_slots = itertools.cycle(random.sample(range(SLOTS), SLOTS))


async def save(connection: Connection, saves: Iterable[Save], entries: Sequence[Entry] = ()) -> None:
    """Write the rows in the order of their keys, what that does to the state counts, and what is to be sent after it.

    That is one statement. Entries keep the order given, and are written beside at least one row. Raises
    LostRaceError when a row is not as it was read. Nothing is written then.
    """
    ordered = sorted(saves, key=lambda save: (save.registration.entity_id, save.registration.domain))
    if not ordered:
        return
    known = [save for save in ordered if save.read is not None]
    new = [save for save in ordered if save.read is None] if len(known) < len(ordered) else []
    extent = max(map(_extent, known), default=None)
    gains = _gains(ordered) if new or extent is not Extent.HEARTBEAT else {}
    given: dict[str, object] = {"rows_to_write": len(ordered)}
    if extent is not None:
        given |= _arrays_of(known, extent, "known")
        given["known_read_version"] = [save.read.version for save in known if save.read is not None]
    if new:
        given |= _arrays_of(new, Extent.WHOLE, "new")
    if gains:
        given["gains_domain"] = [domain for domain, _ in gains]
        given["gains_current_state"] = [state for _, state in gains]
        given["gains_slot"] = [next(_slots)] * len(gains)
        given["gains_count"] = list(gains.values())
    if entries:
        given |= outbox.given(entries)
    try:
        await save_statement(Writes(extent, bool(new), bool(gains), bool(entries))).value(connection, **given)
    except asyncpg.DivisionByZeroError:
        raise LostRaceError("another writer changed a row that this batch had read") from None


def _extent(save: Save) -> Extent:
    registration, read = save.registration, save.read
    if _steady(registration) != _steady(read):
        return Extent.WHOLE
    if registration.liveness_timeout_emitted_at is not None or _calm(registration) != _calm(read):
        return Extent.TRANSITION
    return Extent.HEARTBEAT


def _arrays_of(saves: Sequence[Save], extent: Extent, name: str) -> dict[str, object]:
    """An array for each column that is sent."""
    columns = zip(*[_values[extent](save.registration) for save in saves], strict=True)
    given: dict[str, object] = {f"{name}_{key}": values for key, values in zip(_SENT[extent], columns, strict=True)}
    if extent is Extent.WHOLE:
        encode = msgspec.json.encode
        given[f"{name}_capabilities"] = [encode(save.registration.capabilities).decode() for save in saves]
    return given


def _gains(saves: Sequence[Save]) -> dict[tuple[str, RegistrationState], int]:
    """What each counter gains or loses, those that stay as they are left out, in the order of domain and state."""
    gains: Counter[tuple[str, RegistrationState]] = Counter()
    for save in saves:
        state = save.registration.current_state
        if save.read is None:
            gains[save.registration.domain, state] += 1
        elif save.read.current_state is not state:
            gains[save.registration.domain, state] += 1
            gains[save.registration.domain, save.read.current_state] -= 1
    return {key: gains[key] for key in sorted(gains) if gains[key]}


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
def list_statement(conditions: frozenset[str], states: int) -> Statement:
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
        return Statement(pages[0])
    page = union_all(*pages).subquery("page")
    return Statement(select(*page.c).order_by(page.c.entity_id).limit(limit))


async def get_by_state(
    connection: Connection, wanted: EntityFilter, *, after: UUID | None, limit: int
) -> list[Registration]:
    """The first `limit` rows that the filter lets through, in the order of entity ids, after `after` if given."""
    capabilities = None if wanted.capabilities is None else msgspec.json.encode(wanted.capabilities).decode()
    given: dict[str, object] = {
        "after": after,
        "node_type": wanted.node_type,
        "updated_before": wanted.updated_before,
        "capabilities": capabilities,
        "event_id": wanted.event_id,
    }
    given = {name: value for name, value in given.items() if value is not None}
    states = list(dict.fromkeys(wanted.states or RegistrationState))
    statement = list_statement(frozenset(given), len(states))
    given |= {f"state{number}": state for number, state in enumerate(states)}
    rows = await statement.rows(connection, domain=wanted.domain, limit=limit, **given)
    return [_registration(row) for row in rows]


# How many rows are in each state of a domain, by the counters.
COUNT = Statement(
    select(_counts.c.current_state, func.sum(_counts.c.count).cast(BigInteger()))
    .where(_counts.c.domain == bindparam("domain", type_=String()))
    .group_by(_counts.c.current_state)
)


async def count_by_state(connection: Connection, domain: str) -> dict[RegistrationState, int]:
    """How many entities of the domain are in each of the states, the empty ones included."""
    counts = dict.fromkeys(RegistrationState, 0)
    for state, count in await COUNT.rows(connection, domain=domain):
        counts[_STATES[state]] = count
    return counts


# Where the counters differ from the rows: a full count, in one snapshot with the counters.
_kept = (
    select(_counts.c.domain, _counts.c.current_state, func.sum(_counts.c.count).cast(BigInteger()).label("kept"))
    .group_by(_counts.c.domain, _counts.c.current_state)
    .subquery("kept")
)
_counted = (
    select(_table.c.domain, _table.c.current_state, func.count().label("counted"))
    .group_by(_table.c.domain, _table.c.current_state)
    .subquery("counted")
)
VERIFY = Statement(
    select(
        func.coalesce(_kept.c.domain, _counted.c.domain).label("domain"),
        func.coalesce(_kept.c.current_state, _counted.c.current_state).label("state"),
        func.coalesce(_kept.c.kept, 0),
        func.coalesce(_counted.c.counted, 0),
    )
    .select_from(
        _kept.join(
            _counted,
            (_kept.c.domain == _counted.c.domain) & (_kept.c.current_state == _counted.c.current_state),
            full=True,
        )
    )
    .where(func.coalesce(_kept.c.kept, 0) != func.coalesce(_counted.c.counted, 0))
    .order_by(literal_column("1"), literal_column("2"))
)


class Miscount(Struct, frozen=True):
    """A counter that differs from the rows."""

    domain: str
    state: RegistrationState
    kept: int
    counted: int


async def verify_counts(connection: Connection) -> list[Miscount]:
    """The counters that differ from a full count; an empty list when all is well. Reads every row."""
    return [Miscount(domain, _STATES[state], *both) for domain, state, *both in await VERIFY.rows(connection)]


# --- Overdue scans ---------------------------------------------------------------------------------------------


# Passed deadlines of all domains, in the order of the index: `domains` goes from each domain that has a deadline to
# the next by one look, and `page` ends where it is full, so that it costs what a page costs, however many domains
# there are. Of that page the rows that may expire; the last row is there in any case, to go on from. What stands on a
# partition may expire when everything up to its deadline has been read from there.
_PASSED = """
WITH RECURSIVE domains AS (
    (
        SELECT domain FROM registration_projections
        WHERE {due} AND domain >= CAST(:after_domain AS varchar)
        ORDER BY domain LIMIT 1
    )
    UNION ALL
    SELECT following.domain FROM domains CROSS JOIN LATERAL (
        SELECT r.domain FROM registration_projections AS r
        WHERE {due} AND r.domain > domains.domain
        ORDER BY r.domain LIMIT 1
    ) AS following
), page AS MATERIALIZED (
    SELECT overdue.*, row_number() OVER () AS place
    FROM (
        SELECT passed.* FROM domains CROSS JOIN LATERAL (
            SELECT * FROM registration_projections AS r
            WHERE r.domain = domains.domain AND {due} AND r.{deadline} < statement_timestamp()
                AND (r.{deadline}, r.entity_id) > (
                    CASE WHEN domains.domain = CAST(:after_domain AS varchar)
                        THEN CAST(:after_deadline AS timestamptz) ELSE '-infinity' END,
                    CAST(:after_id AS uuid)
                )
            ORDER BY r.{deadline}, r.entity_id LIMIT CAST(:most AS bigint)
        ) AS passed
        LIMIT CAST(:most AS bigint)
    ) AS overdue
), marks AS MATERIALIZED (
    SELECT topic || '-' || partition AS partition, greatest(message_at, caught_up_at) AS reached FROM watermarks
), judged AS MATERIALIZED (
    SELECT
        page.*, statement_timestamp() AS as_of, place = CAST(:most AS bigint) AS is_full,
        page.last_applied_partition IS NULL OR coalesce(marks.reached > page.{deadline}, false) AS may_expire
    FROM page LEFT JOIN marks ON marks.partition = page.last_applied_partition
)
SELECT {columns}, as_of, may_expire, is_full FROM judged WHERE may_expire OR is_full ORDER BY place
"""


class _Scan:
    """The statements of one overdue scan. `due` is the predicate of its partial index, to the letter."""

    def __init__(self, deadline: ColumnElement[datetime], due: str) -> None:
        as_of = bindparam("as_of", type_=TIMESTAMP(timezone=True))
        rows = (_table.c.domain == bindparam("domain", type_=String()), text(due))
        first = (
            select(*_columns)
            .where(*rows, deadline < as_of)
            .order_by(deadline, _table.c.entity_id)
            .limit(bindparam("limit", type_=BigInteger()))
        )
        place = tuple_(
            bindparam("after_deadline", type_=TIMESTAMP(timezone=True)), bindparam("after_id", type_=Uuid())
        )
        # The passed deadlines, oldest first.
        self.first = Statement(first)
        # The same from a row on.
        self.after = Statement(first.where(tuple_(deadline, _table.c.entity_id) > place))
        # The earliest deadline that has not passed.
        self.next = Statement(select(func.min(deadline)).where(*rows, deadline >= as_of))
        # The passed deadlines of all domains that may expire now.
        names = ", ".join(str(c.key) for c in _columns)
        self.passed = Statement(text(_PASSED.format(due=due, deadline=deadline.key, columns=names)))


ACK_SCAN = _Scan(_table.c.ack_deadline, ACK_DUE)
LIVENESS_SCAN = _Scan(_table.c.liveness_deadline, LIVENESS_DUE)
_SCANS = {Deadline.ACK: ACK_SCAN, Deadline.LIVENESS: LIVENESS_SCAN}

# The database's clock.
NOW = Statement(select(func.clock_timestamp()))


async def now(connection: Connection) -> datetime:
    """What the database's clock says."""
    return cast("datetime", await NOW.value(connection))


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
        rows = await scan.first.rows(connection, limit=limit, **asked)
    else:
        rows = await scan.after.rows(connection, limit=limit, after_deadline=after[0], after_id=after[1], **asked)
    next_deadline = cast("datetime | None", await scan.next.value(connection, **asked))
    return Overdue([_registration(row) for row in rows], next_deadline)


async def get_passed(connection: Connection, deadline: Deadline, *, after: PassedKey, most: int) -> Passed:
    """The nodes of all domains whose deadline has passed by the database's clock, and which may expire now.

    They are in the order of domain, deadline and entity id, from `after` on. `most` rows are looked at, so there may
    be fewer, or none, where there is a next page. What stands on a partition is left out until the partition's
    watermark has passed the deadline; without a watermark it never has.
    """
    place = dict(zip(("after_domain", "after_deadline", "after_id"), after, strict=True))
    rows = await _SCANS[deadline].passed.rows(connection, most=most, **place)
    if not rows:
        return Passed([], EARLIEST, None)
    read = [_registration(cast("Record", row[: len(_columns)])) for row in rows]
    items = [registration for registration, row in zip(read, rows, strict=True) if row["may_expire"]]
    now, last = rows[-1]["as_of"], rows[-1]
    end = (last["domain"], last[f"{deadline}_deadline"], last["entity_id"]) if last["is_full"] else None
    return Passed(items, now, end)


# --- By hand ---------------------------------------------------------------------------------------------------

# Another track for one entity: position and version change, nothing else.
REBASE = Statement(
    update(_table)
    .where(_is_row_of(bindparam("of_entity", type_=Uuid()), bindparam("of_domain", type_=String())))
    .values(
        last_applied_sequence=bindparam("sequence", type_=BigInteger()),
        last_applied_partition=bindparam("partition", type_=String()),
        last_applied_offset=bindparam("offset", type_=BigInteger()),
        version=_table.c.version + 1,
    )
    .returning(*_columns)
)


async def rebase(
    connection: Connection, entity_id: UUID, domain: str, position: Position
) -> tuple[Registration, Registration] | None:
    """Move an entity to `position`, on whatever track that is; the row before and after, or None without a row."""
    before = (await get_entity_states(connection, [(entity_id, domain)], lock=True)).get((entity_id, domain))
    if before is None:
        return None
    [moved] = await REBASE.rows(
        connection,
        of_entity=entity_id,
        of_domain=domain,
        sequence=position.sequence,
        partition=position.partition,
        offset=position.offset,
    )
    return before, _registration(moved)


# --- One row, by the names of its columns ----------------------------------------------------------------------


@functools.cache
def update_statement(names: frozenset[str]) -> Statement:
    """An update of these columns of one row that still has a version, and of the counters when its state changes.

    When `last_heartbeat_at` is among them, the row's has to be older. The names are looked up in the table, so none
    of a caller's text is in the statement.
    """
    new = {name: bindparam(f"to_{name}", type_=_table.c[name].type) for name in sorted(names)}
    entity_id, domain = bindparam("of_entity", type_=Uuid()), bindparam("of_domain", type_=String())
    is_row = _is_row_of(entity_id, domain) & (_table.c.version == bindparam("read_version", type_=BigInteger()))
    newer = _table.c.last_heartbeat_at
    guard = is_row & (newer.is_(None) | (newer < new["last_heartbeat_at"])) if newer.key in new else is_row
    updated = update(_table).where(guard).values(new).returning(literal_column("1").label("one")).cte("updated")
    hits = select(func.count()).select_from(updated).scalar_subquery()
    if "current_state" not in new:
        return Statement(select(hits))
    # Both parts see the table as it was before: with this version the row was in the state that it leaves.
    state, slot = new["current_state"], bindparam("slot", type_=_counts.c.slot.type)
    left = select(_table.c.current_state, literal_column("-1").label("gain")).where(is_row)
    moves = union_all(left, select(state.label("current_state"), literal_column("1"))).subquery("moves")
    is_move = select(left.subquery("left").c.current_state).scalar_subquery() != state
    counting = insert(_counts).from_select(
        tuple(_counts.c),
        select(domain, moves.c.current_state, slot, moves.c.gain)
        .where(hits == literal_column("1"), is_move)
        .order_by(moves.c.current_state),
    )
    counted = counting.on_conflict_do_update(
        index_elements=_counts.primary_key, set_={"count": _counts.c.count + counting.excluded.count}
    )
    return Statement(select(hits).add_cte(counted.returning(literal_column("1").label("one")).cte("counted")))


async def update_columns(connection: Connection, key: Key, read_version: int, changes: Mapping[str, object]) -> bool:
    """Write some columns of the row that still has `read_version`; whether there was such a row.

    It is left alone as well when `last_heartbeat_at` is given and not newer. Raises KeyError for a name that is no
    column, and RefusedValuesError for values that the table does not take.
    """
    given = {f"to_{name}": value for name, value in changes.items()}
    if "capabilities" in changes:
        given["to_capabilities"] = msgspec.json.encode(changes["capabilities"]).decode()
    if "current_state" in changes:
        given["slot"] = next(_slots)
    statement = update_statement(frozenset(changes))
    with refused_values():
        return bool(
            await statement.value(connection, of_entity=key[0], of_domain=key[1], read_version=read_version, **given)
        )
