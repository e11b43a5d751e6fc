"""`POST /v1/events` with CloudEvents, as the CloudEvents SDK sends them."""

import json
from datetime import datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from app.wire.cloudevents import BATCH, STRUCTURED
from tests.making import NODE, WAY_TO_ACTIVE, Json, at

BOTH_MODES = pytest.mark.parametrize("write", [to_structured_event, to_binary_event], ids=["structured", "binary"])


def cloudevent(type_: str, sequence: int, data: object = None, **attributes: Any) -> CloudEvent:
    """A node's event as the SDK makes it; `attributes` override the usual ones."""
    if data is None and type_ == "registration.initiated":
        data = {"node_type": "compute"}
    usual = {
        "id": str(uuid4()),
        "source": "/racks/12",
        "type": type_,
        "subject": str(NODE),
        "time": datetime.fromisoformat(at(sequence)),
        "datacontenttype": "application/json",
        "sequence": f"{sequence:04d}",
        "partitionkey": str(NODE),
    }
    return CloudEvent(usual | attributes, data)  # type: ignore[arg-type]  # the SDK allows JSON's objects, its types dict


async def post(client: httpx.AsyncClient, message: HTTPMessage, **options: Any) -> httpx.Response:
    """Send a request that the SDK wrote."""
    return await client.post("/v1/events", content=message.body, headers=message.headers, **options)


@BOTH_MODES
async def test_a_registration_may_come_as_cloudevents(client: httpx.AsyncClient, write: Any) -> None:
    """A node's events up to `active`, sent by the SDK in one mode, give the same row as in our own form."""
    for sequence, type_ in enumerate(WAY_TO_ACTIVE, start=1):
        answer = await post(client, write(cloudevent(type_, sequence)))
        assert (answer.status_code, answer.json()["outcome"]) == (200, "applied"), answer.text
    row = (await client.get(f"/v1/entities/{NODE}")).json()
    assert (row["current_state"], row["last_applied_sequence"], row["version"]) == ("active", 5, 5)
    assert row["registered_at"] == at(1)


async def test_a_batch_is_an_array(client: httpx.AsyncClient) -> None:
    """Events in batched mode are folded by position in one transaction, and answered in the order sent."""
    written = [to_structured_event(cloudevent(WAY_TO_ACTIVE[sequence - 1], sequence)).body for sequence in (3, 1, 2)]
    body = b"[" + b",".join(written) + b"]"
    answer = (await client.post("/v1/events", content=body, headers={"Content-Type": BATCH})).json()
    assert answer["summary"]["applied"] == 3
    assert [result["version"] for result in answer["results"]] == [3, 1, 2]


async def test_a_batch_of_one_is_answered_as_a_batch(client: httpx.AsyncClient) -> None:
    """An array gets a summary as its answer, even with one event."""
    body = b"[" + to_structured_event(cloudevent("registration.initiated", 1)).body + b"]"
    answer = await client.post("/v1/events", content=body, headers={"Content-Type": BATCH})
    assert answer.json()["summary"]["received"] == 1


@BOTH_MODES
async def test_extensions_of_ours_are_taken_in(client: httpx.AsyncClient, write: Any) -> None:
    """Domain, previous and correlation id are read from extensions, in any script; other extensions are ignored."""
    correlation_id = str(uuid4())
    more = {"domain": "Räume 100%", "correlationid": correlation_id, "traceparent": "00-0af7-b7ad-01"}
    answer = await post(client, write(cloudevent("registration.initiated", 1, **more)))
    assert answer.json()["domain"] == "Räume 100%"
    early = await post(client, write(cloudevent("registration.accepted", 3, previous="2", **more)))
    assert (early.status_code, early.json()["outcome"]) == (409, "early")
    row = await client.get(f"/v1/entities/{NODE}", params={"domain": "Räume 100%"})
    assert row.json()["correlation_id"] == correlation_id


@BOTH_MODES
async def test_the_same_event_again_is_a_duplicate(client: httpx.AsyncClient, write: Any) -> None:
    """A CloudEvent sent again is a duplicate, in whichever mode it comes the second time."""
    event = cloudevent("registration.initiated", 1)
    await post(client, write(event))
    ours = {
        "event_id": event.get_id(),
        "type": event.get_type(),
        "entity_id": event.get_subject(),
        "position": {"sequence": 1},
        "occurred_at": at(1),
        "data": event.get_data(),
    }
    assert (await post(client, to_structured_event(event))).json()["outcome"] == "duplicate"
    assert (await client.post("/v1/events", json=ours)).json()["outcome"] == "duplicate"


async def test_data_in_bytes_is_the_same_data(client: httpx.AsyncClient) -> None:
    """Data given to the SDK as bytes travels as `data_base64` and is read as the JSON that it holds."""
    message = to_structured_event(cloudevent("registration.initiated", 1, b'{"node_type": "storage"}'))
    assert b"data_base64" in message.body
    await post(client, message)
    assert (await client.get(f"/v1/entities/{NODE}")).json()["node_type"] == "storage"


@BOTH_MODES
async def test_a_dry_run_writes_nothing(client: httpx.AsyncClient, write: Any) -> None:
    """A dry run of a CloudEvent gives its outcome and writes nothing."""
    message = write(cloudevent("registration.initiated", 1))
    assert (await post(client, message, params={"dry_run": True})).json()["outcome"] == "applied"
    assert (await client.get(f"/v1/entities/{NODE}")).status_code == 404


async def test_headers_are_ignored_beside_a_structured_event(shared: httpx.AsyncClient) -> None:
    """The content type decides the mode (HTTP binding, section 3): a structured event's `ce-` headers are ignored."""
    message = to_structured_event(cloudevent("registration.initiated", 1, subject=str(uuid4())))
    headers = {**message.headers, "ce-id": "ignored"}
    answer = await shared.post("/v1/events", content=message.body, headers=headers)
    assert answer.json()["outcome"] == "applied"


@pytest.mark.parametrize(
    ("content_type", "headers", "body", "status", "pointers"),
    [
        (STRUCTURED, {}, b'{"specversion": "1.0"', 400, None),
        (
            STRUCTURED,
            {},
            b"{}",
            422,
            ["#/specversion", "#/id", "#/source", "#/type", "#/subject", "#/time", "#/sequence"],
        ),
        (STRUCTURED, {}, b"[]", 422, ["#"]),
        (BATCH, {}, b"{}", 422, ["#"]),
        (BATCH, {}, b"[7]", 422, ["#/0"]),
        ("application/cloudevents+xml", {}, b"<event/>", 415, None),
        ("application/cloudevents", {}, b"{}", 415, None),
        ("text/xml", {"ce-specversion": "1.0"}, b"<event/>", 415, None),
        (
            "application/json",
            {"ce-specversion": "1.0", "ce-source": "/", "ce-id": "17", "ce-time": at(1), "ce-sequence": "1"},
            b"{}",
            422,
            ["#/header/ce-type", "#/header/ce-subject"],
        ),
        ("application/json", {"ce-id": "%ff"}, b"{}", 422, ["#/header/ce-id"]),
        ("application/json", {"ce-id": "1"}, b"{", 400, None),
    ],
)
async def test_what_is_wrong_is_a_problem(
    shared: httpx.AsyncClient,
    content_type: str,
    headers: Json,
    body: bytes,
    status: int,
    pointers: list[str] | None,
) -> None:
    """Unreadable or invalid CloudEvents are refused as other events are, with pointers to the fault."""
    answer = await shared.post("/v1/events", content=body, headers={"Content-Type": content_type, **headers})
    problem = json.loads(answer.text)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    found = [fault["pointer"] for fault in problem["errors"]] if "errors" in problem else None
    assert found == pointers
