"""The outbox: what a transaction wants sent after it, and every statement over it.

A row is written by the statement that writes the change it speaks of, after that. So the rows of one entity have
their ids in the order of its versions, whoever wrote them: who writes the next has waited for the row before.
"""

from collections.abc import Collection, Sequence
from typing import cast
from uuid import UUID

from msgspec import Struct
from sqlalchemy import ARRAY, CTE, ColumnElement, Table, bindparam, column, func, literal_column, select, text
from sqlalchemy.dialects.postgresql import insert

from app.store.database import Connection
from app.store.statements import Statement
from app.store.tables import OutboxMessage

SLOTS = 64  # one relay at a time works on a slot; all messages of one entity id are in one
TOPIC = "topic:"  # a destination is a topic of the bus,
EFFECT = "effect:"  # or a handler of intents
COUNTED = 500  # messages of a slot that are counted one by one; how many more there are is an estimate

# Not quoted: vulture would take the import for unused.
_table = cast(Table, OutboxMessage.__table__)  # noqa: TC006
_given = (_table.c.destination, _table.c.slot, _table.c.entity_id, _table.c.domain, _table.c.envelope)


class Message(Struct, frozen=True):
    """What is to be sent, and where to. `envelope` is JSON, as `Envelope.to_json` writes it."""

    destination: str
    entity_id: UUID
    domain: str
    envelope: str

    @property
    def slot(self) -> int:
        """Which slot the message is in."""
        return slot_of(self.entity_id)


def slot_of(entity_id: UUID) -> int:
    """The slot of an entity id, whatever its domain: the bus has one key for both."""
    return entity_id.int % SLOTS


def sending(condition: ColumnElement[bool]) -> CTE:
    """A part of a statement that writes messages, in the order given, when `condition` holds."""
    arrays = (bindparam(f"messages_{c.key}", type_=ARRAY(c.type)) for c in _given)
    columns = (column(str(c.key), c.type) for c in _given)
    messages = func.unnest(*arrays).table_valued(*columns, with_ordinality="place", name="messages")
    rows = messages.render_derived(name="messages")
    return (
        insert(_table)
        .from_select(_given, select(*(rows.c[c.key] for c in _given)).where(condition).order_by(rows.c.place))
        .returning(literal_column("1").label("one"))
        .cte("sent")
    )


def given(messages: Sequence[Message]) -> dict[str, object]:
    """What that part of a statement is given."""
    return {f"messages_{c.key}": [getattr(message, str(c.key)) for message in messages] for c in _given}


# A message by itself, at the end of its slot.
ADD = Statement(
    text("""
INSERT INTO outbox (destination, slot, entity_id, domain, envelope) VALUES (
    CAST(:destination AS varchar), CAST(:slot AS smallint), CAST(:entity_id AS uuid), CAST(:domain AS varchar),
    CAST(:envelope AS text)
)
""")
)


async def add(connection: Connection, message: Message) -> None:
    """Let a message be sent that no change of a row brings with it."""
    await ADD.rows(
        connection,
        destination=message.destination,
        slot=message.slot,
        entity_id=message.entity_id,
        domain=message.domain,
        envelope=message.envelope,
    )


# --- Sending -------------------------------------------------------------------------------------------------------


class Pending(Struct, frozen=True, gc=False):
    """A message that waits to be sent."""

    slot: int
    id: int
    entity_id: UUID
    envelope: str


class Backlog(Struct, frozen=True):
    """What waits for one destination: how many messages, and for how many seconds the oldest of them."""

    destination: str
    messages: int
    oldest_seconds: float


# The right to send what waits in some slots, until the transaction ends. The slots are found first and tried one by
# one after that, in an order drawn anew each time: so relays that share the slots find others than each other's, and
# none is locked beyond the limit.
TAKE = Statement(
    text("""
WITH waiting AS MATERIALIZED (
    SELECT slot FROM generate_series(0, CAST(:slots AS integer) - 1) AS slot
    WHERE EXISTS (
        SELECT FROM outbox AS o
        WHERE o.destination = CAST(:destination AS varchar) AND o.slot = CAST(slot.slot AS smallint)
    )
    ORDER BY random()
)
SELECT slot FROM waiting
WHERE pg_try_advisory_xact_lock(hashtextextended('pqs outbox ' || CAST(:destination AS varchar), slot))
LIMIT CAST(:most AS bigint)
""")
)


async def take(connection: Connection, destination: str, *, most: int) -> list[int]:
    """Up to `most` slots in which something waits for `destination`: no other session has them until the end of this
    transaction, by which whoever holds one has told what it removed. One that dies lets them go at once.
    """
    rows = await TAKE.rows(connection, destination=destination, slots=SLOTS, most=most)
    return [row[0] for row in rows]


# The oldest messages of some slots, each slot in its order.
READ = Statement(
    text("""
SELECT o.slot, o.id, o.entity_id, o.envelope
FROM unnest(CAST(:slots AS smallint[])) AS taken (slot)
CROSS JOIN LATERAL (
    SELECT * FROM outbox
    WHERE destination = CAST(:destination AS varchar) AND slot = taken.slot
        AND entity_id <> ALL(CAST(:resting AS uuid[]))
    ORDER BY id LIMIT CAST(:most AS bigint)
) AS o
""")
)


async def read(
    connection: Connection, destination: str, slots: Sequence[int], *, most: int, but: Collection[UUID] = ()
) -> list[Pending]:
    """The oldest messages of these slots, up to `most` of each, `but` those of some entities; each entity's in order.

    For whoever has taken the slots, in a statement of its own: it has to see what the last one removed.
    """
    rows = await READ.rows(connection, destination=destination, slots=slots, most=most, resting=but)
    return [Pending(*row) for row in rows]


# The end of messages that have arrived. By their ids: one with a lower id may have been committed since.
REMOVE = Statement(
    text("""
DELETE FROM outbox AS o
USING unnest(CAST(:slots AS smallint[]), CAST(:ids AS bigint[])) AS sent (slot, id)
WHERE o.destination = CAST(:destination AS varchar) AND o.slot = sent.slot AND o.id = sent.id
""")
)


async def remove(connection: Connection, destination: str, messages: Collection[Pending]) -> None:
    """Remove what the other side has."""
    await REMOVE.rows(
        connection,
        destination=destination,
        slots=[each.slot for each in messages],
        ids=[each.id for each in messages],
    )


# What waits, by destination. The destinations are found by skipping through the key, and in each slot the first
# messages are counted. How many follow in a slot that has more is estimated: as close by their ids as the first ones.
BACKLOGS = Statement(
    text("""
WITH RECURSIVE destinations (destination) AS (
    (SELECT destination FROM outbox ORDER BY destination LIMIT 1)
    UNION ALL
    SELECT (
        SELECT o.destination FROM outbox AS o
        WHERE o.destination > d.destination ORDER BY o.destination LIMIT 1
    )
    FROM destinations AS d WHERE d.destination IS NOT NULL
)
SELECT
    d.destination,
    CAST(sum(CASE
        WHEN first.counted < CAST(:counted AS bigint) THEN first.counted
        ELSE 1 + (first.counted - 1) * (last.id - first.from_id) / CAST(first.to_id - first.from_id AS float)
    END) AS bigint),
    CAST(greatest(0, extract(epoch FROM clock_timestamp() - min(oldest.created_at))) AS float)
FROM destinations AS d
CROSS JOIN generate_series(0, CAST(:slots AS integer) - 1) AS slot
CROSS JOIN LATERAL (
    SELECT created_at FROM outbox AS o
    WHERE o.destination = d.destination AND o.slot = CAST(slot.slot AS smallint)
    ORDER BY id LIMIT 1
) AS oldest
CROSS JOIN LATERAL (
    SELECT count(*) AS counted, min(id) AS from_id, max(id) AS to_id
    FROM (
        SELECT id FROM outbox AS o
        WHERE o.destination = d.destination AND o.slot = CAST(slot.slot AS smallint)
        ORDER BY id LIMIT CAST(:counted AS bigint)
    ) AS beginning
) AS first
CROSS JOIN LATERAL (
    SELECT id FROM outbox AS o
    WHERE o.destination = d.destination AND o.slot = CAST(slot.slot AS smallint)
    ORDER BY id DESC LIMIT 1
) AS last
GROUP BY d.destination
ORDER BY d.destination
""")
)


async def backlogs(connection: Connection) -> list[Backlog]:
    """What waits for each destination for which something does, in their order.

    The number is exact as long as no slot has COUNTED messages, and an estimate beyond: it costs the same however
    many there are.
    """
    rows = await BACKLOGS.rows(connection, slots=SLOTS, counted=COUNTED)
    return [Backlog(*row) for row in rows]
