"""What every request passes through: its correlation id, its log line, its metrics, and the rest of its body."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote
from uuid import UUID

from starlette.requests import ClientDisconnect

from app.api.metrics import Metrics
from app.errors import Fault, InvalidInputError, PqsError

log = logging.getLogger("app.access")

HEADER = b"x-correlation-id"
DRAIN_BYTES = 64 * 1024 * 1024  # of a refused body that is still read, so that the answer arrives
DRAIN_SECONDS = 10.0
GONE = 499  # in log and metrics: the client went away before its request was at its end
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}  # what a label may be

Message = MutableMapping[str, Any]  # ASGI's own type
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)


def given_correlation_id(scope: Scope) -> UUID | None:
    """The correlation id that the client sent, or None. Raises InvalidInputError when it is no UUID."""
    value = next((value for name, value in scope["headers"] if name == HEADER), None)
    if value is None:
        return None
    try:
        return UUID(value.decode("latin-1"))
    except ValueError:
        raise InvalidInputError([Fault("#/header/X-Correlation-ID", "a UUID was expected")]) from None


def _new_id() -> str:
    """A random UUID (version 4). uuid4() asks the kernel for its bits, and takes six times as long."""
    bits = f"{random.getrandbits(128):032x}"
    return f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-a{bits[17:20]}-{bits[20:]}"


class RequestContext:
    """ASGI middleware around the whole application."""

    def __init__(self, app: App, metrics: Metrics, answer_to: Callable[[Scope, Exception], App]) -> None:
        self._app = app
        self._metrics = metrics
        self._answer_to = answer_to

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and account for it. Whatever is no HTTP request is handed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        body = _Body(scope, receive)
        app = self._app
        try:
            given = given_correlation_id(scope)
        except InvalidInputError as error:
            given = None
            app = self._answer_to(scope, error)
        own_id = _new_id() if given is None else str(given)
        token = correlation_id.set(own_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((HEADER, own_id.encode()))
                if status >= 400 and not await body.drain():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await app(scope, body.receive, send_with_id)
        except ClientDisconnect:
            status = status or GONE
        except Exception as error:
            if status and isinstance(error.__cause__ or error, PqsError):
                log.warning("an answer broke off: %s", error.__cause__ or error)
                raise  # breaking the connection is all that can still be said
            answer = self._answer_to(scope, error)
            if status:
                raise
            await answer(scope, body.receive, send_with_id)
        finally:
            self._account(scope, status, time.perf_counter() - began)
            correlation_id.reset(token)

    def _account(self, scope: Scope, status: int, seconds: float) -> None:
        method, path = scope["method"], scope["path"]
        route = getattr(scope.get("route"), "path_format", "unknown")
        self._metrics.request(method if method in METHODS else "other", route, status, seconds)
        path = quote(path)  # a line break in it would forge a line of the log
        extra = {"method": method, "path": path, "status": status, "seconds": seconds}
        log.info("%s %s %d %.1f ms", method, path, status, seconds * 1000, extra=extra)


class _Body:
    """The body of a request, and how far it has been read."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        names = {name for name, _ in scope["headers"]}
        self._ended = not names & {b"content-length", b"transfer-encoding"}
        self._awaits_leave = b"expect" in names  # to send its body at all (RFC 9110, section 10.1.1)

    async def receive(self) -> Message:
        """The next message from the client."""
        self._awaits_leave = False
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._ended = True
        return message

    async def drain(self) -> bool:
        """Read what is left, up to a bound. Whether the body is at its end.

        A client that sends its whole body before it reads would otherwise have its connection reset under it, and
        never see why it was refused. One that waits for leave to send it is not given that.
        """
        if self._awaits_leave:
            return False
        read = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._ended and read < DRAIN_BYTES:
                    message = await self.receive()
                    read += len(message.get("body", b""))
        except TimeoutError:
            pass
        return self._ended
