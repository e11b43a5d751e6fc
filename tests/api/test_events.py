"""Events in, over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable

import httpx
import pytest

from app.domain.events import EVENT_TYPES
from app.wire.events import CHUNK_LINES, MAX_LINE
from tests.making import NODE, WAY_TO_ACTIVE, Json, event_json, life, node

RESULT = ["event_id", "outcome", "reason", "entity_id", "domain", "current_state", "version", "stands_at"]
PROBLEM = ["type", "title", "status", "detail", "instance"]
SUMMARY = ["received", "applied", "ignored", "duplicate", "stale", "early", "conflict"]
NDJSON = {"Content-Type": "application/x-ndjson"}
JSON = {"Content-Type": "application/json"}

INITIATED = event_json("registration.initiated", 5)


def summary(**counts: int) -> Json:
    """A summary with these counts, and zeros."""
    return dict.fromkeys(SUMMARY, 0) | {"received": sum(counts.values())} | counts


def stream_summary(**counts: int) -> Json:
    """The summary of a stream."""
    return {"invalid": 0, **summary(**counts)}


def ndjson(events: Iterable[Json]) -> bytes:
    """Events as lines."""
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


async def post_lines(client: httpx.AsyncClient, body: bytes) -> tuple[list[Json], Json]:
    """The lines of the answer to a stream, and its summary."""
    answer = await client.post("/v1/events", content=body, headers=NDJSON)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    *lines, last = (json.loads(line) for line in answer.text.splitlines())
    assert list(last) == ["summary"]
    return lines, last["summary"]


async def total(client: httpx.AsyncClient) -> int:
    """How many entities there are."""
    return int((await client.get("/v1/state-counts")).json()["total"])


# --- One event -----------------------------------------------------------------------------------------------------


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


# What is sent after INITIATED, and what becomes of it: status, outcome, version, sequence of the row.
ONE = {
    "applied": (event_json("registration.accepted", 6), 200, "applied", 2, 6),
    "applied after its previous": (
        event_json("registration.accepted", 6, position={"sequence": 6, "previous": 5}),
        200,
        "applied",
        2,
        6,
    ),
    "not allowed in this state": (event_json("registration.activated", 6), 200, "ignored", 2, 6),
    "the same again": (INITIATED, 200, "duplicate", 1, 5),
    "lower": (event_json("registration.accepted", 4), 200, "stale", 1, 5),
    "lower, though its previous is missing": (
        event_json("registration.accepted", 4, position={"sequence": 4, "previous": 3}),
        200,
        "stale",
        1,
        5,
    ),
    "previous is missing": (
        event_json("registration.accepted", 9, position={"sequence": 9, "previous": 8}),
        409,
        "early",
        1,
        5,
    ),
    "another event at the same position": (event_json("registration.accepted", 5), 409, "conflict", 1, 5),
    "on another track": (
        event_json("registration.accepted", 6, position={"partition": "nodes-0", "offset": 6}),
        409,
        "conflict",
        1,
        5,
    ),
}


@pytest.mark.parametrize("case", ONE)
async def test_one_event_has_its_outcome(shared: httpx.AsyncClient, case: str) -> None:
    """The answer to one event says its outcome, and where the row stands after it."""
    event, status, outcome, version, sequence = ONE[case]
    domain = f"outcome of {case}"
    await shared.post("/v1/events", json={**INITIATED, "domain": domain})
    answer = await shared.post("/v1/events", json={**event, "domain": domain})
    body = answer.json()
    assert answer.status_code == status
    assert {name: body[name] for name in RESULT if name not in {"reason", "current_state"}} == {
        "event_id": event["event_id"],
        "outcome": outcome,
        "entity_id": event["entity_id"],
        "domain": domain,
        "version": version,
        "stands_at": {"sequence": sequence},
    }
    row = (await shared.get(f"/v1/entities/{NODE}", params={"domain": domain})).json()
    assert (row["version"], row["last_applied_sequence"]) == (version, sequence)
    assert body["current_state"] == row["current_state"]


@pytest.mark.parametrize("case", ONE)
async def test_one_event_has_its_form(shared: httpx.AsyncClient, case: str) -> None:
    """A 200 has the fields of a result; a 409 is a problem with the same fields, and a reason that is its detail."""
    event, status, outcome, _, _ = ONE[case]
    domain = f"form of {case}"
    await shared.post("/v1/events", json={**INITIATED, "domain": domain})
    answer = await shared.post("/v1/events", json={**event, "domain": domain})
    body = answer.json()
    if status == 200:
        assert answer.headers["content-type"] == "application/json"
        assert list(body) == RESULT
        assert (body["reason"] is None) == (outcome == "applied")
    else:
        assert answer.headers["content-type"] == "application/problem+json"
        assert list(body) == [*PROBLEM, *RESULT]
        assert (body["status"], body["instance"], body["detail"]) == (409, "/v1/events", body["reason"])
        assert ("retry-after" in answer.headers) == (outcome == "early")


async def test_an_early_event_says_when_to_come_again(shared: httpx.AsyncClient) -> None:
    """A 409 for an early event without a row has whole seconds in `Retry-After`, and nulls for the row."""
    event = event_json("registration.accepted", 2, position={"sequence": 2, "previous": 1})
    answer = await shared.post("/v1/events", json=event)
    assert int(answer.headers["retry-after"]) >= 1
    assert [answer.json()[name] for name in ("outcome", "current_state", "version", "stands_at")] == [
        "early",
        None,
        None,
        None,
    ]


async def test_an_unknown_entity_is_ignored(shared: httpx.AsyncClient) -> None:
    """An event that cannot begin a registration answers `unknown entity`, with nulls, and makes no row."""
    answer = await shared.post("/v1/events", json=event_json("node.heartbeat", 1))
    assert {**answer.json(), "event_id": ""} == {
        "event_id": "",
        "outcome": "ignored",
        "reason": "unknown entity",
        "entity_id": str(NODE),
        "domain": "registration",
        "current_state": None,
        "version": None,
        "stands_at": None,
    }
    assert (await shared.get(f"/v1/entities/{NODE}")).status_code == 404


async def test_a_position_comes_back_as_it_is(shared: httpx.AsyncClient) -> None:
    """`stands_at` names partition and offset where the row stands on a partition, and never `previous`."""
    position = {"partition": "nodes-0", "offset": 7}
    following = {"partition": "nodes-0", "offset": 9, "previous": 7}
    first = event_json("registration.initiated", 1, entity_id=node(77), position=position)
    second = event_json("registration.accepted", 2, entity_id=node(77), position=following)
    await shared.post("/v1/events", json=first)
    answer = await shared.post("/v1/events", json=second)
    assert answer.json()["stands_at"] == {"partition": "nodes-0", "offset": 9}


async def test_a_domain_has_entities_of_its_own(client: httpx.AsyncClient) -> None:
    """One entity id in two domains is two entities."""
    for domain in ("registration", "elsewhere"):
        answer = await client.post("/v1/events", json=event_json("registration.initiated", 1, domain=domain))
        assert (answer.json()["outcome"], answer.json()["domain"]) == ("applied", domain)
    assert await total(client) == 1


# --- What is refused -----------------------------------------------------------------------------------------------

UNREADABLE = {
    "empty": (b"", "empty"),
    "blank": (b" \n ", "empty"),
    "broken": (b'{"event_id": 1,\n  nonsense}', "line 2 column 3"),
    "broken off": (b'{"event_id": "', "line 1 column 14"),
    "two values": (b"{} {}", "line 1 column 4"),
    "NaN": (b'{"data": {"a":\n NaN}}', "line 2 column 2"),
    "Infinity": (b'[{"data": -Infinity}]', "line 1 column 11"),
    "not UTF-8": (b'{"domain": "\xff"}', "line 1 column 13"),
    "a lone surrogate": (b'{"domain": "\\ud800"}', "line 1 column 13"),
    "an array that is broken": (b"[{}, ", "line 1 column 6"),
}


@pytest.mark.parametrize("case", UNREADABLE)
async def test_what_is_no_json_is_400(shared: httpx.AsyncClient, case: str) -> None:
    """A body that cannot be read as JSON is a 400 that says where it breaks."""
    body, where = UNREADABLE[case]
    answer = await shared.post("/v1/events", content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == PROBLEM
    assert where in answer.json()["detail"]


def but(**fields: object) -> Json:
    """A good event, but for these fields; None leaves one out."""
    event = event_json("registration.initiated", 1)
    for name, value in fields.items():
        if value is None:
            del event[name]
        else:
            event[name] = value
    return event


def nested(levels: int) -> Json:
    """So many objects in one another."""
    value: Json = {}
    for _ in range(levels):
        value = {"a": value}
    return value


WRONG: dict[str, tuple[object, str, str]] = {
    "null": (None, "#", "object"),
    "a number": (3, "#", "object"),
    "no event_id": (but(event_id=None), "#/event_id", "required"),
    "no type": (but(type=None), "#/type", "required"),
    "no entity_id": (but(entity_id=None), "#/entity_id", "required"),
    "no position": (but(position=None), "#/position", "required"),
    "no occurred_at": (but(occurred_at=None), "#/occurred_at", "required"),
    "no node_type": (but(data={}), "#/data/node_type", "required"),
    "bad event_id": (but(event_id="17"), "#/event_id", "UUID"),
    "bad entity_id": (but(entity_id="node-17"), "#/entity_id", "UUID"),
    "bad correlation_id": (but(correlation_id="mine"), "#/correlation_id", "UUID"),
    "unknown type": (but(type="node.restarted"), "#/type", ", ".join(EVENT_TYPES)),
    "unknown field": (but(extra=1), "#/extra", "unknown field"),
    "unknown field of data": (but(data={"node_type": "x", "colour": 1}), "#/data/colour", "unknown field"),
    "unknown field of a position": (but(position={"sequence": 1, "of": 2}), "#/position/of", "unknown field"),
    "a time without a zone": (but(occurred_at="2026-01-01T00:00:00"), "#/occurred_at", "timezone"),
    "a time as a number": (but(occurred_at=1767225600), "#/occurred_at", "datetime"),
    "no time": (but(occurred_at="yesterday"), "#/occurred_at", "datetime"),
    "the year 1899": (but(occurred_at="1899-12-31T23:59:59Z"), "#/occurred_at", "1900 to 9998"),
    "the year 9999": (but(occurred_at="9999-01-01T00:00:00Z"), "#/occurred_at", "1900 to 9998"),
    "a deadline in 9999": (
        event_json("registration.accepted", 2, data={"ack_deadline": "9999-06-01T00:00:00Z"}),
        "#/data/ack_deadline",
        "1900 to 9998",
    ),
    "no position at all": (but(position={}), "#/position", "either"),
    "half a position": (but(position={"partition": "a"}), "#/position", "either"),
    "the other half": (but(position={"offset": 1}), "#/position", "either"),
    "both positions": (but(position={"sequence": 1, "partition": "a", "offset": 1}), "#/position", "either"),
    "a negative sequence": (but(position={"sequence": -1}), "#/position/sequence", ">= 0"),
    "a negative offset": (but(position={"partition": "a", "offset": -1}), "#/position/offset", ">= 0"),
    "a fraction": (but(position={"sequence": 1.5}), "#/position/sequence", "int"),
    "a sequence of 2^63": (but(position={"sequence": 2**63}), "#/position/sequence", ""),
    "an offset of 2^63": (but(position={"partition": "a", "offset": 2**63}), "#/position/offset", ""),
    "a sequence of 2^64": (but(position={"sequence": 2**64}), "#/position/sequence", ""),
    "previous is not lower": (but(position={"sequence": 1, "previous": 1}), "#/position", "lower"),
    "a negative previous": (but(position={"sequence": 1, "previous": -1}), "#/position/previous", ">= 0"),
    "an empty domain": (but(domain=""), "#/domain", ">= 1"),
    "a domain of 129 characters": (but(domain="d" * 129), "#/domain", "<= 128"),
    "an empty partition": (but(position={"partition": "", "offset": 1}), "#/position/partition", ">= 1"),
    "a partition of 301": (but(position={"partition": "p" * 301, "offset": 1}), "#/position/partition", "<= 300"),
    "an empty node_type": (but(data={"node_type": ""}), "#/data/node_type", ">= 1"),
    "a node_type of 65": (but(data={"node_type": "n" * 65}), "#/data/node_type", "<= 64"),
    "capabilities that are a list": (
        but(data={"node_type": "x", "capabilities": []}),
        "#/data/capabilities",
        "object",
    ),
    "NUL in a domain": (but(domain="a\0b"), "#/domain", "NUL"),
    "NUL in a capability": (
        but(data={"node_type": "x", "capabilities": {"a": "\0"}}),
        "#/data/capabilities/a",
        "NUL",
    ),
    "NUL in a name": (but(data={"node_type": "x", "capabilities": {"\0": 1}}), "#/data/capabilities", "NUL"),
    "100 levels": (but(data={"node_type": "x", "capabilities": nested(100)}), "#/data", "64 levels"),
    "2,000 levels": (but(data={"node_type": "x", "capabilities": nested(900)}), "#", "64 levels"),
    "an unknown state": (
        event_json("registration.recorded", 1, data={"current_state": "lost", "node_type": "x"}),
        "#/data/current_state",
        "lost",
    ),
    "data for an event without": (event_json("registration.rejected", 1, data={"why": 1}), "#/data/why", "empty"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_no_event_is_422(shared: httpx.AsyncClient, case: str) -> None:
    """JSON that is no event is a 422 that points at what is wrong, and says it."""
    event, pointer, said = WRONG[case]
    answer = await shared.post("/v1/events", content=json.dumps(event), headers=JSON)
    assert answer.status_code == 422, answer.text
    assert list(answer.json()) == [*PROBLEM, "errors"]
    [error] = answer.json()["errors"]
    assert list(error) == ["pointer", "detail"]
    assert error["pointer"].startswith(pointer)
    assert said in error["detail"]


LARGEST: dict[str, Json] = {
    "numbers": {"position": {"partition": "p" * 300, "offset": 2**63 - 1, "previous": 2**63 - 2}},
    "a domain": {"domain": "d" * 128},
    "the first year": {"occurred_at": "1900-01-01T00:00:00Z"},
    "a node_type": {"data": {"node_type": "n" * 64}},
    "zero": {"position": {"sequence": 0}},
}


@pytest.mark.parametrize("case", LARGEST)
async def test_what_is_just_within_its_bounds_is_taken(shared: httpx.AsyncClient, case: str) -> None:
    """Values at the ends of their ranges are no error."""
    answer = await shared.post("/v1/events?dry_run=true", json=but(**LARGEST[case]))
    assert answer.json()["outcome"] in {"applied", "early"}, answer.text


@pytest.mark.parametrize("query", ["domain=registration", "dry=true", "dry_run=maybe", "dry_run="])
async def test_other_query_parameters_are_422(shared: httpx.AsyncClient, query: str) -> None:
    """`POST /v1/events` knows `dry_run` and no other parameter."""
    answer = await shared.post(f"/v1/events?{query}", json=INITIATED)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"#/query/{query.partition('=')[0]}"


# --- An array ------------------------------------------------------------------------------------------------------


async def test_an_array_answers_in_the_order_sent(client: httpx.AsyncClient) -> None:
    """The events of an entity are folded in the order of positions; the results come in the order of the array."""
    events = life()[::-1]
    answer = await client.post("/v1/events", json=events)
    assert answer.status_code == 200
    assert list(answer.json()) == ["summary", "results"]
    results = answer.json()["results"]
    assert [list(result) for result in results] == [RESULT] * 5
    assert [result["event_id"] for result in results] == [event["event_id"] for event in events]
    assert [result["version"] for result in results] == [5, 4, 3, 2, 1]


async def test_an_array_sums_its_outcomes_up(client: httpx.AsyncClient) -> None:
    """The summary counts the events of each outcome; early and conflict are no error here."""
    await client.post("/v1/events", json=life(node(1)))
    events = [
        event_json("registration.initiated", 1, entity_id=node(2)),
        event_json("node.heartbeat", 1, entity_id=node(3)),
        life(node(1))[4],
        life(node(1))[0],
        life(node(1))[1],
        event_json("node.heartbeat", 9, entity_id=node(1), position={"sequence": 9, "previous": 8}),
        event_json("node.heartbeat", 5, entity_id=node(1)),
    ]
    answer = await client.post("/v1/events", json=events)
    assert answer.status_code == 200
    assert list(answer.json()["summary"]) == SUMMARY
    assert answer.json()["summary"] == summary(applied=1, ignored=1, duplicate=1, stale=2, early=1, conflict=1)


async def test_an_empty_array_is_no_error(shared: httpx.AsyncClient) -> None:
    """An array without events answers zeros and no results."""
    answer = await shared.post("/v1/events", json=[])
    assert (answer.status_code, answer.json()) == (200, {"summary": summary(), "results": []})


async def test_one_bad_item_refuses_the_whole_array(client: httpx.AsyncClient) -> None:
    """An array with invalid items is a 422 that points at each of them, and nothing of it is applied."""
    events = [INITIATED, but(position={}), but(entity_id=str(node(1))), but(type="x"), 7]
    answer = await client.post("/v1/events", json=events)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/1/position", "#/3/type", "#/4"]
    assert await total(client) == 0


@pytest.mark.parametrize(("count", "status"), [(10_000, 200), (10_001, 422)])
async def test_an_array_holds_10000_events(shared: httpx.AsyncClient, count: int, status: int) -> None:
    """10,000 events are taken, one more is a 422 that says how to send them."""
    event = event_json("node.heartbeat", 1)
    answer = await shared.post("/v1/events", json=[event] * count)
    assert answer.status_code == status
    assert status == 200 or "application/x-ndjson" in answer.json()["errors"][0]["detail"]


# --- A dry run -----------------------------------------------------------------------------------------------------


async def test_a_dry_run_of_one_event_writes_nothing(client: httpx.AsyncClient) -> None:
    """With `dry_run` the answer is what it would be, and there is no row."""
    dry = await client.post("/v1/events?dry_run=true", json=INITIATED)
    assert (await client.get(f"/v1/entities/{NODE}")).status_code == 404
    assert dry.json() == (await client.post("/v1/events", json=INITIATED)).json()


async def test_a_dry_run_of_an_array_writes_nothing(client: httpx.AsyncClient) -> None:
    """The outcomes of an array are foreseen one after the other, and nothing is written."""
    dry = await client.post("/v1/events?dry_run=true", json=life())
    assert await total(client) == 0
    assert dry.json() == (await client.post("/v1/events", json=life())).json()


async def test_a_dry_run_of_an_early_event_is_409(shared: httpx.AsyncClient) -> None:
    """A dry run answers with the status that the event would have."""
    event = event_json("registration.accepted", 2, position={"sequence": 2, "previous": 1})
    answer = await shared.post("/v1/events?dry_run=true", json=event)
    assert (answer.status_code, answer.json()["outcome"]) == (409, "early")


async def test_a_stream_has_no_dry_run(shared: httpx.AsyncClient) -> None:
    """`dry_run` beside NDJSON is a 422."""
    answer = await shared.post("/v1/events?dry_run=true", content=ndjson([INITIATED]), headers=NDJSON)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/query/dry_run"]


@pytest.mark.parametrize("body", [INITIATED, [INITIATED]])
async def test_no_dry_run_is_the_default(client: httpx.AsyncClient, body: object) -> None:
    """`dry_run=false` is what no parameter means."""
    await client.post("/v1/events?dry_run=false", json=body)
    assert await total(client) == 1


# --- A stream of lines ---------------------------------------------------------------------------------------------


async def test_a_stream_answers_lines_that_were_not_applied(client: httpx.AsyncClient) -> None:
    """In the order of the input there is a line for each event that was not applied, with its number from 1."""
    heartbeat = event_json("node.heartbeat", 3, entity_id=node(9))
    early = event_json("registration.accepted", 9, position={"sequence": 9, "previous": 8})
    other = event_json("node.heartbeat", 5)
    lines, counts = await post_lines(
        client, ndjson([INITIATED, heartbeat, INITIATED, event_json("node.heartbeat", 1), early, other])
    )
    assert [list(line) for line in lines] == [["line", *RESULT]] * 5
    assert [(line["line"], line["outcome"]) for line in lines] == [
        (2, "ignored"),
        (3, "duplicate"),
        (4, "stale"),
        (5, "early"),
        (6, "conflict"),
    ]
    assert counts == stream_summary(applied=1, ignored=1, duplicate=1, stale=1, early=1, conflict=1)
    assert list(counts) == [*SUMMARY, "invalid"]


async def test_a_stream_goes_by_the_order_of_arrival(client: httpx.AsyncClient) -> None:
    """A stream is not sorted: an event that comes after a later one of its entity is stale."""
    lines, counts = await post_lines(client, ndjson([life()[0], life()[2], life()[1]]))
    assert [(line["line"], line["outcome"]) for line in lines] == [(2, "ignored"), (3, "stale")]
    assert counts == stream_summary(applied=1, ignored=1, stale=1)


async def test_blank_lines_count_and_are_skipped(client: httpx.AsyncClient) -> None:
    """Blank lines are no events, and still have a number."""
    body = b"\n \t\r\n" + ndjson([INITIATED]) + b"\r\n\n" + ndjson([INITIATED]) + b"\n"
    lines, counts = await post_lines(client, body)
    assert [(line["line"], line["outcome"]) for line in lines] == [(6, "duplicate")]
    assert counts == stream_summary(applied=1, duplicate=1)


async def test_a_line_that_cannot_be_read_is_invalid(client: httpx.AsyncClient) -> None:
    """Lines that are no events are named with what is wrong with them; the others are taken in."""
    body = b'{"a":\nnull\n' + ndjson([INITIATED, but(position={}), but(extra=1)]) + b"\xff\n[]\n"
    lines, counts = await post_lines(client, body)
    assert [list(line) for line in lines] == [["line", "outcome", "errors"]] * 6
    assert [(line["line"], line["outcome"]) for line in lines] == [(n, "invalid") for n in (1, 2, 4, 5, 6, 7)]
    assert [line["errors"][0]["pointer"] for line in lines] == ["#", "#", "#/position", "#/extra", "#", "#"]
    assert {tuple(error) for line in lines for error in line["errors"]} == {("pointer", "detail")}
    assert counts == stream_summary(applied=1, invalid=6)


async def test_a_line_of_more_than_a_mebibyte_is_invalid(client: httpx.AsyncClient) -> None:
    """A line of exactly 1 MiB is read, one byte more is too much, and the line after it is read again."""
    fits = ndjson([INITIATED])[:-1].ljust(MAX_LINE)
    lines, counts = await post_lines(client, b"\n".join([fits + b" ", fits, fits]) + b"\n")
    assert MAX_LINE == 1024 * 1024
    assert [(line["line"], line["outcome"]) for line in lines] == [(1, "invalid"), (3, "duplicate")]
    assert "1,048,576 bytes" in lines[0]["errors"][0]["detail"]
    assert counts == stream_summary(applied=1, duplicate=1, invalid=1)


@pytest.mark.parametrize("body", [b"", b"\n", b"\r\n \n\n"])
async def test_a_stream_without_events_is_no_error(shared: httpx.AsyncClient, body: bytes) -> None:
    """A stream with no lines, or only blank ones, answers zeros."""
    assert await post_lines(shared, body) == ([], stream_summary())


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"\n"])
async def test_lines_may_end_as_they_like(shared: httpx.AsyncClient, end: bytes, last: bytes) -> None:
    """LF, CRLF and nothing at the very end are all ends of a line."""
    events = life(domain=f"{end!r} {last!r}")
    body = end.join(ndjson([event])[:-1] for event in events) + last
    assert await post_lines(shared, body) == ([], stream_summary(applied=5))


async def test_a_stream_of_several_chunks_counts_on(client: httpx.AsyncClient) -> None:
    """Line numbers and sums go over all chunks of a long stream."""
    events = [event_json("registration.initiated", 1, entity_id=node(n)) for n in range(2 * CHUNK_LINES + 10)]
    lines, counts = await post_lines(client, ndjson([*events, events[0]]))
    assert [(line["line"], line["outcome"]) for line in lines] == [(len(events) + 1, "duplicate")]
    assert counts == stream_summary(applied=len(events), duplicate=1)


async def test_chunks_commit_one_by_one(client: httpx.AsyncClient) -> None:
    """What came in first can be read while the rest of the stream is still on its way."""
    seen: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        for number in range(CHUNK_LINES):
            yield ndjson([event_json("registration.initiated", 1, entity_id=node(number))])
        async with asyncio.timeout(10):
            while await total(client) < CHUNK_LINES:  # noqa: ASYNC110 - the commit is the service's
                await asyncio.sleep(0.01)
        seen.append(await total(client))
        yield ndjson([event_json("registration.initiated", 1, entity_id=node(CHUNK_LINES))])

    answer = await client.post("/v1/events", content=body(), headers=NDJSON)
    assert seen == [CHUNK_LINES]
    assert json.loads(answer.text)["summary"] == stream_summary(applied=CHUNK_LINES + 1)


async def test_two_streams_of_the_same_entities_end_right(client: httpx.AsyncClient) -> None:
    """Two streams of the same events at once: each event is applied by one of them, and the rows are those of one."""
    nodes = [node(number) for number in range(500)]
    body = ndjson(event_json(type_, n, entity_id=id_) for n, type_ in enumerate(WAY_TO_ACTIVE, 1) for id_ in nodes)
    answers = await asyncio.gather(post_lines(client, body), post_lines(client, body))
    assert sum(counts["applied"] for _, counts in answers) == len(nodes) * len(WAY_TO_ACTIVE)
    assert sum(counts["duplicate"] + counts["stale"] for _, counts in answers) == len(nodes) * len(WAY_TO_ACTIVE)
    rows = (await client.get("/v1/entities?limit=1000")).json()["items"]
    assert [(row["current_state"], row["version"]) for row in rows] == [("active", 5)] * len(nodes)
