"""HEAD and OPTIONS, for every path (RFC 9110, sections 9.3.2 and 9.3.7)."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from starlette.routing import Match, Route

from app.api.asgi import App, Headers, Message, Receive, Scope, Send
from app.api.origins import Origins

EVENTS = "/v1/events"  # where senders of CloudEvents ask for leave
EVERYTHING = "*"  # the target of a question about the service as a whole


class Allowed:
    """Which methods work on a path, by the routes that there are."""

    def __init__(self, router: object) -> None:
        """`router` is an application or a router. Its routes are read when they are first asked about."""
        self._router = router
        self._by_template: dict[str, str] = {}

    @cached_property
    def _routes(self) -> list[Route]:
        return list(routes_of(self._router))

    def __call__(self, path: str) -> str | None:
        """The value of `Allow` for a path; None where there is nothing. Every method for `*`."""
        if path == EVERYTHING:
            return _listed(*(route.methods or () for route in self._routes))
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
        matching = [route for route in self._routes if route.matches(scope)[0] is not Match.NONE]
        if not matching:
            return None
        template = matching[0].path
        if template not in self._by_template:
            # A route that is not in the schema only refuses what another route would misread.
            same = [route for route in matching if route.path == template and route.include_in_schema]
            self._by_template[template] = _listed(*(route.methods or () for route in same or matching[:1]))
        return self._by_template[template]


def routes_of(router: object) -> Iterator[Route]:
    """All routes of a router and of those that it includes, which FastAPI keeps as they are."""
    for route in getattr(router, "routes", ()):
        if isinstance(route, Route):
            yield route
        else:
            yield from routes_of(getattr(route, "original_router", None))


def options(path: str, allow: str, headers: Headers, origins: Origins) -> Headers:
    """The headers of the answer to OPTIONS: 204, with `Allow` and what a browser or a sender of events asks for."""
    answer = [(b"allow", allow.encode())]
    given = dict(headers)
    origin = given.get(b"origin")
    if origin is not None and b"access-control-request-method" in given:
        answer += origins.preflight(origin, headers, allow)
    if path == EVENTS:
        answer += origins.webhook(headers)
    return answer


class Methods:
    """ASGI middleware: HEAD is GET without the body, OPTIONS is answered here, the rest is handed on."""

    def __init__(self, app: App, allowed: Allowed, origins: Origins) -> None:
        self._app = app
        self._allowed = allowed
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "HEAD":
            await self._head(scope, receive, send)
        elif scope["method"] == "OPTIONS" and (allow := self._allowed(scope["path"])) is not None:
            headers = options(scope["path"], allow, scope["headers"], self._origins)
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._app(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the status and headers of GET. A stream is broken off at its first piece, which nobody reads."""
        told = False
        asked = {**scope, "method": "GET"}

        async def send_head(message: Message) -> None:
            nonlocal told
            if message["type"] == "http.response.start":
                await send(message)
                return
            if not told:
                told = True
                await send({"type": "http.response.body", "body": b""})
            if message.get("more_body", False):
                raise OSError("nobody reads the body of an answer to HEAD")

        try:
            await self._app(asked, receive, send_head)
        except Exception:
            if not told:
                raise
        finally:
            for name in ("route", "endpoint", "path_params"):  # what those around this read of the way it went
                if name in asked:
                    scope[name] = asked[name]


def _listed(*methods: Iterable[str]) -> str:
    """Methods as `Allow` has them."""
    found = {"OPTIONS"}.union(*methods)
    return ", ".join(sorted(found | {"HEAD"} if "GET" in found else found))
