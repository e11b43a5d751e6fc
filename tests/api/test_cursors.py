"""Forged cursors: whatever a correctly encoded cursor holds, the answer is a 400 or an ordinary page."""

from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.api.dead_letters import FILTERS
from app.api.pages import write_cursor
from app.store.listing import EntityFilter
from app.wire.events import EARLIEST
from tests.making import NODE

# The lists, and the filters that their cursors are bound to.
LISTS: dict[str, object] = {
    "/v1/entities": ["entities", EntityFilter(domain="registration")],
    "/v1/overdue/ack": ["/v1/overdue/ack", "registration"],
    "/v1/overdue/liveness": ["/v1/overdue/liveness", "registration"],
    "/v1/workflows": ["workflows", EARLIEST],
    "/v1/dead-letters": FILTERS,
}

_TIMES = st.sampled_from(
    [
        "0001-01-01T00:00:00+14:00",
        "0001-01-01T00:00:00Z",
        "1899-12-31T23:59:59Z",
        "1900-01-01T00:00:00Z",
        "9998-12-31T23:59:59.9999999Z",
        "9999-12-31T23:59:59.999999-14:00",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00:00Z",
    ]
)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
    | st.uuids().map(str)
    | _TIMES
    | st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat)
    | st.sampled_from([2**63 - 1, 2**63, -1, 0, "", "\0", "a\0", "k" * 10_000, str(NODE)])
)
_PLACES = (
    st.lists(_SCALARS, max_size=4)
    | st.tuples(_TIMES, _TIMES, st.uuids().map(str))
    | st.tuples(_TIMES, st.text(max_size=4))
    | st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
)


@pytest.mark.parametrize("path", LISTS)
@given(place=_PLACES)
@example(place=[2**63])
@example(place=[-1])
@example(place=["0001-01-01T00:00:00+14:00", ""])
@example(place=["2026-01-01T00:00:00Z", "a\0"])
@example(place=["9999-12-31T23:59:59.999999-14:00", "2026-01-01T00:00:00Z", str(NODE)])
@example(place=["2026-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", str(NODE)])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
async def test_a_forged_place_is_never_an_error_of_the_service(
    shared: httpx.AsyncClient, path: str, place: Any
) -> None:
    """A forged cursor with a right checksum gets a 400 or a page, whatever its content."""
    try:
        cursor = write_cursor(place, LISTS[path])
    except (UnicodeEncodeError, msgspec.EncodeError):
        return
    answer = await shared.get(path, params={"cursor": cursor})
    assert answer.status_code in {200, 400}, answer.text
    if answer.status_code == 400:
        assert answer.json()["detail"] == "the cursor is damaged"


@pytest.mark.parametrize("path", LISTS)
async def test_a_deep_place_is_a_damaged_cursor(shared: httpx.AsyncClient, path: str) -> None:
    """A cursor with nested content is refused as damaged, however deep the nesting."""
    place = msgspec.Raw(b"[" * 10_000 + b"]" * 10_000)
    answer = await shared.get(path, params={"cursor": write_cursor(place, LISTS[path])})
    assert (answer.status_code, answer.json()["detail"]) == (400, "the cursor is damaged")
