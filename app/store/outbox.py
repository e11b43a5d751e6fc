"""The outbox: messages to send after their transaction, and every statement over them.

A row is an entry: one intent for its handler, or events for the bus. The events that a transaction has for one slot
share entries, as far as there is room. One statement writes the changed rows and then their entries. So the entries
of one entity have their ids in the order of its versions, whoever writes them: each writer has waited for the lock of
the entity's row.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
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

SLOTS = 4  # one relay at a time works on a slot; all messages of an entity id are in one slot
ROOM = 7500  # bytes of an entry's messages, so that its row fits into a page
TOPIC = "topic:"  # a destination is a topic of the bus,
EFFECT = "effect:"  # or a handler of intents
COUNTED = 6000  # entries of a slot that are counted one by one; the number of further entries is an estimate

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
    """Messages to one destination, in their order: `envelope` has the JSON of each in a line of its own.

    It holds either one intent, for the entity `intent_entity_id`, or events of entities that are all in one slot.
    """

    destination: str
    slot: int
    intent_entity_id: UUID | None
    messages: int
    envelope: str


def slot_of(entity_id: UUID) -> int:
    """The slot of an entity id in any domain: the bus has one key for all domains."""
    return entity_id.int % SLOTS


class Lines(NamedTuple):
    """Messages of one slot that stay together: their number, and their JSON, each line with its line end."""

    slot: int
    messages: int
    lines: bytes


def packed(topic: str, all_lines: Iterable[Lines]) -> list[Entry]:
    """The entries of these messages for a topic: as few as ROOM allows, each slot's messages in the order given."""
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
    """The part of a statement that writes entries, in the order given, if `condition` holds."""
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


# The parameters of `sending`, and the function that reads the value of each from an entry.
_ARRAYS = [(f"entries_{c.key}", attrgetter(str(c.key))) for c in _given]


def given(entries: Sequence[Entry]) -> dict[str, object]:
    """The parameters of `sending` for these entries."""
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
    """Add an entry without a change of a row."""
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
    """A message that waits to be sent, with the id and place of its entry."""

    id: int
    place: TupleId
    key: bytes  # the entity id, as text
    envelope: bytes

    @property
    def entity_id(self) -> str:
        """The entity id, or whatever the envelope has in its place."""
        return self.key.decode(errors="replace")


class Backlog(Struct, frozen=True):
    """The messages that wait for one destination: their number, and the age of the oldest in seconds."""

    destination: str
    messages: int
    oldest_seconds: float
    oldest_at: datetime | None = None


# Locks slots in which messages wait, until the transaction ends. The statement finds the slots first. It then tries
# them one by one, in random order: so relays rarely try the same slot, and no slot beyond the limit is locked.
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
    """Lock up to `most` slots in which messages wait for `destination`, until the transaction ends.

    No other session has them meanwhile; the next one sees what this one removed. When a session dies, PostgreSQL
    releases its slots at once.
    """
    rows = await TAKE.rows(connection, destination=destination, slots=SLOTS, most=most)
    return [row[0] for row in rows]


# Reads the oldest entries of some slots, each slot in its order.
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
    """The messages of the oldest entries of these slots, up to `most` entries of each slot, each entity's in order.

    Intents for the entities `but`, ids as text, are left out. Take the slots first, in an earlier statement: this one
    must see what their last holder removed.
    """
    rows = await READ.rows(connection, destination=destination, slots=slots, most=most, resting=but)
    return [
        PendingMessage(id_, place, key_of(envelope), envelope)
        for id_, place, lines in rows
        for envelope in lines.split(b"\n")
    ]


# Removes entries whose messages have arrived. It finds them by ctid, which is fast under every plan: the planner
# often planned for an empty outbox, and a plan by id then joined all waiting entries with all arrived ones. It
# compares the ids, too, because an operator may have put another row there; `+ 0` keeps the planner from scanning the
# whole key.
REMOVE = Statement(
    text("""
DELETE FROM outbox AS o
USING unnest(CAST(:places AS tid[]), CAST(:ids AS bigint[])) AS sent (place, id)
WHERE o.ctid = sent.place AND o.id + 0 = sent.id
""")
)


async def remove(connection: Connection, entries: Mapping[int, TupleId]) -> None:
    """Remove entries whose messages have arrived, by id and place, in the transaction that read them."""
    await REMOVE.rows(connection, places=list(entries.values()), ids=list(entries))


# Shortens entries of which only some messages have arrived; it finds them as REMOVE does.
SHORTEN = Statement(
    text("""
UPDATE outbox AS o SET envelope = kept.envelope, messages = kept.messages
FROM unnest(
    CAST(:places AS tid[]), CAST(:ids AS bigint[]), CAST(:envelopes AS text[]), CAST(:messages AS smallint[])
) AS kept (place, id, envelope, messages)
WHERE o.ctid = kept.place AND o.id + 0 = kept.id
""")
)


async def keep(connection: Connection, left: Collection[Sequence[PendingMessage]]) -> None:
    """Reduce entries to the messages in `left`, a list for each entry, in the transaction that read them."""
    await SHORTEN.rows(
        connection,
        places=[messages[0].place for messages in left],
        ids=[messages[0].id for messages in left],
        envelopes=[b"\n".join([each.envelope for each in messages]).decode() for messages in left],
        messages=[len(messages) for messages in left],
    )


# Counts the waiting messages by destination. It finds the destinations by skipping through the key, and counts the
# first entries of each slot. In a slot that has more, it estimates the rest: as dense by id as the first entries,
# with as many messages each.
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
    CAST(greatest(0, extract(epoch FROM clock_timestamp() - min(oldest.created_at))) AS float),
    min(oldest.created_at)
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
    """The backlog of each destination that has one, by name.

    The number is exact while every slot has fewer than COUNTED entries, and an estimate beyond. So the cost is
    bounded, whatever the number.
    """
    rows = await BACKLOGS.rows(connection, slots=SLOTS, counted=COUNTED)
    return [Backlog(*row) for row in rows]
