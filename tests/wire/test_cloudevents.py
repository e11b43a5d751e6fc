"""CloudEvents as bytes: the events that they give, and their faults."""

from base64 import b64encode
from typing import Any

import msgspec
import pytest

from app.domain.positions import Position
from app.errors import Fault, InvalidInputError, UnreadableError
from app.wire.cloudevents import attributes_of, read_binary, read_cloudevent, read_cloudevents
from tests.making import NODE, Json, event

ID = "0b7e7d0e-5c1d-4c2b-9a57-3d6f4b8c1a01"
CORRELATION_ID = "3f0c1a52-7d7e-4f2b-9c63-5f1f0c8f2f7d"
ATTRIBUTES: dict[str, str] = {
    "specversion": "1.0",
    "id": ID,
    "source": "/racks/12",
    "type": "registration.initiated",
    "subject": str(NODE),
    "time": "2026-01-01T12:00:00Z",
    "sequence": "7",
}
DATA: Json = {"node_type": "compute"}
EVENT = event("registration.initiated", 7, event_id=ID, occurred_at="2026-01-01T12:00:00Z", data=DATA)


def cloudevent(**members: Any) -> bytes:
    """A CloudEvent in the JSON format; `members` override the usual ones, and ... removes one."""
    laid = ATTRIBUTES | {"data": DATA} | members
    return msgspec.json.encode({name: value for name, value in laid.items() if value is not ...})


def faults(body: bytes) -> list[tuple[str, str]]:
    """The faults of a CloudEvent in the JSON format."""
    with pytest.raises(InvalidInputError) as refused:
        read_cloudevent(body)
    return [(fault.pointer, fault.detail) for fault in refused.value.faults]


def test_a_structured_event_is_the_event() -> None:
    """Attributes give id, type, entity, time and sequence; `data` gives the event's data."""
    assert read_cloudevent(cloudevent()) == EVENT


def test_a_binary_event_is_the_event() -> None:
    """In binary mode headers give the attributes, and the event is the same."""
    assert read_binary(ATTRIBUTES, msgspec.json.encode(DATA)) == EVENT


def test_a_batch_has_its_events_in_order() -> None:
    """A batch gives its events in the order sent."""
    bodies = [cloudevent(sequence=str(sequence)) for sequence in (3, 1, 2)]
    read = read_cloudevents(b"[" + b",".join(bodies) + b"]")
    assert [one.position.sequence for one in read] == [3, 1, 2]


@pytest.mark.parametrize(
    ("members", "fields"),
    [
        ({"domain": "other"}, {"domain": "other"}),
        ({"correlationid": CORRELATION_ID}, {"correlation_id": CORRELATION_ID}),
        ({"previous": "0005"}, {"position": {"sequence": 7, "previous": 5}}),
        ({"previous": 5}, {"position": {"sequence": 7, "previous": 5}}),
        ({"sequence": "0000000000000000000000000007"}, {}),
        ({"sequence": 7}, {}),
        ({"sequence": str(2**63 - 1)}, {"position": {"sequence": 2**63 - 1}}),
        ({"time": "2026-01-01T13:00:00+01:00"}, {"occurred_at": "2026-01-01T13:00:00+01:00"}),
        ({"partitionkey": "rack-12", "dataschema": "https://example.com/schema"}, {}),
        ({"datacontenttype": "application/json; charset=utf-8"}, {}),
        ({"datacontenttype": "application/vnd.node+json"}, {}),
        ({"rack": "12", "slot": 3, "hot": True, "traceparent": "00-ab-cd-01"}, {}),
        ({"domain": None, "previous": None, "correlationid": None, "partitionkey": None, "data_base64": None}, {}),
        ({"data": ..., "data_base64": b64encode(msgspec.json.encode(DATA)).decode()}, {}),
    ],
)
def test_what_more_may_be_said(members: Json, fields: Json) -> None:
    """Our own extensions reach the event, others are ignored, and null counts as absent."""
    usual: Json = {"event_id": ID, "occurred_at": "2026-01-01T12:00:00Z"}
    expected = event("registration.initiated", 7, data=DATA, **usual | fields)
    assert read_cloudevent(cloudevent(**members)) == expected


@pytest.mark.parametrize("data", [..., None, {}])
def test_an_event_may_have_no_data(data: object) -> None:
    """In both modes, an event whose type requires no data may come without."""
    accepted = event("registration.accepted", 7, event_id=ID, occurred_at="2026-01-01T12:00:00Z")
    assert read_cloudevent(cloudevent(type="registration.accepted", data=data)) == accepted
    assert read_binary(ATTRIBUTES | {"type": "registration.accepted"}, b"") == accepted


def test_an_event_from_a_log_stands_where_the_log_says() -> None:
    """A given log position replaces the event's own sequence and previous, which are not read."""
    position = Position(partition="nodes-3", offset=12)
    for members in ({}, {"sequence": ...}, {"sequence": "none", "previous": "99"}):
        assert read_cloudevent(cloudevent(**members), position).position == position
    assert read_binary(ATTRIBUTES, msgspec.json.encode(DATA), position).position == position


REQUIRED = "this field is required"
WRONG: list[tuple[Json, str, str]] = [
    ({"specversion": ...}, "specversion", REQUIRED),
    ({"specversion": "0.3"}, "specversion", "1.0 was expected"),
    ({"specversion": 1.0}, "specversion", "text was expected"),
    ({"id": ...}, "id", REQUIRED),
    ({"id": "node-17"}, "id", "invalid UUID"),
    ({"source": ...}, "source", REQUIRED),
    ({"source": ""}, "source", "text was expected; it is empty"),
    ({"type": ...}, "type", REQUIRED),
    ({"subject": ...}, "subject", REQUIRED),
    ({"subject": "node-17"}, "subject", "invalid UUID"),
    ({"time": ...}, "time", REQUIRED),
    ({"time": "2026-01-01T12:00:00"}, "time", "expected `datetime` with a timezone component"),
    ({"time": "1066-10-14T09:00:00Z"}, "time", "a time lies in the years 1900 to 9998, in UTC"),
    ({"sequence": ...}, "sequence", REQUIRED),
    ({"sequence": ""}, "sequence", "a number in decimal digits was expected"),
    ({"sequence": "-1"}, "sequence", "a number in decimal digits was expected"),
    ({"sequence": "\u0667"}, "sequence", "a number in decimal digits was expected"),
    ({"sequence": 7.5}, "sequence", "a number in decimal digits was expected"),
    ({"sequence": "1" * 5000}, "sequence", "the number is too large"),
    ({"sequence": str(2**63)}, "sequence", "expected `int` <= 9223372036854775807"),
    ({"previous": "8"}, "previous", "`previous` (8) must be lower than the position (7)"),
    ({"domain": ""}, "domain", "expected `str` of length >= 1"),
    ({"domain": "a\0b"}, "domain", "a string here holds NUL (\\u0000), which PostgreSQL cannot store"),
    ({"correlationid": "17"}, "correlationid", "invalid UUID"),
    ({"partitionkey": ""}, "partitionkey", "text was expected; it is empty"),
    ({"datacontenttype": "text/xml"}, "datacontenttype", "application/json was expected"),
]


@pytest.mark.parametrize(("members", "attribute", "detail"), WRONG)
def test_what_is_wrong_is_said_of_the_attribute(members: Json, attribute: str, detail: str) -> None:
    """A fault names the CloudEvents attribute, not the field of our own form."""
    assert faults(cloudevent(**members)) == [(f"#/{attribute}", detail)]


@pytest.mark.parametrize(
    ("members", "attribute", "detail"),
    [one for one in WRONG if all(value is ... or isinstance(value, str) for value in one[0].values())],
)
def test_in_binary_mode_it_is_said_of_the_header(members: Json, attribute: str, detail: str) -> None:
    """In binary mode a fault names the header."""
    attributes = {name: value for name, value in {**ATTRIBUTES, **members}.items() if value is not ...}
    with pytest.raises(InvalidInputError) as refused:
        read_binary(attributes, msgspec.json.encode(DATA))
    assert refused.value.faults == [Fault(f"#/header/ce-{attribute}", detail)]


def test_everything_that_is_missing_is_named() -> None:
    """An empty object has a fault for each required attribute."""
    missing = ["specversion", "id", "source", "type", "subject", "time", "sequence"]
    assert faults(b"{}") == [(f"#/{name}", REQUIRED) for name in missing]


BASE64 = b64encode(b'{"node_type": 5}').decode()


@pytest.mark.parametrize(
    ("members", "pointer", "detail"),
    [
        ({"data": ...}, "#/data", REQUIRED),
        ({"data": {"node_type": 5}}, "#/data/node_type", "expected `str`, got `int`"),
        ({"data": []}, "#/data", "expected `object`, got `array`"),
        ({"data_base64": BASE64}, "#/data_base64", "give either `data` or `data_base64`, not both"),
        ({"data": ..., "data_base64": BASE64}, "#/data_base64/node_type", "expected `str`, got `int`"),
        ({"data": ..., "data_base64": "no base64"}, "#/data_base64", "base64 was expected"),
        ({"data": ..., "data_base64": "ü"}, "#/data_base64", "base64 was expected"),
        ({"data": ..., "data_base64": 5}, "#/data_base64", "text was expected"),
        (
            {"data": ..., "data_base64": b64encode(b'{}, "domain": "other"').decode()},
            "#/data_base64",
            "not JSON: Extra data at line 1 column 3",
        ),
    ],
)
def test_what_is_wrong_with_data_is_said_of_it(members: Json, pointer: str, detail: str) -> None:
    """A fault in the data has its own pointer, whether in `data` or in `data_base64`."""
    assert faults(cloudevent(**members)) == [(pointer, detail)]


@pytest.mark.parametrize(
    ("data", "pointer", "detail"),
    [
        (b'{"node_type": 5}', "#/node_type", "expected `str`, got `int`"),
        (b"[]", "#", "expected `object`, got `array`"),
        (b"", "#", REQUIRED),
    ],
)
def test_in_binary_mode_the_body_is_the_data(data: bytes, pointer: str, detail: str) -> None:
    """In binary mode, a pointer into the data is a pointer into the body."""
    with pytest.raises(InvalidInputError) as refused:
        read_binary(ATTRIBUTES, data)
    assert refused.value.faults == [Fault(pointer, detail)]


def test_data_does_not_lead_out_of_itself() -> None:
    """A body with more than one JSON value cannot add fields to the event."""
    with pytest.raises(UnreadableError, match="Extra data"):
        read_binary(ATTRIBUTES, b'{"node_type": "compute"}, "domain": "other"')


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b"{", "line 1 column 2"),
        (cloudevent()[:-1] + b',\n "rack": "\xff"}', "not UTF-8: byte 0xff at line 2 column 11"),
        (cloudevent()[:-1] + b',\n "domain": "\\ud800"}', "lone surrogate in a string at line 2 column 13"),
    ],
)
def test_what_is_no_json_is_said_with_its_place(body: bytes, said: str) -> None:
    """A body that is not JSON raises UnreadableError, with line and column in the original body."""
    with pytest.raises(UnreadableError, match=said):
        read_cloudevent(body)


@pytest.mark.parametrize("body", [b"[]", b"7", b'"text"'])
def test_a_structured_event_is_an_object(body: bytes) -> None:
    """A JSON value other than an object is refused at its root."""
    [(pointer, detail)] = faults(body)
    assert (pointer, detail[:17]) == ("#", "expected `object`")


def test_every_wrong_event_of_a_batch_is_named() -> None:
    """Pointers into a batch begin with the event's index."""
    body = b"[%b,%b,%b]" % (cloudevent(id="17"), cloudevent(), cloudevent(data=...))
    with pytest.raises(InvalidInputError) as refused:
        read_cloudevents(body)
    assert [fault.pointer for fault in refused.value.faults] == ["#/0/id", "#/2/data"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"plain", "plain"),
        (b"with%20space", "with space"),
        (b"Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        (b"100%25", "100%"),
        (b"%e2%82%ac", "€"),
        (b"%zz", "%zz"),
        ("€".encode(), "€"),
        (b'"quoted"', "quoted"),
        (b'"a \\"b\\" \\\\"', 'a "b" \\'),
        (b'"', '"'),
        (b"", ""),
    ],
)
def test_header_values_are_decoded(value: bytes, said: str) -> None:
    """Header values are unquoted first, and then percent-decoded as UTF-8."""
    assert attributes_of([(b"host", b"localhost"), (b"ce-domain", value)]) == {"domain": said}


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ([(b"ce-id", b"1"), (b"ce-id", b"2")], "this header was sent more than once"),
        ([(b"ce-id", b"%ff")], "not UTF-8 after percent-decoding"),
    ],
)
def test_headers_that_say_nothing_clear_are_refused(headers: list[tuple[bytes, bytes]], detail: str) -> None:
    """A header that is repeated or is not text is a fault that names it."""
    with pytest.raises(InvalidInputError) as refused:
        attributes_of(headers)
    assert refused.value.faults == [Fault("#/header/ce-id", detail)]
