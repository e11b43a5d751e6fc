"""Streams against a real server: memory, hang-ups, refused bodies, and a database that fails midway.

A transport within the process would hide these effects, so most tests talk to a service of their own through sockets.
That service has one database connection for reads and writes and one for scans: a request that kept one would block
all other requests.
"""

import asyncio
import gzip
import http.client
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from app.store.tables import RegistrationProjection
from app.wire.events import CHUNK_LINES
from tests.databases import new_database, on_server
from tests.making import Json, event_json, node
from tests.processes import Service, serving, until

TABLE = RegistrationProjection.__tablename__
NDJSON = "application/x-ndjson"
MIB = 1024 * 1024
GROWTH = 15 * MIB  # of a server's memory, that counts as none; the answer alone is larger
LARGE = 20 * MIB  # bytes of a body
ROWS = 100_000  # of a long list, some 60 MB as lines
PATIENCE = 60.0  # seconds

# Its tests are no coroutines, and use an asynchronous fixture.
pytestmark = pytest.mark.usefixtures("anyio_backend")


@pytest.fixture(scope="module")
async def url() -> AsyncIterator[str]:
    """The address of the database of this module's service."""
    async with new_database() as url:
        yield url


@pytest.fixture(scope="module")
def service(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service in a process of its own, with one database connection of each kind."""
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, database_url=url, pool_size=1) as service:
        yield service
        assert list(service.temporary.iterdir()) == []


# --- Clients by hand -----------------------------------------------------------------------------------------------


@contextmanager
def connected(service: Service, *, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """A connection to a service; every wait on it is bounded."""
    with socket.socket() as connection:
        connection.settimeout(PATIENCE)
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        address = urlsplit(service.url)
        assert address.hostname is not None
        connection.connect((address.hostname, address.port))
        yield connection


def head(method: str, path: str, **headers: object) -> bytes:
    """The first lines of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def hang_up(connection: socket.socket) -> None:
    """Close a connection."""
    connection.close()


def break_off(connection: socket.socket) -> None:
    """Reset a connection, as the kernel does for a client that crashed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


ENDINGS = pytest.mark.parametrize("ending", [hang_up, break_off])
Ending = Callable[[socket.socket], None]


@contextmanager
def answer_of(connection: socket.socket) -> Iterator[HTTPResponse]:
    """The answer on a connection, with its head read."""
    answer = HTTPResponse(connection)
    try:
        answer.begin()
        yield answer
    finally:
        answer.close()


# --- What is watched -----------------------------------------------------------------------------------------------


class Memory:
    """The memory of a process, measured from the creation of this object."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        (self._folder / "clear_refs").write_text("5")  # the peak begins anew (proc(5))
        self._began = self._read("VmRSS")

    def _read(self, name: str) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

    def growth(self) -> int:
        """The bytes by which the process grew at its peak."""
        return self._read("VmHWM") - self._began


def await_idle(pid: int) -> None:
    """Wait until a process has used no processor time for a while."""

    def used() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # utime and stime, in ticks

    seen = [-1] * 10

    def idle() -> bool:
        seen.append(used())
        return len(set(seen[-15:])) == 1

    until(idle, "an idle service")


def answered(service: Service, method: str, route: str) -> float:
    """The number of completed requests of a route."""
    with service.client() as client:
        lines = client.get("/metrics").text.splitlines()
    series = f'http_server_request_duration_seconds_count{{http_request_method="{method}",'
    asked = [line for line in lines if line.startswith(series) and f'http_route="{route}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in asked)


def total(service: Service, domain: str) -> int:
    """The number of entities in a domain."""
    with service.client() as client:
        return int(client.get("/v1/state-counts", params={"domain": domain}).raise_for_status().json()["total"])


def nobody_is_kept_out(service: Service) -> None:
    """Check that both database connections of the service are free, with a request for each."""
    with service.client() as client:
        for path in ("/v1/state-counts", f"/v1/entities/{node(1)}"):
            for _ in range(3):
                assert client.get(path).status_code in {200, 404}


def ask(url: str, statement: str) -> list[asyncpg.Record]:
    """Query the database directly."""

    async def fetch() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()

    return asyncio.run(fetch())


def initiated(number: int, domain: str) -> bytes:
    """A line that makes a row."""
    return json.dumps(event_json("registration.initiated", 1, entity_id=node(number), domain=domain)).encode() + b"\n"


# --- Much, and slowly ----------------------------------------------------------------------------------------------


def test_a_client_that_sends_all_before_it_reads_gets_its_whole_answer(service: Service) -> None:
    """A stream whose answer is as long as itself neither hangs nor takes memory, even if the client reads last."""
    event = event_json("node.heartbeat", 1, domain="d" * 128)
    line = json.dumps(event).encode() + b"\n"
    count = LARGE // len(line) + 1
    warm_up = line * 2000
    with service.client() as client:
        client.post("/v1/events", content=warm_up, headers={"Content-Type": NDJSON}).raise_for_status()
    memory = Memory(service.pid)
    with connected(service) as connection:
        connection.sendall(head("POST", "/v1/events", Content_Type=NDJSON, Content_Length=count * len(line)))
        for _ in range(count // 1000):
            connection.sendall(line * 1000)
        connection.sendall(line * (count % 1000))
        with answer_of(connection) as answer:
            assert answer.status == 200
            numbers = [json.loads(answer.readline())["line"] for _ in range(count)]
            summary = json.loads(answer.readline())["summary"]
            assert answer.read() == b""
    assert numbers == list(range(1, count + 1))
    assert (summary["received"], summary["ignored"]) == (count, count)
    assert memory.growth() < GROWTH


@pytest.fixture(scope="module")
def long_list(url: str) -> str:
    """The domain with a long list."""
    values = {
        "entity_id": "lpad(to_hex(number), 32, '0')::uuid",
        "domain": "'long'",
        "current_state": "'active'",
        "node_type": "'compute'",
        "last_applied_event_id": "lpad(to_hex(number), 32, '0')::uuid",
        "last_applied_sequence": "1",
        "registered_at": "now()",
        "updated_at": "now()",
        "version": "1",
    }
    rows = f"SELECT {', '.join(values.values())} FROM generate_series(1, {ROWS}) AS number"
    ask(url, f"INSERT INTO {TABLE} ({', '.join(values)}) {rows}")
    ask(url, f"ANALYZE {TABLE}")
    return "long"


@contextmanager
def reading_slowly(service: Service, domain: str) -> Iterator[tuple[socket.socket, HTTPResponse]]:
    """A client that stopped reading at the beginning of a long list, and whose service has stopped sending."""
    with connected(service, receive_buffer=65_536) as connection:
        connection.sendall(head("GET", f"/v1/entities?domain={domain}", Accept=NDJSON))
        with answer_of(connection) as answer:
            assert answer.status == 200
            assert len(answer.read(64 * 1024)) == 64 * 1024
            await_idle(service.pid)
            yield connection, answer


def test_a_slow_reader_takes_no_memory(service: Service, long_list: str) -> None:
    """The rows of a list stay in the database until its client reads them."""
    nobody_is_kept_out(service)
    memory = Memory(service.pid)
    with reading_slowly(service, long_list):
        assert memory.growth() < GROWTH


def test_a_slow_reader_holds_no_connection(service: Service, url: str, long_list: str) -> None:
    """While a client pauses its reading, other requests are answered, and no transaction is open."""
    with reading_slowly(service, long_list):
        nobody_is_kept_out(service)
        open_ = ask(
            url,
            "SELECT state, query FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'pqs' AND (state <> 'idle' OR xact_start IS NOT NULL)",
        )
    assert open_ == []


def test_a_long_list_comes_to_its_end(service: Service, long_list: str) -> None:
    """A client gets every row once, in the order of entity ids, whatever pauses it makes."""
    with reading_slowly(service, long_list) as (_, answer):
        rest = answer.read().splitlines()[1:]
    numbers = [int(json.loads(line)["entity_id"].replace("-", ""), 16) for line in rest]
    assert numbers == list(range(numbers[0], ROWS + 1))


def test_a_list_that_breaks_off_does_not_look_whole(service: Service, url: str, long_list: str) -> None:
    """If the database fails in mid-list, the connection breaks, so no client takes the part for the whole."""
    with reading_slowly(service, long_list) as (_, answer):
        ask(url, f"ALTER TABLE {TABLE} RENAME TO elsewhere")
        try:
            with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
                answer.read()
        finally:
            ask(url, f"ALTER TABLE elsewhere RENAME TO {TABLE}")
    nobody_is_kept_out(service)


# --- Clients that go away ------------------------------------------------------------------------------------------


@ENDINGS
def test_a_reader_that_goes_away_leaves_nothing_open(service: Service, long_list: str, ending: Ending) -> None:
    """A client that hangs up in the middle of a list keeps no database connection, and its request ends."""
    before = answered(service, "GET", "/v1/entities")
    with reading_slowly(service, long_list) as (connection, answer):
        answer.close()
        ending(connection)
    until(lambda: answered(service, "GET", "/v1/entities") == before + 1, "the end of the request")
    nobody_is_kept_out(service)


@ENDINGS
def test_a_sender_that_goes_away_leaves_whole_chunks(service: Service, ending: Ending) -> None:
    """If a client hangs up in mid-stream, whole chunks are committed, and never the half line at the end."""
    domain = f"sender {ending.__name__}"
    logged = len(service.log)
    before = answered(service, "POST", "/v1/events")
    body = b"".join(initiated(number, domain) for number in range(2 * CHUNK_LINES + 1))
    with connected(service) as connection:
        connection.sendall(head("POST", "/v1/events", Content_Type=NDJSON, Content_Length=2 * len(body)))
        connection.sendall(body + initiated(2 * CHUNK_LINES + 1, domain)[:-1])
        until(lambda: total(service, domain) == 2 * CHUNK_LINES, "two chunks")
        ending(connection)
    until(lambda: answered(service, "POST", "/v1/events") == before + 1, "the end of the request")
    assert total(service, domain) == 2 * CHUNK_LINES
    nobody_is_kept_out(service)
    assert "ERROR" not in service.log[logged:]


@ENDINGS
@pytest.mark.parametrize("framing", ["Content-Length", "chunks"])
@pytest.mark.parametrize("count", [None, 3])
def test_a_body_that_ends_early_applies_nothing(
    service: Service, ending: Ending, framing: str, count: int | None
) -> None:
    """A truncated JSON body is not applied, even if the part received is valid JSON."""
    domain = f"early {ending.__name__} {framing} {count}"
    logged = len(service.log)
    before = answered(service, "POST", "/v1/events")
    events = [event_json("registration.initiated", 1, entity_id=node(n), domain=domain) for n in range(count or 1)]
    body = json.dumps(events if count else events[0]).encode()
    with connected(service) as connection:
        if framing == "chunks":
            connection.sendall(head("POST", "/v1/events", Transfer_Encoding="chunked"))
            connection.sendall(b"%x\r\n%s\r\n" % (len(body), body))
        else:
            connection.sendall(head("POST", "/v1/events", Content_Length=len(body) + 1) + body)
        ending(connection)
    until(lambda: answered(service, "POST", "/v1/events") == before + 1, "the end of the request")
    assert total(service, domain) == 0
    assert "ERROR" not in service.log[logged:]


# --- Bodies that are refused ---------------------------------------------------------------------------------------

REFUSED = {
    "413": ("/v1/events", "application/json", 413),
    "413 of a lookup": ("/v1/entities/lookup", "application/json", 413),
    "415": ("/v1/events", "text/csv", 415),
    "422": ("/v1/events?dry=1", NDJSON, 422),
    "404": ("/v1/nodes", NDJSON, 404),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("keep", ["close", "keep-alive"])
def test_the_answer_to_a_refused_body_arrives(service: Service, case: str, keep: str) -> None:
    """A client that sends 20 MB before it reads gets the refusal, and may go on using its connection."""
    path, media, status = REFUSED[case]
    with connected(service) as connection:
        connection.sendall(head("POST", path, Content_Type=media, Content_Length=LARGE, Connection=keep))
        for _ in range(LARGE // MIB):
            connection.sendall(b" " * MIB)
        with answer_of(connection) as answer:
            assert (answer.status, json.loads(answer.read())["status"]) == (status, status)
        if keep == "close":
            assert connection.recv(1) == b""
        else:
            connection.sendall(head("GET", "/livez"))
            with answer_of(connection) as answer:
                assert (answer.status, answer.read()) == (200, b'{"status":"alive"}')


# --- A database that fails midway ----------------------------------------------------------------------------------

Break = Callable[[str], AbstractAsyncContextManager[None]]  # takes the address of a database; see where it is used


@asynccontextmanager
async def terminated(url: str) -> AsyncIterator[None]:
    """End, in mid-write, the database connection of the chunk that the caller sends inside this context."""
    async with connection_to(url) as locking, connection_to(url) as connection:
        await locking.execute(f"BEGIN; LOCK TABLE {TABLE} IN SHARE MODE")
        yield
        ended = 0
        async with asyncio.timeout(PATIENCE):
            while not ended:
                ended = await connection.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
        assert ended == 1


@asynccontextmanager
async def shut(url: str) -> AsyncIterator[None]:
    """Close the database to new connections."""
    async with connection_to(on_server(url, "postgres")) as server:
        name = urlsplit(url).path[1:]
        await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        yield


async def open_up(url: str) -> None:
    """Open the database to connections again."""
    async with connection_to(on_server(url, "postgres")) as server:
        await server.execute(f"ALTER DATABASE {urlsplit(url).path[1:]} ALLOW_CONNECTIONS true")


@asynccontextmanager
async def connection_to(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A database connection outside the service."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize("broken", [terminated, shut])
async def test_a_database_that_fails_midway_says_what_is_in(
    client: httpx.AsyncClient, database_url: str, broken: Break
) -> None:
    """The 503 reports the committed lines, blank ones counted; exactly the events of those lines are stored."""
    lines = [b"\n" if number % 3 == 2 else initiated(number, "midway") for number in range(5 * CHUNK_LINES)]

    async def body() -> AsyncIterator[bytes]:
        for line in lines[: 3 * CHUNK_LINES]:
            yield line
        await until_counted(client, "midway", 2 * CHUNK_LINES)
        third = 3 * CHUNK_LINES * 3 // 2  # two in three lines are events
        async with broken(database_url):
            for line in lines[3 * CHUNK_LINES : third]:
                yield line
        for line in lines[third:]:
            yield line

    answer = await client.post("/v1/events", content=body(), headers={"Content-Type": NDJSON})
    await open_up(database_url)
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert list(answer.json()) == ["type", "title", "status", "detail", "instance", "committed_lines"]
    assert int(answer.headers["retry-after"]) >= 1
    committed = answer.json()["committed_lines"]
    expected = {str(node(number)) for number, line in enumerate(lines[:committed]) if line.strip()}
    assert len(expected) == 2 * CHUNK_LINES
    assert {row["entity_id"] for row in await rows(client, "midway")} == expected


async def test_what_is_sent_again_after_a_503_completes_the_stream(
    client: httpx.AsyncClient, database_url: str
) -> None:
    """After a 503, sending the lines after the committed ones gives the same rows as an unbroken stream."""
    lines = [initiated(number, "again") for number in range(2 * CHUNK_LINES)]
    connection = await asyncpg.connect(database_url)

    async def body() -> AsyncIterator[bytes]:
        for line in lines[:CHUNK_LINES]:
            yield line
        await until_counted(client, "again", CHUNK_LINES)
        await connection.execute(f"ALTER TABLE {TABLE} RENAME TO elsewhere")
        for line in lines[CHUNK_LINES:]:
            yield line

    answer = await client.post("/v1/events", content=body(), headers={"Content-Type": NDJSON})
    await connection.execute(f"ALTER TABLE elsewhere RENAME TO {TABLE}")
    await connection.close()
    assert (answer.status_code, answer.json()["committed_lines"]) == (503, CHUNK_LINES)
    rest = b"".join(lines[answer.json()["committed_lines"] :])
    again = await client.post("/v1/events", content=rest, headers={"Content-Type": NDJSON})
    assert json.loads(again.text)["summary"]["applied"] == CHUNK_LINES
    assert len(await rows(client, "again")) == len(lines)


async def until_counted(client: httpx.AsyncClient, domain: str, count: int) -> None:
    """Wait until a domain has this many entities."""
    async with asyncio.timeout(PATIENCE):
        while (await client.get(f"/v1/state-counts?domain={domain}")).json()["total"] < count:  # noqa: ASYNC110 - it is the service's
            await asyncio.sleep(0.01)


async def rows(client: httpx.AsyncClient, domain: str) -> list[Json]:
    """Every row of a domain."""
    answer = await client.get(f"/v1/entities?domain={domain}", headers={"Accept": NDJSON})
    return [json.loads(line) for line in answer.raise_for_status().text.splitlines()]


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"not gzip", 400), (gzip.compress(b"{}\n")[:-4], 400), (gzip.compress(b"") * 400_000, 413)],
    ids=["no gzip", "cut off", "members of nothing"],
)
async def test_a_stream_that_is_not_what_its_coding_says(client: httpx.AsyncClient, body: bytes, status: int) -> None:
    """A stream that does not fit its coding is refused with an explanation, and no request goes on waiting."""
    headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
    async with asyncio.timeout(20):
        answer = await client.post("/v1/events", content=body, headers=headers)
    assert (answer.status_code, "gzip" in answer.json()["detail"]) == (status, True)
