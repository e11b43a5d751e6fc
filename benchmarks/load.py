"""The load: wrk, pgbench, streams of lines, and a client that sends one request after the other."""

import http.client
import json
import re
import select
import shutil
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from app.embedded.wheel import binary
from benchmarks.machine import BenchmarkError, Machine
from benchmarks.rows import Source

HERE = Path(__file__).resolve().parent
NDJSON = "application/x-ndjson"
PER_SECOND = 200_000  # requests that a load sends at most, and so the stamps that it gets
REQUEST_TIMEOUT = 60.0  # seconds
STREAM_TIMEOUT = 1800.0  # seconds without a byte


class Load(NamedTuple):
    """The results of a load: answers a second, latencies in milliseconds, and the number of answers."""

    rate: float
    p50: float
    p99: float
    answers: int


def need_wrk() -> str:
    """The path of wrk. Raises BenchmarkError, which says how to get it, if it is missing."""
    found = shutil.which("wrk")
    if found is None:
        raise BenchmarkError("wrk is missing, which sends the requests: `apt-get install wrk`, `dnf install wrk`")
    return found


def wrk(
    machine: Machine, port: int, what: str, source: Source, *, connections: int, seconds: float, token: str = ""
) -> Load:
    """Send `lookup`, `post`, `commit` or `trigger` requests for `seconds`, with a bearer token if one is given.

    Raises BenchmarkError if one fails.
    """
    whole = max(1, round(seconds))  # wrk accepts only whole seconds
    stamp = source.stamps(whole * PER_SECOND)
    command = [need_wrk(), "--threads", "1", "--connections", str(connections), "--duration", f"{whole}s"]
    command += ["--timeout", "10s", "--script", str(HERE / "requests.lua"), f"http://127.0.0.1:{port}/", "--"]
    said = machine.run([*command, what, str(source.rows), str(stamp), token], timeout=whole + REQUEST_TIMEOUT)
    told = json.loads(said.splitlines()[-1])
    if told["failed"] or not told["answers"]:
        raise BenchmarkError(f"{told['failed']} of {told['answers']} {what} requests failed:\n{said}")
    rate = told["answers"] / told["microseconds"] * 1_000_000
    return Load(rate, told["p50"] / 1000, told["p99"] / 1000, told["answers"])


def pgbench(machine: Machine, database: str, script: str, source: Source, *, clients: int, seconds: float) -> Load:
    """The load directly on the database: prepared statements, one transaction each."""
    source.catch_up()
    whole = max(1, round(seconds))
    command: list[str | Path] = [binary("pgbench"), "--no-vacuum", "--protocol=prepared"]
    command += [f"--client={clients}", "--jobs=2", f"--time={whole}", f"--define=rows={source.rows}"]
    command += ["--define=n=-1", f"--file={HERE / 'peers' / 'pgbench' / script}.sql", f"--host={machine.socket_dir}"]
    said = machine.run([*command, "--username=postgres", database], timeout=whole + REQUEST_TIMEOUT)
    rate = re.search(r"tps = ([\d.]+)", said)
    answers = re.search(r"actually processed: (\d+)", said)
    latency = re.search(r"latency average = ([\d.]+)", said)
    if rate is None or answers is None or latency is None:
        raise BenchmarkError(f"pgbench said:\n{said}")
    return Load(float(rate[1]), float(latency[1]), float("nan"), int(answers[1]))


def stream_in(port: int, lines: Iterable[bytes], length: int) -> dict[str, int]:
    """Send lines of `length` bytes in all in one request; returns their summary."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=STREAM_TIMEOUT)
    try:
        headers = {"Content-Type": NDJSON, "Content-Length": str(length)}
        connection.request("POST", "/v1/events", body=lines, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise BenchmarkError(f"a stream was answered with {answer.status}: {body[:500].decode()}")
    summary: dict[str, int] = json.loads(body.splitlines()[-1])["summary"]
    return summary


def stream_out(port: int, stopped: threading.Event | None = None) -> int:
    """Read all rows as a stream, or until an event is set; returns their number."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=STREAM_TIMEOUT)
    try:
        connection.request("GET", "/v1/entities", headers={"Accept": NDJSON})
        answer = connection.getresponse()
        lines = 0
        while (piece := answer.read(1 << 18)) and not (stopped and stopped.is_set()):
            lines += piece.count(b"\n")
    finally:
        connection.close()
    if answer.status != 200:
        raise BenchmarkError(f"a stream was answered with {answer.status}")
    return lines


class Answer(NamedTuple):
    """One answer, and its latency in milliseconds."""

    status: int
    etag: str | None
    body: bytes
    milliseconds: float

    def json(self) -> dict[str, object]:
        """The body as JSON. Raises BenchmarkError if the status is not 200."""
        if self.status != 200:
            raise BenchmarkError(f"answered with {self.status}: {self.body[:500].decode()}")
        read: dict[str, object] = json.loads(self.body)
        return read


class Client:
    """One connection that stays open, with almost no work of its own between request and answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open()

    def _open(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=REQUEST_TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def get(self, path: str) -> Answer:
        """Send a GET of a path, on a new connection if the idle one was closed."""
        if select.select([self._socket], [], [], 0)[0]:  # no answer is expected, so the connection was closed
            self._socket.close()
            self._open()
        return self._ask(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())

    def post(self, path: str, body: bytes) -> Answer:
        """Send a JSON body."""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        return self._ask(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def _ask(self, request: bytes) -> Answer:
        began = time.perf_counter()
        self._socket.sendall(request)
        received = bytearray()
        end = missing = -1
        while missing:
            piece = self._socket.recv(1 << 18)
            if not piece:
                raise BenchmarkError("the connection was closed before the answer was complete")
            received += piece
            if end < 0:
                end = received.find(b"\r\n\r\n")
                if end < 0:
                    continue
                length = re.search(rb"\r\ncontent-length: *(\d+)", received[:end], re.IGNORECASE)
                if length is None:
                    raise BenchmarkError("an answer without a length")
                size = end + 4 + int(length[1])
            missing = size - len(received)
        took = (time.perf_counter() - began) * 1000
        head = bytes(received[:end])
        etag = re.search(rb"\r\netag: *(\S+)", head, re.IGNORECASE)
        return Answer(int(head[9:12]), etag[1].decode() if etag else None, bytes(received[end + 4 :]), took)
