"""Faults of bytes that are not an event: msgspec's errors explained, with JSON pointers."""

import re
from collections.abc import Iterable
from typing import NoReturn
from urllib.parse import quote

import msgspec

from app.domain.events import EVENT_CLASSES, EVENT_TYPES
from app.errors import Fault, InvalidInputError, UnreadableError
from app.wire.syntax import check_json, too_deep
from app.wire.values import NOT_DECODED

MAX_FAULTS = 100  # that one answer names
MAX_TEXT = 64 * 1024  # characters of faults in one answer
SHOWN = 200  # characters of a name or a value that a fault quotes

LEFT_OUT = Fault("#", f"at most {MAX_FAULTS} faults are named: the rest is left out")

_CLASSES = dict(zip(EVENT_TYPES, EVENT_CLASSES, strict=True))


def explain(body: bytes, error: Exception) -> NoReturn:
    """Raise the reason why a body did not decode.

    Raises InvalidInputError, with a pointer, for JSON of the wrong shape; otherwise UnreadableError, with line and
    column. The time grows with the body, the memory does not.
    """
    check_json(body)
    if isinstance(error, RecursionError):
        too_deep()
    if isinstance(error, msgspec.ValidationError):
        raise InvalidInputError([fault_of(error, body)]) from None
    raise UnreadableError(f"not JSON: {error}") from None


_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_TYPE = re.compile(r"Invalid value (.*)", re.DOTALL)
_A_CLOUDEVENT = (
    "; specversion suggests a CloudEvent: send one as application/cloudevents+json, an array of them as "
    "application/cloudevents-batch+json"
)


def fault_of(error: msgspec.ValidationError, body: bytes) -> Fault:
    """msgspec's message as a fault. Its path and the field that it names become a pointer.

    What the message quotes of `body` is cut to SHOWN characters.
    """
    detail, _, path = _shortened(str(error)).partition(" - at `$")
    pointer = "#" + "".join(f"/{_escape(step)}" for step in re.findall(r"[^.\[\]`]+", path))
    if match := _MISSING.fullmatch(detail):
        return Fault(f"{pointer}/{match[1]}", "this field is required")
    if match := _UNKNOWN.fullmatch(detail):
        return Fault(f"{pointer}/{_escape(match[1])}", f"unknown field{_known_fields(pointer, body)}")
    if pointer == "#/type" and (match := _TYPE.fullmatch(detail)):
        return Fault(pointer, f"unknown event type {match[1]}; the types are {', '.join(EVENT_TYPES)}")
    if detail.startswith(("Integer value out of range", "Number out of range")):
        return Fault(pointer, "the number is too large")
    return Fault(pointer, detail[0].lower() + detail[1:])


def _shortened(message: str) -> str:
    """msgspec's message; where it quotes a long text, without the middle of it."""
    if len(message) <= 2 * SHOWN:
        return message
    path_at = message.rfind(" - at `$", len(message) - SHOWN)
    path_at = len(message) if path_at < 0 else path_at
    return message[:SHOWN] + "…" + message[path_at - 1 :]  # with the quote at the end of the text


def _escape(name: str) -> str:
    """A field's name as a step of a JSON pointer in a URI fragment (RFC 6901, sections 3 and 6)."""
    if len(name) > SHOWN:
        name = name[:SHOWN] + "…"
    return quote(name.replace("~", "~0").replace("/", "~1"), safe="~!$&'()*+,;=:@")


class _Hints(msgspec.Struct):
    """What says which fields an object may have."""

    type: msgspec.Raw = msgspec.Raw()
    specversion: msgspec.Raw = msgspec.Raw()


def _known_fields(pointer: str, body: bytes) -> str:
    """A hint at the fields of the object at `pointer` in an event; empty if the body is not an event."""
    if pointer == "#/position":
        return "; the fields are sequence, partition, offset, previous"
    try:
        hints = msgspec.json.decode(body, type=_Hints)
        tag = msgspec.json.decode(hints.type, type=str) if bytes(hints.type) else None
    except NOT_DECODED:
        return ""
    if pointer == "#" and bytes(hints.specversion):
        return _A_CLOUDEVENT
    if tag not in _CLASSES:
        return ""
    cls = _CLASSES[tag]
    if pointer == "#":
        return f"; the fields are type, {', '.join(cls.__struct_fields__)}"
    data = next(field.type for field in msgspec.structs.fields(cls) if field.name == "data")
    names = [field.name for field in msgspec.structs.fields(data)]
    return f"; the data of {tag} may have {', '.join(names)}" if names else f"; the data of {tag} is empty"


class FaultList:
    """The faults of one answer, up to MAX_FAULTS of them and MAX_TEXT characters."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._room = MAX_TEXT

    def add(self, faults: Iterable[Fault]) -> bool:
        """Add faults; false when there is no room for more: the rest is left out."""
        for fault in faults:
            if len(self._faults) == MAX_FAULTS or len(fault.pointer) + len(fault.detail) > self._room:
                self._faults.append(LEFT_OUT)
                return False
            self._room -= len(fault.pointer) + len(fault.detail)
            self._faults.append(fault)
        return True

    def refuse(self) -> None:
        """Raise InvalidInputError if there are faults."""
        if self._faults:
            raise InvalidInputError(self._faults)


def find_nul(value: object, pointer: str) -> str | None:
    """The pointer to the first string that holds NUL, keys included, or None."""
    if isinstance(value, str):
        return pointer if "\0" in value else None
    inner: Iterable[tuple[str, object]] = ()
    if isinstance(value, dict):
        if any("\0" in name for name in value):
            return pointer
        inner = value.items()
    elif isinstance(value, list):
        inner = ((str(index), item) for index, item in enumerate(value))
    for name, item in inner:
        if (found := find_nul(item, f"{pointer}/{_escape(name)}")) is not None:
            return found
    return None


def depth(value: object) -> int:
    """The number of levels of nested objects and arrays."""
    deepest = 0
    level = [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        deepest += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return deepest
