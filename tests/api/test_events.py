"""Events in, over HTTP."""

import httpx

from tests.making import NODE, event_json, life


async def test_one_event_makes_one_row(client: httpx.AsyncClient) -> None:
    """An event that begins a registration is applied, and the row can be read."""
    answer = await client.post("/v1/events", json=event_json("registration.initiated", 1))
    assert answer.status_code == 200
    assert answer.json()["outcome"] == "applied"
    row = (await client.get(f"/v1/entities/{NODE}")).json()
    assert row["current_state"] == "pending_registration"
    assert row["version"] == 1


async def test_a_registration_that_goes_well_ends_active(client: httpx.AsyncClient) -> None:
    """The five events of a registration, in one array, lead to `active`."""
    answer = await client.post("/v1/events", json=life())
    assert answer.json()["summary"]["applied"] == 5
    state = await client.get(f"/v1/entities/{NODE}/state", headers={"Accept": "text/plain"})
    assert state.text == "active"
