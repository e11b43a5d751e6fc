"""Events from CloudEvents 1.0: one, a batch, or attributes apart from their data.

Attributes and extensions become the fields of our own form, which `events` then reads, so there is one set of rules.
Unknown extensions and `dataschema` are ignored; `source`, `partitionkey` and `datacontenttype` are checked, but not
stored. A null attribute counts as absent (JSON format, 2.2).
"""

import re
from base64 import b64decode
from collections.abc import Iterable, Mapping
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Raw

from app.domain.events import Event
from app.domain.positions import Position
from app.errors import Fault, InvalidInputError, UnreadableError
from app.wire.events import read_event, read_events
from app.wire.faults import explain
from app.wire.syntax import check_json, check_utf8
from app.wire.values import NOT_DECODED, integer_of, without_bom

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
_ATTRIBUTE = b"ce-"  # the beginning of the names of HTTP headers that hold attributes

# Our fields, and the attributes that they are read from.
_FIELDS = {
    "event_id": "id",
    "type": "type",
    "entity_id": "subject",
    "occurred_at": "time",
    "domain": "domain",
    "correlation_id": "correlationid",
}
_NUMBERS = ("sequence", "previous")
_REQUIRED = ("specversion", "id", "source", "type", "subject", "time")
# Attributes that are checked, but not stored: their form, and the message if they differ.
_CHECKED = {
    "specversion": (re.compile(r"1\.0"), "1.0 was expected"),
    "source": (re.compile(r".+", re.DOTALL), "text was expected; it is empty"),
    "partitionkey": (re.compile(r".+", re.DOTALL), "text was expected; it is empty"),
    "datacontenttype": (
        re.compile(r"application/(json|[^\s;]+\+json)\s*(;.*)?", re.IGNORECASE),
        "application/json was expected",
    ),
}
# Pointers of faults in our own form, and the attributes that they are about.
_ATTRIBUTE_OF = {f"#/{field}": attribute for field, attribute in _FIELDS.items()} | {
    "#/position/sequence": "sequence",
    "#/position/previous": "previous",
    "#/position": "previous",  # the fault that it is not lower than the sequence
}
_ABSENT = (b"", b"null")
_MAX_DIGITS = 19  # of 2^63-1

# The attributes that are read, and the data. The others are skipped, so that they take no memory.
_Members = msgspec.defstruct(
    "_Members",
    [(name, Raw, Raw()) for name in dict.fromkeys((*_FIELDS.values(), *_NUMBERS, *_CHECKED, "data", "data_base64"))],
)
_MEMBERS = msgspec.json.Decoder(_Members)


def read_cloudevent(body: bytes | Raw, position: Position | None = None) -> Event:
    """One CloudEvent in the JSON format (structured mode). Raises like read_event().

    With a `position`, that of a message in a log, `sequence` and `previous` are ignored.
    """
    whole = without_bom(bytes(body))
    try:
        found = _MEMBERS.decode(whole)
    except NOT_DECODED as error:
        explain(whole, error)
    check_utf8(whole)  # nothing else checks the ignored members
    members = {name: value for name, value in msgspec.structs.asdict(found).items() if bytes(value) not in _ABSENT}
    data, data_at = _data_of(members)
    try:
        return _read(members, data, position, attributes_at="#/", data_at=data_at)
    except UnreadableError as error:
        explain(whole, error)  # with line and column in the whole body


def read_cloudevents(body: bytes) -> list[Event]:
    """The CloudEvents of a JSON array (batched mode), in the order sent. Raises like read_events()."""
    return read_events(body, read_cloudevent)


def read_binary(
    attributes: Mapping[str, str],
    data: bytes,
    position: Position | None = None,
    *,
    attributes_at: str = "#/header/ce-",
) -> Event:
    """One CloudEvent whose attributes came apart from its data (binary mode). `data` is JSON, or empty.

    Faults of an attribute point to its header, whose name begins as `attributes_at` says. Raises like
    read_cloudevent().
    """
    data = without_bom(data)
    if data and not data.isspace():
        check_json(data)
    members = {name: Raw(msgspec.json.encode(value)) for name, value in attributes.items()}
    return _read(members, Raw(data), position, attributes_at=attributes_at, data_at="#")


def attributes_of(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The attributes that HTTP headers carry, decoded (HTTP binding, section 3.1.3.2); empty when there are none.

    The names of the headers are in lower case, as ASGI has them. Raises InvalidInputError for a repeated header, and
    for one that is not UTF-8 after percent-decoding.
    """
    attributes: dict[str, str] = {}
    for header, value in headers:
        if not header.startswith(_ATTRIBUTE):
            continue
        pointer = f"#/header/{header.decode('latin-1')}"
        name = header.removeprefix(_ATTRIBUTE).decode("latin-1")
        if name in attributes:
            raise InvalidInputError([Fault(pointer, "this header was sent more than once")])
        quoted = re.fullmatch(rb'"(.*)"', value)  # RFC 9110, section 5.6.4
        text = re.sub(rb"\\(.)", rb"\1", quoted[1]) if quoted else value
        try:
            attributes[name] = unquote_to_bytes(text).decode()
        except UnicodeDecodeError:
            raise InvalidInputError([Fault(pointer, "not UTF-8 after percent-decoding")]) from None
    return attributes


def _read(
    members: Mapping[str, Raw], data: Raw, position: Position | None, *, attributes_at: str, data_at: str
) -> Event:
    """The event of attributes and data. A fault's pointer begins with `attributes_at` or `data_at`."""
    required = (*_REQUIRED, "sequence") if position is None else _REQUIRED
    faults = [Fault(attributes_at + name, "this field is required") for name in required if name not in members]
    for name, (form, expected) in _CHECKED.items():
        if name in members and not form.fullmatch(_text(members[name], attributes_at + name)):
            faults.append(Fault(attributes_at + name, expected))
    if faults:
        raise InvalidInputError(faults)
    event: dict[str, object] = {field: members[name] for field, name in _FIELDS.items() if name in members}
    event["position"] = position or {
        name: _number(members[name], attributes_at + name) for name in _NUMBERS if name in members
    }
    if bytes(data).strip():
        event["data"] = data
    try:
        return read_event(msgspec.json.encode(event))
    except InvalidInputError as error:
        raise InvalidInputError([_moved(fault, attributes_at, data_at) for fault in error.faults]) from None


def _moved(fault: Fault, attributes_at: str, data_at: str) -> Fault:
    """A fault of our own form as one of the CloudEvent."""
    if fault.pointer in _ATTRIBUTE_OF:
        return Fault(attributes_at + _ATTRIBUTE_OF[fault.pointer], fault.detail)
    if fault.pointer.startswith("#/data"):
        return Fault(data_at + fault.pointer.removeprefix("#/data"), fault.detail)
    return fault


def _data_of(members: Mapping[str, Raw]) -> tuple[Raw, str]:
    """The data, and the pointer to it. `data_base64` encodes JSON, too."""
    encoded = members.get("data_base64")
    if encoded is None:
        return members.get("data", Raw()), "#/data"
    pointer = "#/data_base64"
    if "data" in members:
        raise InvalidInputError([Fault(pointer, "give either `data` or `data_base64`, not both")])
    try:
        data = b64decode(_text(encoded, pointer), validate=True)
    except ValueError:
        raise InvalidInputError([Fault(pointer, "base64 was expected")]) from None
    try:
        check_json(data)
    except UnreadableError as error:
        raise InvalidInputError([Fault(pointer, str(error))]) from None
    return Raw(data), pointer


def _text(value: Raw, pointer: str) -> str:
    try:
        return msgspec.json.decode(value, type=str)
    except NOT_DECODED:
        raise InvalidInputError([Fault(pointer, "text was expected")]) from None


def _number(value: Raw, pointer: str) -> int:
    """A number as text in decimal digits, with leading zeros allowed (sequence extension), or as a JSON integer."""
    if bytes(value).startswith(b'"'):
        text = _text(value, pointer)
    else:
        integer = integer_of(bytes(value))
        text = bytes(value).decode() if integer is None else str(integer)
    if not re.fullmatch("[0-9]+", text):
        raise InvalidInputError([Fault(pointer, "a number in decimal digits was expected")])
    digits = text.lstrip("0") or "0"
    if len(digits) > _MAX_DIGITS:
        raise InvalidInputError([Fault(pointer, "the number is too large")])
    return int(digits)
