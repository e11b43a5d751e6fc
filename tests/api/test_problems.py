"""Every error is a problem (RFC 9457): paths, methods, sizes, and a database that is down."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from app.concurrency.breaker import FAILURES
from tests.api.conftest import service_on
from tests.making import NODE, Json, event_json, life

MEMBERS = ["type", "title", "status", "detail", "instance"]
TITLES = {
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    503: "Service Unavailable",
}


def check(answer: httpx.Response, status: int) -> None:
    """Check that the answer is a problem of this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert list(problem)[:5] == MEMBERS
    assert (problem["type"], problem["title"], problem["status"]) == ("about:blank", TITLES[status], status)
    assert problem["detail"]


TYPED = {"Content-Type": "application/json"}
ERRORS: dict[str, tuple[str, str, Json, int]] = {
    "broken JSON": ("POST", "/v1/events", {"content": b"{", "headers": TYPED}, 400),
    "a bad cursor": ("GET", "/v1/entities?cursor=x", {}, 400),
    "no entity": ("GET", f"/v1/entities/{NODE}", {}, 404),
    "no path": ("GET", "/v2/entities", {}, 404),
    "no method": ("PATCH", f"/v1/entities/{NODE}", {}, 405),
    "too large": ("POST", "/v1/events", {"content": b" " * (8 * 1024 * 1024 + 1), "headers": TYPED}, 413),
    "no type": ("POST", "/v1/events", {"content": b"{}", "headers": {"Content-Type": "text/csv"}}, 415),
    "no event": ("POST", "/v1/events", {"json": {}}, 422),
    "no parameter": ("GET", "/v1/entities?limit=0", {}, 422),
}


@pytest.mark.parametrize("case", ERRORS)
async def test_an_error_is_a_problem(shared: httpx.AsyncClient, case: str) -> None:
    """An error has the five members of RFC 9457, its status's title from RFC 9110, and its own path as instance."""
    method, path, sent, status = ERRORS[case]
    answer = await shared.request(method, path, **sent)
    check(answer, status)
    assert answer.json()["instance"] == path.partition("?")[0]
    assert ("errors" in answer.json()) == (status == 422)


# --- Paths and methods ---------------------------------------------------------------------------------------------

UNKNOWN = [
    "/v1",
    "/v1/",
    "/v1/event",
    "/v1/events/",
    "/v1/entities/",
    f"/v1/entities/{NODE}/",
    f"/v1/entities/{NODE}/states",
    "/v1/entities/lookup/state/x",
    "/v1/state-counts/",
    "/V1/entities",
    "/v1/overdue",
    "/redoc",
    "/v1/%00",
    "/v1/%E2%82%AC",
    "/v1/a%20b",
]


@pytest.mark.parametrize("path", UNKNOWN)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_path_is_404(shared: httpx.AsyncClient, method: str, path: str) -> None:
    """A path outside the contract, even by a trailing slash, is a 404 whose instance is a valid URI."""
    answer = await shared.request(method, path)
    check(answer, 404)
    assert answer.json()["instance"] == path


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"]
ALLOWED = {
    "/": {"GET"},
    "/v1/events": {"POST"},
    "/v1/entities": {"GET"},
    "/v1/entities/lookup": {"POST"},
    f"/v1/entities/{NODE}": {"GET"},
    f"/v1/entities/{NODE}/state": {"GET"},
    "/v1/state-counts": {"GET"},
    "/v1/overdue/ack": {"GET"},
    "/v1/overdue/liveness": {"GET"},
    "/livez": {"GET"},
    "/readyz": {"GET"},
    "/metrics": {"GET"},
    "/docs": {"GET", "HEAD"},
    "/openapi.json": {"GET", "HEAD"},
}


def works_on(path: str) -> set[str]:
    """The methods of a path: OPTIONS on every path, and HEAD wherever there is GET."""
    return ALLOWED[path] | {"OPTIONS"} | ({"HEAD"} if "GET" in ALLOWED[path] else set())


@pytest.mark.parametrize(
    ("method", "path"),
    [(method, path) for path in ALLOWED for method in METHODS if method not in works_on(path)],
)
async def test_a_method_that_is_not_allowed_is_405(shared: httpx.AsyncClient, method: str, path: str) -> None:
    """A method outside the contract is a 405 that lists the path's methods in `Allow`."""
    answer = await shared.request(method, path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == works_on(path)
    if method != "HEAD":
        check(answer, 405)


# --- Sizes ---------------------------------------------------------------------------------------------------------


def padded(size: int, body: object) -> bytes:
    """A body of exactly that many bytes."""
    return json.dumps(body).encode().ljust(size)


async def in_chunks(content: bytes) -> AsyncIterator[bytes]:
    """A body whose length is not declared."""
    for begin in range(0, len(content), 1_000_000):
        yield content[begin : begin + 1_000_000]


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/events", event_json("node.heartbeat", 1)), ("/v1/entities/lookup", {"entity_ids": []})]
)
@pytest.mark.parametrize("in_chunks", [False, True])
async def test_a_body_over_the_limit_is_413(
    shared: httpx.AsyncClient, path: str, body: object, in_chunks: bool
) -> None:
    """A body of 8 MiB is read; one byte more is a 413, whether the length is declared or not."""
    for size, status in ((8 * 1024 * 1024, 200), (8 * 1024 * 1024 + 1, 413)):
        content = padded(size, body)

        async def chunks(content: bytes = content):  # type: ignore[no-untyped-def]  # httpx names no type for it
            for begin in range(0, len(content), 1_000_000):
                yield content[begin : begin + 1_000_000]

        answer = await shared.post(
            path, content=chunks() if in_chunks else content, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == status, answer.text
    check(answer, 413)
    assert "8,388,608 bytes" in answer.json()["detail"]


async def test_the_limit_can_be_set(database_url: str) -> None:
    """`PQS_MAX_BODY` sets the limit, which does not apply to NDJSON."""
    async with service_on(database_url, max_body=1024) as client:
        for media, status in (("application/json", 413), ("application/x-ndjson", 200)):
            content = padded(1025, event_json("node.heartbeat", 1))
            answer = await client.post("/v1/events", content=content, headers={"Content-Type": media})
            assert answer.status_code == status


# --- The database is down ------------------------------------------------------------------------------------------

DOWN: dict[str, tuple[str, str, Json]] = {
    "an entity": ("GET", f"/v1/entities/{NODE}", {}),
    "a state": ("GET", f"/v1/entities/{NODE}/state", {}),
    "a list": ("GET", "/v1/entities", {}),
    "a list as lines": ("GET", "/v1/entities", {"headers": {"Accept": "application/x-ndjson"}}),
    "counts": ("GET", "/v1/state-counts", {}),
    "overdue acks": ("GET", "/v1/overdue/ack", {}),
    "overdue liveness": ("GET", "/v1/overdue/liveness", {}),
    "a lookup": ("POST", "/v1/entities/lookup", {"json": {"entity_ids": [str(NODE)]}}),
    "an event": ("POST", "/v1/events", {"json": event_json("registration.initiated", 1)}),
    "an array": ("POST", "/v1/events", {"json": life()}),
    "a dry run": ("POST", "/v1/events?dry_run=true", {"json": life()}),
    "readiness": ("GET", "/readyz", {}),
}


@pytest.mark.parametrize("case", DOWN)
async def test_a_database_that_is_down_is_503(unreachable_url: str, case: str) -> None:
    """Without its database, each call that needs it is a 503 whose `Retry-After` fits the time of the outage."""
    method, path, sent = DOWN[case]
    async with service_on(unreachable_url) as client, asyncio.timeout(10):
        answer = await client.request(method, path, **sent)
        check(answer, 503)
        assert list(answer.json()) == MEMBERS
        assert answer.headers["retry-after"] == "1"
        for _ in range(FAILURES):
            answer = await client.request(method, path, **sent)
        check(answer, 503)
        assert 1 <= int(answer.headers["retry-after"]) <= 10  # it has opened a moment ago


async def test_lines_for_a_database_that_is_down_are_503(unreachable_url: str) -> None:
    """A stream whose first chunk fails gets a 503 that says that no line is committed."""
    async with service_on(unreachable_url) as client:
        content = b"\n\n" + padded(500, event_json("registration.initiated", 1))
        answer = await client.post("/v1/events", content=content, headers={"Content-Type": "application/x-ndjson"})
    check(answer, 503)
    assert list(answer.json()) == [*MEMBERS, "committed_lines"]
    assert answer.json()["committed_lines"] == 0
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/entities?limit=0", 422),
        ("GET", "/v1/entities?cursor=x", 400),
        ("GET", "/v1/entities/x", 422),
        ("GET", "/v1/nodes", 404),
        ("PUT", "/v1/events", 405),
        ("POST", "/v1/events", 415),
    ],
)
async def test_what_is_wrong_is_wrong_without_a_database(
    unreachable_url: str, method: str, path: str, status: int
) -> None:
    """Invalid requests are refused without the database, even while it is down."""
    async with service_on(unreachable_url) as client:
        check(await client.request(method, path), status)


async def test_an_open_breaker_does_not_wait(unreachable_url: str) -> None:
    """While the breaker is open, many requests are refused within the time allowed for one connection attempt."""
    async with service_on(unreachable_url) as client:
        for _ in range(FAILURES):
            await client.get("/v1/state-counts")
        began = time.monotonic()
        answers = await asyncio.gather(*(client.get("/v1/state-counts") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {503}
    assert time.monotonic() - began < 3
