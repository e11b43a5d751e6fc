"""JSON as clients write it: byte order marks, integers with a fraction of zero, and times with nanoseconds."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from app.domain.events import Heartbeat, Initiated
from app.errors import InvalidInputError
from app.wire.cloudevents import read_cloudevent
from app.wire.events import read_event, read_events, read_json
from app.wire.values import integer_of
from tests.making import NODE, event_json

BOM = b"\xef\xbb\xbf"


def initiated(**fields: Any) -> bytes:
    """An event, as JSON."""
    return json.dumps(event_json("registration.initiated", 1, **fields)).encode()


def placed(position: str) -> bytes:
    """An event whose position is this raw JSON text."""
    return initiated(position="@").replace(b'"@"', position.encode())


def test_a_byte_order_mark_is_skipped() -> None:
    """A byte order mark before an event, an array or a CloudEvent is skipped."""
    assert read_event(BOM + initiated()) == read_event(initiated())
    assert read_events(BOM + b"[" + initiated() + b"]") == [read_event(initiated())]
    cloudevent = {
        "specversion": "1.0",
        "id": str(NODE),
        "source": "x",
        "type": "node.heartbeat",
        "subject": str(NODE),
        "time": "2026-01-01T00:00:00Z",
        "sequence": 1.0,
    }
    assert read_cloudevent(BOM + json.dumps(cloudevent).encode()).position.sequence == 1


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1.0", 1),
        ("1e3", 1000),
        ("1.5E1", 15),
        ("1000e-3", 1),
        ("-0.0", 0),
        ("9007199254740993.0", 9007199254740993),
        ("9223372036854775807.000", 9223372036854775807),
        ("9.223372036854775807e18", 9223372036854775807),
    ],
)
def test_an_integer_may_be_written_with_a_point_or_an_exponent(written: str, read: int) -> None:
    """Integers such as 1.0 or 1e3 are read exactly, even beyond 2^53, as JSON Schema defines integers."""
    assert read_event(placed(f'{{"sequence": {written}}}')).position.sequence == read


def test_the_offset_of_a_partition_is_such_an_integer_too() -> None:
    """All three numbers of a position may be written with a fraction of zero, even in one event."""
    position = read_event(placed('{"partition": "p", "offset": 5.0, "previous": 4e0}')).position
    assert (position.offset, position.previous) == (5, 4)


@pytest.mark.parametrize("written", ["1.5", "1e-1", "0.9999999999999999999999", "1e19", "1e99", "1e400", "-1.0"])
def test_a_fraction_is_not_an_integer(written: str) -> None:
    """A fraction, or a number beyond bigint, is a fault of that number."""
    with pytest.raises(InvalidInputError) as raised:
        read_event(placed(f'{{"sequence": {written}}}'))
    assert raised.value.faults[0].pointer == "#/position/sequence"


def test_numbers_elsewhere_stay_as_they_are() -> None:
    """A capability of 1.0 stays a float, even beside a position that is read as an integer."""
    sent = initiated(position="@", data={"node_type": "c", "capabilities": {"x": 1.0}})
    event = read_event(sent.replace(b'"@"', b'{"sequence": 1.0}'))
    assert isinstance(event, Initiated)
    assert msgspec.json.encode(event.data.capabilities) == b'{"x":1.0}'


def test_members_of_other_bodies_may_be_such_integers() -> None:
    """The schema version of a commit may be written as 1.0 too."""

    class Body(msgspec.Struct):
        """A body with one integer."""

        number: int

    decoder = msgspec.json.Decoder(Body)
    assert read_json(BOM + b'{"number": 2e0}', decoder, integers=[["number"]]).number == 2
    for wrong in (b'{"number": 2.5}', b'{"number": 2.0, "number": []}', b'{"number": 2.0'):
        with pytest.raises(Exception, match=r"int|JSON"):
            read_json(wrong, decoder, integers=[["number"]])


@pytest.mark.parametrize("value", [b"", b"1.", b"x", b'"1"', b"null", b"1" * 65, b"1e999"])
def test_other_values_are_not_integers(value: bytes) -> None:
    """Text, an empty value and an overlong number are not integers."""
    assert integer_of(value) is None


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("2026-01-01T23:59:59.9999999Z", datetime(2026, 1, 1, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("2026-12-31T23:59:59.999999999999+00:00", datetime(2026, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("2026-01-01T00:00:00.1234567Z", datetime(2026, 1, 1, 0, 0, 0, 123_456, tzinfo=UTC)),
        ("9998-12-31T23:59:59.9999999Z", datetime(9998, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    ],
)
def test_nanoseconds_are_cut(sent: str, read: datetime) -> None:
    """Nanoseconds are cut off, and never rounded up, in any time of an event."""
    assert read_event(initiated(occurred_at=sent)).occurred_at == read
    beat = read_event(json.dumps(event_json("node.heartbeat", 1, data={"heartbeat_at": sent})).encode())
    assert isinstance(beat, Heartbeat)
    assert (beat.data.heartbeat_at, beat.data.liveness_deadline) == (read, None)
    nothing = {"heartbeat_at": None, "liveness_deadline": sent}
    beat = read_event(json.dumps(event_json("node.heartbeat", 1, data=nothing)).encode())
    assert isinstance(beat, Heartbeat)
    assert (beat.data.heartbeat_at, beat.data.liveness_deadline) == (None, read)


def test_what_looks_like_a_time_elsewhere_stays_as_it_is() -> None:
    """A capability that looks like a time stays text."""
    event = read_event(initiated(data={"node_type": "c", "capabilities": {"at": "00:00:00.123456789"}}))
    assert isinstance(event, Initiated)
    assert event.data.capabilities == {"at": "00:00:00.123456789"}
