"""Requests and answers in bytes, and the service behind uvicorn, in process, and without the direct path.

Every wait is bounded.
"""

import asyncio
import itertools
import json
import re
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import asyncpg
import httpx
import uvicorn

from app import main
from app.api.context import Headers
from app.runtime.exchange import DirectCall
from app.runtime.protocol import HttpProtocol
from app.settings import read_settings
from app.store.access_tables import METADATA
from app.store.tables import RegistrationProjection
from tests.making import NODE, Json, event_json, life

PATIENCE = 20.0  # seconds
POLL = 0.01  # seconds
LARGEST = 70_000  # bytes of a body; more than a hot call has
UNCODED = {"Accept-Encoding": "identity"}  # a client by hand says nothing of it, and httpx would
KEEP_ALIVE = 60  # seconds
SMALL_BUFFER = 4096  # bytes that the kernel holds of answers that nobody reads
BUFFER = 65_536  # bytes that it holds of requests
ENTITY = f"/v1/entities/{NODE}"
WORKFLOW = "/v1/workflows/w"
EVENTS = "/v1/events"
GIVEN = "3f0c1a52-7d7e-4f2b-9c63-5f1f0c8f2f7d"
ID = "X-Correlation-ID: "
TABLE = RegistrationProjection.__tablename__
PROVENANCE = {"effect_id": "effect-1", "timestamp": "2026-01-01T00:00:00Z"}
# The event loop that uvicorn takes where it can: asyncio's own is more patient with closed connections.
LOOP = "asyncio", {"use_uvloop": sys.implementation.name == "cpython"}


@dataclass(frozen=True)
class Ask:
    """A request, and whether the direct path answers it."""

    method: str
    target: str
    headers: tuple[str, ...] = ()
    body: bytes | None = None
    hot: bool = True
    version: str = "1.1"
    chunked: bool = False

    def fields(self) -> tuple[str, ...]:
        """The headers, with a JSON content type unless they name another."""
        if self.body is None or any(header.lower().startswith("content-type:") for header in self.headers):
            return self.headers
        return ("Content-Type: application/json", *self.headers)

    def raw(self) -> bytes:
        """The bytes that a client sends."""
        lines = [f"{self.method} {self.target} HTTP/{self.version}", "Host: localhost", *self.fields()]
        body = self.body or b""
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
            body = b"".join(b"%x\r\n%c\r\n" % (1, byte) for byte in body) + b"0\r\n\r\n"
        elif self.body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    async def in_process(self, client: httpx.AsyncClient) -> "Answer":
        """The answer of an application in this process."""
        headers = [(name, value.encode("latin-1")) for name, _, value in (h.partition(": ") for h in self.fields())]
        answer = await client.request(
            self.method,
            self.target.removeprefix("http://localhost"),
            headers=[(name.encode(), value) for name, value in headers],
            content=self._pieces() if self.chunked else self.body,
        )
        return Answer(answer.status_code, answer.headers.multi_items(), answer.content)

    async def _pieces(self) -> AsyncIterator[bytes]:
        for byte in self.body or b"":
            yield bytes([byte])


class Answer(NamedTuple):
    """An answer; the names of its headers are in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of the header with that name."""
        return dict(self.headers).get(name)


def get(target: str, *headers: str, hot: bool = True) -> Ask:
    """A request without a body."""
    return Ask("GET", target, headers, hot=hot)


def post(body: object, *headers: str, hot: bool = True, chunked: bool = False) -> Ask:
    """A POST of events, given as bytes or as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Ask("POST", EVENTS, headers, content, hot=hot, chunked=chunked)


def put(target: str, body: object, *headers: str, hot: bool = True, chunked: bool = False) -> Ask:
    """A PUT of a commit, given as bytes or as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Ask("PUT", target, headers, content, hot=hot, chunked=chunked)


def commit(number: int, **provenance: object) -> Json:
    """The body of a commit."""
    return {"state": {"n": number}, "provenance": PROVENANCE | provenance}


HEARTBEAT = event_json("node.heartbeat", 6, data={})
NEXT = commit(3)
MATCH = 'If-Match: "2"'
OTHER = Ask("GET", "/livez", hot=False)


class Client:
    """A connection on which a test sends and reads bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Send pieces; the server reads each, unless it has stopped reading, before the next one is sent."""
        for piece in pieces:
            self.writer.write(piece)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def send_all(self, data: bytes) -> None:
        """Send as fast as the server reads."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, method: str = "GET") -> Answer:
        """The next answer that is not `100 Continue`."""
        async with asyncio.timeout(PATIENCE):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
            status = int(head[0].split()[1])
            if status == 100:
                return await self.answer(method)
            headers = [(name.lower(), value) for name, value in (line.split(": ", 1) for line in head[1:-1])]
            return Answer(status, headers, await self._body(method, status, dict(headers)))

    async def _body(self, method: str, status: int, headers: dict[str, str]) -> bytes:
        if method == "HEAD" or status in {204, 304}:
            return b""
        if "content-length" in headers:
            return await self._reader.readexactly(int(headers["content-length"]))
        if "transfer-encoding" not in headers:
            return await self._reader.read()
        assert headers["transfer-encoding"] == "chunked"
        body = b""
        while size := int(await self._reader.readline(), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()
        return body

    async def read(self, most: int) -> bytes:
        """Read at most this many bytes."""
        return await self._reader.read(most)

    async def line(self) -> bytes:
        """The next line."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readline()

    async def rest(self) -> bytes:
        """Read until the server closes the connection."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.read()

    async def ask(self, ask: Ask) -> Answer:
        """Send a request and read its answer."""
        await self.send(ask.raw())
        return await self.answer(ask.method)


class _Prompt(uvicorn.Server):
    """A uvicorn that checks ten times as often whether it should stop."""

    async def main_loop(self) -> None:
        """Tick until the server should stop."""
        for tick in itertools.count():
            if await self.on_tick(tick):
                return
            await asyncio.sleep(POLL)


class Listening:
    """An application behind uvicorn with our protocol, in this event loop."""

    def __init__(
        self,
        app: Any,
        *,
        keep_alive: int = KEEP_ALIVE,
        lifespan: str = "off",
        protocol: Callable[..., HttpProtocol] = HttpProtocol,
    ) -> None:
        self._is_listening = asyncio.Event()

        async def notify() -> None:
            self._is_listening.set()

        self.server = _Prompt(
            uvicorn.Config(
                app,
                http=cast("type[HttpProtocol]", protocol),  # uvicorn only calls it
                lifespan=lifespan,  # type: ignore[arg-type]  # a literal there
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                proxy_headers=False,
                timeout_keep_alive=keep_alive,
                timeout_graceful_shutdown=int(PATIENCE) // 2,
                timeout_notify=0,
                callback_notify=notify,
            )
        )
        self.end: asyncio.Task[None]
        self._port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Serve requests within this context; the kernel buffers little of them and of their answers."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            self._port = listener.getsockname()[1]
            self.end = asyncio.create_task(self.server.serve(sockets=[listener]))
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._is_listening.wait()
                yield
            finally:
                self.server.should_exit = True
                async with asyncio.timeout(PATIENCE):
                    await self.end

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        """A connection to the application that buffers little of unread answers."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        connection.connect(("127.0.0.1", self._port))
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    @property
    def protocol(self) -> HttpProtocol:
        """The server's side of the only connection."""
        [protocol] = self.server.server_state.connections
        assert isinstance(protocol, HttpProtocol)
        return protocol

    async def has_no_connection(self) -> None:
        """Wait until the last connection is closed."""
        await until(lambda: not self.server.server_state.connections)


class Plain:
    """A service in this process with two clients: of the whole application, and of FastAPI only."""

    def __init__(self, url: str, *, max_body: int = LARGEST) -> None:
        self.url = url
        self.app = main.create_app(
            read_settings({"database_url": url, "pool_size": 4, "max_body": max_body, "access_log": "all"})
        )
        assert isinstance(self.app, main.Application)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://localhost", headers=UNCODED
        )
        self.routed = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app.routed), base_url="http://localhost", headers=UNCODED
        )
        self.untouched = False  # since it was reset

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve requests within this context."""
        async with self.app.router.lifespan_context(self.app):
            yield

    async def reset(self) -> None:
        """Reset the database to one entity, and one workflow that has changed once."""
        if self.untouched:
            return
        async with connected(self.url) as connection:
            names = [name for name in METADATA.tables if name != "audit_log"]  # it refuses DELETE
            await connection.execute("; ".join(f"DELETE FROM {name}" for name in names))
        first = put(WORKFLOW, commit(1, action_id="first"), "If-None-Match: *")
        for ask in (post(life()), first, put(WORKFLOW, commit(2), 'If-Match: "1"')):
            answer = await ask.in_process(self.client)
            assert answer.status in {200, 201}, answer

    def counted(self) -> Counter[str]:
        """The counts in the service's metrics, by name and labels."""
        lines = self.app.state.service.metrics.text().decode().splitlines()
        parts = [
            line.rpartition(" ")
            for line in lines
            if re.match(r"(pqs_(?!database|breaker)\w+_total|http_server\w+_count)\b", line)
        ]
        return Counter({name: int(float(number)) for name, _, number in parts})

    def checked_out(self) -> int:
        """The number of connections to the service's database in use."""
        database = self.app.state.service.database
        return int(database._pool.get_size() - database._pool.get_idle_size() - len(database._at_hand))


class Served(Plain, Listening):
    """The service behind uvicorn, in this event loop."""

    def __init__(self, url: str, *, keep_alive: int = KEEP_ALIVE, max_body: int = LARGEST) -> None:
        Plain.__init__(self, url, max_body=max_body)
        self.ways = list[bool]()  # whether each request was answered without FastAPI
        assert isinstance(self.app, main.Application)
        find = self.app.direct

        def watched(method: str, target: bytes, headers: Headers, peer: str) -> DirectCall | None:
            call = find(method, target, headers, peer)
            self.ways.append(call is not None)
            return call

        self.app.direct = watched  # type: ignore[assignment]  # the protocol looks for it there
        Listening.__init__(self, self.app, keep_alive=keep_alive, lifespan="on")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve requests within this context."""
        async with self.listening():
            yield


@asynccontextmanager
async def connected(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to a database."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(POLL)


WAITING = (
    "SELECT count(*) FROM pg_locks WHERE NOT granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@asynccontextmanager
async def locked(url: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Lock the entities against reads and writes within this context; yields a wait for a blocked session."""
    async with connected(url) as connection, connection.transaction():
        await connection.execute(f"LOCK TABLE {TABLE}")

        async def met() -> None:
            async with asyncio.timeout(PATIENCE):
                while not await connection.fetchval(WAITING):  # noqa: ASYNC110 - the server tells nobody
                    await asyncio.sleep(POLL)

        yield met
