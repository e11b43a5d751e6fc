"""What a client wants to read, what it has already, and what its change builds on (RFC 9110, sections 12.5.1, 13)."""

import re
from typing import Protocol

from fastapi import Request

from app.api.context import Headers
from app.errors import Fault, InvalidInputError


class Versioned(Protocol):
    """A row that counts its changes."""

    @property
    def version(self) -> int:
        """How often it was changed, from 1."""
        ...


_TAG = re.compile(r'(?:W/)?("[^"]*")')


def preferred(request: Request, default: str, other: str) -> str:
    """Which of two media types the `Accept` header prefers; `default` when it likes both as much, or neither."""
    accept = ",".join(request.headers.getlist("accept"))
    return other if _quality(accept, other) > _quality(accept, default) else default


def _quality(accept: str, media_type: str) -> float:
    """How much `media_type` is liked: the quality of the most specific range that it lies in."""
    ranges = {media_type: 2, media_type.partition("/")[0] + "/*": 1, "*/*": 0}
    best = (-1, 0.0)
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name in ranges:
            best = max(best, (ranges[name], _q(parameters)))
    return best[1]


def _q(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


def etag_of(row: Versioned) -> str:
    """The ETag of a row: its version."""
    return f'"{row.version}"'


def unchanged(headers: Headers, etag: str) -> bool:
    """Whether `If-None-Match` names `etag`: any tag of its list does, weakly compared, and so does `*`."""
    given = [value for name, value in headers if name == b"if-none-match"]
    if not given:
        return False
    header = b",".join(given).decode("latin-1").strip()
    return header == "*" or (_LIST.fullmatch(header) is not None and etag in _TAG.findall(header))


_ANY = "*"
_ETAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'  # RFC 9110, section 8.8.3
_LIST = re.compile(rf"[ \t,]*{_ETAG}(?:[ \t]*,[ \t,]*{_ETAG})*[ \t,]*")  # with empty items, as section 5.6.1 wants
_VERSION = re.compile(r'"([1-9][0-9]{0,17})"')


class Conditions:
    """What a request to change a row says about the row that it changes, by `If-Match` and `If-None-Match`."""

    def __init__(self, headers: Headers) -> None:
        """Raises InvalidInputError for what is no list of ETags."""
        self._if_match = _tags(headers, "If-Match")
        self._if_none_match = _tags(headers, "If-None-Match")

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return self._if_match is not None or self._if_none_match is not None

    @property
    def version(self) -> int | None:
        """The one version that they allow, 0 for no row; None when it is not that simple."""
        if self._if_match is None:
            return 0 if self._if_none_match == [_ANY] else None
        if (
            self._if_none_match is None
            and len(self._if_match) == 1
            and (one := _VERSION.fullmatch(self._if_match[0]))
        ):
            return int(one[1])
        return None

    def allow(self, etag: str | None) -> bool:
        """Whether they let a row with this ETag be changed; None is no row (RFC 9110, section 13.2.2).

        A weak tag names nothing in `If-Match`, and in `If-None-Match` what it names without its `W/`.
        """
        if self._if_match is not None and not (
            etag is not None and (self._if_match == [_ANY] or etag in self._if_match)
        ):
            return False
        if self._if_none_match is None or etag is None:
            return True
        return self._if_none_match != [_ANY] and etag not in {tag.removeprefix("W/") for tag in self._if_none_match}


def _tags(headers: Headers, name: str) -> list[str] | None:
    """The ETags that a header lists, or `*` alone; None without the header."""
    wanted = name.lower().encode()
    given = [value for key, value in headers if key == wanted]
    if not given:
        return None
    header = b",".join(given).decode("latin-1").strip(" \t")
    if header == _ANY:
        return [_ANY]
    if not _LIST.fullmatch(header):
        detail = 'a list of ETags in double quotes was expected, such as "5", or *'
        raise InvalidInputError([Fault(f"#/header/{name}", detail)])
    return re.findall(_ETAG, header)
