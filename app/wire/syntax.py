"""Where bytes stop being JSON: the reason, with line and column, in linear time and flat memory.

A body of up to EXPLAINED bytes is read by Python's own parser, which has the better words. A longer one is skimmed:
no value is built of it, and what is said is msgspec's reason and its place.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import NoReturn

import msgspec

from app.errors import Fault, InvalidInputError, UnreadableError

MAX_NESTING = 64  # levels of objects and arrays in one event
EXPLAINED = 64 * 1024  # bytes of text that are read again to say what is wrong with them

_STEP = 64 * 1024  # bytes that are looked at in one go
_CONTINUATION = bytes(range(0x80, 0xC0))  # in UTF-8, the bytes of a character after its first
_BYTE = re.compile(r"(.*) \(byte (\d+)\)")  # msgspec's reason and place
_CONSTANTS = (b"NaN", b"Infinity", b"-Infinity")  # which Python's json module would accept
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]..")


def check_json(body: bytes) -> None:
    """Raise UnreadableError unless the bytes are one JSON value in UTF-8.

    Raises InvalidInputError for nesting that no parser follows, and for a number that Python does not read.
    """
    if not body or body.isspace():
        raise UnreadableError("the body is empty; a JSON value was expected")
    check_utf8(body)
    if len(body) <= EXPLAINED:
        _parse(body)
    else:
        _skim(body)


def check_utf8(body: bytes) -> None:
    """Raise UnreadableError, with line and column, unless the bytes are UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), _STEP):
        held = len(decoder.getstate()[0])  # bytes of a character that the step before cut in two
        try:
            decoder.decode(body[start : start + _STEP], final=start + _STEP >= len(body))
        except UnicodeDecodeError as wrong:
            at = start - held + wrong.start
            raise UnreadableError(f"not UTF-8: byte 0x{body[at]:02x} at {place(body, at)}") from None


def place(body: bytes, at: int) -> str:
    """A byte's line and column, both from 1; columns count characters."""
    line_start = body.rfind(b"\n", 0, at) + 1
    column = 1
    for start in range(line_start, at, _STEP):
        column += len(body[start : min(start + _STEP, at)].translate(None, _CONTINUATION))
    return f"line {_lines(body, line_start)} column {column}"


def _lines(body: bytes, end: int) -> int:
    return body.count(b"\n", 0, end) + 1


def too_deep() -> NoReturn:
    """Raise InvalidInputError for nesting that no parser follows."""
    raise InvalidInputError([Fault("#", f"nested deeper than {MAX_NESTING} levels")]) from None


def _parse(body: bytes) -> None:
    """The check of a short body, by Python's parser."""
    text = body.decode()
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as wrong:
        raise UnreadableError(f"not JSON: {wrong.msg} at line {wrong.lineno} column {wrong.colno}") from None
    except _ConstantError as wrong:
        # Strings are skipped without a way back: a pattern that may try again needs memory for each character.
        tokens = re.finditer(rb'"(?:[^"\\]++|\\.)*+"|%s' % str(wrong).encode(), body, re.DOTALL)
        at = next(token.start() for token in tokens if not token[0].startswith(b'"'))
        _refuse_number(body, at, str(wrong))
    except RecursionError:
        too_deep()
    except ValueError:
        raise InvalidInputError([Fault("#", "the number is too large")]) from None
    if (lone := next(_lone_surrogates(body), None)) is not None:
        _refuse_surrogate(body, lone)


def _skim(body: bytes) -> None:
    """The check of a long body: msgspec skips its values without building them."""
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except RecursionError:
        too_deep()
    except msgspec.DecodeError as wrong:
        found = _BYTE.fullmatch(str(wrong))
        if found is None:  # it ends too early
            reason, at = str(wrong), len(body)
        else:
            reason, at = found[1], int(found[2])
        for name in _CONSTANTS:
            begin = at - (name[:1] == b"-")
            if body.startswith(name, begin):
                _refuse_number(body, begin, name.decode())
        half = _SURROGATE.search(body, max(0, at - 2 * len("\\uXXXX")), at)
        if half is not None and any(word in reason for word in ("surrogate", "hex escape", "truncated")):
            _refuse_surrogate(body, half.start())
        reason = reason.removeprefix("JSON is malformed: ")
        raise UnreadableError(f"not JSON: {reason} at {place(body, at)}") from None


class _ConstantError(ValueError):
    """NaN, Infinity or -Infinity, which Python's json module would accept."""


def _refuse_constant(name: str) -> NoReturn:
    raise _ConstantError(name)


def _refuse_number(body: bytes, at: int, name: str) -> NoReturn:
    raise UnreadableError(f"not JSON: {name} is not a JSON number, at {place(body, at)}") from None


def _refuse_surrogate(body: bytes, at: int) -> NoReturn:
    raise UnreadableError(f"not Unicode: a lone surrogate in a string at {place(body, at)}") from None


def _lone_surrogates(body: bytes) -> Iterator[int]:
    """Where half of a surrogate pair stands alone. An escaped backslash does not begin an escape."""
    for match in re.finditer(rb"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u[dD][89a-fA-F]..", body):
        if len(match.group()) == len("\\uXXXX"):
            yield match.start()
