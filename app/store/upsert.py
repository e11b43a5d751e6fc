"""The ordered upsert: one guarded statement for a batch of rows, the state counts and the outbox."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Generic, NamedTuple, cast

import asyncpg
import msgspec
from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Integer,
    Uuid,
    any_,
    bindparam,
    case,
    column,
    func,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from app.domain.folding import Save
from app.domain.row_type import R
from app.store import changes, outbox
from app.store.database import Connection, LostRaceError
from app.store.letter_tables import HeldEntityRow
from app.store.outbox import Entry
from app.store.rows import Rows, arrays
from app.store.statements import Statement

SLOTS = 16  # of each counter; transactions that change states use them in turn

_slots = itertools.cycle(random.sample(range(SLOTS), SLOTS))


class Writes(NamedTuple):
    """The parts of a batch's statement: known rows, new rows, counters, and entries of the outbox.

    `known` is the kind of change of the known rows: its index in the projection's `unchanged`, or the next number for
    whole rows. None means that there are no known rows. With `held_too`, rows of held entities are written as well.
    """

    known: int | None
    new: bool
    counts: bool
    sends: bool = False
    logs: bool = False
    held_too: bool = False


class Upsert(Generic[R]):
    """The statements that write a projection."""

    def __init__(self, rows: Rows[R]) -> None:
        self._rows = rows
        kinds = rows.projection.unchanged
        self.whole = len(kinds)
        kept = [{*change.unchanged, *change.cleared} for change in kinds]
        # The columns to send for each kind of change: the key, and the columns to write.
        self._sent = [tuple(name for name in rows.names if name not in names) for names in [*kept, set[str]()]]
        self._values = [attrgetter(*names) for names in self._sent]
        self._unchanged = [(attrgetter(*change.unchanged), change.cleared) for change in kinds]
        self._counted_by = rows.projection.counted_by
        self._changes_state = [self._counted_by in names for names in self._sent]
        self._state: attrgetter[StrEnum] = attrgetter(self._counted_by)
        forgotten_at = rows.projection.forgotten_at
        self._is_tombstone: Callable[[R], bool] = (
            (lambda _row: False) if forgotten_at is None else lambda row: getattr(row, forgotten_at) is not None
        )
        self._statements: dict[Writes, Statement] = {}

    async def save(
        self,
        connection: Connection,
        saves: Iterable[Save[R]],
        entries: Sequence[Entry] = (),
        log: Mapping[str, object] | None = None,
        *,
        held_too: bool = False,
    ) -> None:
        """Write the rows in the order of their keys, then their changes of the state counts and the outbox entries.

        All of it is one statement. Entries keep the order given, and so do the changes for the log, the parameters of
        `changes.given`; both need at least one row. Raises LostRaceError, and writes nothing, if a row has changed
        since it was read, or, without `held_too`, if an entity is held.
        """
        ordered = sorted(saves, key=lambda save: (save.row.entity_id, save.row.domain))
        if not ordered:
            return
        known = [save for save in ordered if save.read is not None]
        new = [save for save in ordered if save.read is None] if len(known) < len(ordered) else []
        change = max(map(self._change, known), default=None)
        gains = self._gains(ordered) if new or (change is not None and self._changes_state[change]) else {}
        given: dict[str, object] = {"rows_to_write": len(ordered)}
        if change is not None:
            given |= self._arrays_of(known, change, "known")
            given["known_read_version"] = [save.read.version for save in known if save.read is not None]
        if new:
            given |= self._arrays_of(new, self.whole, "new")
        if gains:
            given["gains_domain"] = [domain for domain, _ in gains]
            given[f"gains_{self._counted_by}"] = [state for _, state in gains]
            given["gains_slot"] = [next(_slots)] * len(gains)
            given["gains_count"] = list(gains.values())
        if entries:
            given |= outbox.given(entries)
        if log is not None:
            given |= log
        try:
            writes = Writes(change, bool(new), bool(gains), bool(entries), log is not None, held_too)
            statement = self.statement(writes)
            await statement.value(connection, **given)
        except asyncpg.DivisionByZeroError:
            raise LostRaceError("another writer changed a row that this batch had read") from None

    def _change(self, save: Save[R]) -> int:
        """The first kind of change whose unchanged columns do not differ in this save."""
        for kind, (unchanged, cleared) in enumerate(self._unchanged):
            if unchanged(save.row) == unchanged(save.read):
                for name in cleared:
                    if getattr(save.row, name) is not None:
                        break
                else:
                    return kind
        return self.whole

    def _arrays_of(self, saves: Sequence[Save[R]], change: int, name: str) -> dict[str, object]:
        """An array for each column to send."""
        sent, values = self._sent[change], self._values[change]
        columns = zip(*[values(save.row) for save in saves], strict=True)
        given: dict[str, object] = {f"{name}_{key}": items for key, items in zip(sent, columns, strict=True)}
        encode = msgspec.json.encode
        for key in self._rows.json:
            if (items := given.get(f"{name}_{key}")) is not None:
                given[f"{name}_{key}"] = [encode(item).decode() for item in cast("tuple[object, ...]", items)]
        return given

    def _gains(self, saves: Sequence[Save[R]]) -> dict[tuple[str, StrEnum], int]:
        """The changes of the counters, in the order of domain and state, without unchanged counters.

        Tombstones are not counted.
        """
        gains: Counter[tuple[str, StrEnum]] = Counter()
        state_of, is_tombstone = self._state, self._is_tombstone
        for save in saves:
            state = None if is_tombstone(save.row) else state_of(save.row)
            before = None if save.read is None or is_tombstone(save.read) else state_of(save.read)
            if state is before:
                continue
            if state is not None:
                gains[save.row.domain, state] += 1
            if before is not None:
                gains[save.row.domain, before] -= 1
        return {key: gains[key] for key in sorted(gains) if gains[key]}

    # --- The statement ---------------------------------------------------------------------------------------------

    def statement(self, writes: Writes) -> Statement:
        """The statement that writes a batch, all of it or, by an error, nothing. Built once for each kind of batch.

        `updated` writes the known rows, each guarded by the version that was read. `inserted` writes the new rows,
        except rows that another writer has inserted since. After the rows, `sent` writes the outbox entries, and
        `counted` the changes of the counters. If fewer rows were written than given, or one of the entities is held,
        a division by zero rolls the statement back. This saves the two round trips of a transaction.
        """
        if writes not in self._statements:
            self._statements[writes] = self._built(writes)
        return self._statements[writes]

    def _built(self, writes: Writes) -> Statement:
        written = []
        if writes.known is not None:
            written.append(self._updated(writes.known))
        if writes.new:
            written.append(self._inserted())
        first, *others = (select(func.count()).select_from(rows).scalar_subquery() for rows in written)
        hits: ColumnElement[int] = first
        for other in others:
            hits = hits + other
        complete = hits == bindparam("rows_to_write", type_=BigInteger())
        if not writes.held_too:
            names = [name for name, is_in in (("known", writes.known is not None), ("new", writes.new)) if is_in]
            complete &= self._unheld(names)
        one, zero = literal_column("1", Integer()), literal_column("0", Integer())
        checked: ColumnElement[int] = one // case((complete, one), else_=zero)
        statement = select(checked)
        if writes.sends:
            statement = statement.add_cte(outbox.sending(complete))
        if writes.logs:
            statement = statement.add_cte(changes.logging(complete))
        if writes.counts:
            statement = statement.add_cte(self._counted(complete))
        return Statement(statement)

    def _unheld(self, names: Sequence[str]) -> ColumnElement[bool]:
        """The condition that no entity of these rows is held: a few looks into an index that is usually empty.

        It is evaluated once for the statement, and sees every hold that was committed before the statement began.
        """
        ids = [bindparam(f"{name}_entity_id", type_=ARRAY(Uuid())) for name in names]
        held = or_(*(HeldEntityRow.entity_id == any_(each) for each in ids))
        found = select(func.count().label("number")).where(held).select_from(HeldEntityRow).cte("held")
        return select(found.c.number).scalar_subquery() == literal_column("0")

    def _updated(self, change: int) -> CTE:
        """The part that updates known rows, each guarded by the version that was read."""
        rows, table = self._rows, self._rows.table
        sent = [table.c[name] for name in self._sent[change]]
        read_version = cast("ColumnElement[object]", column("read_version", BigInteger()))
        known = arrays(*sent, read_version, name="known")
        values = {c: known.c[str(c.key)] for c in sent if not c.primary_key}
        cleared = () if change == self.whole else rows.projection.unchanged[change].cleared
        return (
            update(table)
            .where(rows.is_row_of(known.c.entity_id, known.c.domain), table.c.version == known.c.read_version)
            .values(values | {table.c[name]: null() for name in cleared})
            .returning(literal_column("1").label("one"))
            .cte("updated")
        )

    def _inserted(self) -> CTE:
        """The part that inserts new rows, except existing ones."""
        new = arrays(*self._rows.columns, name="new")
        return (
            insert(self._rows.table)
            .from_select(self._rows.columns, select(*new.c))
            .on_conflict_do_nothing(index_elements=self._rows.keys)
            .returning(literal_column("1").label("one"))
            .cte("inserted")
        )

    def _counted(self, complete: ColumnElement[bool]) -> CTE:
        """The part that adds to the counters, in the order of their keys, if all rows were written."""
        counts = self._rows.counts
        state = counts.c[self._counted_by]
        gains = arrays(counts.c.domain, state, counts.c.slot, counts.c.count, name="gains")
        counting = insert(counts).from_select(
            tuple(counts.c), select(*gains.c).where(complete).order_by(gains.c.domain, gains.c[self._counted_by])
        )
        return (
            counting.on_conflict_do_update(
                index_elements=counts.primary_key, set_={"count": counts.c.count + counting.excluded.count}
            )
            .returning(literal_column("1").label("one"))
            .cte("counted")
        )
