"""Bytes on a connection: their answers, and the requests that are carried out (RFC 9112).

Each row sends PUTs that create a workflow each; the workflows that exist afterwards show which were carried out.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import NamedTuple

import httpx
import pytest

from tests.edge.conftest import Exchange, exchange
from tests.processes import Service

HOST = b"Host: 127.0.0.1\r\n"
GET = b"GET /livez HTTP/1.1\r\n" + HOST
CHUNKED = b"Transfer-Encoding: chunked\r\n"
_numbers = count(1)


class Put(NamedTuple):
    """A request that creates a workflow."""

    key: str
    head: bytes
    body: bytes

    @property
    def plain(self) -> bytes:
        """The request with a declared length."""
        return self.head + b"Content-Length: %d\r\n\r\n" % len(self.body) + self.body

    def having(self, fields: bytes) -> bytes:
        """The request with a declared length and more fields."""
        return self.head + fields + b"Content-Length: %d\r\n\r\n" % len(self.body) + self.body

    @property
    def chunks(self) -> bytes:
        """The request's body in chunks."""
        return b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (9, self.body[:9], len(self.body) - 9, self.body[9:])


def put(key: str, media_type: bytes) -> Put:
    """A PUT under a key that no other test uses."""
    key = f"{key}-{next(_numbers)}"
    body = {"state": {"key": key}, "provenance": {"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"}}
    head = b"PUT /v1/workflows/%s HTTP/1.1\r\nIf-None-Match: *\r\n" % key.encode() + HOST + media_type
    return Put(key, head, json.dumps(body).encode())


class Row(NamedTuple):
    """The segments sent; the statuses answered; the keys that exist then; whether the connection is closed."""

    segments: list[bytes]
    statuses: list[int]
    carried_out: Sequence[Put] = ()
    not_carried_out: Sequence[Put] = ()
    closed: bool = False
    half_close: bool = False


def _upgrading(new: Callable[[str], Put], protocol: bytes, connection: bytes = b"Upgrade") -> Row:
    """A GET that asks for another protocol, with a PUT as its body."""
    inner = new("inner")
    upgrade = b"Connection: %s\r\nUpgrade: %s\r\nContent-Length: %d\r\n\r\n" % (
        connection,
        protocol,
        len(inner.plain),
    )
    return Row([GET + upgrade, inner.plain, GET + b"\r\n"], [200, 200], not_carried_out=[inner])


def _in_body(new: Callable[[str], Put], head: bytes, status: int) -> Row:
    """A request with a PUT as its body."""
    inner = new("inner")
    return Row(
        [head + b"Content-Length: %d\r\n\r\n" % len(inner.plain) + inner.plain + GET + b"\r\n"],
        [status, 200],
        not_carried_out=[inner],
    )


def _refused(new: Callable[[str], Put], head: bytes, status: int) -> Row:
    """A head that is refused; neither its body nor later requests are carried out."""
    inner, after = new("inner"), new("after")
    return Row([head + inner.plain, after.plain], [status], not_carried_out=[inner, after], closed=True)


def rows(media_type: bytes) -> dict[str, Row]:
    """The test cases, with PUTs of this content type."""
    new = partial(put, media_type=media_type)
    return {
        "one": Row([(one := new("one")).plain], [201], [one]),
        "two in one segment": Row([(one := new("one")).plain + (two := new("two")).plain], [201, 201], [one, two]),
        "byte by byte": Row([*map(bytes, zip((one := new("bytes")).plain, strict=True))], [201], [one]),
        "the body in the next segment": Row([(one := new("late")).plain[:-40], one.plain[-40:]], [201], [one]),
        "chunks": Row(
            [(one := new("chunks")).head + CHUNKED + b"\r\n" + one.chunks + (two := new("next")).plain],
            [201, 201],
            [one, two],
        ),
        "chunks and trailers": Row(
            [
                (one := new("trailers")).head
                + CHUNKED
                + b"\r\n"
                + one.chunks[:-2]
                + b"X: y\r\n\r\n"
                + (two := new("next")).plain
            ],
            [201, 201],
            [one, two],
        ),
        "a GET with a body": _in_body(new, GET, 200),
        "a HEAD with a body": _in_body(new, GET.replace(b"GET", b"HEAD"), 200),
        "an unknown path with a body": _in_body(new, GET.replace(b"/livez", b"/nothing"), 404),
        "a websocket": _upgrading(new, b"websocket"),
        "h2c": _upgrading(new, b"h2c", b"Upgrade, HTTP2-Settings"),
        "an unknown protocol": _upgrading(new, b"foo/2"),
        "an upgrade without Connection": _upgrading(new, b"h2c", b"keep-alive"),
        "a PUT with h2c, as Java and curl send it": Row(
            [
                (one := new("h2c")).having(
                    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
                )
                + (two := new("next")).plain
            ],
            [201, 201],
            [one, two],
        ),
        "a PUT with h2c in two segments": Row(
            [(raw := (one := new("h2c")).having(b"Connection: Upgrade\r\nUpgrade: h2c\r\n"))[:-60], raw[-60:]],
            [201],
            [one],
        ),
        "chunks with h2c": Row(
            [
                (one := new("h2c")).head
                + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
                + CHUNKED
                + b"\r\n"
                + one.chunks
                + (two := new("next")).plain
            ],
            [201, 201],
            [one, two],
        ),
        "leave to send the body": Row(
            [(one := new("expect")).having(b"Expect: 100-continue\r\n")[: -len(one.body)], one.body],
            [100, 201],
            [one],
        ),
        "HTTP/1.0": Row(
            [GET.replace(b"1.1", b"1.0") + b"\r\n" + (one := new("after")).plain], [200], [], [one], closed=True
        ),
        "HTTP/1.0 without Host": Row([b"GET /livez HTTP/1.0\r\n\r\n"], [200], closed=True),
        "an unknown minor version": Row([GET.replace(b"1.1", b"1.7") + b"\r\n" + GET + b"\r\n"], [200, 200]),
        "a close": Row(
            [GET + b"Connection: close\r\n\r\n" + (one := new("after")).plain], [200], [], [one], closed=True
        ),
        "an absolute target": Row([b"GET http://127.0.0.1/livez HTTP/1.1\r\n" + HOST + b"\r\n"], [200]),
        "the service as a whole": Row([b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n" + GET + b"\r\n"], [204, 200]),
        "a half-closed connection": Row([(one := new("half")).plain], [201], [one], closed=True, half_close=True),
        "a half-closed read": Row(
            [b"GET /v1/entities HTTP/1.1\r\n" + HOST + b"\r\n"], [200], closed=True, half_close=True
        ),
        # Framing that is refused.
        "two lengths": _refused(new, GET + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        "a length with a sign": _refused(new, GET + b"Content-Length: +5\r\n\r\n", 400),
        "a length below zero": _refused(new, GET + b"Content-Length: -5\r\n\r\n", 400),
        "a length in hexadecimal digits": _refused(new, GET + b"Content-Length: 0x5\r\n\r\n", 400),
        "an empty length": _refused(new, GET + b"Content-Length:\r\n\r\n", 400),
        "a length and chunks": _refused(new, GET + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400),
        "chunks and a length": _refused(new, GET + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n", 400),
        "chunks in HTTP/1.0": _refused(new, GET.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n0\r\n\r\n", 400),
        "chunked twice": _refused(new, GET + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501),
        "chunked not last": _refused(new, GET + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 501),
        "another transfer coding": _refused(new, GET + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        "an unknown transfer coding": _refused(new, GET + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        "a chunk that is longer than it says": _refused(new, GET + CHUNKED + b"\r\n3\r\nabcd\r\n0\r\n\r\n", 400),
        "a chunk without a size": _refused(new, GET + CHUNKED + b"\r\n\r\n", 400),
        "a chunk size with 0x": _refused(new, GET + CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n", 400),
        "a chunk size without end": _refused(new, GET + CHUNKED + b"\r\n" + b"0" * 20_000, 400),
        # Heads that are refused.
        "no Host": _refused(new, b"GET /livez HTTP/1.1\r\n\r\n", 400),
        "two Hosts": _refused(new, GET + HOST + b"\r\n", 400),
        "a blank before a colon": _refused(new, GET + b"X : y\r\n\r\n", 400),
        "a folded line": _refused(new, GET + b"X: y\r\n z\r\n\r\n", 400),
        "a NUL in a value": _refused(new, GET + b"X: a\x00b\r\n\r\n", 400),
        "a CR in a value": _refused(new, GET + b"X: a\rb\r\n\r\n", 400),
        "a line without a colon": _refused(new, GET + b"X\r\n\r\n", 400),
        "a blank in the target": _refused(new, b"GET /li vez HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        "UTF-8 in the target": _refused(new, b"GET /liv\xc3\xa9z HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        "TLS": _refused(new, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", 400),
        "HTTP/2": _refused(new, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        "HTTP/0.9": _refused(new, b"GET /livez\r\n\r\n", 400),
        "HTTP/3.0": _refused(new, GET.replace(b"1.1", b"3.0") + b"\r\n", 505),
        "an unknown method": Row([GET.replace(b"GET", b"BREW") + b"\r\n"], [501], closed=True),
        "a method in lower case": Row([GET.replace(b"GET", b"get") + b"\r\n"], [501], closed=True),
        "too long a URL": _refused(new, b"GET /livez?" + b"x" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        "too large a header section": _refused(new, GET + b"X: " + b"y" * 20_000 + b"\r\n\r\n", 431),
        "too many fields": _refused(new, GET + b"X: y\r\n" * 101 + b"\r\n", 431),
        "too large trailers": _refused(new, GET + CHUNKED + b"\r\n0\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", 431),
        "what is refused after what is not": Row(
            [(one := new("good")).plain + GET + b"X : y\r\n\r\n" + (two := new("after")).plain],
            [201, 400],
            [one],
            [two],
            closed=True,
        ),
    }


WAYS = {
    "direct": b"Content-Type: application/json\r\n",
    "FastAPI's": b"Content-Type: application/json; charset=utf-8\r\n",
}
AT_ONCE = 16  # exchanges: each waits a while for an answer too many


@pytest.mark.parametrize("way", WAYS)
def test_framing(live: Service, way: str) -> None:
    """The service answers and carries out exactly the requests that were sent."""
    with live.client() as client, ThreadPoolExecutor(AT_ONCE) as pool:
        running = {case: pool.submit(_check, live, client, row) for case, row in rows(WAYS[way]).items()}
    failed = {case: error for case, each in running.items() if (error := each.exception())}
    if failed:
        raise BaseExceptionGroup(", ".join(failed), list(failed.values()))


def _check(live: Service, client: httpx.Client, row: Row) -> None:
    """Run one row on its own connection."""
    got = exchange(live, *row.segments, answers=len(row.statuses), half_close=row.half_close)
    # RFC 9110, section 10.1.1: a server that has received the body already may leave 100 out.
    assert got.statuses in (row.statuses, [each for each in row.statuses if each != 100]), got.received
    assert got.closed is row.closed, got.received
    for there, puts in ((200, row.carried_out), (404, row.not_carried_out)):
        assert [(one.key, client.get(f"/v1/workflows/{one.key}").status_code) for one in puts] == [
            (one.key, there) for one in puts
        ]
    if row.statuses[-1] >= 400:
        _is_a_problem(got)


def _is_a_problem(got: Exchange) -> None:
    """Check that a refusal of unreadable bytes is a problem document with a correlation id."""
    head = got.heads[-1]
    assert head["content-type"] == "application/problem+json"
    assert head["x-correlation-id"]
    problem = json.loads(got.received[-int(head["content-length"]) :])
    assert (problem["status"], bool(problem["detail"])) == (got.statuses[-1], True)
