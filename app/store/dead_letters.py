"""Every statement over `dead_letters`: the messages that could not be applied or sent, unchanged."""

from collections.abc import Collection
from datetime import datetime
from typing import cast
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import text

from app.store.database import Connection, Record
from app.store.statements import Statement
from app.wire.answers import DeadLetterSource

CONSUMER: DeadLetterSource = "consumer"  # an incoming message
RELAY: DeadLetterSource = "relay"  # an outgoing message
MAX_ERROR = 4000  # characters
COUNTED = 10_000  # messages that are counted one by one; the number of further ones is an estimate
PAGE_BYTES = 4 * 1024 * 1024  # of values; a page that reaches this ends

MessageHeaders = list[tuple[str, bytes | None]]


class Letter(Struct, frozen=True, kw_only=True):
    """A message as it was, with its partition, offset and error. An outgoing message has no partition and offset.

    `entity_id` is the entity that an incoming message is about, if its bytes tell: it does not expire meanwhile.
    """

    source: DeadLetterSource = CONSUMER
    topic: str
    partition: int | None = None
    offset: int | None = None
    key: bytes | None
    value: bytes | None
    headers: MessageHeaders
    error: str
    entity_id: UUID | None = None


class DeadLetter(Letter, frozen=True, kw_only=True):
    """A stored letter."""

    id: int
    created_at: datetime


_headers = msgspec.json.Decoder(MessageHeaders).decode


def _letter(row: Record) -> DeadLetter:
    """The letter of a row, whose columns are in the order of the statements below."""
    id_, created_at, source, topic, partition, offset, key, value, headers, error, *_ = row
    return DeadLetter(
        id=id_,
        created_at=created_at,
        source=source,
        topic=topic,
        partition=partition,
        offset=offset,
        key=key,
        value=value,
        headers=_headers(headers),
        error=error,
    )


# Stores messages. A message that was read a second time is stored already.
ADD = Statement(
    text("""
INSERT INTO dead_letters (source, topic, partition, "offset", key, value, headers, error, entity_id)
SELECT * FROM unnest(
    CAST(:sources AS varchar[]), CAST(:topics AS varchar[]), CAST(:partitions AS integer[]),
    CAST(:offsets AS bigint[]), CAST(:keys AS bytea[]), CAST(:values AS bytea[]), CAST(:headers AS bytea[]),
    CAST(:errors AS text[]), CAST(:entity_ids AS uuid[])
)
ON CONFLICT (topic, partition, "offset") DO NOTHING
""")
)


async def add(connection: Connection, letters: Collection[Letter]) -> None:
    """Store messages, one for each topic, partition and offset."""
    await ADD.rows(
        connection,
        sources=[each.source for each in letters],
        topics=[each.topic for each in letters],
        partitions=[each.partition for each in letters],
        offsets=[each.offset for each in letters],
        keys=[each.key for each in letters],
        values=[each.value for each in letters],
        headers=[msgspec.json.encode(each.headers) for each in letters],
        errors=[_storable(each.error) for each in letters],
        entity_ids=[each.entity_id for each in letters],
    )


def _storable(error: str) -> str:
    """The error as PostgreSQL can store it: the error may quote NUL, or half a character, from the message."""
    return error[:MAX_ERROR].encode("utf-8", "replace").decode().replace("\0", "\\u0000")


# Reads a page, oldest first. It ends after `limit` rows, or when its values reach `most_bytes`.
LIST = Statement(
    text("""
SELECT id, created_at, source, topic, partition, "offset", key, value, headers, error, found
FROM (
    SELECT
        *, count(*) OVER () AS found,
        coalesce(sum(octet_length(value)) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING), 0)
            - coalesce(octet_length(value), 0) AS bytes_before
    FROM (
        SELECT * FROM dead_letters WHERE id > CAST(:after AS bigint) ORDER BY id LIMIT CAST(:limit AS bigint) + 1
    ) AS beginning
) AS page
WHERE bytes_before < CAST(:most_bytes AS bigint)
ORDER BY id LIMIT CAST(:limit AS bigint)
""")
)


async def get_page(connection: Connection, *, after: int, limit: int) -> tuple[list[DeadLetter], bool]:
    """The first messages after the id `after`, up to `limit` and about PAGE_BYTES, and whether more follow."""
    rows = await LIST.rows(connection, after=after, limit=limit, most_bytes=PAGE_BYTES)
    return [_letter(row) for row in rows], bool(rows) and rows[0][-1] > len(rows)


# Counts the first messages, and estimates the number of the rest: as dense by id as the first ones.
COUNT = Statement(
    text("""
SELECT CAST(CASE
    WHEN first.counted < CAST(:counted AS bigint) THEN first.counted
    ELSE 1 + (first.counted - 1) * (last.id - first.from_id) / CAST(first.to_id - first.from_id AS float)
END AS bigint)
FROM (
    SELECT count(*) AS counted, min(id) AS from_id, max(id) AS to_id
    FROM (SELECT id FROM dead_letters ORDER BY id LIMIT CAST(:counted AS bigint)) AS beginning
) AS first
LEFT JOIN (SELECT id FROM dead_letters ORDER BY id DESC LIMIT 1) AS last ON true
""")
)


async def count(connection: Connection) -> int:
    """The number of messages: exact below COUNTED, and an estimate beyond, so that its cost is bounded."""
    return cast("int", await COUNT.value(connection, counted=COUNTED))


# Reads one message by its id.
READ = Statement(
    text("""
SELECT id, created_at, source, topic, partition, "offset", key, value, headers, error
FROM dead_letters WHERE id = CAST(:id AS bigint)
""")
)


async def get(connection: Connection, id_: int) -> DeadLetter | None:
    """The message with this id, or None."""
    rows = await READ.rows(connection, id=id_)
    return _letter(rows[0]) if rows else None


# Removes one message that was applied or discarded.
REMOVE = Statement(text("DELETE FROM dead_letters WHERE id = CAST(:id AS bigint) RETURNING id"))


async def remove(connection: Connection, id_: int) -> bool:
    """Remove one message. Returns whether it was there."""
    return await REMOVE.value(connection, id=id_) is not None
