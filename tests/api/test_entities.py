"""Entities: one entity, its state, and lists."""

import json
from collections.abc import Mapping
from uuid import UUID

import httpx
import pytest

from app.domain.states import RegistrationState
from tests.api.conftest import service_on
from tests.databases import new_database
from tests.making import NODE, Json, at, event_json, life, node

COLUMNS = [
    "entity_id",
    "domain",
    "current_state",
    "node_type",
    "node_version",
    "capabilities",
    "ack_deadline",
    "liveness_deadline",
    "last_heartbeat_at",
    "ack_timeout_emitted_at",
    "liveness_timeout_emitted_at",
    "last_applied_event_id",
    "last_applied_partition",
    "last_applied_offset",
    "last_applied_sequence",
    "registered_at",
    "updated_at",
    "correlation_id",
    "version",
]
MISSING = node(404)
NDJSON = {"Accept": "application/x-ndjson"}
CORRELATION_ID = "3f0c1a52-7d7e-4f2b-9c63-5f1f0c8f2f7d"
RECORDED = event_json(
    "registration.recorded",
    1,
    position={"partition": "nodes-0", "offset": 2**63 - 1},
    occurred_at="2026-01-01T05:30:00.5+05:30",
    correlation_id=CORRELATION_ID.upper(),
    data={
        "current_state": "awaiting_ack",
        "node_type": "stör\u2028age",
        "node_version": "2.0.0-rc.1",
        "capabilities": {"gpu": True, "cores": 64, "nested": {"a": [1, None, 0.5]}},
        "registered_at": "2025-12-31T19:00:00-05:00",
        "ack_deadline": "2026-01-01T00:00:00.000001Z",
        "liveness_deadline": "2026-01-01T00:00:00.120Z",
        "last_heartbeat_at": "1900-01-01T00:00:00Z",
        "ack_timeout_emitted_at": "9998-12-31T23:59:59.999999Z",
        "liveness_timeout_emitted_at": "2026-02-28T23:59:59.9Z",
    },
)


async def test_an_entity_has_all_columns(client: httpx.AsyncClient) -> None:
    """The answer has each column in the table's order; times are in UTC, with a fraction unless it is zero."""
    await client.post("/v1/events", json=RECORDED)
    answer = await client.get(f"/v1/entities/{NODE}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert list(answer.json()) == COLUMNS
    assert answer.json() == {
        "entity_id": str(NODE),
        "domain": "registration",
        "current_state": "awaiting_ack",
        "node_type": "stör\u2028age",
        "node_version": "2.0.0-rc.1",
        "capabilities": {"gpu": True, "cores": 64, "nested": {"a": [1, None, 0.5]}},
        "ack_deadline": "2026-01-01T00:00:00.000001Z",
        "liveness_deadline": "2026-01-01T00:00:00.120000Z",
        "last_heartbeat_at": "1900-01-01T00:00:00Z",
        "ack_timeout_emitted_at": "9998-12-31T23:59:59.999999Z",
        "liveness_timeout_emitted_at": "2026-02-28T23:59:59.900000Z",
        "last_applied_event_id": RECORDED["event_id"],
        "last_applied_partition": "nodes-0",
        "last_applied_offset": 2**63 - 1,
        "last_applied_sequence": None,
        "registered_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00.500000Z",
        "correlation_id": CORRELATION_ID,
        "version": 1,
    }


async def test_an_entity_has_defaults_and_nulls(client: httpx.AsyncClient) -> None:
    """A column that no event has set is null or its default, and never left out."""
    await client.post("/v1/events", json=event_json("registration.initiated", 1))
    row = (await client.get(f"/v1/entities/{NODE}")).json()
    assert list(row) == COLUMNS
    assert {name for name, value in row.items() if value is None} == {
        "ack_deadline",
        "liveness_deadline",
        "last_heartbeat_at",
        "ack_timeout_emitted_at",
        "liveness_timeout_emitted_at",
        "last_applied_partition",
        "last_applied_offset",
        "correlation_id",
    }
    assert (row["node_version"], row["capabilities"]) == ("1.0.0", {})


@pytest.mark.parametrize("path", [f"/v1/entities/{MISSING}", f"/v1/entities/{MISSING}/state"])
async def test_an_entity_without_a_row_is_404(shared: httpx.AsyncClient, path: str) -> None:
    """A read of an unknown entity gets a 404 that names it."""
    answer = await shared.get(path)
    assert answer.status_code == 404
    assert list(answer.json()) == ["type", "title", "status", "detail", "instance"]
    assert str(MISSING) in answer.json()["detail"]
    assert answer.json()["instance"] == path


@pytest.mark.parametrize("path", ["/v1/entities/node-17", "/v1/entities/node-17/state"])
async def test_an_entity_id_is_a_uuid(shared: httpx.AsyncClient, path: str) -> None:
    """An entity id that is not a UUID is a 422 that points at the path."""
    answer = await shared.get(path)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/path/entity_id"]


# --- ETags ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def active(shared: httpx.AsyncClient) -> httpx.AsyncClient:
    """A service with one node, `active`, at version 5."""
    await shared.post("/v1/events", json=life(domain="active"))
    return shared


TAGS = {
    '"5"': 304,
    'W/"5"': 304,
    '"4", "5"': 304,
    '"4",W/"5" , "6"': 304,
    "*": 304,
    " * ": 304,
    '"4"': 200,
    '"4", W/"6"': 200,
    "5": 200,
    '"55"': 200,
    '"*"': 200,
    "": 200,
}


@pytest.mark.parametrize("header", TAGS)
async def test_an_unchanged_entity_is_304(active: httpx.AsyncClient, header: str) -> None:
    """If `If-None-Match` has the row's ETag (compared weakly) or `*`, the answer is a 304 without a body."""
    answer = await active.get(f"/v1/entities/{NODE}?domain=active", headers={"If-None-Match": header})
    assert answer.status_code == TAGS[header]
    assert answer.headers["etag"] == '"5"'
    assert (answer.content == b"") == (answer.status_code == 304)


async def test_several_headers_are_one_list(active: httpx.AsyncClient) -> None:
    """`If-None-Match` may be spread over several header lines."""
    headers = [("If-None-Match", '"3"'), ("If-None-Match", '"5"')]
    assert (await active.get(f"/v1/entities/{NODE}?domain=active", headers=headers)).status_code == 304


async def test_what_is_not_there_is_404_whatever_the_client_has(shared: httpx.AsyncClient) -> None:
    """A missing entity is a 404 even with `If-None-Match: *`."""
    answer = await shared.get(f"/v1/entities/{MISSING}", headers={"If-None-Match": "*"})
    assert answer.status_code == 404


async def test_the_etag_counts_changes(client: httpx.AsyncClient) -> None:
    """The ETag is the version: each recorded event, even an ignored one, changes it."""
    tags = []
    for type_, sequence in (
        ("registration.initiated", 1),
        ("registration.accepted", 2),
        ("registration.accepted", 3),
    ):
        await client.post("/v1/events", json=event_json(type_, sequence))
        tags.append((await client.get(f"/v1/entities/{NODE}")).headers["etag"])
    assert tags == ['"1"', '"2"', '"3"']


# --- The state -----------------------------------------------------------------------------------------------------


async def test_the_state_is_three_fields(active: httpx.AsyncClient) -> None:
    """The state in JSON has three fields and names its entity."""
    answer = await active.get(f"/v1/entities/{NODE}/state?domain=active")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "Accept"
    assert answer.json() == {"entity_id": str(NODE), "domain": "active", "current_state": "active"}
    assert list(answer.json()) == ["entity_id", "domain", "current_state"]


async def test_the_state_as_text_is_the_bare_word(active: httpx.AsyncClient) -> None:
    """With `Accept: text/plain` the state comes without quotes and without a newline."""
    answer = await active.get(f"/v1/entities/{NODE}/state?domain=active", headers={"Accept": "text/plain"})
    assert answer.headers["content-type"].partition(";")[0] == "text/plain"
    assert answer.content == b"active"


async def test_the_domain_is_registration_by_default(active: httpx.AsyncClient) -> None:
    """Without `domain`, the domain `registration` is read."""
    assert (await active.get(f"/v1/entities/{NODE}")).status_code == 404
    assert (await active.get(f"/v1/entities/{NODE}?domain=registration")).status_code == 404
    assert (await active.get("/v1/entities")).json()["items"] == []


# --- Lists ---------------------------------------------------------------------------------------------------------


def row(number: int, state: str, node_type: str, updated_at: float, capabilities: Json) -> Json:
    """An event that makes one row of the list."""
    data = {
        "current_state": state,
        "node_type": node_type,
        "registered_at": at(0),
        "capabilities": capabilities,
    }
    return event_json("registration.recorded", 1, entity_id=ids[number], occurred_at=at(updated_at), data=data)


ids = sorted(node(number) for number in range(6))
ROWS = [
    row(0, "active", "compute", 10, {"postgres": True, "cores": 64}),
    row(1, "active", "storage", 20, {"postgres": True, "gpu": {"model": "a", "count": 2}}),
    row(2, "rejected", "compute", 30, {"postgres": False}),
    row(3, "accepted", "compute", 40, {"gpu": {"model": "b", "count": 2}, "tags": ["a", "b"]}),
    row(4, "liveness_expired", "storage", 50, {"postgres": "yes"}),
    row(5, "active", "gateway & router", 60, {}),
]


@pytest.fixture(scope="module")
async def listed(shared: httpx.AsyncClient) -> httpx.AsyncClient:
    """A service with six nodes in domain `listed`, and one node with one of these ids in another domain."""
    events = [{**event, "domain": "listed"} for event in ROWS]
    await shared.post("/v1/events", json=[*events, {**ROWS[0], "domain": "elsewhere"}])
    return shared


LISTS: dict[str, tuple[Mapping[str, str | list[str]], list[int]]] = {
    "all": ({}, [0, 1, 2, 3, 4, 5]),
    "a state": ({"state": "active"}, [0, 1, 5]),
    "two states": ({"state": ["rejected", "accepted"]}, [2, 3]),
    "a state twice": ({"state": ["active", "active"]}, [0, 1, 5]),
    "every state": ({"state": list(RegistrationState)}, [0, 1, 2, 3, 4, 5]),
    "a state that nobody is in": ({"state": "ack_timed_out"}, []),
    "a node type": ({"node_type": "compute"}, [0, 2, 3]),
    "a node type with odd characters": ({"node_type": "gateway & router"}, [5]),
    "a node type is matched as a whole": ({"node_type": "comp"}, []),
    "a capability is true": ({"capability": "postgres"}, [0, 1]),
    "a capability that nobody has": ({"capability": "quantum"}, []),
    "two capabilities": ({"capability": ["postgres", "gpu"]}, []),
    "capabilities": ({"capabilities": '{"cores": 64}'}, [0]),
    "capabilities that are false": ({"capabilities": '{"postgres": false}'}, [2]),
    "capabilities within": ({"capabilities": '{"gpu": {"count": 2}}'}, [1, 3]),
    "capabilities in a list": ({"capabilities": '{"tags": ["b"]}'}, [3]),
    "no capabilities are contained in any": ({"capabilities": "{}"}, [0, 1, 2, 3, 4, 5]),
    "both": ({"capability": "postgres", "capabilities": '{"gpu": {"model": "a"}}'}, [1]),
    "both say the same": ({"capability": "postgres", "capabilities": '{"postgres": true}'}, [0, 1]),
    "an event": ({"event_id": ROWS[3]["event_id"]}, [3]),
    "an event that nobody stands at": ({"event_id": str(MISSING)}, []),
    "changed since": ({"updated_since": at(30)}, [2, 3, 4, 5]),
    "changed since, and before": ({"updated_since": at(20), "updated_before": at(40)}, [1, 2]),
    "an id": ({"id_prefix": str(ids[2])}, [2]),
    "an id without dashes, in capitals": ({"id_prefix": ids[2].hex.upper()}, [2]),
    "the beginning of an id": ({"id_prefix": str(ids[4])[:10]}, [4]),
    "the beginning of an id, up to a dash": ({"id_prefix": str(ids[4])[:9]}, [4]),
    "the beginning of an id, and a state": ({"id_prefix": str(ids[4])[:8], "state": "active"}, []),
    "the beginning of no id": ({"id_prefix": "00000000-0000"}, []),
    "stuck since": ({"updated_before": at(30)}, [0, 1]),
    "stuck since, in another zone": ({"updated_before": "2026-01-01T01:00:30.000001+01:00"}, [0, 1, 2]),
    "everything": (
        {
            "state": ["active", "rejected"],
            "node_type": "compute",
            "capability": "postgres",
            "capabilities": '{"cores": 64}',
            "event_id": ROWS[0]["event_id"],
            "updated_before": at(11),
        },
        [0],
    ),
    "everything but one": ({"state": "active", "node_type": "compute", "updated_before": at(10)}, []),
}


@pytest.mark.parametrize("case", LISTS)
async def test_a_list_has_what_its_filters_let_through(listed: httpx.AsyncClient, case: str) -> None:
    """A list has the entities that match all filters, in the order of their ids."""
    query, expected = LISTS[case]
    answer = await listed.get("/v1/entities", params={"domain": "listed", **query})
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["items", "next_cursor"]
    assert [UUID(item["entity_id"]) for item in answer.json()["items"]] == [ids[number] for number in expected]


async def test_a_list_has_whole_rows(listed: httpx.AsyncClient) -> None:
    """An item of a list equals the answer of the entity's own call."""
    [item] = (await listed.get("/v1/entities?domain=elsewhere")).json()["items"]
    assert list(item) == COLUMNS
    assert item == (await listed.get(f"/v1/entities/{item['entity_id']}?domain=elsewhere")).json()


@pytest.mark.parametrize("case", LISTS)
async def test_a_list_as_lines_has_the_same_rows(listed: httpx.AsyncClient, case: str) -> None:
    """With `Accept: application/x-ndjson` each row is one line, whatever the limit."""
    query, _ = LISTS[case]
    params = {"domain": "listed", **query}
    answer = await listed.get("/v1/entities", params={**params, "limit": 1}, headers=NDJSON)
    items = (await listed.get("/v1/entities", params=params)).json()["items"]
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    assert "link" not in answer.headers
    assert answer.text == "" or answer.text.endswith("\n")
    assert [json.loads(line) for line in answer.text.splitlines()] == items


async def test_lines_go_on_from_a_cursor(listed: httpx.AsyncClient) -> None:
    """A stream of lines may start from the cursor of a page."""
    cursor = (await listed.get("/v1/entities?domain=listed&limit=2")).json()["next_cursor"]
    query = {"domain": "listed", "cursor": cursor}
    answer = await listed.get("/v1/entities", params=query, headers=NDJSON)
    assert [json.loads(line)["entity_id"] for line in answer.text.splitlines()] == [str(id_) for id_ in ids[2:]]


async def test_lines_are_all_of_a_long_list(client: httpx.AsyncClient) -> None:
    """A stream of lines continues past the largest page, in the order of entity ids, with each row once."""
    nodes = sorted(node(number) for number in range(2000))
    events = [event_json("registration.initiated", 1, entity_id=id_) for id_ in nodes]
    await client.post("/v1/events", json=events)
    answer = await client.get("/v1/entities", headers=NDJSON)
    assert [UUID(json.loads(line)["entity_id"]) for line in answer.text.splitlines()] == nodes


REFUSED = {
    "an unknown state": "state=lost",
    "no state": "state=",
    "one unknown state of two": "state=active&state=lost",
    "capabilities that are no object": "capabilities=[]",
    "capabilities that are no JSON": "capabilities={",
    "capabilities with NaN": 'capabilities={"a":NaN}',
    "capabilities with NUL": 'capabilities={"a":"\\u0000"}',
    "capabilities too deep": "capabilities=" + '{"a":' * 100 + "1" + "}" * 100,
    "capabilities that contradict": 'capability=a&capabilities={"a":false}',
    "a capability with NUL": "capability=a%00",
    "an id that begins with no digit": "id_prefix=x",
    "an id with a dash too early": "id_prefix=1234-5678",
    "an id with a dash at its beginning": "id_prefix=-",
    "an id with more than a UUID has": f"id_prefix={'0' * 33}",
    "an id with more than a UUID has, and dashes": f"id_prefix={MISSING}0",
    "a node type with NUL": "node_type=%00",
    "a bad event id": "event_id=17",
    "a time without a zone": "updated_before=2026-01-01T00:00:00",
    "a date": "updated_before=2026-01-01",
    "a time as a number": "updated_before=1767225600",
    "a time past 9998": "updated_before=9999-01-01T00:00:00Z",
    "a time before 1900": "updated_before=1899-12-31T23:59:59Z",
    "an empty domain": "domain=",
    "a domain of 129": f"domain={'d' * 129}",
    "a domain with NUL": "domain=a%00",
    "an unknown parameter": "type=compute",
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_bad_parameter_is_422(shared: httpx.AsyncClient, case: str) -> None:
    """A wrong or unknown parameter is a 422 that points at it."""
    query = REFUSED[case]
    answer = await shared.get(f"/v1/entities?{query}")
    assert answer.status_code == 422, answer.text
    [error] = answer.json()["errors"]
    assert error["pointer"].split("/")[:3] == ["#", "query", query.partition("=")[0]]


async def test_every_bad_parameter_is_named(shared: httpx.AsyncClient) -> None:
    """One answer names all wrong parameters."""
    answer = await shared.get("/v1/entities?limit=0&event_id=17&type=x")
    assert {error["pointer"] for error in answer.json()["errors"]} == {
        "#/query/limit",
        "#/query/event_id",
        "#/query/type",
    }


# --- Where reads go ------------------------------------------------------------------------------------------------

READS = {
    f"/v1/entities/{NODE}": "primary",
    f"/v1/entities/{NODE}/state": "primary",
    "/v1/entities": "replica",
    "/v1/state-counts": "replica",
    "/v1/overdue/ack?as_of=2027-01-01T00:00:00Z": "primary",
}


@pytest.mark.parametrize("path", READS)
async def test_scans_are_asked_of_the_replica(database_url: str, path: str) -> None:
    """With `PQS_DATABASE_READ_URL`, the replica answers lists and counts, and the primary everything else."""
    async with (
        new_database() as replica,
        service_on(database_url) as primary_alone,
        service_on(replica) as replica_alone,
        service_on(database_url, database_read_url=replica) as both,
    ):
        accepted = event_json("registration.accepted", 2)
        await primary_alone.post("/v1/events", json=[event_json("registration.initiated", 1), accepted])
        await replica_alone.post("/v1/events", json=[event_json("registration.initiated", 1, entity_id=node(1))])
        asked = primary_alone if READS[path] == "primary" else replica_alone
        assert (await both.get(path)).json() == (await asked.get(path)).json()


async def test_writes_and_lookups_go_to_the_primary(database_url: str) -> None:
    """Lookups read the primary, as a replica may lag behind recent writes."""
    async with new_database() as replica, service_on(database_url, database_read_url=replica) as client:
        await client.post("/v1/events", json=event_json("registration.initiated", 1))
        answer = await client.post("/v1/entities/lookup", json={"entity_ids": [str(NODE)]})
        assert answer.json()["missing"] == []
        assert (await client.get("/v1/state-counts")).json()["total"] == 0
