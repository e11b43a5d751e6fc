"""Triggers posted over HTTP: the answers, and the events that follow."""

import json
from uuid import UUID, uuid5

import httpx
import pytest

from app.api.bodies import NDJSON
from tests.making import NODE, Json, event_json, node

RESULT = ["event_id", "outcome", "reason", "entity_id", "domain", "current_state", "version", "stands_at"]
PROBLEM = ["type", "title", "status", "detail", "instance"]
INTROSPECTED = event_json("node.introspected", 1)
ACKED = event_json("node.registration_acked", 2)


def followed(trigger: Json, *types: str) -> list[Json]:
    """The events that an answer names."""
    return [{"event_id": str(uuid5(UUID(trigger["event_id"]), type_)), "type": type_} for type_ in types]


async def test_the_answer_to_a_trigger_names_what_followed(client: httpx.AsyncClient) -> None:
    """The answer is that of an event, plus `events`: ids and types of the events that followed, in order."""
    answer = await client.post("/v1/events", json=INTROSPECTED)
    assert answer.status_code == 200
    assert list(answer.json()) == [*RESULT, "events"]
    assert answer.json() == {
        "event_id": INTROSPECTED["event_id"],
        "outcome": "applied",
        "reason": None,
        "entity_id": str(NODE),
        "domain": "registration",
        "current_state": "awaiting_ack",
        "version": 3,
        "stands_at": {"sequence": 1},
        "events": followed(
            INTROSPECTED, "registration.initiated", "registration.accepted", "registration.ack_requested"
        ),
    }


@pytest.mark.parametrize("type_", ["node.heartbeat", "registration.ack_received"])
async def test_the_answer_to_a_fact_is_as_it_was(client: httpx.AsyncClient, type_: str) -> None:
    """A heartbeat or any other fact has no `events` in its answer."""
    await client.post("/v1/events", json=INTROSPECTED)
    answer = await client.post("/v1/events", json=event_json(type_, 2))
    assert list(answer.json()) == RESULT


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        (INTROSPECTED, "duplicate"),
        (event_json("node.introspected", 0), "stale"),
        (event_json("node.introspected", 9), "ignored"),
    ],
    ids=["duplicate", "stale", "ignored"],
)
async def test_a_trigger_from_which_nothing_follows_says_so(
    client: httpx.AsyncClient, sent: Json, outcome: str
) -> None:
    """`events` is empty if the trigger was not applied."""
    await client.post("/v1/events", json=INTROSPECTED)
    answer = await client.post("/v1/events", json=sent)
    assert (answer.status_code, answer.json()["outcome"], answer.json()["events"]) == (200, outcome, [])


@pytest.mark.parametrize(
    ("position", "outcome"),
    [({"sequence": 9, "previous": 8}, "early"), ({"partition": "p", "offset": 1}, "conflict")],
)
async def test_a_trigger_that_is_kept_out_is_a_problem(
    client: httpx.AsyncClient, position: Json, outcome: str
) -> None:
    """Early and conflict are a 409 with the same fields; only early has `Retry-After`."""
    await client.post("/v1/events", json=INTROSPECTED)
    answer = await client.post("/v1/events", json={**ACKED, "position": position})
    assert answer.status_code == 409
    assert list(answer.json()) == [*PROBLEM, *RESULT, "events"]
    assert (answer.json()["outcome"], answer.json()["events"]) == (outcome, [])
    assert ("Retry-After" in answer.headers) == (outcome == "early")


async def test_an_array_names_what_followed_from_each_trigger(client: httpx.AsyncClient) -> None:
    """In an array, results of triggers have `events` and results of facts do not; all are folded by position."""
    heartbeat = event_json("node.heartbeat", 3)
    answer = await client.post("/v1/events", json=[heartbeat, ACKED, INTROSPECTED])
    assert answer.json()["summary"]["applied"] == 3
    first, second, third = answer.json()["results"]
    assert list(first) == RESULT
    assert second["events"] == followed(ACKED, "registration.ack_received", "registration.activated")
    assert [third["version"], second["version"], first["version"]] == [3, 5, 6]


async def test_a_stream_shows_triggers_that_were_not_applied(client: httpx.AsyncClient) -> None:
    """Lines for triggers that were not applied have `events`, as single answers do; lines for facts do not."""
    sent = [INTROSPECTED, {**INTROSPECTED, "position": {"sequence": 2}}, event_json("registration.rejected", 3)]
    body = "".join(json.dumps(each) + "\n" for each in sent)
    answer = await client.post("/v1/events", content=body, headers={"Content-Type": NDJSON})
    trigger, fact, last = (json.loads(line) for line in answer.text.splitlines())
    assert (list(trigger), trigger["line"], trigger["events"]) == (["line", *RESULT, "events"], 2, [])
    assert (list(fact), fact["line"]) == (["line", *RESULT], 3)
    assert (last["summary"]["applied"], last["summary"]["ignored"]) == (1, 2)


@pytest.mark.parametrize("shape", ["object", "array"])
async def test_a_dry_run_names_what_would_follow(client: httpx.AsyncClient, shape: str) -> None:
    """A dry run gives the same answer as the trigger itself, and writes nothing."""
    body = INTROSPECTED if shape == "object" else [INTROSPECTED]
    foreseen = (await client.post("/v1/events?dry_run=true", json=body)).json()
    assert (await client.get(f"/v1/entities/{NODE}")).status_code == 404
    assert foreseen == (await client.post("/v1/events", json=body)).json()


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        (event_json("node.introspected", 1, data={}), "#/data/node_type"),
        (event_json("node.introspected", 1, data={"node_type": "x", "state": "active"}), "#/data/state"),
        (event_json("node.registration_acked", 1, data={"by": "me"}), "#/data/by"),
        (event_json("node.deregistered", 1, data={"why": "tired"}), "#/data/why"),
    ],
)
async def test_what_a_trigger_may_say_is_checked(client: httpx.AsyncClient, wrong: Json, pointer: str) -> None:
    """Unknown and missing fields in a trigger's data are a 422 that points at them."""
    answer = await client.post("/v1/events", json=wrong)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


async def test_the_clients_correlation_id_is_kept_with_what_followed(client: httpx.AsyncClient) -> None:
    """Events that follow from a trigger without a correlation id have the request's id, and so has the row."""
    headers = {"X-Correlation-ID": str(node(1))}
    await client.post("/v1/events", json=INTROSPECTED, headers=headers)
    assert (await client.get(f"/v1/entities/{NODE}")).json()["correlation_id"] == str(node(1))
