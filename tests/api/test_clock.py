"""Events ahead of the database's clock, in every form of input."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import httpx
import msgspec
import pytest

from app.errors import InvalidInputError
from app.projection.clock import DatabaseClock
from app.store.database import Database
from app.wire.events import read_event
from tests.api.conftest import service_on
from tests.making import Json, event_json, life, node

AHEAD = timedelta(minutes=6)  # more than PQS_MAX_SKEW


def initiated(by: timedelta, number: int = 1) -> Json:
    """An event that begins a registration, with the time ahead of the clock by this much."""
    at = (datetime.now(UTC) + by).isoformat()
    return event_json("registration.initiated", 1, entity_id=node(number), occurred_at=at)


@pytest.fixture(params=["direct", "usual"])
def path(request: pytest.FixtureRequest) -> str:
    """An address for single events on the direct path, and one on FastAPI's path."""
    return "/v1/events" if request.param == "direct" else "/v1/events?dry_run=false"


async def test_an_event_that_is_ahead_is_refused(client: httpx.AsyncClient, path: str) -> None:
    """An event ahead of the clock is a 422 that names the field and the setting, and writes nothing."""
    answer = await client.post(path, json=initiated(AHEAD))
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["pointer"] == "#/occurred_at"
    assert "more than 300 seconds ahead of the database's clock (PQS_MAX_SKEW)" in error["detail"]
    assert (await client.get(f"/v1/entities/{node(1)}")).status_code == 404


async def test_an_event_that_is_a_little_ahead_is_taken(client: httpx.AsyncClient, path: str) -> None:
    """An event ahead by no more than the setting is applied, as clocks differ."""
    answer = await client.post(path, json=initiated(timedelta(minutes=4)))
    assert answer.json()["outcome"] == "applied"


async def test_a_heartbeat_that_is_ahead_is_refused(client: httpx.AsyncClient) -> None:
    """A heartbeat is also refused for a time in its data that is ahead of the clock."""
    ahead = (datetime.now(UTC) + AHEAD).isoformat()
    await client.post("/v1/events", json=life())
    answer = await client.post("/v1/events", json=event_json("node.heartbeat", 9, data={"heartbeat_at": ahead}))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#/data/heartbeat_at"


async def test_an_array_names_its_events_that_are_ahead(client: httpx.AsyncClient) -> None:
    """Each event of an array that is ahead is named by its index, and no event of the array is applied."""
    events = [initiated(timedelta(0), 1), initiated(AHEAD, 2), initiated(timedelta(0), 3), initiated(AHEAD, 4)]
    answer = await client.post("/v1/events", json=events)
    assert answer.status_code == 422
    assert [each["pointer"] for each in answer.json()["errors"]] == ["#/1/occurred_at", "#/3/occurred_at"]
    assert (await client.get("/v1/state-counts")).json()["total"] == 0


async def test_one_question_serves_many_events(database: Database) -> None:
    """However many events are ahead, the database's clock is asked once in a second."""
    clock = DatabaseClock(database, timedelta(minutes=5))
    asked = 0

    async def count(work: Callable[..., object], *args: object) -> object:
        nonlocal asked
        asked += 1
        return await Database.read(database, work, *args)  # type: ignore[arg-type]  # any work

    events = [read_event(msgspec.json.encode(initiated(AHEAD, number))) for number in range(200)]
    with patch.object(database, "read", count), pytest.raises(InvalidInputError) as raised:
        await clock.check(events, many=True)
    assert len(raised.value.faults) == 200
    assert asked == 1


async def test_a_line_that_is_ahead_is_invalid(client: httpx.AsyncClient) -> None:
    """Of a stream, only the lines ahead of the clock are refused."""
    lines = "\n".join(httpx.Request("POST", "/", json=each).content.decode() for each in (initiated(AHEAD), *life()))
    answer = await client.post("/v1/events", content=lines, headers={"Content-Type": "application/x-ndjson"})
    invalid, summary = answer.text.splitlines()
    assert '"line":1' in invalid
    assert '"#/occurred_at"' in invalid
    assert '"applied":5' in summary


async def test_a_dry_run_is_refused_too(client: httpx.AsyncClient) -> None:
    """A dry run of an event ahead of the clock is refused like the event."""
    assert (await client.post("/v1/events?dry_run=true", json=initiated(AHEAD))).status_code == 422


async def test_the_last_year_is_taken_where_that_is_set(database_url: str) -> None:
    """With a large enough setting, an event of the last possible year is applied."""
    async with service_on(database_url, max_skew=3e11) as client:
        answer = await client.post(
            "/v1/events", json=initiated(timedelta(0)) | {"occurred_at": "9998-12-31T23:59:59Z"}
        )
        assert answer.json()["outcome"] == "applied"
