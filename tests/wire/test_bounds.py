"""Hostile bodies of 8 MiB: reading them takes little memory, and the answer is short."""

import gc
import json
import tracemalloc
from collections.abc import Callable

import msgspec
import pytest

from app.errors import InvalidInputError, UnreadableError
from app.wire.cloudevents import read_binary, read_cloudevent
from app.wire.events import MAX_CAPABILITIES, MAX_EVENTS, read_event, read_events
from app.wire.faults import LEFT_OUT, MAX_FAULTS, MAX_TEXT
from tests.making import Json, event_json

SIZE = 8 * 1024 * 1024  # bytes of a body, the most that the service takes by default
MOST = 5 * SIZE  # bytes of memory beside the body: a text of it takes four bytes a character
SHORT = 2 * MAX_TEXT  # characters of an answer

HEAD = json.dumps(event_json("registration.initiated", 1, data={}))[:-2].encode()


def filled(before: bytes, unit: bytes, after: bytes) -> bytes:
    """A body of SIZE bytes that repeats one unit."""
    return before + unit * ((SIZE - len(before) - len(after)) // len(unit)) + after


def with_capabilities(unit: bytes, last: bytes, more: bytes = b"") -> bytes:
    """An event with large capabilities, followed in the data by `more`."""
    return filled(HEAD + b'{"node_type": "c", "capabilities": {"x": [', unit, last + b"]}" + more + b"}}")


BODIES: dict[str, bytes] = {
    "a string, then NaN": filled(b'["', b"a", b'", NaN]'),
    "wide characters, then NaN": filled(b'["', "😀".encode(), b'", NaN]'),
    "a string, then Infinity": filled(b'{"x": "', b"a", b'", "y": -Infinity}'),
    "escapes, then a lone surrogate": filled(b'["', b"\\\\", b'\\ud800x"]'),
    "quotes that are escaped": filled(b'["', b'\\"', b'", nonsense]'),
    "a string that does not end": filled(b'["', b"a", b""),
    "lines": filled(b"[", b"\n", b"x]"),
    "lists": filled(b"[", b"[],", b"[]]"),
    "numbers": filled(b"[", b"0,", b"0]"),
    "objects": filled(b"[", b"{},", b"{}]"),
    "brackets": filled(b"", b"[", b""),
    "lists in capabilities": with_capabilities(b"[],", b"[]"),
    "lists in capabilities that are given twice": with_capabilities(b"[],", b"[]", b', "capabilities": {}'),
    "lists in an extension": filled(b'{"specversion": "1.0", "x": [', b"[],", b"[]]}"),
    "names": filled(b'{"specversion": "1.0", ', b'"x": 0,', b'"y": 0}'),
    "a long name": filled(b'{"', b"n", b'": 1}'),
    "a long type": filled(b'{"type": "', b"t", b'"}'),
    "a long number": filled(b'{"type": ', b"9", b"}"),
    "bytes that are not UTF-8": filled(b'["', b"a", b'\xff"]'),
    "blanks": filled(b"", b" ", b""),
}
READERS: dict[str, Callable[[bytes], object]] = {
    "an event": read_event,
    "an array": read_events,
    "a CloudEvent": read_cloudevent,
    "the data of a CloudEvent": lambda body: read_binary({}, body),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", BODIES)
def test_a_hostile_body_takes_little_memory(case: str, reader: str) -> None:
    """Any hostile body takes memory of a few times its size, and its answer at most SHORT bytes."""
    body = BODIES[case]
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises((InvalidInputError, UnreadableError)) as raised:
            READERS[reader](body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST, f"{peak / SIZE:.1f} times the body"
    assert len(str(raised.value)) < SHORT


def test_the_place_in_a_long_body_is_that_in_a_short_one() -> None:
    """Line and column count characters, however long the body is."""
    for padding in (10, 200_000):
        sent = b'["' + "é".encode() * padding + b'",\n "\xc3\xa9", NaN]'
        with pytest.raises(UnreadableError, match=r"NaN is not a JSON number, at line 2 column 7$"):
            read_event(sent)
        sent = b'["' + b"a" * padding + b'",\n "\xc3\xa9", "\\ud800x"]'
        with pytest.raises(UnreadableError, match=r"lone surrogate in a string at line 2 column 8$"):
            read_event(sent)
        sent = b'["' + b"a" * padding + b'",\n "\xc3\xa9", nonsense]'
        with pytest.raises(UnreadableError, match=r"^not JSON: .* at line 2 column [78]$"):
            read_event(sent)
        sent = b'["' + b"a" * padding + b'",\n "\xc3\xa9\xff"]'
        with pytest.raises(UnreadableError, match=r"^not UTF-8: byte 0xff at line 2 column 4$"):
            read_event(sent)


def test_a_character_that_two_steps_share_is_a_character() -> None:
    """The scan in pieces reads a character that spans two pieces correctly."""
    for shift in range(4):
        with pytest.raises(UnreadableError, match=r"^not JSON: NaN is not a JSON number, at line 1"):
            read_event(b'["' + b"a" * shift + "😀".encode() * 40_000 + b'", NaN]')


def test_an_array_names_a_hundred_faults_and_says_that_there_are_more() -> None:
    """Past a hundred faults the answer leaves out the rest, and says so."""
    wrong = [{"type": "nope"}] * (MAX_FAULTS + 1)
    with pytest.raises(InvalidInputError) as raised:
        read_events(json.dumps(wrong).encode())
    assert len(raised.value.faults) == MAX_FAULTS + 1
    assert raised.value.faults[-1] == LEFT_OUT
    with pytest.raises(InvalidInputError) as raised:
        read_events(json.dumps(wrong[1:]).encode())
    assert len(raised.value.faults) == MAX_FAULTS
    assert LEFT_OUT not in raised.value.faults


def test_an_array_of_countless_items_is_refused_before_it_is_read() -> None:
    """The answer to an overlong array says how to send the events, and does not count them."""
    with pytest.raises(InvalidInputError, match=r"at most 10,000 events; this one has more; send more as"):
        read_events(
            b"[" + b",".join([b'{"a": [0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}'] * (MAX_EVENTS + 1)) + b"]"
        )


def capable(type_: str, capabilities: bytes) -> bytes:
    """An event with these capabilities."""
    data: Json = {"capabilities": "@"}
    if type_ != "registration.activated":
        data["node_type"] = "c"
    if type_ == "registration.recorded":
        data |= {"current_state": "active", "registered_at": "2026-01-01T00:00:00Z"}
    return json.dumps(event_json(type_, 1, data=data)).encode().replace(b'"@"', capabilities)


WITH_CAPABILITIES = ["registration.initiated", "registration.activated", "registration.recorded", "node.introspected"]


@pytest.mark.parametrize("type_", WITH_CAPABILITIES)
def test_capabilities_have_at_most_64_kib(type_: str) -> None:
    """Capabilities above 64 KiB of compact JSON (blanks and escapes not counted) are refused, with a pointer."""
    room = MAX_CAPABILITIES - len(b'{"x":""}')
    for largest in (b'{"x":"' + b"a" * room + b'"}', b'{ "x" : ' + b" " * SIZE + b'"' + b"\\u0041" * room + b'"}'):
        assert msgspec.to_builtins(read_event(capable(type_, largest)).data)["capabilities"]["x"][:1] in {"a", "A"}
        with pytest.raises(InvalidInputError) as raised:
            read_event(capable(type_, largest.replace(b'"}', b'a"}')))
        [fault] = raised.value.faults
        assert (fault.pointer, fault.detail) == ("#/data/capabilities", "larger than 65,536 bytes as compact JSON")
    sent = b"[" + capable(type_, b'{"x":"' + b"a" * (room + 1) + b'"}') + b"]"
    with pytest.raises(InvalidInputError, match=r"^#/0/data/capabilities: larger"):
        read_events(sent)
