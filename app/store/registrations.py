"""The store of a projection: its statements, bound to its tables. `REGISTRATIONS` is the store that the service uses.

This module has the statements that find rows by their keys; `upsert`, `counts` and `overdue` have the others.
"""

from collections.abc import Sequence
from typing import Generic
from uuid import UUID

from sqlalchemy import BigInteger, MetaData, String, Uuid, bindparam, select, update

from app.domain.events import Key, Name, key_of
from app.domain.positions import Position
from app.domain.projection import REGISTRATION, Projection
from app.domain.row_type import R
from app.store.counts import Counts
from app.store.database import Connection
from app.store.overdue import DeadlineScan
from app.store.rows import Rows, arrays
from app.store.statements import Statement
from app.store.tables import Base
from app.store.upsert import Upsert


class Store(Generic[R]):
    """Every statement over the tables of one projection."""

    def __init__(self, projection: Projection[R], metadata: MetaData, *, counts: str) -> None:
        """Raises ValueError as `Rows` does. Each statement is built once, and compiled at its first use."""
        self.projection = projection
        self.rows = Rows(projection, metadata, counts=counts)
        self.upsert = Upsert(self.rows)
        self.counts = Counts(self.rows)
        self.overdue = {name: DeadlineScan(self.rows, timeout) for name, timeout in projection.deadlines.items()}
        table, columns = self.rows.table, self.rows.columns
        asked = arrays(*self.rows.keys, name="asked")
        by_keys = select(*columns).join(asked, self.rows.is_row_of(asked.c.entity_id, asked.c.domain))
        # Reads the rows of some entities, for point reads, lookups and folding.
        self.read = Statement(by_keys)
        # The same, and locks the rows one by one in the order of their keys: two batches with common rows wait for
        # each other and do not deadlock.
        self.lock = Statement(by_keys.order_by(*asked.c).with_for_update(of=table))
        # The same, but skips rows that another transaction has locked.
        self.lock_free = Statement(by_keys.order_by(*asked.c).with_for_update(of=table, skip_locked=True))
        # Moves one entity to another track: it changes only position and version.
        self.move = Statement(
            update(table)
            .where(self.rows.is_row_of(bindparam("of_entity", type_=Uuid()), bindparam("of_domain", type_=String())))
            .values(
                last_applied_sequence=bindparam("sequence", type_=BigInteger()),
                last_applied_partition=bindparam("partition", type_=String()),
                last_applied_offset=bindparam("offset", type_=BigInteger()),
                version=table.c.version + 1,
            )
            .returning(*columns)
        )

    async def get_entity_states(
        self, connection: Connection, names: Sequence[Name], *, lock: bool = False
    ) -> dict[Key, R]:
        """The rows of these entities by key_of(), without missing ones; `lock` keeps them locked until the commit."""
        records = await (self.lock if lock else self.read).rows(
            connection,
            asked_entity_id=[entity_id for entity_id, _ in names],
            asked_domain=[domain for _, domain in names],
        )
        row = self.rows.row
        return {(record[0].bytes, record[1]): row(record) for record in records}

    async def get_entity_state(
        self, connection: Connection, entity_id: UUID, domain: str, *, lock: bool = False
    ) -> R | None:
        """The row of one entity, or None. With `lock` it stays locked until the transaction ends."""
        found = await self.get_entity_states(connection, [(entity_id, domain)], lock=lock)
        return found.get(key_of(entity_id, domain))

    async def lock_unchanged(self, connection: Connection, read: Sequence[R]) -> list[R]:
        """Lock the rows that are unchanged since they were read, until the transaction ends, and return them.

        It never waits: it leaves out rows that another transaction has locked.
        """
        records = await self.lock_free.rows(
            connection, asked_entity_id=[each.entity_id for each in read], asked_domain=[each.domain for each in read]
        )
        versions = {key_of(record["entity_id"], record["domain"]): record["version"] for record in records}
        return [each for each in read if versions.get(key_of(each.entity_id, each.domain)) == each.version]

    async def locked(self, connection: Connection, names: Sequence[Name]) -> set[Key]:
        """The keys of these rows that another transaction has locked. The others are locked until this one ends."""
        found = await self.get_entity_states(connection, names)
        asked = {"asked_entity_id": [name[0] for name in names], "asked_domain": [name[1] for name in names]}
        free = await self.lock_free.rows(connection, **asked)
        return found.keys() - {key_of(record["entity_id"], record["domain"]) for record in free}

    async def rebase(
        self, connection: Connection, entity_id: UUID, domain: str, position: Position
    ) -> tuple[R, R] | None:
        """Move an entity to `position`, on any track. Returns the row before and after, or None without a row."""
        before = await self.get_entity_state(connection, entity_id, domain, lock=True)
        if before is None:
            return None
        [moved] = await self.move.rows(
            connection,
            of_entity=entity_id,
            of_domain=domain,
            sequence=position.sequence,
            partition=position.partition,
            offset=position.offset,
        )
        return before, self.rows.row(moved)


REGISTRATIONS = Store(REGISTRATION, Base.metadata, counts="registration_state_counts")
