"""Every statement over `dead_letters`: the messages that could not be applied or sent, unchanged."""

import functools
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
MAX_ID = 2**63 - 1
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
    id_, created_at, source, topic, partition, offset, key, value, headers, error, entity_id, *_ = row
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
        entity_id=entity_id,
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


class LetterFilter(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The filter of a list, and of a bulk call. None matches any letter; `error` is a part of its error."""

    source: DeadLetterSource | None = None
    topic: str | None = None
    error: str | None = None
    entity_id: UUID | None = None
    since: datetime | None = None


# The conditions that a list may have, by the names of their parameters.
_CONDITIONS = {
    "source": "source = CAST(:source AS varchar)",
    "topic": "topic = CAST(:topic AS varchar)",
    "error": "strpos(error, CAST(:error AS text)) > 0",
    "entity_id": "entity_id = CAST(:entity_id AS uuid)",
    "since": "created_at >= CAST(:since AS timestamptz)",
}
_COLUMNS = 'id, created_at, source, topic, partition, "offset", key, value, headers, error, entity_id'


def _where(conditions: frozenset[str]) -> str:
    return "".join(f" AND {condition}" for name, condition in _CONDITIONS.items() if name in conditions)


def _given(wanted: LetterFilter) -> dict[str, object]:
    return {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}


@functools.cache
def list_statement(conditions: frozenset[str], *, descending: bool = False) -> Statement:
    """Reads a page in the order of ids. It ends after `limit` rows, or when its values reach `most_bytes`."""
    order, beyond = ("DESC", "<") if descending else ("ASC", ">")
    return Statement(
        text(f"""
SELECT {_COLUMNS}, found
FROM (
    SELECT
        *, count(*) OVER () AS found,
        coalesce(sum(octet_length(value)) OVER (ORDER BY id {order} ROWS UNBOUNDED PRECEDING), 0)
            - coalesce(octet_length(value), 0) AS bytes_before
    FROM (
        SELECT * FROM dead_letters
        WHERE id {beyond} CAST(:after AS bigint){_where(conditions)}
        ORDER BY id {order} LIMIT CAST(:limit AS bigint) + 1
    ) AS beginning
) AS page
WHERE bytes_before < CAST(:most_bytes AS bigint)
ORDER BY id {order} LIMIT CAST(:limit AS bigint)
""")  # noqa: S608 - conditions of ours
    )


async def get_page(
    connection: Connection,
    *,
    after: int | None,
    limit: int,
    wanted: LetterFilter = LetterFilter(),  # noqa: B008 - it is a value
    descending: bool = False,
) -> tuple[list[DeadLetter], bool]:
    """The first messages that match, up to `limit` and about PAGE_BYTES, and whether more follow.

    They are in the order of their ids, or `descending`, and begin beyond the id `after`.
    """
    given = _given(wanted)
    statement = list_statement(frozenset(given), descending=descending)
    if after is None:
        after = MAX_ID if descending else 0
    rows = await statement.rows(connection, after=after, limit=limit, most_bytes=PAGE_BYTES, **given)
    return [_letter(row) for row in rows], bool(rows) and rows[0][-1] > len(rows)


@functools.cache
def _matching(conditions: frozenset[str]) -> Statement:
    """Counts the letters that match, with the last id of all letters."""
    return Statement(
        text(f"""
SELECT count(*), coalesce((SELECT max(id) FROM dead_letters), 0) FROM dead_letters
WHERE true{_where(conditions)}
""")  # noqa: S608 - conditions of ours
    )


async def count_matching(connection: Connection, wanted: LetterFilter) -> tuple[int, int]:
    """The number of letters that match, and the last id of all."""
    given = _given(wanted)
    [(number, last)] = await _matching(frozenset(given)).rows(connection, **given)
    return number, last


@functools.cache
def _ids(conditions: frozenset[str]) -> Statement:
    """Reads the next ids of letters that match."""
    return Statement(
        text(f"""
SELECT id FROM dead_letters
WHERE id > CAST(:after AS bigint) AND id <= CAST(:last AS bigint){_where(conditions)}
ORDER BY id LIMIT CAST(:limit AS bigint)
""")  # noqa: S608 - conditions of ours
    )


async def get_ids(connection: Connection, wanted: LetterFilter, *, after: int, last: int, limit: int) -> list[int]:
    """The ids of the first letters that match, after the id `after` and up to `last`."""
    given = _given(wanted)
    rows = await _ids(frozenset(given)).rows(connection, after=after, last=last, limit=limit, **given)
    return [row[0] for row in rows]


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
SELECT id, created_at, source, topic, partition, "offset", key, value, headers, error, entity_id
FROM dead_letters WHERE id = CAST(:id AS bigint)
""")
)


async def get(connection: Connection, id_: int) -> DeadLetter | None:
    """The message with this id, or None."""
    rows = await READ.rows(connection, id=id_)
    return _letter(rows[0]) if rows else None


# Removes one message that was applied or discarded. Messages that wait behind it would be lost, so one that holds its
# entity stays.
REMOVE = Statement(
    text("""
DELETE FROM dead_letters AS d WHERE id = CAST(:id AS bigint)
    AND NOT EXISTS (SELECT FROM held_entities AS h WHERE h.letter_id = ANY (ARRAY[d.id]))
RETURNING id
""")
)


async def remove(connection: Connection, id_: int) -> bool:
    """Remove one message. Returns whether it was there, and holds no entity."""
    return await REMOVE.value(connection, id=id_) is not None
