"""Looking back over HTTP: histories, events, and entities at a moment."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from app.store.database import Database
from tests.access.making import new_key
from tests.api.conftest import service_on
from tests.making import NODE, at, event_json, life, node

PATH = f"/v1/entities/{NODE}"
HISTORY = f"{PATH}/history"
LIFE = life()
STATES = ["pending_registration", "accepted", "awaiting_ack", "ack_received", "active"]


@pytest.fixture
async def lived(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """A service with one entity that has become active."""
    assert (await client.post("/v1/events", json=LIFE)).status_code == 200
    return client


async def asked(client: httpx.AsyncClient, path: str, **query: Any) -> Any:
    """What is answered."""
    answer = await client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_history_is_what_the_feed_told(lived: httpx.AsyncClient) -> None:
    """The same items, in the same order, or the other way round."""
    fed = (await asked(lived, "/v1/changes"))["items"]
    told = await asked(lived, HISTORY)
    assert told == {"items": fed, "next_cursor": None, "complete": True}
    assert (await asked(lived, HISTORY, order="desc"))["items"] == fed[::-1]
    assert [item["current_state"] for item in fed] == STATES


async def test_pages_link_to_the_next(lived: httpx.AsyncClient) -> None:
    """By the cursor and by the header; a cursor is of one entity and one order."""
    first = await lived.get(HISTORY, params={"limit": 2, "order": "desc"})
    page = first.json()
    assert [item["version"] for item in page["items"]] == [5, 4]
    assert page["complete"]
    linked = await lived.get(f"{HISTORY}{first.links['next']['url']}")
    given = await asked(lived, HISTORY, limit=2, order="desc", cursor=page["next_cursor"])
    assert linked.json() == given
    assert [item["version"] for item in given["items"]] == [3, 2]
    for path, query in ((HISTORY, {}), (f"/v1/entities/{node(1)}/history", {"order": "desc"})):
        refused = await lived.get(path, params={"cursor": page["next_cursor"], **query})
        assert (refused.status_code, refused.json()["detail"][:10]) == (400, "the cursor")


async def test_an_unknown_entity_has_no_history(lived: httpx.AsyncClient) -> None:
    """Nor has one of another domain."""
    for path, query in ((f"/v1/entities/{node(1)}/history", {}), (HISTORY, {"domain": "other"})):
        assert (await lived.get(path, params=query)).status_code == 404


async def test_an_event_has_a_result(lived: httpx.AsyncClient) -> None:
    """Its change, and its row as long as that stands there; a heartbeat has only the row."""
    beat = event_json("node.heartbeat", 6)
    last = LIFE[-1]["event_id"]
    told = await asked(lived, f"/v1/events/{last}")
    assert [(item["kind"], item["type"]) for item in told["changes"]] == [("change", "registration.activated")]
    assert told["rows"] == [await asked(lived, PATH)]
    await lived.post("/v1/events", json=beat)
    assert (await asked(lived, f"/v1/events/{last}"))["rows"] == []
    told = await asked(lived, f"/v1/events/{beat['event_id']}")
    assert (told["event_id"], told["changes"]) == (beat["event_id"], [])
    assert told["rows"] == [await asked(lived, PATH)]
    await lived.post("/v1/events", json=event_json("node.heartbeat", 7))
    gone = await lived.get(f"/v1/events/{beat['event_id']}")
    assert gone.status_code == 404
    for meaning in ("never sent", "duplicate, stale, early, conflict", "changed no state", "PQS_CHANGES_KEEP"):
        assert meaning in gone.json()["detail"]


async def test_a_state_is_what_it_was(lived: httpx.AsyncClient) -> None:
    """By when it happened, and by when the service knew it; as JSON and as a word."""
    for seconds, state in [(1, STATES[0]), (3.5, STATES[2]), (99, STATES[4])]:
        query = {"as_of": at(seconds), "clock": "occurred"}
        assert (await asked(lived, f"{PATH}/state", **query))["current_state"] == state
        told = await lived.get(f"{PATH}/state", params=query, headers={"Accept": "text/plain"})
        assert told.text == state
    items = (await asked(lived, HISTORY))["items"]
    for item in items:
        told = await asked(lived, f"{PATH}/state", as_of=item["changed_at"])
        assert told["current_state"] == STATES[4]  # all of an array are stored in one moment
    for query in ({"as_of": at(0.5), "clock": "occurred"}, {"as_of": at(99)}):
        unknown = await lived.get(f"{PATH}/state", params=query)
        assert (unknown.status_code, unknown.json()["detail"][:19]) == (404, "there was no entity")


async def test_a_moment_before_the_log_is_gone(database_url: str) -> None:
    """A problem of its own: an entity that is older than the log."""
    async with service_on(database_url, changes="off") as off:
        await off.post("/v1/events", json=LIFE[0])
    async with service_on(database_url) as client:
        told = await client.get(f"{PATH}/state", params={"as_of": at(99)})
        assert (told.status_code, told.json()["type"]) == (410, "urn:pqs:problem:history-gone")
        assert await asked(client, HISTORY) == {"items": [], "next_cursor": None, "complete": False}
        await client.post("/v1/events", json=LIFE[1])
        assert not (await asked(client, HISTORY))["complete"]


async def test_a_row_is_what_it_was(database_url: str) -> None:
    """Where rows are logged; its ETag is its version."""
    async with service_on(database_url, changes_rows=True) as client:
        rows = []
        for sent in LIFE:
            await client.post("/v1/events", json=sent)
            rows.append(await asked(client, PATH))
        times = [item["changed_at"] for item in (await asked(client, HISTORY))["items"]]
        for time, row in zip(times, rows, strict=True):
            told = await client.get(PATH, params={"as_of": time})
            assert (told.json(), told.headers["etag"]) == (row, f'"{row["version"]}"')
            same = await client.get(PATH, params={"as_of": time}, headers={"If-None-Match": told.headers["etag"]})
            assert same.status_code == 304
        early = await client.get(PATH, params={"as_of": at(2.5), "clock": "occurred"})
        assert early.json() == rows[1]


async def test_what_is_not_logged_is_refused(lived: httpx.AsyncClient, database_url: str) -> None:
    """A row without the rows, a clock without a time, and everything without a log."""
    refused = await lived.get(PATH, params={"as_of": at(3)})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/query/as_of")
    for path in (PATH, f"{PATH}/state"):
        refused = await lived.get(path, params={"clock": "known"})
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/query/clock")
    async with service_on(database_url, changes="off") as off:
        for path in (HISTORY, f"/v1/events/{NODE}", f"{PATH}?as_of={at(3)}", f"{PATH}/state?as_of={at(3)}"):
            assert (await off.get(path)).status_code == 501, path
        assert (await off.get(PATH)).status_code == (await off.get(f"{PATH}/state")).status_code == 200


async def test_an_event_id_reveals_no_other_domain(database_url: str) -> None:
    """A caller sees what an event did where it may look, and hears of the rest as of nothing at all."""
    database = Database(database_url, pool_size=1, statement_timeout=timedelta(seconds=5))
    scopes = ("entities:read", "events:write")
    keys = {
        name: (await new_key(database, name, scopes=scopes, domains=domains, rate=None, burst=None)).text
        for name, domains in [("all", ("*",)), ("here", ("registration",)), ("there", ("there", "other"))]
    }
    await database.close()
    here = event_json("registration.initiated", 1)
    there = here | {"domain": "there"}
    async with service_on(database_url, auth="required") as client:

        async def told(name: str, event_id: object) -> tuple[int, set[str]]:
            headers = {"Authorization": f"Bearer {keys[name]}"}
            answer = await client.get(f"/v1/events/{event_id}", headers=headers)
            found = answer.json()
            return answer.status_code, {item["domain"] for key in ("changes", "rows") for item in found.get(key, [])}

        sent = await client.post("/v1/events", json=[here, there], headers={"Authorization": f"Bearer {keys['all']}"})
        assert sent.status_code == 200, sent.text
        assert await told("all", here["event_id"]) == (200, {"registration", "there"})
        assert await told("here", here["event_id"]) == (200, {"registration"})
        assert await told("there", here["event_id"]) == (200, {"there"})
        hidden = event_json("registration.initiated", 1, entity_id=node(2), event_id=str(UUID(int=7)))
        await client.post("/v1/events", json=hidden, headers={"Authorization": f"Bearer {keys['all']}"})
        assert await told("there", UUID(int=7)) == await told("there", UUID(int=8)) == (404, set())
        refused = await client.get(
            HISTORY, params={"domain": "there"}, headers={"Authorization": f"Bearer {keys['here']}"}
        )
        assert refused.status_code == 403
