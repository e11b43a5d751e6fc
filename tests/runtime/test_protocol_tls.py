"""The protocol over TLS: raw bytes sent to an ASGI application behind our server, on both event loops."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn

from app.runtime import processes, protocol
from app.runtime.processes import Server
from app.runtime.protocol import HttpProtocol
from app.runtime.tls import ServerTls
from tests.certificates import Authority
from tests.connections import LOOP, PATIENCE, Client, until
from tests.echo import Echo

BODY = 4 * 1024 * 1024  # bytes; more than kernels and transports hold


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Each of the two event loops."""
    return LOOP if request.param == "uvloop" else ("asyncio", {"use_uvloop": False})


class Secure:
    """An application behind our server with TLS, in this event loop."""

    def __init__(self, app: object, folder: Path) -> None:
        authority = Authority()
        self.context = ssl.create_default_context(cadata=authority.pem.decode())
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]  # an ASGI application
            http=HttpProtocol,
            lifespan="off",
            log_config=None,
            ws="none",
            timeout_graceful_shutdown=int(PATIENCE) // 2,
        )
        self.server = Server(config, ServerTls(*authority.issue(folder, "server")))
        self.address = ("127.0.0.1", 0)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Serve requests within this context."""
        listener = socket.create_server(self.address)
        self.address = listener.getsockname()
        end = asyncio.create_task(self.server.serve(sockets=[listener]))
        try:
            await until(lambda: self.server.started and self.server.servers)
            yield
        finally:
            self.server.should_exit = True
            async with asyncio.timeout(PATIENCE):
                await end

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        """A connection to the server."""
        reader, writer = await asyncio.open_connection(*self.address, ssl=self.context)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()


@pytest.fixture
async def echo() -> Echo:
    """The ASGI application."""
    return Echo()


@pytest.fixture
async def served(echo: Echo, tmp_path: Path) -> AsyncIterator[Secure]:
    """The application behind our server."""
    served = Secure(echo, tmp_path)
    async with served.listening():
        yield served
        echo.go.set()


def request(line: str, *fields: str, body: bytes = b"") -> bytes:
    """A request's bytes."""
    head = "".join(f"{each}\r\n" for each in (f"{line} HTTP/1.1", "Host: service", *fields))
    return head.encode() + (b"Content-Length: %d\r\n" % len(body) if body else b"") + b"\r\n" + body


async def test_requests_are_answered_in_turn(echo: Echo, served: Secure) -> None:
    """Pipelined requests are answered in order, also behind a body larger than all buffers."""
    async with served.connect() as client:
        await client.send(request("GET /a") + request("GET /b"))
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]
        await client.send_all(request("POST /c", body=bytes(BODY)))
        assert (await client.answer()).status == 200
        assert [(method, path, len(body)) for method, path, body in echo.asked] == [
            ("GET", "/a", 0),
            ("GET", "/b", 0),
            ("POST", "/c", BODY),
        ]


async def test_a_handshake_has_its_time(echo: Echo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is silent, or sends half a handshake, is disconnected after the time limit."""
    monkeypatch.setattr(processes, "HEAD_SECONDS", 0.3)
    served = Secure(echo, tmp_path)
    async with served.listening():
        for said in (b"", b"\x16\x03\x01\x02\x00\x01"):
            reader, writer = await asyncio.open_connection(*served.address)
            writer.write(said)
            async with asyncio.timeout(PATIENCE):
                assert await reader.read() == b""
            writer.close()
        async with served.connect() as client:
            await client.send(request("GET /a"))
            assert (await client.answer()).status == 200


async def test_a_client_that_says_goodbye_is_gone(
    echo: Echo, served: Secure, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that closes TLS counts as disconnected, as TLS has no half-closed connections."""
    reader, writer = await asyncio.open_connection(*served.address, ssl=served.context)
    writer.write(request("GET /gone"))
    await until(lambda: served.server.server_state.tasks)
    writer.close()
    await until(lambda: "http.disconnect" in echo.messages)
    async with asyncio.timeout(PATIENCE):
        assert await reader.read() == b""
    await until(lambda: not served.server.server_state.connections)
    assert "eof_received" not in caplog.text


async def test_a_client_that_still_sends_reads_its_last_answer(served: Secure) -> None:
    """The answer to a refused body arrives, whatever else the client sends."""
    async with served.connect() as client:
        await client.send(request("POST /", f"Content-Length: {10**20}"))
        sending = asyncio.create_task(client.send_all(bytes(BODY)))
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (413, "close")
        await sending
        assert await client.rest() == b""


async def test_a_client_that_reads_slowly_gets_all(
    echo: Echo, served: Secure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow reader gets the whole answer: the connection closes after it, not inside it."""
    monkeypatch.setattr(protocol, "GOODBYE_SECONDS", 0.1)
    body = bytes(BODY)

    async def large(_scope: object, _receive: object, send: object) -> None:
        await echo._answer(send, body)  # type: ignore[arg-type]

    echo._large = large  # type: ignore[attr-defined]
    reader, writer = await asyncio.open_connection(*served.address, ssl=served.context, limit=1024)
    writer.write(request("GET /large", "Connection: close"))
    await asyncio.sleep(0.5)
    got = 0
    async with asyncio.timeout(PATIENCE):
        while piece := await reader.read(65_536):
            got += len(piece)
            await asyncio.sleep(0.005)
    writer.close()
    assert got > BODY


async def test_a_stop_does_not_wait_for_idle_clients(echo: Echo, tmp_path: Path) -> None:
    """A client that ignores its open connection delays a stop by no more than a moment."""
    served = Secure(echo, tmp_path)
    context = served.context

    def idle() -> ssl.SSLSocket:
        connection = context.wrap_socket(socket.create_connection(served.address), server_hostname="127.0.0.1")
        connection.sendall(request("GET /a"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        return connection

    async with served.listening():
        connection = await asyncio.to_thread(idle)
        started = time.monotonic()
    assert time.monotonic() - started < PATIENCE / 4
    connection.close()
