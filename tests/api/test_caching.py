"""What answers say to caches and browsers."""

import pytest

from app.api.asgi import Headers
from app.api.caching import ALONE, BESIDE_ETAG, caching

JSON: Headers = [(b"content-type", b"application/json")]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (JSON, b"no-store"),
        ([], b"no-store"),
        ([*JSON, (b"etag", b'"7"')], b"no-cache"),
        ([(b"etag", b'W/"7"')], b"no-cache"),
    ],
)
def test_every_answer_says_whether_it_may_be_kept(headers: Headers, expected: bytes) -> None:
    """Beside an ETag an answer may be kept and is asked about each time; without one it is not kept."""
    lacking = dict(caching(headers))
    assert lacking == {
        b"cache-control": expected,
        b"x-content-type-options": b"nosniff",
        b"content-security-policy": b"default-src 'none'",
    }
    assert dict(BESIDE_ETAG if expected == b"no-cache" else ALONE) == lacking


def test_what_an_answer_says_itself_stays() -> None:
    """A page's own lifetime and policy are not touched."""
    own: Headers = [
        (b"cache-control", b"max-age=60"),
        (b"content-security-policy", b"default-src 'self'"),
        (b"x-content-type-options", b"nosniff"),
    ]
    assert caching(own) == []


def test_a_page_of_ours_has_the_policy_that_it_brings() -> None:
    """HTML is only sent by pages of the service; a policy of nothing would leave them blank."""
    assert dict(caching([(b"content-type", b"text/html; charset=utf-8")])).keys() == {
        b"cache-control",
        b"x-content-type-options",
    }
