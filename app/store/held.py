"""Every statement over `held_entities` and `held_messages`: entities whose messages wait behind a dead letter.

An entity id is held in all domains: not every message that fails tells its domain.

Who adds to a queue, or ends it, locks its entity's row first (`lock`, `get_queue`). So no message is added to a queue
that another transaction is emptying, and none overtakes it.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import cast
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import text

from app.errors import PqsError
from app.store import dead_letters
from app.store.database import Connection, Record
from app.store.dead_letters import MessageHeaders
from app.store.statements import Statement
from app.wire.messages import KafkaMessage

MAX_MESSAGES = 1000  # that wait for one entity; further ones pass
MAX_ENTITIES = 100_000  # that are held; letters of further ones hold nothing

_headers = msgspec.json.Decoder(MessageHeaders).decode


class HeldError(PqsError):
    """The entity is held: its messages wait behind a dead letter, which has to be retried or skipped first."""

    def __init__(self, entity_id: UUID, said: str | None = None) -> None:
        super().__init__(said or f"the messages of entity {entity_id} wait behind a dead letter: retry or skip it")
        self.entity_id = entity_id


class Held(Struct, frozen=True, kw_only=True):
    """A held entity: its letter, how many messages wait behind it, and how many found no room and have passed."""

    entity_id: UUID
    held_at: datetime
    letter_id: int
    topic: str
    partition: int
    offset: int
    error: str
    messages: int
    passed: int


class QueuedMessage(Struct, frozen=True):
    """A message of a queue. `id` is None for the letter that it begins with."""

    id: int | None
    message: KafkaMessage


class Queue(Struct, frozen=True):
    """A letter and the messages that wait behind it, in their order."""

    entity_id: UUID
    letter_id: int
    waiting: list[QueuedMessage]


# Whether any entity is held: one look into a table that is usually empty.
ANY = Statement(text("SELECT EXISTS (SELECT FROM held_entities)"))

# Finds the held ones of some entities, and, by a row without an id, whether any entity is held.
FIND = Statement(
    text("""
SELECT entity_id FROM held_entities WHERE entity_id = ANY (CAST(:ids AS uuid[]))
UNION ALL (SELECT NULL FROM held_entities LIMIT 1)
""")
)

# The same, with the number of their messages, and locks them in the order of their ids.
LOCK = Statement(
    text("""
SELECT entity_id, messages FROM held_entities
WHERE entity_id = ANY (CAST(:ids AS uuid[])) ORDER BY entity_id FOR UPDATE
""")
)

# Counts the held entities, up to a number.
COUNT = Statement(text("SELECT count(*) FROM (SELECT FROM held_entities LIMIT CAST(:most AS bigint)) AS counted"))

# Holds entities behind letters, which are named by their places.
HOLD = Statement(
    text("""
INSERT INTO held_entities (entity_id, letter_id)
SELECT DISTINCT ON (new.entity_id) new.entity_id, d.id
FROM unnest(
    CAST(:ids AS uuid[]), CAST(:topics AS varchar[]), CAST(:partitions AS integer[]), CAST(:offsets AS bigint[])
) AS new (entity_id, topic, partition, "offset")
JOIN dead_letters AS d
    ON d.topic = ANY (ARRAY[new.topic]) AND d.partition = new.partition AND d."offset" = new."offset"
ORDER BY new.entity_id
ON CONFLICT DO NOTHING
""")
)

# Appends messages to the queues of held entities.
APPEND = Statement(
    text("""
INSERT INTO held_messages (entity_id, topic, partition, "offset", key, value, headers)
SELECT entity_id, topic, partition, "offset", key, value, headers FROM unnest(
    CAST(:ids AS uuid[]), CAST(:topics AS varchar[]), CAST(:partitions AS integer[]),
    CAST(:offsets AS bigint[]), CAST(:keys AS bytea[]), CAST(:values AS bytea[]), CAST(:headers AS bytea[])
) WITH ORDINALITY AS new (entity_id, topic, partition, "offset", key, value, headers, place) ORDER BY place
""")
)

# Adds to the numbers of held entities, in the order of their ids.
GROW = Statement(
    text("""
UPDATE held_entities AS h SET messages = h.messages + new.messages, passed = h.passed + new.passed
FROM unnest(CAST(:ids AS uuid[]), CAST(:messages AS bigint[]), CAST(:passed AS bigint[]))
    AS new (entity_id, messages, passed)
WHERE h.entity_id = ANY (ARRAY[new.entity_id])
""")
)

_HELD = """
SELECT h.entity_id, h.held_at, h.letter_id, d.topic, d.partition, d."offset", d.error, h.messages, h.passed
FROM held_entities AS h JOIN dead_letters AS d ON d.id = ANY (ARRAY[h.letter_id])
"""

# Reads one held entity.
READ = Statement(text(f"{_HELD} WHERE h.entity_id = CAST(:entity_id AS uuid)"))

# Reads a page of held entities, in the order of their ids.
LIST = Statement(
    text(f"""
WITH page AS MATERIALIZED (
    SELECT * FROM held_entities WHERE entity_id > CAST(:after AS uuid)
    ORDER BY entity_id LIMIT CAST(:limit AS bigint)
)
{_HELD.replace("held_entities", "page")} ORDER BY h.entity_id
""")  # noqa: S608 - a table of ours
)

# Reads the messages of a held entity, in their order.
MESSAGES = Statement(
    text("""
SELECT id, topic, partition, "offset", key, value, headers FROM held_messages
WHERE entity_id = CAST(:entity_id AS uuid) ORDER BY id
""")
)

# Locks a held entity, and reads its letter.
BEGIN = Statement(
    text("""
SELECT NULL AS id, d.topic, d.partition, d."offset", d.key, d.value, d.headers, h.letter_id
FROM held_entities AS h JOIN dead_letters AS d ON d.id = ANY (ARRAY[h.letter_id])
WHERE h.entity_id = CAST(:entity_id AS uuid) FOR UPDATE OF h
""")
)

# Removes a held entity, and with it the messages of its queue.
RELEASE = Statement(text("DELETE FROM held_entities WHERE entity_id = CAST(:entity_id AS uuid)"))

# Makes a message of a queue the letter that holds the messages behind it.
PROMOTE = Statement(
    text("""
WITH added AS (
    INSERT INTO dead_letters (source, topic, partition, "offset", key, value, headers, error, entity_id)
    SELECT 'consumer', topic, partition, "offset", key, value, headers, CAST(:error AS text), entity_id
    FROM held_messages WHERE id = CAST(:id AS bigint)
    ON CONFLICT (topic, partition, "offset") DO UPDATE SET error = excluded.error
    RETURNING id
), gone AS (
    DELETE FROM held_messages WHERE entity_id = CAST(:entity_id AS uuid) AND id <= CAST(:id AS bigint)
)
UPDATE held_entities SET letter_id = added.id, messages = CAST(:left AS bigint)
FROM added WHERE entity_id = CAST(:entity_id AS uuid)
""")
)

# Removes some messages of a queue.
DROP = Statement(
    text("""
WITH gone AS (
    DELETE FROM held_messages WHERE id = ANY (CAST(:ids AS bigint[])) AND entity_id = CAST(:entity_id AS uuid)
    RETURNING 1
)
UPDATE held_entities SET messages = messages - (SELECT count(*) FROM gone)
WHERE entity_id = CAST(:entity_id AS uuid)
""")
)


async def is_any(connection: Connection) -> bool:
    """Whether any entity is held."""
    return cast("bool", await ANY.value(connection))


async def find(connection: Connection, ids: Sequence[UUID]) -> tuple[set[bytes], bool]:
    """The held ones of these entities, as the bytes of their ids, and whether any entity is held."""
    rows = await FIND.rows(connection, ids=ids)
    return {row[0].bytes for row in rows if row[0] is not None}, bool(rows)


async def lock(connection: Connection, ids: Sequence[UUID]) -> dict[bytes, int]:
    """The held ones of these entities, with the number of their messages; locked until the transaction ends.

    The keys are the bytes of their ids, as everywhere: senders choose ids, and the hashes of UUIDs can collide.
    """
    return {row[0].bytes: row[1] for row in await LOCK.rows(connection, ids=ids)}


async def count(connection: Connection) -> int:
    """The number of held entities, at most MAX_ENTITIES."""
    return cast("int", await COUNT.value(connection, most=MAX_ENTITIES))


async def room(connection: Connection) -> int:
    """How many further entities may be held."""
    return MAX_ENTITIES - await count(connection)


async def hold(connection: Connection, letters: dict[bytes, KafkaMessage]) -> None:
    """Hold entities, each behind a letter that is stored already."""
    messages = letters.values()
    await HOLD.rows(
        connection,
        ids=[UUID(bytes=key) for key in letters],
        topics=[each.topic for each in messages],
        partitions=[each.partition for each in messages],
        offsets=[each.offset for each in messages],
    )


async def append(
    connection: Connection, waiting: Sequence[tuple[UUID, KafkaMessage]], passed: dict[bytes, int]
) -> None:
    """Append messages to the queues of their entities, and count those that have passed."""
    messages = [message for _, message in waiting]
    await APPEND.rows(
        connection,
        ids=[entity_id for entity_id, _ in waiting],
        topics=[each.topic for each in messages],
        partitions=[each.partition for each in messages],
        offsets=[each.offset for each in messages],
        keys=[each.key for each in messages],
        values=[each.value for each in messages],
        headers=[msgspec.json.encode(each.headers or []) for each in messages],
    )
    numbers = Counter(entity_id.bytes for entity_id, _ in waiting)
    keys = sorted({*numbers, *passed})
    await GROW.rows(
        connection,
        ids=[UUID(bytes=key) for key in keys],
        messages=[numbers[key] for key in keys],
        passed=[passed.get(key, 0) for key in keys],
    )


async def get(connection: Connection, entity_id: UUID) -> Held | None:
    """A held entity, or None if it is not held."""
    rows = await READ.rows(connection, entity_id=entity_id)
    return _held(rows[0]) if rows else None


async def get_page(connection: Connection, *, after: UUID, limit: int) -> list[Held]:
    """The first held entities after an id, in the order of their ids."""
    return [_held(row) for row in await LIST.rows(connection, after=after, limit=limit)]


def _held(row: Record) -> Held:
    return Held(**dict(row))


async def get_queue(connection: Connection, entity_id: UUID) -> Queue | None:
    """The queue of an entity, whose row is locked until the transaction ends; None if it is not held."""
    first = await BEGIN.rows(connection, entity_id=entity_id)
    if not first:
        return None
    rows = [*first, *await MESSAGES.rows(connection, entity_id=entity_id)]
    return Queue(entity_id, first[0]["letter_id"], [_waiting(row) for row in rows])


def _waiting(row: Record) -> QueuedMessage:
    id_, topic, partition, offset, key, value, headers, *_ = row
    return QueuedMessage(id_, KafkaMessage(topic, partition, offset, key, value, _headers(headers)))


async def release(connection: Connection, queue: Queue) -> None:
    """Remove a queue: its letter and all messages behind it. The entity is held no longer."""
    await RELEASE.rows(connection, entity_id=queue.entity_id)
    await dead_letters.remove(connection, queue.letter_id)


async def promote(connection: Connection, queue: Queue, place: int, error: str, *, waiting: int) -> None:
    """Make the message at this place of a queue its letter, with an error, and remove those before it.

    `waiting` is the number of the messages behind it.
    """
    if place == 0:
        return
    await PROMOTE.rows(
        connection,
        entity_id=queue.entity_id,
        id=queue.waiting[place].id,
        error=error,
        left=waiting,
    )
    await dead_letters.remove(connection, queue.letter_id)


async def drop(connection: Connection, queue: Queue, places: Collection[int]) -> None:
    """Remove the messages at these places of a queue; its letter is not among them."""
    await DROP.rows(connection, entity_id=queue.entity_id, ids=[queue.waiting[place].id for place in places])
