"""The protocol: raw bytes sent to an ASGI application behind uvicorn, on both event loops."""

import asyncio
import itertools
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest

from app.runtime import protocol
from app.runtime.framing import MAX_HEAD
from app.runtime.protocol import HIGH_WATER, HttpProtocol
from tests.connections import LOOP, PATIENCE, Answer, Client, Listening, until
from tests.echo import Echo

HOST = b"Host: service\r\n"
READ_AHEAD = HIGH_WATER + 256 * 1024  # bytes: what is held at most, as the last read may be a large one


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Each of the two event loops."""
    return LOOP if request.param == "uvloop" else ("asyncio", {"use_uvloop": False})


@pytest.fixture
async def echo() -> Echo:
    """The ASGI application."""
    return Echo()


@pytest.fixture
async def served(echo: Echo) -> AsyncIterator[Listening]:
    """The application behind uvicorn."""
    served = Listening(echo)
    async with served.listening():
        yield served
        echo.go.set()


@pytest.fixture
async def client(served: Listening) -> AsyncIterator[Client]:
    """A connection to the application."""
    async with served.connect() as client:
        yield client


def request(line: str, *fields: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """A request's bytes."""
    head = "".join(f"{each}\r\n" for each in (f"{line} HTTP/{version}", "Host: service", *fields))
    return head.encode() + (b"Content-Length: %d\r\n" % len(body) if body else b"") + b"\r\n" + body


def chunked(line: str, *chunks: bytes) -> bytes:
    """A request's bytes with its body in chunks."""
    parts = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return request(line, "Transfer-Encoding: chunked") + parts + b"0\r\n\r\n"


PLAIN = request("GET /plain")
SMUGGLED = request("PUT /smuggled", body=b"x")

# --- Framing -------------------------------------------------------------------------------------------------------

TALK: list[tuple[bytes, tuple[str, str, bytes]]] = [
    (request("GET /a?b=c"), ("GET", "/a?b=c", b"")),
    (request("POST /b", body=SMUGGLED), ("POST", "/b", SMUGGLED)),
    (
        b"\r\n" + request("GET /c", "Connection: Upgrade", "Upgrade: websocket", body=SMUGGLED),
        ("GET", "/c", SMUGGLED),
    ),
    (request("POST /d", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", body=b"{}"), ("POST", "/d", b"{}")),
    (chunked("PUT /e", SMUGGLED, b"yz"), ("PUT", "/e", SMUGGLED + b"yz")),
    (chunked("GET /f%20g"), ("GET", "/f%20g", b"")),
    (request("DELETE /h", body=b"\r\n\r\n"), ("DELETE", "/h", b"\r\n\r\n")),
    (request("GET http://other/i"), ("GET", "/i", b"")),
    (request("OPTIONS *"), ("OPTIONS", "*", b"")),
]


@pytest.mark.parametrize("cut", ["at once", "one by one", "byte by byte", *range(5)])
async def test_each_request_is_carried_out_as_it_was_sent(echo: Echo, client: Client, cut: str | int) -> None:
    """However the bytes arrive, exactly the requests sent are carried out, in order, on one connection."""
    raw = b"".join(each for each, _ in TALK)
    match cut:
        case "at once":
            pieces = [raw]
        case "one by one":
            pieces = [each for each, _ in TALK]
        case "byte by byte":
            pieces = [bytes([byte]) for byte in raw]
        case seed:
            marks = [0, *sorted(random.Random(seed).sample(range(1, len(raw)), 12)), len(raw)]
            pieces = [raw[start:end] for start, end in itertools.pairwise(marks)]
    await client.send(*pieces)
    for _ in TALK:
        assert (await client.answer()).status == 200
    assert echo.asked == [asked for _, asked in TALK]


REFUSED: dict[str, tuple[int, bytes]] = {
    "chunks and a length": (400, request("POST /", "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED)),
    "chunks of an old client": (400, request("POST /", "Transfer-Encoding: chunked", version="1.0") + SMUGGLED),
    "another coding": (501, request("POST /", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n" + SMUGGLED),
    "two lengths": (400, request("POST /", "Content-Length: 0", body=SMUGGLED)),
    "a length that is none": (400, request("POST /", "Content-Length: 0x10") + SMUGGLED),
    "a blank before a colon": (400, request("POST /", "Content-Length : 60") + SMUGGLED),
    "a tunnel": (501, request("CONNECT service:80") + SMUGGLED),
    "an unknown method": (501, request("BREW /", body=b"x") + SMUGGLED),
    "another version": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n" + SMUGGLED),
    "two hosts": (400, request("GET /", "Host: other") + SMUGGLED),
    "UTF-8 in the URL": (400, "GET /ä HTTP/1.1\r\nHost: service\r\n\r\n".encode() + SMUGGLED),
    "no HTTP": (400, b"hello\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "a long URL": (414, request("GET /" + "x" * MAX_HEAD) + SMUGGLED),
    "a long field": (431, request("GET /", "X: " + "x" * MAX_HEAD) + SMUGGLED),
    "many fields": (431, request("GET /", *["X: y"] * 101) + SMUGGLED),
    "a body beyond all": (413, request("POST /", f"Content-Length: {10**20}")),
    "a bad chunk": (400, request("POST /plain", "Transfer-Encoding: chunked") + b"5\r\nhello world\r\n" + SMUGGLED),
    "a bad chunk that nobody reads": (400, request("POST /gone", "Transfer-Encoding: chunked") + b"x\r\n" + SMUGGLED),
}


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "behind another"])
async def test_what_is_refused_ends_the_connection(echo: Echo, served: Listening, *, alone: bool) -> None:
    """A refusal's status gives the reason; earlier requests are answered, later bytes are ignored."""
    for case, (status, raw) in REFUSED.items():
        echo.asked.clear()
        async with served.connect() as client:
            await client.send(raw if alone else PLAIN + raw)
            if not alone:
                assert (await client.answer()).status == 200, case
            answer = await client.answer()
            said = (answer.status, answer.header("connection"), answer.body != b"")
            assert said == (status, "close", True), case
            assert await client.rest() == b"", case
        assert [path for _, path, _ in echo.asked] in ([], ["/plain"], ["/plain", "/plain"]), case


async def test_a_refused_head_has_no_body(client: Client) -> None:
    """The refusal of a HEAD request has no body, like its answer."""
    await client.send(b"HEAD / HTTP/1.1\r\n\r\n")
    assert (await client.rest()).endswith(b"\r\n\r\n")


ENDLESS: dict[str, tuple[bytes, bytes, int]] = {
    "fields": (b"GET / HTTP/1.1\r\n", b"a: b\r\n", 431),
    "one field": (b"GET / HTTP/1.1\r\na: ", b"bbbbbbbb", 431),
    "a URL": (b"GET /", b"aaaaaaaa", 414),
    "trailers": (request("POST /", "Transfer-Encoding: chunked") + b"0\r\n", b"a: b\r\n", 431),
    "one trailer": (request("POST /", "Transfer-Encoding: chunked") + b"0\r\na: ", b"bbbbbbbb", 431),
    "extensions": (request("POST /", "Transfer-Encoding: chunked") + b"1;", b"aaaaaaaa", 400),
}


@pytest.mark.parametrize("case", ENDLESS)
async def test_what_has_no_end_is_not_held(served: Listening, client: Client, case: str) -> None:
    """An endless head or line is refused once it is too long; the server holds at most the limit and one read."""
    start, again, status = ENDLESS[case]
    await client.send(start)
    await until(lambda: served.server.server_state.connections)
    server = served.protocol
    most = 0
    for _ in range(100):
        client.writer.write(again * 200)
        await asyncio.sleep(0)
        most = max(most, len(server._buffer))
    assert (await client.answer()).status == status
    assert most <= MAX_HEAD + 256 * 1024


# --- Time ----------------------------------------------------------------------------------------------------------

SOON = 0.2  # seconds


async def test_a_silent_connection_is_closed(echo: Echo) -> None:
    """A connection on which no byte arrives is closed without an answer."""
    served = Listening(echo, keep_alive=1)
    async with served.listening(), served.connect() as client:
        assert await client.rest() == b""


UNFINISHED: dict[str, tuple[bytes, str]] = {
    "a head": (b"GET / HTTP/1.1\r\n", "HEAD_SECONDS"),
    "a head behind another request": (PLAIN + b"GET /", "HEAD_SECONDS"),
    "a body": (request("POST /plain", "Content-Length: 9") + b"x", "BODY_SECONDS"),
    "a body that nobody waits for": (request("POST /wait", "Content-Length: 9") + b"x", "BODY_SECONDS"),
    "chunks": (request("POST /plain", "Transfer-Encoding: chunked") + b"5\r\nx", "BODY_SECONDS"),
}


@pytest.mark.parametrize("case", UNFINISHED)
async def test_what_does_not_come_is_a_time_out(
    served: Listening, client: Client, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """A client that stops inside its request gets a timeout answer, and the connection closes."""
    raw, bound = UNFINISHED[case]
    monkeypatch.setattr(protocol, bound, SOON)
    await client.send(raw)
    if raw.startswith(PLAIN):
        assert (await client.answer()).status == 200
    answer = await client.answer()
    assert (answer.status, answer.header("connection")) == (408, "close")
    assert await client.rest() == b""
    client.writer.close()
    await served.has_no_connection()


async def test_a_head_has_its_time_as_a_whole(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit covers the whole head: sending it byte by byte does not extend the limit."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", SOON)
    sending = asyncio.create_task(drip(client, PLAIN))
    assert (await client.answer()).status == 408
    sending.cancel()
    await asyncio.wait([sending])


async def test_a_slow_body_is_no_time_out(echo: Echo, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body may take any time as long as bytes keep arriving."""
    monkeypatch.setattr(protocol, "BODY_SECONDS", SOON)
    await client.send(request("POST /plain", "Content-Length: 20"))
    await drip(client, b"x" * 20)
    assert (await client.answer()).status == 200
    assert echo.asked == [("POST", "/plain", b"x" * 20)]


async def test_an_application_may_take_its_time(echo: Echo, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limits apply while the server waits for the client, not while the application works."""
    monkeypatch.setattr(protocol, "BODY_SECONDS", SOON)
    monkeypatch.setattr(protocol, "HEAD_SECONDS", SOON)
    await client.send(request("POST /wait", body=b"x"))
    await asyncio.sleep(3 * SOON)
    echo.go.set()
    assert (await client.answer()).body == b"waited"


async def drip(client: Client, raw: bytes) -> None:
    """Send byte by byte, more slowly than any time limit of these tests."""
    for byte in raw:
        client.writer.write(bytes([byte]))
        await asyncio.sleep(SOON / 10)


# --- Leave to send a body ------------------------------------------------------------------------------------------


async def test_leave_is_given_when_the_body_is_wanted(echo: Echo, client: Client) -> None:
    """`100 Continue` is sent when the application reads the body, and the connection stays in step."""
    await client.send(request("POST /a", "Expect: 100-continue", "Content-Length: 2"))
    assert [await client.line() for _ in range(2)] == [b"HTTP/1.1 100 Continue\r\n", b"\r\n"]
    await client.send(b"hi" + PLAIN)
    assert [(await client.answer()).status for _ in range(2)] == [200, 200]
    assert echo.asked == [("POST", "/a", b"hi"), ("GET", "/plain", b"")]


@pytest.mark.parametrize(
    ("raw", "rest"),
    [
        (request("POST /a", "Expect: 100-continue", body=b"hi"), []),
        (request("POST /a", "Expect: 100-Continue", "Content-Length: 2", version="1.0"), [b"hi"]),
        (request("GET /a", "Expect: 100-continue"), []),
    ],
    ids=["the body is there", "an old client", "no body"],
)
async def test_leave_is_not_given_where_nobody_needs_it(client: Client, raw: bytes, rest: list[bytes]) -> None:
    """No `100 Continue` is sent if the body has arrived or is empty, or if the client speaks HTTP/1.0."""
    await client.send(raw, *rest)
    assert (await client.line()).startswith(b"HTTP/1.1 200 ")


async def test_leave_that_is_not_given_ends_the_connection(echo: Echo, client: Client) -> None:
    """An answer without `100 Continue` closes the connection: the next bytes may or may not be the body."""
    await client.send(request("POST /refuse", "Expect: 100-continue", f"Content-Length: {len(SMUGGLED)}"))
    answer = await client.answer()
    assert (answer.status, answer.header("connection")) == (403, "close")
    await client.send(SMUGGLED)
    assert await client.rest() == b""
    assert echo.asked == []


# --- Answers -------------------------------------------------------------------------------------------------------


async def test_an_answer_of_unknown_length_comes_in_chunks(client: Client) -> None:
    """An answer of unknown length is chunked and keeps the connection; the application cannot set its framing."""
    await client.send(request("GET /pieces") + PLAIN)
    answer = await client.answer()
    assert (answer.body, answer.header("transfer-encoding")) == (b"onetwo", "chunked")
    assert (await client.answer()).status == 200


async def test_an_old_client_gets_no_chunks(client: Client) -> None:
    """For an HTTP/1.0 client, the end of the connection ends an answer of unknown length."""
    await client.send(request("GET /pieces", version="1.0"))
    answer = await client.answer()
    assert (answer.body, answer.header("transfer-encoding")) == (b"onetwo", None)
    assert answer.header("connection") == "close"


@pytest.mark.parametrize("line", ["HEAD /plain", "HEAD /pieces", "GET /status?204", "GET /status?304"])
async def test_an_answer_without_a_body(client: Client, line: str) -> None:
    """Answers to HEAD, 204 and 304 have no body whatever the application sends, and the connection stays in step."""
    await client.send(request(line) + PLAIN)
    answer = await client.answer("HEAD")
    assert answer.header("transfer-encoding") is None
    assert (answer.header("content-length") is None) == (line in {"HEAD /pieces", "GET /status?204"})
    assert (await client.answer()).body.startswith(b'{"path": "/plain"')


@pytest.mark.parametrize("path", ["fail", "forget", "forge"])
async def test_an_application_that_fails_is_a_500(
    client: Client, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """An application that fails, sends nothing or sends header injections gets a 500, which closes the connection."""
    await client.send(request(f"GET /{path}"))
    answer = await client.answer()
    assert (answer.status, answer.header("connection"), answer.header("set-cookie")) == (500, "close", None)
    assert await client.rest() == b""
    assert bool([record for record in caplog.records if record.levelname == "ERROR"]) == (path != "forget")


@pytest.mark.parametrize("path", ["start", "short"])
async def test_an_answer_that_breaks_off_breaks_the_connection(client: Client, path: str) -> None:
    """A failure after the answer has begun can only be shown by breaking the connection."""
    await client.send(request(f"GET /{path}") + PLAIN)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.answer()


async def test_an_answer_is_given_once(echo: Echo, client: Client) -> None:
    """An application that answers twice gets an error; the client sees only the first answer."""
    await client.send(request("GET /twice"))
    assert (await client.answer()).body == b"once"
    await client.send(PLAIN)
    assert (await client.answer()).body.startswith(b'{"path": "/plain"')
    assert echo.failures == ["http.response.start has no place here in an answer"]


@pytest.mark.parametrize("line", ["POST /refuse", "POST /fail"])
async def test_a_client_that_goes_on_sending_sees_its_answer(client: Client, line: str) -> None:
    """The rest of a refused body is read and dropped, as a reset could destroy the answer."""
    sending = asyncio.create_task(client.send_all(request(line, body=bytes(1_000_000))))
    assert (await client.answer()).status in {403, 500}
    await sending


async def test_a_refused_body_is_dropped(echo: Echo, client: Client) -> None:
    """If the answer precedes the end of the body, the next request begins after the body."""
    await client.send_all(request("POST /refuse", body=SMUGGLED * 5000) + PLAIN)
    assert [(await client.answer()).status for _ in range(2)] == [403, 200]
    assert echo.asked == [("GET", "/plain", b"")]


# --- Clients that leave, or do not read ----------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [request("GET /gone"), request("POST /gone", "Content-Length: 5") + b"ab"])
async def test_an_application_hears_that_the_client_is_gone(echo: Echo, client: Client, raw: bytes) -> None:
    """A disconnect reaches the application as `http.disconnect`, inside the body or after it."""
    await client.send(raw)
    await until(lambda: echo.messages)
    linger = struct.pack("ii", 1, 0)
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.writer.transport.abort()
    await until(lambda: echo.messages[-1] == "http.disconnect")


async def test_half_a_body_is_no_request(echo: Echo, client: Client) -> None:
    """A client that shuts down its sending side inside its body counts as disconnected."""
    await client.send(request("POST /gone", "Content-Length: 5") + b"ab")
    client.writer.write_eof()
    await until(lambda: echo.messages[-1:] == ["http.disconnect"])
    assert await client.rest() == b""


async def test_a_client_that_sends_no_more_is_answered(echo: Echo, client: Client) -> None:
    """On a half-closed connection all complete requests are answered, and the incomplete rest is dropped."""
    await client.send(request("GET /wait") + PLAIN + b"GET /half HTTP/1.1\r\n")
    client.writer.write_eof()
    await asyncio.sleep(0.05)
    echo.go.set()
    assert [(await client.answer()).status for _ in range(2)] == [200, 200]
    assert await client.rest() == b""
    assert [path for _, path, _ in echo.asked] == ["/plain"]


async def test_a_body_that_nobody_reads_is_not_held(echo: Echo, served: Listening, client: Client) -> None:
    """The server stops receiving a body that the application does not read, and loses no byte of it."""
    body = random.Random(1).randbytes(4_000_000)
    raw = request("POST /plain", body=body)
    sending = asyncio.create_task(client.send_all(request("GET /wait") + raw))
    await until(lambda: served.server.server_state.connections and not served.protocol._reading)
    assert len(served.protocol._buffer) <= READ_AHEAD
    echo.go.set()
    assert [(await client.answer()).status for _ in range(2)] == [200, 200]
    await sending
    assert echo.asked == [("POST", "/plain", body)]


async def test_an_answer_that_nobody_reads_is_not_held(echo: Echo, served: Listening, client: Client) -> None:
    """The application waits while the client does not read its answer, and is released when the client leaves."""
    await client.send(request("GET /long"))
    await until(lambda: served.server.server_state.connections and served.protocol.blocked is not None)
    sent = 0

    def nothing_is_sent() -> bool:
        nonlocal sent
        before, sent = sent, echo.sent
        return sent == before

    await until(nothing_is_sent)
    assert sent < 4_000_000
    client.writer.transport.abort()
    await served.has_no_connection()
    await until(lambda: echo.sent > sent)  # what it sends from then on goes nowhere
    for task in served.server.server_state.tasks:
        task.cancel()


BODY = 8_000_000  # bytes; more than kernels and transports hold
READER_SECONDS = 0.4  # that a client has in these tests


async def waiting_reader(served: Listening, client: Client) -> None:
    """Request an endless answer, and wait until the server waits for the client to read."""
    await client.send(request("GET /long"))
    await until(lambda: served.server.server_state.connections and served.protocol.blocked is not None)


async def test_a_client_that_never_reads_is_cut_off(echo: Echo) -> None:
    """A client that reads nothing of its answer within the limit is cut off, and the application is told."""
    served = Listening(echo, protocol=partial(HttpProtocol, reader_seconds=READER_SECONDS))
    async with served.listening(), served.connect() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # one that can
        began = asyncio.get_running_loop().time()
        await waiting_reader(served, client)
        await served.has_no_connection()
        assert READER_SECONDS <= asyncio.get_running_loop().time() - began < 10 * READER_SECONDS
        for task in served.server.server_state.tasks:  # it sends without end
            task.cancel()


async def test_a_client_that_reads_slowly_is_not_cut_off(echo: Echo) -> None:
    """A client that reads some bytes within each limit stays connected beyond the limit."""
    served = Listening(echo, protocol=partial(HttpProtocol, reader_seconds=READER_SECONDS))
    async with served.listening(), served.connect() as client:
        await waiting_reader(served, client)
        end = asyncio.get_running_loop().time() + 4 * READER_SECONDS
        while asyncio.get_running_loop().time() < end:
            async with asyncio.timeout(PATIENCE):
                await client.read(100_000)
            await asyncio.sleep(READER_SECONDS / 8)
        assert len(served.server.server_state.connections) == 1
        client.writer.transport.abort()
        await served.has_no_connection()
        for task in served.server.server_state.tasks:
            task.cancel()


async def test_a_direct_answer_that_nobody_reads_ends_too(echo: Echo) -> None:
    """A complete answer that the client does not read is bounded in the same way."""
    served = Listening(echo, protocol=partial(HttpProtocol, reader_seconds=READER_SECONDS))
    echo.direct = lambda *_asked: Direct(b"")  # type: ignore[attr-defined]  # the protocol looks for it there
    async with served.listening(), served.connect() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # one that can
        await client.send_all(request("POST /", body=bytes(BODY)))
        await until(lambda: served.protocol.blocked is not None)
        await served.has_no_connection()


# --- The end -------------------------------------------------------------------------------------------------------


async def test_a_stop(echo: Echo, served: Listening) -> None:
    """On a stop, idle connections close at once; requests under way get an answer with `close`, then close."""
    async with served.connect() as idle, served.connect() as half, served.connect() as busy:
        await idle.send(PLAIN)
        await idle.answer()
        await half.send(b"GET / HTTP/1.1\r\n")
        await busy.send(request("GET /wait"))
        await until(
            lambda: echo.messages[-1:] == ["http.request"] and len(served.server.server_state.connections) == 3
        )
        served.server.should_exit = True
        assert (await idle.rest(), await half.rest()) == (b"", b"")
        echo.go.set()
        answer = await busy.answer()
        assert (answer.body, answer.header("connection")) == (b"waited", "close")
        assert await busy.rest() == b""
        async with asyncio.timeout(PATIENCE):
            await served.end


async def test_a_stop_that_waits_no_longer(echo: Echo) -> None:
    """A request that outlasts the stop's patience is cut off."""
    served = Listening(echo)
    served.server.config.timeout_graceful_shutdown = 0
    async with served.listening(), served.connect() as client:
        await client.send(request("GET /wait"))
        await until(lambda: echo.messages)
        served.server.should_exit = True
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.answer()


# --- Direct answers ------------------------------------------------------------------------------------------------


class Direct:
    """A direct call, answered when the test says so."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.left = 0

    def begin(self, body: bytes, answer: Callable[[int, list[tuple[bytes, bytes]], bytes, bytes], None]) -> None:
        """Answer in the next turn of the loop."""
        headers = [(b"content-length", b"%d" % (len(body) + 1))]
        asyncio.get_running_loop().call_soon(answer, 200, headers, b"", b"-" + body)

    def leave(self) -> None:
        """Count a client that left."""
        self.left += 1

    def abandon(self) -> None:
        """Ignore that the client has left, and answer all the same."""


async def test_direct_answers_keep_their_place(echo: Echo) -> None:
    """Direct and other requests are answered in their order; the application words refusals."""
    calls: list[Direct] = []

    def direct(_method: str, target: bytes, _headers: list[tuple[bytes, bytes]], peer: str) -> Direct | None:
        assert peer == "127.0.0.1"
        if target != b"/direct":
            return None
        calls.append(Direct(b""))
        return calls[-1]

    def refuse(
        status: int, detail: str, headers: list[tuple[bytes, bytes]], *, counted: bool, peer: str
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        assert peer == "127.0.0.1"
        body = json.dumps([detail, len(headers), counted]).encode()
        return status, [(b"content-length", b"%d" % len(body))], body

    echo.direct, echo.refuse = direct, refuse  # type: ignore[attr-defined]  # where the protocol looks for them
    served = Listening(echo)
    async with served.listening():
        async with served.connect() as client:
            raw = request("POST /direct", body=b"x"), PLAIN, request("POST /direct", body=b"yz"), request("BREW /")
            await client.send(b"".join(raw))
            answers: list[Answer] = [await client.answer() for _ in raw]
            assert [answer.status for answer in answers] == [200, 200, 200, 501]
            assert [answers[0].body, answers[2].body] == [b"-x", b"-yz"]
            assert json.loads(answers[3].body) == ["the method BREW is not known here", 1, True]
        async with served.connect() as client:
            await client.send(request("POST /direct", "Content-Length: 5") + b"x")
            await until(lambda: len(calls) == 3)
        await until(lambda: calls[2].left == 1)
