"""The examples of the OpenAPI document are answers of a real service.

A walk through a fresh service, with fixed event ids and times, makes each example's request and compares the answer
with `app/api/examples.json`. After a change of an answer regenerate the file, and read its diff:

    UPDATE_EXAMPLES=1 .venv/bin/python -m pytest tests/api/test_examples.py
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import httpx
import pytest

from app.api.bodies import JSON, NDJSON
from app.domain.events import EVENT_TYPES
from app.feed import follow, tokens
from app.feed.tokens import Token
from app.settings import Settings, read_settings
from app.store.changes import Place
from app.wire.cloudevents import BATCH, STRUCTURED
from app.wire.events import CHUNK_LINES
from tests.api.conftest import service_on
from tests.databases import on_server
from tests.making import Json, event_json, node

EXAMPLES = Path(__file__).parents[2] / "app" / "api" / "examples.json"

FIRST = UUID("7a1c5f7e-9d53-4c58-8a3c-1f0e2d3c4b5a")
SECOND = UUID("1d0f9e55-6a6b-4f0e-9f0c-52a7c7d0f3b1")
THIRD = UUID("c2b8e7a4-0f3d-4e7c-8a55-9d1e6b4f2a10")
FOURTH = UUID("e5a1b0c9-3c7d-4b8e-b1f2-6d8c0a9e7f43")
FIFTH = UUID("b7d3c1e0-58a2-4f6d-8c4b-2e9f7a610d35")
SIXTH = UUID("48d0a7f2-9c36-4e1b-b5a8-7f3d2c1e0b96")
UNKNOWN = UUID("00000000-0000-4000-8000-000000000000")

# In the order in which they are sent. The first node's way, then those of the others.
REQUESTS: dict[str, Json] = {
    "registration.initiated": event_json(
        "registration.initiated",
        1,
        entity_id=FIRST,
        data={"node_type": "compute", "node_version": "2.4.0", "capabilities": {"gpu": True, "cores": 64}},
        correlation_id="3f0c1a52-7d7e-4f2b-9c63-5f1f0c8f2f7d",
    ),
    "registration.accepted": event_json("registration.accepted", 2, entity_id=FIRST),
    "registration.ack_requested": event_json(
        "registration.ack_requested", 3, entity_id=FIRST, data={"ack_deadline": "2026-01-01T00:01:00Z"}
    ),
    "registration.ack_received": event_json("registration.ack_received", 4, entity_id=FIRST),
    "registration.activated": event_json("registration.activated", 5, entity_id=FIRST),
    "node.heartbeat": event_json(
        "node.heartbeat", 6, entity_id=FIRST, data={"heartbeat_at": "2026-01-01T00:00:05.25Z"}
    ),
    "registration.recorded": event_json(
        "registration.recorded",
        7,
        entity_id=FOURTH,
        position={"partition": "registrations-3", "offset": 4711},
        data={
            "current_state": "active",
            "node_type": "storage",
            "registered_at": "2025-12-24T08:00:00Z",
            "liveness_deadline": "2026-01-01T00:05:00Z",
        },
    ),
    "registration.rejected": event_json("registration.rejected", 2, entity_id=THIRD),
}
ARRAY = [
    event_json("registration.initiated", 1, entity_id=SECOND),
    event_json("registration.accepted", 2, entity_id=SECOND, position={"sequence": 2, "previous": 1}),
]
LATER: dict[str, Json] = {
    "registration.ack_timed_out": event_json("registration.ack_timed_out", 40, entity_id=SECOND),
    "registration.refreshed": event_json(
        "registration.refreshed",
        90,
        entity_id=FIRST,
        data={"node_type": "compute", "node_version": "2.5.0", "capabilities": {"gpu": True, "cores": 96}},
    ),
    "registration.liveness_expired": event_json("registration.liveness_expired", 120, entity_id=FIRST),
    "node.introspected": event_json(
        "node.introspected", 1, entity_id=FIFTH, data={"node_type": "gateway", "capabilities": {"tags": ["edge"]}}
    ),
    "node.registration_acked": event_json("node.registration_acked", 2, entity_id=FIFTH),
    "node.deregistered": event_json("node.deregistered", 3, entity_id=FIFTH),
    "registration.forgotten": event_json("registration.forgotten", 4, entity_id=FIFTH, data={"reason": "scrapped"}),
}
FORGET = {"reason": "scrapped", "erase": True}
DEREGISTER = {"reason": "out of its rack"}
CLOUDEVENT: Json = {
    "specversion": "1.0",
    "id": "5e2d6c1b-7a49-4f30-8b1d-0c9e8f7a6b53",
    "source": "/racks/12",
    "type": "registration.initiated",
    "subject": str(SIXTH),
    "time": "2026-01-01T00:00:01Z",
    "sequence": "0001",
    "partitionkey": str(SIXTH),
    "data": {"node_type": "compute"},
}
COMMIT = {
    "state": {"step": "paid", "items": [17, 4]},
    "provenance": {"effect_id": "payment", "timestamp": "2026-01-01T00:00:00Z", "action_id": "pay-17"},
}
WORKFLOW = "/v1/workflows/order-17"
CREATING = {"If-None-Match": "*"}
IF_1: Json = {"headers": {"If-Match": '"1"'}}
NO_ACTION = {"state": {"step": "sent"}, "provenance": {"effect_id": "shipping", "timestamp": "2026-01-01T00:01:00Z"}}
OTHERS = {
    "array",
    "CloudEvent",
    "Lookup",
    "Forget",
    "Deregister",
    "WorkflowCommit",
}  # requests that are no single event
MENDED, HELD = node(4711), node(4712)  # both are held, one of them until a retry
RUN = "0f1d7f0a-6f0b-4a53-9f3e-5b7f0c1d2e3f"
QUEUES = "/v1/dead-letters/entities"
LOOKUP = {"entity_ids": [str(FIRST), str(UNKNOWN)]}

READS = {
    "Registration": f"/v1/entities/{FIRST}",
    "EntityState": f"/v1/entities/{FIRST}/state",
    "EntityPage": "/v1/entities?state=active&state=accepted&limit=1",
    "StateCounts": "/v1/state-counts",
    "Overview": "/v1/overview",
    "DomainPage": "/v1/domains?limit=1",
    "OverduePage": "/v1/overdue/liveness?as_of=2026-01-01T00:02:00Z",
    "listOverdueAcks": "/v1/overdue/ack?as_of=2026-01-01T00:02:00Z",
    "Workflow": WORKFLOW,
    "WorkflowPage": "/v1/workflows?limit=1",
    "WatermarkList": "/v1/watermarks",
    "SnapshotProgress": "/v1/snapshots",
    "DeadLetterPage": "/v1/dead-letters?limit=1",
    "DeadMessage": "/v1/dead-letters/1",
    "HeldPage": f"{QUEUES}?limit=1",
    "HeldEntity": f"{QUEUES}/{HELD}",
    "LetterRun": f"/v1/dead-letters/runs/{RUN}",
    "ChangesPage": "/v1/changes?limit=2",
    "EntityHistory": f"/v1/entities/{FIRST}/history?limit=1",
    "EventRecord": f"/v1/events/{REQUESTS['registration.initiated']['event_id']}",
    "AuditPage": "/v1/audit?limit=1",
    "SystemState": "/v1/system",
    "KeyList": "/v1/keys",
    "Health": "/livez",
    "Ready": "/readyz",
}

BEHIND = "min_offset=nodes-0:4720&min_offset=nodes-1:17"
ELSEWHERE = tokens.write(Token(Place(4711, 17)))  # a token of another past
BROKEN = '{"event_id": "0b7e7d0e-5c1d-4c2b-9a57-3d6f4b8c1a01"\n "type": "node.heartbeat"}'
TOO_LARGE = " " * (Settings.model_fields["max_body"].default + 1)
ZONELESS = event_json("node.heartbeat", 7, occurred_at="2026-01-01T00:00:07", data={"heartbeat": 1})

# Dead letters: what is no JSON, what conflicts with the first node's row, and what is no event.
DEAD = (
    (4711, BROKEN, "not JSON: Expecting ',' delimiter at line 2 column 2"),
    (4712, json.dumps(event_json("node.heartbeat", 6, entity_id=FIRST)), "conflict: the positions can't be compared"),
    (4713, "{}", "#/type: this field is required"),
)

# What differs from one process to the next.
SYSTEM: Json = {
    "pid": 4711,
    "settings": [
        {"name": "PQS_DATABASE_URL", "value": None, "default": None},
        {"name": "PQS_SWEEP", "value": "True", "default": "False"},
    ],
    "pools": [{"name": "primary", "most": 8, "open": 3, "in_use": 1, "waiting": 0}],
}

THEN = "2025-12-24T08:00:00Z"

# What is refused: the name of the problem, and the request.
REFUSED: dict[str, Json] = {
    "400": {"method": "POST", "url": "/v1/events", "content": BROKEN},
    "404": {"method": "GET", "url": f"/v1/entities/{UNKNOWN}"},
    "409": {
        "method": "POST",
        "url": "/v1/events",
        "json": event_json("node.heartbeat", 122, entity_id=FIRST, position={"sequence": 122, "previous": 121}),
    },
    "postEvents 409 conflict": {
        "method": "POST",
        "url": "/v1/events",
        "json": event_json("node.heartbeat", 6, entity_id=FIRST, position={"partition": "nodes-0", "offset": 6}),
    },
    "410": {"method": "GET", "url": f"/v1/changes?after={ELSEWHERE}&state=active"},
    "413": {"method": "POST", "url": "/v1/events", "content": TOO_LARGE},
    "415": {"method": "POST", "url": "/v1/events", "content": "a,b", "headers": {"Content-Type": "text/csv"}},
    "422": {"method": "POST", "url": "/v1/events", "json": [ZONELESS, event_json("node.restarted", 8)]},
    "lookupEntities 400": {"method": "POST", "url": "/v1/entities/lookup", "content": '{"entity_ids": [}'},
    "lookupEntities 413": {"method": "POST", "url": "/v1/entities/lookup", "content": TOO_LARGE},
    "lookupEntities 415": {
        "method": "POST",
        "url": "/v1/entities/lookup",
        "content": "{}",
        "headers": {"Content-Type": NDJSON},
    },
    "lookupEntities 422": {"method": "POST", "url": "/v1/entities/lookup", "json": {"entity_ids": ["node-17"]}},
    "504": {"method": "GET", "url": f"/v1/entities?{BEHIND}"},
    "lookupEntities 504": {"method": "POST", "url": f"/v1/entities/lookup?{BEHIND}", "json": LOOKUP},
    "countStates 504": {"method": "GET", "url": f"/v1/state-counts?{BEHIND}"},
    "listOverdueAcks 504": {"method": "GET", "url": f"/v1/overdue/ack?{BEHIND}"},
    "listOverdueLiveness 504": {"method": "GET", "url": f"/v1/overdue/liveness?{BEHIND}"},
    "getEntity 409": {"method": "GET", "url": f"/v1/entities/{FOURTH}?min_sequence=8"},
    "getEntity 504": {"method": "GET", "url": f"/v1/entities/{FIRST}?until=active&min_sequence=121"},
    "getEntityState 409": {"method": "GET", "url": f"/v1/entities/{FOURTH}/state?min_sequence=8"},
    "getEntityState 412": {"method": "GET", "url": READS["EntityState"], "headers": {"If-Match": '"9"'}},
    "getEntityState 504": {"method": "GET", "url": f"/v1/entities/{FIRST}/state?until=active"},
    "getEntity 412": {"method": "GET", "url": READS["Registration"], "headers": {"If-Match": 'W/"1"'}},
    "getEntity 422": {"method": "GET", "url": "/v1/entities/node-17"},
    "getEntityState 404": {"method": "GET", "url": f"/v1/entities/{FIRST}/state?domain=elsewhere"},
    "getEntityState 422": {"method": "GET", "url": "/v1/entities/node-17/state"},
    "listEntities 400": {"method": "GET", "url": "/v1/entities?cursor=damaged"},
    "listEntities 422": {"method": "GET", "url": "/v1/entities?limit=0&type=compute"},
    "getSnapshots 422": {"method": "GET", "url": "/v1/snapshots?topic=nodes"},
    "republishSnapshots 422": {"method": "POST", "url": "/v1/snapshots/republish?topic=nodes"},
    "countStates 422": {"method": "GET", "url": "/v1/state-counts?state=active"},
    "listOverdueAcks 400": {"method": "GET", "url": "/v1/overdue/ack?cursor=damaged"},
    "listOverdueAcks 422": {"method": "GET", "url": "/v1/overdue/ack?as_of=yesterday"},
    "listOverdueLiveness 400": {"method": "GET", "url": "/v1/overdue/liveness?cursor=damaged"},
    "listOverdueLiveness 422": {"method": "GET", "url": "/v1/overdue/liveness?as_of=2026-01-01T00:00:00"},
    "getOverview 422": {"method": "GET", "url": "/v1/overview?limit=1"},
    "listDomains 400": {"method": "GET", "url": "/v1/domains?cursor=damaged"},
    "listDomains 422": {"method": "GET", "url": "/v1/domains?domain=registration"},
    "followChanges 400": {"method": "GET", "url": "/v1/changes?after=damaged"},
    "followChanges 422": {"method": "GET", "url": "/v1/changes?wait=90"},
    "getHistory 400": {"method": "GET", "url": f"/v1/entities/{FIRST}/history?cursor=damaged"},
    "getHistory 404": {"method": "GET", "url": f"/v1/entities/{UNKNOWN}/history"},
    "getHistory 422": {"method": "GET", "url": f"/v1/entities/{FIRST}/history?order=backwards"},
    "getEvent 404": {"method": "GET", "url": f"/v1/events/{UNKNOWN}"},
    "getEvent 422": {"method": "GET", "url": "/v1/events/17"},
    "getEntityState 410 history": {"method": "GET", "url": f"/v1/entities/{SECOND}/state?as_of={THEN}"},
    "listWorkflows 400": {"method": "GET", "url": "/v1/workflows?cursor=damaged"},
    "listWorkflows 422": {"method": "GET", "url": "/v1/workflows?updated_since=yesterday"},
    "getWorkflow 404": {"method": "GET", "url": "/v1/workflows/order-18"},
    "getWorkflow 412": {"method": "GET", "url": WORKFLOW, "headers": {"If-Match": '"9"'}},
    "getWorkflow 422": {"method": "GET", "url": f"/v1/workflows/{'x' * 256}"},
    "listWatermarks 422": {"method": "GET", "url": "/v1/watermarks?topic=nodes"},
    "listDeadLetters 400": {"method": "GET", "url": "/v1/dead-letters?cursor=damaged"},
    "listDeadLetters 422": {"method": "GET", "url": "/v1/dead-letters?limit=0"},
    "retryDeadLetter 409 held": {"method": "POST", "url": "/v1/dead-letters/5/retry"},
    "deleteDeadLetter 409": {"method": "DELETE", "url": "/v1/dead-letters/5"},
    "postEvents 409 held": {
        "method": "POST",
        "url": "/v1/events",
        "json": event_json("node.heartbeat", 6, entity_id=HELD),
    },
    "listHeldEntities 400": {"method": "GET", "url": f"{QUEUES}?cursor=damaged"},
    "listHeldEntities 422": {"method": "GET", "url": f"{QUEUES}?limit=0"},
    "getHeldEntity 404": {"method": "GET", "url": f"{QUEUES}/{UNKNOWN}"},
    "getHeldEntity 422": {"method": "GET", "url": f"{QUEUES}/node-17"},
    "retryHeldEntity 404": {"method": "POST", "url": f"{QUEUES}/{UNKNOWN}/retry"},
    "retryHeldEntity 409": {"method": "POST", "url": f"{QUEUES}/{HELD}/retry"},
    "retryHeldEntity 422": {"method": "POST", "url": f"{QUEUES}/node-17/retry"},
    "skipHeldEntity 404": {"method": "POST", "url": f"{QUEUES}/{UNKNOWN}/skip"},
    "skipHeldEntity 422": {"method": "POST", "url": f"{QUEUES}/node-17/skip"},
    "retryDeadLetters 409": {"method": "POST", "url": "/v1/dead-letters/retry?topic=nodes"},
    "retryDeadLetters 422": {"method": "POST", "url": "/v1/dead-letters/retry?since=yesterday"},
    "deleteDeadLetters 409": {"method": "POST", "url": "/v1/dead-letters/delete?topic=nodes"},
    "deleteDeadLetters 422": {"method": "POST", "url": "/v1/dead-letters/delete?source=kafka"},
    "getDeadLetterRun 404": {"method": "GET", "url": f"/v1/dead-letters/runs/{UNKNOWN}"},
    "getDeadLetterRun 422": {"method": "GET", "url": "/v1/dead-letters/runs/17"},
    "getDeadLetter 404": {"method": "GET", "url": "/v1/dead-letters/4711"},
    "getDeadLetter 422": {"method": "GET", "url": "/v1/dead-letters/first"},
    "listAudit 400": {"method": "GET", "url": "/v1/audit?cursor=damaged"},
    "listAudit 422": {"method": "GET", "url": "/v1/audit?limit=0"},
    "getSystem 422": {"method": "GET", "url": "/v1/system?limit=1"},
    "listKeys 422": {"method": "GET", "url": "/v1/keys?limit=1"},
    "retryDeadLetter 400": {"method": "POST", "url": "/v1/dead-letters/1/retry"},
    "retryDeadLetter 404": {"method": "POST", "url": "/v1/dead-letters/4711/retry"},
    "retryDeadLetter 409": {"method": "POST", "url": "/v1/dead-letters/2/retry"},
    "retryDeadLetter 422": {"method": "POST", "url": "/v1/dead-letters/3/retry"},
    "dropWatermark 404": {"method": "DELETE", "url": "/v1/watermarks/nodes/7"},
    "dropWatermark 409": {"method": "DELETE", "url": "/v1/watermarks/registrations/3"},
    "dropWatermark 422": {"method": "DELETE", "url": "/v1/watermarks/registrations/third"},
    "deleteDeadLetter 404": {"method": "DELETE", "url": "/v1/dead-letters/4711"},
    "deleteDeadLetter 422": {"method": "DELETE", "url": "/v1/dead-letters/first"},
    "commitWorkflow 400": {"method": "PUT", "url": WORKFLOW, "content": "{", "headers": CREATING},
    "commitWorkflow 409": {"method": "PUT", "url": WORKFLOW, "json": COMMIT | {"state": {"step": "sent"}}, **IF_1},
    "commitWorkflow 412": {"method": "PUT", "url": WORKFLOW, "json": NO_ACTION, "headers": CREATING},
    "commitWorkflow 413": {"method": "PUT", "url": WORKFLOW, "content": TOO_LARGE, "headers": CREATING},
    "commitWorkflow 415": {
        "method": "PUT",
        "url": WORKFLOW,
        "content": "a,b",
        "headers": {**CREATING, "Content-Type": "text/csv"},
    },
    "commitWorkflow 422": {"method": "PUT", "url": WORKFLOW, "json": {"state": {}}, "headers": CREATING},
    "commitWorkflow 428": {"method": "PUT", "url": WORKFLOW, "json": COMMIT},
}

for _act, _body in (("forget", FORGET), ("deregister", DEREGISTER)):
    _call: Json = {"method": "POST", "url": f"/v1/entities/{FIRST}/{_act}"}
    _id = f"{_act}Entity"
    REFUSED |= {
        f"{_id} 400": _call | {"content": "{"},
        f"{_id} 404": _call | {"url": f"/v1/entities/{UNKNOWN}/{_act}", "json": _body},
        f"{_id} 412": _call | {"json": _body, "headers": {"If-Match": '"1"'}},
        f"{_id} 413": _call | {"content": TOO_LARGE},
        f"{_id} 415": _call | {"content": "reason=scrapped", "headers": {"Content-Type": "text/plain"}},
        f"{_id} 422": _call | {"json": {"because": "scrapped"}},
    }
REFUSED |= {
    "getEntity 410": {"method": "GET", "url": f"/v1/entities/{FIFTH}"},
    "getEntityState 410": {"method": "GET", "url": f"/v1/entities/{FIFTH}/state"},
    "deregisterEntity 410": {"method": "POST", "url": f"/v1/entities/{FIFTH}/deregister"},
}

# What a service says that does not reach its database. Each is asked of a service anew, whose breaker is closed.
DOWN: dict[str, Json] = {
    "503": {"method": "POST", "url": "/v1/events", "json": REQUESTS["node.heartbeat"]},
    "lookupEntities 503": {"method": "POST", "url": "/v1/entities/lookup", "json": LOOKUP},
    "getEntity 503": {"method": "GET", "url": READS["Registration"]},
    "getEntityState 503": {"method": "GET", "url": READS["EntityState"]},
    "listEntities 503": {"method": "GET", "url": READS["EntityPage"]},
    "countStates 503": {"method": "GET", "url": READS["StateCounts"]},
    "listOverdueAcks 503": {"method": "GET", "url": READS["listOverdueAcks"]},
    "listOverdueLiveness 503": {"method": "GET", "url": READS["OverduePage"]},
    "forgetEntity 503": {"method": "POST", "url": f"/v1/entities/{FIRST}/forget", "json": FORGET},
    "deregisterEntity 503": {"method": "POST", "url": f"/v1/entities/{FIRST}/deregister", "json": DEREGISTER},
    "getOverview 503": {"method": "GET", "url": READS["Overview"]},
    "listDomains 503": {"method": "GET", "url": READS["DomainPage"]},
    "followChanges 503": {"method": "GET", "url": READS["ChangesPage"]},
    "listWorkflows 503": {"method": "GET", "url": READS["WorkflowPage"]},
    "getWorkflow 503": {"method": "GET", "url": WORKFLOW},
    "commitWorkflow 503": {"method": "PUT", "url": WORKFLOW, "json": COMMIT, "headers": CREATING},
    "getSnapshots 503": {"method": "GET", "url": "/v1/snapshots"},
    "republishSnapshots 503": {"method": "POST", "url": "/v1/snapshots/republish"},
    "listWatermarks 503": {"method": "GET", "url": READS["WatermarkList"]},
    "listDeadLetters 503": {"method": "GET", "url": READS["DeadLetterPage"]},
    "listHeldEntities 503": {"method": "GET", "url": READS["HeldPage"]},
    "getHeldEntity 503": {"method": "GET", "url": READS["HeldEntity"]},
    "retryHeldEntity 503": {"method": "POST", "url": f"{QUEUES}/{HELD}/retry"},
    "skipHeldEntity 503": {"method": "POST", "url": f"{QUEUES}/{HELD}/skip"},
    "retryDeadLetters 503": {"method": "POST", "url": "/v1/dead-letters/retry?topic=nodes"},
    "deleteDeadLetters 503": {"method": "POST", "url": "/v1/dead-letters/delete?topic=nodes"},
    "getDeadLetterRun 503": {"method": "GET", "url": READS["LetterRun"]},
    "getDeadLetter 503": {"method": "GET", "url": READS["DeadMessage"]},
    "listAudit 503": {"method": "GET", "url": READS["AuditPage"]},
    "listKeys 503": {"method": "GET", "url": READS["KeyList"]},
    "retryDeadLetter 503": {"method": "POST", "url": "/v1/dead-letters/1/retry"},
    "dropWatermark 503": {"method": "DELETE", "url": "/v1/watermarks/registrations/3"},
    "deleteDeadLetter 503": {"method": "DELETE", "url": "/v1/dead-letters/1"},
    "getHistory 503": {"method": "GET", "url": READS["EntityHistory"]},
    "getEvent 503": {"method": "GET", "url": READS["EventRecord"]},
    "getReadiness 503": {"method": "GET", "url": READS["Ready"]},
}


# Without the change log.
OFF = {
    "501": READS["ChangesPage"],
    "getHistory 501": READS["EntityHistory"],
    "getEvent 501": READS["EventRecord"],
    "getEntity 501": f"{READS['Registration']}?as_of={THEN}",
    "getEntityState 501": f"{READS['EntityState']}?as_of={THEN}",
}


# With a topic of snapshots, to which nobody publishes; and without one.
WITH_TOPIC: Json = {
    "kafka": "127.0.0.1:1",
    "bus": "off",
    "relay": False,
    "topic_snapshots": "node-snapshots",
    "snapshots": False,
}
WITHOUT_TOPIC = (
    ("getSnapshots 404", "GET", "/v1/snapshots"),
    ("republishSnapshots 404", "POST", "/v1/snapshots/republish"),
)


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings with a topic of snapshots, to which nobody publishes."""
    return read_settings({"database_url": database_url, "pool_size": 4, **WITH_TOPIC})


async def test_the_examples_are_what_the_service_answers(
    client: httpx.AsyncClient, database_url: str, unreachable_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example in the file is the answer of a real service to the same request."""
    monkeypatch.setattr(follow, "STREAM", 0)  # what is there is streamed, and no more
    requests: Json = {**REQUESTS, **LATER}
    real: Json = {
        "requests": {
            **{name: requests[name] for name in EVENT_TYPES},
            "array": ARRAY,
            "CloudEvent": CLOUDEVENT,
            "Lookup": LOOKUP,
            "Forget": FORGET,
            "Deregister": DEREGISTER,
            "WorkflowCommit": COMMIT,
        },
        "answers": await _answers(client, database_url),
        "problems": {name: await _refused(client, name, request) for name, request in REFUSED.items()},
    }
    for name, request in DOWN.items():
        async with service_on(unreachable_url, **WITH_TOPIC) as cut_off:
            real["problems"][name] = await _refused(cut_off, name, request)
    async with service_on(database_url, changes="off") as off:
        for name, url in OFF.items():
            real["problems"][name] = await _refused(off, name, {"method": "GET", "url": url})
        for name, method, url in WITHOUT_TOPIC:
            real["problems"][name] = await _refused(off, name, {"method": method, "url": url})
    async with service_on(database_url, changes_rows=True) as rows:
        url = f"/v1/entities/{SECOND}?as_of={THEN}"
        real["problems"]["getEntity 410 history"] = await _refused(rows, "410", {"method": "GET", "url": url})
    interrupted = real["problems"]["postEvents 503 interrupted"] = await _interrupted(client, database_url)
    # It depends on the moment whether a session is ended, or a new one refused.
    assert interrupted["detail"] in {"the database does not answer", "the database accepts no connections now"}
    interrupted["detail"] = "the database does not answer"
    if "UPDATE_EXAMPLES" in os.environ:
        EXAMPLES.write_text(json.dumps(real, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert real == json.loads(EXAMPLES.read_text(encoding="utf-8"))


async def _answers(client: httpx.AsyncClient, database_url: str) -> Json:
    """Send the requests of the examples, and prepare rows in between."""
    answers: Json = {}
    for name, event in REQUESTS.items():
        if name == "registration.rejected":
            await client.post("/v1/events", json=event_json("registration.initiated", 1, entity_id=THIRD))
        result = await _applied(client, event)
        answers.setdefault("Result", result)
    answers["BatchAnswer"] = (await client.post("/v1/events", json=ARRAY)).json()
    lines = "".join(json.dumps(event) + "\n" for event in ARRAY)
    answers[f"postEvents {NDJSON}"] = (
        await client.post("/v1/events", content=lines, headers={"Content-Type": NDJSON})
    ).text
    answers["LookupAnswer"] = (await client.post("/v1/entities/lookup", json=LOOKUP)).json()
    created = await client.put(WORKFLOW, json=COMMIT, headers=CREATING)
    assert created.status_code == 201, created.text
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE workflow_state SET updated_at = '2026-01-01T00:00:00.25Z'")  # it was the clock's
    await connection.execute(
        "INSERT INTO watermarks VALUES ('nodes', 0, 4713, '2026-01-01T00:00:05Z', '2026-01-01T00:00:07.5Z',"
        " '2026-01-01T00:00:07.5Z', 'host:4711:1f0e2d3c')"
    )
    await connection.execute(
        "INSERT INTO snapshot_topics (topic, change_id, change_mark, begun, finished, rows, begun_at, finished_at)"
        " VALUES ('node-snapshots', 4711, 17, 1, 1, 1200000, '2026-01-01T00:00:00Z', '2026-01-01T00:00:31.5Z')"
    )
    await connection.execute("UPDATE changes SET mark = 17, changed_at = occurred_at + interval '0.25 s'")  # nor this
    await connection.execute("DELETE FROM changes WHERE entity_id = $1 AND version = 1", SECOND)  # it has expired
    await connection.execute(
        "INSERT INTO audit_log (id, at, principal, action, target, outcome, correlation_id, peer) OVERRIDING SYSTEM"
        " VALUE VALUES (4711, '2026-01-01T00:00:09Z', 'key:admin/a2b3c4d5e6', 'dead-letters.retry', 'dead letter 1',"
        " 'applied', '3f0c1a52-7d7e-4f2b-9c63-5f1f0c8f2f7d', '192.0.2.7')"
    )
    await connection.execute("SELECT setval('audit_log_id_seq', 4711)")
    await connection.execute(
        "INSERT INTO api_keys VALUES ('a2b3c4d5e6', 'admin', decode(repeat('00', 32), 'hex'),"
        " ARRAY['operations:read', 'operations:write'], ARRAY['*'], ARRAY[''], NULL, NULL,"
        " '2026-01-01T00:00:00Z', 'cli:root', '2026-04-01T00:00:00Z', NULL, '2026-01-01')"
    )
    for offset, value, error in DEAD:
        await connection.execute(
            'INSERT INTO dead_letters (source, topic, partition, "offset", key, value, headers, error, created_at)'
            " VALUES ('consumer', 'nodes', 0, $1, $2, $3, '[]', $4, '2026-01-01T00:00:02Z')",
            offset,
            str(FIRST).encode(),
            value.encode(),
            error,
        )
    await _hold(connection)
    await connection.close()
    for name, path in READS.items():
        answer = await client.get(path)
        assert answer.status_code == 200, (name, answer.text)
        answers[name] = answer.json()
    answers["Overview"]["at"] = "2026-01-01T00:02:00Z"
    for number, minute in enumerate(answers["Overview"]["operations"]["minutes"][-1:]):  # it was the clock's
        minute["began_at"] = f"2026-01-01T00:{2 + number:02}:00Z"
    answers["SystemState"] |= SYSTEM
    for name, path, media in (
        ("getEntityState", READS["EntityState"], "text/plain"),
        ("listEntities", "/v1/entities?state=active", NDJSON),
        ("followChanges", "/v1/changes?state=active", NDJSON),
        ("followChanges", "/v1/changes?state=active", "text/event-stream"),
    ):
        answers[f"{name} {media}"] = (await client.get(path, headers={"Accept": media})).text
    for name, event in LATER.items():
        result = await _applied(client, event)
        if name == "node.introspected":
            answers["postEvents with events"] = result
    taken = await client.post("/v1/events", json=CLOUDEVENT, headers={"Content-Type": STRUCTURED})
    assert taken.json()["outcome"] == "applied", taken.text
    batch = await client.post("/v1/events", json=[CLOUDEVENT], headers={"Content-Type": BATCH})
    assert batch.json()["summary"]["duplicate"] == 1, batch.text
    forgotten = (await client.post(f"/v1/entities/{THIRD}/forget", json=FORGET)).json()
    assert forgotten["erased"]["changes"] > 0, forgotten
    answers["LetterRun"] |= {"started_at": "2026-01-01T00:02:00Z", "finished_at": "2026-01-01T00:02:15Z"}
    answers["ForgetAnswer"] = forgotten | {"forgotten_at": "2026-01-01T00:01:00Z"}  # it was the clock's
    connection = await asyncpg.connect(database_url)
    await connection.execute(  # a partition that is read now
        'INSERT INTO watermarks (topic, partition, "offset", updated_at, consumer)'
        " VALUES ('registrations', 3, 4711, now(), 'host:4711:1f0e2d3c')"
    )
    await connection.close()
    evicted = await client.post(f"/v1/entities/{SIXTH}/deregister", json=DEREGISTER)
    answers["DeregisterAnswer"] = evicted.json()
    retried = await client.post(f"{QUEUES}/{MENDED}/retry")
    assert retried.status_code == 200, retried.text
    answers["QueueAnswer"] = retried.json()
    metrics = (await client.get("/metrics")).text.splitlines(keepends=True)
    answers["getMetrics text/plain"] = "".join(line for line in metrics if "pqs_events_total" in line)
    return answers


async def _hold(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Two held entities, each with a message behind its letter, and bulk calls, as many as may be."""
    await connection.execute("SELECT setval('audit_log_id_seq', 4711)")
    for number, (entity_id, data) in enumerate(((MENDED, {}), (HELD, {"color": "red"}))):
        begun = event_json("registration.initiated", 1, entity_id=entity_id, data={"node_type": "compute", **data})
        id_ = await connection.fetchval(
            'INSERT INTO dead_letters (source, topic, partition, "offset", key, value, headers, error, created_at,'
            " entity_id) VALUES ('consumer', 'nodes', 0, $1, $2, $3, '[]', '#/data/color: unknown field',"
            " '2026-01-01T00:00:03Z', $4) RETURNING id",
            4714 + number,
            str(entity_id).encode(),
            json.dumps(begun).encode(),
            entity_id,
        )
        await connection.execute(
            "INSERT INTO held_entities VALUES ($1, $2, 1, 0, '2026-01-01T00:00:03Z')", entity_id, id_
        )
        await connection.execute(
            'INSERT INTO held_messages (entity_id, topic, partition, "offset", key, value, headers)'
            " VALUES ($1, 'nodes', 0, $2, $3, $4, '[]')",
            entity_id,
            4716 + number,
            str(entity_id).encode(),
            json.dumps(event_json("registration.accepted", 2, entity_id=entity_id)).encode(),
        )
    await connection.execute(
        "INSERT INTO dead_letter_runs (id, action, filters, principal, started_at, finished_at, matched, done,"
        " failed, last_id) VALUES ($1, 'retry', '{}', 'key:admin/a2b3c4d5e6', now(), now(), 5000, 4998, 2, 5000)",
        RUN,
    )
    await connection.execute(
        "INSERT INTO dead_letter_runs (id, action, filters, principal, leased_until, matched, last_id)"
        " SELECT gen_random_uuid(), 'retry', jsonb_build_object('topic', n), '', 'infinity', 0, 0"
        " FROM generate_series(1, 100) AS n"
    )


async def _applied(client: httpx.AsyncClient, event: Json) -> Json:
    result: Json = (await client.post("/v1/events", json=event)).json()
    assert result["outcome"] == "applied", result
    return result


async def _refused(client: httpx.AsyncClient, name: str, request: Json) -> Json:
    headers = {"Content-Type": JSON} if "content" in request else {}
    answer = await client.request(**{**request, "headers": {**headers, **request.get("headers", {})}})
    problem: Json = answer.json()
    assert answer.status_code == problem["status"], problem
    assert str(answer.status_code) in name.split(" "), problem
    return problem


async def _interrupted(client: httpx.AsyncClient, database_url: str) -> Json:
    """The answer to a stream whose database goes away after the first chunk."""
    server = await asyncpg.connect(on_server(database_url, "postgres"))
    name = urlsplit(database_url).path[1:]

    async def lines() -> AsyncIterator[bytes]:
        for number in range(CHUNK_LINES):
            yield json.dumps(event_json("registration.initiated", 1, entity_id=node(number))).encode() + b"\n"
        await _until_counted(client, CHUNK_LINES)
        await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        yield json.dumps(event_json("registration.accepted", 2, entity_id=node(0))).encode() + b"\n"

    try:
        answer = await client.post("/v1/events", content=lines(), headers={"Content-Type": NDJSON})
    finally:
        await server.close()
    problem: Json = answer.json()
    assert answer.status_code == 503, problem
    return problem


async def _until_counted(client: httpx.AsyncClient, count: int) -> None:
    async with asyncio.timeout(10):
        while (await client.get("/v1/state-counts")).json()["counts"]["pending_registration"] < count:  # noqa: ASYNC110 - the commit is the service's
            await asyncio.sleep(0.01)


def test_every_event_type_has_an_example() -> None:
    """The file has a request for each event type, under its name, beside the requests of other calls."""
    shown = json.loads(EXAMPLES.read_text(encoding="utf-8"))["requests"]
    types = {name: request["type"] for name, request in shown.items() if name not in OTHERS}
    assert types == {type_: type_ for type_ in EVENT_TYPES}
