"""Reads that wait, on running services: clients that hang up, a stop, revoked keys, and both paths of an answer."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.store import keys
from app.store.database import Database
from tests.access.making import change, new_key
from tests.api.test_overdue_waits import overdue_in
from tests.connections import Served, get, post, until
from tests.making import NODE, event_json, life
from tests.processes import Service, serving

ENTITY = f"/v1/entities/{NODE}"
OVERDUE = "/v1/overdue/ack"
# A wait of each kind: its path, and its query. The first is answered by FastAPI, the second without it.
KINDS: list[tuple[str, dict[str, Any]]] = [(ENTITY, {"after_version": 5, "wait": 30}), (OVERDUE, {"wait": 30})]
BOTH = pytest.mark.parametrize(("path", "query"), KINDS, ids=["entity", "overdue"])


@asynccontextmanager
async def served(
    tmp_path: Path, database_url: str, **settings: object
) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """A service in a process of its own, and a client of it."""
    with serving(tmp_path, database_url=database_url, **settings) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=40) as client:
            yield service, client


async def wait(client: httpx.AsyncClient, path: str, query: dict[str, Any]) -> httpx.Response:
    """Wait for an answer that differs from the current one."""
    headers = {}
    if path == OVERDUE:
        headers["If-None-Match"] = (await client.get(path)).headers["etag"]
    return await client.get(path, params=query, headers=headers)


async def waiting_reads(client: httpx.AsyncClient, count: int) -> None:
    """Wait until this many reads wait."""
    async with asyncio.timeout(10):
        while f"pqs_waiting_reads {count}.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@BOTH
async def test_who_hangs_up_does_not_wait_any_more(
    tmp_path: Path, database_url: str, path: str, query: dict[str, Any]
) -> None:
    """A wait whose client disconnects makes room at once for another, which is woken."""
    async with served(tmp_path, database_url, followers=1) as (_, client):
        await client.post("/v1/events", json=life())
        task = asyncio.create_task(wait(client, path, query))
        await waiting_reads(client, 1)
        assert (await wait(client, path, query)).status_code == 503
        task.cancel()
        await waiting_reads(client, 0)
        task = asyncio.create_task(wait(client, path, query))
        await waiting_reads(client, 1)
        events = [event_json("node.heartbeat", 6), overdue_in(1, -5)]
        assert (await client.post("/v1/events", json=events)).status_code == 200
        assert (await asyncio.wait_for(task, 10)).status_code == 200


@BOTH
async def test_a_long_wait_is_not_a_slow_request(
    tmp_path: Path, database_url: str, path: str, query: dict[str, Any]
) -> None:
    """Whatever it waited for, it has no line in a log of problems; nor has the connection that hears of commits."""
    async with served(tmp_path, database_url, slow=2) as (service, client):
        await client.post("/v1/events", json=life())
        assert (await wait(client, path, query | {"wait": 4})).status_code == 304
        service.press_ctrl_c()
        service.await_end()
        assert "/v1/overdue" not in service.log
        assert f"GET {ENTITY} 304" not in service.log
        assert "slow: hear" not in service.log


@BOTH
async def test_a_stop_ends_all_waits(tmp_path: Path, database_url: str, path: str, query: dict[str, Any]) -> None:
    """A stop ends all waits at once, with the answer that nothing has changed."""
    async with served(tmp_path, database_url) as (service, client):
        await client.post("/v1/events", json=life())
        tasks = [asyncio.create_task(wait(client, path, query)) for _ in range(5)]
        await waiting_reads(client, 5)
        began = time.monotonic()
        service.press_ctrl_c()
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {304}
        assert time.monotonic() - began < 3
        service.await_end()


@BOTH
async def test_a_key_that_was_revoked_meanwhile(
    tmp_path: Path, database_url: str, database: Database, path: str, query: dict[str, Any]
) -> None:
    """If the key is revoked during a wait, the answer at its end is a 401."""
    scopes = ("entities:read", "events:write", "metrics:read")
    key, other = [await new_key(database, name, scopes=scopes, rate=1e3, burst=1e3) for name in ("one", "other")]
    async with served(tmp_path, database_url, auth="required") as (service, client):
        client.headers["Authorization"] = f"Bearer {other.text}"
        await client.post("/v1/events", json=life())
        async with httpx.AsyncClient(base_url=service.url, timeout=40) as revoked:
            revoked.headers["Authorization"] = f"Bearer {key.text}"
            task = asyncio.create_task(wait(revoked, path, query))
            await waiting_reads(client, 1)
            await change(database, lambda connection: keys.revoke(connection, [key.id]))
            async with asyncio.timeout(10):
                while (await revoked.get(ENTITY)).status_code == 200:  # noqa: ASYNC110 - nobody is told
                    await asyncio.sleep(0.1)
            assert not task.done()
            events = [event_json("node.heartbeat", 6), overdue_in(1, -5)]
            await client.post("/v1/events", json=events)
            assert (await task).status_code == 401


@pytest.mark.parametrize("ends", ["changes", "time"])
async def test_both_ways_of_a_wait_answer_alike(hot: Served, ends: str) -> None:
    """Waits answer alike on the direct path and, with an escaped query, on FastAPI's path."""
    seconds = 1 if ends == "time" else 20
    async with hot.connect() as first, hot.connect() as second:
        tag = (await first.ask(get(OVERDUE + "?limit=1", hot=False))).header("etag")
        ways = len(hot.ways)
        headers = (f"If-None-Match: {tag}", f"Prefer: wait={seconds}")
        tasks = [
            asyncio.create_task(client.ask(get(f"{OVERDUE}?limit=1&domain={domain}", *headers)))
            for client, domain in ((first, "registration"), (second, "re%67istration"))
        ]
        waits = hot.app.state.service.waits
        await until(lambda: waits.count == 2)
        assert hot.ways[ways:] == [True, False]
        if ends == "changes":
            events = [overdue_in(number, 0.5) for number in (1, 2, 3)]
            for event in events:
                event["data"]["ack_deadline"] = events[0]["data"]["ack_deadline"]
            async with hot.connect() as writer:
                assert (await writer.ask(post(events))).status == 200
        one, other = await asyncio.gather(*tasks)
    assert one.status == other.status == (200 if ends == "changes" else 304)
    assert one.body == other.body
    own = {"x-correlation-id", "date", "link"}
    assert sorted(h for h in one.headers if h[0] not in own) == sorted(h for h in other.headers if h[0] not in own)
    assert (one.header("link") is None) == (other.header("link") is None) == (ends == "time")
