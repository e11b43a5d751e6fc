"""Waiting for deadlines: the page of what is overdue, as soon as it is another one."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest

from tests.api.conftest import service_on
from tests.making import Json, event_json, node

ACK = "/v1/overdue/ack"
LIVENESS = "/v1/overdue/liveness"


def overdue_in(number: int, seconds: float, state: str = "accepted", **more: object) -> Json:
    """An event that makes a row whose deadline passes in so many seconds."""
    deadline = datetime.now(UTC) + timedelta(seconds=seconds)
    name = "ack_deadline" if state == "accepted" else "liveness_deadline"
    data = {"current_state": state, "node_type": "compute", "registered_at": "2026-01-01T00:00:00Z"}
    return event_json(
        "registration.recorded", 1, entity_id=node(number), data={**data, name: deadline.isoformat()}, **more
    )


async def page(client: httpx.AsyncClient, path: str = ACK, tag: str = "", **query: Any) -> httpx.Response:
    """A page."""
    return await client.get(path, params=query, headers={"If-None-Match": tag} if tag else {})


def numbers(answer: httpx.Response) -> list[str]:
    """The entities of a page."""
    return [item["entity_id"] for item in answer.json()["items"]]


@pytest.mark.parametrize(("path", "state"), [(ACK, "accepted"), (LIVENESS, "active")])
async def test_a_page_has_a_tag(client: httpx.AsyncClient, path: str, state: str) -> None:
    """It stays while the rows do, and is another one when a row of the page changes."""
    await client.post("/v1/events", json=[overdue_in(1, -5, state), overdue_in(2, -4, state)])
    first = await page(client, path)
    tag = first.headers["etag"]
    assert tag.startswith('W/"')
    assert (await page(client, path)).headers["etag"] == tag
    same = await page(client, path, tag)
    assert (same.status_code, same.headers["etag"], same.content) == (304, tag, b"")
    event = event_json("registration.recorded", 2, entity_id=node(2), data={**overdue_in(2, -3, state)["data"]})
    await client.post("/v1/events", json=event)
    other = await page(client, path, tag)
    assert (other.status_code, other.headers["etag"] == tag) == (200, False)
    limited = await page(client, path, limit=1)
    assert limited.headers["etag"] != (await page(client, path, limit=2)).headers["etag"]
    assert "etag" not in (await page(client, path, cursor=limited.json()["next_cursor"], wait=20)).headers


@pytest.mark.parametrize(("path", "state"), [(ACK, "accepted"), (LIVENESS, "active")])
async def test_a_deadline_wakes(client: httpx.AsyncClient, path: str, state: str) -> None:
    """The answer comes in the moment it passes, by the database's clock."""
    tag = (await page(client, path)).headers["etag"]
    event = overdue_in(1, 1.3, state)
    await client.post("/v1/events", json=event)
    deadline = datetime.fromisoformat(next(value for name, value in event["data"].items() if "deadline" in name))
    answer = await page(client, path, tag, wait=20)
    assert (answer.status_code, numbers(answer)) == (200, [str(node(1))])
    late = datetime.now(UTC) - deadline
    assert timedelta(0) < late < timedelta(seconds=0.5)
    assert 0 < answer.json()["items"][0]["overdue_seconds"] < 0.5


async def test_a_change_wakes(client: httpx.AsyncClient) -> None:
    """A row that is overdue from the first, and one that is no longer."""
    tag = (await page(client)).headers["etag"]
    for event, expected in (
        (overdue_in(1, -5), [str(node(1))]),
        (event_json("registration.ack_received", 2, entity_id=node(1)), []),
    ):
        task = asyncio.create_task(page(client, tag=tag, wait=20))
        await asyncio.sleep(0.3)
        assert not task.done()
        began = time.monotonic()
        await client.post("/v1/events", json=event)
        answer = await task
        assert time.monotonic() - began < 0.9
        assert numbers(answer) == expected
        tag = answer.headers["etag"]


async def test_the_end_of_a_wait(client: httpx.AsyncClient) -> None:
    """304 after 0.9 to 1.0 of it, with what was applied; without `If-None-Match` nothing is waited for."""
    tag = (await page(client)).headers["etag"]
    began = time.monotonic()
    answer = await client.get(ACK, headers={"If-None-Match": tag, "Prefer": "wait=1"})
    assert 0.9 <= time.monotonic() - began < 1.6
    assert (answer.status_code, answer.headers["etag"]) == (304, tag)
    assert answer.headers["preference-applied"] == "wait=1"
    began = time.monotonic()
    answer = await client.get(ACK, headers={"Prefer": "wait=20"})
    assert (answer.status_code, answer.headers.get("preference-applied")) == (200, None)
    assert (await page(client, tag=tag, wait=20, as_of="2026-01-01T00:00:00Z")).status_code == 304
    assert time.monotonic() - began < 5


async def test_a_thousand_waits_for_one_deadline(database_url: str) -> None:
    """All are told, with the same page, and one board reads for them: no wait holds a connection."""
    async with service_on(database_url, pool_size=2) as client:
        tag = (await page(client)).headers["etag"]
        tasks = [asyncio.create_task(page(client, tag=tag, wait=30)) for _ in range(1000)]
        await asyncio.sleep(2.5)
        connection = await asyncpg.connect(database_url)
        held = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pqs'"
        busy = f"{held} AND state <> 'idle'"
        assert await connection.fetchval(held) <= 2 + 2 + 4 + 2  # those of reads, scans, the feed and the access
        assert max([await connection.fetchval(busy) for _ in range(20)]) <= 3
        reads = "SELECT sum(xact_commit) FROM pg_stat_database WHERE datname = current_database()"
        before = await connection.fetchval(reads)
        await asyncio.sleep(2)
        assert await connection.fetchval(reads) - before < 100
        await connection.close()
        assert (await client.post("/v1/events", json=overdue_in(1, 1))).status_code == 200
        answers = await asyncio.gather(*tasks)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
