"""Dead letters of the relay go back to the outbox, to be sent once more."""

from app.store import dead_letters, outbox
from app.store.database import Connection
from app.store.dead_letters import DeadLetter
from app.store.outbox import EFFECT, Entry, slot_of
from app.wire.envelopes import Envelope, to_lines


async def requeue(connection: Connection, letter: DeadLetter) -> bool:
    """Move a message that was to go out back to the outbox, behind the messages that wait there for its entity.

    For a transaction. False: the letter is no longer there, and nothing was written. Raises msgspec.DecodeError for a
    letter that holds no envelope.
    """
    envelope = Envelope.from_json(letter.value or b"")
    entity_id = envelope.subject
    of_intent = entity_id if letter.topic.startswith(EFFECT) else None
    entry = Entry(letter.topic, slot_of(entity_id), of_intent, 1, to_lines([envelope])[:-1].decode())
    if not await dead_letters.remove(connection, letter.id):
        return False
    await outbox.add(connection, entry)
    return True
