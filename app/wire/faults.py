"""Faults of bytes that are not an event: msgspec's errors explained, with JSON pointers."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import NoReturn
from urllib.parse import quote

import msgspec

from app.domain.events import EVENT_CLASSES, EVENT_TYPES
from app.errors import Fault, InvalidInputError, UnreadableError

MAX_NESTING = 64  # levels of objects and arrays in one event
NOT_DECODED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what decoding raises: see explain()

_CLASSES = dict(zip(EVENT_TYPES, EVENT_CLASSES, strict=True))


def explain(body: bytes, error: Exception) -> NoReturn:
    """Raise the reason why a body did not decode.

    Raises InvalidInputError, with a pointer, for JSON of the wrong shape; otherwise UnreadableError, with line and
    column.
    """
    if not body.strip():
        raise UnreadableError("the body is empty; a JSON value was expected") from None
    try:
        text = body.decode()
    except UnicodeDecodeError as wrong:
        where = _line_and_column(body[: wrong.start].decode())
        raise UnreadableError(f"not UTF-8: byte 0x{body[wrong.start]:02x} at {where}") from None
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as wrong:
        raise UnreadableError(f"not JSON: {wrong.msg} at line {wrong.lineno} column {wrong.colno}") from None
    except _ConstantError as wrong:
        tokens = re.finditer(rf'"(?:[^"\\]|\\.)*"|{wrong}', text)
        at = next(token.start() for token in tokens if token[0] == str(wrong))
        raise UnreadableError(f"not JSON: {wrong} is not a JSON number, at {_line_and_column(text[:at])}") from None
    except RecursionError:
        raise InvalidInputError([Fault("#", f"nested deeper than {MAX_NESTING} levels")]) from None
    except ValueError:
        raise InvalidInputError([Fault("#", "the number is too large")]) from None
    if (lone := next(_lone_surrogates(text), None)) is not None:
        raise UnreadableError(
            f"not Unicode: a lone surrogate in a string at {_line_and_column(text[:lone])}"
        ) from None
    if isinstance(error, RecursionError):
        raise InvalidInputError([Fault("#", f"nested deeper than {MAX_NESTING} levels")]) from None
    if isinstance(error, msgspec.ValidationError):
        raise InvalidInputError([fault_of(error, json.loads(text))]) from None
    raise UnreadableError(f"not JSON: {error}") from None


class _ConstantError(ValueError):
    """NaN, Infinity or -Infinity, which Python's json module would accept."""


def _refuse_constant(name: str) -> NoReturn:
    raise _ConstantError(name)


def _line_and_column(before: str) -> str:
    line = before.count("\n") + 1
    return f"line {line} column {len(before) - (before.rfind(chr(10)) + 1) + 1}"


def _lone_surrogates(text: str) -> Iterator[int]:
    """Where half of a surrogate pair stands alone. An escaped backslash does not begin an escape."""
    for match in re.finditer(r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u[dD][89a-fA-F]..", text):
        if len(match.group()) == len("\\uXXXX"):
            yield match.start()


_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_TYPE = re.compile(r"Invalid value (.*)", re.DOTALL)
_A_CLOUDEVENT = (
    "; specversion suggests a CloudEvent: send one as application/cloudevents+json, an array of them as "
    "application/cloudevents-batch+json"
)


def fault_of(error: msgspec.ValidationError, value: object) -> Fault:
    """msgspec's message as a fault. Its path becomes a pointer, which includes the field that it names."""
    detail, _, path = str(error).partition(" - at `$")
    pointer = "#" + "".join(f"/{_escape(step)}" for step in re.findall(r"[^.\[\]`]+", path))
    if match := _MISSING.fullmatch(detail):
        return Fault(f"{pointer}/{match[1]}", "this field is required")
    if match := _UNKNOWN.fullmatch(detail):
        return Fault(f"{pointer}/{_escape(match[1])}", f"unknown field{_known_fields(pointer, value)}")
    if pointer == "#/type" and (match := _TYPE.fullmatch(detail)):
        return Fault(pointer, f"unknown event type {match[1]}; the types are {', '.join(EVENT_TYPES)}")
    if detail.startswith(("Integer value out of range", "Number out of range")):
        return Fault(pointer, "the number is too large")
    return Fault(pointer, detail[0].lower() + detail[1:])


def _escape(name: str) -> str:
    """A field's name as a step of a JSON pointer in a URI fragment (RFC 6901, sections 3 and 6)."""
    return quote(name.replace("~", "~0").replace("/", "~1"), safe="~!$&'()*+,;=:@")


def _known_fields(pointer: str, value: object) -> str:
    """A hint at the fields of the object at `pointer` in the event `value`; empty if it is not an event."""
    if pointer == "#/position":
        return "; the fields are sequence, partition, offset, previous"
    if pointer == "#" and isinstance(value, dict) and "specversion" in value:
        return _A_CLOUDEVENT
    tag = value.get("type") if isinstance(value, dict) else None
    if not isinstance(tag, str) or tag not in _CLASSES:
        return ""
    cls = _CLASSES[tag]
    if pointer == "#":
        return f"; the fields are type, {', '.join(cls.__struct_fields__)}"
    data = next(field.type for field in msgspec.structs.fields(cls) if field.name == "data")
    names = [field.name for field in msgspec.structs.fields(data)]
    return f"; the data of {tag} may have {', '.join(names)}" if names else f"; the data of {tag} is empty"


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
