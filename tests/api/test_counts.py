"""How many entities are in each state."""

import httpx
import pytest

from app.domain.states import RegistrationState
from tests.making import event_json, life, node

PATH = "/v1/state-counts"


async def test_counts_have_all_states(shared: httpx.AsyncClient) -> None:
    """Counts list the eight states in their order, empty states with 0."""
    answer = await shared.get(f"{PATH}?domain=nothing")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert list(answer.json()) == ["domain", "counts", "total"]
    assert list(answer.json()["counts"]) == [str(state) for state in RegistrationState]
    assert answer.json() == {"domain": "nothing", "counts": dict.fromkeys(RegistrationState, 0), "total": 0}


async def test_counts_are_of_one_domain(shared: httpx.AsyncClient) -> None:
    """Counts give the rows in each state of one domain (`registration` by default), and their sum."""
    events = [event for number in range(5) for event in life(node(number))[: number + 1]]
    events.append(event_json("registration.rejected", 2, entity_id=node(0)))
    events.append(event_json("registration.initiated", 1, entity_id=node(0), domain="other"))
    await shared.post("/v1/events", json=events)
    assert (await shared.get(PATH)).json() == {
        "domain": "registration",
        "counts": {
            "pending_registration": 0,
            "accepted": 1,
            "awaiting_ack": 1,
            "rejected": 1,
            "ack_timed_out": 0,
            "ack_received": 1,
            "active": 1,
            "liveness_expired": 0,
        },
        "total": 5,
    }
    assert (await shared.get(f"{PATH}?domain=other")).json()["total"] == 1


@pytest.mark.parametrize("query", ["domain=", "state=active", f"domain={'d' * 129}", "domain=a%00"])
async def test_a_bad_parameter_is_422(shared: httpx.AsyncClient, query: str) -> None:
    """Counts accept the parameter `domain` and no other."""
    answer = await shared.get(f"{PATH}?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"#/query/{query.partition('=')[0]}"
