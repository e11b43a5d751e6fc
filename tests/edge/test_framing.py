"""Bytes on a connection: which answers come, and which requests are carried out (RFC 9112).

A row sends PUTs that each create a workflow of its own. What was carried out is which of them are there afterwards.
"""

import json
from collections.abc import Callable, Sequence
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
        """With its length."""
        return self.head + b"Content-Length: %d\r\n\r\n" % len(self.body) + self.body

    def having(self, fields: bytes) -> bytes:
        """With its length and more fields."""
        return self.head + fields + b"Content-Length: %d\r\n\r\n" % len(self.body) + self.body

    @property
    def chunks(self) -> bytes:
        """Its body in chunks."""
        return b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (9, self.body[:9], len(self.body) - 9, self.body[9:])


def put(key: str, media_type: bytes) -> Put:
    """One, under a key that no other test has."""
    key = f"{key}-{next(_numbers)}"
    body = {"state": {"key": key}, "provenance": {"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"}}
    head = b"PUT /v1/workflows/%s HTTP/1.1\r\nIf-None-Match: *\r\n" % key.encode() + HOST + media_type
    return Put(key, head, json.dumps(body).encode())


class Row(NamedTuple):
    """What is sent, in segments; the statuses that answer; the keys that are there then; whether it is closed."""

    segments: list[bytes]
    statuses: list[int]
    carried_out: Sequence[Put] = ()
    not_carried_out: Sequence[Put] = ()
    closed: bool = False
    half_close: bool = False


def _upgrading(new: Callable[[str], Put], protocol: bytes, connection: bytes = b"Upgrade") -> Row:
    """A GET that would rather speak another protocol, with a PUT for its body."""
    inner = new("inner")
    upgrade = b"Connection: %s\r\nUpgrade: %s\r\nContent-Length: %d\r\n\r\n" % (
        connection,
        protocol,
        len(inner.plain),
    )
    return Row([GET + upgrade, inner.plain, GET + b"\r\n"], [200, 200], not_carried_out=[inner])


def _in_body(new: Callable[[str], Put], head: bytes, status: int) -> Row:
    """A request whose body is a PUT."""
    inner = new("inner")
    return Row(
        [head + b"Content-Length: %d\r\n\r\n" % len(inner.plain) + inner.plain + GET + b"\r\n"],
        [status, 200],
        not_carried_out=[inner],
    )


def _refused(new: Callable[[str], Put], head: bytes, status: int) -> Row:
    """A head that is refused; neither what follows as its body nor what is sent later is carried out."""
    inner, after = new("inner"), new("after")
    return Row([head + inner.plain, after.plain], [status], not_carried_out=[inner, after], closed=True)


def rows(media_type: bytes) -> dict[str, Row]:
    """The rows, with PUTs of this content type."""
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
        "an unknown path with a body": _in_body(new, GET.replace(b"/livez", b"/nothing"), 404),
        "an upgrade without Connection": _upgrading(new, b"h2c", b"keep-alive"),
        "leave to send the body": Row(
            [(one := new("expect")).having(b"Expect: 100-continue\r\n")[: -len(one.body)], one.body],
            [100, 201],
            [one],
        ),
        "HTTP/1.0": Row(
            [GET.replace(b"1.1", b"1.0") + b"\r\n" + (one := new("after")).plain], [200], [], [one], closed=True
        ),
        "HTTP/1.0 without Host": Row([b"GET /livez HTTP/1.0\r\n\r\n"], [200], closed=True),
        "a close": Row(
            [GET + b"Connection: close\r\n\r\n" + (one := new("after")).plain], [200], [], [one], closed=True
        ),
        "an absolute target": Row([b"GET http://127.0.0.1/livez HTTP/1.1\r\n" + HOST + b"\r\n"], [200]),
        "a half-closed connection": Row([(one := new("half")).plain], [201], [one], closed=True, half_close=True),
    }


WAYS = {
    "direct": b"Content-Type: application/json\r\n",
    "FastAPI's": b"Content-Type: application/json; charset=utf-8\r\n",
}
ROWS = {(case, way): row for way, media_type in WAYS.items() for case, row in rows(media_type).items()}


@pytest.mark.parametrize(("case", "way"), ROWS)
def test_framing(live: Service, case: str, way: str) -> None:
    """The answers are those of the requests that were sent; these are carried out, and nothing else is."""
    row = ROWS[case, way]
    got = exchange(live, *row.segments, answers=len(row.statuses), half_close=row.half_close)
    assert got.statuses == row.statuses, got.received
    assert got.closed is row.closed
    with httpx.Client(base_url=live.url) as client:
        for there, puts in ((200, row.carried_out), (404, row.not_carried_out)):
            assert [(one.key, client.get(f"/v1/workflows/{one.key}").status_code) for one in puts] == [
                (one.key, there) for one in puts
            ]
    if row.statuses[-1] >= 400:
        _is_a_problem(got)


def _is_a_problem(got: Exchange) -> None:
    """What cannot be read is refused by a problem document with a correlation id, too."""
    head = got.heads[-1]
    assert head["content-type"] == "application/problem+json"
    assert head["x-correlation-id"]
    problem = json.loads(got.received[-int(head["content-length"]) :])
    assert (problem["status"], bool(problem["detail"])) == (got.statuses[-1], True)
