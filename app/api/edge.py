"""The way of a request from RequestContext to FastAPI, and what every answer carries beyond its own headers.

The calls that skip FastAPI use the same parts: `hosts.allow`, `lacking_plain` and `correlation.read`. Requests with
an `Origin` or a coded body do not skip it.
"""

from app.api import caching
from app.api.asgi import App, Headers, Receive, Scope, Send
from app.api.compression import ContentCoding
from app.api.entry import Entrance
from app.api.hosts import Hosts
from app.api.methods import Allowed, Methods
from app.api.origins import Origins


class Edge:
    """ASGI middleware: lets in what is for an allowed host, from a known caller, and not from a foreign page."""

    def __init__(self, app: App, *, hosts: Hosts, origins: Origins, allowed: Allowed) -> None:
        self.hosts = hosts
        self.entry = Entrance()
        self.origins = origins
        vary = origins.headers(None)
        self._beside_etag, self._alone = _lines(caching.BESIDE_ETAG + vary), _lines(caching.ALONE + vary)
        self._app = Methods(ContentCoding(app), allowed, origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises MisdirectedError, ForeignOriginError and AuthError for what may not come in."""
        if scope["type"] == "http":
            host, origin = _host_and_origin(scope["headers"])
            self.hosts.check(host)
            self.origins.check(scope["method"], origin, host)
            own = origin is not None and self.origins.is_own(origin, host)
            scope["principal"] = await self.entry.caller(scope, from_own_page=own)
        await self._app(scope, receive, send)

    def lacking(self, asked: Headers, answered: Headers) -> Headers:
        """What the answer to a request still lacks; given the headers of both. Of every answer, refusals included."""
        _, origin = _host_and_origin(asked)
        return [*caching.caching(answered), *self.origins.headers(origin)]

    def lacking_plain(self, answered: Headers) -> bytes:
        """The same as header lines, for a request without `Origin` and an answer without these headers; faster."""
        for name, _ in answered:
            if name == caching.ETAG:
                return self._beside_etag
        return self._alone


def _lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def _host_and_origin(headers: Headers) -> tuple[bytes | None, bytes | None]:
    """`Host` and `Origin`. HTTP/1.1 allows one of each: the last Host counts; several origins are a foreign one."""
    host = origin = None
    for name, value in headers:
        if name == b"host":
            host = value
        elif name == b"origin":
            origin = value if origin is None else origin + b", " + value
    return host, origin
