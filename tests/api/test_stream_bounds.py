"""Bounds of one stream: faulty lines, bytes of its answer, and work for a client that left."""

import asyncio
import gzip
from collections.abc import MutableMapping
from typing import Any, cast

import httpx
import msgspec
import pytest

from app.api import events
from app.inbound.lines import MAX_BLANK
from app.wire.events import CHUNK_LINES
from tests.making import event_json, node

NDJSON = {"Content-Type": "application/x-ndjson"}
MOST = 10_000  # lines of faults


def initiated(first: int, number: int, domain: str) -> bytes:
    """Lines that make this many rows."""
    made = (
        event_json("registration.initiated", 1, entity_id=node(n), domain=domain)
        for n in range(first, first + number)
    )
    return b"".join(msgspec.json.encode(event) + b"\n" for event in made)


async def total(client: httpx.AsyncClient, domain: str) -> int:
    """The number of entities in a domain."""
    return int((await client.get("/v1/state-counts", params={"domain": domain})).json()["total"])


async def test_a_stream_ends_after_10_000_lines_of_faults(shared: httpx.AsyncClient) -> None:
    """Past 10,000 faulty lines a stream gets a 422 with the number of committed lines; the rest is not read."""
    body = initiated(0, 1, "faulty") + b"x\n" * 100_000 + initiated(1, 1, "faulty")
    answer = await shared.post("/v1/events", content=body, headers=NDJSON)
    assert (answer.status_code, answer.headers["Content-Type"]) == (422, "application/problem+json")
    problem = answer.json()
    assert problem["type"] == "urn:pqs:problem:too-many-faults"
    assert MOST < problem["committed_lines"] <= MOST + 3 * CHUNK_LINES
    assert problem["committed_lines"] % CHUNK_LINES == 0
    assert len(answer.content) < 1000
    assert await total(shared, "faulty") == 1


async def test_10_000_lines_of_faults_are_answered_one_by_one(shared: httpx.AsyncClient) -> None:
    """A stream with exactly 10,000 faulty lines gets a line for each of them."""
    answer = await shared.post("/v1/events", content=b"x\n" * MOST, headers=NDJSON)
    assert answer.status_code == 200
    *lines, summary = answer.content.splitlines()
    assert len(lines) == MOST
    assert msgspec.json.decode(summary)["summary"]["invalid"] == MOST


@pytest.mark.parametrize("coded", [False, True], ids=["plain", "gzip"])
async def test_blank_lines_have_a_bound(shared: httpx.AsyncClient, *, coded: bool) -> None:
    """A stream with too many blank lines ends in a 422 with its committed lines; 1 KiB of gzip can hold a million."""
    body = initiated(0, 1, "blank") + b"\n" * 1_000_000 + initiated(1, 1, "blank")
    headers = NDJSON | ({"Content-Encoding": "gzip"} if coded else {})
    answer = await shared.post("/v1/events", content=gzip.compress(body) if coded else body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:pqs:problem:too-many-faults"
    assert "blank" in answer.json()["detail"]
    assert MAX_BLANK <= answer.json()["committed_lines"] <= MAX_BLANK + 3 * CHUNK_LINES
    assert await total(shared, "blank") == 1


async def test_blank_lines_between_others_are_no_faults(shared: httpx.AsyncClient) -> None:
    """A blank line after each line, and many more at the end, are no fault, whatever ends the lines."""
    body = initiated(0, 200, "spaced").replace(b"\n", b"\r\n\r\n") + b"\n" * 90_000
    answer = await shared.post("/v1/events", content=body, headers=NDJSON)
    assert msgspec.json.decode(answer.content)["summary"]["applied"] == 200


async def test_others_have_their_turn_between_blank_lines(shared: httpx.AsyncClient) -> None:
    """Blank lines are read a thousand at a time, and the event loop serves other requests in between."""
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(turning())
    await asyncio.sleep(0)
    before = turns
    await shared.post("/v1/events", content=b"\n" * 90_000, headers=NDJSON)
    other.cancel()
    assert turns - before > 90


async def test_an_answer_has_a_largest_size(shared: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that holds the answer to a stream is bounded, whatever the lines contain."""
    monkeypatch.setattr(events, "ANSWER_AT_MOST", 10_000)
    body = initiated(0, 10, "large") + initiated(0, 20, "large") * 1000
    answer = await shared.post("/v1/events", content=body, headers=NDJSON)
    assert answer.status_code == 422
    assert "larger than 10,000 bytes" in answer.json()["detail"]
    assert answer.json()["committed_lines"] < 20_000


async def test_a_long_name_in_a_line_is_cut_in_its_answer(shared: httpx.AsyncClient) -> None:
    """A faulty line of a megabyte is answered by a line of some hundred bytes."""
    answer = await shared.post("/v1/events", content=b'{"' + b"n" * 1_000_000 + b'": 1}\n', headers=NDJSON)
    assert answer.status_code == 200
    assert len(answer.content) < 2000


async def test_a_byte_order_mark_at_the_beginning_of_a_stream_is_skipped(shared: httpx.AsyncClient) -> None:
    """A byte order mark at the start of a stream is skipped, before an event and before a blank line."""
    for body in (b"\xef\xbb\xbf" + initiated(0, 2, "bom"), b"\xef\xbb\xbf\n" + initiated(2, 2, "bom")):
        answer = await shared.post("/v1/events", content=body, headers=NDJSON)
        assert msgspec.json.decode(answer.content)["summary"]["applied"] == 2


async def test_the_rest_of_a_stream_is_left_when_its_client_is_gone(shared: httpx.AsyncClient) -> None:
    """When the client leaves, lines that arrived are not applied, except in chunks already begun."""
    body = initiated(0, 20 * CHUNK_LINES, "gone")
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/events",
        "raw_path": b"/v1/events",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"service"), (b"content-type", b"application/x-ndjson")],
    }
    await cast("Any", shared)._transport.app(scope, receive, send)
    assert await total(shared, "gone") <= 3 * CHUNK_LINES
