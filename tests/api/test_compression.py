"""Content codings of requests and answers."""

import gzip
import zlib
from collections.abc import AsyncIterator, Iterable, MutableMapping
from random import Random
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from app.api.asgi import Headers, Receive, Scope, Send
from app.api.bodies import read_body
from app.api.compression import (
    FREE_BYTES,
    PIECE,
    ContentCoding,
    Decoded,
    accepts_gzip,
    coded_etag,
    is_codable,
    is_coded,
    plain_etags,
)
from app.errors import TooLargeError, UnreadableError, UnsupportedCodingError
from tests.api.asking import Answered, ask

TEXT = b'{"event_id": "0b7e7d0e-5c1d-4c2b-9a57-3d6f4b8c1d01"}\n' * 100
NOISE = Random(1).randbytes(100_000)
NDJSON = "application/x-ndjson"
GZIP = [("Accept-Encoding", "gzip, deflate, br")]

# --- Requests ------------------------------------------------------------------------------------------------------


def receiving(pieces: Iterable[bytes]) -> Decoded:
    """A decoder of a body that arrives in these pieces."""
    messages = iter([*pieces, None])

    async def receive() -> MutableMapping[str, Any]:
        piece = next(messages)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    return Decoded(receive)


async def decoded(pieces: Iterable[bytes]) -> bytes:
    """The whole decoded body; also checks that no decoded piece is larger than PIECE."""
    receive, body = receiving(pieces), b""
    while True:
        message = await receive()
        assert len(message["body"]) <= PIECE
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


def cut(data: bytes, size: int) -> list[bytes]:
    """Data cut into pieces."""
    return [data[place : place + size] for place in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 1000, 10**9])
@pytest.mark.parametrize("body", [b"", b"x", TEXT, NOISE], ids=["nothing", "a byte", "text", "noise"])
async def test_a_body_is_decoded(body: bytes, size: int) -> None:
    """However the body is cut into pieces, decoding gives the original bytes."""
    assert await decoded(cut(gzip.compress(body), size)) == body


async def test_members_follow_each_other() -> None:
    """A gzip body may have several members, as `cat a.gz b.gz` makes it; they decode to one text."""
    for size in (1, 10**9):
        assert (
            await decoded(cut(gzip.compress(b"one,") + gzip.compress(b"two") + gzip.compress(b""), size))
            == b"one,two"
        )


async def test_a_body_without_bytes_is_empty() -> None:
    """A body without bytes decodes to an empty body, whatever its coding."""
    assert await decoded([]) == b""


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        gzip.compress(TEXT, mtime=0)[:-1],
        gzip.compress(TEXT, mtime=0)[:20],
        gzip.compress(TEXT, mtime=0) + b"rest",
        zlib.compress(TEXT),
        gzip.compress(TEXT, mtime=0)[:-8] + bytes(8),
        b"\x1f\x8b",
    ],
)
async def test_what_is_not_gzip_is_unreadable(body: bytes) -> None:
    """A body that is not gzip, is truncated or has a wrong checksum is refused."""
    for size in (1, 10**9):
        with pytest.raises(UnreadableError):
            await decoded(cut(body, size))


async def test_a_client_that_is_gone_is_told_of() -> None:
    """A disconnect of the client is passed on unchanged."""

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.disconnect"}

    assert await Decoded(receive)() == {"type": "http.disconnect"}


async def test_after_the_body_comes_what_comes() -> None:
    """An application that goes on receiving after the body gets the client's disconnect."""
    messages: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": gzip.compress(b"x"), "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop(0)

    decoded = Decoded(receive)
    assert [(await decoded())["type"] for _ in range(3)] == ["http.request", "http.request", "http.disconnect"]


async def test_a_bomb_is_refused() -> None:
    """A body that decodes to a thousand times its size is refused soon after it exceeds the free room."""
    receive = receiving(cut(gzip.compress(bytes(10 * FREE_BYTES)), 1000))
    sizes: list[int] = []

    async def read() -> None:
        while True:
            sizes.append(len((await receive())["body"]))

    with pytest.raises(TooLargeError):
        await read()
    assert sum(sizes) <= FREE_BYTES + PIECE


@pytest.mark.parametrize(
    ("values", "coded"),
    [
        ([], False),
        (["gzip"], True),
        (["GZip"], True),
        (["x-gzip"], True),
        (["identity"], False),
        ([""], False),
        (["identity, gzip"], True),
        (["identity", "gzip"], True),
    ],
)
def test_codings_that_are_read(values: list[str], coded: bool) -> None:
    """The service reads gzip, by both of its names, and identity, which means no coding."""
    assert is_coded([(b"content-encoding", value.encode()) for value in values]) is coded


@pytest.mark.parametrize(
    "values", [["br"], ["deflate"], ["gzip, gzip"], ["gzip", "gzip"], ["zstd"], ["gzip;q=1"], ["aes128gcm, gzip"]]
)
def test_codings_that_are_not(values: list[str]) -> None:
    """Any other coding, or two codings on top of each other, is refused."""
    with pytest.raises(UnsupportedCodingError):
        is_coded([(b"content-encoding", value.encode()) for value in values])


# --- Answers -------------------------------------------------------------------------------------------------------

app = FastAPI()
LARGE = b'{"items":[' + b",".join(b'"%d"' % number for number in range(20_000)) + b"]}"


@app.post("/v1/events")
async def echo(request: Request) -> Response:
    """The request's body, as the application read it."""
    body = await read_body(request, 10**6)
    told = {
        "X-Length": request.headers.get("content-length", ""),
        "X-Coding": request.headers.get("content-encoding", ""),
    }
    return Response(body, headers=told, media_type=request.headers.get("content-type"))


@app.get("/v1/entities")
@app.get("/v1/entities/{entity_id}")
async def listed(
    size: int = 10**6, *, stream: bool = False, etag: str = "", media: str = "application/json"
) -> Response:
    """An answer of some size, whole or in two pieces."""
    headers = {"Vary": "Accept"} | ({"ETag": etag} if etag else {})
    if stream:

        async def pieces() -> AsyncIterator[bytes]:
            yield LARGE[:size]
            yield LARGE[size : 2 * size]

        return StreamingResponse(pieces(), headers=headers, media_type=media)
    return Response(LARGE[:size], headers=headers, media_type=media)


@app.get("/v1/same")
async def same() -> Response:
    """A 304 answer."""
    return Response(status_code=304, headers={"ETag": '"7"'})


CODING = ContentCoding(app)


async def got(target: str, headers: Iterable[tuple[str, str]] = GZIP) -> Answered:
    """The answer to a GET."""
    return await ask(CODING, "GET", target, headers)


async def test_a_coded_body_reaches_the_application_decoded() -> None:
    """The application sees a decoded body, without the coding's header or the coded length."""
    coded = gzip.compress(TEXT, mtime=0)
    headers = [("Content-Encoding", "gzip"), ("Content-Length", str(len(coded))), ("Content-Type", "text/csv")]
    answer = await ask(CODING, "POST", "/v1/events", headers, cut(coded, 100))
    assert (answer.status, answer.body, answer.header("x-length"), answer.header("x-coding")) == (200, TEXT, "", "")


async def test_the_bound_of_a_body_counts_decoded_bytes() -> None:
    """A body that is small when coded and too large when decoded is refused as too large."""
    with pytest.raises(TooLargeError):
        await ask(CODING, "POST", "/v1/events", [("Content-Encoding", "gzip")], [gzip.compress(bytes(10**6 + 1))])


@pytest.mark.parametrize("size", [1025, 10**6])
async def test_a_list_is_coded(size: int) -> None:
    """A body over 1 KiB is gzipped for a client that accepts gzip, with its length and a `Vary` header."""
    answer = await got(f"/v1/entities?size={size}")
    assert gzip.decompress(answer.body) == LARGE[:size]
    assert (answer.header("content-encoding"), answer.header("vary")) == ("gzip", "Accept, Accept-Encoding")
    assert int(answer.header("content-length") or "") == len(answer.body) < size


async def test_a_stream_is_coded_piece_by_piece() -> None:
    """Each piece of a gzipped stream can be decoded as soon as it is sent."""
    answer = await got(f"/v1/entities?size=2000&stream=1&media={NDJSON}")
    assert (answer.header("content-encoding"), answer.header("content-length")) == ("gzip", None)
    reader = zlib.decompressobj(31)
    assert [reader.decompress(piece) for piece in answer.bodies][:2] == [LARGE[:2000], LARGE[2000:4000]]
    assert reader.eof


@pytest.mark.parametrize("media", [NDJSON, "text/event-stream"])
async def test_a_stream_is_coded_from_its_beginning(media: str) -> None:
    """A gzipped stream's head does not wait for a large first piece; each piece can be decoded when it is sent."""
    answer = await got(f"/v1/entities?size=10&stream=1&media={media}")
    assert (answer.header("content-encoding"), answer.header("vary")) == ("gzip", "Accept, Accept-Encoding")
    reader = zlib.decompressobj(31)
    assert [reader.decompress(piece) for piece in answer.bodies][:2] == [LARGE[:10], LARGE[10:20]]
    assert reader.eof


@pytest.mark.parametrize("headers", [GZIP, []], ids=["coded", "plain"])
async def test_the_head_of_a_stream_does_not_wait_for_its_first_piece(headers: list[tuple[str, str]]) -> None:
    """A follower gets the head of its stream at once, even if changes are rare."""
    sent: list[str] = []

    async def silent(_scope: Scope, _receive: Receive, send: Send) -> None:
        answered = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": answered})
        assert sent == ["http.response.start"]
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def keep(message: MutableMapping[str, Any]) -> None:
        sent.append(message["type"])

    scope: Scope = {"type": "http", "path": "/v1/changes", "method": "GET"}
    scope["headers"] = [(name.lower().encode(), value.encode()) for name, value in headers]
    await ContentCoding(silent)(scope, receiving([]), keep)
    assert sent == ["http.response.start", "http.response.body", "http.response.body"]


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/v1/entities?size=1024", GZIP),
        ("/v1/entities?size=10&stream=1", GZIP),
        ("/v1/entities", []),
        ("/v1/entities", [("Accept-Encoding", "gzip;q=0")]),
        ("/v1/entities", [("Accept-Encoding", "br")]),
    ],
)
async def test_an_answer_that_is_not_coded_varies_too(target: str, headers: list[tuple[str, str]]) -> None:
    """A small answer, or one for a client that does not accept gzip, is unchanged but for `Vary`, for caches."""
    answer = await got(target, headers)
    assert LARGE.startswith(answer.body)
    assert (answer.header("content-encoding"), answer.header("vary")) == (None, "Accept, Accept-Encoding")


@pytest.mark.parametrize("target", ["/v1/entities/7a1c5f7e", "/v1/entities?media=application/octet-stream"])
async def test_hot_calls_and_other_types_are_never_coded(target: str) -> None:
    """Point reads and types that are not text are never gzipped, and have no `Vary` for the coding."""
    answer = await got(target)
    assert (answer.body, answer.header("content-encoding"), answer.header("vary")) == (LARGE[: 10**6], None, "Accept")


@pytest.mark.parametrize(
    ("path", "media", "expected"),
    [
        ("/v1/events", b"application/json", False),
        ("/v1/events", b"application/x-ndjson", True),
        ("/v1/workflows/a/b", b"application/json", False),
        ("/v1/workflows", b"application/json", True),
        ("/v1/entities/7a1c/state", b"application/json", False),
        ("/v1/entities/lookup", b"application/json", True),
        ("/v1/overdue/ack", b"application/json", True),
        ("/openapi.json", b"application/json", True),
        ("/docs", b"text/html; charset=utf-8", True),
        ("/metrics", b"text/plain; version=0.0.4", True),
        ("/v1/entities", b"application/problem+json", False),
        ("/console/logo.png", b"image/png", False),
    ],
)
def test_what_may_be_coded(path: str, media: bytes, expected: bool) -> None:
    """Lists, streams and documents may be gzipped; hot calls, problems and pictures may not."""
    assert is_codable(path, [(b"content-type", media)]) is expected


@pytest.mark.parametrize("header", [(b"content-encoding", b"br"), (b"cache-control", b"public, no-transform")])
def test_what_is_coded_or_must_stay_is_left_alone(header: tuple[bytes, bytes]) -> None:
    """An answer that already has a coding, or must not be transformed, is not gzipped."""
    assert not is_codable("/v1/entities", [(b"content-type", b"application/json"), header])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["gzip"], True),
        (["GZIP;q=0.5"], True),
        (["deflate, gzip;q=1.0, *;q=0.5"], True),
        (["x-gzip"], True),
        (["*"], True),
        (["br", "gzip"], True),
        (["*;q=0"], False),
        (["gzip;q=0"], False),
        (["gzip; q=0.000, *"], False),
        (["identity"], False),
        ([""], False),
        ([], False),
    ],
)
def test_who_accepts_gzip(fields: list[str], expected: bool) -> None:
    """A client accepts gzip if it names gzip or `*` with a weight above zero."""
    headers: Headers = [(b"accept-encoding", field.encode()) for field in fields]
    assert accepts_gzip(headers) is expected


async def test_a_coded_answer_has_a_tag_of_its_own() -> None:
    """A gzipped answer has a strong tag of its own; a weak tag names both forms."""
    assert (await got("/v1/entities?etag=%227%22")).header("etag") == '"7-gzip"'
    assert (await got("/v1/entities?etag=W/%227%22")).header("etag") == 'W/"7"'
    assert (await got("/v1/entities?etag=%227%22", [])).header("etag") == '"7"'


@pytest.mark.parametrize(
    ("given", "answered"), [('"7-gzip"', '"7-gzip"'), ('"6", "7-gzip"', '"7-gzip"'), ('"7"', '"7"'), ("*", '"7"')]
)
async def test_what_has_not_changed_keeps_its_tag(given: str, answered: str) -> None:
    """A 304 has the tag of the form that the client holds."""
    assert (await got("/v1/same", [("If-None-Match", given)])).header("etag") == answered


def test_conditions_take_one_tag_for_the_other() -> None:
    """In a condition, the tag of the gzipped form counts as the tag of the plain one."""
    assert coded_etag(b'"7"') == b'"7-gzip"'
    assert plain_etags(b'"7-gzip", W/"8-gzip", "9"') == b'"7", W/"8", "9"'
    assert plain_etags(b"*") == b"*"
