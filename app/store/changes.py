"""The change log, and every statement over it.

A row is written by the statement that writes the row of its entity, under the same guard, with an id that is drawn
while that row is locked: so an entity's ids rise with its versions. Between entities a later id may be visible before
an earlier one. `drawn` and then `writers` say up to which id nothing is missing any more (`app.feed.reader`).
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from operator import attrgetter, itemgetter
from typing import cast
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    Boolean,
    ColumnElement,
    Integer,
    SmallInteger,
    Table,
    bindparam,
    column,
    func,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert

from app.domain.changes import Change, ChangeOutcome
from app.domain.states import RegistrationState
from app.store.database import Connection, Record
from app.store.failures import BROKEN
from app.store.statements import Statement
from app.store.tables import BLOCK, SLICES, ChangeRow

# Not quoted: vulture would take the import for unused.
_table = cast(Table, ChangeRow.__table__)  # noqa: TC006
_MADE = ("slice", "mark", "id", "changed_at")  # by the database, for all changes of a statement
_given = tuple(c for c in _table.c if c.key not in _MADE)

KEEP = timedelta(days=7)  # how long a change is kept at least, where nothing else is set
KEPT_SLICES = SLICES - 2  # one more is being written, and one is being emptied


def logging(condition: ColumnElement[bool]) -> CTE:
    """A part of a statement that writes changes, in the order given, when `condition` holds.

    The condition has to need that the rows of their entities are written: so they are locked when ids are drawn.
    """
    one, size = literal_column("1", Integer()), literal_column(str(BLOCK), BigInteger())
    block = func.generate_series(
        literal_column("0", Integer()), bindparam("change_blocks", type_=Integer()) - one
    ).column_valued("block")
    drawn = (
        select(
            block.label("block"),
            func.nextval(literal_column("'changes_id_seq'")).label("first"),
            func.floor(func.random() * literal_column("2147483647")).cast(Integer()).label("mark"),
            func.clock_timestamp().label("at"),
        )
        .where(condition)
        .cte("drawn")
    )
    arrays = (bindparam(f"changes_{c.key}", type_=ARRAY(c.type)) for c in _given)
    columns = (column(str(c.key), c.type) for c in _given)
    changes = func.unnest(*arrays).table_valued(*columns, with_ordinality="place", name="new_changes")
    rows = changes.render_derived(name="new_changes")
    number = rows.c.place - one
    turn = func.floor(func.extract("epoch", drawn.c.at) / bindparam("slice_seconds", type_=BigInteger()))
    return (
        insert(_table)
        .from_select(
            (_table.c.slice, _table.c.mark, _table.c.id, _table.c.changed_at, *_given),
            select(
                (turn.cast(BigInteger()) % literal_column(str(SLICES), BigInteger())).cast(SmallInteger()),
                drawn.c.mark,
                drawn.c.first + number % size,
                drawn.c.at,
                *(rows.c[c.key] for c in _given),
            )
            .select_from(rows.join(drawn, number // size == drawn.c.block))
            .order_by(rows.c.place),
        )
        .returning(one.label("one"))
        .cte("logged")
    )


_encode = msgspec.json.Encoder().encode
_FIELDS = [(f"changes_{c.key}", attrgetter(str(c.key))) for c in _given if c.key != "row"]


def given(changes: Sequence[Change], slice_seconds: int) -> dict[str, object]:
    """What that part of a statement is given. `slice_seconds` is how long one slice is written (`slice_of`)."""
    values: dict[str, object] = {name: list(map(value, changes)) for name, value in _FIELDS}
    values["changes_row"] = [None if each.row is None else _encode(each.row).decode() for each in changes]
    values["change_blocks"] = -(-len(changes) // BLOCK)
    values["slice_seconds"] = slice_seconds
    return values


def slice_seconds(keep: timedelta) -> int:
    """How long a slice is written before the next one is, where changes are kept that long."""
    return max(1, -(-round(keep.total_seconds()) // KEPT_SLICES))


# Changes by themselves. The lock on the rows is the caller's.
ADD = Statement(select(literal_column("1")).add_cte(logging(literal_column("true", Boolean()))))


async def add(connection: Connection, some: Sequence[Change], slice_seconds: int) -> None:
    """Write changes of rows that this transaction has written, in the order given."""
    if some:
        await ADD.rows(connection, **given(some, slice_seconds))


# --- The settled horizon -------------------------------------------------------------------------------------------

# The highest id that was drawn, 0 for none. A sequence is no part of a transaction, so this is true at this moment.
DRAWN = Statement(
    text("SELECT CASE WHEN is_called THEN last_value + (CAST(:block AS bigint) - 1) ELSE 0 END FROM changes_id_seq")
)

# The transactions that may have drawn ids and are not at their end: an INSERT takes this lock on the table before it
# draws, and keeps it until others see what it wrote. A prepared transaction has it too, and no process.
WRITERS = Statement(
    text("""
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
    AND relation = CAST('changes' AS regclass)
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")
)


async def drawn(connection: Connection) -> int:
    """The highest id that was drawn, committed or not; 0 for none."""
    return cast("int", await DRAWN.value(connection, block=BLOCK))


async def writers(connection: Connection) -> frozenset[str]:
    """The transactions that may have drawn ids which nobody else sees yet. A name is never used again.

    To be asked in a statement of its own after `drawn`: those that draw later do not matter then.
    """
    return frozenset([row[0] for row in await WRITERS.rows(connection)])


# --- Reading -------------------------------------------------------------------------------------------------------


class Place(Struct, frozen=True, order=True, gc=False):
    """A row of the log by its id, and its mark, by which a database with another past is noticed."""

    id: int
    mark: int


BEGINNING = Place(0, 0)  # before the first change of all


class Logged(Struct, frozen=True, gc=False):
    """A row of the log as it is read. Where the entity was erased, all but place and `changed_at` is None."""

    id: int
    mark: int
    entity_id: UUID | None
    domain: str
    node_type: str
    version: int
    event_id: UUID | None
    type: str
    outcome: ChangeOutcome
    reason: str | None
    before: RegistrationState | None
    current_state: RegistrationState
    partition: str | None
    offset: int | None
    sequence: int | None
    occurred_at: datetime
    changed_at: datetime
    correlation_id: UUID | None
    row: str | None

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.id, self.mark)


COLUMNS = tuple(_table.c[name] for name in Logged.__struct_fields__)


def logged(row: Record) -> Logged:
    """A row of the columns of Logged, in their order."""
    return Logged(*row)


# The changes after one place and up to another id, in order.
READ = Statement(
    select(*COLUMNS)
    .where(_table.c.id > bindparam("after", type_=BigInteger()), _table.c.id <= bindparam("to", type_=BigInteger()))
    .order_by(_table.c.id)
    .limit(bindparam("limit", type_=BigInteger()))
)


async def read(connection: Connection, after: int, to: int, *, limit: int) -> list[Logged]:
    """The first `limit` changes with an id above `after` and up to `to`, in order.

    Nothing is missing in them where `to` is settled.
    """
    return [logged(row) for row in await READ.rows(connection, after=after, to=to, limit=limit)]


# The mark of a change.
MARK = Statement(select(_table.c.mark).where(_table.c.id == bindparam("of_id", type_=BigInteger())))

# How far the log was removed.
FLOOR = Statement(text("SELECT id, mark FROM changes_floor ORDER BY id DESC LIMIT 1"))

# The newest change up to an id: one probe of each slice.
NEWEST = Statement(
    select(_table.c.id, _table.c.mark)
    .where(_table.c.id <= bindparam("to", type_=BigInteger()))
    .order_by(_table.c.id.desc())
    .limit(1)
)


async def mark_of(connection: Connection, id_: int) -> int | None:
    """The mark of a change, or None where there is no such change."""
    return cast("int | None", await MARK.value(connection, of_id=id_))


async def floor(connection: Connection) -> Place:
    """The newest change that was removed: the log is complete after it."""
    rows = await FLOOR.rows(connection)
    return Place(*rows[0]) if rows else BEGINNING


async def newest(connection: Connection, to: int) -> Place:
    """The newest change with an id up to `to`; where there is none, the floor."""
    rows = await NEWEST.rows(connection, to=to)
    return Place(*rows[0]) if rows else await floor(connection)


# --- Waking --------------------------------------------------------------------------------------------------------

CHANNEL = "pqs_changes"

# Tell every process that follows. The commit of a NOTIFY waits for those before it, so it is never in a transaction
# that writes rows; and as nothing is lost with it, it does not wait for the disk.
ANNOUNCE = Statement(
    text("SELECT set_config('synchronous_commit', 'off', true), pg_notify(CAST(:channel AS text), '')")
)


async def announce(connection: Connection) -> None:
    """Wake the readers of all processes: changes were committed. To be a transaction of its own."""
    await ANNOUNCE.rows(connection, channel=CHANNEL)


@asynccontextmanager
async def listening(connection: Connection, heard: Callable[[], None]) -> AsyncIterator[None]:
    """Call `heard` at each announcement, while this lasts."""

    def tell(*_: object) -> None:
        heard()

    await connection.add_listener(CHANNEL, tell)
    try:
        yield
    finally:
        with suppress(*BROKEN):
            await connection.remove_listener(CHANNEL, tell)


# --- Retention -----------------------------------------------------------------------------------------------------

DELETE_BATCH = 5000  # rows that are deleted at once
LOCK_WAIT = "100ms"  # that emptying a slice waits for those who read it, and others for it


class Ends(Struct, frozen=True):
    """The oldest and the newest change of a slice, and the database's clock."""

    oldest_at: datetime
    newest_at: datetime
    now: datetime


async def ends_of(connection: Connection, number: int) -> Ends | None:
    """The ends of a slice, or None when it is empty."""
    rows = await connection.fetch(
        # The first and the last entry of the primary key.
        f"SELECT (SELECT changed_at FROM {_slice(number)} ORDER BY id LIMIT 1),"  # noqa: S608 - a number of ours
        f" (SELECT changed_at FROM {_slice(number)} ORDER BY id DESC LIMIT 1), clock_timestamp()"
    )
    oldest_at, newest_at, now = rows[0]
    return None if oldest_at is None else Ends(oldest_at, newest_at, now)


async def empty(connection: Connection, number: int, before: datetime) -> bool:
    """Empty a slice, in this transaction, if all of it is from before this time; whether it was.

    Raises an error of PostgreSQL's when somebody has read it for longer than LOCK_WAIT.
    """
    name = _slice(number)
    await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT}'")
    await connection.execute(f"LOCK TABLE ONLY {name} IN ACCESS EXCLUSIVE MODE")
    newest = f"SELECT id, mark, changed_at FROM {name} ORDER BY id DESC LIMIT 1"  # noqa: S608 - a number of ours
    rows = await connection.fetch(newest)
    if not rows or rows[0]["changed_at"] >= before:
        return False
    await _raise_floor(connection, number, rows[0])
    await connection.execute(f"TRUNCATE ONLY {name}")
    return True


async def delete(connection: Connection, number: int, before: datetime) -> int:
    """Delete the oldest changes of a slice that are from before this time, DELETE_BATCH at most; how many they were.

    The slice is named, and not the table: a lock on the table would look like a writer's (`writers`).
    """
    name = _slice(number)
    rows = await connection.fetch(
        f"""
        WITH oldest AS MATERIALIZED (SELECT id, changed_at FROM {name} ORDER BY id LIMIT {DELETE_BATCH})
        DELETE FROM {name} WHERE id = ANY(ARRAY(SELECT id FROM oldest WHERE changed_at < $1))
        RETURNING id, mark, changed_at
        """,  # noqa: S608 - numbers of ours
        before,
    )
    if rows:
        await _raise_floor(connection, number, max(rows, key=itemgetter("id")))
    return len(rows)


async def _raise_floor(connection: Connection, number: int, newest: Record) -> None:
    await connection.execute(
        "INSERT INTO changes_floor (slice, id, mark, changed_at) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (slice) DO UPDATE SET id = excluded.id, mark = excluded.mark, changed_at = excluded.changed_at"
        " WHERE changes_floor.id < excluded.id",
        number,
        newest["id"],
        newest["mark"],
        newest["changed_at"],
    )


def _slice(number: int) -> str:
    return f"changes_{number:02}"
