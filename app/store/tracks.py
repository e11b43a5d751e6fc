"""Every statement that moves the rows of a whole track: of a partition, or of all partitions of a topic."""

from typing import Generic
from uuid import UUID

from msgspec import Struct
from sqlalchemy import text

from app.domain.positions import ANY_PARTITION, Position, topic_of
from app.domain.row_type import R
from app.domain.rows import moved
from app.store.database import Connection
from app.store.registrations import Store
from app.store.statements import Statement

WINDOW = 5_000  # rows that one transaction looks at

RowKey = tuple[UUID, str]  # entity_id, domain: the order in which rows are looked at
BEFORE_ALL_KEYS: RowKey = (UUID(int=0), "")

# Finds the last row of the next window.
_END = """
SELECT entity_id, domain FROM (
    SELECT entity_id, domain FROM {table}
    WHERE (entity_id, domain) > (CAST(:entity_id AS uuid), CAST(:domain AS varchar))
    ORDER BY entity_id, domain LIMIT CAST(:most AS bigint)
) AS page ORDER BY entity_id DESC, domain DESC LIMIT 1
"""

# Locks the rows of a window that stand on the track, in the order of their keys.
_LOCK = r"""
SELECT {columns} FROM {table} AS r
WHERE (r.entity_id, r.domain) > (CAST(:entity_id AS uuid), CAST(:domain AS varchar))
    AND (r.entity_id, r.domain) <= (CAST(:last_id AS uuid), CAST(:last_domain AS varchar))
    AND (
        r.last_applied_partition = CAST(:partition AS varchar)
        OR (
            starts_with(r.last_applied_partition, CAST(:topic AS varchar) || '-')
            AND substr(r.last_applied_partition, length(CAST(:topic AS varchar)) + 2) ~ '^([0-9]+|[*])$'
        )
    )
ORDER BY r.entity_id, r.domain FOR UPDATE
"""

# Moves locked rows.
_MOVE = """
UPDATE {table} AS r
SET last_applied_partition = CAST(:to_partition AS varchar), last_applied_offset = CAST(:to_offset AS bigint),
    last_applied_sequence = NULL, version = r.version + 1
FROM unnest(CAST(:ids AS uuid[]), CAST(:domains AS varchar[])) AS locked (entity_id, domain)
WHERE r.entity_id = ANY(ARRAY[locked.entity_id]) AND r.domain || '' = locked.domain
"""


class Moved(Struct, Generic[R], frozen=True):
    """The rows of a window that were moved, before and after, and where the next window begins; None at the end."""

    rows: list[tuple[R, R]]
    after: RowKey | None


class TrackMoves(Generic[R]):
    """The statements over the tracks of one projection's rows."""

    def __init__(self, store: Store[R]) -> None:
        rows = store.rows
        names = {"table": rows.table.name, "columns": ", ".join(f"r.{name}" for name in rows.names)}
        self._row = rows.row
        self._end = Statement(text(_END.format(**names)))
        self._lock = Statement(text(_LOCK.format(**names)))
        self._move = Statement(text(_MOVE.format(**names)))

    async def move(
        self, connection: Connection, track: str, to: Position, *, after: RowKey = BEFORE_ALL_KEYS, most: int = WINDOW
    ) -> Moved[R]:
        """Move the rows of the next `most` that stand on `track`: only their position and version change.

        `track` is a partition, `<topic>-<number>`, or every partition of a topic, `<topic>-*`.
        """
        begin = {"entity_id": after[0], "domain": after[1]}
        ends = await self._end.rows(connection, **begin, most=most)
        if not ends:
            return Moved([], None)
        last: RowKey = (ends[0][0], ends[0][1])
        topic = topic_of(track) if track.endswith(f"-{ANY_PARTITION}") else None
        records = await self._lock.rows(
            connection, **begin, last_id=last[0], last_domain=last[1], partition=track, topic=topic
        )
        read = [self._row(record) for record in records]
        if read:
            await self._move.rows(
                connection,
                to_partition=to.partition,
                to_offset=to.offset,
                ids=[each.entity_id for each in read],
                domains=[each.domain for each in read],
            )
        return Moved([(each, moved(each, to)) for each in read], last)
