"""State counts: the number of entities in each state, kept in slots, and compared with a full count."""

from enum import StrEnum
from typing import Generic

from msgspec import Struct
from sqlalchemy import BigInteger, String, bindparam, func, literal_column, select

from app.domain.row_type import R
from app.store.database import Connection
from app.store.rows import Rows
from app.store.statements import Statement


class Miscount(Struct, frozen=True):
    """A counter that differs from the rows."""

    domain: str
    state: StrEnum
    kept: int
    counted: int


class Counts(Generic[R]):
    """The counters of one projection: the table has a row for each domain, state and slot."""

    def __init__(self, rows: Rows[R]) -> None:
        self._states = rows.states
        counts, counted_by = rows.counts, str(rows.counted_by.key)
        state = counts.c[counted_by]
        # Reads the counters of a domain's states.
        self.count = Statement(
            select(state, func.sum(counts.c.count).cast(BigInteger()))
            .where(counts.c.domain == bindparam("domain", type_=String()))
            .group_by(state)
        )
        kept = (
            select(counts.c.domain, state, func.sum(counts.c.count).cast(BigInteger()).label("kept"))
            .group_by(counts.c.domain, state)
            .subquery("kept")
        )
        counted = (
            select(rows.table.c.domain, rows.counted_by, func.count().label("counted"))
            .group_by(rows.table.c.domain, rows.counted_by)
            .subquery("counted")
        )
        # Reads the counters of all domains, for metrics.
        self.everywhere = Statement(
            select(counts.c.domain, state, func.sum(counts.c.count).cast(BigInteger()))
            .group_by(counts.c.domain, state)
            .order_by(counts.c.domain, state)
            .limit(bindparam("limit", type_=BigInteger()))
        )
        is_same = (kept.c.domain == counted.c.domain) & (kept.c[counted_by] == counted.c[counted_by])
        # Finds the counters that differ from a full count, in one snapshot.
        self.verify = Statement(
            select(
                func.coalesce(kept.c.domain, counted.c.domain).label("domain"),
                func.coalesce(kept.c[counted_by], counted.c[counted_by]).label("state"),
                func.coalesce(kept.c.kept, 0),
                func.coalesce(counted.c.counted, 0),
            )
            .select_from(kept.join(counted, is_same, full=True))
            .where(func.coalesce(kept.c.kept, 0) != func.coalesce(counted.c.counted, 0))
            .order_by(literal_column("1"), literal_column("2"))
        )

    async def count_by_state(self, connection: Connection, domain: str) -> dict[StrEnum, int]:
        """The number of the domain's entities in each state, including empty states."""
        counts = dict.fromkeys(self._states.values(), 0)
        for state, count in await self.count.rows(connection, domain=domain):
            counts[self._states[state]] = count
        return counts

    async def count_everywhere(self, connection: Connection, *, limit: int) -> list[tuple[str, str, int]]:
        """Domain, state and number of entities, for the first `limit` pairs of domain and state."""
        return [
            (domain, str(state), count)
            for domain, state, count in await self.everywhere.rows(connection, limit=limit)
        ]

    async def verify_counts(self, connection: Connection) -> list[Miscount]:
        """The counters that differ from a full count. It reads every row."""
        return [
            Miscount(domain, self._states[state], *both)
            for domain, state, *both in await self.verify.rows(connection)
        ]
