"""A row that another client keeps locked for long delays only the requests that need it."""

import asyncio
import time
from pathlib import Path

import asyncpg
import httpx

from tests.making import NODE, event_json, node
from tests.postgres.servers import Postgres
from tests.processes import serving

HELD = 4.0  # seconds
PROVENANCE = {"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"}


async def _rate(client: httpx.AsyncClient, kind: int, until: float) -> tuple[int, float]:
    """The number of answers of one client after another, and the longest time of one."""
    answers, longest, sequence = 0, 0.0, 1
    while time.monotonic() < until:
        began = time.monotonic()
        sequence += 1
        sent = event_json("node.heartbeat", sequence, entity_id=node(kind))
        assert (await client.post("/v1/events", json=sent)).status_code == 200
        longest = max(longest, time.monotonic() - began)
        answers += 1
    return answers, longest


async def test_other_writes_go_on(postgres: Postgres, name: str, tmp_path: Path) -> None:
    """While a row is locked, and asked for again and again, the writes of others keep most of their pace."""
    with serving(tmp_path, database_url=postgres.url(name)) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            for each in (NODE, node(1), node(2)):
                sent = event_json("registration.initiated", 1, entity_id=each)
                assert (await client.post("/v1/events", json=sent)).status_code == 200
            free, _ = await _rate(client, 1, time.monotonic() + 2)
            locker = await asyncpg.connect(postgres.url(name))
            async with locker.transaction():
                await locker.execute(f"SELECT FROM registration_projections WHERE entity_id = '{NODE}' FOR UPDATE")
                began = time.monotonic()
                blocked = [
                    asyncio.create_task(client.post("/v1/events", json=event_json("node.heartbeat", number)))
                    for number in range(2, 6)
                ]
                await asyncio.sleep(0.01)
                during, longest = await _rate(client, 2, time.monotonic() + 2)
                later = asyncio.create_task(client.post("/v1/events", json=event_json("node.heartbeat", 6)))
                await asyncio.sleep(max(0.0, began + HELD - time.monotonic()))
                assert not any(each.done() for each in [*blocked, later])
            await locker.close()
            answers = await asyncio.gather(*blocked, later)
    assert [answer.json()["outcome"] for answer in answers] == ["applied"] * 5
    assert during > free / 2, (during, free)
    assert longest < 2.0


async def test_other_workflows_go_on(postgres: Postgres, name: str, tmp_path: Path) -> None:
    """The same holds for workflows."""

    async def commit(client: httpx.AsyncClient, key: str, version: int) -> httpx.Response:
        headers = {"If-Match": f'"{version}"'} if version else {"If-None-Match": "*"}
        sent = {"state": {"n": version}, "provenance": PROVENANCE}
        return await client.put(f"/v1/workflows/{key}", json=sent, headers=headers)

    with serving(tmp_path, database_url=postgres.url(name)) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            for key in ("a", "b"):
                assert (await commit(client, key, 0)).status_code == 201
            locker = await asyncpg.connect(postgres.url(name))
            async with locker.transaction():
                await locker.execute("SELECT FROM workflow_state WHERE workflow_key = 'a' FOR UPDATE")
                blocked = asyncio.create_task(commit(client, "a", 1))
                await asyncio.sleep(0.05)
                began = time.monotonic()
                for version in range(1, 21):
                    assert (await commit(client, "b", version)).status_code == 200
                assert time.monotonic() - began < HELD
                assert not blocked.done()
            await locker.close()
            assert (await blocked).status_code == 200


async def test_many_locked_rows_leave_reads_alone(postgres: Postgres, name: str, tmp_path: Path) -> None:
    """More locked rows than places: reads and other writes are answered, and the late ones end as 503."""
    nodes = [node(number) for number in range(12)]
    with serving(tmp_path, database_url=postgres.url(name), statement_timeout=4, pool_size=2) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            array = [event_json("registration.initiated", 1, entity_id=each) for each in [*nodes, NODE]]
            assert (await client.post("/v1/events", json=array)).status_code == 200
            locker = await asyncpg.connect(postgres.url(name))
            async with locker.transaction():
                await locker.execute("SELECT FROM registration_projections WHERE entity_id <> $1 FOR UPDATE", NODE)
                blocked = [
                    asyncio.create_task(
                        client.post("/v1/events", json=event_json("node.heartbeat", 2, entity_id=each))
                    )
                    for each in nodes
                ]
                await asyncio.sleep(0.8)
                began = time.monotonic()
                assert (await client.get(f"/v1/entities/{nodes[0]}")).status_code == 200
                assert (await client.post("/v1/events", json=event_json("node.heartbeat", 2))).status_code == 200
                assert time.monotonic() - began < 3.0
                done, _ = await asyncio.wait(blocked, return_when=asyncio.FIRST_COMPLETED)
                assert {each.result().status_code for each in done} == {503}
            await locker.close()
            await asyncio.gather(*blocked)
