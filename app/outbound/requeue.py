"""Moves dead letters of the relay back to the outbox, to be sent again."""

from app.store import dead_letters, outbox
from app.store.database import Connection
from app.store.dead_letters import DeadLetter
from app.store.outbox import EFFECT, Entry, slot_of
from app.wire.envelopes import Envelope, to_lines


async def requeue(connection: Connection, letter: DeadLetter) -> bool:
    """Move an outgoing message back to the outbox, behind the messages that wait there for its entity.

    Needs a transaction. Returns False, and writes nothing, if the letter no longer exists. Raises msgspec.DecodeError
    for a letter that does not hold an envelope.
    """
    envelope = Envelope.from_json(letter.value or b"")
    entity_id = envelope.subject
    of_intent = entity_id if letter.topic.startswith(EFFECT) else None
    entry = Entry(letter.topic, slot_of(entity_id), of_intent, 1, to_lines([envelope])[:-1].decode())
    if not await dead_letters.remove(connection, letter.id):
        return False
    await outbox.add(connection, entry)
    return True
