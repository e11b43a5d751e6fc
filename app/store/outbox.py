"""The outbox: what a transaction wants sent after it, and every statement over it.

A row is written by the statement that writes the change it speaks of, after that. So the rows of one entity have
their ids in the order of its versions, whoever wrote them: who writes the next has waited for the row before.
"""

from collections.abc import Sequence
from typing import cast
from uuid import UUID

from msgspec import Struct
from sqlalchemy import ARRAY, CTE, ColumnElement, Table, bindparam, column, func, literal_column, select
from sqlalchemy.dialects.postgresql import insert

from app.store.tables import OutboxMessage

SLOTS = 64  # one relay at a time works on a slot; all messages of one entity id are in one
TOPIC = "topic:"  # a destination is a topic of the bus,
EFFECT = "effect:"  # or a handler of intents

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
