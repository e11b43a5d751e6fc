"""HEAD and OPTIONS on every path."""

from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

from app.api.asgi import Receive, Scope, Send
from app.api.methods import Allowed, Methods
from app.api.origins import Origins
from app.main import create_app
from app.settings import read_settings
from tests.api.asking import ask
from tests.making import NODE

ORIGINS = Origins.of("https://console.example")
NO_ORIGINS = Origins()


def service() -> FastAPI:
    """An application with routes."""
    return create_app(read_settings({"database_url": "postgresql:///"}))


ALLOWED = Allowed(service())


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v1/events", "OPTIONS, POST"),
        ("/v1/entities", "GET, HEAD, OPTIONS"),
        ("/v1/entities/lookup", "OPTIONS, POST"),
        (f"/v1/entities/{NODE}", "GET, HEAD, OPTIONS"),
        ("/v1/workflows/a/b", "GET, HEAD, OPTIONS, PUT"),
        ("/v1/dead-letters/1", "DELETE, GET, HEAD, OPTIONS"),
        ("/v1/dead-letters/1/retry", "OPTIONS, POST"),
        ("/livez", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
        ("*", "DELETE, GET, HEAD, OPTIONS, POST, PUT"),
        ("/v1/nothing", None),
    ],
)
def test_allowed_methods(path: str, allow: str | None) -> None:
    """`Allow` lists the methods of all routes of a path; for `*`, the methods of the whole service."""
    assert ALLOWED(path) == allow
    assert ALLOWED(path) == allow


@pytest.mark.parametrize("path", ["*", "/v1/events", "/v1/entities", "/livez"])
async def test_options(path: str) -> None:
    """A plain OPTIONS request gets 204 with `Allow` and no other header."""
    answer = await ask(Methods(service(), ALLOWED, ORIGINS), "OPTIONS", path)
    assert (answer.status, answer.headers, answer.body) == (204, [(b"allow", (ALLOWED(path) or "").encode())], b"")


async def test_a_preflight_of_a_listed_origin() -> None:
    """A preflight tells a browser whether the page may send its request; the request itself is not carried out."""
    asked = [
        ("Origin", "https://console.example"),
        ("Access-Control-Request-Method", "PUT"),
        ("Access-Control-Request-Headers", "if-match"),
    ]
    answer = await ask(Methods(service(), ALLOWED, ORIGINS), "OPTIONS", "/v1/workflows/w", asked)
    assert answer.status == 204
    assert answer.header("access-control-allow-methods") == "GET, HEAD, OPTIONS, PUT"
    assert answer.header("access-control-allow-headers") == "if-match"
    refused = await ask(Methods(service(), ALLOWED, NO_ORIGINS), "OPTIONS", "/v1/workflows/w", asked)
    assert refused.headers == [(b"allow", b"GET, HEAD, OPTIONS, PUT")]


@pytest.mark.parametrize(("path", "granted"), [("/v1/events", "console.example"), ("/v1/entities", None)])
async def test_the_handshake_of_a_sender_of_cloudevents(path: str, granted: str | None) -> None:
    """A listed sender of CloudEvents is granted delivery to the path of events only."""
    asked = [("WebHook-Request-Origin", "console.example"), ("WebHook-Request-Rate", "120")]
    answer = await ask(Methods(service(), ALLOWED, ORIGINS), "OPTIONS", path, asked)
    assert (answer.status, answer.header("webhook-allowed-origin")) == (204, granted)


sent: list[int] = []  # the pieces of the stream that were asked for
small = FastAPI()


@small.get("/row")
async def row() -> Response:
    """An answer with an ETag."""
    return Response(b'{"a":1}', headers={"ETag": '"7"'}, media_type="application/json")


@small.get("/stream")
async def stream() -> Response:
    """An endless answer."""

    async def pieces() -> AsyncIterator[bytes]:
        while True:
            sent.append(1)
            yield b"line\n"

    return StreamingResponse(pieces(), media_type="application/x-ndjson")


HEAD = Methods(small, Allowed(small), NO_ORIGINS)


async def test_head_is_get_without_the_body() -> None:
    """HEAD has the status and headers of GET, including the length of the body that GET would send."""
    got, head = await ask(HEAD, "GET", "/row"), await ask(HEAD, "HEAD", "/row")
    assert (head.status, head.headers) == (got.status, got.headers)
    assert (head.header("content-length"), head.body) == ("7", b"")
    assert [message["type"] for message in head.messages] == ["http.response.start", "http.response.body"]
    assert head.scope["method"] == "HEAD"
    assert head.scope["route"].path == "/row"


async def test_head_of_a_stream_ends_at_once() -> None:
    """HEAD of a stream makes only the first piece, and has no length, which is not known."""
    sent.clear()
    head = await ask(HEAD, "HEAD", "/stream")
    assert (head.status, head.header("content-length"), head.body) == (200, None, b"")
    assert len(sent) <= 2


@pytest.mark.parametrize("path", ["/nothing", "/nothing/else"])
async def test_head_of_an_error(path: str) -> None:
    """HEAD of an error has its status and no body."""
    head = await ask(HEAD, "HEAD", path)
    assert (head.status, head.body) == (404, b"")


async def test_a_fault_is_handed_on() -> None:
    """An exception raised before the answer begins passes through to the outer layers."""

    async def fault(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise KeyError

    for method in ("GET", "HEAD"):
        with pytest.raises(KeyError):
            await ask(Methods(fault, ALLOWED, NO_ORIGINS), method, "/livez")
