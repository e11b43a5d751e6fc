"""Content negotiation and conditional requests (RFC 9110, sections 12.5.1 and 13)."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from fastapi import Request

from app.api.asgi import Headers
from app.api.compression import plain_etags
from app.errors import Fault, InvalidInputError, PreconditionFailedError


class Versioned(Protocol):
    """A row that counts its changes."""

    @property
    def version(self) -> int:
        """How often it was changed, from 1."""
        ...


_TAG = re.compile(r'(?:W/)?("[^"]*")')


def preferred(request: Request, default: str, *others: str) -> str:
    """The media type that the `Accept` header prefers; if it prefers none of them, the first."""
    accept = ",".join(request.headers.getlist("accept"))
    return max((default, *others), key=lambda media: _quality(accept, media))


def _quality(accept: str, media_type: str) -> float:
    """The quality of `media_type`: that of the most specific range that contains it."""
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
    """Whether `If-None-Match` names `etag`: any tag of its list does, weakly compared, and so does `*`.

    Raises PreconditionFailedError if there is an `If-Match` that does not name it (RFC 9110, section 13.2.2).
    """
    for name, _ in headers:
        if name.startswith(b"if-"):
            return _unchanged(headers, etag)
    return False


def _unchanged(headers: Headers, etag: str) -> bool:
    wanted = Conditions([header for header in headers if header[0] == b"if-match"])
    if not wanted.allow(etag):
        detail = f"the row is at version {etag}, and If-Match names other versions only{wanted.weak_note}"
        raise PreconditionFailedError(detail, etag)
    known = known_tags(headers)
    return known is not None and known(etag)


def known_tags(headers: Headers) -> Callable[[str], bool] | None:
    """Whether `If-None-Match` names a tag, weakly compared; None where the request has no such header."""
    given = [value for name, value in headers if name == b"if-none-match"]
    if not given:
        return None
    return _known(b",".join(given))


@lru_cache(maxsize=256)  # a thousand who wait for the same page send the same
def _known(given: bytes) -> Callable[[str], bool]:
    header = plain_etags(given).decode("latin-1").strip()
    if header == "*":
        return lambda _: True
    tags = frozenset(_TAG.findall(header)) if _LIST.fullmatch(header) is not None else frozenset()
    return lambda etag: etag.removeprefix("W/") in tags


_ANY = "*"
_ETAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'  # RFC 9110, section 8.8.3
_LIST = re.compile(rf"[ \t,]*{_ETAG}(?:[ \t]*,[ \t,]*{_ETAG})*[ \t,]*")  # with empty items, as section 5.6.1 wants
_VERSION = re.compile(r'"([1-9][0-9]{0,17})"')


class Conditions:
    """The conditions of a change: `If-Match` and `If-None-Match`. If both are sent, both must hold."""

    def __init__(self, headers: Headers) -> None:
        """Raises InvalidInputError for a header that is not a list of ETags."""
        self._if_match = _tags(headers, "If-Match")
        self._if_none_match = _tags(headers, "If-None-Match")

    def __bool__(self) -> bool:
        """Whether there is a condition."""
        return self._if_match is not None or self._if_none_match is not None

    @property
    def version(self) -> int | None:
        """The one version that they allow, 0 for no row; None if they allow none or several."""
        if self._if_match is None:
            return 0 if self._if_none_match == [_ANY] else None
        if (
            self._if_none_match is None
            and len(self._if_match) == 1
            and (one := _VERSION.fullmatch(self._if_match[0]))
        ):
            return int(one[1])
        return None

    @property
    def weak_note(self) -> str:
        """What to say of weak tags in `If-Match` where they were refused; empty where there are none."""
        weak = [tag for tag in self._if_match or () if tag.startswith("W/")]
        if not weak:
            return ""
        return (
            f". The tag {weak[0]} in If-Match is weak, and weak tags never match there; a proxy that compresses "
            f"answers makes tags weak: send {weak[0].removeprefix('W/')}"
        )

    def allow(self, etag: str | None) -> bool:
        """Whether they allow to change a row with this ETag; None is no row (RFC 9110, section 13.2.2).

        A weak tag matches nothing in `If-Match`; in `If-None-Match` it matches like the same tag without `W/`.
        """
        if self._if_match is not None and not (
            etag is not None and (self._if_match == [_ANY] or etag in self._if_match)
        ):
            return False
        if self._if_none_match is None or etag is None:
            return True
        return self._if_none_match != [_ANY] and etag not in {tag.removeprefix("W/") for tag in self._if_none_match}


def _tags(headers: Headers, name: str) -> list[str] | None:
    """The ETags that a header lists, or just `*`; None without the header."""
    wanted = name.lower().encode()
    given = [value for key, value in headers if key == wanted]
    if not given:
        return None
    header = plain_etags(b",".join(given)).decode("latin-1").strip(" \t")
    if header == _ANY:
        return [_ANY]
    if not _LIST.fullmatch(header):
        detail = 'a list of ETags in double quotes was expected, such as "5", or *'
        raise InvalidInputError([Fault(f"#/header/{name}", detail)])
    return re.findall(_ETAG, header)
