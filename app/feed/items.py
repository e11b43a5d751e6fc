"""What followers get: changes and rows as JSON, and the filter that says which."""

from uuid import UUID

import msgspec
from msgspec import Struct

from app.domain.positions import Position
from app.domain.registration import UNDESCRIBED, Registration
from app.feed import tokens
from app.feed.tokens import Token
from app.store.changes import Logged
from app.wire.answers import ChangeItem

_encode = msgspec.json.Encoder().encode


class Filter(Struct, frozen=True):
    """Which changes of a domain a follower wants. Nothing in a field means any."""

    domain: str
    entity_ids: frozenset[UUID] = frozenset()
    states: frozenset[str] = frozenset()  # before the change or after it: so a follower sees an entity leave, too
    node_type: str | None = None
    types: frozenset[str] = frozenset()


class Item:
    """A change, encoded once for all followers."""

    __slots__ = (
        "_token",
        "before",
        "body",
        "current_state",
        "domain",
        "entity_id",
        "node_type",
        "place",
        "row",
        "type",
        "version",
    )

    def __init__(self, logged: Logged) -> None:
        self.place = logged.place
        self.entity_id = logged.entity_id
        self.domain = logged.domain
        self.node_type = logged.node_type
        self.version = logged.version
        self.type = logged.type
        self.before = logged.before
        self.current_state = logged.current_state
        self.body = b"" if logged.entity_id is None else _encode(item_of(logged, logged.entity_id))
        self.row = logged.row
        self._token: bytes | None = None

    @property
    def token(self) -> bytes:
        """The token of its place."""
        if self._token is None:
            self._token = tokens.write(Token(self.place)).encode()
        return self._token

    def with_row(self) -> bytes:
        """Its JSON with the row after it, null where it was logged without."""
        return b'%b,"row":%b}' % (self.body[:-1], (self.row or "null").encode())


def matches(change: Item | Logged, wanted: Filter) -> bool:
    """Whether the filter lets a change through. An erased change is nobody's.

    A forget has no node type any more: those who follow one type of node hear of all of them.
    """
    return (
        change.domain == wanted.domain
        and change.entity_id is not None
        and (not wanted.entity_ids or change.entity_id in wanted.entity_ids)
        and (not wanted.states or change.current_state in wanted.states or change.before in wanted.states)
        and (wanted.node_type is None or change.node_type in {wanted.node_type, UNDESCRIBED})
        and (not wanted.types or change.type in wanted.types)
    )


def item_of(logged: Logged, entity_id: UUID) -> ChangeItem:
    """A row of the log as it is answered."""
    return ChangeItem(
        id=logged.id,
        entity_id=entity_id,
        domain=logged.domain,
        node_type=logged.node_type,
        version=logged.version,
        event_id=logged.event_id,
        type=logged.type,
        outcome=logged.outcome,
        reason=logged.reason,
        before=logged.before,
        current_state=logged.current_state,
        stands_at=Position(partition=logged.partition, offset=logged.offset, sequence=logged.sequence),
        occurred_at=logged.occurred_at,
        changed_at=logged.changed_at,
        correlation_id=logged.correlation_id,
    )


def row_json(registration: Registration) -> bytes:
    """A row of a snapshot."""
    return b'{"kind":"row",' + _encode(registration)[1:]
