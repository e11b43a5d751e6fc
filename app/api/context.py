"""What every request passes through: its correlation id, its log line, its metrics, and the rest of its body."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any
from uuid import UUID, uuid4

from app.api.metrics import Metrics
from app.errors import Fault, InvalidInputError

log = logging.getLogger("app.access")

HEADER = b"x-correlation-id"
DRAIN_BYTES = 64 * 1024 * 1024  # of a refused body that is still read, so that the answer arrives
DRAIN_SECONDS = 10.0
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


class RequestContext:
    """ASGI middleware around the whole application."""

    def __init__(self, app: App, metrics: Metrics, on_bug: Callable[[Scope, Exception], App]) -> None:
        self._app = app
        self._metrics = metrics
        self._on_bug = on_bug

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and account for it. Whatever is no HTTP request is handed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        body = _Body(scope, receive)
        try:
            own_id = str(given_correlation_id(scope) or uuid4())
        except InvalidInputError:
            own_id = str(uuid4())  # the handler refuses the request; the refusal can still be found
        token = correlation_id.set(own_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (HEADER, own_id.encode())]
                if status >= 400 and not await body.drain():
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, body.receive, send_with_id)
        except Exception as error:
            answer = self._on_bug(scope, error)
            if status:
                raise  # the answer had begun: breaking the connection is all that can still be said
            await answer(scope, body.receive, send_with_id)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "unknown")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.request(method, route, status, seconds)
            log.info(
                "%s %s %d %.1f ms",
                scope["method"],
                scope["path"],
                status,
                seconds * 1000,
                extra={"method": scope["method"], "path": scope["path"], "status": status, "seconds": seconds},
            )
            correlation_id.reset(token)


class _Body:
    """The body of a request, and how far it has been read."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        names = {name for name, _ in scope["headers"]}
        self._ended = not names & {b"content-length", b"transfer-encoding"}

    async def receive(self) -> Message:
        """The next message from the client."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._ended = True
        return message

    async def drain(self) -> bool:
        """Read what is left, up to a bound. Whether the body is at its end.

        A client that sends its whole body before it reads would otherwise have its connection reset under it, and
        never see why it was refused.
        """
        read = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._ended and read < DRAIN_BYTES:
                    message = await self.receive()
                    read += len(message.get("body", b""))
        except TimeoutError:
            pass
        return self._ended
