"""The cost of hostile connections to a live service: its answer, the time until then, and its growth in memory.

`python -m benchmarks.bounds` prints these rows after its own.
"""

import gzip
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.client import HTTPConnection
from subprocess import DEVNULL, Popen

from benchmarks.machine import free_port, reset_peak, resident

MIB = 1024 * 1024  # bytes
MOST = 64 * MIB  # bytes that are sent of what has no end
SLOW = 200  # bodies at once
SILENT = 1000  # connections at once
PATIENCE = 60.0  # seconds
HOST = b"Host: 127.0.0.1\r\n"
CHUNKED = (
    b"POST /v1/events HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)
READ = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
Said = tuple[str, str]  # what was sent, and the answer

ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "header fields": (b"GET / HTTP/1.1\r\n" + HOST, b"a: b\r\n" * 1000),
    "one header field": (b"GET / HTTP/1.1\r\n" + HOST + b"a: ", b"b" * 8192),
    "a URL": (b"GET /", b"a" * 8192),
    "trailer fields": (CHUNKED + b"0\r\n", b"a: b\r\n" * 1000),
    "chunk extensions": (CHUNKED, b"1;" + b"a" * 500 + b"\r\n \r\n"),
    "blank lines before a request": (b"", b"\r\n" * 4096),
}


class Target:
    """A service in a process of its own."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self._port = port

    def connect(self) -> socket.socket:
        """A connection to the service."""
        return socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)

    def post(self, body: bytes, **headers: str) -> int:
        """The status that answers a POST of events."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", "/v1/events", body, named)
        status = connection.getresponse().status
        connection.close()
        return status


@contextmanager
def service() -> Iterator[Target]:
    """A service with a PostgreSQL of its own."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pqs-"))
        port = free_port()
        command = [sys.executable, "-m", "app", "serve", f"--port={port}", f"--data-dir={folder}"]
        process = stack.enter_context(Popen([*command, "--log-level=error"], stdin=DEVNULL, stdout=DEVNULL))
        stack.callback(process.terminate)
        end = time.monotonic() + PATIENCE
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            if time.monotonic() > end or process.poll() is not None:
                raise RuntimeError("the service does not start")
            time.sleep(0.1)
        target = Target(process.pid, port)
        target.post(b"{}", Content_Type="application/json; charset=utf-8")  # whatever is loaded late
        yield target


def endless(target: Target, start: bytes, again: bytes) -> Said:
    """Send endless input until the service ends the connection."""
    sent = 0
    with target.connect() as connection:
        with suppress(OSError):
            connection.sendall(start)
            while sent < MOST:
                connection.sendall(again)
                sent += len(again)
        answer = answer_of(connection)
    return f"{sent / 1024:,.0f} KiB", answer


def answer_of(connection: socket.socket) -> str:
    """The status of the next answer, or how the connection ends."""
    try:
        received = connection.recv(4096)
    except TimeoutError:
        return "none"
    except OSError:
        return "reset"
    return received[9:12].decode() if received else "closed"


def waits(target: Target, sent: bytes) -> Said:
    """Send some bytes, and then nothing."""
    with target.connect() as connection:
        connection.sendall(sent)
        return f"{len(sent)} bytes", answer_of(connection)


def never_reads(target: Target) -> Said:
    """Request much data and read nothing, until the connection is cut."""
    ask = b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n"
    with target.connect() as connection:
        connection.settimeout(1.0)
        count = 0
        with suppress(TimeoutError):
            while True:
                connection.sendall(ask * 100)
                count += 100
        connection.settimeout(PATIENCE)
        try:
            connection.sendall(ask * 10_000)
        except OSError:
            return f"{count} requests", "broken off"
    return f"{count} requests", "none"


def silent(target: Target) -> Said:
    """Many silent connections, and the cost of a request beside them."""
    with ExitStack() as stack:
        for _ in range(SILENT):
            stack.enter_context(target.connect())
        with target.connect() as connection:
            connection.sendall(READ)
            return f"{SILENT:,} connections", f"another: {answer_of(connection)}"


def slow_bodies(target: Target) -> Said:
    """Bodies of 8 MiB whose last byte never comes."""
    head = b"POST /v1/events HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    body = b" " * (8 * MIB - 1)
    with ExitStack() as stack:
        connections = [stack.enter_context(target.connect()) for _ in range(SLOW)]

        def send(connection: socket.socket) -> str:
            with suppress(OSError):
                connection.sendall(head % (8 * MIB) + body)
            connection.settimeout(15.0)  # less than a body has, more than a refusal takes
            return answer_of(connection)

        with ThreadPoolExecutor(SLOW) as pool:
            answers = list(pool.map(send, connections))
        return f"{SLOW} bodies of 8 MiB", f"503: {answers.count('503')}, held: {answers.count('none')}"


def bomb(content: bytes, media: str) -> Callable[[Target], Said]:
    """A gzip body with the highest compression ratio that gzip allows."""
    coded = gzip.compress(content)

    def send(target: Target) -> Said:
        return f"{len(coded) / 1024:,.0f} KiB", str(target.post(coded, Content_Type=media, Content_Encoding="gzip"))

    return send


def cases() -> dict[str, Callable[[Target], Said]]:
    """The cases to measure."""
    size = 100 * MIB
    return {
        **{f"{name} without end": partial(endless, start=raw[0], again=raw[1]) for name, raw in ENDLESS.items()},
        "gzip of 100 MiB of blanks as JSON": bomb(b" " * size, "application/json"),
        "gzip of 100 MiB of blank lines": bomb(b"\n" * size, "application/x-ndjson"),
        "gzip of 100 MiB in one line": bomb(b"x" * size, "application/x-ndjson"),
        "silent connections": silent,
        "bodies whose last byte does not come": slow_bodies,
        "half a header section": partial(waits, sent=READ[:-2]),
        "half a body": partial(waits, sent=CHUNKED + b"5\r\nab"),
        "nothing at all": partial(waits, sent=b""),
        "requests whose answers nobody reads": never_reads,
    }


def main() -> None:
    """Print a row for each case; memory is the growth of the service's process during it."""
    print("| sent | how much | answer | time | memory |\n| --- | --- | --- | --- | --- |", flush=True)
    made = cases()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))  # for the service too
    with service() as target:
        for case, work in made.items():
            reset_peak(target.pid)
            before, began = resident(target.pid), time.perf_counter()
            sent, said = work(target)
            took = time.perf_counter() - began
            grown = max(0, resident(target.pid, peak=True) - before) / MIB
            print(f"| {case} | {sent} | {said} | {took:,.1f} s | {grown:,.0f} MiB |", flush=True)
