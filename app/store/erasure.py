"""Erasing what is stored of a forgotten entity beside its tombstone: changes, dead letters, messages that wait."""

from base64 import b64encode
from typing import cast
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import text

from app.domain.events import DEFAULT_DOMAIN, Forgotten, Name
from app.domain.intents import DeregisterService
from app.store import held
from app.store.database import Connection, Database, Record
from app.store.dead_letters import MessageHeaders
from app.store.outbox import slot_of
from app.store.statements import Statement
from app.wire.answers import Erased
from app.wire.messages import is_about

LETTER_ERASED = "the dead letter before this message was erased"  # the error of the message that holds the rest
PAGE = 200  # dead letters that are looked through at once; each may have a megabyte

# Messages that say that the entity is gone: they still have to go out.
KEPT = {str(cls.__struct_config__.tag) for cls in (Forgotten, DeregisterService)}

_headers = msgspec.json.Decoder(MessageHeaders).decode

# Empties the changes of an entity up to its tombstone, except for the forgets: those who follow have to hear of them,
# and they say nothing of the node. Id and mark stay, so that tokens stay good.
EMPTY = Statement(
    text("""
WITH emptied AS (
    UPDATE changes SET
        entity_id = NULL, domain = NULL, node_type = NULL, version = NULL, event_id = NULL, type = NULL,
        outcome = NULL, reason = NULL, before = NULL, current_state = NULL, partition = NULL, "offset" = NULL,
        sequence = NULL, occurred_at = NULL, correlation_id = NULL, "row" = NULL
    WHERE entity_id = CAST(:entity_id AS uuid) AND domain = CAST(:domain AS varchar)
        AND version < CAST(:version AS bigint) AND outcome <> 'forgotten'
    RETURNING 1
)
SELECT count(*) FROM emptied
""")
)

# Reads the dead letters of a page in which an entity id occurs, in any of its spellings, and the last id of the page.
# Bytes that are not text are compared as PostgreSQL escapes them.
NAMING = Statement(
    text("""
WITH page AS MATERIALIZED (
    SELECT id, key, value, headers FROM dead_letters
    WHERE id > CAST(:after AS bigint) ORDER BY id LIMIT CAST(:most AS bigint)
), last AS (
    SELECT max(id) AS id FROM page
)
SELECT last.id, page.id, page.key, page.value, page.headers
FROM last LEFT JOIN page ON
    lower(encode(coalesce(page.key, '') || coalesce(page.value, '') || page.headers, 'escape'))
        LIKE ANY (CAST(:spellings AS text[]))
WHERE last.id IS NOT NULL
""")
)

# Removes dead letters.
REMOVE = Statement(
    text("""
WITH removed AS (DELETE FROM dead_letters WHERE id = ANY (CAST(:ids AS bigint[])) RETURNING 1)
SELECT count(*) FROM removed
""")
)

# Locks the waiting entries of the outbox that may have messages of an entity.
WAITING = Statement(
    text("""
SELECT destination, id, envelope FROM outbox
WHERE slot = CAST(:slot AS smallint) AND envelope LIKE CAST(:spelling AS text)
ORDER BY destination, id FOR UPDATE
""")
)

# Removes an entry, and reduces one to some of its messages.
DROP = Statement(
    text("""
DELETE FROM outbox
WHERE destination = CAST(:destination AS varchar) AND slot = CAST(:slot AS smallint) AND id = CAST(:id AS bigint)
""")
)
SHORTEN = Statement(
    text("""
UPDATE outbox SET envelope = CAST(:envelope AS text), messages = CAST(:messages AS smallint)
WHERE destination = CAST(:destination AS varchar) AND slot = CAST(:slot AS smallint) AND id = CAST(:id AS bigint)
""")
)


async def find_letters(database: Database, name: Name) -> list[int]:
    """The ids of the dead letters about an entity. It looks through all letters, page by page."""
    spellings = [f"%{spelling}%" for spelling in _spellings(name[0])]
    found: list[int] = []
    after: int | None = 0
    while after is not None:
        rows = await database.read(_naming, after, spellings)
        found += [
            id_
            for _, id_, key, value, headers in rows
            if id_ is not None and is_about(name, key, value, _headers(headers))
        ]
        after = rows[0][0] if rows else None
    return found


def _spellings(entity_id: UUID) -> set[str]:
    """How the letters may spell an id, in lower case: the values of headers are stored in base64."""
    texts = (str(entity_id), entity_id.hex)
    in_headers = {b64encode(each.encode()) for text in texts for each in (text, text.upper())}
    return {*texts, *(each.decode().lower().rstrip("=") for each in in_headers)}


async def _naming(connection: Connection, after: int, spellings: list[str]) -> list[Record]:
    return await NAMING.rows(connection, after=after, most=PAGE, spellings=spellings)


async def erase(connection: Connection, name: Name, version: int, letters: list[int]) -> Erased:
    """Erase the changes before this version of a tombstone, these dead letters, and the messages that wait.

    The erased dead letters include the messages that waited behind one.
    """
    entity_id, domain = name
    changes = cast("int", await EMPTY.value(connection, entity_id=entity_id, domain=domain, version=version))
    held_back = await _erase_held(connection, name, letters)
    removed = cast("int", await REMOVE.value(connection, ids=letters))
    return Erased(changes, held_back + removed, await _erase_messages(connection, name, version))


async def _erase_held(connection: Connection, name: Name, letters: list[int]) -> int:
    """Remove the messages about an entity that wait behind a dead letter, and return how many are gone.

    The queue is that of an entity id: messages of other domains still wait. If its letter is to be erased, the first
    of them takes its place.
    """
    queue = await held.get_queue(connection, name[0])
    if queue is None:
        return 0
    places = range(1, len(queue.waiting))
    messages = [each.message for each in queue.waiting]
    gone = {
        place
        for place in places
        if is_about(name, messages[place].key, messages[place].value, messages[place].headers or [])
    }
    left = [place for place in places if place not in gone]
    await held.drop(connection, queue, gone)
    if queue.letter_id not in letters or not left:
        return len(gone)
    await held.promote(connection, queue, left[0], LETTER_ERASED, waiting=len(left) - 1)
    return len(gone) + 1


class _Message(Struct):
    """What says whose a written envelope is, of which type, and at which version of the row."""

    type: str = ""
    subject: str = ""
    sequence: str = ""
    domain: str = DEFAULT_DOMAIN


_message = msgspec.json.Decoder(_Message).decode


async def _erase_messages(connection: Connection, name: Name, version: int) -> int:
    """Remove the waiting messages of an entity, up to its tombstone and without those that say that it is gone.

    Returns their number. A relay that is sending an entry now sends what is left of it once more: repeats are
    possible anyway.
    """
    entity_id, domain = name
    slot = slot_of(entity_id)
    erased = 0
    for destination, id_, envelope in await WAITING.rows(connection, slot=slot, spelling=f"%{entity_id}%"):
        lines = envelope.split("\n")
        left = [line for line in lines if not _is_erased(line, str(entity_id), domain, version)]
        place = {"destination": destination, "slot": slot, "id": id_}
        if not left:
            await DROP.rows(connection, **place)
        elif len(left) < len(lines):
            await SHORTEN.rows(connection, **place, envelope="\n".join(left), messages=len(left))
        erased += len(lines) - len(left)
    return erased


def _is_erased(line: str, entity_id: str, domain: str, version: int) -> bool:
    try:
        message = _message(line)
    except msgspec.DecodeError:
        return False  # it is no envelope of ours
    is_before = message.sequence.isdecimal() and int(message.sequence) < version
    return (message.subject, message.domain) == (entity_id, domain) and is_before and message.type not in KEPT
