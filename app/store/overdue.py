"""Overdue scans: registrations whose deadline has passed, for callers and for the sweep."""

from datetime import UTC, datetime
from typing import cast
from uuid import UUID

from msgspec import Struct
from sqlalchemy import BigInteger, ColumnElement, String, Uuid, bindparam, func, select, text, tuple_
from sqlalchemy.dialects.postgresql import TIMESTAMP

from app.domain.decider import Deadline
from app.domain.registration import Registration
from app.store.database import Connection, Record
from app.store.rows import COLUMNS, TABLE, registration_of
from app.store.statements import Statement
from app.store.tables import ACK_DUE, LIVENESS_DUE

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
        rows = (TABLE.c.domain == bindparam("domain", type_=String()), text(due))
        first = (
            select(*COLUMNS)
            .where(*rows, deadline < as_of)
            .order_by(deadline, TABLE.c.entity_id)
            .limit(bindparam("limit", type_=BigInteger()))
        )
        place = tuple_(
            bindparam("after_deadline", type_=TIMESTAMP(timezone=True)), bindparam("after_id", type_=Uuid())
        )
        # The passed deadlines, oldest first.
        self.first = Statement(first)
        # The same from a row on.
        self.after = Statement(first.where(tuple_(deadline, TABLE.c.entity_id) > place))
        # The earliest deadline that has not passed.
        self.next = Statement(select(func.min(deadline)).where(*rows, deadline >= as_of))
        # The passed deadlines of all domains that may expire now.
        names = ", ".join(str(c.key) for c in COLUMNS)
        self.passed = Statement(text(_PASSED.format(due=due, deadline=deadline.key, columns=names)))


ACK_SCAN = _Scan(TABLE.c.ack_deadline, ACK_DUE)
LIVENESS_SCAN = _Scan(TABLE.c.liveness_deadline, LIVENESS_DUE)
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
    return Overdue([registration_of(row) for row in rows], next_deadline)


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
    read = [registration_of(cast("Record", row[: len(COLUMNS)])) for row in rows]
    items = [registration for registration, row in zip(read, rows, strict=True) if row["may_expire"]]
    now, last = rows[-1]["as_of"], rows[-1]
    end = (last["domain"], last[f"{deadline}_deadline"], last["entity_id"]) if last["is_full"] else None
    return Passed(items, now, end)
