"""Every statement over `watermarks`: the progress in each partition of Kafka."""

import time
from collections.abc import Collection
from datetime import datetime
from enum import Enum, auto

from msgspec import Struct
from sqlalchemy import text

from app.errors import PqsError
from app.store.database import Connection
from app.store.statements import Statement
from app.wire.answers import Watermark
from app.wire.overview import WatermarkState

KafkaPartition = tuple[str, int]  # a topic, and the number of a partition of it
UNUSED = 30.0  # seconds after which a partition counts as not read by anybody
NOTHING_READ = -1  # the offset of a watermark before the first message


class LostPlaceError(PqsError):
    """Another consumer has moved or removed a watermark: read it again."""


class Advance(Struct, frozen=True, kw_only=True):
    """One watermark's move to `offset`, or the confirmation of its present offset.

    `expected` is the offset where it stands: NOTHING_READ at first. Messages older than `message_at` are
    applied, as far as the times of the messages up to `offset` tell; None if unknown. `caught_up` is the time when
    the partition was found to end at `offset`, in seconds by the monotonic clock; None if it was not.
    """

    topic: str
    partition: int
    expected: int
    offset: int
    message_at: datetime | None = None
    caught_up: float | None = None


class FoundPartition(Struct, frozen=True):
    """A partition that Kafka has, with the id of its topic (KIP-516); None where the broker does not tell."""

    topic: str
    partition: int
    topic_id: str | None = None


class PartitionProgress(Struct, frozen=True):
    """The offset up to which a partition is read, and the id that its topic had when it was first read."""

    offset: int
    topic_id: str | None


# Gives each partition a watermark if it has none yet: nothing of it was read. A topic's id is kept once it is known.
# app/store/rows.py has the reason for `= ANY`.
FIND = Statement(
    text("""
WITH found AS (
    SELECT * FROM unnest(
        CAST(:topics AS varchar[]), CAST(:partitions AS integer[]), CAST(:topic_ids AS varchar[])
    ) AS found (topic, partition, topic_id)
)
INSERT INTO watermarks AS w (topic, partition, "offset", updated_at, consumer, topic_id)
SELECT topic, partition, -1, now(), CAST(:consumer AS varchar), topic_id FROM found ORDER BY topic, partition
ON CONFLICT (topic, partition) DO UPDATE SET topic_id = excluded.topic_id
WHERE w.topic_id IS NULL AND excluded.topic_id IS NOT NULL
""")
)

# Reads the watermarks of some partitions.
READ = Statement(
    text("""
SELECT w.topic, w.partition, w."offset", w.topic_id
FROM unnest(CAST(:topics AS varchar[]), CAST(:partitions AS integer[])) AS asked (topic, partition)
JOIN watermarks AS w ON w.topic = ANY(ARRAY[asked.topic]) AND w.partition = asked.partition
""")
)


async def find(
    connection: Connection, partitions: Collection[FoundPartition], consumer: str
) -> dict[KafkaPartition, PartitionProgress]:
    """The progress in these partitions. One that has no watermark gets one, at NOTHING_READ.

    Until a consumer has read it to its end once, no entity of its topic expires by liveness (`app/store/overdue.py`).
    """
    topics, numbers = [each.topic for each in partitions], [each.partition for each in partitions]
    await FIND.rows(
        connection,
        topics=topics,
        partitions=numbers,
        topic_ids=[each.topic_id for each in partitions],
        consumer=consumer,
    )
    rows = await READ.rows(connection, topics=topics, partitions=numbers)
    return {(topic, number): PartitionProgress(offset, topic_id) for topic, number, offset, topic_id in rows}


async def read(connection: Connection, partitions: Collection[KafkaPartition]) -> dict[KafkaPartition, int]:
    """The offsets up to which these partitions are read; those of which nothing was read are left out."""
    rows = await READ.rows(
        connection, topics=[topic for topic, _ in partitions], partitions=[number for _, number in partitions]
    )
    return {(topic, number): offset for topic, number, offset, _ in rows if offset != NOTHING_READ}


# Moves watermarks that stand where the caller expects. A `message_at` in the future comes from a wrong clock and is
# stored as null. An older one than the present replaces it, because the present one has proved wrong. `caught_up_at`
# is the transaction's time minus the seconds since the partition was found at its end, so it is never too late.
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
)
SELECT count(*) FROM updated
""")
)


async def advance(connection: Connection, advances: Collection[Advance], consumer: str) -> None:
    """Move the watermarks, inside a transaction.

    Raises LostPlaceError if one does not stand where it is expected, which rolls the transaction back. So a consumer
    that has lost a partition writes nothing of its batch.
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


# Removes the watermarks of a topic: its partitions are read from their first messages again.
RESTART = Statement(text("DELETE FROM watermarks WHERE topic = CAST(:topic AS varchar)"))


async def restart(connection: Connection, topic: str) -> None:
    """Forget how far a topic is read. A consumer that reads it now starts again, too."""
    await RESTART.rows(connection, topic=topic)


# Removes the watermark of a partition, if nobody has moved or confirmed it for some seconds.
DROP = Statement(
    text("""
DELETE FROM watermarks
WHERE topic = CAST(:topic AS varchar) AND partition = CAST(:partition AS integer)
    AND greatest(updated_at, caught_up_at) < clock_timestamp() - make_interval(secs => CAST(:unused AS float))
RETURNING 1
""")
)
IS_THERE = Statement(
    text("SELECT 1 FROM watermarks WHERE topic = CAST(:topic AS varchar) AND partition = CAST(:partition AS integer)")
)


class Drop(Enum):
    """What became of a watermark that was to be removed."""

    DONE = auto()
    UNKNOWN = auto()
    IN_USE = auto()  # a consumer reads the partition


async def drop(connection: Connection, topic: str, partition: int, *, unused: float = UNUSED) -> Drop:
    """Remove the watermark of a partition that nobody has read for `unused` seconds."""
    if await DROP.value(connection, topic=topic, partition=partition, unused=unused) is not None:
        return Drop.DONE
    there = await IS_THERE.value(connection, topic=topic, partition=partition)
    return Drop.UNKNOWN if there is None else Drop.IN_USE


# Reads all watermarks. There are as many as partitions, so pages are not needed.
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


# Counts, for each topic, the partitions that no consumer has read to their end yet.
UNREAD = Statement(
    text("""
SELECT topic, count(*) FILTER (WHERE "offset" < 0 AND caught_up_at IS NULL)
FROM watermarks GROUP BY topic ORDER BY topic
""")
)


async def count_unread(connection: Connection) -> list[tuple[str, int]]:
    """How many partitions of each topic nobody has read yet: until that is 0, none of its entities expires."""
    return [(topic, count) for topic, count in await UNREAD.rows(connection)]


# Reads the age of each watermark whose time is known.
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
    """The age of every watermark that has an `as_of`, by topic and partition."""
    return [Age(*row) for row in await AGES.rows(connection)]


# Sums all watermarks up.
REACH = Statement(
    text("""
SELECT
    count(*), count(*) FILTER (WHERE message_at IS NULL AND caught_up_at IS NULL),
    min(greatest(message_at, caught_up_at))
FROM watermarks
""")
)


async def reach(connection: Connection) -> WatermarkState:
    """How far all partitions together are read."""
    [row] = await REACH.rows(connection)
    return WatermarkState(*row)
