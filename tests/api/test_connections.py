"""Connections to the service: many requests on one, clients that hang up or do not read, and the service's stop."""

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from app.api.context import GONE, correlation_id
from app.runtime.protocol import HIGH_WATER
from tests.api.conftest import Access
from tests.connections import (
    ENTITY,
    EVENTS,
    GIVEN,
    HEARTBEAT,
    ID,
    LOOP,
    MATCH,
    NEXT,
    OTHER,
    PATIENCE,
    WORKFLOW,
    Ask,
    Client,
    Served,
    get,
    locked,
    post,
    put,
    until,
)
from tests.databases import new_database
from tests.making import node


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of the service."""
    return LOOP


@pytest.fixture(scope="module")
async def idle() -> AsyncIterator[Served]:
    """A service that closes idle connections at once."""
    async with new_database() as url:
        served = Served(url, keep_alive=0)
        async with served.running():
            yield served


JSON = "Content-Type: application/json"
ASKS: dict[str, Ask] = {
    "an entity": get(ENTITY),
    "an event": post(HEARTBEAT),
    "an event with a charset": post(HEARTBEAT, f"{JSON}; charset=utf-8", hot=False),
    "an array": post([HEARTBEAT]),
    "no JSON": post(b"{"),
    "a workflow": get(WORKFLOW),
    "a commit": put(WORKFLOW, NEXT, MATCH),
    "a commit with a charset": put(WORKFLOW, NEXT, MATCH, f"{JSON}; charset=utf-8", hot=False),
    "a list": get("/v1/entities", hot=False),
}
KINDS = ["an entity", "an event", "no JSON", "a workflow", "a list"]

# --- One connection, many requests ---------------------------------------------------------------------------------


# In an order in which one's answer shows that the one before it was done.
CONVERSATION: list[tuple[Ask, int]] = [
    (post(HEARTBEAT), 200),
    (get(ENTITY, 'If-None-Match: "6"'), 304),
    (get(f"{ENTITY}/state", hot=False), 200),
    (put(WORKFLOW, NEXT, MATCH), 200),
    (get(WORKFLOW, 'If-None-Match: "3"'), 304),
    (post(b"{"), 400),
    (post(b""), 400),
    (put(WORKFLOW, NEXT), 428),
    (OTHER, 200),
    (post([HEARTBEAT]), 200),
    (post(HEARTBEAT | {"event_id": GIVEN}, chunked=True, hot=False), 409),
    (post(HEARTBEAT | {"event_id": GIVEN}), 409),
    (get(f"{ENTITY}?domain=x", hot=False), 404),
    (get(f"/v1/entities/{node(404)}"), 404),
    (OTHER, 200),
]


def with_id(ask: Ask, number: int) -> Ask:
    """The same request with a correlation id."""
    return replace(ask, headers=(*ask.headers, ID + str(node(number))))


def by_heads_and_bodies(requests: list[bytes]) -> list[bytes]:
    """Each request cut in two pieces: its head and its body."""
    ends = [each.index(b"\r\n\r\n") + 4 for each in requests]
    return [part for each, end in zip(requests, ends, strict=True) for part in (each[:end], each[end:])]


def byte_by_byte(requests: list[bytes]) -> list[bytes]:
    """The requests cut into single bytes."""
    return [bytes([byte]) for each in requests for byte in each]


def at_once(requests: list[bytes]) -> list[bytes]:
    """All requests in one piece."""
    return [b"".join(requests)]


def one_by_one(requests: list[bytes]) -> list[bytes]:
    """Each request in a piece of its own."""
    return requests


Cut = Callable[[list[bytes]], list[bytes]]


@pytest.mark.parametrize("cut", [at_once, one_by_one, by_heads_and_bodies, byte_by_byte])
async def test_requests_are_answered_in_order(hot: Served, raw: Client, access: Access, cut: Cut) -> None:
    """However requests are cut, answers come in their order, with the right id on each answer and log line."""
    asks = [with_id(ask, number) for number, (ask, _) in enumerate(CONVERSATION)]
    await raw.send(*cut([ask.raw() for ask in asks]))
    answers = [await raw.answer() for _ in asks]
    assert [answer.status for answer in answers] == [status for _, status in CONVERSATION]
    assert [answer.header("x-correlation-id") for answer in answers] == [
        str(node(number)) for number in range(len(asks))
    ]
    assert hot.ways == [ask.hot for ask in asks]
    lines = [await access.next() for _ in asks]
    assert sorted(lines, key=str) == sorted(
        (
            (str(node(number)), ask.method, ask.target.partition("?")[0], status)
            for number, (ask, status) in enumerate(CONVERSATION)
        ),
        key=str,
    )


async def test_an_id_ends_with_its_request(raw: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Log records written after an answer do not carry the correlation id of that answer's request."""
    seen: list[str | None] = []

    def look(_record: logging.LogRecord) -> bool:
        seen.append(correlation_id.get())
        return True

    caplog.handler.addFilter(look)
    await raw.ask(get(ENTITY, ID + GIVEN))
    await raw.send(b"what is no request\r\n\r\n")
    assert (await raw.rest()).startswith(b"HTTP/1.1 400 ")
    logging.getLogger("app").warning("of no request")
    assert (caplog.messages[-1], seen[-1]) == ("of no request", None)


async def test_many_bad_requests_behind_one(hot: Served, raw: Client) -> None:
    """Any number of requests may wait behind one, even if each is answered without the database."""
    async with locked(hot.url) as met:
        await raw.send(get(ENTITY).raw())
        await met()
        await raw.send(post(b"").raw() * 3000)
    assert [(await raw.answer()).status for _ in range(3001)] == [200] + [400] * 3000


# --- Clients that hang up, or do not read --------------------------------------------------------------------------


def hang_up(raw: Client) -> None:
    """Close a connection."""
    raw.writer.close()


def break_off(raw: Client) -> None:
    """Reset a connection, as the kernel of a client that crashed does."""
    linger = struct.pack("ii", 1, 0)
    raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    raw.writer.transport.abort()


ENDINGS = pytest.mark.parametrize("ending", [hang_up, break_off])
Ending = Callable[[Client], None]


@ENDINGS
@pytest.mark.parametrize("case", ["an event", "an event with a charset", "a commit", "a commit with a charset"])
async def test_a_client_that_leaves_in_its_body(
    hot: Served, raw: Client, access: Access, case: str, ending: Ending
) -> None:
    """A request whose client leaves inside the body is counted and logged as 499 with its id. It writes nothing."""
    ask = with_id(ASKS[case], 7)
    before = hot.counted()
    await raw.send(ask.raw()[:-1])
    await until(lambda: hot.ways)
    ending(raw)
    assert await access.next() == (str(node(7)), ask.method, ask.target, GONE)
    route = EVENTS if ask.target == EVENTS else "/v1/workflows/{workflow_key}"
    assert hot.counted() - before == {
        f'http_server_request_duration_seconds_count{{http_request_method="{ask.method}",'
        f'http_response_status_code="499",http_route="{route}"}}': 1,
    }
    assert hot.checked_out() == 0


@ENDINGS
@pytest.mark.parametrize("case", ["an event", "an event with a charset", "an entity"])
async def test_a_client_that_leaves_before_its_answer(
    hot: Served, raw: Client, access: Access, caplog: pytest.LogCaptureFixture, case: str, ending: Ending
) -> None:
    """If a client leaves before its answer, its request completes without a warning and frees its connection."""
    ask = ASKS[case]
    async with locked(hot.url) as met:
        await raw.send(ask.raw())
        await met()
        ending(raw)
    await hot.has_no_connection()
    _, *logged = await access.next()
    assert logged == [ask.method, ask.target, 200]
    assert hot.checked_out() == 0
    assert not [record for record in caplog.records if record.levelname not in {"DEBUG", "INFO"}]


async def test_a_client_that_crashes_with_more_to_come(
    hot: Served, raw: Client, access: Access, caplog: pytest.LogCaptureFixture
) -> None:
    """If a client crashes after several requests, the first is completed and the others, not begun, are dropped."""
    async with locked(hot.url) as met:
        await raw.send(post(HEARTBEAT).raw() + get(WORKFLOW).raw() + put(WORKFLOW, NEXT, MATCH).raw())
        await met()
        break_off(raw)
        await hot.has_no_connection()
    assert (await access.next())[1:] == ("POST", EVENTS, 200)
    assert hot.checked_out() == 0
    assert (await get(WORKFLOW).in_process(hot.client)).header("etag") == '"2"'
    assert not [record for record in caplog.records if record.levelname not in {"DEBUG", "INFO"}]


@pytest.mark.parametrize("case", ["an entity", "an event", "a workflow", "a list", "an event with a charset"])
async def test_a_client_that_sends_no_more(hot: Served, raw: Client, case: str) -> None:
    """A client that shuts down its sending side gets the answers to all complete requests, then the end."""
    async with locked(hot.url) as met:
        await raw.send(post(HEARTBEAT | {"event_id": GIVEN}).raw() + ASKS[case].raw() + get(WORKFLOW).raw() + b"GET")
        raw.writer.write_eof()
        await met()
    assert [(await raw.answer()).status for _ in range(3)] == [200, 409 if "event" in case else 200, 200]
    assert await raw.rest() == b""
    await hot.has_no_connection()


PAD = f"X-Pad: {'x' * 400}"
FLOOD = 3000  # requests that are sent before an answer is read
HELD = HIGH_WATER + 256 * 1024  # bytes of them that the server takes in at most: the last read may be a large one


@pytest.mark.parametrize("ask", [get(ENTITY, PAD), post(b"", PAD), get(WORKFLOW, PAD)], ids=["get", "bad", "task"])
async def test_a_client_that_does_not_read(hot: Served, raw: Client, ask: Ask) -> None:
    """Past a bound, the service stops reading from a client that does not read; later no answer is missing."""
    sending = asyncio.create_task(raw.send_all(ask.raw() * FLOOD))
    await until(lambda: hot.ways)
    server = hot.protocol
    await until(lambda: server.blocked is not None and not server._reading)
    assert server._transport.get_write_buffer_size() < 128 * 1024
    assert len(server._buffer) <= HELD
    for _ in range(FLOOD):
        await raw.answer()
    await sending
    assert (len(hot.ways), all(hot.ways)) == (FLOOD, True)
    assert not hot.server.server_state.tasks
    assert hot.checked_out() == 0


@ENDINGS
async def test_a_client_that_leaves_without_reading(hot: Served, raw: Client, ending: Ending) -> None:
    """When a client leaves without reading, nothing in the service goes on waiting for it."""
    sending = asyncio.create_task(raw.send_all(get(ENTITY, PAD).raw() * FLOOD))
    await until(lambda: hot.ways and hot.protocol.blocked is not None)
    ending(raw)
    await hot.has_no_connection()
    assert hot.checked_out() == 0
    sending.cancel()
    await asyncio.wait([sending])


# --- The end of a connection ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", KINDS)
async def test_a_connection_is_closed_when_asked(hot: Served, raw: Client, case: str) -> None:
    """`Connection: close` is answered and repeated, the connection closes, and bytes sent after it are ignored."""
    ask = ASKS[case]
    last = replace(ask, headers=(*ask.headers, "Connection: close"))
    await raw.send(last.raw() + put(WORKFLOW, NEXT, MATCH).raw())
    assert (await raw.answer()).header("connection") == "close"
    assert await raw.rest() == b""
    assert (await get(WORKFLOW).in_process(hot.client)).header("etag") == '"2"'


@pytest.mark.parametrize("case", KINDS)
async def test_an_idle_connection_is_closed(idle: Served, case: str) -> None:
    """After an answer an idle connection stays open for a time, and then closes."""
    async with idle.connect() as raw:
        await raw.ask(ASKS[case])
        assert await raw.rest() == b""


async def test_a_busy_connection_is_not_idle(idle: Served) -> None:
    """The idle time begins only when no request on the connection awaits an answer."""
    async with idle.connect() as raw:
        async with locked(idle.url) as met:
            await raw.send(post(b"").raw() + post(b"").raw() + get(f"/v1/entities/{node(404)}").raw())
            assert [(await raw.answer()).status for _ in range(2)] == [400, 400]
            await met()
            server = idle.protocol
            assert server._wait.awaited is None
            assert not server._transport.is_closing()
        assert (await raw.answer()).status == 404
        assert await raw.rest() == b""


@pytest.mark.parametrize("case", ["an entity", "an event", "an array"])
async def test_a_stop_waits_for_an_answer(database_url: str, case: str) -> None:
    """A service that stops completes the answers it has begun, with `Connection: close`, and ends."""
    served = Served(database_url)
    async with served.running(), served.connect() as raw, served.connect() as other:
        await other.ask(get(WORKFLOW))
        async with locked(database_url) as met:
            await raw.send(ASKS[case].raw())
            await met()
            served.server.should_exit = True
            assert await other.rest() == b""
            assert not served.end.done()
        answer = await raw.answer()
        assert (answer.status, answer.header("connection")) == (404 if case == "an entity" else 200, "close")
        assert await raw.rest() == b""
        async with asyncio.timeout(PATIENCE):
            await served.end
