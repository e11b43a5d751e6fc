"""Correlation ids: what a client or a gateway sends as `X-Correlation-ID`, or what is made in its place.

Gateways put ids of their own form into this field, so no request is refused for it.
"""

import os
import random
import re
from contextlib import suppress
from itertools import count
from uuid import UUID

from app.api.asgi import Headers

HEADER = b"x-correlation-id"

_ID = re.compile(rb"[ -~]{1,128}")
_UUID_LENGTHS = frozenset({32, 36, 38, 41, 45})  # bare, with hyphens, in braces, as a URN without and with hyphens


def correlation(headers: Headers) -> str:
    """The id of a request: the client's unchanged, else a new one.

    An id is 1 to 128 printable characters of ASCII. Anything else counts as none.
    """
    for name, value in headers:
        if name == HEADER:
            return _read(value) or new_id()
    return new_id()


def stored(headers: Headers) -> UUID | None:
    """The UUID to store with events that have no correlation id: the client's id, where it is one."""
    for name, value in headers:
        if name == HEADER:
            text = _read(value)
            if text is not None and len(text) in _UUID_LENGTHS:
                with suppress(ValueError):
                    return UUID(text)
            break
    return None


def _read(value: bytes) -> str | None:
    value = value.strip(b" \t")
    return value.decode("ascii") if _ID.fullmatch(value) else None


class _Ids:
    """UUIDs of one process: their beginning is drawn once, and a number in them is counted up.

    They only tell requests apart, so nobody has to be unable to guess them. To draw all bits of each would take five
    times as long.
    """

    def __init__(self) -> None:
        self.draw()

    def draw(self) -> None:
        """Draw another beginning; version and variant are those of random UUIDs (RFC 9562, section 5.4)."""
        source = random.SystemRandom()
        bits = f"{source.getrandbits(80):020x}"
        self.beginning = f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-a{bits[17:]}-"
        self.numbers = count(source.getrandbits(47))


_ids = _Ids()
os.register_at_fork(after_in_child=_ids.draw)  # the same ids would be made in both processes


def new_id() -> str:
    """A new UUID, in the form of a random one (version 4)."""
    return f"{_ids.beginning}{next(_ids.numbers):012x}"
