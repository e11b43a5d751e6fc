"""Bytes read as events, or refused with each fault and its place."""

import inspect
import json
import re
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.domain.events import EVENT_TYPES, Initiated
from app.errors import Fault, InvalidInputError, UnreadableError
from app.wire.events import MAX_EVENTS, read_event, read_events
from tests.making import NODE, Json, at, event_json
from tests.strategies import bodies, json_values, logs, pure

KNOWN = ", ".join(EVENT_TYPES)
NESTED = "nested deeper than 64 levels"
TOO_LARGE = "the number is too large"
NUL = "a string here holds NUL (\\u0000), which PostgreSQL cannot store"
YEARS = "a time lies in the years 1900 to 9998, in UTC"
REQUIRED = "this field is required"
HALF = "give either `sequence`, or both `partition` and `offset`"
BOTH = "give either `sequence`, or `partition` and `offset`, not both"


def initiated(**fields: Any) -> Json:
    """A valid event, except for the fields given."""
    return event_json("registration.initiated", 1) | fields


def body(event: object) -> bytes:
    """A value as JSON bytes, as a client sends it."""
    return json.dumps(event).encode()


def with_capability(value: str) -> bytes:
    """An event whose capability `x` is this raw JSON text."""
    return body(initiated(data={"node_type": "c", "capabilities": {"x": "@"}})).replace(b'"@"', value.encode())


def without(name: str) -> bytes:
    """An event without this field."""
    return body({key: value for key, value in initiated().items() if key != name})


def nested(levels: int, inner: str = "1") -> bytes:
    """An event nested this deep; the event, its data and its capabilities count as three levels."""
    return with_capability("[" * (levels - 3) + inner + "]" * (levels - 3))


def faults(sent: bytes) -> list[Fault]:
    """The faults of a JSON event."""
    with pytest.raises(InvalidInputError) as raised:
        read_event(sent)
    return raised.value.faults


def faults_of_array(sent: bytes) -> list[Fault]:
    """The faults of a JSON array."""
    with pytest.raises(InvalidInputError) as raised:
        read_events(sent)
    return raised.value.faults


@pytest.mark.parametrize("first", [{"specversion": "1.0"}, {"id": str(NODE), "specversion": "1.0"}])
def test_a_cloudevent_as_json_is_told_its_content_type(first: Json) -> None:
    """An event with CloudEvents attributes in our own form is refused with a hint at CloudEvents' content types."""
    cloudevent = {**first, "source": "x", "type": "node.heartbeat", "subject": str(NODE), "time": at(1)}
    name = next(iter(first))
    for [fault], pointer in (
        (faults(body(cloudevent)), f"#/{name}"),
        (faults_of_array(b"[%s]" % body(cloudevent)), f"#/0/{name}"),
    ):
        assert fault.pointer == pointer
        assert fault.detail.startswith("unknown field; ")
        assert "application/cloudevents+json" in fault.detail
        assert "application/cloudevents-batch+json" in fault.detail


# --- Not readable --------------------------------------------------------------------------------------------------

_UNREADABLE = [
    pytest.param(b"", "the body is empty; a JSON value was expected", id="empty"),
    pytest.param(b" \r\n\t", "the body is empty; a JSON value was expected", id="blank"),
    pytest.param(b'{\n  "a": 1,\n  b}', "not JSON: .* at line 3 column 3", id="no quotes"),
    pytest.param(b'[\n{"a":\n\n1 2}]', "not JSON: .* at line 4 column 3", id="no comma"),
    pytest.param(b'{"a": 1,}', "not JSON: .* at line 1 column [89]", id="trailing comma"),
    pytest.param(b'{"a": "b', "not JSON: .* at line 1 column 7", id="ends in a string"),
    pytest.param(b'{"a": [1,\n 2', "not JSON: .* at line 2 column 3", id="ends in an array"),
    pytest.param(b'{"a": tru', "not JSON: .* at line 1 column 7", id="ends in a word"),
    pytest.param(b'{"a": 01}', "not JSON: .* at line 1 column 8", id="leading zero"),
    pytest.param(b'{"a": "\\x"}', "not JSON: .* at line 1 column 8", id="unknown escape"),
    pytest.param(b'{"a": "\n"}', "not JSON: .* at line 1 column 8", id="raw control character"),
    pytest.param(b'{"a": "\x00"}', "not JSON: .* at line 1 column 8", id="raw NUL"),
    pytest.param(body(initiated()) + b"\n x", "not JSON: .* at line 2 column 2", id="trailing garbage"),
    pytest.param(body(initiated()) + b"\n{}", "not JSON: .* at line 2 column 1", id="two values"),
    pytest.param(b"\xef\xbb\xbf\xef\xbb\xbf{}", "not JSON: .* at line 1 column 1", id="two byte order marks"),
    pytest.param(body(initiated()).decode().encode("utf-16"), "not UTF-8: byte 0xff at line 1 column 1", id="UTF-16"),
    pytest.param(b'{"a":\n "\xc3\xa9\xff"}', "not UTF-8: byte 0xff at line 2 column 4", id="invalid UTF-8"),
    pytest.param(b'{"a": "\xc3', "not UTF-8: byte 0xc3 at line 1 column 8", id="ends in a character"),
    pytest.param(b'{"a": "\xed\xa0\x80"}', "not UTF-8: byte 0xed at line 1 column 8", id="encoded surrogate"),
    pytest.param(b'{"a": NaN}', "not JSON: NaN is not a JSON number, at line 1 column 7", id="NaN"),
    pytest.param(b"[\n Infinity]", "not JSON: Infinity is not a JSON number, at line 2 column 2", id="Infinity"),
    pytest.param(b"[ -Infinity]", "not JSON: -Infinity is not a JSON number, at line 1 column 3", id="-Infinity"),
    pytest.param(
        b'{"NaN": "NaN, \\" NaN",\n "a": NaN}',
        "not JSON: NaN is not a JSON number, at line 2 column 7",
        id="NaN in text",
    ),
]


@pytest.mark.parametrize(("sent", "message"), _UNREADABLE)
def test_what_is_not_json_is_unreadable_at_a_line_and_column(sent: bytes, message: str) -> None:
    """The message names the unexpected text and its place."""
    with pytest.raises(UnreadableError, match=f"^{message}$"):
        read_event(sent)


@pytest.mark.parametrize(("sent", "message"), _UNREADABLE)
def test_an_array_is_unreadable_in_the_same_words(sent: bytes, message: str) -> None:
    """Text that is not JSON has the same message for one event and for an array."""
    with pytest.raises(UnreadableError, match=f"^{message}$"):
        read_events(sent)


@pytest.mark.parametrize(
    ("value", "column"),
    [('"\\ud800"', 1), ('"\\uDBFF"', 1), ('"\\udc00"', 1), ('"ab\\ud800\\ud800\\udc00"', 3), ('{"\\udfff": 1}', 2)],
    ids=["high", "high in capitals", "low", "high before a pair", "in a key"],
)
def test_half_of_a_surrogate_pair_is_unreadable(value: str, column: int) -> None:
    """A lone surrogate, which PostgreSQL's text cannot hold, is refused with its place."""
    sent = with_capability(value)
    line_start = sent.index(value.encode())
    message = f"not Unicode: a lone surrogate in a string at line 1 column {line_start + column + 1}"
    for read, whole in ((read_event, sent), (read_events, b"[\n" + sent + b"]")):
        with pytest.raises(UnreadableError) as raised:
            read(whole)
        assert str(raised.value) == (message if read is read_event else message.replace("line 1", "line 2"))


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ('"\\ud83d\\ude00"', "😀"),
        ('"\\\\ud800"', "\\ud800"),
        ('"\\\\u0000"', "\\u0000"),
        ('"\\\\\\\\u0000"', "\\\\u0000"),
        ('"\\u0001\\uffff"', "\x01\uffff"),
        ('"NaN"', "NaN"),
        ("-0.0", -0.0),
        ("1e-999", 0.0),
        (str(2**64 + 1), 2**64 + 1),
        (str(-(10**100)), -(10**100)),
        ('{"": [null, {}]}', {"": [None, {}]}),
    ],
)
def test_what_looks_like_trouble_and_is_none_is_read(value: str, read: object) -> None:
    """A whole surrogate pair, an escaped backslash before `u0000`, and numbers beyond 64 bits are accepted."""
    event = read_event(with_capability(value))
    assert isinstance(event, Initiated)
    assert event.data.capabilities == {"x": read}


@pytest.mark.parametrize("item", [b'{"\xff": 1}', b'["\xff"]'], ids=["in a key", "in a string"])
def test_bytes_that_are_not_utf_8_make_the_whole_array_unreadable(item: bytes) -> None:
    """Invalid UTF-8 in one item makes the array unreadable, with the place in the whole body."""
    sent = b"[" + body(initiated()) + b",\n" + item + b"]"
    with pytest.raises(UnreadableError, match=r"^not UTF-8: byte 0xff at line 2 column 3$"):
        read_events(sent)


# --- Readable and wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind"),
    [("[]", "array"), ("5", "int"), ("0.5", "float"), ("null", "null"), ("true", "bool"), ('"x"', "str")],
)
def test_json_that_is_no_object_is_no_event(value: str, kind: str) -> None:
    """A JSON value other than an object is a fault of the whole body that names the value's kind."""
    assert faults(value.encode()) == [Fault("#", f"expected `object`, got `{kind}`")]


@pytest.mark.parametrize("value", ["{}", "5", "null", '"x"'])
def test_json_that_is_no_array_is_no_array_of_events(value: str) -> None:
    """Where an array is expected, a single object is a fault."""
    [fault] = faults_of_array(value.encode())
    assert fault.pointer == "#"
    assert fault.detail.startswith("expected `array`, got")


@pytest.mark.parametrize("name", ["type", "event_id", "entity_id", "position", "occurred_at", "data"])
def test_a_missing_field_is_named(name: str) -> None:
    """The pointer names the missing field."""
    assert faults(without(name)) == [Fault(f"#/{name}", REQUIRED)]


@pytest.mark.parametrize(
    ("type_", "data", "name"),
    [
        ("registration.initiated", {}, "node_type"),
        ("registration.recorded", {"node_type": "c", "registered_at": at(1)}, "current_state"),
        ("registration.recorded", {"current_state": "active", "registered_at": at(1)}, "node_type"),
        ("registration.recorded", {"current_state": "active", "node_type": "c"}, "registered_at"),
    ],
)
def test_missing_data_are_named(type_: str, data: Json, name: str) -> None:
    """A missing data field of the type has a pointer below `data`."""
    assert faults(body(event_json(type_, 1, data=data))) == [Fault(f"#/data/{name}", REQUIRED)]


@pytest.mark.parametrize("type_", ["", "registration.begun", "Registration.Initiated", "node.restarted"])
def test_an_unknown_type_is_answered_with_the_known_ones(type_: str) -> None:
    """The message names the unknown type and all thirteen types."""
    assert faults(body(initiated(type=type_))) == [
        Fault("#/type", f"unknown event type '{type_}'; the types are {KNOWN}")
    ]


@pytest.mark.parametrize("type_", [None, 5, ["registration.initiated"]])
def test_a_type_that_is_no_text_is_wrong(type_: object) -> None:
    """A type that is not text is a fault of the type."""
    assert faults(body(initiated(type=type_))) == [Fault("#/type", "expected `str`")]


ENVELOPE = "the fields are type, event_id, entity_id, position, occurred_at, domain, correlation_id, data"
OF_INITIATED = "the data of registration.initiated may have node_type, node_version, capabilities"


@pytest.mark.parametrize(
    ("event", "pointer", "known"),
    [
        (initiated(tpye="x"), "#/tpye", ENVELOPE),
        (initiated(**{"a/b~c d%é": 1}), "#/a~1b~0c%20d%25%C3%A9", ENVELOPE),
        (initiated(**{"": 1}), "#/", ENVELOPE),
        (
            initiated(position={"sequence": 1, "after": 0}),
            "#/position/after",
            "the fields are sequence, partition, offset, previous",
        ),
        (initiated(data={"node_type": "c", "node.typ": 1}), "#/data/node.typ", OF_INITIATED),
        (
            event_json("node.heartbeat", 1, data={"at": at(1)}),
            "#/data/at",
            "the data of node.heartbeat may have heartbeat_at, liveness_deadline",
        ),
        (
            event_json("registration.rejected", 1, data={"why": "x"}),
            "#/data/why",
            "the data of registration.rejected is empty",
        ),
    ],
)
def test_an_unknown_field_is_refused_and_the_known_ones_named(event: Json, pointer: str, known: str) -> None:
    """An unknown field at any level is a fault that points at it and lists the known fields."""
    assert faults(body(event)) == [Fault(pointer, f"unknown field; {known}")]


def test_an_unknown_field_of_an_event_with_two_types_is_refused_too() -> None:
    """If `type` is repeated and one value is unknown, the fault of an unknown field lists no known fields."""
    sent = b'{"type": "node.heartbeat", "x": 1, "type": "y"}'
    assert faults(sent) == [Fault("#/x", "unknown field")]


def test_the_pointer_to_a_field_with_a_misleading_name_is_still_a_pointer() -> None:
    """A field whose name looks like the end of msgspec's message still gets a valid pointer."""
    [fault] = faults(body(initiated(**{"x` - at `$.a b": 1})))
    assert POINTER.fullmatch(fault.pointer)


# Everything that is wrong with one field of the envelope.
@pytest.mark.parametrize(
    ("fields", "pointer", "detail"),
    [
        ({"event_id": "x"}, "#/event_id", "invalid UUID"),
        ({"event_id": 1}, "#/event_id", "expected `uuid`, got `int`"),
        ({"entity_id": ""}, "#/entity_id", "invalid UUID"),
        ({"entity_id": None}, "#/entity_id", "expected `uuid`, got `null`"),
        ({"correlation_id": "7a1c5f7e"}, "#/correlation_id", "invalid UUID"),
        ({"domain": ""}, "#/domain", "expected `str` of length >= 1"),
        ({"domain": "d" * 129}, "#/domain", "expected `str` of length <= 128"),
        ({"domain": None}, "#/domain", "expected `str`, got `null`"),
        ({"domain": "a\0"}, "#/domain", NUL),
        ({"data": None}, "#/data", "expected `object`, got `null`"),
        ({"data": []}, "#/data", "expected `object`, got `array`"),
        ({"data": {"node_type": ""}}, "#/data/node_type", "expected `str` of length >= 1"),
        ({"data": {"node_type": "n" * 65}}, "#/data/node_type", "expected `str` of length <= 64"),
        ({"data": {"node_type": "\0"}}, "#/data/node_type", NUL),
        (
            {"data": {"node_type": "c", "node_version": "v" * 33}},
            "#/data/node_version",
            "expected `str` of length <= 32",
        ),
        (
            {"data": {"node_type": "c", "capabilities": []}},
            "#/data/capabilities",
            "expected `object`, got `array`",
        ),
        ({"data": {"node_type": "c", "capabilities": {"a\0": 1}}}, "#/data/capabilities", NUL),
        ({"data": {"node_type": "c", "capabilities": {"a": {"b/": [1, "\0"]}}}}, "#/data/capabilities/a/b~1/1", NUL),
        ({"data": {"node_type": "c", "capabilities": {"a": [{"\0": 1}]}}}, "#/data/capabilities/a/0", NUL),
    ],
)
def test_a_wrong_field_is_named(fields: Json, pointer: str, detail: str) -> None:
    """The pointer names the wrong field, and the detail the expected value."""
    assert faults(body(initiated(**fields))) == [Fault(pointer, detail)]


@pytest.mark.parametrize(
    ("position", "pointer", "detail"),
    [
        ({}, "", HALF),
        ({"sequence": None}, "", HALF),
        ({"partition": "p"}, "", HALF),
        ({"offset": 1}, "", HALF),
        ({"sequence": 1, "offset": 1}, "", BOTH),
        ({"sequence": 1, "partition": "p"}, "", BOTH),
        ({"sequence": 1, "partition": "p", "offset": 1}, "", BOTH),
        ({"sequence": 4, "previous": 4}, "", "`previous` (4) must be lower than the position (4)"),
        ({"partition": "p", "offset": 4, "previous": 5}, "", "`previous` (5) must be lower than the position (4)"),
        ({"sequence": -1}, "/sequence", "expected `int` >= 0"),
        ({"sequence": -(2**64)}, "/sequence", "expected `int` >= 0"),
        ({"sequence": 2**63}, "/sequence", "expected `int` <= 9223372036854775807"),
        ({"sequence": 10**30}, "/sequence", "expected `int` <= 9223372036854775807"),
        ({"partition": "p", "offset": -1}, "/offset", "expected `int` >= 0"),
        ({"partition": "p", "offset": 2**63}, "/offset", "expected `int` <= 9223372036854775807"),
        ({"sequence": 1, "previous": -1}, "/previous", "expected `int` >= 0"),
        ({"sequence": 1, "previous": 2**63}, "/previous", "expected `int` <= 9223372036854775807"),
        ({"sequence": 1.5}, "/sequence", "expected `int | null`, got `float`"),
        ({"sequence": "1"}, "/sequence", "expected `int | null`, got `str`"),
        ({"sequence": True}, "/sequence", "expected `int | null`, got `bool`"),
        ({"partition": "", "offset": 1}, "/partition", "expected `str` of length >= 1"),
        ({"partition": "p" * 301, "offset": 1}, "/partition", "expected `str` of length <= 300"),
        ({"partition": "\0", "offset": 1}, "/partition", NUL),
        (None, "", "expected `object`, got `null`"),
        ([1], "", "expected `object`, got `array`"),
        (7, "", "expected `object`, got `int`"),
    ],
)
def test_a_position_that_names_no_place_is_refused(position: object, pointer: str, detail: str) -> None:
    """Half a position, both kinds at once, and numbers beyond PostgreSQL's range are faults with their pointers."""
    assert faults(body(initiated(position=position))) == [Fault(f"#/position{pointer}", detail)]


@pytest.mark.parametrize("position", [{"sequence": 0}, {"partition": "p" * 300, "offset": 2**63 - 1, "previous": 0}])
def test_the_outermost_positions_are_read(position: Json) -> None:
    """Numbers from 0 to 2^63-1 and partitions of up to 300 characters are accepted."""
    assert msgspec.to_builtins(read_event(body(initiated(position=position))).position) == position


@pytest.mark.parametrize(
    ("time", "detail"),
    [
        ("2026-01-01T00:00:00", "expected `datetime` with a timezone component"),
        ("2026-01-01T00:00:00.5", "expected `datetime` with a timezone component"),
        ("2026-01-01", "invalid RFC3339 encoded datetime"),
        ("2026-02-30T00:00:00Z", "invalid RFC3339 encoded datetime"),
        ("2026-01-01T00:00:00+24:00", "invalid RFC3339 encoded datetime"),
        ("9999-12-31T23:59:59.9999999Z", "invalid RFC3339 encoded datetime"),
        ("yesterday", "invalid RFC3339 encoded datetime"),
        ("", "invalid RFC3339 encoded datetime"),
        (1767225600, "expected `datetime`, got `int`"),
        (None, "expected `datetime`, got `null`"),
        ("1899-12-31T23:59:59.999999Z", YEARS),
        ("1900-01-01T00:30:00+01:00", YEARS),
        ("9999-01-01T00:00:00Z", YEARS),
        ("9998-12-31T23:30:00-01:00", YEARS),
        ("0001-01-01T00:00:00+14:00", YEARS),
        ("9999-12-31T23:59:59-23:59", YEARS),
    ],
)
def test_a_time_that_can_not_be_kept_is_refused(time: object, detail: str) -> None:
    """A time without a zone, or outside the years 1900 to 9998 in UTC, is refused."""
    assert faults(body(initiated(occurred_at=time))) == [Fault("#/occurred_at", detail)]


@pytest.mark.parametrize(
    "time",
    ["1900-01-01T00:00:00Z", "1899-12-31T23:30:00-01:00", "9998-12-31T23:59:59.999999Z", "9999-01-01T00:30:00+01:00"],
)
def test_the_outermost_times_are_read(time: str) -> None:
    """The limits of a time apply to its year in UTC."""
    assert read_event(body(initiated(occurred_at=time))).occurred_at.isoformat() == time.replace("Z", "+00:00")


RECORDED = {"current_state": "active", "node_type": "c", "registered_at": at(1)}


@pytest.mark.parametrize("time", ["1899-12-31T23:59:59Z", "9999-01-01T00:00:00Z"])
@pytest.mark.parametrize(
    ("type_", "name"),
    [
        ("registration.accepted", "ack_deadline"),
        ("registration.ack_requested", "ack_deadline"),
        ("registration.activated", "liveness_deadline"),
        ("node.heartbeat", "heartbeat_at"),
        ("node.heartbeat", "liveness_deadline"),
        ("registration.recorded", "registered_at"),
        ("registration.recorded", "ack_deadline"),
        ("registration.recorded", "liveness_deadline"),
        ("registration.recorded", "last_heartbeat_at"),
        ("registration.recorded", "ack_timeout_emitted_at"),
        ("registration.recorded", "liveness_timeout_emitted_at"),
    ],
)
def test_every_time_in_the_data_lies_in_the_years_that_can_be_kept(type_: str, name: str, time: str) -> None:
    """The limits apply to each time in the data of each type."""
    data = (RECORDED if type_ == "registration.recorded" else {}) | {name: time}
    assert faults(body(event_json(type_, 1, data=data))) == [Fault(f"#/data/{name}", YEARS)]


def test_a_recorded_state_is_one_of_the_eight() -> None:
    """An unknown state is a fault with its pointer."""
    [fault] = faults(body(event_json("registration.recorded", 1, data=RECORDED | {"current_state": "gone"})))
    assert (fault.pointer, fault.detail) == ("#/data/current_state", "invalid enum value 'gone'")


@pytest.mark.parametrize(
    ("value", "pointer"),
    [("1e999", "#/data/capabilities"), ("-1e999", "#/data/capabilities"), ("1" + "0" * 5000, "#")],
    ids=["1e999", "-1e999", "5,001 digits"],
)
def test_a_number_beyond_every_type_is_refused(value: str, pointer: str) -> None:
    """A number beyond the range of doubles and of sensible integers is a fault."""
    assert faults(with_capability(value)) == [Fault(pointer, TOO_LARGE)]


# --- Depth ---------------------------------------------------------------------------------------------------------


def test_64_levels_are_read() -> None:
    """An event of 64 nested levels is accepted."""
    assert isinstance(read_event(nested(64)), Initiated)


def test_many_shallow_objects_are_no_depth() -> None:
    """Many shallow objects are accepted: levels count, not brackets."""
    assert isinstance(read_event(with_capability(json.dumps([[{}]] * 1000))), Initiated)


@pytest.mark.parametrize("levels", [65, 100, 900])
def test_deeper_nesting_is_refused(levels: int) -> None:
    """An event of 65 nested levels is refused, with a fault of the data."""
    assert faults(nested(levels)) == [Fault("#/data", NESTED)]
    assert faults_of_array(b"[" + nested(levels) + b"]") == [Fault("#/0/data", NESTED)]


@pytest.mark.parametrize(
    "sent",
    [nested(100_000), b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000],
    ids=["an event", "brackets", "braces", "closed brackets"],
)
def test_nesting_beyond_the_interpreter_is_refused_as_such(sent: bytes) -> None:
    """A hundred thousand levels are refused as too many, without an overflow."""
    assert faults(sent) == [Fault("#", NESTED)]
    assert faults_of_array(sent if sent.startswith(b"[") else b"[" + sent + b"]") == [Fault("#", NESTED)]


@pytest.mark.parametrize("inner", ["1", '"\\u0000"', '{"x": NaN}'], ids=["a number", "NUL", "NaN"])
def test_nesting_near_the_limit_of_the_interpreter_is_refused_as_well(inner: str) -> None:
    """Nesting near the recursion limit is refused as bad input, wherever the stack runs out."""
    left = sys.getrecursionlimit() - len(inspect.stack(0))
    for levels in range(left - 20, left + 5):
        with pytest.raises((InvalidInputError, UnreadableError)):
            read_event(nested(levels, inner))


# --- Arrays --------------------------------------------------------------------------------------------------------


def test_an_array_is_read_in_the_order_sent() -> None:
    """An array is read in the order sent, whatever the positions."""
    sent = [event_json("node.heartbeat", sequence) for sequence in (3, 1, 2)]
    assert [event.position.sequence for event in read_events(body(sent))] == [3, 1, 2]


def test_an_empty_array_holds_no_events() -> None:
    """An empty array is accepted."""
    assert read_events(b" [] ") == []


def test_every_bad_item_of_an_array_is_named() -> None:
    """All faults of an array come in one answer, each with its item's index."""
    sent: list[object] = [
        initiated(),
        initiated(type="nope"),
        initiated(position={}),
        None,
        initiated(domain="\0"),
        initiated(),
        initiated(**{"a/b": 1}),
        [],
    ]
    assert faults_of_array(body(sent)) == [
        Fault("#/1/type", f"unknown event type 'nope'; the types are {KNOWN}"),
        Fault("#/2/position", HALF),
        Fault("#/3", "expected `object`, got `null`"),
        Fault("#/4/domain", NUL),
        Fault("#/6/a~1b", f"unknown field; {ENVELOPE}"),
        Fault("#/7", "expected `object`, got `array`"),
    ]


def test_an_array_has_at_most_10_000_events() -> None:
    """An array of 10,001 events is refused whole, and the answer says how to send them."""
    item = body(event_json("node.heartbeat", 1))
    assert len(read_events(b"[" + b",".join([item] * MAX_EVENTS) + b"]")) == 10_000
    assert faults_of_array(b"[" + b",".join([b"0"] * (MAX_EVENTS + 1)) + b"]") == [
        Fault("#", "an array holds at most 10,000 events; this one has 10,001; send more as application/x-ndjson")
    ]


# --- For any bytes -------------------------------------------------------------------------------------------------

# A JSON pointer (RFC 6901) in the characters that a URI fragment may have (RFC 3986).
POINTER = re.compile(r"#(/([A-Za-z0-9\-._!$&'()*+,;=:@]|~[01]|%[0-9A-F]{2})*)*")


def holder(value: Any, pointer: str) -> Any:
    """The object or array that holds the field of a pointer; raises an error if the pointer leads nowhere."""
    steps = [unquote(step).replace("~1", "/").replace("~0", "~") for step in pointer[1:].split("/")[1:]]
    for step in steps[:-1]:
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def complaint(read: Callable[[bytes], object], sent: bytes) -> list[Fault] | str | None:
    """The faults, the reason why the body is unreadable, or None."""
    try:
        read(sent)
    except InvalidInputError as error:
        return error.faults
    except UnreadableError as error:
        return str(error)
    return None


@given(bodies)
@example(b'{"type": "node.heartbeat", "x": 1, "type": []}')
@pure
def test_any_bytes_are_an_event_or_bad_input_with_a_pointer_into_it(sent: bytes) -> None:
    """Any bytes give an event or one of two errors, with pointers into objects of the body."""
    said = complaint(read_event, sent)
    assert said != ""
    for fault in said if isinstance(said, list) else ():
        assert POINTER.fullmatch(fault.pointer)
        if fault.detail not in {NESTED, TOO_LARGE}:
            assert isinstance(holder(json.loads(sent), fault.pointer), dict | list) or fault.pointer == "#"


@given(st.lists(bodies, max_size=4).map(lambda items: b"[" + b",".join(items) + b"]") | bodies)
@pure
def test_any_bytes_are_an_array_of_events_or_bad_input(sent: bytes) -> None:
    """Any bytes give an array of events or one of two errors, with pointers that begin with an index."""
    said = complaint(read_events, sent)
    assert said != ""
    for fault in said if isinstance(said, list) else ():
        assert POINTER.fullmatch(fault.pointer)
        place = re.match(r"#/(\d+)", fault.pointer)
        assert fault.pointer == "#" or (place is not None and int(place[1]) < len(json.loads(sent)))


@given(logs(linked=True, max_size=4))
@pure
def test_an_event_that_is_written_is_read_back(log: list[Any]) -> None:
    """Events written as JSON and read again are equal."""
    assert read_events(msgspec.json.encode(log)) == log


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=3))
@pure
def test_capabilities_are_taken_as_sent_or_refused_below_themselves(capabilities: Json) -> None:
    """Any capabilities that PostgreSQL can store are accepted unchanged; others have faults below them."""
    sent = body(initiated(data={"node_type": "c", "capabilities": capabilities}))
    match complaint(read_event, sent):
        case None:
            event = read_event(sent)
            assert isinstance(event, Initiated)
            assert event.data.capabilities == capabilities
        case str(said):
            assert said.startswith(("not JSON: ", "not Unicode: "))
        case [fault]:
            assert fault.pointer.startswith("#/data/capabilities")
        case faults:
            pytest.fail(f"one fault was expected: {faults}")
