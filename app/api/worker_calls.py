"""`/livez`, `/readyz` and `/metrics` of a worker: as `pqs serve` answers them, without the web framework."""

import logging
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from math import ceil
from urllib.parse import quote

import msgspec

from app.access import rights
from app.access.access import Access
from app.access.principals import Principal
from app.access.principals import Scope as Right
from app.access.refusals import AuthError
from app.api.asgi import Headers, Receive, Scope, Send
from app.api.entry import OPEN_PATHS, Entrance
from app.api.hosts import Hosts
from app.errors import MisdirectedError, PqsError, UnavailableError
from app.runtime.connections import Connections
from app.runtime.metrics import PROMETHEUS_TEXT
from app.wire.answers import Health, Ready
from app.wire.problems import Problem

log = logging.getLogger(__name__)

JSON, PROBLEM = b"application/json", b"application/problem+json"
METRICS = "/metrics"
MOST_CONNECTIONS = 64  # that are open at once, at most
METHODS = b"GET, HEAD"
NO_TYPE = "about:blank"  # RFC 9457, section 4.2.1: the problem is no more than its status

_encode = msgspec.json.Encoder().encode
Reply = tuple[int, Headers, bytes]


class WorkerCalls:
    """The ASGI application of a worker. Nothing here changes anything.

    `/livez` and `/readyz` are open; `/metrics` needs the scope `metrics:read` where keys are asked for. Only callers
    with `operations:read` are told the revision, and why the worker is not ready.
    """

    def __init__(
        self,
        ready: Callable[[], Awaitable[str]],
        metrics: Callable[[], Awaitable[bytes]],
        access: Access,
        hosts: Hosts,
    ) -> None:
        """`ready` returns the schema's revision, or raises UnavailableError; `metrics` is the text of a scrape."""
        self._ready = ready
        self._metrics = metrics
        self._access = access
        self._hosts = hosts
        self._entry = Entrance()
        self._entry.guard = access.guard
        self.connections = Connections(MOST_CONNECTIONS, clock=time.monotonic)  # which the protocol looks for

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            status, headers, body = await self._answer(scope)
        except PqsError as error:
            status, headers, body = _refusal(scope, error)
        headers = [*headers, (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope) -> Reply:
        host = next((value for name, value in scope["headers"] if name == b"host"), None)
        self._hosts.check(host)
        caller = await self._entry.caller(scope)
        path = scope["path"]
        if path not in OPEN_PATHS and path != METRICS:
            return _problem(scope, HTTPStatus.NOT_FOUND, f"a worker answers /livez, /readyz and {METRICS}")
        if scope["method"] not in {"GET", "HEAD"}:
            return _problem(scope, HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", [(b"allow", METHODS)])
        if path == METRICS:
            return await self._scrape(caller)
        if path == "/livez":
            return 200, [(b"content-type", JSON)], _encode(Health("alive"))
        return 200, [(b"content-type", JSON)], _encode(await self._readiness(caller))

    async def _scrape(self, caller: Principal) -> Reply:
        refusal = rights.scope(caller, Right.METRICS_READ) or self._access.limits.take(caller, 1.0)
        if refusal is not None:
            raise refusal
        return 200, [(b"content-type", PROMETHEUS_TEXT.encode())], await self._metrics()

    async def _readiness(self, caller: Principal) -> Ready:
        is_told = rights.every_domain(caller, Right.OPERATIONS_READ) is None
        try:
            revision = await self._ready()
        except UnavailableError as error:
            if is_told:
                raise
            raise UnavailableError("the worker is not ready", retry_after=error.retry_after) from error
        return Ready("ready", revision=revision) if is_told else Ready("ready")


def _refusal(scope: Scope, error: PqsError) -> Reply:
    if isinstance(error, AuthError):
        headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        return _problem(scope, HTTPStatus(error.status), str(error), headers, (error.type, error.title))
    if isinstance(error, MisdirectedError):
        return _problem(scope, HTTPStatus.MISDIRECTED_REQUEST, str(error))
    if isinstance(error, UnavailableError):
        seconds = b"%d" % max(1, ceil(error.retry_after.total_seconds()))
        return _problem(scope, HTTPStatus.SERVICE_UNAVAILABLE, str(error), [(b"retry-after", seconds)])
    log.error("a call of this worker failed: %s", error)
    return _problem(scope, HTTPStatus.INTERNAL_SERVER_ERROR, "the log of this worker has the cause")


def _problem(
    scope: Scope, status: HTTPStatus, detail: str, headers: Headers | None = None, kind: tuple[str, str] | None = None
) -> Reply:
    type_, title = kind or (NO_TYPE, status.phrase)
    body = Problem(type_, title, status, detail, quote(scope["path"]))
    return status, [(b"content-type", PROBLEM), *(headers or [])], _encode(body)
