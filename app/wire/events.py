"""Events from JSON, or the faults that keep bytes from being an event.

msgspec checks shapes and ranges while it decodes. The other rules are checked afterwards: no NUL (PostgreSQL's text
holds none), limited depth, and times within certain years. Messages are made only if there is a fault.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import get_type_hints
from uuid import UUID

import msgspec

from app.domain.events import EVENT_CLASSES, Event
from app.errors import Fault, InvalidInputError, UnreadableError
from app.wire.faults import MAX_NESTING, NOT_DECODED, depth, explain, find_nul

MAX_EVENTS = 10_000  # in one array
MAX_LINE = 1024 * 1024  # bytes of one line of a stream
CHUNK_LINES = 1000  # lines of a stream that one transaction takes in
EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)
LATEST = datetime(9998, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)

_EVENT = msgspec.json.Decoder(Event)
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
# The times in the data of each type, by its class.
_TIMES = {
    data: tuple(name for name, type_ in get_type_hints(data).items() if type_ in {datetime, datetime | None})
    for data in (get_type_hints(cls)["data"] for cls in EVENT_CLASSES)
}
BEYOND = "a time lies in the years 1900 to 9998, in UTC"


def read_event(body: bytes | msgspec.Raw) -> Event:
    """One event. Raises UnreadableError for bytes that are not JSON, InvalidInputError for other JSON."""
    try:
        event: Event = _EVENT.decode(body)
        fault = _fault_beyond_shape(event, bytes(body))
    except NOT_DECODED as error:
        explain(bytes(body), error)
    if fault is not None:
        raise InvalidInputError([fault])
    return event


def read_events(body: bytes, read: Callable[[msgspec.Raw], Event] = read_event) -> list[Event]:
    """The events of a JSON array, in the order sent. Raises like `read`; the error names every wrong item."""
    try:
        items = _ITEMS.decode(body)
    except NOT_DECODED as error:
        explain(body, error)
    if len(items) > MAX_EVENTS:
        detail = f"an array holds at most {MAX_EVENTS:,} events; this one has {len(items):,}"
        raise InvalidInputError([Fault("#", f"{detail}; send more as application/x-ndjson")])
    events: list[Event] = []
    faults: list[Fault] = []
    for index, item in enumerate(items):
        try:
            events.append(read(item))
        except InvalidInputError as error:
            faults += [Fault(f"#/{index}{fault.pointer[1:]}", fault.detail) for fault in error.faults]
        except UnreadableError as error:
            # msgspec does not check whether the strings of a raw item are UTF-8.
            explain(body, error)
    if faults:
        raise InvalidInputError(faults)
    return events


def correlated(event: Event, correlation_id: UUID | None) -> Event:
    """The event with this correlation id, unless it has one of its own."""
    if correlation_id is None or event.correlation_id is not None:
        return event
    return msgspec.structs.replace(event, correlation_id=correlation_id)


def _fault_beyond_shape(event: Event, body: bytes) -> Fault | None:
    """The fault of an event that has the right shape, or None."""
    if not EARLIEST <= event.occurred_at <= LATEST:
        return Fault("#/occurred_at", BEYOND)
    data = event.data
    for name in _TIMES[type(data)]:
        time = getattr(data, name)
        if time is not None and not EARLIEST <= time <= LATEST:
            return Fault(f"#/data/{name}", BEYOND)
    if b"\\u0000" in body:
        nul_at = find_nul(msgspec.json.decode(body), "#")
        if nul_at is not None:
            return Fault(nul_at, "a string here holds NUL (\\u0000), which PostgreSQL cannot store")
    if body.count(b"{") + body.count(b"[") > MAX_NESTING and depth(msgspec.json.decode(body)) > MAX_NESTING:
        return Fault("#/data", f"nested deeper than {MAX_NESTING} levels")
    return None
