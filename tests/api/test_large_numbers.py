"""Positions above 2^53, which a floating-point number cannot hold, are exact in every answer."""

import httpx
import msgspec
import pytest

from tests.making import event_json, node

LARGE = [2**53 + 1, 2**62 + 1, 2**63 - 1]


@pytest.mark.parametrize("number", LARGE)
async def test_a_large_position_is_exact_everywhere(shared: httpx.AsyncClient, number: int) -> None:
    """A large position is exact in results (event, array, stream), rows, lists, lookups and problems."""
    id_ = node(number)
    domain = f"large{number}"
    position = {"partition": "p", "offset": number}
    first = event_json(
        "registration.initiated", 1, entity_id=id_, domain=domain, position=position | {"previous": None}
    )
    sent = msgspec.json.encode(first).replace(b'"offset":%d' % number, b'"offset":%d.0' % number)
    answer = await shared.post("/v1/events", content=sent, headers={"Content-Type": "application/json"})
    assert answer.json()["stands_at"] == {"partition": "p", "offset": number}
    [result] = (await shared.post("/v1/events", json=[first])).json()["results"]
    assert (result["outcome"], result["stands_at"]["offset"]) == ("duplicate", number)
    stream = await shared.post("/v1/events", json=first, headers={"Content-Type": "application/x-ndjson"})
    assert msgspec.json.decode(stream.content.splitlines()[0])["stands_at"]["offset"] == number
    clash = first | {"event_id": str(node(1))}
    problem = await shared.post("/v1/events", json=clash)
    assert (problem.status_code, problem.json()["stands_at"]["offset"]) == (409, number)
    query = {"domain": domain}
    rows = [
        (await shared.get(f"/v1/entities/{id_}", params=query)).json(),
        (await shared.get("/v1/entities", params=query)).json()["items"][0],
        (await shared.post("/v1/entities/lookup", params=query, json={"entity_ids": [str(id_)]})).json()["items"][0],
    ]
    assert [row["last_applied_offset"] for row in rows] == [number] * 3
