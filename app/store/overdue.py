"""Overdue scans: rows whose deadline has passed, for callers and for the sweep."""

from datetime import UTC, datetime
from typing import Generic, cast
from uuid import UUID

from msgspec import Struct
from sqlalchemy import BigInteger, String, Uuid, bindparam, func, select, text, tuple_
from sqlalchemy.dialects.postgresql import TIMESTAMP

from app.domain.projection import Timeout
from app.domain.row_type import R
from app.store.database import Connection
from app.store.rows import Rows
from app.store.statements import Statement
from app.store.tables import due
from app.wire.overview import OverdueCount

DueKey = tuple[datetime, UUID]  # deadline, entity_id: the order of an overdue scan
PassedKey = tuple[str, datetime, UUID]  # domain, deadline, entity_id: the order in which the sweep reads
COUNTED = 1000  # rows that are counted
AT_ONCE = 100  # rows that are fetched in one go; each may have 64 KiB of capabilities
_BEFORE_TIMES = datetime(1, 1, 1, tzinfo=UTC)
BEFORE_ALL: PassedKey = ("", _BEFORE_TIMES, UUID(int=0))


class Overdue(Struct, Generic[R], frozen=True):
    """A page of an overdue scan: the rows, whether more follow, and the earliest deadline that has not passed."""

    items: list[R]
    next_deadline: datetime | None
    more: bool = False


class PassedPage(Struct, Generic[R], frozen=True):
    """A page of passed deadlines: the rows that may expire, the time of the read, and where the next page begins.

    `after` is None when there is no next page.
    """

    items: list[R]
    now: datetime
    after: PassedKey | None


# Reads passed deadlines of all domains, in the order of the index. `domains` steps from each domain with a deadline
# to the next by one index lookup, and `page` ends when it is full, so the cost is that of a page, however many
# domains there are. The result has the rows of the page that may expire, and always the last row, where the next page
# begins. A row on a partition may expire when everything up to its deadline has been read from that partition, with
# `follow` from all partitions of its topic; when each partition of the topic was read to its end once; and when no
# message of the entity is a dead letter.
_PASSED = """
WITH RECURSIVE domains AS (
    (
        SELECT domain FROM {table}
        WHERE {due} AND domain >= CAST(:after_domain AS varchar)
        ORDER BY domain LIMIT 1
    )
    UNION ALL
    SELECT following.domain FROM domains CROSS JOIN LATERAL (
        SELECT r.domain FROM {table} AS r
        WHERE {due} AND r.domain > domains.domain
        ORDER BY r.domain LIMIT 1
    ) AS following
), page AS MATERIALIZED (
    SELECT overdue.*, row_number() OVER () AS place
    FROM (
        SELECT passed.* FROM domains CROSS JOIN LATERAL (
            SELECT * FROM {table} AS r
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
    SELECT
        topic || '-' || partition AS partition,
        CASE
            WHEN bool_or("offset" < 0 AND caught_up_at IS NULL) OVER of_topic THEN NULL
            WHEN CAST(:follow AS boolean)
                THEN min(coalesce(greatest(message_at, caught_up_at), '-infinity')) OVER of_topic
            ELSE greatest(message_at, caught_up_at)
        END AS reached
    FROM watermarks WINDOW of_topic AS (PARTITION BY topic)
), judged AS MATERIALIZED (
    SELECT
        page.*, statement_timestamp() AS as_of, place = CAST(:most AS bigint) AS is_full,
        (page.last_applied_partition IS NULL OR coalesce(marks.reached > page.{deadline}, false))
            AND NOT EXISTS (
                SELECT FROM dead_letters AS d WHERE d.entity_id = ANY(ARRAY[page.entity_id]) AND d.source = 'consumer'
            ) AS may_expire
    FROM page LEFT JOIN marks ON marks.partition = page.last_applied_partition
)
SELECT {columns}, as_of, may_expire, is_full FROM judged WHERE may_expire OR is_full ORDER BY place
"""


# Steps from domain to domain in the index, and takes the first deadline of each: PostgreSQL itself skips nothing.
_OLDEST = """
WITH RECURSIVE firsts (first_domain, first_deadline) AS (
    (SELECT domain, {deadline} FROM {table} WHERE {due} AND {unheld} ORDER BY domain, {deadline} LIMIT 1)
    UNION ALL
    SELECT next.* FROM firsts, LATERAL (
        SELECT domain, {deadline} FROM {table}
        WHERE {due} AND {unheld} AND domain > first_domain
        ORDER BY domain, {deadline} LIMIT 1
    ) AS next
)
SELECT greatest(0, coalesce(extract(epoch FROM clock_timestamp() - min(first_deadline)), 0))::float8 FROM firsts
"""

# The condition that an entity's messages do not wait behind a dead letter: its deadline then says nothing.
_UNHELD = "NOT EXISTS (SELECT FROM held_entities AS h WHERE h.entity_id = ANY (ARRAY[{table}.entity_id]))"


# Counts the passed deadlines of a domain up to a limit, with the first of them and the next one to come.
_COUNT = """
SELECT
    (SELECT count(*) FROM (
        SELECT FROM {table}
        WHERE domain = CAST(:domain AS varchar) AND {due} AND {deadline} < CAST(:as_of AS timestamptz) AND {unheld}
        ORDER BY {deadline} LIMIT CAST(:most AS bigint)
    ) AS passed),
    (
        SELECT {deadline} FROM {table}
        WHERE domain = CAST(:domain AS varchar) AND {due} AND {deadline} < CAST(:as_of AS timestamptz) AND {unheld}
        ORDER BY {deadline} LIMIT 1
    ),
    (
        SELECT {deadline} FROM {table}
        WHERE domain = CAST(:domain AS varchar) AND {due} AND {deadline} >= CAST(:as_of AS timestamptz) AND {unheld}
        ORDER BY {deadline} LIMIT 1
    )
"""


class DeadlineScan(Generic[R]):
    """The statements over one kind of deadline. Their condition is the predicate of its partial index."""

    def __init__(self, rows: Rows[R], timeout: Timeout[R]) -> None:
        self._rows = rows
        self._deadline = timeout.deadline
        deadline, entity_id = rows.table.c[timeout.deadline], rows.table.c.entity_id
        condition = due(rows.projection.counted_by, timeout)
        as_of = bindparam("as_of", type_=TIMESTAMP(timezone=True))
        unheld = _UNHELD.format(table=rows.table.name)
        waiting = (rows.table.c.domain == bindparam("domain", type_=String()), text(condition), text(unheld))
        first = (
            select(*rows.columns)
            .where(*waiting, deadline < as_of)
            .order_by(deadline, entity_id)
            .limit(bindparam("limit", type_=BigInteger()))
        )
        place = tuple_(
            bindparam("after_deadline", type_=TIMESTAMP(timezone=True)), bindparam("after_id", type_=Uuid())
        )
        # Reads the passed deadlines of a domain, oldest first.
        self.first = Statement(first)
        # The same, after a given row.
        self.after = Statement(first.where(tuple_(deadline, entity_id) > place))
        # Finds the earliest deadline of a domain that has not passed.
        self.next = Statement(select(deadline).where(*waiting, deadline >= as_of).order_by(deadline).limit(1))
        # Finds how long ago the oldest passed deadline of all domains has passed, by one look into the index for each
        # domain.
        self.oldest = Statement(
            text(_OLDEST.format(table=rows.table.name, due=condition, unheld=unheld, deadline=timeout.deadline))
        )
        # Counts the passed deadlines of a domain.
        self.counted = Statement(
            text(_COUNT.format(table=rows.table.name, due=condition, unheld=unheld, deadline=timeout.deadline))
        )
        # Reads the passed deadlines of all domains, with the rows that may expire now.
        passed = _PASSED.format(
            table=rows.table.name, due=condition, deadline=timeout.deadline, columns=", ".join(rows.names)
        )
        self.passed = Statement(text(passed))

    async def get_overdue(
        self, connection: Connection, domain: str, *, as_of: datetime, after: DueKey | None, limit: int
    ) -> Overdue[R]:
        """The rows with a deadline before `as_of` whose timeout was not emitted, oldest first.

        They are up to `limit`, and about PAGE_BYTES of JSON. Held entities are left out.
        """
        asked: dict[str, object] = {"domain": domain, "as_of": as_of}
        place = {} if after is None else dict(zip(("after_deadline", "after_id"), after, strict=True))
        statement = self.first if after is None else self.after
        records, more = await statement.page(
            connection, limit=limit, at_once=AT_ONCE, json=self._rows.json_places, **place, **asked
        )
        next_deadline = cast("datetime | None", await self.next.value(connection, **asked))
        return Overdue([self._rows.row(record) for record in records], next_deadline, more)

    async def count(self, connection: Connection, domain: str, *, as_of: datetime) -> OverdueCount:
        """The rows with a deadline before `as_of` whose timeout was not emitted, counted up to COUNTED."""
        [(count, oldest, next_)] = await self.counted.rows(connection, domain=domain, as_of=as_of, most=COUNTED + 1)
        return OverdueCount(min(count, COUNTED), count > COUNTED, oldest, next_)

    async def oldest_seconds(self, connection: Connection) -> float:
        """Seconds since the oldest deadline passed whose timeout was not emitted; 0 without one."""
        return float(cast("float", await self.oldest.value(connection)))

    async def get_passed(
        self, connection: Connection, *, after: PassedKey, most: int, follow: bool = False
    ) -> PassedPage[R]:
        """The rows of all domains whose deadline has passed by the database's clock, and which may expire now.

        They are in the order of domain, deadline and entity id, after `after`. The page is taken from `most` rows, so
        it may have fewer rows, or none, and not be the last one. A row on a partition is left out until the watermark
        of the partition has passed its deadline, with `follow` (PQS_TRACKS) the watermarks of all partitions of its
        topic; without a watermark it is always left out. So is a row while some partition of its topic was never read
        to its end, or a message of its entity is a dead letter.
        """
        place = dict(zip(("after_domain", "after_deadline", "after_id"), after, strict=True))
        records = await self.passed.rows(connection, most=most, follow=follow, **place)
        if not records:
            return PassedPage([], _BEFORE_TIMES, None)
        items = [self._rows.row(record) for record in records if record["may_expire"]]
        last = records[-1]
        end = (last["domain"], last[self._deadline], last["entity_id"]) if last["is_full"] else None
        return PassedPage(items, last["as_of"], end)


# Reads the database's clock.
NOW = Statement(select(func.clock_timestamp()))


async def now(connection: Connection) -> datetime:
    """The time by the database's clock."""
    return cast("datetime", await NOW.value(connection))
