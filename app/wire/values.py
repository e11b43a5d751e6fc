"""JSON as clients write it: a byte order mark is skipped, `1.0` is an integer, and times are cut to microseconds.

Every body is decoded strictly first, so a body that needs none of this costs nothing more.
"""

import re
from collections.abc import Sequence
from decimal import Decimal

import msgspec
from msgspec import Raw

NOT_DECODED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what decoding raises: see faults.explain()
BOM = b"\xef\xbb\xbf"
MAX_REWRITTEN = 2 * 1024 * 1024  # bytes of a body whose integers are looked for; no valid body is longer
MAX_DIGITS = 64  # bytes of a number that may be an integer

_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_NUMBER = re.compile(rb"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?")
_FINER = re.compile(rb"\.[0-9]{7}")  # perhaps of a time, finer than a microsecond
_FRACTION = re.compile(r"(\.[0-9]{6})[0-9]+")

Path = Sequence[str]  # the names that lead to a member of a body


def without_bom(body: bytes) -> bytes:
    """The body without a byte order mark at its beginning."""
    return body.removeprefix(BOM)


def integer_of(number: bytes) -> int | None:
    """The integer that a JSON number is, such as `1.0` or `1e3`, exactly; None for any other value."""
    if len(number) > MAX_DIGITS or not _NUMBER.fullmatch(number):
        return None
    value = Decimal(number.decode())
    return int(value) if value == value.to_integral_value() else None


def with_integers(body: bytes, paths: Sequence[Path]) -> bytes | None:
    """The body with the members at `paths` written as integers where they are; None if that changes nothing."""
    if len(body) > MAX_REWRITTEN:
        return None
    try:
        rewritten = _rewritten(body, paths)
    except NOT_DECODED:
        return None
    return None if rewritten == _rewritten(body, ()) else rewritten


def _rewritten(value: bytes, paths: Sequence[Path]) -> bytes:
    members = _MEMBERS.decode(value)
    for first, *rest in paths:
        if first not in members:
            continue
        inner = bytes(members[first])
        if rest:
            members[first] = Raw(_rewritten(inner, [rest]))
        elif (number := integer_of(inner)) is not None:
            members[first] = Raw(b"%d" % number)
    return msgspec.json.encode(members)


def may_be_finer(body: bytes) -> bool:
    """Whether a time in the body may be finer than a microsecond, which msgspec would round."""
    return _FINER.search(body) is not None


def cut(time: str) -> str:
    """A time without what is finer than a microsecond."""
    return _FRACTION.sub(r"\1", time)
