"""Events from JSON, or the faults that keep bytes from being an event.

msgspec checks shapes and ranges while it decodes. The other rules are checked afterwards: no NUL (PostgreSQL's text
holds none), limited depth, and times within certain years. Messages are made only if there is a fault.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar, get_type_hints
from uuid import UUID

import msgspec

from app.domain.events import EVENT_CLASSES, Event
from app.errors import Fault, InvalidInputError, UnreadableError
from app.wire.faults import FaultList, depth, explain, find_nul
from app.wire.syntax import MAX_NESTING
from app.wire.values import BOM, NOT_DECODED, Path, cut, may_be_finer, with_integers, without_bom

MAX_EVENTS = 10_000  # in one array
MANY_COMMAS = 200_000  # in an array whose items are counted before memory is taken for each
MAX_CAPABILITIES = 64 * 1024  # bytes as compact JSON
MAX_EVENT = 7 * MAX_CAPABILITIES  # bytes as compact JSON, of which nothing but capabilities can be large
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
_INTEGERS = [("position", name) for name in ("sequence", "offset", "previous")]
T = TypeVar("T")
BEYOND = "a time lies in the years 1900 to 9998, in UTC"


def read_event(body: bytes | msgspec.Raw) -> Event:
    """One event. Raises UnreadableError for bytes that are not JSON, InvalidInputError for other JSON."""
    sent = bytes(body)
    if len(sent) > MAX_CAPABILITIES:
        _check_size(sent)
    try:
        event: Event = _EVENT.decode(sent)
        if may_be_finer(sent):
            event = _cut(event, sent)
        fault = _fault_beyond_shape(event, sent)
    except NOT_DECODED as error:
        return _read_loosely(sent, error)
    if fault is not None:
        raise InvalidInputError([fault])
    return event


def read_events(body: bytes, read: Callable[[msgspec.Raw], Event] = read_event) -> list[Event]:
    """The events of a JSON array, in the order sent. Raises like `read`.

    The error names what is wrong with the items, up to MAX_FAULTS faults and MAX_TEXT characters, and says when that
    is not all.
    """
    body = without_bom(body)
    try:
        if body.count(b",") > MANY_COMMAS:
            _check_number(body)
        items = _ITEMS.decode(body)
    except NOT_DECODED as error:
        explain(body, error)
    if len(items) > MAX_EVENTS:
        raise _too_many(f"{len(items):,}")
    events: list[Event] = []
    faults = FaultList()
    for index, item in enumerate(items):
        try:
            events.append(read(item))
        except InvalidInputError as error:
            if not faults.add(Fault(f"#/{index}{fault.pointer[1:]}", fault.detail) for fault in error.faults):
                break
        except UnreadableError as error:
            # msgspec does not check whether the strings of a raw item are UTF-8.
            explain(body, error)
    faults.refuse()
    return events


def read_json(body: bytes, decoder: msgspec.json.Decoder[T], *, integers: Sequence[Path] = ()) -> T:
    """A body of any other kind. `integers` leads to the members that are integers. Raises like read_event()."""
    try:
        return decoder.decode(body)
    except NOT_DECODED as error:
        bare = without_bom(body)
        rewritten = with_integers(bare, integers) if "got `float`" in str(error) else None
        if rewritten is not None:
            return read_json(rewritten, decoder)
        if bare is body or bare.startswith(BOM):
            explain(bare, error)
        return read_json(bare, decoder, integers=integers)


def correlated(event: Event, correlation_id: UUID | None) -> Event:
    """The event with this correlation id, unless it has one of its own."""
    if correlation_id is None or event.correlation_id is not None:
        return event
    return msgspec.structs.replace(event, correlation_id=correlation_id)


def _read_loosely(body: bytes, error: Exception) -> Event:  # noqa: RET503 - explain() never returns
    """The event of a body that is not one strictly. Raises like read_event()."""
    bare = without_bom(body)
    if bare is not body and not bare.startswith(BOM):
        return read_event(bare)
    if "got `float`" in str(error) and (rewritten := with_integers(body, _INTEGERS)) is not None:
        return read_event(rewritten)
    explain(bare, error)


def _check_number(body: bytes) -> None:
    """Raise InvalidInputError when an array has more than MAX_EVENTS items, before memory is taken for each."""
    number = 0

    class Counted(msgspec.Struct):
        """An item, of which nothing is kept."""

        def __post_init__(self) -> None:
            nonlocal number
            number += 1
            if number > MAX_EVENTS:
                raise _too_many("more")

    msgspec.json.decode(body, type=list[Counted])


def _too_many(number: str) -> InvalidInputError:
    detail = f"an array holds at most {MAX_EVENTS:,} events; this one has {number}"
    return InvalidInputError([Fault("#", f"{detail}; send more as application/x-ndjson")])


class _Large(msgspec.Struct):
    """The part of an event that may be large."""

    class Data(msgspec.Struct):
        """Its data."""

        capabilities: msgspec.Raw = msgspec.Raw()

    data: Data | None = None


def _check_size(body: bytes) -> None:
    """Raise InvalidInputError for capabilities that are too large, before anything is built of them.

    It is done for a body that is longer than they may be. Other faults are left to be found.
    """
    try:
        compact = msgspec.json.format(body, indent=-1)
        data = msgspec.json.decode(compact, type=_Large).data
    except NOT_DECODED:
        return  # and nothing is built of it, either
    written = b"" if data is None else bytes(data.capabilities)
    # As text, what is sent is at most six times as long as it has to be: `\\u0041` for `A`.
    if MAX_CAPABILITIES < len(written) <= 6 * MAX_CAPABILITIES:
        with suppress(*NOT_DECODED):
            written = msgspec.json.encode(msgspec.json.decode(written))
    if len(written) > MAX_CAPABILITIES:
        raise InvalidInputError(
            [Fault("#/data/capabilities", f"larger than {MAX_CAPABILITIES:,} bytes as compact JSON")]
        )
    if len(compact) > MAX_EVENT:
        raise InvalidInputError([Fault("#", f"an event has at most {MAX_EVENT:,} bytes as compact JSON")])


def _cut(event: Event, body: bytes) -> Event:
    """The event with its times cut to microseconds, where msgspec has rounded them."""
    sent = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    data = msgspec.json.decode(sent.get("data", b"{}"), type=dict[str, msgspec.Raw])
    times = {name: _time(data[name]) for name in _TIMES[type(event.data)] if name in data}
    return msgspec.structs.replace(
        event, occurred_at=_time(sent["occurred_at"]), data=msgspec.structs.replace(event.data, **times)
    )


def _time(sent: msgspec.Raw) -> datetime | None:
    text = msgspec.json.decode(sent, type=str | None)
    return None if text is None else msgspec.convert(cut(text), datetime)


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
