"""Caching headers and page policies of answers, for caches and browsers."""

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
    """An answer with an ETag may be cached and is revalidated each time; an answer without one is not cached."""
    lacking = dict(caching(headers))
    assert lacking == {
        b"cache-control": expected,
        b"x-content-type-options": b"nosniff",
        b"content-security-policy": b"default-src 'none'",
    }
    assert dict(BESIDE_ETAG if expected == b"no-cache" else ALONE) == lacking


def test_what_an_answer_says_itself_stays() -> None:
    """The lifetime and policy that a page sets itself are left unchanged."""
    own: Headers = [
        (b"cache-control", b"max-age=60"),
        (b"content-security-policy", b"default-src 'self'"),
        (b"x-content-type-options", b"nosniff"),
    ]
    assert caching(own) == []


def test_a_page_of_ours_has_the_policy_that_it_brings() -> None:
    """Only pages of the service send HTML, and keep their own policy: the default would leave them blank."""
    assert dict(caching([(b"content-type", b"text/html; charset=utf-8")])).keys() == {
        b"cache-control",
        b"x-content-type-options",
    }
