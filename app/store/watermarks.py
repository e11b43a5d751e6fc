"""Every statement over `watermarks`: how far each partition of Kafka is read."""

import time
from collections.abc import Collection
from datetime import datetime

from msgspec import Struct
from sqlalchemy import text

from app.errors import PqsError
from app.store.database import Connection
from app.store.statements import Statement

Partition = tuple[str, int]  # topic, and the number of the partition in it


class LostPlaceError(PqsError):
    """Somebody else has moved a watermark meanwhile, or has removed it: whoever gets this reads it anew."""


class Advance(Struct, frozen=True, kw_only=True):
    """A watermark that moves on, or is confirmed where it is.

    `expected` is the offset that it stands at, None where there is none yet. `message_at` is the time of the message
    at `offset`, None when that is not known. `caught_up` is when the partition was found to end there, in seconds by
    the monotonic clock, None when it was not.
    """

    topic: str
    partition: int
    expected: int | None
    offset: int
    message_at: datetime | None = None
    caught_up: float | None = None


class Watermark(Struct, frozen=True):
    """How far a partition is read: every message up to `offset` is applied, or is a dead letter.

    `as_of`: what was in the partition by then is in. It is the later one of `message_at`, the time of the message at
    `offset`, and of `caught_up_at`, when there was last seen to be nothing after it; null when neither is known.
    `updated_at` and `consumer`: when it was last written, and by whom.
    """

    topic: str
    partition: int
    offset: int
    as_of: datetime | None
    message_at: datetime | None
    caught_up_at: datetime | None
    updated_at: datetime
    consumer: str


# Where some partitions are to be read on from.
READ = Statement(
    text("""
SELECT w.topic, w.partition, w."offset"
FROM unnest(CAST(:topics AS varchar[]), CAST(:partitions AS integer[])) AS asked (topic, partition)
JOIN watermarks AS w ON w.topic = asked.topic AND w.partition = asked.partition
""")
)


async def read(connection: Connection, partitions: Collection[Partition]) -> dict[Partition, int]:
    """The offsets up to which these partitions are read; those of which nothing was read are left out."""
    rows = await READ.rows(
        connection, topics=[topic for topic, _ in partitions], partitions=[number for _, number in partitions]
    )
    return {(topic, number): offset for topic, number, offset in rows}


# Moves watermarks on from where they are known to stand. A message from the future does not make it later than now.
# The time by which a partition was caught up is the transaction's, less what has passed since: never too late.
ADVANCE = Statement(
    text("""
WITH new AS (
    SELECT * FROM unnest(
        CAST(:topics AS varchar[]), CAST(:partitions AS integer[]), CAST(:expected AS bigint[]),
        CAST(:offsets AS bigint[]), CAST(:messages_at AS timestamptz[]), CAST(:caught_up_for AS float[])
    ) AS new (topic, partition, expected, "offset", message_at, caught_up_for)
), updated AS (
    UPDATE watermarks AS w
    SET "offset" = new."offset",
        message_at = CASE
            WHEN new."offset" = new.expected THEN w.message_at
            WHEN new.message_at IS NOT NULL THEN least(new.message_at, now())
        END,
        caught_up_at = greatest(w.caught_up_at, now() - make_interval(secs => new.caught_up_for)),
        updated_at = now(), consumer = CAST(:consumer AS varchar)
    FROM new
    WHERE w.topic = new.topic AND w.partition = new.partition AND w."offset" = new.expected
    RETURNING 1
), inserted AS (
    INSERT INTO watermarks (topic, partition, "offset", message_at, caught_up_at, updated_at, consumer)
    SELECT
        topic, partition, "offset", CASE WHEN message_at IS NOT NULL THEN least(message_at, now()) END,
        now() - make_interval(secs => caught_up_for), now(), CAST(:consumer AS varchar)
    FROM new WHERE expected IS NULL
    ORDER BY topic, partition
    ON CONFLICT (topic, partition) DO NOTHING
    RETURNING 1
)
SELECT (SELECT count(*) FROM updated) + (SELECT count(*) FROM inserted)
""")
)


async def advance(connection: Connection, advances: Collection[Advance], consumer: str) -> None:
    """Move the watermarks. Raises LostPlaceError when one does not stand where it is expected; needs a transaction,
    which that rolls back. So whoever has lost a partition writes nothing of it, nor of what came with it.
    """
    ordered = sorted(advances, key=lambda each: (each.topic, each.partition))
    now = time.monotonic()
    moved = await ADVANCE.value(
        connection,
        topics=[each.topic for each in ordered],
        partitions=[each.partition for each in ordered],
        expected=[each.expected for each in ordered],
        offsets=[each.offset for each in ordered],
        messages_at=[each.message_at for each in ordered],
        caught_up_for=[None if each.caught_up is None else now - each.caught_up for each in ordered],
        consumer=consumer,
    )
    if moved != len(ordered):
        raise LostPlaceError("another consumer reads one of these partitions, or its watermark was removed")


# All watermarks. There are as many as partitions: a page would gain nothing.
LIST = Statement(
    text("""
SELECT
    topic, partition, "offset", greatest(message_at, caught_up_at), message_at, caught_up_at, updated_at, consumer
FROM watermarks ORDER BY topic, partition
""")
)


async def get_all(connection: Connection) -> list[Watermark]:
    """Every watermark, by topic and partition."""
    return [Watermark(*row) for row in await LIST.rows(connection)]
