"""State counts: the number of entities in each state, kept in slots, and compared with a full count.

Tombstones are not counted.
"""

from collections import Counter
from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Generic

from msgspec import Struct
from sqlalchemy import BigInteger, String, bindparam, func, literal_column, select, text

from app.domain.row_type import R
from app.store.database import Connection
from app.store.rows import Rows
from app.store.statements import Statement

PAGE_BLOCKS = 8192  # of 8 KiB, that one statement counts

# PostgreSQL itself skips no entries of an index, so the statement steps from domain to domain.
_BY_DOMAIN = """
WITH RECURSIVE domains AS (
    (SELECT domain FROM {counts} WHERE domain > CAST(:after AS varchar) ORDER BY domain LIMIT 1)
    UNION ALL
    SELECT following.domain FROM domains CROSS JOIN LATERAL (
        SELECT c.domain FROM {counts} AS c WHERE c.domain > domains.domain ORDER BY c.domain LIMIT 1
    ) AS following
), page AS MATERIALIZED (
    SELECT domain FROM domains LIMIT CAST(:limit AS bigint)
)
SELECT page.domain, kept.state, kept.count FROM page CROSS JOIN LATERAL (
    SELECT c.{state} AS state, CAST(sum(c.count) AS bigint) AS count
    FROM {counts} AS c WHERE c.domain = page.domain GROUP BY c.{state}
) AS kept
ORDER BY page.domain
"""
_AMONG = """
SELECT domain, {state}, CAST(sum(count) AS bigint) FROM {counts}
WHERE domain = ANY(CAST(:among AS varchar[])) AND domain > CAST(:after AS varchar)
GROUP BY domain, {state} ORDER BY domain
"""

CountReport = Callable[[int, float], None]


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
        # Reads the counters of all domains, for metrics.
        self.everywhere = Statement(
            select(counts.c.domain, state, func.sum(counts.c.count).cast(BigInteger()))
            .group_by(counts.c.domain, state)
            .order_by(counts.c.domain, state)
            .limit(bindparam("limit", type_=BigInteger()))
        )
        # Reads the counters of the first domains after a name: one look into the key finds each domain.
        self.by_domain = Statement(text(_BY_DOMAIN.format(counts=counts.name, state=counted_by)))
        # Reads the counters of those of these domains that have some.
        self.among = Statement(text(_AMONG.format(counts=counts.name, state=counted_by)))
        # Reads all counters.
        self.kept = Statement(
            select(counts.c.domain, state, func.sum(counts.c.count).cast(BigInteger()))
            .group_by(counts.c.domain, state)
            .having(func.sum(counts.c.count) != literal_column("0"))
        )
        # Reads how many blocks the table has.
        self.blocks = f"SELECT pg_relation_size('{rows.table.name}') / current_setting('block_size')::bigint"
        # Counts the rows in some blocks, in the order in which they lie on the disk.
        self.counted = f"""
        SELECT domain, {counted_by}, count(*) FROM {rows.table.name}
        WHERE ctid >= $1::tid AND ctid < $2::tid AND {rows.is_present} GROUP BY domain, {counted_by}
        """  # noqa: S608 - names of ours

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

    async def by_domains(
        self, connection: Connection, *, after: str, limit: int, among: Collection[str] | None = None
    ) -> tuple[list[tuple[str, dict[StrEnum, int]]], bool]:
        """The first domains after the name `after`, with the number of entities in each state.

        The second value says whether more follow. With `among`, only those of them. The empty name comes before all.
        """
        if among is None:
            rows = await self.by_domain.rows(connection, after=after, limit=limit + 1)
        else:
            rows = await self.among.rows(connection, after=after, among=list(among))
        found: dict[str, dict[StrEnum, int]] = {}
        for domain, state, count in rows:
            if domain not in found:
                found[domain] = dict.fromkeys(self._states.values(), 0)
            found[domain][self._states[state]] = count
        page = list(found.items())
        return page[:limit], len(page) > limit

    async def verify_counts(self, connection: Connection, report: CountReport = lambda *_: None) -> list[Miscount]:
        """The counters that differ from a full count, both in one snapshot. It reads every row, block by block.

        `report` is called after each page with the rows counted, and the share of the table that this is.
        """
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            kept = {(domain, state): count for domain, state, count in await self.kept.rows(connection)}
            counted: Counter[tuple[str, str]] = Counter()
            blocks: int = await connection.fetchval(self.blocks)
            for first in range(0, blocks, PAGE_BLOCKS):
                page = await connection.fetch(self.counted, (first, 0), (first + PAGE_BLOCKS, 0))
                for domain, state, count in page:
                    counted[domain, state] += count
                report(counted.total(), min(1.0, (first + PAGE_BLOCKS) / blocks))
        return [
            Miscount(domain, self._states[state], kept.get((domain, state), 0), counted[domain, state])
            for domain, state in sorted(kept.keys() | counted.keys())
            if kept.get((domain, state), 0) != counted[domain, state]
        ]
