"""Every statement over `watermarks`: how far each partition of Kafka is read."""

import time
from collections.abc import Collection
from datetime import datetime

from msgspec import Struct
from sqlalchemy import text

from app.answers import Watermark
from app.errors import PqsError
from app.store.database import Connection
from app.store.statements import Statement

KafkaPartition = tuple[str, int]  # topic, and the number of the partition in it


class LostPlaceError(PqsError):
    """Another consumer moved or removed a watermark meanwhile: read it again."""


class Advance(Struct, frozen=True, kw_only=True):
    """A watermark that moves on, or is confirmed where it is.

    `expected` is the offset that it stands at, None where there is none yet. What came before `message_at` is in, as
    far as the times of the messages up to `offset` tell; None when that is not known. `caught_up` is when the
    partition was found to end there, in seconds by the monotonic clock, None when it was not.
    """

    topic: str
    partition: int
    expected: int | None
    offset: int
    message_at: datetime | None = None
    caught_up: float | None = None


# The offsets after which some partitions are read on. By `= ANY`, for which app/store/rows.py has the reason.
READ = Statement(
    text("""
SELECT w.topic, w.partition, w."offset"
FROM unnest(CAST(:topics AS varchar[]), CAST(:partitions AS integer[])) AS asked (topic, partition)
JOIN watermarks AS w ON w.topic = ANY(ARRAY[asked.topic]) AND w.partition = asked.partition
""")
)


async def read(connection: Connection, partitions: Collection[KafkaPartition]) -> dict[KafkaPartition, int]:
    """The offsets up to which these partitions are read; those of which nothing was read are left out."""
    rows = await READ.rows(
        connection, topics=[topic for topic, _ in partitions], partitions=[number for _, number in partitions]
    )
    return {(topic, number): offset for topic, number, offset in rows}


# Moves watermarks on from where they are known to stand. A time that is still to come is a wrong clock's, and says
# nothing about what is in. An older time than the present one counts as well: the present one has been found wrong.
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
            WHEN new.message_at <= now() THEN new.message_at
        END,
        caught_up_at = greatest(w.caught_up_at, now() - make_interval(secs => new.caught_up_for)),
        updated_at = now(), consumer = CAST(:consumer AS varchar)
    FROM new
    WHERE w.topic = ANY(ARRAY[new.topic]) AND w.partition = new.partition AND w."offset" = new.expected
    RETURNING 1
), inserted AS (
    INSERT INTO watermarks (topic, partition, "offset", message_at, caught_up_at, updated_at, consumer)
    SELECT
        topic, partition, "offset", CASE WHEN message_at <= now() THEN message_at END,
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


class Age(Struct, frozen=True):
    """The age of a partition's watermark: the seconds since the time up to which everything is applied."""

    topic: str
    partition: int
    seconds: float


# How far behind each partition may be. One of which no time is known is left out.
AGES = Statement(
    text("""
SELECT
    topic, partition,
    CAST(greatest(0, extract(epoch FROM clock_timestamp() - greatest(message_at, caught_up_at))) AS float)
FROM watermarks WHERE message_at IS NOT NULL OR caught_up_at IS NOT NULL
ORDER BY topic, partition
""")
)


async def ages(connection: Connection) -> list[Age]:
    """How long ago `as_of` is, of every watermark that has one, by topic and partition."""
    return [Age(*row) for row in await AGES.rows(connection)]
