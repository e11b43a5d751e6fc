"""Content codings (RFC 9110, section 8.4): gzip in request bodies, and in answers that are worth it.

A request's body is decoded as it is read, in pieces of a bounded size, so whoever reads it counts decoded bytes and
stops where its own bound is. An answer is coded when the client accepts gzip and the body is over 1 KiB; a stream of
lines or of server-sent events from its beginning, each piece to be read as soon as it is sent. The calls that come
thousands of times a second are not, because coding costs more than they do.

A strong ETag names one sequence of bytes. So a coded answer has a tag of its own, `"7-gzip"` for `"7"`, as Apache's
httpd makes them too; conditions take the one for the other.
"""

import asyncio
import re
import zlib
from collections.abc import Callable

from app.api.asgi import App, Headers, Message, Receive, Scope, Send
from app.errors import TooLargeError, UnreadableError, UnsupportedCodingError

GZIP = b"gzip"
GZIP_NAMES = frozenset({b"gzip", b"x-gzip"})  # RFC 9110, section 8.4.1.3
IDENTITY = frozenset({b"", b"identity"})
SUFFIX = b'-gzip"'  # of the ETag of a coded answer

PIECE = 64 * 1024  # decoded bytes that are held at a time
SLICE = 4096  # bytes that are decoded at a time
MAX_EMPTY = 100  # members of a gzip body that may hold nothing
FREE_BYTES = 8 * 1024 * 1024  # decoded bytes before their ratio to the coded ones counts
MAX_RATIO = 256  # decoded bytes for a coded one; events reach some 30, and deflate could reach 1,032

SMALLEST = 1024  # bytes; a smaller answer is not coded
LEVEL = 4  # of zlib: half the time of the usual 6, and a few percent more bytes
IN_THREAD = 64 * 1024  # bytes of a piece that takes long enough for a thread
STREAMS = (b"application/x-ndjson", b"text/event-stream")  # that are coded whatever the size of their first piece
CODED_TYPES = (b"application/json", b"application/x-ndjson", b"text/", b"application/javascript", b"image/svg")
# Calls whose JSON is never coded: a point read, one event, and one workflow read or commit.
HOT = re.compile(r"/v1/(?:entities/[^/]+|entities/[^/]+/state|events|workflows/.+)")
LOOKUP = "/v1/entities/lookup"

_WBITS = 16 + zlib.MAX_WBITS  # with gzip's header and trailer


# --- Requests ------------------------------------------------------------------------------------------------------


def is_coded(headers: Headers) -> bool:
    """Whether a request's body is gzip. Raises UnsupportedCodingError for any coding but gzip and identity."""
    given = [value for name, value in headers if name == b"content-encoding"]
    if not given:
        return False
    codings = [each.strip(b" \t").lower() for each in b",".join(given).split(b",")]
    codings = [each for each in codings if each not in IDENTITY]
    if len(codings) <= 1 and GZIP_NAMES.issuperset(codings):
        return bool(codings)
    shown = b", ".join(codings).decode("latin-1")
    raise UnsupportedCodingError(f"the content coding is {shown}; send gzip, or the body as it is")


class Decoded:
    """What is received of a gzip body, decoded. Called as ASGI's `receive` is, and instead of it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._decoder = zlib.decompressobj(_WBITS)
        self._rest = memoryview(b"")  # received and not yet decoded
        self._empty = 0  # members that decoded to nothing
        self._member = 0  # bytes decoded of the present member
        self._coded = 0  # bytes received
        self._size = 0  # bytes decoded
        self._received_all = False
        self._ended = False

    async def __call__(self) -> Message:
        """The next piece, of PIECE bytes at most; or the message that the client is gone.

        Raises UnreadableError where the body is not gzip, or ends too early, and TooLargeError where it is made to
        grow without measure.
        """
        while not self._ended:
            if self._rest:
                await asyncio.sleep(0)  # one read of the network can hold a thousand pieces: others have their turn
                piece = self._decode()
            elif not self._received_all:
                message = await self._receive()
                if message["type"] != "http.request":
                    return message
                self._rest = memoryview(message.get("body", b""))
                self._coded += len(self._rest)
                self._received_all = not message.get("more_body", False)
                continue
            else:
                if not self._decoder.eof and self._coded:
                    raise UnreadableError("the gzip body ends too early")
                self._ended = True
                return {"type": "http.request", "body": b"", "more_body": False}
            if piece:
                return {"type": "http.request", "body": piece, "more_body": True}
        return await self._receive()  # which tells that the client is gone, when it is

    def _decode(self) -> bytes:
        if self._decoder.eof:  # another member follows (RFC 1952, section 2.2)
            self._decoder = zlib.decompressobj(_WBITS)
            self._member = 0
        coded = self._rest[:SLICE]  # the decoder copies what it leaves, so it gets little at a time
        try:
            piece = self._decoder.decompress(coded, PIECE)
        except zlib.error as error:
            raise UnreadableError(f"the body is not gzip: {error}") from None
        left = self._decoder.unused_data if self._decoder.eof else self._decoder.unconsumed_tail
        self._rest = self._rest[len(coded) - len(left) :]
        self._size += len(piece)
        self._member += len(piece)
        self._empty += self._decoder.eof and not self._member
        if self._empty > MAX_EMPTY:
            raise TooLargeError(f"the gzip body has more than {MAX_EMPTY} members that hold nothing")
        if self._coded > FREE_BYTES and self._coded > self._size:
            raise TooLargeError("the gzip body decodes to less than it takes: send it uncoded")
        if self._size > FREE_BYTES and self._size > MAX_RATIO * self._coded:
            raise TooLargeError(
                f"the gzip body grows by more than {MAX_RATIO} times; send it with less in each request, or uncoded"
            )
        return piece


# --- Answers -------------------------------------------------------------------------------------------------------


def accepts_gzip(headers: Headers) -> bool:
    """Whether `Accept-Encoding` has gzip, by name or by `*`, with a weight that is not zero (RFC 9110, 12.5.3)."""
    weights: dict[bytes, bool] = {}
    for name, value in headers:
        if name == b"accept-encoding":
            for part in value.lower().split(b","):
                coding, *parameters = (piece.strip(b" \t") for piece in part.split(b";"))
                weights[coding] = not any(_is_zero(each) for each in parameters)
    return weights.get(GZIP, weights.get(b"x-gzip", weights.get(b"*", False)))


def _is_zero(parameter: bytes) -> bool:
    name, _, weight = parameter.partition(b"=")
    return name.strip() == b"q" and weight.strip().replace(b".", b"").strip(b"0") == b""


def coded_etag(etag: bytes) -> bytes:
    """The tag of the coded representation. A weak tag names both, so it stays."""
    return etag if etag.startswith(b"W/") else etag[:-1] + SUFFIX


def plain_etags(condition: bytes) -> bytes:
    """The value of `If-Match` or `If-None-Match` with the tags of the representations that are not coded."""
    return condition.replace(SUFFIX, b'"') if SUFFIX in condition else condition


def is_codable(path: str, headers: Headers) -> bool:
    """Whether an answer with these headers may be coded: lists, streams and documents, not the hot calls."""
    given = dict(headers)
    media = given.get(b"content-type", b"")
    if not media.startswith(CODED_TYPES) or b"content-encoding" in given:
        return False
    if b"no-transform" in given.get(b"cache-control", b""):
        return False
    return media.startswith(b"application/x-ndjson") or not _is_hot(path)


def _is_hot(path: str) -> bool:
    return path != LOOKUP and HOT.fullmatch(path) is not None


class ContentCoding:
    """ASGI middleware: the application reads decoded bodies; its answers are coded where the client accepts that."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises UnsupportedCodingError for a body in a coding that is not read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        if is_coded(headers):
            # The length is that of the coded body, so the reader of the decoded body counts its bytes.
            about_coding = {b"content-encoding", b"content-length"}
            scope["headers"] = [(name, value) for name, value in headers if name not in about_coding]
            receive = Decoded(receive)
        await self._app(scope, receive, _Answer(scope, headers, send).send)


class _Answer:
    """One answer, on its way to the client."""

    def __init__(self, scope: Scope, headers: Headers, send: Send) -> None:
        self._path = scope["path"]
        self._headers = headers
        self._send = send
        self._start: Message | None = None  # held until the first piece of the body is there
        self._code: Callable[[bytes, bool], bytes] | None = None

    async def send(self, message: Message) -> None:
        """Send a message of the application on, coded or as it is."""
        if message["type"] == "http.response.start":
            if not self._is_candidate(message):
                await self._send(message)
            elif self._is_stream(message["headers"]):  # its head does not wait for its first line
                if accepts_gzip(self._headers):
                    self._code = _coder()
                    message["headers"] = _coded_headers(message["headers"], None)
                await self._send(message)
            else:
                self._start = message
            return
        start, self._start = self._start, None
        body, more = message.get("body", b""), message.get("more_body", False)
        if start is not None:
            if len(body) > SMALLEST and accepts_gzip(self._headers):
                self._code = _coder()
            if self._code is not None:
                body = await _coded(self._code, body, more=more)
                start["headers"] = _coded_headers(start["headers"], None if more else len(body))
            await self._send(start)
        elif self._code is not None:
            body = await _coded(self._code, body, more=more)
        await self._send({**message, "body": body})

    def _is_candidate(self, start: Message) -> bool:
        """Whether this answer may be coded; then `Vary` says so whether it is or not."""
        status, headers = start["status"], start["headers"]
        if status == 304:
            given = b",".join(value for name, value in self._headers if name == b"if-none-match")
            if SUFFIX in given and not _is_hot(self._path):  # the client has the coded form, and that is unchanged
                start["headers"] = [(n, coded_etag(v) if n == b"etag" else v) for n, v in headers]
            return False
        if status != 200 or not is_codable(self._path, headers):
            return False
        start["headers"] = _varying(headers)
        return True

    def _is_stream(self, headers: Headers) -> bool:
        given = dict(headers)
        return given.get(b"content-type", b"").startswith(STREAMS) and b"content-length" not in given


def _coder() -> Callable[[bytes, bool], bytes]:
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, _WBITS)

    def code(body: bytes, more: bool) -> bytes:
        # A stream's reader gets each piece when it is written, not when the coder has enough.
        return compressor.compress(body) + compressor.flush(zlib.Z_SYNC_FLUSH if more else zlib.Z_FINISH)

    return code


async def _coded(code: Callable[[bytes, bool], bytes], body: bytes, *, more: bool) -> bytes:
    if len(body) > IN_THREAD:
        return await asyncio.to_thread(code, body, more)
    return code(body, more)


def _coded_headers(headers: Headers, length: int | None) -> Headers:
    """The headers of the coded representation; a stream's length is not known."""
    coded = [(n, coded_etag(v) if n == b"etag" else v) for n, v in headers if n != b"content-length"]
    coded.append((b"content-encoding", GZIP))
    return coded if length is None else [*coded, (b"content-length", b"%d" % length)]


def _varying(headers: Headers) -> Headers:
    """The headers with `Accept-Encoding` in `Vary`."""
    named = b", ".join(value for name, value in headers if name == b"vary")
    others = [(name, value) for name, value in headers if name != b"vary"]
    return [*others, (b"vary", named + b", Accept-Encoding" if named else b"Accept-Encoding")]
