"""A fuzzer of HTTP/1.1 framing: a connection carries out exactly the requests that RFC 9112 finds in its bytes.

It generates connections of a few requests each, plain ones and ones with everything that confuses framing, cuts the
bytes into segments, and sends them to a live service. Afterwards it checks which requests were carried out: each
request that writes creates a workflow of its own. Requests also hide inside bodies, where no server may find them.
The reader in `reference.py` says which workflows must exist, and which may.

    python -m tests.fuzz.framing [HOST PORT] [--seconds N] [--seed N] [--finds N]
"""

import argparse
import itertools
import json
import random
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.fuzz.reference import Request, requests_of
from tests.processes import serving

PATIENCE = 5.0  # seconds for an answer that must come
QUIET = 0.15  # seconds after which nothing more is expected of a connection that must not answer any more
SEGMENT_PAUSE = 0.002  # seconds between segments, so that the server reads each by itself
KEY = re.compile(rb"fuzz-[0-9]+-[0-9a-f]+-[0-9]+")
STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*\r\n")
CREATING = b"If-None-Match: *\r\nContent-Type: application/json\r\n"

Rng = random.Random


@dataclass(frozen=True)
class Case:
    """A connection: the pieces of each of its requests, and the places where its bytes are cut into segments."""

    requests: tuple[tuple[bytes, ...], ...]
    cuts: tuple[int, ...] = ()

    @property
    def data(self) -> bytes:
        """All bytes of the connection."""
        return b"".join(b"".join(pieces) for pieces in self.requests)

    @property
    def segments(self) -> list[bytes]:
        """The bytes cut into segments."""
        places = sorted({0, len(self.data), *(cut % (len(self.data) + 1) for cut in self.cuts)})
        return [self.data[a:b] for a, b in itertools.pairwise(places)]


@dataclass(frozen=True)
class Find:
    """A case that a service treated in a way that RFC 9112 does not allow."""

    case: Case
    why: str

    def __str__(self) -> str:
        shown = "\n".join(f"  {segment!r}" for segment in self.case.segments)
        return f"{self.why}\nsegments sent:\n{shown}"


# --- Cases ---------------------------------------------------------------------------------------------------------


class Maker:
    """Generates cases from a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = Rng(seed)
        self._prefix = f"fuzz-{seed}-{time.time_ns():x}"
        self._number = 0

    def case(self) -> Case:
        """The next case."""
        rng = self._rng
        requests = tuple(self._request() for _ in range(rng.randint(1, 4)))
        size = sum(len(piece) for pieces in requests for piece in pieces)
        cuts = [rng.randrange(size + 1) for _ in range(rng.choice([0, 0, 1, 2, 5, 20]))]
        place = 0
        for pieces in requests:  # the ends of heads and of requests are the cuts that matter
            if rng.random() < 0.5:
                cuts.append(place + sum(map(len, pieces[:-1])))
            place += sum(map(len, pieces))
            if rng.random() < 0.5:
                cuts.append(place)
        return Case(requests, tuple(cuts))

    def _request(self, depth: int = 0) -> tuple[bytes, ...]:
        """A request as request line, fields and body."""
        rng = self._rng
        writes = rng.random() < 0.6
        key = self._key()
        content = json.dumps(_commit(key)).encode() if writes else self._carried(depth)
        line = b"PUT /v1/workflows/%s HTTP/1.1\r\n" % key if writes else rng.choice(READS)
        fields = b"Host: 127.0.0.1\r\n" + (CREATING if writes else b"")
        framing, body = self._framed(content)
        odd = b"".join(rng.choice(ODDITIES) for _ in range(rng.choice([0, 0, 1, 1, 2])))
        parts = [fields, framing, odd]
        rng.shuffle(parts)
        pieces = (line, b"".join(parts), b"\r\n", body)
        if rng.random() < 0.15:
            return rng.choice(DAMAGES)(rng, pieces)
        return pieces

    def _carried(self, depth: int) -> bytes:
        """A body that contains a request."""
        rng = self._rng
        if depth or rng.random() < 0.2:
            return b""
        inner = b"".join(b"".join(self._request(depth + 1)) for _ in range(rng.randint(1, 2)))
        return rng.choice([b"", b"\r\n", b"0\r\n\r\n", b"0\r\n\r\n", b"\n"]) + inner

    def _framed(self, content: bytes) -> tuple[bytes, bytes]:
        """Framing fields and a body: the fields are mostly true, and sometimes wrong."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.45:
            return (
                (b"Content-Length: %d\r\n" % len(content), content) if content or rng.random() < 0.5 else (b"", b"")
            )
        if kind < 0.75:
            return b"Transfer-Encoding: chunked\r\n", self._chunked(content)
        length = rng.choice(LENGTHS) % {b"n": len(content), b"m": len(content) + rng.choice([-3, -1, 1, 2])}
        if kind < 0.88:
            return length, content
        coding = rng.choice(CODINGS)
        return rng.choice([coding, coding + length, length + coding]), self._chunked(content)

    def _chunked(self, content: bytes) -> bytes:
        rng = self._rng
        body = b""
        while content:
            size = rng.randint(1, len(content))
            text = rng.choice([b"%x", b"%X", b"0%x", b"%x;a", b'%x;a="b"', b"%x ;a=b", b"%x"]) % size
            if rng.random() < 0.03:
                text = (
                    rng.choice([b"0x%x", b"+%x", b"%x ", b"%x\t", b" %x", b"%xg", b"-%x", b"%x;\x00", b"%x;a=\rb"])
                    % size
                )
            end = rng.choice([b"\r\n"] * 40 + [b"\n", b"\r", b"", b"\r\n\r\n"])
            body += text + rng.choice([b"\r\n"] * 40 + [b"\n", b"\r"]) + content[:size] + end
            content = content[size:]
        trailers = rng.choice(
            [b""] * 6 + [b"X: y\r\n", b"Content-Length: 9\r\n", b"Host: b\r\n", b"X : y\r\n", b"X\r\n"]
        )
        return body + rng.choice([b"0", b"000", b"0;a=b"]) + b"\r\n" + trailers + b"\r\n"

    def _key(self) -> bytes:
        self._number += 1
        return f"{self._prefix}-{self._number}".encode()


READS = (
    b"GET /livez HTTP/1.1\r\n",
    b"HEAD /livez HTTP/1.1\r\n",
    b"GET /v1/entities/7a1c5f7e-9d53-4c58-8a3c-1f0e2d3c4b5a HTTP/1.1\r\n",
    b"POST /v1/events HTTP/1.1\r\n",
    b"POST /v1/entities/lookup HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n",
    b"GET http://127.0.0.1/livez HTTP/1.1\r\n",
    b"GET /nothing HTTP/1.1\r\n",
    b"BREW /livez HTTP/1.1\r\n",
    b"GET /livez HTTP/1.0\r\n",
    b"GET /livez HTTP/1.7\r\n",
    b"PRI * HTTP/2.0\r\n",
)
ODDITIES = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    b"Upgrade: h2c\r\n",
    b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: eA==\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: close\r\n",
    b"Connection: close, keep-alive\r\n",
    b"Proxy-Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"X: \xe4\r\n",
    b"X: a\tb\r\n",
    b"X:\r\n",
    b"X: a\r\n b\r\n",
    b"X: a\x00b\r\n",
    b"X: a\rb\r\n",
    b"X: a\n",
    b"X : a\r\n",
    b"\x00X: a\r\n",
    b"X\r\n",
    b": a\r\n",
    b"Host: 127.0.0.1\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding\x0b: chunked\r\n",
    b"Content_Length: 3\r\n",
    b"TE: trailers\r\nTrailer: X\r\n",
    b"X-Pad: " + b"p" * 3000 + b"\r\n",
)
LENGTHS = (
    b"Content-Length: %(m)d\r\n",
    b"Content-Length: %(n)d, %(n)d\r\n",
    b"Content-Length: %(n)d, %(m)d\r\n",
    b"Content-Length: %(n)d\r\nContent-Length: %(n)d\r\n",
    b"Content-Length: %(n)d\r\nContent-Length: %(m)d\r\n",
    b"Content-Length: +%(n)d\r\n",
    b"Content-Length: 00%(n)d\r\n",
    b"Content-Length: 0x%(n)x\r\n",
    b"Content-Length: %(n)d.0\r\n",
    b"Content-Length:\r\n",
    b"Content-Length: %(n)d \r\n",
    b"Content-Length:\t%(n)d\r\n",
    b"Content-Length: \x0b%(n)d\r\n",
    b"Content-Length: %(n)d\xa0\r\n",
    b"Content-Length : %(n)d\r\n",
    b"Content-Length:\r\n %(n)d\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 18446744073709551616\r\n",
    b"content-length: %(n)d\r\n",
)
CODINGS = (
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding: CHUNKED\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: identity, chunked\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked\x00\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n",
    b"Transfer-Encoding: chunked;q=1\r\n",
    b'Transfer-Encoding: "chunked"\r\n',
    b"Transfer-Encoding: , chunked\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding:\r\n",
)


def _cut_short(rng: Rng, pieces: tuple[bytes, ...]) -> tuple[bytes, ...]:
    whole = b"".join(pieces)
    return (whole[: rng.randrange(len(whole))],)


def _one_byte(rng: Rng, pieces: tuple[bytes, ...]) -> tuple[bytes, ...]:
    whole = bytearray(b"".join(pieces))
    whole[rng.randrange(len(whole))] = rng.choice(b"\x00\t\n\r :;,0a\x7f\x80\xff")
    return (bytes(whole),)


def _put_in(rng: Rng, pieces: tuple[bytes, ...]) -> tuple[bytes, ...]:
    whole = b"".join(pieces)
    place = rng.randrange(len(whole))
    return (whole[:place] + rng.choice([b"\r\n", b"\n", b"\r", b" ", b"\x00", b"0"]) + whole[place:],)


def _line_feeds(_rng: Rng, pieces: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return (*(piece.replace(b"\r\n", b"\n") for piece in pieces[:-1]), pieces[-1])


def _empty_line_before(_rng: Rng, pieces: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return (b"\r\n", *pieces)


def _odd_request_line(rng: Rng, pieces: tuple[bytes, ...]) -> tuple[bytes, ...]:
    line = rng.choice(
        [
            pieces[0].replace(b" ", b"  ", 1),
            pieces[0].replace(b" ", b"\t", 1),
            b" " + pieces[0],
            pieces[0].lower(),
            pieces[0].replace(b"HTTP/1.1", b"HTTP/1.1 "),
            pieces[0].replace(b" HTTP/1.1", b""),
            pieces[0].replace(b"/1.1", b"/1.10"),
            pieces[0].replace(b"HTTP", b"HTTPS"),
            pieces[0] + b" X: folded\r\n",
        ]
    )
    return (line, *pieces[1:])


DAMAGES: tuple[Callable[[Rng, tuple[bytes, ...]], tuple[bytes, ...]], ...] = (
    _cut_short,
    _one_byte,
    _put_in,
    _line_feeds,
    _empty_line_before,
    _odd_request_line,
)


# --- What has to come of a case ------------------------------------------------------------------------------------


def _commit(key: bytes) -> dict[str, Any]:
    return {
        "state": {"number": int(key.rpartition(b"-")[2])},
        "provenance": {"effect_id": "fuzz", "timestamp": "2026-01-01T00:00:00Z"},
    }


def _commits(request: Request) -> tuple[bytes, Any] | None:
    """The key of the workflow that a request creates, and the state in its body; None for any other request."""
    target = request.target.removeprefix(b"http://127.0.0.1")
    key = target.removeprefix(b"/v1/workflows/")
    if request.method != b"PUT" or key == target or not KEY.fullmatch(key):
        return None
    fields = dict(request.fields)
    if fields.get(b"if-none-match") != b"*" or fields.get(b"content-type") != b"application/json":
        return None
    try:
        return key, json.loads(request.body)
    except ValueError:
        return None


def _creates(request: Request) -> bytes | None:
    """The key of the workflow that an undamaged request creates; None for any other request."""
    commits = _commits(request)
    return commits[0] if commits is not None and commits[1] == _commit(commits[0]) else None


def _is_plain(request: Request) -> bool:
    """Whether a service has no reason to refuse this request, and so to close its connection."""
    if request.version != (1, 1) or request.has(b"expect") or request.has(b"proxy-connection"):
        return False
    return _creates(request) is not None or (request.method in {b"GET", b"HEAD"} and request.target == b"/livez")


def expected(case: Case) -> tuple[list[bytes | None], dict[bytes, list[Any]]]:
    """The requests that must be carried out, each as the key that it creates, if any; and all keys that may exist.

    The latter have the states that they may have: a damaged body may still be a commit.
    """
    strict = requests_of(case.data, lenient=False)
    plain = [_creates(request) for request in itertools.takewhile(_is_plain, strict)]
    may: dict[bytes, list[Any]] = {}
    for request in requests_of(case.data, lenient=True):
        if (commits := _commits(request)) is not None and isinstance(commits[1], dict):
            may.setdefault(commits[0], []).append(commits[1].get("state"))
    return plain, may


# --- The service ---------------------------------------------------------------------------------------------------


class Target:
    """A live service."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._asking = HTTPConnection(host, port, timeout=PATIENCE)
        self._earlier: set[bytes] = set()  # keys of earlier cases: a damaged key may be one of them

    def check(self, case: Case) -> Find | None:
        """Send a case; returns what went against RFC 9112."""
        plain, may = expected(case)
        must = {key for key in plain if key is not None}
        answers = self._send(case, len(plain))
        end = time.monotonic() + PATIENCE
        while True:  # what is carried out may come to its end after the connection has
            states = {key: self._state_of(key) for key in sorted({*KEY.findall(case.data)} - self._earlier)}
            there = {key: state for key, state in states.items() if state is not None}
            if must <= there.keys() or time.monotonic() > end:
                break
        self._earlier |= there.keys()
        if others := {key: state for key, state in there.items() if state not in may.get(key, [])}:
            return Find(case, f"carried out, and not sent as requests: {others}; answers: {answers}")
        if must - there.keys():
            return Find(case, f"sent, and not carried out: {sorted(must - there.keys())}; answers: {answers}")
        due = [b"200" if key is None else b"201" for key in plain]
        if answers[: len(due)] != due[: len(answers)]:
            return Find(case, f"the answers {answers} are not those of the requests, which are {due}")
        return None

    def close(self) -> None:
        """Close the connection that checks the results of cases."""
        self._asking.close()

    def _send(self, case: Case, answers: int) -> list[bytes]:
        """The statuses received; waits for as many as must come."""
        received = b""
        with socket.create_connection(self._address, timeout=PATIENCE) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(ConnectionError):  # it was closed, and that is to be seen by what can be read
                for segment in case.segments:
                    connection.sendall(segment)
                    time.sleep(SEGMENT_PAUSE)
            with suppress(ConnectionError, TimeoutError):
                while True:
                    connection.settimeout(PATIENCE if len(_finals(received)) < answers else QUIET)
                    piece = connection.recv(65_536)
                    if not piece:
                        break
                    received += piece
        return _finals(received)

    def _state_of(self, key: bytes) -> Any:
        """The state of a workflow; None if it does not exist."""
        for attempt in (1, 2):  # a connection that was idle may have been closed
            try:
                self._asking.request("GET", f"/v1/workflows/{key.decode()}")
                answer = self._asking.getresponse()
                body = answer.read()
            except OSError:
                self._asking.close()
                if attempt == 2:
                    raise
                continue
            if answer.status not in {200, 404}:
                raise AssertionError(f"{key!r}: {answer.status} {body!r}")
            return json.loads(body)["state"] if answer.status == 200 else None
        return None


def _finals(received: bytes) -> list[bytes]:
    return [status for status in STATUS.findall(received) if not status.startswith(b"1")]


def shrunk(target: Target, find: Find) -> Find:
    """The find with fewer requests and cuts, as long as it still fails, and without keys that exist already."""
    for number in range(len(find.case.requests)):
        fewer = find.case.requests[:number] + find.case.requests[number + 1 :]
        if fewer and (smaller := target.check(_renamed(replace(find.case, requests=fewer), number))):
            return shrunk(target, smaller)
    return find


def _renamed(case: Case, number: int) -> Case:
    """The case with unused keys of the same length, which keeps all framing."""
    fresh = f"{time.time_ns() + number:x}".encode()
    rename = re.compile(rb"(fuzz-[0-9]+-)[0-9a-f]{%d}" % len(fresh))
    return replace(
        case,
        requests=tuple(tuple(rename.sub(rb"\g<1>" + fresh, piece) for piece in pieces) for pieces in case.requests),
    )


def fuzz(host: str, port: int, *, seconds: float, seed: int, most_finds: int = 1) -> tuple[int, list[Find]]:
    """The number of cases sent within a time, and the finds; ends early after this many finds."""
    target, maker = Target(host, port), Maker(seed)
    end = time.monotonic() + seconds
    finds: list[Find] = []
    count = 0
    try:
        while time.monotonic() < end and len(finds) < most_finds:
            count += 1
            if find := target.check(maker.case()):
                finds.append(shrunk(target, find))
    finally:
        target.close()
    return count, finds


def main() -> int:
    """Fuzz the service named on the command line; status 1 if there is a find."""
    parser = argparse.ArgumentParser(description="Fuzz the HTTP/1.1 framing of a live service.")
    parser.add_argument("host", nargs="?", help="of the service; without it, one is started")
    parser.add_argument("port", nargs="?", type=int)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--finds", type=int, default=1, help="after how many to stop")
    given = parser.parse_args()
    with ExitStack() as stack:
        host, port = given.host, given.port
        if host is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pqs-")))
            service = stack.enter_context(
                serving(folder, data_dir=folder / "data", log_level="error", allowed_hosts="*")
            )
            host, port = "127.0.0.1", urlsplit(service.url).port
        count, finds = fuzz(host, port, seconds=given.seconds, seed=given.seed, most_finds=given.finds)
    for find in finds:
        print(f"{find}\n")  # noqa: T201
    print(f"seed {given.seed}: {count} connections, {len(finds)} finds")  # noqa: T201
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
