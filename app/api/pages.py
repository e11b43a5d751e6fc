"""Keyset pages: the cursor of the next page, and the link to it."""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec

from app.api.queries import next_page
from app.errors import BadCursorError
from app.wire.events import EARLIEST, LATEST

CHECK = 6  # bytes of the checksum, and of the digest of the filters

LATEST_COMPUTED = LATEST + timedelta(days=365)  # a deadline that is computed may lie after the last time of an event

T = TypeVar("T", bound=msgspec.Struct)


def write_cursor(place: object, filters: object) -> str:
    """An opaque cursor for `place`, bound to `filters`, of URL-safe characters."""
    body = _digest(msgspec.json.encode(filters, order="sorted")) + msgspec.json.encode(place)
    return urlsafe_b64encode(_digest(body) + body).rstrip(b"=").decode()


def read_cursor(cursor: str, filters: object, type_: type[T]) -> T:
    """The place that a cursor names: values that PostgreSQL can be asked about, times in UTC.

    Raises BadCursorError for a cursor that is damaged or belongs to other filters, and for one that somebody made up:
    its checksum finds damage, and nobody is kept from computing it.
    """
    try:
        raw = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
    except ValueError:
        raise BadCursorError("the cursor is damaged") from None
    body = raw[CHECK:]
    # Decoding skips characters that are not base64, so the cursor is compared with its own encoding.
    if raw[:CHECK] != _digest(body) or urlsafe_b64encode(raw).rstrip(b"=").decode() != cursor:
        raise BadCursorError("the cursor is damaged")
    if body[:CHECK] != _digest(msgspec.json.encode(filters, order="sorted")):
        raise BadCursorError("the cursor belongs to another query: send it with the same filters as the page before")
    try:
        place = msgspec.json.decode(body[CHECK:], type=type_)
        checked = {name: _checked(getattr(place, name)) for name in type_.__struct_fields__}
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):  # another release may have written it
        raise BadCursorError("the cursor is damaged") from None
    return msgspec.structs.replace(place, **checked)


def _checked(value: object) -> object:
    """A value of a place; a time in UTC. Raises ValueError or OverflowError for one that no row has."""
    if isinstance(value, datetime):
        value = value.astimezone(UTC)
        if not EARLIEST <= value <= LATEST_COMPUTED:
            raise ValueError("the time is out of range")
    elif isinstance(value, str) and "\0" in value:
        raise ValueError("the text holds NUL")
    return value


def next_link(query: bytes, cursor: str) -> dict[str, str]:
    """The header that links to the page after that of a query."""
    return {"Link": next_page(query, cursor)}


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=CHECK).digest()
