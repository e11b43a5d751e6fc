"""Requests that the protocol refuses: each answer is a problem with a correlation id, logged and counted once."""

import json
from uuid import UUID

import pytest

from app.runtime import protocol
from tests.api.conftest import Access
from tests.connections import GIVEN, LOOP, Client, Served, get, post

COUNT = "http_server_request_duration_seconds_count"
UNKNOWN = COUNT + '{{http_request_method="other",http_response_status_code="{}",http_route="unknown"}}'
HOST = "Host: service\r\n"
REFUSED: dict[str, tuple[int, str]] = {
    "no HTTP": (400, "hello\r\n\r\n"),
    "an unreadable URL": (400, f"GET /ä HTTP/1.1\r\n{HOST}\r\n"),
    "no host": (400, "GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, f"GET / HTTP/1.1\r\n{HOST}{HOST}\r\n"),
    "a long URL": (414, f"GET /{'x' * 20_000} HTTP/1.1\r\n{HOST}\r\n"),
    "a long header section": (431, f"GET / HTTP/1.1\r\n{HOST}X: {'x' * 20_000}\r\n\r\n"),
    "an unknown method": (501, f"BREW / HTTP/1.1\r\n{HOST}\r\n"),
    "an unknown coding": (501, f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: gzip\r\n\r\n"),
    "an unknown version": (505, f"GET / HTTP/3.0\r\n{HOST}\r\n"),
    "half a head": (408, f"GET / HTTP/1.1\r\n{HOST}"),
}


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of the service."""
    return LOOP


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time that the server waits for bytes."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.1)


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refusal_is_a_problem(hot: Served, raw: Client, access: Access, case: str) -> None:
    """A refusal has the fields of RFC 9457 and closes the connection; its log line carries its correlation id."""
    status, sent = REFUSED[case]
    before = hot.counted()
    await raw.send(sent.encode())
    answer = await raw.answer()
    its_id = answer.header("x-correlation-id")
    assert (answer.status, answer.header("connection")) == (status, "close")
    assert answer.header("content-type") == "application/problem+json"
    problem = json.loads(answer.body)
    assert (problem["type"], problem["status"], set(problem)) == (
        "about:blank",
        status,
        {"type", "title", "status", "detail", "instance"},
    )
    assert await access.next() == (its_id, "-", "-", status)
    assert str(UUID(its_id)) == its_id
    assert (hot.counted() - before)[UNKNOWN.format(status)] == 1
    assert await raw.rest() == b""


async def test_a_refusal_returns_the_id(raw: Client) -> None:
    """A refusal carries the client's correlation id if the header section could be parsed."""
    await raw.send(f"BREW / HTTP/1.1\r\n{HOST}X-Correlation-ID: {GIVEN}\r\n\r\n".encode())
    assert (await raw.answer()).header("x-correlation-id") == GIVEN


ILLEGIBLE = {
    "a field": "GET / HTTP/1.1\r\n{0}X : y\r\n\r\n",
    "a control character": "GET / HTTP/1.1\r\n{0}X: \x7f\r\n\r\n",
    "a length": "GET / HTTP/1.1\r\n{0}Content-Length: x\r\n\r\n",
    "a transfer coding": "GET / HTTP/1.1\r\n{0}Transfer-Encoding: x\r\n\r\n",
    "too many fields": "GET / HTTP/1.1\r\n{0}" + "X: y\r\n" * 100 + "\r\n",
    "too long a field": "GET / HTTP/1.1\r\n{0}X: " + "y" * 20_000 + "\r\n\r\n",
    "the URL": "GET /ä HTTP/1.1\r\n{0}\r\n",
    "the version": "GET / HTTP/3.0\r\n{0}\r\n",
    "the request line": "GET  / HTTP/1.1\r\n{0}\r\n",
}


@pytest.mark.parametrize("case", ILLEGIBLE)
async def test_a_refusal_returns_the_id_beside_what_cannot_be_read(raw: Client, case: str) -> None:
    """The client's correlation id is returned even if another field is unreadable or the head is too large."""
    await raw.send(ILLEGIBLE[case].format(f"{HOST}X-Correlation-ID: {GIVEN}\r\n").encode())
    answer = await raw.answer()
    assert answer.status >= 400
    assert answer.header("x-correlation-id") == GIVEN


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
async def test_a_body_that_does_not_come(hot: Served, raw: Client, access: Access, content_type: str) -> None:
    """A body that does not arrive is a 408 on every path; log and metrics count one request whose client left."""
    before = hot.counted()
    await raw.send(post({}, f"Content-Type: {content_type}").raw()[:-1])
    answer = await raw.answer()
    assert (answer.status, answer.header("content-type")) == (408, "application/problem+json")
    assert (await access.next())[1:] == ("POST", "/v1/events", 499)
    counted = {name: number for name, number in (hot.counted() - before).items() if name.startswith(COUNT)}
    series = '{http_request_method="POST",http_response_status_code="499",http_route="/v1/events"}'
    assert counted == {COUNT + series: 1}


async def test_an_upgrade_is_ignored(hot: Served, raw: Client) -> None:
    """The body of a request with `Upgrade` stays a body: no request in it is carried out, and framing stays right."""
    inner = b"PUT /v1/workflows/smuggled HTTP/1.1\r\nHost: service\r\nContent-Length: 2\r\n\r\n{}"
    for upgrade in ("websocket", "h2c"):
        ask = get("/livez", "Connection: Upgrade", f"Upgrade: {upgrade}", f"Content-Length: {len(inner)}")
        await raw.send(ask.raw(), inner)
        assert (await raw.answer()).status == 200
        assert (await raw.ask(get("/v1/workflows/smuggled"))).status == 404
    assert len(hot.ways) == 4
