"""Which web pages may use the service."""

import pytest

from app.api.asgi import Headers
from app.api.origins import EXPOSED, Origins
from app.errors import ForeignOriginError, StartError

LISTED = b"https://console.example"
ORIGINS = Origins.of("https://console.example, http://127.0.0.1:3000", public_url="https://pqs.example/api/")
HOST = b"127.0.0.1:8000"
UNSAFE = pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "BREW"])


@UNSAFE
@pytest.mark.parametrize(
    "origin",
    [
        b"http://evil.example",
        b"null",
        b"",
        b"http://127.0.0.1:8001",
        b"http://127.0.0.1",
        b"https://console.example.evil",
        b"file://",
        b"https://console.example/",
        b"https://console.example:444",
        b"http://console.example",
        b"\xff",
        b"http://127.0.0.1:8000 http://evil.example",
    ],
)
def test_a_foreign_page_changes_nothing(method: str, origin: bytes) -> None:
    """A write from a page that is neither the service's own nor listed is refused, whatever it sends."""
    with pytest.raises(ForeignOriginError, match="PQS_CORS_ORIGINS"):
        ORIGINS.check(method, origin, HOST)


@UNSAFE
@pytest.mark.parametrize(
    "origin",
    [
        None,
        LISTED,
        b"HTTPS://CONSOLE.EXAMPLE",
        b"https://console.example:443",
        b"http://127.0.0.1:3000",
        b"http://127.0.0.1:8000",
        b"https://127.0.0.1:8000",
        b"https://pqs.example",
    ],
)
def test_own_and_listed_pages_do(method: str, origin: bytes | None) -> None:
    """Writes are allowed to the service's own pages (also behind a proxy), to listed pages, and without an origin."""
    for _ in range(2):
        ORIGINS.check(method, origin, HOST)


def test_the_own_origin_has_the_schemes_port() -> None:
    """A `Host` with the scheme's default port is the same origin as without the port."""
    Origins().check("POST", b"http://localhost", b"localhost:80")
    Origins().check("POST", b"https://localhost", b"localhost:443")
    with pytest.raises(ForeignOriginError):
        Origins().check("POST", b"https://localhost", b"localhost:80")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_foreign_page_may_read_what_its_browser_will_not_show(method: str) -> None:
    """A foreign page's read is answered without CORS headers, so its browser does not show it the answer."""
    ORIGINS.check(method, b"http://evil.example", HOST)
    assert ORIGINS.headers(b"http://evil.example") == [(b"vary", b"Origin")]


def test_a_listed_page_may_read_the_headers_of_the_contract() -> None:
    """Answers to a listed origin name it, and expose the headers that clients use."""
    assert ORIGINS.headers(LISTED) == [
        (b"vary", b"Origin"),
        (b"access-control-allow-origin", LISTED),
        (b"access-control-expose-headers", EXPOSED.encode()),
    ]
    assert set(EXPOSED.split(", ")) == {
        "ETag",
        "Link",
        "Location",
        "Retry-After",
        "RateLimit",
        "RateLimit-Policy",
        "WWW-Authenticate",
        "X-Correlation-ID",
        "Idempotency-Replayed",
    }


def test_answers_differ_by_origin_only_where_one_is_listed() -> None:
    """Without the setting no answer has origin headers; with it, all answers say `Vary: Origin` for caches."""
    assert (Origins().headers(LISTED), Origins().headers(None)) == ([], [])
    assert ORIGINS.headers(None) == [(b"vary", b"Origin")]


def test_a_preflight_is_answered() -> None:
    """A preflight tells a listed origin which methods and headers it may send."""
    asked = [
        (b"access-control-request-method", b"PUT"),
        (b"access-control-request-headers", b"if-match, content-type"),
    ]
    answer = dict(ORIGINS.preflight(LISTED, asked, "GET, PUT"))
    assert answer[b"access-control-allow-methods"] == b"GET, PUT"
    assert answer[b"access-control-allow-headers"] == b"if-match, content-type"
    assert int(answer[b"access-control-max-age"]) > 0
    assert ORIGINS.preflight(b"http://evil.example", asked, "GET, PUT") == []


def test_a_preflight_echoes_only_names() -> None:
    """A preflight does not echo requested headers that are not a list of header names."""
    asked = [(b"access-control-request-headers", b"x; y\x01")]
    assert b"access-control-allow-headers" not in dict(ORIGINS.preflight(LISTED, asked, "GET"))


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ([(b"webhook-request-origin", b"console.example")], b"console.example"),
        ([(b"webhook-request-origin", LISTED), (b"webhook-request-rate", b"120")], LISTED),
        ([(b"webhook-request-origin", b"evil.example")], None),
        ([(b"webhook-request-callback", b"https://console.example/?key=1")], None),
        ([], None),
    ],
)
def test_a_sender_of_cloudevents_gets_its_grant(asked: Headers, granted: bytes | None) -> None:
    """A listed sender is granted delivery at any rate, under the name that it gave; other senders get no grant."""
    expected = [] if granted is None else [(b"webhook-allowed-origin", granted), (b"webhook-allowed-rate", b"*")]
    assert ORIGINS.webhook(asked) == expected


@pytest.mark.parametrize("text", ["*", "console.example", "https://console.example/app", "null", "ftp://x"])
def test_what_is_not_an_origin_is_refused(text: str) -> None:
    """A setting with text that cannot be an origin is an error that quotes it."""
    with pytest.raises(StartError, match="PQS_CORS_ORIGINS"):
        Origins.of(text)
    with pytest.raises(StartError, match="PQS_PUBLIC_URL"):
        Origins(public_url="pqs")
