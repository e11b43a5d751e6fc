"""What a client would like, but can do without: `Prefer` (RFC 7240)."""

import re

from fastapi import Response

from app.api.asgi import Headers

MINIMAL = "minimal"
APPLIED = (b"preference-applied", b"return=minimal")

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # possessive: what fails, fails in linear time
_QUOTED = r'"(?:[^"\\]++|\\.)*+"'
_PAIR = rf"({_WORD})(?:[ \t]*=[ \t]*({_WORD}|{_QUOTED}))?"
# A preference, which may have parameters. They mean nothing here, and are passed over.
_PREFERENCE = re.compile(rf"{_PAIR}(?:[ \t]*;(?:[ \t]*{_PAIR})?)*[ \t]*(?:,|\Z)")
_BLANKS = re.compile(r"[ \t,]*")
_ESCAPED = re.compile(r"\\(.)")


def preferences(fields: list[bytes]) -> dict[str, str]:
    """Preferences by name, in lower case, from all the fields of a request; "" for a name without a value.

    The first of two of one name counts (section 2). From what cannot be read on, a field says nothing.
    """
    found: dict[str, str] = {}
    for field in fields:
        text = field.decode("latin-1")
        place = _end(_BLANKS, text, 0)
        while match := _PREFERENCE.match(text, place):
            value = match[2] or ""
            if value.startswith('"'):
                value = _ESCAPED.sub(r"\1", value[1:-1])
            found.setdefault(match[1].lower(), value)
            place = _end(_BLANKS, text, match.end())
    return found


def wants_minimal(headers: Headers) -> bool:
    """Whether the client can do without a body when all went well."""
    fields = [value for name, value in headers if name == b"prefer"]
    return bool(fields) and preferences(fields).get("return", "").lower() == MINIMAL


def wants_wait(headers: Headers, most: int) -> int | None:
    """How many seconds the client would wait (section 4.3), `most` of them at most; None where it does not say."""
    fields = [value for name, value in headers if name == b"prefer"]
    seconds = preferences(fields).get("wait", "") if fields else ""
    if not (seconds.isascii() and seconds.isdigit()):
        return None
    return min(int(seconds[:10]), most)


def minimal() -> Response:
    """The answer without a body, which says that the preference was applied."""
    return Response(status_code=204, headers={"Preference-Applied": "return=minimal"})


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    match = pattern.match(text, place)
    return match.end() if match else place
