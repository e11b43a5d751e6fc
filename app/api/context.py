"""The middleware of every request: correlation id, log line, metrics, and the unread rest of the body."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import ContextVar

from starlette.requests import ClientDisconnect

from app.api.asgi import App, Headers, Message, Receive, Scope, Send
from app.api.correlation import HEADER, correlation
from app.api.room import HELD
from app.errors import PqsError
from app.runtime.metrics import Metrics
from app.store.replica import lag_of_answer
from app.tracing.recorder import Recorder, SpanKind, recorded

__all__ = [
    "HEADER",
    "App",
    "Headers",
    "Message",
    "Receive",
    "Scope",
    "Send",
]  # those who look for them here still find them

log = logging.getLogger(__name__)

DRAIN_BYTES = 64 * 1024 * 1024  # of a refused body that are still read, so that the answer arrives
DRAIN_SECONDS = 10.0
NO_PEER = "-"  # where nobody knows the address of the other side, as at a Unix socket
LAG = b"pqs-replica-lag"  # seconds that the replica which answered lags, at most
GONE = 499  # in log and metrics: the client disconnected before its request was complete
WAITS = "pqs.waits"  # in the ASGI scope of a request that asks for a wait
UNKNOWN = "unknown"  # in metrics: the route of a request that matches none
METHODS = {
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
}  # the values of the label; others count as `other`

correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)
reason: ContextVar[str | None] = ContextVar("reason", default=None)  # why the present request is refused


def begin(headers: Headers) -> str:
    """Set the correlation id of this task, the client's or a new one, and return it."""
    own_id = correlation(headers)
    correlation_id.set(own_id)
    return own_id


def account(
    metrics: Metrics,
    method: str,
    path: str,
    route: str,
    status: int,
    began: float,
    principal: str = "-",
    peer: str = NO_PEER,
    traceparent: bytes | None = None,
    *,
    waits: bool = False,
) -> None:
    """Count one answered request, and log it if the access log wants it.

    `began` is time.perf_counter() at its beginning, `principal` the caller's name, `peer` the address that it came
    from; `-` where nobody knows. `traceparent` is the value of that header. `waits`: it was to take long.
    """
    seconds = time.perf_counter() - began
    metrics.request(method if method in METHODS else "other", route, status, seconds)
    access = metrics.access
    if level := access.wants(route, status, seconds, traceparent, waits=waits):
        access.write(
            level,
            method=method,
            path=path,
            route=route,
            status=status,
            seconds=seconds,
            principal=principal,
            peer=peer,
            traceparent=traceparent,
            reason=reason.get() if status >= 400 else None,
        )


def served(trace: Recorder, method: str, path: str, route: str, status: int, began: float) -> None:
    """End the span of a request that began at `began`."""
    attributes: dict[str, str | int | float] = {
        "http.request.method": method,
        "url.path": path,
        "http.route": route,
        "http.response.status_code": status,
    }
    error = str(status) if status >= 500 else None
    trace.end(f"{method} {route}", SpanKind.SERVER, attributes, began=began, error=error)


def _traceparent(headers: Headers) -> bytes | None:
    return next((value for header, value in headers if header == b"traceparent"), None)


class RequestContext:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: App,
        metrics: Metrics,
        answer_to: Callable[[Scope, Exception], App],
        lacking: Callable[[Headers, Headers], Headers],
    ) -> None:
        """`lacking` gives what every answer carries beyond its own headers, from those of the request and of it."""
        self._app = app
        self._lacking = lacking
        self._metrics = metrics
        self._answer_to = answer_to

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and log and count it. Anything but an HTTP request is handed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (tracer := self._metrics.tracer) is None:
            await self._answer(scope, receive, send, None)
        else:
            with recorded(trace := tracer.begin(_traceparent(scope["headers"]))):
                await self._answer(scope, receive, send, trace)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, trace: Recorder | None) -> None:
        began = time.perf_counter()
        body = _Body(scope, receive)
        before = correlation_id.get()
        lag_of_answer.set(None)
        own_id = begin(scope["headers"])
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                message["headers"] = [*headers, *self._lacking(scope["headers"], headers), (HEADER, own_id.encode())]
                if (lag := lag_of_answer.get()) is not None:
                    message["headers"].append((LAG, b"%.3f" % lag))
                if status >= 400 and not await body.drain():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self._app(scope, body.receive, send_with_id)
        except ClientDisconnect:
            status = status or GONE
        except Exception as error:
            if status and isinstance(error.__cause__ or error, PqsError):
                log.warning("an answer was cut short: %s", error.__cause__ or error)
                raise  # closing the connection is the only message left
            answer = self._answer_to(scope, error)
            if status:
                raise
            await answer(scope, body.receive, send_with_id)
        finally:
            if (held := scope.get(HELD)) is not None:
                held.close()
            route = getattr(scope.get("route"), "path_format", UNKNOWN)
            principal, client = scope.get("principal"), scope.get("client")
            name, peer = principal.name if principal else "-", str(client[0]) if client else NO_PEER
            traceparent = _traceparent(scope["headers"])
            method, path, waits = scope["method"], scope["path"], WAITS in scope
            if trace is not None:
                traceparent = trace.traceparent.encode()
                served(trace, method, path, route, status, began)
            account(self._metrics, method, path, route, status, began, name, peer, traceparent, waits=waits)
            correlation_id.set(before)


class _Body:
    """The body of a request, and how far it has been read."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        names = {name for name, _ in scope["headers"]}
        self._ended = not names & {b"content-length", b"transfer-encoding"}
        self._awaits_continue = (
            b"expect" in names
        )  # for `100 Continue`, before it sends its body (RFC 9110, section 10.1.1)

    async def receive(self) -> Message:
        """The next message from the client."""
        self._awaits_continue = False
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._ended = True
        return message

    async def drain(self) -> bool:
        """Read the rest, up to a bound, and return whether the body is at its end.

        Without this, the connection of a client that sends its whole body before it reads would be reset, and the
        client would never see the answer. A client that waits for `100 Continue` does not get it.
        """
        if self._awaits_continue:
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
