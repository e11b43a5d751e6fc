"""Lookups: several entities by id."""

import json

import httpx
import pytest

from tests.making import event_json, life, node

PATH = "/v1/entities/lookup"
JSON = {"Content-Type": "application/json"}


async def test_found_and_missing_come_in_the_order_asked(shared: httpx.AsyncClient) -> None:
    """Registrations come in the order of the ids asked for; ids without a row are listed; repeated ids count once."""
    await shared.post("/v1/events", json=[event for number in (1, 2, 3) for event in life(node(number))])
    asked = [str(node(number)) for number in (3, 9, 1, 3, 8, 2)]
    answer = await shared.post(PATH, json={"entity_ids": asked})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert list(answer.json()) == ["items", "missing"]
    assert [item["entity_id"] for item in answer.json()["items"]] == [str(node(number)) for number in (3, 1, 2)]
    assert answer.json()["missing"] == [str(node(number)) for number in (9, 8)]


async def test_an_item_is_the_whole_row(shared: httpx.AsyncClient) -> None:
    """An item of a lookup equals the answer of the entity's own call."""
    await shared.post("/v1/events", json=life(node(4)))
    answer = await shared.post(PATH, json={"entity_ids": [str(node(4))]})
    assert answer.json()["items"] == [(await shared.get(f"/v1/entities/{node(4)}")).json()]


async def test_a_lookup_asks_one_domain(shared: httpx.AsyncClient) -> None:
    """`domain` is a query parameter, by default `registration`."""
    await shared.post("/v1/events", json=event_json("registration.initiated", 1, entity_id=node(5), domain="other"))
    body = {"entity_ids": [str(node(5))]}
    assert (await shared.post(PATH, json=body)).json()["missing"] == [str(node(5))]
    assert (await shared.post(f"{PATH}?domain=other", json=body)).json()["items"][0]["domain"] == "other"


async def test_a_lookup_of_nothing_finds_nothing(shared: httpx.AsyncClient) -> None:
    """A lookup without ids has no items and no missing ids."""
    assert (await shared.post(PATH, json={"entity_ids": []})).json() == {"items": [], "missing": []}


@pytest.mark.parametrize(("count", "status"), [(1000, 200), (1001, 422)])
async def test_a_lookup_holds_1000_ids(shared: httpx.AsyncClient, count: int, status: int) -> None:
    """A lookup of 1,000 ids is answered; 1,001 are a 422."""
    answer = await shared.post(PATH, json={"entity_ids": [str(node(number)) for number in range(100, 100 + count)]})
    assert answer.status_code == status
    if status == 200:
        assert len(answer.json()["missing"]) == count
    else:
        assert [error["pointer"] for error in answer.json()["errors"]] == ["#/entity_ids"]


UNREADABLE = {"empty": b"", "broken": b'{"entity_ids": [}', "NaN": b'{"entity_ids": [NaN]}', "not UTF-8": b"\xff"}


@pytest.mark.parametrize("case", UNREADABLE)
async def test_what_is_no_json_is_400(shared: httpx.AsyncClient, case: str) -> None:
    """A body that is not JSON is a 400."""
    answer = await shared.post(PATH, content=UNREADABLE[case], headers=JSON)
    assert (answer.status_code, list(answer.json())) == (400, ["type", "title", "status", "detail", "instance"])


WRONG: dict[str, tuple[object, str]] = {
    "an array": ([], "#"),
    "null": (None, "#"),
    "no ids": ({}, "#/entity_ids"),
    "ids that are no list": ({"entity_ids": str(node(1))}, "#/entity_ids"),
    "a bad id": ({"entity_ids": [str(node(1)), "node-17"]}, "#/entity_ids/1"),
    "a number": ({"entity_ids": [1]}, "#/entity_ids/0"),
    "an unknown field": ({"entity_ids": [], "domain": "other"}, "#/domain"),
    "a type": ({"entity_ids": [], "type": "unheard of"}, "#/type"),
    "the type of an event": ({"entity_ids": [], "type": "node.heartbeat"}, "#/type"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_no_lookup_is_422(shared: httpx.AsyncClient, case: str) -> None:
    """JSON that is not a lookup is a 422 that points at the fault."""
    body, pointer = WRONG[case]
    answer = await shared.post(PATH, content=json.dumps(body), headers=JSON)
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize("query", ["domain=", "domains=other", "limit=1"])
async def test_a_bad_parameter_is_422(shared: httpx.AsyncClient, query: str) -> None:
    """A lookup accepts the parameter `domain` and no other."""
    answer = await shared.post(f"{PATH}?{query}", json={"entity_ids": []})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"#/query/{query.partition('=')[0]}"
