"""A full queue, over HTTP: a new request is refused at once, and the waiting requests are still answered."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.connections import PATIENCE, locked
from tests.making import event_json, node

BOUND = 2
ONE = f"/v1/entities/{node(0)}"


async def post(client: httpx.AsyncClient, number: int) -> httpx.Response:
    """Register a node."""
    return await client.post("/v1/events", json=event_json("registration.initiated", 1, entity_id=node(number)))


async def get(client: httpx.AsyncClient, _: int) -> httpx.Response:
    """Read a node."""
    return await client.get(ONE)


@pytest.mark.parametrize(("ask", "usual"), [(post, 200), (get, 404)], ids=["post", "get"])
async def test_past_the_bound_it_is_503_at_once(
    client: httpx.AsyncClient, database_url: str, ask: Any, usual: int
) -> None:
    """A request past the queue's bound gets a 503 with `Retry-After` at once; waiting ones get their own answers."""
    service = client._transport.app.state.service  # type: ignore[attr-defined]  # httpx does not say which transport
    lane = service.writer._lanes._joined if ask is post else service.reader._lane
    lane._bound = BOUND
    async with locked(database_url) as met:
        asked = [asyncio.create_task(ask(client, 0))]
        await met()
        asked += [asyncio.create_task(ask(client, number)) for number in range(1, BOUND + 1)]
        async with asyncio.timeout(PATIENCE):
            while len(lane._waiting) < BOUND:  # noqa: ASYNC110 - the lane tells nobody
                await asyncio.sleep(0.001)
        answer = await ask(client, BOUND + 1)
        assert not any(task.done() for task in asked)
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["detail"] == "too many requests are waiting for the database"
    assert [each.status_code for each in await asyncio.gather(*asked)] == [usual] * (BOUND + 1)
