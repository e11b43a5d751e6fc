"""Guarantees of both kinds of bus."""

import asyncio

import pytest

from app.errors import BusError
from app.outbound.partitioner import partition_of
from app.wire.envelopes import HEADERS
from tests.making import NODE, node
from tests.outbound.conftest import Line
from tests.wire.test_envelopes import envelope


async def test_a_message_arrives_as_it_was_published(line: Line) -> None:
    """Key, value and headers arrive unchanged."""
    await line.bus.publish(line.topic, b"key", b"value", {"one": b"1", "two": b"\xff"})
    [message] = line.read(1)
    assert (message.key, message.value, message.headers) == (b"key", b"value", {"one": b"1", "two": b"\xff"})


async def test_a_message_may_have_no_key_and_no_headers(line: Line) -> None:
    """None means no key, not an empty one."""
    await line.bus.publish(line.topic, None, b"value", {})
    [message] = line.read(1)
    assert (message.key, message.headers) == (None, {})


async def test_one_key_is_on_one_partition(line: Line) -> None:
    """On either bus, every message of a key is on the partition that the partitioner names."""
    keys = [str(node(number)).encode() for number in range(20)]
    await asyncio.gather(*(line.bus.publish(line.topic, key, b"", {}) for key in keys * 3))
    assert {(message.key, message.partition) for message in line.read(60)} == {
        (key, partition_of(key, 4)) for key in keys
    }


async def test_messages_of_a_key_keep_the_order_of_the_calls(line: Line) -> None:
    """Messages published by concurrent tasks arrive in the order in which the tasks were created."""
    keys = [b"a", b"b", b"c"]
    calls = [(keys[number % 3], b"%d" % number) for number in range(3000)]
    await asyncio.gather(*(line.bus.publish(line.topic, key, value, {}) for key, value in calls))
    arrived = line.read(len(calls))
    for key in keys:
        assert [message.value for message in arrived if message.key == key] == [
            value for called, value in calls if called == key
        ]


@pytest.mark.parametrize(("key", "handed_down"), [(b"other", b"other"), (None, str(NODE).encode()), (b"", b"")])
async def test_the_key_of_an_envelope_is_handed_down(line: Line, key: bytes | None, handed_down: bytes) -> None:
    """The message has the given key, or else the envelope's partition key."""
    await line.bus.publish_envelope(envelope(), line.topic, key=key)
    [message] = line.read(1)
    assert (message.key or b"") == handed_down


async def test_an_envelope_is_a_structured_message(line: Line) -> None:
    """The value is the envelope's JSON, and the content type in the headers says so."""
    await line.bus.publish_envelope(envelope(), line.topic)
    [message] = line.read(1)
    assert (message.value, message.headers) == (envelope().to_json(), HEADERS)


async def test_offsets_count_a_partition(line: Line) -> None:
    """The messages of a partition have the offsets 0, 1, 2 and so on."""
    for _ in range(3):
        await line.bus.publish(line.topic, b"key", b"", {})
    assert [message.offset for message in line.read(3)] == [0, 1, 2]


async def test_a_closed_bus_takes_nothing(line: Line) -> None:
    """Publishing on a closed bus raises BusError; a bus may be closed twice."""
    await line.bus.close()
    with pytest.raises(BusError, match="closed"):
        await line.bus.publish(line.topic, b"key", b"", {})
