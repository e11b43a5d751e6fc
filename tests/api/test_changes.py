"""GET /v1/changes: long polls, NDJSON lines, server-sent events, snapshots and refusals."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests.api.conftest import service_on
from tests.making import NODE, event_json, life, node
from tests.processes import serving

CHANGES = "/v1/changes"
FIELDS = {
    "kind",
    "id",
    "entity_id",
    "domain",
    "node_type",
    "version",
    "event_id",
    "type",
    "outcome",
    "reason",
    "before",
    "current_state",
    "stands_at",
    "occurred_at",
    "changed_at",
    "correlation_id",
}


async def follow(client: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    """One page of changes."""
    answer = await client.get(CHANGES, params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_a_registration_is_followed(client: httpx.AsyncClient) -> None:
    """Each change comes with its state before and after, in order; nothing comes after the last change."""
    assert (await follow(client))["items"] == []
    assert (await client.post("/v1/events", json=life())).status_code == 200
    page = await follow(client)
    assert [(item["before"], item["current_state"], item["version"]) for item in page["items"]] == [
        (None, "pending_registration", 1),
        ("pending_registration", "accepted", 2),
        ("accepted", "awaiting_ack", 3),
        ("awaiting_ack", "ack_received", 4),
        ("ack_received", "active", 5),
    ]
    last = page["items"][-1]
    assert set(last) == FIELDS
    assert (last["kind"], last["stands_at"], last["outcome"]) == ("change", {"sequence": 5}, "applied")
    assert last["occurred_at"] == "2026-01-01T00:00:05Z"
    assert page["caught_up"]
    again = await follow(client, after=page["next"])
    assert (again["items"], again["next"]) == ([], page["next"])


async def test_triggers_are_logged_and_heartbeats_are_not(client: httpx.AsyncClient) -> None:
    """Each trigger logs one change, even if ignored; a heartbeat or an ignored fact logs none."""
    sent = ["node.introspected", "node.registration_acked", "node.heartbeat", "node.registration_acked"]
    for sequence, type_ in enumerate([*sent, "registration.accepted"], start=1):
        await client.post("/v1/events", json=event_json(type_, sequence))
    items = (await follow(client))["items"]
    assert [(item["type"], item["outcome"], item["version"]) for item in items] == [
        ("node.introspected", "applied", 3),
        ("node.registration_acked", "applied", 5),
        ("node.registration_acked", "ignored", 7),
    ]
    assert "duplicate ack" in items[2]["reason"]


async def test_all_events_are_logged_where_that_is_set(database_url: str) -> None:
    """Where logging of all events and rows is on, each change carries the row after it."""
    async with service_on(database_url, changes="all", changes_rows=True) as client:
        await client.post("/v1/events", json=[*life(), event_json("node.heartbeat", 6)])
        items = (await follow(client, include="row"))["items"]
        row = (await client.get(f"/v1/entities/{NODE}")).json()
    assert len(items) == 6
    assert items[-1]["row"] == row
    assert (items[-1]["type"], items[-1]["before"], items[-1]["current_state"]) == (
        "node.heartbeat",
        "active",
        "active",
    )


async def test_a_poll_waits_for_the_next_change(client: httpx.AsyncClient) -> None:
    """A long poll is answered at the next change, or else when its wait ends."""
    waiting = asyncio.create_task(follow(client, after="now", wait=20))
    await asyncio.sleep(0.3)
    began = time.monotonic()
    await client.post("/v1/events", json=event_json("registration.initiated", 1))
    assert len((page := await waiting)["items"]) == 1
    assert time.monotonic() - began < 2
    began = time.monotonic()
    assert (await follow(client, after=page["next"], wait=0.5))["items"] == []
    assert 0.4 < time.monotonic() - began < 1.5


async def test_filters_of_the_query(client: httpx.AsyncClient) -> None:
    """Changes are filtered by entity, state (before or after), node type and event type; domains are separate."""
    await client.post("/v1/events", json=[*life(node(1)), *life(node(2), domain="edge")])
    queries: list[tuple[dict[str, Any], int]] = [
        ({"domain": "edge"}, 5),
        ({"entity_id": str(node(2))}, 0),
        ({"entity_id": [str(node(2)), str(node(1))]}, 5),
        ({"state": "accepted"}, 2),
        ({"state": ["accepted", "active"]}, 3),
        ({"node_type": "compute"}, 5),
        ({"node_type": "other"}, 0),
        ({"type": "registration.activated"}, 1),
        ({"limit": 2}, 2),
    ]
    for query, found in queries:
        assert len((await follow(client, **query))["items"]) == found, query


async def test_a_snapshot_is_followed_by_next_alone(client: httpx.AsyncClient) -> None:
    """Following `next` gives all rows by key in pages, and then the changes made since."""
    await client.post("/v1/events", json=[event for number in range(5) for event in life(node(number))])
    page = await follow(client, snapshot="true", limit=2)
    rows = list(page["items"])
    while not page["caught_up"]:
        page = await follow(client, after=page["next"], limit=2)
        rows += page["items"]
    assert [row["kind"] for row in rows] == ["row"] * 5
    assert [row["entity_id"] for row in rows] == sorted(str(node(number)) for number in range(5))
    whole = (await client.get(f"/v1/entities/{rows[0]['entity_id']}")).json()
    assert rows[0] == {"kind": "row", **whole}
    await client.post("/v1/events", json=event_json("registration.liveness_expired", 6, entity_id=node(1)))
    page = await follow(client, after=page["next"], wait=5)
    assert [(item["kind"], item["version"]) for item in page["items"]] == [("change", 6)]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"wait": 61}, "#/query/wait"),
        ({"wait": -1}, "#/query/wait"),
        ({"state": "gone"}, "#/query/state/0"),
        ({"include": "all"}, "#/query/include"),
        ({"include": "row"}, "#/query/include"),
        ({"limit": 0}, "#/query/limit"),
        ({"since": 1}, "#/query/since"),
    ],
)
async def test_what_is_wrong_with_a_query(shared: httpx.AsyncClient, query: dict[str, Any], pointer: str) -> None:
    """A wrong parameter gets 422 with its place; rows are refused where the log does not hold them."""
    answer = await shared.get(CHANGES, params=query)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


async def test_tokens_that_are_damaged_or_gone(client: httpx.AsyncClient, database_url: str) -> None:
    """A damaged token gets 400; a token of a lost history gets 410 with the ways to restart, in any media type."""
    await client.post("/v1/events", json=life())
    token = (await follow(client, limit=2))["next"]
    accepts = [{"Accept": each} for each in ("application/json", "application/x-ndjson", "text/event-stream")]
    for headers in accepts:
        damaged = await client.get(CHANGES, params={"after": token[:-1]}, headers=headers)
        assert (damaged.status_code, damaged.json()["detail"]) == (
            400,
            "the token is damaged: send one exactly as it was given",
        )
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE changes SET mark = mark + 1")
    await connection.close()
    await asyncio.sleep(1.5)  # the reader looks by itself, and finds another past
    query = {"after": token, "state": "active", "limit": 7}
    for headers in accepts:
        gone = await client.get(CHANGES, params=query, headers=headers)
        problem = gone.json()
        assert gone.status_code == 410
        assert gone.headers["content-type"] == "application/problem+json"
        assert (problem["type"], problem["reason"]) == ("urn:pqs:problem:changes-gone", "history")
        assert problem["snapshot"] == "/v1/changes?state=active&snapshot=true"
        assert len((await follow(client, after=problem["oldest"]))["items"]) == 5
        assert (await client.get(problem["snapshot"])).json()["items"][0]["kind"] == "row"


async def test_a_log_that_is_off(database_url: str) -> None:
    """Where the log is off, the call gets 501 and no change is written."""
    async with service_on(database_url, changes="off") as client:
        await client.post("/v1/events", json=life())
        answer = await client.get(CHANGES)
    assert answer.status_code == 501
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT count(*) FROM changes") == 0
    await connection.close()


async def test_too_many_followers(database_url: str) -> None:
    """Followers beyond PQS_FOLLOWERS get 503, until a follower leaves."""
    async with service_on(database_url, followers=1) as client:
        waiting = asyncio.create_task(follow(client, after="now", wait=1))
        await asyncio.sleep(0.3)
        refused = await client.get(CHANGES)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        await waiting
        await follow(client)


async def test_a_passed_deadline_and_a_rebase_are_logged(database_url: str) -> None:
    """Changes made by the sweep are marked `swept` and carry the service's own event."""
    async with service_on(database_url, sweep=True) as client:
        past = event_json("node.introspected", 1, occurred_at="2026-01-01T00:00:00Z")
        await client.post("/v1/events", json=past)
        page = await follow(client)
        while len(page["items"]) < 2:
            page = await follow(client, wait=0)
        swept = page["items"][1]
    assert (swept["outcome"], swept["before"], swept["current_state"]) == ("swept", "awaiting_ack", "ack_timed_out")
    assert swept["type"] == "registration.ack_timed_out"


# --- Streams, of a service that runs ------------------------------------------------------------------------------


@asynccontextmanager
async def served(
    tmp_path: Path, database_url: str, **settings: object
) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    """A service in a process of its own, and a client of it."""
    with serving(tmp_path, database_url=database_url, **settings) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:
            yield service, client


# A coded stream is streamed by ASGI; the other is pushed to its connection.
CODINGS = pytest.mark.parametrize("coding", ["gzip", "identity"])


async def events_of(lines: AsyncIterator[str], count: int) -> list[dict[str, str]]:
    """The next server-sent events of a stream, as many as asked for."""
    events: list[dict[str, str]] = []
    event: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event:
            events.append(event)
            event = {}
            if len(events) == count:
                break
    return events


@CODINGS
async def test_server_sent_events(tmp_path: Path, database_url: str, coding: str) -> None:
    """A stream sends its position at once, then each change, resumes from the last id, and ends with the service."""
    async with served(tmp_path, database_url) as (service, client):
        accept = {"Accept": "text/event-stream", "Accept-Encoding": coding}
        async with client.stream("GET", CHANGES, params={"after": "now"}, headers=accept) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.aiter_lines()
            [bookmark] = await events_of(lines, 1)
            assert bookmark["event"] == "bookmark"
            await client.post("/v1/events", json=life())
            events = await events_of(lines, 5)
        assert [event["event"] for event in events] == ["change"] * 5
        assert [json.loads(event["data"])["version"] for event in events] == [1, 2, 3, 4, 5]
        resumed = {**accept, "Last-Event-ID": events[2]["id"]}
        async with client.stream("GET", CHANGES, params={"after": "start"}, headers=resumed) as stream:
            lines = stream.aiter_lines()
            rest = await events_of(lines, 2)
            assert [json.loads(event["data"])["version"] for event in rest] == [4, 5]
            began = time.monotonic()
            service.press_ctrl_c()
            async for _ in lines:
                pass
        assert time.monotonic() - began < 3
        assert service.await_end() in {0, 130, -2}


@CODINGS
async def test_lines(tmp_path: Path, database_url: str, coding: str) -> None:
    """A snapshot and the changes after it come as lines, each with a token from which a client can resume."""
    async with served(tmp_path, database_url) as (_, client):
        await client.post("/v1/events", json=life())
        accept = {"Accept": "application/x-ndjson", "Accept-Encoding": coding}
        seen: list[dict[str, Any]] = []
        async with client.stream("GET", CHANGES, params={"snapshot": "true"}, headers=accept) as stream:
            async for line in stream.aiter_lines():
                seen.append(json.loads(line))
                if seen[-1]["kind"] == "row":
                    await client.post("/v1/events", json=event_json("registration.liveness_expired", 6))
                elif seen[-1]["kind"] == "change":
                    break
        assert [each["kind"] for each in seen] == ["row", "change"]
        page = await follow(client, after=seen[-2]["next"])
        assert [item["version"] for item in page["items"]] == [6]
        assert page["items"][0] == {name: value for name, value in seen[-1].items() if name != "next"}


async def all_of(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Read a long answer to its end."""
    async with client.stream("GET", CHANGES, params={"wait": 30, "after": "now"}, headers=headers) as stream:
        async for _ in stream.aiter_bytes():
            pass


async def test_who_hangs_up_is_no_follower_any_more(tmp_path: Path, database_url: str) -> None:
    """A poll or a stream whose client disconnects frees its place at once."""
    pushed = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
    async with served(tmp_path, database_url, followers=1) as (_, client):
        for headers in ({}, {"Accept": "text/event-stream"}, pushed):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(all_of(client, headers), 0.5)
            async with asyncio.timeout(5):
                while (await client.get(CHANGES)).status_code == 503:  # noqa: ASYNC110 - nobody is told
                    await asyncio.sleep(0.05)


async def test_two_processes_follow_each_other(tmp_path: Path, database_url: str) -> None:
    """A follower hears of a change committed by another process well before its own next poll of the database."""
    async with served(tmp_path, database_url) as (_, one):
        folder = tmp_path / "other"
        folder.mkdir()
        async with served(folder, database_url) as (_, other):
            lags = []
            page = await follow(other, after="now")
            for number in range(1, 6):
                waiting = asyncio.create_task(follow(other, after=page["next"], wait=20))
                await asyncio.sleep(0.4)
                began = time.monotonic()
                await one.post("/v1/events", json=event_json("registration.initiated", 1, entity_id=node(number)))
                page = await waiting
                lags.append(time.monotonic() - began)
                assert len(page["items"]) == 1
    assert min(lags) < 0.3
