"""Valid events that only PostgreSQL refuses, by an operator's constraint or trigger: answered without a 500."""

import asyncio
import logging
from functools import partial

import httpx
import msgspec
import pytest

from app.store.database import Connection, Database
from tests.api.conftest import service_on
from tests.making import Json, event_json, node
from tests.refusing import POISON

REFUSAL = "the table does not accept these values; the log says why"
A_CONSTRAINT = POISON["a constraint"]


def good(number: int) -> Json:
    """An event that begins a registration."""
    return event_json("registration.initiated", 1, entity_id=node(number))


def bad(number: int, data: Json = A_CONSTRAINT[1]) -> Json:
    """An event that begins a registration, with data that the database refuses."""
    return event_json("registration.initiated", 1, entity_id=node(number), data=data)


async def prepare(database: Database, statements: tuple[str, ...] = A_CONSTRAINT[0]) -> None:
    """Add an operator's constraint and trigger to the database."""
    for statement in statements:
        await database.write(partial(_execute, statement))


async def _execute(statement: str, connection: Connection) -> None:
    await connection.execute(statement)


async def total(client: httpx.AsyncClient) -> int:
    """The number of rows."""
    return int((await client.get("/v1/state-counts")).json()["total"])


async def post_lines(client: httpx.AsyncClient, events: list[Json]) -> list[Json]:
    """Post a stream, and return the lines of its answer."""
    body = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
    answer = await client.post("/v1/events", content=body, headers={"Content-Type": "application/x-ndjson"})
    assert answer.status_code == 200
    return [msgspec.json.decode(line) for line in answer.content.splitlines()]


@pytest.mark.parametrize("kind", POISON)
async def test_one_event_is_a_problem(
    client: httpx.AsyncClient, database: Database, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One refused event is a 422; PostgreSQL's message is in the log and not in the answer."""
    statements, data = POISON[kind]
    await prepare(database, statements)
    with caplog.at_level(logging.WARNING):
        answer = await client.post("/v1/events", json=bad(1, data))
    assert (answer.status_code, answer.headers["Content-Type"]) == (422, "application/problem+json")
    assert answer.json()["errors"] == [{"pointer": "#", "detail": REFUSAL}]
    assert [record.message for record in caplog.records if record.message.startswith("PostgreSQL refused a write: ")]
    assert await total(client) == 0


@pytest.mark.parametrize("batching", [True, False])
async def test_its_neighbours_get_in(database: Database, database_url: str, batching: bool) -> None:
    """Of single events that share a batch, only the refused one fails."""
    await prepare(database)
    async with service_on(database_url, batching=batching) as client:
        events = [good(number) for number in range(9)]
        events[3] = bad(3)
        answers = await asyncio.gather(*(client.post("/v1/events", json=event) for event in events))
        assert [answer.status_code for answer in answers] == [200, 200, 200, 422, 200, 200, 200, 200, 200]
        assert await total(client) == 8


@pytest.mark.parametrize("kind", POISON)
async def test_an_array_names_the_event(client: httpx.AsyncClient, database: Database, kind: str) -> None:
    """An array with a refused event is refused whole, with the event's index."""
    statements, data = POISON[kind]
    await prepare(database, statements)
    events = [good(number) for number in range(7)]
    events[3] = bad(3, data)
    answer = await client.post("/v1/events", json=events)
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"pointer": "#/3", "detail": REFUSAL}]
    assert await total(client) == 0


@pytest.mark.parametrize("place", range(5))
async def test_an_array_names_it_wherever_it_stands(
    client: httpx.AsyncClient, database: Database, place: int
) -> None:
    """The index of the refused event counts from 0 in the order sent."""
    await prepare(database)
    events = [good(number) for number in range(5)]
    events[place] = bad(place)
    answer = await client.post("/v1/events", json=events)
    assert answer.json()["errors"][0]["pointer"] == f"#/{place}"


async def test_an_array_of_one_entity_names_the_event_by_which_its_row_is_refused(
    client: httpx.AsyncClient, database: Database
) -> None:
    """The array names the event after which, folding by position, the row is refused."""
    await prepare(database, ("ALTER TABLE registration_projections ADD CHECK (current_state <> 'accepted')",))
    events = [
        event_json("registration.accepted", 2),
        event_json("registration.initiated", 1),
        event_json("node.heartbeat", 3),
    ]
    answer = await client.post("/v1/events", json=events)
    assert answer.json()["errors"][0]["pointer"] == "#/1"
    assert await total(client) == 0


async def test_a_line_of_a_stream_is_invalid(client: httpx.AsyncClient, database: Database) -> None:
    """Each refused line is in the answer and counts as invalid; all other lines are applied in their order."""
    await prepare(database)
    events = [good(number) for number in range(20)]
    for place in (0, 7, 8, 19):
        events[place] = bad(place)
    later = [event_json("registration.accepted", 2, entity_id=node(number)) for number in range(1, 7)]
    *lines, summary = await post_lines(client, [*events, *later, {}])
    assert lines[:-1] == [
        {"line": place + 1, "outcome": "invalid", "errors": [{"pointer": "#", "detail": REFUSAL}]}
        for place in (0, 7, 8, 19)
    ]
    assert (lines[-1]["line"], lines[-1]["outcome"]) == (27, "invalid")
    assert {name: count for name, count in summary["summary"].items() if count} == {
        "received": 27,
        "applied": 22,
        "invalid": 5,
    }
    assert await total(client) == 16


@pytest.mark.parametrize("kind", POISON)
async def test_a_stream_goes_on_whatever_refuses_its_line(
    client: httpx.AsyncClient, database: Database, kind: str
) -> None:
    """A stream gets 200, in whichever way PostgreSQL refuses one of its lines."""
    statements, data = POISON[kind]
    await prepare(database, statements)
    line, _ = await post_lines(client, [good(1), bad(2, data), good(3)])
    assert (line["line"], line["outcome"]) == (2, "invalid")
    assert await total(client) == 2


async def test_what_is_refused_is_counted(client: httpx.AsyncClient, database: Database) -> None:
    """Lines that PostgreSQL refuses count as invalid events in the metrics."""
    await prepare(database)
    await post_lines(client, [good(1), bad(2)])
    text = (await client.get("/metrics")).text.splitlines()
    assert {
        'pqs_events_total{outcome="invalid",source="http",type="unknown"} 1.0',
        'pqs_events_total{outcome="applied",source="http",type="registration.initiated"} 1.0',
    } <= set(text)


async def test_a_workflow_is_a_problem_alone(
    client: httpx.AsyncClient, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A commit that PostgreSQL refuses is a 422; the commits of the same batch succeed."""
    await prepare(database, ("ALTER TABLE workflow_state ADD CHECK (NOT state ? 'poison')",))

    async def commit(key: str, state: Json) -> httpx.Response:
        provenance = {"effect_id": "a", "action_id": str(node(1)), "timestamp": "2026-01-01T00:00:00Z"}
        body = {"state": state, "provenance": provenance}
        return await client.put(f"/v1/workflows/{key}", json=body, headers={"If-None-Match": "*"})

    with caplog.at_level(logging.WARNING):
        refused, *others = await asyncio.gather(
            commit("bad", {"poison": 1}), *(commit(f"good-{number}", {"number": number}) for number in range(5))
        )
    assert (refused.status_code, refused.json()["errors"]) == (422, [{"pointer": "#", "detail": REFUSAL}])
    assert [each.status_code for each in others] == [201] * 5
    assert "violates check constraint" in caplog.text
    assert (await client.get("/v1/workflows/bad")).status_code == 404
