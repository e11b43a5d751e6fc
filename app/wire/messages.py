"""Events from Kafka messages.

A message is a CloudEvent, structured or binary by its headers (CloudEvents' Kafka binding, section 3), or an event of
our own form. Its position is its place in the log; a position inside it is ignored.
"""

from contextlib import suppress
from uuid import UUID

import msgspec
from msgspec import Raw, Struct

from app.domain.events import DEFAULT_DOMAIN, Event, Name
from app.domain.positions import Position
from app.errors import Fault, InvalidInputError
from app.wire.cloudevents import STRUCTURED, read_binary, read_cloudevent
from app.wire.events import read_event
from app.wire.faults import explain
from app.wire.values import NOT_DECODED

_ATTRIBUTE = "ce_"  # the beginning of the names of headers that hold attributes
CONTENT_TYPE = "content-type"

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


def read_message(message: KafkaMessage) -> Event:
    """The event in a message. Raises like read_event()."""
    value = message.value
    if value is None:
        raise InvalidInputError([Fault("#", "an event was expected; the message has no value")])
    if message.headers:
        headers = _texts(message)
        media = headers.get(CONTENT_TYPE, "").partition(";")[0].strip().lower()
        if media == STRUCTURED:
            return read_cloudevent(value, message.position)
        attributes = {name[len(_ATTRIBUTE) :]: text for name, text in headers.items() if name.startswith(_ATTRIBUTE)}
        if attributes:
            if CONTENT_TYPE in headers:
                attributes["datacontenttype"] = headers[CONTENT_TYPE]
            return read_binary(attributes, value, message.position)
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
    try:
        members = _MEMBERS.decode(value)
    except NOT_DECODED as error:
        explain(value, error)
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
