"""Correlation ids: what a client or a gateway sends as `X-Correlation-ID`, or what is made in its place.

Gateways put ids of their own form into this field, so no request is refused for it.
"""

import random
from uuid import UUID

from app.api.asgi import Headers

HEADER = b"x-correlation-id"
MAX_LENGTH = 128  # characters

_UUID_LENGTHS = frozenset({32, 36, 38, 41, 45})  # bare, with hyphens, in braces, as a URN without and with hyphens


def correlation(headers: Headers) -> tuple[str, UUID | None]:
    """The id of a request: the client's unchanged, else a new one; and the UUID to store, where the client's is one.

    An id is 1 to 128 printable characters of ASCII. Anything else counts as none.
    """
    for name, value in headers:
        if name == HEADER:
            return read(value)
    return new_id(), None


def read(value: bytes) -> tuple[str, UUID | None]:
    """The id, and the UUID to store, for the value of one `X-Correlation-ID` field."""
    text = value.decode("latin-1").strip(" \t")
    if not (0 < len(text) <= MAX_LENGTH and text.isascii() and text.isprintable()):
        return new_id(), None
    if len(text) not in _UUID_LENGTHS:
        return text, None
    try:
        return text, UUID(text)
    except ValueError:
        return text, None


def new_id() -> str:
    """A random UUID (version 4). uuid4() asks the kernel for its bits, and takes six times as long."""
    bits = f"{random.getrandbits(128):032x}"
    return f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-a{bits[17:20]}-{bits[20:]}"
