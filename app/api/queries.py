"""Query strings: each parameter once and with a value, times as they were meant, and the link to the next page."""

import re
from collections import Counter
from urllib.parse import parse_qsl, urlencode

from fastapi import Request

from app.errors import Fault, InvalidInputError, UnreadableError
from app.wire.faults import MAX_FAULTS

# Parameters that a query may have several times.
REPEATABLE = frozenset({"state", "capability", "entity_id", "type", "until", "min_offset"})

_LOST_PLUS = re.compile(r"(?<=[0-9]) (?=[0-9]{2}:?[0-9]{2}\Z)")


def parameters(query: bytes) -> list[tuple[str, str]]:
    """The names and values of a query string, decoded. Raises UnreadableError for what is not UTF-8."""
    try:
        return parse_qsl(query.decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise UnreadableError("the query of the URL is not UTF-8") from None


def check(query: bytes, repeatable: frozenset[str] = REPEATABLE) -> None:
    """Raises InvalidInputError for a parameter without a value, and for one that is given twice and may not be.

    The last of two would count, and the empty one would not: a list without the filter that was meant.
    """
    if not query:
        return
    given = parameters(query)
    faults = [
        Fault(f"#/query/{name}", f"given {times} times; it counts only once")
        for name, times in Counter(name for name, _ in given).items()
        if times > 1 and name not in repeatable
    ]
    faults += [
        Fault(f"#/query/{name}", "the value is empty; leave the parameter out, or give it one")
        for name, value in dict(given).items()
        if not value
    ]
    if faults:
        raise InvalidInputError(faults[:MAX_FAULTS])


async def check_query(request: Request) -> None:
    """The same for a request: a dependency of the routes that refuse parameters that they do not know."""
    check(request.scope["query_string"])


def with_plus(time: str) -> str:
    """A time with its `+`, where a query has it raw: it is decoded to a blank there, before the offset of a zone."""
    return _LOST_PLUS.sub("+", time)


def next_page(query: bytes, cursor: str) -> str:
    """The value of the `Link` to the next page (RFC 8288): a relative reference with only a query (RFC 3986, 5.2.2).

    It resolves to the path that the client asked for, so it stays under whatever prefix a proxy has put before it.
    """
    kept = [(name, value) for name, value in parameters(query) if name != "cursor"]
    return f'<?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'
