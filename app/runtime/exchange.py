"""One request and its answer, between a connection and the application: by ASGI (3, HTTP spec 2.3), or directly."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote

from app.runtime.framing import Head, Headers

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]  # ASGI's own types
Scope = MutableMapping[str, Any]
HttpAnswer = tuple[int, Headers, bytes]
App = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

# The extension that tells an application, by an event, that the client sends no more. It may still read its answer;
# but who waits for long is better off taking it for gone, as the end of a connection looks the same.
CLIENT_ENDED = "pqs.client_ended"
# The extension by which an application sends pieces of an answer that has begun without a task: an Exchange. Such
# pieces pass no middleware.
PUSH = "pqs.push"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_NAME = re.compile(rb'[\x00-\x20\x7f()<>@,;:\\"/\[\]?={}]')
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


STATUS_LINES = {status: _status_line(status) for status in range(200, 600)}


class DirectCall(Protocol):
    """A request that the application answers without ASGI."""

    def begin(self, body: bytes, answer: Callable[[int, Headers, bytes, bytes], None]) -> None:
        """Begin to answer. Raises nothing.

        `answer` is called once, and later than this returns: with status, headers, more headers as lines, and body.
        """

    def leave(self) -> None:
        """The client is gone before its request was complete."""

    def abandon(self) -> None:
        """The client is gone before its answer, or sends no more, as `CLIENT_ENDED` says to others."""


class ClientConnection(Protocol):
    """What an exchange needs of its connection."""

    blocked: asyncio.Event | None  # set when the client has read enough; None while it reads

    def default_headers(self) -> bytes:
        """The header lines that every answer begins with."""

    def write(self, data: bytes) -> None:
        """Send bytes, in this order."""

    async def drained(self) -> None:
        """Wait until the client has read enough for more to be sent, or is gone."""

    def wants_body(self) -> None:
        """Read on: what was read of the body is used up."""

    def write_answer(self, answer: HttpAnswer, *, keep_alive: bool, lines: bytes = b"") -> None:
        """Send a whole answer at once. `lines` are further headers."""

    def answered(self) -> None:
        """The answer is complete."""

    def fail(self, *, started: bool) -> None:
        """The application broke off, before or after its answer had begun."""


class Exchange:
    """A request that an ASGI application answers."""

    def __init__(self, connection: ClientConnection, head: Head, scope: Scope) -> None:
        self.keep_alive = head.keep_alive
        self.more_body = True
        self.complete = False  # the answer
        self.started = False
        self._connection = connection
        self._head = head
        self._scope = scope
        self.client_ended = asyncio.Event()
        self.on_gone: Callable[[], object] | None = None  # called when the client is gone, or sends no more
        scope["extensions"] = {CLIENT_ENDED: self.client_ended, PUSH: self}
        self._body = bytearray()
        self._end_is_told = False
        self._disconnected = False
        self._happened = asyncio.Event()
        self._left: int | None = None  # bytes of the answer that its Content-Length promises
        self._chunked = False
        self.bare = head.method == "HEAD"  # the answer has no body
        self.awaits_continue = head.expects_continue

    @property
    def held(self) -> int:
        """Bytes of the body that the application has not taken yet."""
        return len(self._body)

    @property
    def waits_for_client(self) -> bool:
        """Whether it is for the client to send more of the body."""
        return self.more_body and not self.awaits_continue

    def feed(self, piece: bytes, *, ended: bool) -> None:
        """A part of the body; after the answer it is dropped."""
        self.more_body = not ended
        if piece:
            self.awaits_continue = False
            if not (self.complete or self._disconnected):
                self._body += piece
        if piece or ended:
            self._happened.set()

    def disconnect(self) -> None:
        """The client is gone, or is answered by somebody else."""
        self._disconnected = True
        self._happened.set()
        self._tell_gone()

    def client_sends_no_more(self) -> None:
        """Its side of the connection is at its end."""
        self.client_ended.set()
        self._tell_gone()

    def _tell_gone(self) -> None:
        if self.on_gone is not None:
            self.on_gone()

    # --- Pushing

    @property
    def is_gone(self) -> bool:
        """Whether the client is gone, or sends no more."""
        return self._disconnected or self.client_ended.is_set()

    def push(self, body: bytes) -> bool:
        """Send a piece of an answer that has begun, now. False, and nothing is sent, if the client has to read first
        or is gone.
        """
        if self._disconnected or self.complete or self._connection.blocked is not None:
            return False
        self._send_body(body, more=True)
        return True

    async def drained(self) -> None:
        """Wait until the client has read enough for more to be sent, or is gone."""
        await self._connection.drained()

    # --- ASGI

    async def run(self, app: App) -> None:
        """Let the application answer."""
        try:
            await app(self._scope, self._receive, self._send)
        except Exception:
            log.exception("the application failed")
        except BaseException:  # a stop that waits no longer
            self._connection.fail(started=True)
            raise
        if not (self.complete or self._disconnected):
            self._connection.fail(started=self.started)

    async def _receive(self) -> Message:
        if self.awaits_continue and not (self._disconnected or self.started):
            self.awaits_continue = False
            self._connection.write(CONTINUE)
        while not (self._disconnected or self.complete):
            if self._body or not (self.more_body or self._end_is_told):
                piece = bytes(self._body)
                self._body.clear()
                self._end_is_told = not self.more_body
                if self.more_body:
                    self._connection.wants_body()
                return {"type": "http.request", "body": piece, "more_body": self.more_body}
            self._happened.clear()
            self._connection.wants_body()
            await self._happened.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self._connection.drained()
        if self._disconnected:
            await asyncio.sleep(0)  # for the sake of everybody else, where an application sends without end
            return
        expected = "http.response.body" if self.started else "http.response.start"
        if self.complete or message["type"] != expected:
            raise RuntimeError(f"{message['type']} has no place here in an answer")
        if not self.started:
            self._start(message["status"], list(message.get("headers", ())))
        else:
            self._send_body(message.get("body", b""), more=message.get("more_body", False))

    def _start(self, status: int, headers: Headers) -> None:
        if status not in STATUS_LINES:
            raise RuntimeError(f"{status} is not the status of an answer")
        self.bare = self.bare or status in {204, 304}
        lines = [STATUS_LINES[status], self._connection.default_headers()]
        for name, value in headers:
            lower = name.lower()
            if not name or _NO_NAME.search(name) or _NO_VALUE.search(value):
                raise RuntimeError(f"{name!r}: {value!r} is not a header field")
            if lower == b"transfer-encoding" or (lower == b"content-length" and status == 204):
                continue  # the connection's own business
            if lower == b"content-length":
                self._left = int(value)
            elif lower == b"connection":
                self.keep_alive = self.keep_alive and b"close" not in value.lower()
                continue
            lines += [name, b": ", value, b"\r\n"]
        if self.awaits_continue:  # it may send its body or not; nobody can know which
            self.keep_alive = False
        if self._left is None and not self.bare:
            self._chunked = self._head.version != "1.0"
            self.keep_alive = self.keep_alive and self._chunked  # else the end of the connection is the answer's end
            if self._chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self.started = True
        self._connection.write(b"".join(lines))

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if not self.bare:
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (self._left and not more):
                    raise RuntimeError("the answer is not as long as its Content-Length says")
            if self._chunked and body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if self._chunked and not more:
                body += b"0\r\n\r\n"
            if body:
                self._connection.write(body)
        if not more:
            self.complete = True
            self._body.clear()
            self._happened.set()
            self._connection.answered()


class DirectExchange:
    """A request that is answered directly, when its body is there."""

    __slots__ = ("_body", "_call", "_connection", "_disconnected", "complete", "keep_alive", "more_body")

    held = 0  # the application has said that it takes the whole body
    started = False  # its answer is written at once
    bare = False

    def __init__(self, connection: ClientConnection, call: DirectCall, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.more_body = True
        self.complete = False
        self._connection = connection
        self._call = call
        self._body = b""
        self._disconnected = False

    @property
    def waits_for_client(self) -> bool:
        """Whether it is for the client to send more of the body."""
        return self.more_body

    def feed(self, piece: bytes, *, ended: bool) -> None:
        """A part of the body."""
        self._body = self._body + piece if self._body else piece
        if ended:
            self.more_body = False
            self._call.begin(self._body, self._answer)

    def disconnect(self) -> None:
        """The client is gone, or is answered by somebody else."""
        if not self._disconnected and not self.complete:
            if self.more_body:
                self._call.leave()
            else:
                self._call.abandon()
        self._disconnected = True

    def client_sends_no_more(self) -> None:
        """Its side of the connection is at its end."""
        if not (self.more_body or self.complete):
            self._call.abandon()

    def _answer(self, status: int, headers: Headers, lines: bytes, body: bytes) -> None:
        if not self._disconnected:
            self._connection.write_answer((status, headers, body), keep_alive=self.keep_alive, lines=lines)
            self.complete = True
            self._connection.answered()


def scope_of(head: Head, transport: asyncio.Transport, root_path: str, state: dict[str, Any]) -> dict[str, Any]:
    """The ASGI scope of a request."""
    raw_path, _, query = head.target.partition(b"?")
    path = raw_path.decode("ascii")
    client, server = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": head.version,
        "method": head.method,
        "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
        "path": root_path + (unquote(path) if "%" in path else path),
        "raw_path": root_path.encode() + raw_path,
        "query_string": query,
        "root_path": root_path,
        "headers": list(head.headers),
        "client": tuple(client[:2]) if isinstance(client, tuple) else None,
        "server": tuple(server[:2]) if isinstance(server, tuple) else None,
        "state": state.copy(),
    }


def never(_method: str, _target: bytes, _headers: Headers, _peer: str) -> DirectCall | None:
    """What an application offers that answers nothing directly."""
    return None


def refuse_plainly(status: int, detail: str, _headers: Headers, *, counted: bool, peer: str) -> HttpAnswer:
    """The refusal of an application that has none of its own."""
    body = f"{detail}\n".encode()
    return status, [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))], body
