"""Events from Kafka messages.

A message is a CloudEvent, structured or binary by its headers (CloudEvents' Kafka binding, section 3), or an event of
our own form. Its position is its place in the log; a position inside it is ignored.
"""

from contextlib import suppress
from typing import TypeVar
from uuid import UUID

import msgspec
from msgspec import Raw, Struct

from app.domain.events import DEFAULT_DOMAIN, EVENT_CLASSES, Event, Heartbeat, Name
from app.domain.positions import Position
from app.errors import Fault, ForeignMessageError, FramedMessageError, InvalidInputError
from app.tracing.context import TRACEPARENT, traceparent_in
from app.wire.cloudevents import STRUCTURED, read_binary, read_cloudevent
from app.wire.events import read_event
from app.wire.faults import explain
from app.wire.values import NOT_DECODED

_ATTRIBUTE_AT = "#/header/ce_"
_ATTRIBUTE = "ce_"  # the beginning of the names of headers that hold attributes
CONTENT_TYPE = "content-type"

_FRAME = 5  # bytes before the payload: the magic byte, and the id of the schema
_TYPES = frozenset(str(cls.__struct_config__.tag) for cls in EVENT_CLASSES)
_FAMILIES = ("registration.", "node.")  # the beginnings of our types
_HEARTBEAT = str(Heartbeat.__struct_config__.tag)
_NONE = Raw(b"null")
T = TypeVar("T")


class _Typed(Struct):
    """The type of a structured CloudEvent."""

    type: str | None = None


_TYPED = msgspec.json.Decoder(_Typed)
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_ENCODE = msgspec.json.Encoder().encode


class KafkaMessage(Struct, frozen=True, gc=False):
    """A message of a topic. `headers` is None if one of their names is not UTF-8: the client then gives none."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]] | None

    @property
    def position(self) -> Position:
        """The position of the event in it."""
        return Position(partition=f"{self.topic}-{self.partition}", offset=self.offset)


def traceparent_of_message(message: KafkaMessage) -> bytes | None:
    """The trace context of a message: by its header, as the extension of a binary CloudEvent, or in our envelope."""
    for name, value in message.headers or ():
        if name in {TRACEPARENT, _ATTRIBUTE + TRACEPARENT}:
            return value
    return None if message.value is None else traceparent_in(message.value)


def read_message(message: KafkaMessage) -> Event:
    """The event in a message.

    Raises ForeignMessageError for a message without a value and for a type that is not ours, else like read_event().
    A type that begins like ours, but is unknown, is wrong: a later release, or its sender, may know it.
    """
    value = message.value
    if value is None:
        raise ForeignMessageError("it has no value (a tombstone)", "tombstone")
    _check_framing(value)
    if message.headers:
        headers = _texts(message)
        media = headers.get(CONTENT_TYPE, "").partition(";")[0].strip().lower()
        if media == STRUCTURED:
            _check_type(_decoded(value, _TYPED).type)
            return read_cloudevent(value, message.position)
        attributes = {name[len(_ATTRIBUTE) :]: text for name, text in headers.items() if name.startswith(_ATTRIBUTE)}
        if attributes:
            if CONTENT_TYPE in headers:
                attributes["datacontenttype"] = headers[CONTENT_TYPE]
            _check_type(attributes.get("type"))
            return read_binary(attributes, value, message.position, attributes_at=_ATTRIBUTE_AT)
    return _read_plain(value, message.position)


def _texts(message: KafkaMessage) -> dict[str, str]:
    """The headers that have a value, by name in lower case."""
    texts: dict[str, str] = {}
    for header, value in message.headers or ():
        name = header.lower()
        if value is None or not (name == CONTENT_TYPE or name.startswith(_ATTRIBUTE)):
            continue
        if name in texts:
            raise InvalidInputError([Fault(f"#/header/{header}", "this header was sent more than once")])
        try:
            texts[name] = value.decode()
        except UnicodeDecodeError:
            raise InvalidInputError([Fault(f"#/header/{header}", "not UTF-8")]) from None
    return texts


def _read_plain(value: bytes, position: Position) -> Event:
    """An event without headers, of our own form or a CloudEvent, which has a `specversion`."""
    members = _decoded(value, _MEMBERS)
    with suppress(*NOT_DECODED):
        _check_type(msgspec.json.decode(members.get("type", _NONE), type=str | None))
    if "specversion" in members:
        return read_cloudevent(value, position)
    members["position"] = Raw(_ENCODE(position))
    return read_event(_ENCODE(members))


class _About(Struct):
    """What names the entity of a message: of our own form, or of a CloudEvent."""

    entity_id: object = None
    subject: object = None
    domain: object = DEFAULT_DOMAIN


_ABOUT = msgspec.json.Decoder(_About)


def is_about(name: Name, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]) -> bool:
    """Whether a message that names the entity id somewhere is about this entity, and not about another one.

    It need not be an event. A message that cannot be read is about whatever it names.
    """
    entity_id, domain = name
    attributes = {header.lower(): text for header, text in headers}
    subject: object = attributes.get(f"{_ATTRIBUTE}subject")
    its_domain: object = attributes.get(f"{_ATTRIBUTE}domain") or DEFAULT_DOMAIN
    if subject is None:
        about = _About()
        with suppress(*NOT_DECODED):
            about = _ABOUT.decode(value or b"")
        subject = about.entity_id or about.subject
        its_domain = about.domain
        if subject is None:
            return key is None or _uuid(key) in {None, entity_id}
    return _uuid(subject) == entity_id and _text_of(its_domain) == domain


def _uuid(given: object) -> UUID | None:
    try:
        return UUID(_text_of(given))
    except ValueError:
        return None


def _text_of(given: object) -> str:
    return given.decode(errors="replace") if isinstance(given, bytes) else str(given)


def entity_of(message: KafkaMessage) -> UUID | None:
    """The entity that a message is about, as far as its headers, its value or its key tell."""
    for header, text in message.headers or ():
        if header.lower() == f"{_ATTRIBUTE}subject":
            return _uuid(text)
    about = _About()
    with suppress(*NOT_DECODED):
        about = _ABOUT.decode(message.value or b"")
    return _uuid(about.entity_id or about.subject) or _uuid(message.key)


def is_heartbeat(message: KafkaMessage) -> bool:
    """Whether a message that cannot be applied says that it is a heartbeat: its headers, or else its value."""
    for header, text in message.headers or ():
        if header.lower() == f"{_ATTRIBUTE}type":
            return text == _HEARTBEAT.encode()
    with suppress(*NOT_DECODED):
        return _TYPED.decode(message.value or b"").type == _HEARTBEAT
    return False


def _check_type(type_: str | None) -> None:
    """Raises ForeignMessageError for a type of others."""
    if type_ is not None and type_ not in _TYPES and not type_.startswith(_FAMILIES):
        raise ForeignMessageError(f"its type is {type_[:100]!r}")


def _check_framing(value: bytes) -> None:
    """Raises FramedMessageError for the bytes of a schema registry's serializer: a zero, and the schema's id."""
    if value[:1] == b"\0" and len(value) > _FRAME:
        schema = int.from_bytes(value[1:_FRAME], "big")
        raise FramedMessageError(
            f"framed by a schema registry (magic byte 0, schema id {schema}): this service reads plain JSON"
        )


def _decoded(value: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(value)
    except NOT_DECODED as error:
        explain(value, error)
