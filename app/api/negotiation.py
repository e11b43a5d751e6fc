"""What a client wants to read, and what it has already (RFC 9110, sections 12.5.1 and 13.1.2)."""

import re

from fastapi import Request

from app.api.context import Headers

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


def unchanged(headers: Headers, etag: str) -> bool:
    """Whether `If-None-Match` names `etag`: any tag of its list does, weakly compared, and so does `*`."""
    given = [value for name, value in headers if name == b"if-none-match"]
    if not given:
        return False
    header = b",".join(given).decode("latin-1").strip()
    return header == "*" or etag in _TAG.findall(header)
