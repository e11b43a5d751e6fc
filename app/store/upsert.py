"""The ordered upsert: one guarded statement for a batch of rows, the state counts and the outbox."""

import functools
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import IntEnum
from operator import attrgetter
from typing import NamedTuple, cast

import asyncpg
import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    bindparam,
    case,
    column,
    func,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from app.domain.folding import Save
from app.domain.states import RegistrationState
from app.store import outbox
from app.store.database import Connection, LostRaceError
from app.store.outbox import Entry
from app.store.rows import COLUMNS, COUNTS, KEYS, TABLE, arrays, is_row_of
from app.store.statements import Statement

SLOTS = 16  # of each counter: transactions that change states take turns at them


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
    extent: tuple(str(c.key) for c in COLUMNS if c.key not in kept)
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
        sent = [TABLE.c[name] for name in _SENT[writes.known]]
        read_version = cast("ColumnElement[object]", column("read_version", BigInteger()))
        known = arrays(*sent, read_version, name="known")
        changes = {c: known.c[str(c.key)] for c in sent if not c.primary_key}
        cleared = {TABLE.c[_CLEARED]: null()} if writes.known is Extent.HEARTBEAT else {}
        written.append(
            update(TABLE)
            .where(is_row_of(known.c.entity_id, known.c.domain), TABLE.c.version == known.c.read_version)
            .values(changes | cleared)
            .returning(literal_column("1").label("one"))
            .cte("updated")
        )
    if writes.new:
        new = arrays(*COLUMNS, name="new")
        written.append(
            insert(TABLE)
            .from_select(COLUMNS, select(*new.c))
            .on_conflict_do_nothing(index_elements=KEYS)
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
        gains = arrays(COUNTS.c.domain, COUNTS.c.current_state, COUNTS.c.slot, COUNTS.c.count, name="gains")
        counting = insert(COUNTS).from_select(
            tuple(COUNTS.c), select(*gains.c).where(complete).order_by(gains.c.domain, gains.c.current_state)
        )
        counted = (
            counting.on_conflict_do_update(
                index_elements=COUNTS.primary_key, set_={"count": COUNTS.c.count + counting.excluded.count}
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
