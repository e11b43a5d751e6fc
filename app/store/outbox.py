"""The outbox: messages that a transaction wants sent after it, and every statement over them.

A row is an entry: one intent for its handler, or events for the bus, where what a transaction has for one slot goes
together as far as there is room. It is written by the statement that writes the changes it speaks of, after those. So
the entries of one entity have their ids in the order of its versions, whoever wrote them: who writes the next has
waited for the row before.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple, cast
from uuid import UUID

from msgspec import Struct
from sqlalchemy import ARRAY, CTE, ColumnElement, Table, bindparam, column, func, literal_column, select, text
from sqlalchemy.dialects.postgresql import insert

from app.store.database import Connection
from app.store.statements import Statement
from app.store.tables import OutboxEntry
from app.wire.envelopes import key_of

SLOTS = 4  # one relay at a time works on a slot; all messages of one entity id are in one
ROOM = 7500  # bytes of an entry's messages, so that its row fits into a page
TOPIC = "topic:"  # a destination is a topic of the bus,
EFFECT = "effect:"  # or a handler of intents
COUNTED = 6000  # entries of a slot that are counted one by one; how many more there are is an estimate

# Not quoted: vulture would take the import for unused.
_table = cast(Table, OutboxEntry.__table__)  # noqa: TC006
_given = (
    _table.c.destination,
    _table.c.slot,
    _table.c.intent_entity_id,
    _table.c.messages,
    _table.c.envelope,
)


class Entry(Struct, frozen=True, gc=False):
    """What is sent to one destination together: so many messages in their order, each JSON in a line of its own.

    Either it is one intent, for the entity `intent_entity_id`, or events of entities that are all in one slot.
    """

    destination: str
    slot: int
    intent_entity_id: UUID | None
    messages: int
    envelope: str


def slot_of(entity_id: UUID) -> int:
    """The slot of an entity id, whatever its domain: the bus has one key for both."""
    return entity_id.int % SLOTS


class Lines(NamedTuple):
    """Messages for one slot that stay together: their number, and their JSON, each line with its end."""

    slot: int
    messages: int
    lines: bytes


def packed(topic: str, all_lines: Iterable[Lines]) -> list[Entry]:
    """Messages for a topic of the bus, in as few entries as there is ROOM for; each slot's in the order given."""
    rows: list[tuple[int, list[Lines]]] = []
    newest: dict[int, list[Lines]] = {}
    room: dict[int, int] = {}  # in the newest row of a slot
    for some in all_lines:
        left = room.get(some.slot, 0) - len(some.lines)
        if left < 0:
            newest[some.slot] = []
            rows.append((some.slot, newest[some.slot]))
            left = ROOM - len(some.lines)
        newest[some.slot].append(some)
        room[some.slot] = left
    return [
        Entry(TOPIC + topic, slot, None, sum([each.messages for each in row]), _text([each.lines for each in row]))
        for slot, row in rows
    ]


def _text(lines: Sequence[bytes]) -> str:
    return b"".join(lines)[:-1].decode()  # the last line needs no end


def sending(condition: ColumnElement[bool]) -> CTE:
    """A part of a statement that writes entries, in the order given, when `condition` holds."""
    arrays = (bindparam(f"entries_{c.key}", type_=ARRAY(c.type)) for c in _given)
    columns = (column(str(c.key), c.type) for c in _given)
    entries = func.unnest(*arrays).table_valued(*columns, with_ordinality="place", name="entries")
    rows = entries.render_derived(name="entries")
    return (
        insert(_table)
        .from_select(_given, select(*(rows.c[c.key] for c in _given)).where(condition).order_by(rows.c.place))
        .returning(literal_column("1").label("one"))
        .cte("sent")
    )


# The parameters of `sending`, and what of an entry is in them.
_ARRAYS = [(f"entries_{c.key}", attrgetter(str(c.key))) for c in _given]


def given(entries: Sequence[Entry]) -> dict[str, object]:
    """The parameters of that part of a statement."""
    return {name: list(map(value, entries)) for name, value in _ARRAYS}


# Adds one entry, at the end of its slot.
ADD = Statement(
    text("""
INSERT INTO outbox (destination, slot, intent_entity_id, messages, envelope) VALUES (
    CAST(:destination AS varchar), CAST(:slot AS smallint), CAST(:intent_entity_id AS uuid),
    CAST(:messages AS smallint), CAST(:envelope AS text)
)
""")
)


async def add(connection: Connection, entry: Entry) -> None:
    """Add an entry that does not come with a change of a row."""
    await ADD.rows(
        connection,
        destination=entry.destination,
        slot=entry.slot,
        intent_entity_id=entry.intent_entity_id,
        messages=entry.messages,
        envelope=entry.envelope,
    )


# --- Sending -------------------------------------------------------------------------------------------------------


TupleId = tuple[int, int]  # PostgreSQL's ctid: the block and the number of a row, until somebody changes it


class PendingMessage(Struct, frozen=True, gc=False):
    """A message that waits to be sent, and the entry that it is of."""

    id: int
    place: TupleId
    key: bytes  # the entity id, as text
    envelope: bytes

    @property
    def entity_id(self) -> str:
        """The entity id, or whatever stands in its place."""
        return self.key.decode(errors="replace")


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
    CROSS JOIN LATERAL (
        SELECT FROM outbox AS o
        WHERE o.destination = CAST(:destination AS varchar) AND o.slot = CAST(slot.slot AS smallint)
        LIMIT 1
    ) AS something
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


# The oldest entries of some slots, each slot in its order.
READ = Statement(
    text("""
SELECT o.id, o.ctid, convert_to(o.envelope, 'UTF8')
FROM unnest(CAST(:slots AS smallint[])) AS taken (slot)
CROSS JOIN LATERAL (
    SELECT ctid, * FROM outbox
    WHERE destination = CAST(:destination AS varchar) AND slot = taken.slot
        AND (intent_entity_id IS NULL OR CAST(intent_entity_id AS text) <> ALL(CAST(:resting AS text[])))
    ORDER BY id LIMIT CAST(:most AS bigint)
) AS o
""")
)


async def read(
    connection: Connection, destination: str, slots: Sequence[int], *, most: int, but: Collection[str] = ()
) -> list[PendingMessage]:
    """The messages of the oldest entries of these slots, up to `most` of each, `but` intents for some entities, by
    their ids as text; each entity's in order.

    For whoever has taken the slots, in a statement of its own: it has to see what the last one removed.
    """
    rows = await READ.rows(connection, destination=destination, slots=slots, most=most, resting=but)
    return [
        PendingMessage(id_, place, key_of(envelope), envelope)
        for id_, place, lines in rows
        for envelope in lines.split(b"\n")
    ]


# The end of entries whose messages have arrived. At their places they are found at once, whatever the planner knew
# when it made its plan: for an outbox that is often that it was empty, and a plan for that joined all that waits with
# all that has arrived. Their ids are compared too, since an operator may have put something else there; `+ 0` keeps
# the planner from reading the key for them, from end to end.
REMOVE = Statement(
    text("""
DELETE FROM outbox AS o
USING unnest(CAST(:places AS tid[]), CAST(:ids AS bigint[])) AS sent (place, id)
WHERE o.ctid = sent.place AND o.id + 0 = sent.id
""")
)


async def remove(connection: Connection, entries: Mapping[int, TupleId]) -> None:
    """Remove what the other side has: entries by their ids, with their places, in the transaction that read them."""
    await REMOVE.rows(connection, places=list(entries.values()), ids=list(entries))


# What is left of entries that are through in part, found as those that are removed.
KEEP = Statement(
    text("""
UPDATE outbox AS o SET envelope = kept.envelope, messages = kept.messages
FROM unnest(
    CAST(:places AS tid[]), CAST(:ids AS bigint[]), CAST(:envelopes AS text[]), CAST(:messages AS smallint[])
) AS kept (place, id, envelope, messages)
WHERE o.ctid = kept.place AND o.id + 0 = kept.id
""")
)


async def keep(connection: Connection, left: Collection[Sequence[PendingMessage]]) -> None:
    """Let entries have no more messages than these, in the transaction that read them: what is left of each."""
    await KEEP.rows(
        connection,
        places=[messages[0].place for messages in left],
        ids=[messages[0].id for messages in left],
        envelopes=[b"\n".join([each.envelope for each in messages]).decode() for messages in left],
        messages=[len(messages) for messages in left],
    )


# What waits, by destination. The destinations are found by skipping through the key, and in each slot the first
# entries are counted. How many follow in a slot that has more is estimated: as close by their ids as the first ones,
# and with as many messages each.
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
        WHEN first.counted < CAST(:counted AS bigint) THEN first.messages
        ELSE (1 + (first.counted - 1) * (last.id - first.from_id) / CAST(first.to_id - first.from_id AS float))
            * first.messages / first.counted
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
    SELECT count(*) AS counted, sum(messages) AS messages, min(id) AS from_id, max(id) AS to_id
    FROM (
        SELECT id, messages FROM outbox AS o
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

    The number is exact as long as no slot has COUNTED entries, and an estimate beyond: it costs the same however
    many there are.
    """
    rows = await BACKLOGS.rows(connection, slots=SLOTS, counted=COUNTED)
    return [Backlog(*row) for row in rows]
