"""The shorter way of the hot calls: it answers as FastAPI does, and treats a connection as uvicorn does.

The service of these tests is behind a uvicorn in their own loop, as `pqs serve` sets it up: a transport within the
process passes by what this is about. FastAPI's answers are those of a second service, through such a transport.
"""

import asyncio
import json
import logging
import re
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import asyncpg
import httpx
import pytest
import uvicorn

from app import main
from app.api.context import GONE, correlation_id
from app.api.hot import MAX_BODY, HotCycle, HotProtocol
from app.settings import read_settings
from app.store.tables import Base, RegistrationProjection
from tests.databases import new_database
from tests.making import NODE, Json, event_json, life, node

PATIENCE = 20.0  # seconds
POLL = 0.01  # seconds
LARGEST = 70_000  # bytes of a body; more than what is read on the shorter way
KEEP_ALIVE = 60  # seconds
SMALL_BUFFER = 4096  # bytes that the kernel holds of answers that nobody reads
BUFFER = 65_536  # bytes that it holds of requests
ENTITY = f"/v1/entities/{NODE}"
WORKFLOW = "/v1/workflows/w"
EVENTS = "/v1/events"
JSON = "Content-Type: application/json"
GIVEN = "3f0c1a52-7d7e-4f2b-9c63-5f1f0c8f2f7d"
ID = "X-Correlation-ID: "
TABLE = RegistrationProjection.__tablename__
PROVENANCE = {"effect_id": "effect-1", "timestamp": "2026-01-01T00:00:00Z"}

# --- Requests and answers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """A request, and whether the shorter way takes it."""

    method: str
    target: str
    headers: tuple[str, ...] = ()
    body: bytes | None = None
    hot: bool = True
    version: str = "1.1"
    chunked: bool = False

    def raw(self) -> bytes:
        """What a client sends."""
        lines = [f"{self.method} {self.target} HTTP/{self.version}", "Host: service", *self.headers]
        body = self.body or b""
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
            body = b"".join(b"%x\r\n%c\r\n" % (1, byte) for byte in body) + b"0\r\n\r\n"
        elif self.body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    async def in_process(self, client: httpx.AsyncClient) -> "Answer":
        """The answer that FastAPI gives."""
        headers = [(name, value.encode("latin-1")) for name, _, value in (h.partition(": ") for h in self.headers)]
        answer = await client.request(
            self.method,
            self.target.removeprefix("http://service"),
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
        """The header of that name."""
        return dict(self.headers).get(name)


def get(target: str, *headers: str, hot: bool = True) -> Ask:
    """A request without a body."""
    return Ask("GET", target, headers, hot=hot)


def post(body: object, *headers: str, hot: bool = True, chunked: bool = False) -> Ask:
    """Events, as they are or as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Ask("POST", EVENTS, headers, content, hot=hot, chunked=chunked)


def put(target: str, body: object, *headers: str, hot: bool = True, chunked: bool = False) -> Ask:
    """A commit, as it is or as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Ask("PUT", target, headers, content, hot=hot, chunked=chunked)


class Client:
    """A connection, by hand. Every wait is bounded."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Send pieces; the server has read each, as far as it reads, before the next one."""
        for piece in pieces:
            self.writer.write(piece)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def send_all(self, data: bytes) -> None:
        """Send, as fast as the server reads."""
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
        if method == "HEAD" or status == 304:
            return b""
        if "content-length" in headers:
            return await self._reader.readexactly(int(headers["content-length"]))
        assert headers["transfer-encoding"] == "chunked"
        body = b""
        while size := int(await self._reader.readline(), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()
        return body

    async def line(self) -> bytes:
        """The next line."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readline()

    async def rest(self) -> bytes:
        """What comes until the server closes the connection."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.read()

    async def ask(self, ask: Ask) -> Answer:
        """A request, and its answer."""
        await self.send(ask.raw())
        return await self.answer(ask.method)


# --- The services --------------------------------------------------------------------------------------------------


class Plain:
    """A service within the process: FastAPI answers all of its calls."""

    def __init__(self, url: str, *, max_body: int = LARGEST) -> None:
        self.url = url
        self.app = main.create_app(read_settings({"database_url": url, "pool_size": 4, "max_body": max_body}))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://service")
        self.untouched = False  # since it was reset

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """As long as this lasts, it takes requests."""
        async with self.app.router.lifespan_context(self.app):
            yield

    async def reset(self) -> None:
        """Have one entity, and one workflow that has changed once."""
        if self.untouched:
            return
        async with connected(self.url) as connection:
            await connection.execute("; ".join(f"DELETE FROM {name}" for name in Base.metadata.tables))
        first = put(WORKFLOW, commit(1, action_id="first"), "If-None-Match: *")
        for ask in (post(life()), first, put(WORKFLOW, commit(2), 'If-Match: "1"')):
            answer = await ask.in_process(self.client)
            assert answer.status in {200, 201}, answer

    def counted(self) -> Counter[str]:
        """What its metrics have counted, by name and labels."""
        lines = self.app.state.service.metrics.text().decode().splitlines()
        parts = [line.rpartition(" ") for line in lines if re.match(r"pqs_\w+_(total|count)\b", line)]
        return Counter({name: int(float(number)) for name, _, number in parts})

    def checked_out(self) -> int:
        """How many connections to its database are in use."""
        database = self.app.state.service.database
        return int(database._pool.get_size() - database._pool.get_idle_size() - len(database._at_hand))


class Served(Plain):
    """The same behind uvicorn, in this loop."""

    def __init__(self, url: str, *, keep_alive: int = KEEP_ALIVE, max_body: int = LARGEST) -> None:
        super().__init__(url, max_body=max_body)
        self.ways = ways = list[bool]()  # whether each request took the shorter way
        self._listening = asyncio.Event()

        self.waiting = waiting = list[int]()  # how many requests of its connection waited for their turn then

        class Watched(HotProtocol):
            def on_headers_complete(self) -> None:
                super().on_headers_complete()
                ways.append(isinstance(self.cycle, HotCycle))
                waiting.append(len(self.pipeline))

        async def notify() -> None:
            self._listening.set()

        config = uvicorn.Config(
            self.app,
            http=Watched,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            proxy_headers=False,
            timeout_keep_alive=keep_alive,
            timeout_notify=0,
            callback_notify=notify,
        )
        self.server = uvicorn.Server(config)
        self.end: asyncio.Task[None]
        self._port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """As long as this lasts, it takes requests, and the kernel holds little of them and of its answers."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            self._port = listener.getsockname()[1]
            self.end = asyncio.create_task(self.server.serve(sockets=[listener]))
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._listening.wait()
                yield
            finally:
                self.server.should_exit = True
                async with asyncio.timeout(PATIENCE):
                    await self.end

    @asynccontextmanager
    async def connect(self) -> AsyncIterator["Client"]:
        """A connection to it, which holds little of what is not read."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        connection.connect(("127.0.0.1", self._port))
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    @property
    def protocol(self) -> HotProtocol:
        """The server's side of the only connection."""
        [protocol] = self.server.server_state.connections
        assert isinstance(protocol, HotProtocol)
        return protocol


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
    """While this lasts, nobody reads or writes an entity. What is yielded waits until somebody tries to."""
    async with connected(url) as connection, connection.transaction():
        await connection.execute(f"LOCK TABLE {TABLE}")

        async def met() -> None:
            async with asyncio.timeout(PATIENCE):
                while not await connection.fetchval(WAITING):  # noqa: ASYNC110 - the server tells nobody
                    await asyncio.sleep(POLL)

        yield met


class Access(logging.Handler):
    """The lines of the access log: correlation id, method, path, status."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = asyncio.Queue[tuple[str | None, str, str, int]]()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        said = record.__dict__
        self._lines.put_nowait((correlation_id.get(), said["method"], said["path"], said["status"]))

    async def next(self) -> tuple[str | None, str, str, int]:
        """The next line that is not fetched yet."""
        async with asyncio.timeout(PATIENCE):
            return await self._lines.get()


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop that uvicorn takes where it can: asyncio's own is more patient with closed connections."""
    return "asyncio", {"use_uvloop": sys.implementation.name == "cpython"}


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[Served]:
    """The service behind uvicorn that the tests of this module share."""
    async with new_database() as url:
        served = Served(url)
        async with served.running():
            yield served


@pytest.fixture(scope="module")
async def idle() -> AsyncIterator[Served]:
    """A service that keeps no idle connection."""
    async with new_database() as url:
        served = Served(url, keep_alive=0)
        async with served.running():
            yield served


@pytest.fixture(scope="module")
async def plain() -> AsyncIterator[Plain]:
    """The service within the process that they share."""
    async with new_database() as url:
        plain = Plain(url)
        async with plain.running():
            yield plain


@pytest.fixture
async def hot(served: Served) -> Served:
    """The service behind uvicorn, with one entity, one workflow, and no connection."""
    await until(lambda: not served.server.server_state.connections)
    await served.reset()
    served.untouched = False
    served.ways.clear()
    served.waiting.clear()
    return served


@pytest.fixture
async def fast_api(plain: Plain) -> Plain:
    """The service within the process, with the same."""
    await plain.reset()
    plain.untouched = False
    return plain


@pytest.fixture
async def client(hot: Served) -> AsyncIterator["Client"]:
    """A connection to it."""
    async with hot.connect() as client:
        yield client


@pytest.fixture
def access(hot: Served, caplog: pytest.LogCaptureFixture) -> Iterator[Access]:
    """The access log, from when the service is as it should be."""
    handler = Access()
    logger = logging.getLogger("app.access")
    logger.addHandler(handler)
    with caplog.at_level("INFO", "app.access"):
        yield handler
    logger.removeHandler(handler)


# --- The same answers ----------------------------------------------------------------------------------------------


def commit(number: int, **provenance: object) -> Json:
    """A commit."""
    return {"state": {"n": number}, "provenance": PROVENANCE | provenance}


def padded(size: int, body: object) -> bytes:
    """A body of so many bytes."""
    return json.dumps(body).encode().rjust(size)


HEARTBEAT = event_json("node.heartbeat", 6, data={})
NEXT = commit(3)
MATCH = 'If-Match: "2"'
OTHER = Ask("GET", "/livez", hot=False)

ASKS: dict[str, Ask] = {
    # An entity.
    "an entity": get(ENTITY),
    "an id in upper case": get(f"/v1/entities/{str(NODE).upper()}"),
    "an entity, unchanged": get(ENTITY, 'If-None-Match: "5"'),
    "an entity, unchanged, weakly": get(ENTITY, 'If-None-Match: "1", W/"5"'),
    "an entity, unchanged, in two headers": get(ENTITY, 'If-None-Match: "1"', 'if-none-match: "5"'),
    "an entity, if there is one": get(ENTITY, "If-None-Match: *"),
    "an entity, changed": get(ENTITY, 'If-None-Match: "4"'),
    "no entity": get(f"/v1/entities/{node(404)}", "If-None-Match: *"),
    "an entity, with an id": get(ENTITY, ID + GIVEN),
    "an entity, with an id in upper case": get(ENTITY, ID + GIVEN.upper()),
    "an entity, with a bad id": get(ENTITY, ID + "17"),
    "an entity, with an empty id": get(ENTITY, ID),
    "an entity, with an id that is not ASCII": get(ENTITY, ID + "ä"),
    "an entity, with two ids": get(ENTITY, ID + GIVEN, ID + "17"),
    "an entity, with a content type": get(ENTITY, JSON),
    "an entity, with another content type": get(ENTITY, "Content-Type: text/csv", hot=False),
    "an entity, with a body": Ask("GET", ENTITY, body=b"{}", hot=False),
    "an entity, with an empty body": Ask("GET", ENTITY, body=b"", hot=False),
    "an entity, with a chunked body": Ask("GET", ENTITY, body=b"{}", chunked=True, hot=False),
    "an entity, then no more": get(ENTITY, "Connection: close"),
    "an entity of a domain": get(f"{ENTITY}?domain=registration", hot=False),
    "an entity, with an unknown parameter": get(f"{ENTITY}?x=1", hot=False),
    "an entity, with an empty query": get(f"{ENTITY}?", hot=False),
    "an entity with a slash": get(f"{ENTITY}/", hot=False),
    "an entity's state": get(f"{ENTITY}/state", hot=False),
    "an id with an escape": get(ENTITY.replace("7a1c", "%37a1c"), hot=False),
    "an id as long as one": get(f"/v1/entities/{'x' * 36}", hot=False),
    "an id with dashes elsewhere": get("/v1/entities/7a1c5f7e9-d53-4c58-8a3c-1f0e2d3c4b5a", hot=False),
    "an id in braces": get(f"/v1/entities/{{{NODE.hex}}}", hot=False),
    "an id as a URN": get(f"/v1/entities/{NODE.urn}", hot=False),
    "an id without dashes": get(f"/v1/entities/{NODE.hex}", hot=False),
    "a list": get("/v1/entities", hot=False),
    "an absolute form": get(f"http://service{ENTITY}", hot=False),
    "an old client": Ask("GET", ENTITY, version="1.0", hot=False),
    "an old client that stays": Ask("GET", ENTITY, ("Connection: keep-alive",), version="1.0", hot=False),
    "a head": Ask("HEAD", ENTITY, hot=False),
    "an entity, deleted": Ask("DELETE", ENTITY, hot=False),
    "an upgrade": get(ENTITY, "Connection: Upgrade", "Upgrade: h2c", hot=False),
    # Events.
    "an event": post(HEARTBEAT),
    "an event with a type": post(HEARTBEAT, JSON),
    "an event with an id": post(HEARTBEAT, ID + GIVEN),
    "an event with a bad id": post(HEARTBEAT, ID + "x"),
    "an event, then no more": post(HEARTBEAT, "Connection: close"),
    "an event again": post(life()[-1]),
    "an event too late": post(life()[0]),
    "an event too early": post(HEARTBEAT | {"position": {"sequence": 9, "previous": 8}}),
    "an event in conflict": post(HEARTBEAT | {"position": {"partition": "p", "offset": 1}}),
    "an event that is ignored": post(event_json("registration.accepted", 6)),
    "an event of an unknown entity": post(event_json("node.heartbeat", 6, entity_id=node(404))),
    "an event with a charset": post(HEARTBEAT, f"{JSON}; charset=utf-8", hot=False),
    "an event of a +json type": post(HEARTBEAT, "Content-Type: application/vnd.x+json", hot=False),
    "an event of an empty type": post(HEARTBEAT, "Content-Type: ", hot=False),
    "an event of another type": post(HEARTBEAT, "Content-Type: text/csv", hot=False),
    "an event of two types": post(HEARTBEAT, JSON, "Content-Type: text/csv", hot=False),
    "lines": post(json.dumps(HEARTBEAT).encode() + b"\nx\n", "Content-Type: application/x-ndjson", hot=False),
    "a chunked event": post(HEARTBEAT, chunked=True, hot=False),
    "an event after leave": post(HEARTBEAT, "Expect: 100-continue", hot=False),
    "a dry run": replace(post(HEARTBEAT, hot=False), target=f"{EVENTS}?dry_run=true"),
    "an escaped path": replace(post(HEARTBEAT, hot=False), target="/v1/%65vents"),
    "events, in an absolute form": replace(post(HEARTBEAT, hot=False), target=f"http://service{EVENTS}"),
    "an event of an old client": replace(post(HEARTBEAT, hot=False), version="1.0"),
    "an array": post([HEARTBEAT, life()[0]]),
    "an array after spaces": post(b" \n" + json.dumps([HEARTBEAT]).encode()),
    "an array of none": post([]),
    "an array with a bad item": post([HEARTBEAT, {}]),
    "an array that does not end": post(b"["),
    "no JSON": post(b"{"),
    "no UTF-8": post(b'{"a": "\xff"}'),
    "no object": post(b"17"),
    "no event": post({}),
    "a wrong type": post(HEARTBEAT | {"type": "x"}),
    "an unknown field": post(HEARTBEAT | {"x": 1}),
    "NUL": post(HEARTBEAT | {"domain": "\0"}),
    "deeper than deep": post(b'{"a": ' * 10_000),
    "spaces": post(b"  "),
    "an empty body": post(b""),
    "no body": Ask("POST", EVENTS, hot=False),
    "a large body": post(padded(MAX_BODY, HEARTBEAT)),
    "a larger body": post(padded(MAX_BODY + 1, HEARTBEAT), hot=False),
    "the largest body": post(padded(LARGEST, HEARTBEAT), hot=False),
    "a body that is too large": post(padded(LARGEST + 1, HEARTBEAT), hot=False),
    "events, asked for": get(EVENTS, hot=False),
    # A workflow.
    "a workflow": get(WORKFLOW),
    "a workflow, unchanged": get(WORKFLOW, 'If-None-Match: W/"2"'),
    "a workflow, changed": get(WORKFLOW, 'If-None-Match: "1"'),
    "no workflow": get("/v1/workflows/-a.b_c~d:e@f/G/"),
    "a slash for a key": get("/v1/workflows//"),
    "dots in a key": get("/v1/workflows/..w"),
    "a long key": get(f"/v1/workflows/{'x' * 255}"),
    "a key that is too long": get(f"/v1/workflows/{'x' * 256}", hot=False),
    "an empty key": get("/v1/workflows/", hot=False),
    "a key with an escape": get("/v1/workflows/%77", hot=False),
    "a key that is no UTF-8": get("/v1/workflows/%ff", hot=False),
    "a key that needs none": get("/v1/workflows/a+b", hot=False),
    "a workflow, with a parameter": get(f"{WORKFLOW}?x=1", hot=False),
    "a workflow, with a bad id": get(WORKFLOW, ID + "x"),
    "a commit": put(WORKFLOW, NEXT, MATCH, JSON),
    "a first commit": put("/v1/workflows/new", NEXT, "If-None-Match: *"),
    "a first commit too late": put(WORKFLOW, NEXT, "If-None-Match: *"),
    "a commit too late": put(WORKFLOW, NEXT, 'If-Match: "1"'),
    "a commit on nothing": put("/v1/workflows/new", NEXT, MATCH),
    "a commit on anything": put(WORKFLOW, NEXT, "If-Match: *"),
    "a commit on one of two": put(WORKFLOW, NEXT, 'If-Match: "2", "7"'),
    "a commit without a condition": put(WORKFLOW, NEXT),
    "a commit with a bad condition": put(WORKFLOW, NEXT, "If-Match: 2"),
    "a commit with a bad id": put(WORKFLOW, NEXT, MATCH, ID + "x"),
    "a commit again": put(WORKFLOW, commit(1, action_id="first"), 'If-Match: "9"'),
    "an action with another state": put(WORKFLOW, commit(9, action_id="first"), MATCH),
    "a commit of no JSON": put(WORKFLOW, b"{", MATCH),
    "a commit of nothing": put(WORKFLOW, b"", MATCH),
    "a commit of no state": put(WORKFLOW, {"state": {}, "provenance": PROVENANCE}, MATCH),
    "a commit of no shape": put(WORKFLOW, [], MATCH),
    "a commit, then no more": put(WORKFLOW, NEXT, MATCH, "Connection: close"),
    "a commit with a charset": put(WORKFLOW, NEXT, MATCH, f"{JSON}; charset=utf-8", hot=False),
    "a commit of another type": put(WORKFLOW, NEXT, MATCH, "Content-Type: text/csv", hot=False),
    "a chunked commit": put(WORKFLOW, NEXT, MATCH, chunked=True, hot=False),
    "a commit after leave": put(WORKFLOW, NEXT, MATCH, "Expect: 100-continue", hot=False),
    "a commit to an escaped key": put("/v1/workflows/%77", NEXT, MATCH, hot=False),
    "a large commit": put(WORKFLOW, padded(MAX_BODY, NEXT), MATCH),
    "a larger commit": put(WORKFLOW, padded(MAX_BODY + 1, NEXT), MATCH, hot=False),
    "a commit that is too large": put(WORKFLOW, padded(LARGEST + 1, NEXT), MATCH, hot=False),
    "a workflow, deleted": Ask("DELETE", WORKFLOW, hot=False),
}


ITS_OWN = {"date", "x-correlation-id", "connection", "transfer-encoding"}  # headers of one answer, or of uvicorn


class Seen(NamedTuple):
    """What there is to see of one request. Left out is what differs from one to the next."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    counted: Counter[str]
    logged: tuple[str, str, int]


async def see(service: Plain, access: Access, asking: Awaitable[Answer]) -> Seen:
    """Send a request, and look at all that it does."""
    before = service.counted()
    answer = await asking
    its_id, method, path, status = await access.next()
    assert its_id == answer.header("x-correlation-id")
    headers = sorted(each for each in answer.headers if each[0] not in ITS_OWN)
    body = re.sub(rb'(?<="updated_at":")[^"]*', b"now", answer.body)
    return Seen(answer.status, headers, body, service.counted() - before, (method, path, status))


@pytest.mark.parametrize("case", ASKS)
async def test_both_ways_answer_the_same(
    fast_api: Plain, hot: Served, client: Client, access: Access, case: str
) -> None:
    """Status, headers, body, metrics and log are those of FastAPI, whichever way a request takes."""
    ask = ASKS[case]
    one = await see(hot, access, client.ask(ask))
    assert hot.ways == [ask.hot]
    assert one == await see(fast_api, access, ask.in_process(fast_api.client))
    hot.untouched = fast_api.untouched = ask.method == "GET"


async def test_the_smallest_limit_counts(database_url: str) -> None:
    """A body that is too large for this service is refused on the shorter way's scale, too."""
    served = Served(database_url, max_body=1024)
    async with served.running(), served.connect() as client:
        assert (await client.ask(post(padded(1024, HEARTBEAT)))).status == 200
        assert (await client.ask(post(padded(1025, HEARTBEAT)))).status == 413
    assert served.ways == [True, False]


BREAKS = """
CREATE FUNCTION ours() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RAISE 'on fire' USING ERRCODE = 'internal_error'; END $$;
"""
# What stands in the way of an event, how it is removed, and the status meanwhile.
IN_THE_WAY = {
    "refused": (
        f"ALTER TABLE {TABLE} ADD CONSTRAINT ours CHECK (version < 6)",
        f"ALTER TABLE {TABLE} DROP CONSTRAINT ours",
        422,
    ),
    "nobody foresaw it": (
        BREAKS + f"CREATE TRIGGER ours BEFORE UPDATE ON {TABLE} EXECUTE FUNCTION ours()",
        "DROP FUNCTION ours CASCADE",
        500,
    ),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
@pytest.mark.parametrize("ask", [ASKS["an event"], ASKS["an event with a charset"]], ids=["hot", "usual"])
async def test_an_error_of_postgresqls(hot: Served, client: Client, access: Access, ask: Ask, kind: str) -> None:
    """It is a 422 or, when nobody foresaw it, a 500, each with the correlation id; and the connection stays."""
    put_there, remove, status = IN_THE_WAY[kind]
    async with connected(hot.url) as connection:
        await connection.execute(put_there)
        try:
            answer = await client.ask(ask)
        finally:
            await connection.execute(remove)
    assert (answer.status, answer.header("content-type")) == (status, "application/problem+json")
    assert await access.next() == (answer.header("x-correlation-id"), "POST", EVENTS, status)
    assert (await client.ask(ask)).status == 200


async def test_an_answer_is_dated(hot: Served, client: Client) -> None:
    """An answer has uvicorn's own headers first, and those of uvicorn's other answers."""
    one = await client.ask(get(ENTITY))
    other = await client.ask(OTHER)
    assert hot.ways == [True, False]
    assert [name for name, _ in one.headers] == ["date", "content-length", "content-type", "etag", "x-correlation-id"]
    assert other.headers[0][0] == "date"


async def test_the_clients_id_is_stored(hot: Served, client: Client) -> None:
    """An event has the correlation id of its request, on the shorter way as on the other."""
    await client.ask(post(HEARTBEAT, ID + GIVEN))
    assert json.loads((await client.ask(get(ENTITY))).body)["correlation_id"] == GIVEN
    assert hot.ways == [True, True]


@pytest.mark.parametrize("ask", [post(HEARTBEAT), put(WORKFLOW, NEXT, MATCH)], ids=["event", "commit"])
async def test_leave_is_given(client: Client, ask: Ask) -> None:
    """A client that waits for leave to send its body is told to go on."""
    head, _, body = replace(ask, headers=(*ask.headers, "Expect: 100-continue")).raw().partition(b"\r\n\r\n")
    await client.send(head + b"\r\n\r\n")
    assert await client.line() == b"HTTP/1.1 100 Continue\r\n"
    await client.line()
    await client.send(body)
    assert (await client.answer()).status == 200


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
    """The same with a correlation id."""
    return replace(ask, headers=(*ask.headers, ID + str(node(number))))


def by_heads_and_bodies(requests: list[bytes]) -> list[bytes]:
    """Requests in two pieces each: up to the end of the headers, and the rest."""
    ends = [each.index(b"\r\n\r\n") + 4 for each in requests]
    return [part for each, end in zip(requests, ends, strict=True) for part in (each[:end], each[end:])]


def byte_by_byte(requests: list[bytes]) -> list[bytes]:
    """Requests in pieces of one byte."""
    return [bytes([byte]) for each in requests for byte in each]


def at_once(requests: list[bytes]) -> list[bytes]:
    """Requests in one piece."""
    return [b"".join(requests)]


def one_by_one(requests: list[bytes]) -> list[bytes]:
    """Requests as they are."""
    return requests


Cut = Callable[[list[bytes]], list[bytes]]


@pytest.mark.parametrize("cut", [at_once, one_by_one, by_heads_and_bodies, byte_by_byte])
async def test_requests_are_answered_in_order(hot: Served, client: Client, access: Access, cut: Cut) -> None:
    """However requests arrive, their answers come in their order; each id is on its own answer and log line."""
    asks = [with_id(ask, number) for number, (ask, _) in enumerate(CONVERSATION)]
    await client.send(*cut([ask.raw() for ask in asks]))
    answers = [await client.answer() for _ in asks]
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


async def test_an_id_ends_with_its_request(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """What is logged of a connection after an answer does not carry the id of that answer's request."""
    seen: list[str | None] = []

    def look(_record: logging.LogRecord) -> bool:
        seen.append(correlation_id.get())
        return True

    caplog.handler.addFilter(look)
    await client.ask(get(ENTITY, ID + GIVEN))
    await client.send(b"what is no request\r\n\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
    assert (caplog.messages[-1], seen[-1]) == ("Invalid HTTP request received.", None)


async def test_many_bad_requests_behind_one(hot: Served, client: Client) -> None:
    """Any number of requests may wait for the one before them, also when each is answered without the database."""
    async with locked(hot.url) as met:
        await client.send(get(ENTITY).raw())
        await met()
        await client.send(post(b"").raw() * 3000)
    assert [(await client.answer()).status for _ in range(3001)] == [200] + [400] * 3000


# --- Clients that hang up, or do not read --------------------------------------------------------------------------


def hang_up(client: Client) -> None:
    """Close a connection."""
    client.writer.close()


def break_off(client: Client) -> None:
    """Reset a connection, as the kernel of a client that crashed does."""
    linger = struct.pack("ii", 1, 0)
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.writer.transport.abort()


ENDINGS = pytest.mark.parametrize("ending", [hang_up, break_off])
Ending = Callable[[Client], None]


@ENDINGS
@pytest.mark.parametrize("case", ["an event", "an event with a charset", "a commit", "a commit with a charset"])
async def test_a_client_that_leaves_in_its_body(
    hot: Served, client: Client, access: Access, case: str, ending: Ending
) -> None:
    """It is counted and logged as 499, with its id; nothing is written, and no connection stays checked out."""
    ask = with_id(ASKS[case], 7)
    before = hot.counted()
    await client.send(ask.raw()[:-1])
    await until(lambda: hot.ways)
    ending(client)
    assert await access.next() == (str(node(7)), ask.method, ask.target, GONE)
    route = EVENTS if ask.target == EVENTS else "/v1/workflows/{workflow_key}"
    assert hot.counted() - before == {
        f'pqs_http_requests_total{{method="{ask.method}",route="{route}",status="499"}}': 1,
        f'pqs_http_request_seconds_count{{method="{ask.method}",route="{route}"}}': 1,
    }
    assert hot.checked_out() == 0


@ENDINGS
@pytest.mark.parametrize("case", ["an event", "an event with a charset", "an entity"])
async def test_a_client_that_leaves_before_its_answer(
    hot: Served, client: Client, access: Access, caplog: pytest.LogCaptureFixture, case: str, ending: Ending
) -> None:
    """What it asked for is done all the same, quietly, and no connection stays checked out."""
    ask = ASKS[case]
    async with locked(hot.url) as met:
        await client.send(ask.raw())
        await met()
        ending(client)
        await until(lambda: not hot.server.server_state.connections)
    _, *logged = await access.next()
    assert logged == [ask.method, ask.target, 200]
    assert hot.checked_out() == 0
    assert not [record for record in caplog.records if record.levelname not in {"DEBUG", "INFO"}]


@ENDINGS
async def test_a_client_that_leaves_with_more_to_come(
    hot: Served, client: Client, access: Access, caplog: pytest.LogCaptureFixture, ending: Ending
) -> None:
    """Of several requests the first is done to its end, and the others, which nobody began, are not."""
    async with locked(hot.url) as met:
        await client.send(post(HEARTBEAT).raw() + get(WORKFLOW).raw() + put(WORKFLOW, NEXT, MATCH).raw())
        await met()
        hot.protocol.flow.resume_reading()  # which had been paused: so the end is seen now
        ending(client)
        await until(lambda: not hot.server.server_state.connections)
    assert (await access.next())[1:] == ("POST", EVENTS, 200)
    assert hot.checked_out() == 0
    assert (await get(WORKFLOW).in_process(hot.client)).header("etag") == '"2"'
    assert not [record for record in caplog.records if record.levelname not in {"DEBUG", "INFO"}]


PAD = f"X-Pad: {'x' * 400}"
FLOOD = 3000  # requests that are sent before an answer is read
HELD = 1000  # of them that the server takes in at most, which is more than two reads from its socket


@pytest.mark.parametrize("ask", [get(ENTITY, PAD), post(b"", PAD), get(WORKFLOW, PAD)], ids=["get", "bad", "task"])
async def test_a_client_that_does_not_read(hot: Served, client: Client, ask: Ask) -> None:
    """Nothing is read from a client that does not read, past a bound; when it reads, every answer is there."""
    sending = asyncio.create_task(client.send_all(ask.raw() * FLOOD))
    await until(lambda: hot.ways)
    server = hot.protocol
    await until(lambda: server.flow.write_paused and server.flow.read_paused)
    assert server.transport.get_write_buffer_size() < 128 * 1024
    for _ in range(FLOOD):
        await client.answer()
    await sending
    assert (len(hot.ways), all(hot.ways)) == (FLOOD, True)
    assert max(hot.waiting) < HELD
    assert not hot.server.server_state.tasks
    assert hot.checked_out() == 0


@ENDINGS
async def test_a_client_that_leaves_without_reading(hot: Served, client: Client, ending: Ending) -> None:
    """Nothing waits any longer for a client to read that is gone."""
    sending = asyncio.create_task(client.send_all(get(ENTITY, PAD).raw() * FLOOD))
    await until(lambda: hot.server.server_state.tasks)
    ending(client)
    await until(lambda: not (hot.server.server_state.tasks or hot.server.server_state.connections))
    assert hot.checked_out() == 0
    sending.cancel()
    await asyncio.wait([sending])


# --- The end of a connection ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["an entity", "an entity, unchanged", "an event", "no JSON", "a workflow", "a list"])
async def test_a_connection_is_closed_when_asked(hot: Served, client: Client, case: str) -> None:
    """`Connection: close` is answered, said back, and done, and what is sent after it is not looked at."""
    ask = ASKS[case]
    last = replace(ask, headers=(*ask.headers, "Connection: close"))
    await client.send(last.raw() + put(WORKFLOW, NEXT, MATCH).raw())
    assert (await client.answer()).header("connection") == "close"
    assert await client.rest() == b""
    assert (await get(WORKFLOW).in_process(hot.client)).header("etag") == '"2"'


@pytest.mark.parametrize("case", ["an entity", "an event", "no JSON", "a workflow", "a list"])
async def test_an_idle_connection_is_closed(idle: Served, case: str) -> None:
    """After an answer a connection is kept for a time, and then closed."""
    async with idle.connect() as client:
        await client.ask(ASKS[case])
        assert await client.rest() == b""


async def test_a_busy_connection_is_not_idle(idle: Served) -> None:
    """The time begins when nothing is left to be answered."""
    async with idle.connect() as client:
        async with locked(idle.url) as met:
            await client.send(post(b"").raw() + post(b"").raw() + get(f"/v1/entities/{node(404)}").raw())
            assert [(await client.answer()).status for _ in range(2)] == [400, 400]
            await met()
            server = idle.protocol
            assert server.timeout_keep_alive_task is None
            assert not server.transport.is_closing()
        assert (await client.answer()).status == 404
        assert await client.rest() == b""


@pytest.mark.parametrize("case", ["an entity", "an event", "an array"])
async def test_a_stop_waits_for_an_answer(database_url: str, case: str) -> None:
    """A service that is stopped answers what it has begun, says that it closes, and ends."""
    served = Served(database_url)
    async with served.running(), served.connect() as client, served.connect() as other:
        await other.ask(get(WORKFLOW))
        async with locked(database_url) as met:
            await client.send(ASKS[case].raw())
            await met()
            served.server.should_exit = True
            assert await other.rest() == b""
            assert not served.end.done()
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (404 if case == "an entity" else 200, "close")
        assert await client.rest() == b""
        async with asyncio.timeout(PATIENCE):
            await served.end
