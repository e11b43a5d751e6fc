"""The header fields of a plain request: of those that are answered without FastAPI."""

from hmac import compare_digest

from msgspec import Struct

from app.access.cache import HeldKey
from app.api.asgi import Headers
from app.api.bodies import JSON
from app.api.hosts import Hosts

PLAIN = JSON.encode()
# A foreign page and a coded body are FastAPI's as well.
NOT_PLAIN = {
    b"transfer-encoding",
    b"expect",
    b"cookie",
    b"origin",
    b"content-encoding",
}  # headers of requests that are FastAPI's, as are those of CloudEvents


class PlainFields(Struct):
    """What the header fields of a plain request say. They are read once for all requests that repeat them."""

    length: int | None  # of the body
    is_json: bool
    authorization: bytes | None
    prefer: bytes | None
    has_tags: bool  # in If-None-Match
    traceparent: bytes | None = None
    held: HeldKey | None = None  # the key in `authorization`, once it was found

    def inherit(self, before: "PlainFields | None") -> None:
        """Take the key over that was found for the request before, when it is the same.

        The clients of a proxy share its connections: how long this takes must not tell one another's key.
        """
        if before is None or before.held is None or self.authorization is None:
            return
        if compare_digest(self.authorization, before.authorization or b""):
            self.held = before.held


def read_plain(headers: Headers, prefixes: tuple[bytes, ...], hosts: Hosts) -> PlainFields | None:
    """What the fields say; None for a request that is not plain."""
    length, is_json, authorization, prefer, has_tags, traceparent = None, False, None, None, False, None
    for name, value in headers:
        if name == b"content-length":
            if length is not None or not value.isdigit():
                return None
            length = int(value)
        elif name == b"host":
            if not hosts.allow(value):
                return None
        elif name == b"authorization":
            if authorization is not None:
                return None
            authorization = value
        elif name == b"content-type":
            if value != PLAIN:
                return None
            is_json = True
        elif name == b"if-none-match":
            has_tags = True
        elif name == b"prefer":
            if prefer is not None:
                return None
            prefer = value
        elif name == b"traceparent":
            traceparent = value
        elif name in NOT_PLAIN or name.startswith(prefixes):
            return None
    return PlainFields(length, is_json, authorization, prefer, has_tags, traceparent)
