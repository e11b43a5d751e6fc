"""Pages are also limited in bytes: a thousand rows may have 64 KiB each, and workflows 1 MiB."""

from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest

from app.store.statements import PAGE_BYTES
from tests.api.conftest import service_on
from tests.databases import new_database
from tests.making import Json, at, event_json, node

ROWS = 300
LARGE = {"x": "y" * 60_000}
WORKFLOWS = 20
FULL = PAGE_BYTES + 200_000  # bytes of a page: of its JSON, and of the columns beside


@pytest.fixture(scope="module")
async def heavy() -> AsyncIterator[httpx.AsyncClient]:
    """A service with large overdue rows and large workflows."""
    async with new_database() as url, service_on(url) as client:
        for state, deadline in (("accepted", "ack_deadline"), ("active", "liveness_deadline")):
            data = {"current_state": state, "node_type": "c", "registered_at": at(0), "capabilities": LARGE}
            for first in range(0, ROWS, 100):
                sent = [
                    event_json(
                        "registration.recorded",
                        1,
                        entity_id=node(number),
                        domain=state,
                        data=data | {deadline: at(number // 2)},
                    )
                    for number in range(first, first + 100)
                ]
                (await client.post("/v1/events", json=sent)).raise_for_status()
        for number in range(WORKFLOWS):
            commit = {
                "state": {"x": "y" * 900_000},
                "provenance": {"effect_id": "e", "timestamp": at(number)},
                "schema_version": 1.0,
            }
            answer = await client.put(f"/v1/workflows/w{number:02}", json=commit, headers={"If-None-Match": "*"})
            answer.raise_for_status()
        yield client


PATHS = {
    "/v1/entities?domain=active": ROWS,
    "/v1/entities?domain=active&state=active&state=accepted": ROWS,
    f"/v1/overdue/ack?domain=accepted&as_of={at(5000)}": ROWS,
    f"/v1/overdue/liveness?domain=active&as_of={at(5000)}": ROWS,
    "/v1/workflows?": WORKFLOWS,
}


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_ends_before_it_is_too_large(heavy: httpx.AsyncClient, path: str) -> None:
    """A page ends before it is too large, its cursor continues, and all pages together have each row once."""
    items: list[Json] = []
    sizes: list[int] = []
    cursor = ""
    while True:
        answer = await heavy.get(f"{path}&limit=1000{cursor}")
        page = answer.json()
        items += page["items"]
        sizes.append(len(answer.content))
        assert ("link" in answer.headers) == (page["next_cursor"] is not None)
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert len({item.get("entity_id") or item["workflow_key"] for item in items}) == len(items) == PATHS[path]
    assert len(sizes) > 1
    assert max(sizes) < FULL
    assert min(sizes[:-1]) > PAGE_BYTES - 1_000_000


async def test_a_list_as_lines_has_them_all(heavy: httpx.AsyncClient) -> None:
    """A stream of lines continues where a page would have ended early."""
    answer = await heavy.get("/v1/entities?domain=active", headers={"Accept": "application/x-ndjson"})
    assert len({msgspec.json.decode(line)["entity_id"] for line in answer.content.splitlines()}) == ROWS


async def test_a_row_that_is_larger_than_a_page_is_one(
    heavy: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page has at least one row, however large, so paging makes progress."""
    monkeypatch.setattr("app.store.statements.PAGE_BYTES", 10)
    page = (await heavy.get("/v1/workflows?limit=5")).json()
    assert [item["workflow_key"] for item in page["items"]] == ["w00"]
    assert page["next_cursor"] is not None
