"""Which web pages may use this service from a browser: `Origin` (RFC 6454), and CORS as the Fetch standard has it.

A browser sends some requests to other origins without asking first: a POST with a body that has no content type, or
one of three. So a request that may change something is refused when it comes from a page that is neither the
service's own nor listed, whatever its content type. Clients that are not browsers send no `Origin`.
"""

import re
from collections.abc import Iterable

from app.api.asgi import Headers
from app.errors import ForeignOriginError, StartError

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # RFC 9110, section 9.2.1
EXPOSED = (
    "ETag, Link, Location, Retry-After, RateLimit, RateLimit-Policy, WWW-Authenticate, X-Correlation-ID, "
    "Idempotency-Replayed"
)
PREFLIGHT_AGE = 600  # seconds that a browser may remember a preflight's answer
REMEMBERED = 64  # spellings of an origin that were found to be listed

_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._~-]+)(:[0-9]+)?")
_TOKENS = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*,[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Origins:
    """The origins of other pages that are listed, and what the service tells a browser about them."""

    def __init__(self, listed: Iterable[str] = (), *, public_url: str | None = None) -> None:
        """`public_url` is where a proxy serves this service: its origin is the service's own.

        Raises StartError for what is not an origin.
        """
        self._listed = frozenset(_origin_of(each.strip(), "PQS_CORS_ORIGINS") for each in listed if each.strip())
        self._own = None
        if public_url is not None:
            self._own = _origin_of("/".join(public_url.split("/")[:3]), "PQS_PUBLIC_URL")
        self._seen: set[bytes] = set()
        self._any_listed = bool(self._listed)

    @classmethod
    def of(cls, listed: str | None, *, public_url: str | None = None) -> "Origins":
        """Of PQS_CORS_ORIGINS, separated by commas."""
        return cls((listed or "").split(","), public_url=public_url)

    def lists(self, origin: bytes) -> bool:
        """Whether an origin is one of those that are listed."""
        if origin in self._seen:
            return True
        if not self._any_listed or _normal(origin) not in self._listed:
            return False
        if len(self._seen) < REMEMBERED:
            self._seen.add(origin)
        return True

    def is_own(self, origin: bytes, host: bytes | None) -> bool:
        """Whether a page of `origin` came from this service, to which the request at hand was sent as `host`."""
        normal = _normal(origin)
        if normal is None:
            return False
        scheme, _, _ = normal.partition(":")
        return normal == self._own or (host is not None and normal == _normal(scheme.encode() + b"://" + host))

    def check(self, method: str, origin: bytes | None, host: bytes | None) -> None:
        """Raises ForeignOriginError where a page of a foreign origin would change something.

        None, for a request without `Origin`, is let through.
        """
        if origin is None or method in SAFE or self.lists(origin) or self.is_own(origin, host):
            return
        raise ForeignOriginError(
            f"a page of {origin.decode('latin-1')!r} may not change anything here; "
            "PQS_CORS_ORIGINS lists the origins that may"
        )

    def headers(self, origin: bytes | None) -> Headers:
        """What every answer to a request of this origin carries. Nothing at all where no origin is listed."""
        if not self._any_listed:
            return []
        if origin is None or not self.lists(origin):
            return [(b"vary", b"Origin")]
        return [
            (b"vary", b"Origin"),
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED.encode()),
        ]

    def preflight(self, origin: bytes, asked: Headers, allow: str) -> Headers:
        """What a browser asks before it sends a request that is not simple; [] for an origin that is not listed.

        `asked` are the headers of its question, `allow` the methods of the path. `headers` come on top.
        """
        if not self.lists(origin):
            return []
        names = b", ".join(value for name, value in asked if name == b"access-control-request-headers")
        answer = [
            (b"vary", b"Access-Control-Request-Method, Access-Control-Request-Headers"),
            (b"access-control-allow-methods", allow.encode()),
            (b"access-control-max-age", b"%d" % PREFLIGHT_AGE),
        ]
        if _TOKENS.fullmatch(names.strip()):
            answer.append((b"access-control-allow-headers", names.strip()))
        return answer

    def webhook(self, asked: Headers) -> Headers:
        """The grant that a sender of CloudEvents asks for (HTTP 1.1 Web Hooks, section 4); [] where there is none.

        A sender names itself by a host name, so the host of a listed origin is granted too.
        """
        given = {name: value for name, value in asked if name.startswith(b"webhook-request-")}
        sender = given.get(b"webhook-request-origin")
        if sender is None or not (self.lists(sender) or self.lists(b"https://" + sender)):
            return []
        return [(b"webhook-allowed-origin", sender), (b"webhook-allowed-rate", b"*")]


def _normal(origin: bytes) -> str | None:
    """An origin in lower case without its scheme's own port; None for anything else, `null` included."""
    match = _ORIGIN.fullmatch(origin.decode("latin-1").lower())
    if match is None:
        return None
    scheme, host, port = match[1], match[2], match[3] or ""
    return f"{scheme}://{host.removesuffix('.')}{'' if port == _DEFAULT_PORTS[scheme] else port}"


def _origin_of(text: str, setting: str) -> str:
    normal = _normal(text.encode())
    if normal is None:
        raise StartError(f"{setting}: an origin such as https://console.example was expected, not {text!r}")
    return normal
