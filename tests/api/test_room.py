"""Room for request bodies: its shares, and bodies that find none, on a service of little memory."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import msgspec
import pytest

from app.api import room as rooms
from app.api.room import MAX_FILES, Hold, Room
from app.errors import NoRoomError
from tests.api.conftest import service_on
from tests.databases import new_database
from tests.making import event_json, node

MOST = 64 * 1024  # bytes of bodies that the service holds
BODY = 16 * 1024  # the largest one
NDJSON = {"Content-Type": "application/x-ndjson"}
JSON = {"Content-Type": "application/json; charset=utf-8"}  # not the form of a hot call


@pytest.fixture(scope="module")
async def small() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that holds little."""
    async with new_database() as url, service_on(url, body_memory=MOST, max_body=BODY) as client:
        yield client


def room_of(client: httpx.AsyncClient) -> Room:
    """The room of a service in this process."""
    room: Room = cast("Any", client)._transport.app.state.room
    return room


def test_a_peer_has_half_of_the_room() -> None:
    """One address fills its half; there is room for others until all of it is full; what is given back is free."""
    room = Room(100)
    room.take("192.0.2.1", 50)
    with pytest.raises(NoRoomError, match="your address"):
        room.take("192.0.2.1", 1)
    room.take("192.0.2.2", 50)
    for peer in ("192.0.2.3", None):
        with pytest.raises(NoRoomError, match="this process"):
            room.take(peer, 1)
    room.give_back("192.0.2.1", 50)
    room.take("192.0.2.1", 50)


def test_a_peer_has_half_of_the_files() -> None:
    """Long answers take descriptors, so they are counted; one address has half of them."""
    room = Room(100)
    one, other, third = (Hold(room, f"192.0.2.{number}") for number in range(3))
    for held in (one, other):
        for _ in range(MAX_FILES // 2):
            held.take_file()
    for held in (one, third):
        with pytest.raises(NoRoomError):
            held.take_file()
    one.close()
    third.take_file()


def test_what_a_request_holds_is_free_when_it_is_closed() -> None:
    """Bytes that were given back before are not given back twice."""
    room = Room(100)
    held = Hold(room, "192.0.2.1")
    held.take(30)
    held.take(20)
    held.give_back(40)
    held.close()
    held.close()
    Hold(room, "192.0.2.1").take(50)
    Hold(room, None).take(50)


def slow_body(size: int, arrived: asyncio.Event, go_on: asyncio.Event) -> AsyncIterator[bytes]:
    """A body whose last byte is late."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b" " * (size - 1)
        arrived.set()
        await go_on.wait()
        yield b" "

    return pieces()


@pytest.mark.parametrize("headers", [JSON, NDJSON], ids=["JSON", "NDJSON"])
async def test_slow_bodies_take_no_more_than_there_is(small: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """The body that finds no room is a 503; what the others hold is free again once they are answered."""
    go_on, size = asyncio.Event(), BODY - 1024
    fitting = MOST // 2 // size  # that fit into the half of one address
    running = []
    for _ in range(fitting):
        arrived = asyncio.Event()
        content = slow_body(size, arrived, go_on)
        running.append(asyncio.create_task(small.post("/v1/events", content=content, headers=headers)))
        await arrived.wait()
        await asyncio.sleep(0.05)  # until what has arrived is read
    refused = await small.post("/v1/events", content=b" " * size, headers=headers)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
    assert "PQS_BODY_MEMORY" in refused.json()["detail"]
    event = event_json("registration.initiated", 1, entity_id=node(1))
    assert (await small.post("/v1/events", json=event)).status_code == 200  # a small one is answered
    go_on.set()
    expected = 400 if headers is JSON else 200
    assert [each.status_code for each in await asyncio.gather(*running)] == [expected] * fitting
    assert (await small.post("/v1/events", content=b" " * size, headers=headers)).status_code == expected
    assert room_of(small)._bytes == 0


async def test_a_stream_is_longer_than_the_room(small: httpx.AsyncClient) -> None:
    """What is in the database is held no longer, nor are blank lines, or a line that is too long to be kept."""
    events = b"".join(
        msgspec.json.encode(event_json("registration.initiated", 1, entity_id=node(n))) + b"\n"
        for n in range(100, 110)
    )

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield events + b"\n" * 1000
            await asyncio.sleep(0.01)

    answer = await small.post("/v1/events", content=pieces(), headers=NDJSON)
    assert answer.status_code == 200
    summary = msgspec.json.decode(answer.content.splitlines()[-1])["summary"]
    assert (summary["applied"], summary["duplicate"]) == (10, 390)


async def test_a_stream_that_finds_no_room_says_how_far_it_came(small: httpx.AsyncClient) -> None:
    """The lines before are committed, and the sender can go on after them."""
    first = b"".join(
        msgspec.json.encode(event_json("registration.initiated", 1, entity_id=node(n), domain="far")) + b"\n"
        for n in range(1000)
    )

    async def pieces() -> AsyncIterator[bytes]:
        for place in range(0, len(first), 10_000):
            yield first[place : place + 10_000]
            await asyncio.sleep(0)

    room = room_of(small)
    room.take("192.0.2.9", MOST // 2)
    try:
        answer = await small.post("/v1/events", content=pieces(), headers=NDJSON)
    finally:
        room.give_back("192.0.2.9", MOST // 2)
    assert answer.status_code == 503
    assert answer.json()["committed_lines"] == 0
    assert room._bytes == 0


async def test_a_gzip_body_counts_as_it_is_decoded(small: httpx.AsyncClient) -> None:
    """What is small on the wire is held decoded."""
    room = room_of(small)
    room.take(None, MOST - 8000)
    try:
        coded = gzip.compress(b" " * 12_000)
        answer = await small.post("/v1/events", content=coded, headers={**JSON, "Content-Encoding": "gzip"})
    finally:
        room.give_back(None, MOST - 8000)
    assert answer.status_code == 503


async def test_more_long_answers_than_there_may_be(small: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream whose answer needs a file is broken off, with the lines that are in, when there are too many files."""
    monkeypatch.setattr(rooms, "MAX_FILES", 0)
    body = b"x\n" * 3000  # 3,000 faults: some 300 KiB of answer
    answer = await small.post("/v1/events", content=body, headers=NDJSON)
    assert answer.status_code == 503
    assert answer.json()["committed_lines"] < 3000
    assert room_of(small)._files == 0


async def test_a_line_without_end_is_not_held(small: httpx.AsyncClient) -> None:
    """It is dropped as it comes, and answered as a line that is too long; the next one is taken in."""
    event = msgspec.json.encode(event_json("registration.initiated", 1, entity_id=node(200)))

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield b"x" * 10_000
        yield b"\n" + event

    async with new_database() as url, service_on(url, body_memory=4 * 1024 * 1024, max_body=BODY) as client:
        answer = await client.post("/v1/events", content=pieces(), headers=NDJSON)
    line, summary = answer.content.splitlines()
    assert b"the line is larger than" in line
    assert msgspec.json.decode(summary)["summary"]["applied"] == 1
