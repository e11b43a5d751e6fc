"""Query strings: refusals, corrections, and links to the next page."""

from urllib.parse import parse_qsl, urljoin

import pytest

from app.api.queries import check, next_page, with_plus
from app.errors import InvalidInputError, UnreadableError


@pytest.mark.parametrize(
    "query", ["", "limit=1", "state=active&state=accepted&limit=2", "capability=a&capability=b", "x=%20"]
)
def test_a_query_that_is_let_through(query: str) -> None:
    """Parameters with values are accepted, and may be repeated where the call allows it."""
    check(query.encode())


@pytest.mark.parametrize(
    ("query", "pointers"),
    [
        ("limit=1&limit=1", ["#/query/limit"]),
        ("domain=a&domain=b&limit=1&limit=2", ["#/query/domain", "#/query/limit"]),
        ("node_type=", ["#/query/node_type"]),
        ("node_type", ["#/query/node_type"]),
        ("state=active&state=", ["#/query/state"]),
        ("limit=&cursor=", ["#/query/limit", "#/query/cursor"]),
        ("%6cimit=1&limit=2", ["#/query/limit"]),
        ("x=1&x=2", ["#/query/x"]),
    ],
)
def test_twice_or_empty_is_refused(query: str, pointers: list[str]) -> None:
    """Each parameter that is given twice or is empty is named in the refusal."""
    with pytest.raises(InvalidInputError) as refused:
        check(query.encode())
    assert [fault.pointer for fault in refused.value.faults] == pointers


@pytest.mark.parametrize("query", [b"domain=%ff", b"%ff=1", b"domain=\xff", b"domain=%ed%a0%80"])
def test_what_is_not_utf_8_is_unreadable(query: bytes) -> None:
    """Bytes that are not UTF-8, escaped or raw, are refused and never replaced."""
    with pytest.raises(UnreadableError):
        check(query)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2026-01-01T00:00:00 02:00", "2026-01-01T00:00:00+02:00"),
        ("2026-01-01T00:00:00.5 00:00", "2026-01-01T00:00:00.5+00:00"),
        ("2026-01-01 00:00:00 02:00", "2026-01-01 00:00:00+02:00"),
        ("2026-01-01T00:00:00+02:00", "2026-01-01T00:00:00+02:00"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("2026-01-01 00:00:00", "2026-01-01 00:00:00"),
        ("2026-01-01T00:00:00  02:00", "2026-01-01T00:00:00  02:00"),
        ("", ""),
    ],
)
def test_a_raw_plus_is_restored(given: str, meant: str) -> None:
    """A space before the offset of a time zone is read as the plus that it was; other spaces stay."""
    assert with_plus(given) == meant


def test_the_link_stays_under_a_prefix() -> None:
    """The link to the next page is a relative query with the page's other parameters and the new cursor."""
    link = next_page(b"state=active&state=accepted&cursor=old&domain=a%26b%20c", "new")
    reference = link.removeprefix("<").partition(">")[0]
    assert link == f'<{reference}>; rel="next"'
    base = "https://pqs.example/prefix/v1/entities?limit=2"
    path, _, query = urljoin(base, reference).partition("?")
    assert path == "https://pqs.example/prefix/v1/entities"
    assert parse_qsl(query) == [("state", "active"), ("state", "accepted"), ("domain", "a&b c"), ("cursor", "new")]
    assert next_page(b"", "c") == '<?cursor=c>; rel="next"'
