"""The hot calls: the direct path, without FastAPI, gives the same answers as FastAPI."""

import gc
import gzip
import json
import re
from collections import Counter
from collections.abc import Awaitable
from dataclasses import replace
from typing import NamedTuple

import pytest

from app.api.direct import MAX_BODY
from tests.api.conftest import Access
from tests.connections import (
    ENTITY,
    EVENTS,
    GIVEN,
    HEARTBEAT,
    ID,
    LARGEST,
    LOOP,
    MATCH,
    NEXT,
    OTHER,
    PROVENANCE,
    TABLE,
    WORKFLOW,
    Answer,
    Ask,
    Client,
    Plain,
    Served,
    commit,
    connected,
    get,
    post,
    put,
)
from tests.making import NODE, event_json, life, node


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of the service."""
    return LOOP


def padded(size: int, body: object) -> bytes:
    """A body of this many bytes."""
    return json.dumps(body).encode().rjust(size)


JSON = "Content-Type: application/json"

ASKS: dict[str, Ask] = {
    # An entity.
    "an entity": get(ENTITY),
    "an id in upper case": get(f"/v1/entities/{str(NODE).upper()}"),
    "an entity, unchanged": get(ENTITY, 'If-None-Match: "5"'),
    "an entity, unchanged, weakly": get(ENTITY, 'If-None-Match: "1", W/"5"'),
    "an entity, unchanged, in two headers": get(ENTITY, 'If-None-Match: "1"', 'if-none-match: "5"'),
    "an entity, if there is one": get(ENTITY, "If-None-Match: *"),
    "an entity, changed": get(ENTITY, 'If-None-Match: "4"'),
    "an entity, if it matches": get(ENTITY, 'If-Match: "5"'),
    "an entity, if another matches": get(ENTITY, 'If-Match: "4"'),
    "an entity, if a weak tag matches": get(ENTITY, 'If-Match: W/"5"'),
    "an entity, by the tag of its coded form": get(ENTITY, 'If-None-Match: "5-gzip"'),
    "an entity, for somebody who reads gzip": get(ENTITY, "Accept-Encoding: gzip"),
    "an entity, with an id of a gateway": get(ENTITY, ID + "Root=1-67891233-abcdef012345678912345678"),
    "an entity, for a page of another origin": get(ENTITY, "Origin: http://evil.example", hot=False),
    "no entity": get(f"/v1/entities/{node(404)}", "If-None-Match: *"),
    "an entity, with an id": get(ENTITY, ID + GIVEN),
    "an entity, with an id in upper case": get(ENTITY, ID + GIVEN.upper()),
    "an entity, with a bad id": get(ENTITY, ID + "17"),
    "an entity, with an empty id": get(ENTITY, ID),
    "an entity, with an id that is not ASCII": get(ENTITY, ID + "ä"),
    "an entity, with two ids": get(ENTITY, ID + GIVEN, ID + "17"),
    "an entity, with a content type": get(ENTITY, JSON),
    "an entity, with another content type": get(ENTITY, "Content-Type: text/csv", hot=False),
    "an entity, with a body": Ask("GET", ENTITY, body=b"{}", hot=False),
    "an entity, with an empty body": Ask("GET", ENTITY, body=b"", hot=False),
    "an entity, with a chunked body": Ask("GET", ENTITY, body=b"{}", chunked=True, hot=False),
    "an entity, then no more": get(ENTITY, "Connection: close"),
    "an entity of a domain": get(f"{ENTITY}?domain=registration", hot=False),
    "an entity, with an unknown parameter": get(f"{ENTITY}?x=1", hot=False),
    "an entity, with an empty query": get(f"{ENTITY}?", hot=False),
    "an entity with a slash": get(f"{ENTITY}/", hot=False),
    "an entity's state": get(f"{ENTITY}/state", hot=False),
    "an id with an escape": get(ENTITY.replace("7a1c", "%37a1c"), hot=False),
    "an id as long as one": get(f"/v1/entities/{'x' * 36}", hot=False),
    "an id with dashes elsewhere": get("/v1/entities/7a1c5f7e9-d53-4c58-8a3c-1f0e2d3c4b5a", hot=False),
    "an id in braces": get(f"/v1/entities/{{{NODE.hex}}}", hot=False),
    "an id as a URN": get(f"/v1/entities/{NODE.urn}", hot=False),
    "an id without dashes": get(f"/v1/entities/{NODE.hex}", hot=False),
    "a list": get("/v1/entities", hot=False),
    "an absolute form": get(f"http://localhost{ENTITY}"),
    "an old client": Ask("GET", ENTITY, version="1.0"),
    "an old client that stays": Ask("GET", ENTITY, ("Connection: keep-alive",), version="1.0"),
    "a head": Ask("HEAD", ENTITY, hot=False),
    "an entity, deleted": Ask("DELETE", ENTITY, hot=False),
    "an upgrade": get(ENTITY, "Connection: Upgrade", "Upgrade: h2c"),
    # Events.
    "an event": post(HEARTBEAT),
    "an event with a type": post(HEARTBEAT, JSON),
    "an event with an id": post(HEARTBEAT, ID + GIVEN),
    "an event with a bad id": post(HEARTBEAT, ID + "x"),
    "an event, then no more": post(HEARTBEAT, "Connection: close"),
    "an event after a byte order mark": post(b"\xef\xbb\xbf" + json.dumps(HEARTBEAT).encode()),
    "an event at a whole number": post(json.dumps(HEARTBEAT).replace('"sequence": 6', '"sequence": 6.0').encode()),
    "an event at a power of ten": post(json.dumps(HEARTBEAT).replace('"sequence": 6', '"sequence": 60e-1').encode()),
    "an event at a fraction": post(json.dumps(HEARTBEAT).replace('"sequence": 6', '"sequence": 6.5').encode()),
    "an event of nanoseconds": post(HEARTBEAT | {"occurred_at": "2026-01-01T00:00:59.9999999Z"}),
    "an event of a foreign page": post(HEARTBEAT, "Origin: http://evil.example", hot=False),
    "an event of the service's own page": post(HEARTBEAT, "Origin: http://localhost", hot=False),
    "an event, with a preference": post(HEARTBEAT, "Prefer: return=minimal", hot=False),
    "an event in gzip": post(gzip.compress(json.dumps(HEARTBEAT).encode()), "Content-Encoding: gzip", hot=False),
    "an event in another coding": post(HEARTBEAT, "Content-Encoding: br", hot=False),
    "an event again": post(life()[-1]),
    "an event too late": post(life()[0]),
    "an event too early": post(HEARTBEAT | {"position": {"sequence": 9, "previous": 8}}),
    "an event in conflict": post(HEARTBEAT | {"position": {"partition": "p", "offset": 1}}),
    "an event that is ignored": post(event_json("registration.accepted", 6)),
    "an event of an unknown entity": post(event_json("node.heartbeat", 6, entity_id=node(404))),
    "an event with a charset": post(HEARTBEAT, f"{JSON}; charset=utf-8", hot=False),
    "an event of a +json type": post(HEARTBEAT, "Content-Type: application/vnd.x+json", hot=False),
    "an event of an empty type": post(HEARTBEAT, "Content-Type: ", hot=False),
    "an event of another type": post(HEARTBEAT, "Content-Type: text/csv", hot=False),
    "an event of two types": post(HEARTBEAT, JSON, "Content-Type: text/csv", hot=False),
    "lines": post(json.dumps(HEARTBEAT).encode() + b"\nx\n", "Content-Type: application/x-ndjson", hot=False),
    "a chunked event": post(HEARTBEAT, chunked=True, hot=False),
    "an event after leave": post(HEARTBEAT, "Expect: 100-continue", hot=False),
    "a dry run": replace(post(HEARTBEAT, hot=False), target=f"{EVENTS}?dry_run=true"),
    "an escaped path": replace(post(HEARTBEAT, hot=False), target="/v1/%65vents"),
    "events, in an absolute form": replace(post(HEARTBEAT), target=f"http://localhost{EVENTS}"),
    "an event of an old client": replace(post(HEARTBEAT), version="1.0"),
    "an array": post([HEARTBEAT, life()[0]]),
    "an array after spaces": post(b" \n" + json.dumps([HEARTBEAT]).encode()),
    "an array of none": post([]),
    "an array with a bad item": post([HEARTBEAT, {}]),
    "an array that does not end": post(b"["),
    "no JSON": post(b"{"),
    "no UTF-8": post(b'{"a": "\xff"}'),
    "no object": post(b"17"),
    "no event": post({}),
    "a wrong type": post(HEARTBEAT | {"type": "x"}),
    "an unknown field": post(HEARTBEAT | {"x": 1}),
    "NUL": post(HEARTBEAT | {"domain": "\0"}),
    "deeper than deep": post(b'{"a": ' * 10_000),
    "spaces": post(b"  "),
    "an empty body": post(b""),
    "no body": Ask("POST", EVENTS, hot=False),
    "a large body": post(padded(MAX_BODY, HEARTBEAT)),
    "a larger body": post(padded(MAX_BODY + 1, HEARTBEAT), hot=False),
    "the largest body": post(padded(LARGEST, HEARTBEAT), hot=False),
    "a body that is too large": post(padded(LARGEST + 1, HEARTBEAT), hot=False),
    "events, asked for": get(EVENTS, hot=False),
    # A workflow.
    "a workflow": get(WORKFLOW),
    "a workflow, unchanged": get(WORKFLOW, 'If-None-Match: W/"2"'),
    "a workflow, if it matches": get(WORKFLOW, 'If-Match: "2"'),
    "a workflow, if another matches": get(WORKFLOW, 'If-Match: "1"'),
    "a commit on a weak tag": put(WORKFLOW, NEXT, 'If-Match: W/"2"'),
    "a workflow, changed": get(WORKFLOW, 'If-None-Match: "1"'),
    "no workflow": get("/v1/workflows/-a.b_c~d:e@f/G/"),
    "a slash for a key": get("/v1/workflows//"),
    "dots in a key": get("/v1/workflows/..w"),
    "a long key": get(f"/v1/workflows/{'x' * 255}"),
    "a key that is too long": get(f"/v1/workflows/{'x' * 256}", hot=False),
    "an empty key": get("/v1/workflows/", hot=False),
    "a key with an escape": get("/v1/workflows/%77", hot=False),
    "a key that is no UTF-8": get("/v1/workflows/%ff", hot=False),
    "a key that needs none": get("/v1/workflows/a+b", hot=False),
    "a workflow, with a parameter": get(f"{WORKFLOW}?x=1", hot=False),
    "a workflow, with a bad id": get(WORKFLOW, ID + "x"),
    "a commit": put(WORKFLOW, NEXT, MATCH, JSON),
    "a first commit": put("/v1/workflows/new", NEXT, "If-None-Match: *"),
    "a first commit too late": put(WORKFLOW, NEXT, "If-None-Match: *"),
    "a commit too late": put(WORKFLOW, NEXT, 'If-Match: "1"'),
    "a commit on nothing": put("/v1/workflows/new", NEXT, MATCH),
    "a commit on anything": put(WORKFLOW, NEXT, "If-Match: *"),
    "a commit on one of two": put(WORKFLOW, NEXT, 'If-Match: "2", "7"'),
    "a commit without a condition": put(WORKFLOW, NEXT),
    "a commit with a bad condition": put(WORKFLOW, NEXT, "If-Match: 2"),
    "a commit with a bad id": put(WORKFLOW, NEXT, MATCH, ID + "x"),
    "a commit again": put(WORKFLOW, commit(1, action_id="first"), 'If-Match: "9"'),
    "an action with another state": put(WORKFLOW, commit(9, action_id="first"), MATCH),
    "a commit of no JSON": put(WORKFLOW, b"{", MATCH),
    "a commit of nothing": put(WORKFLOW, b"", MATCH),
    "a commit of no state": put(WORKFLOW, {"state": {}, "provenance": PROVENANCE}, MATCH),
    "a commit of no shape": put(WORKFLOW, [], MATCH),
    "a commit, then no more": put(WORKFLOW, NEXT, MATCH, "Connection: close"),
    "a commit with a charset": put(WORKFLOW, NEXT, MATCH, f"{JSON}; charset=utf-8", hot=False),
    "a commit of another type": put(WORKFLOW, NEXT, MATCH, "Content-Type: text/csv", hot=False),
    "a chunked commit": put(WORKFLOW, NEXT, MATCH, chunked=True, hot=False),
    "a commit after leave": put(WORKFLOW, NEXT, MATCH, "Expect: 100-continue", hot=False),
    "a commit to an escaped key": put("/v1/workflows/%77", NEXT, MATCH, hot=False),
    "a large commit": put(WORKFLOW, padded(MAX_BODY, NEXT), MATCH),
    "a larger commit": put(WORKFLOW, padded(MAX_BODY + 1, NEXT), MATCH, hot=False),
    "a commit that is too large": put(WORKFLOW, padded(LARGEST + 1, NEXT), MATCH, hot=False),
    "a workflow, deleted": Ask("DELETE", WORKFLOW, hot=False),
}


ITS_OWN = {"date", "x-correlation-id", "connection", "transfer-encoding"}  # headers of one answer, or of uvicorn


class Seen(NamedTuple):
    """Everything observable about one request, except values that differ each time."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    counted: Counter[str]
    logged: tuple[str, str, int]


async def see(service: Plain, access: Access, asking: Awaitable[Answer]) -> Seen:
    """Send a request, and record everything observable about it."""
    access.forget()
    before = service.counted()
    answer = await asking
    its_id, method, path, status = await access.next()
    assert its_id == answer.header("x-correlation-id")
    headers = sorted(each for each in answer.headers if each[0] not in ITS_OWN)
    body = re.sub(rb'(?<="updated_at":")[^"]*', b"now", answer.body)
    return Seen(answer.status, headers, body, service.counted() - before, (method, path, status))


@pytest.mark.parametrize("case", ASKS)
async def test_every_way_answers_the_same(
    in_process: Plain, hot: Served, raw: Client, access: Access, case: str
) -> None:
    """Behind uvicorn and in process, the direct path has the status, headers, body, metrics and log of FastAPI."""
    ask = ASKS[case]
    behind_uvicorn = await see(hot, access, raw.ask(ask))
    assert hot.ways == [ask.hot]
    hot.untouched = in_process.untouched = ask.method == "GET"
    direct = await see(in_process, access, ask.in_process(in_process.client))
    await in_process.reset()
    routed = await see(in_process, access, ask.in_process(in_process.routed))
    assert behind_uvicorn == routed
    assert direct == routed


async def test_the_smallest_limit_counts(database_url: str) -> None:
    """The direct path also refuses a body above this service's own limit."""
    served = Served(database_url, max_body=1024)
    async with served.running(), served.connect() as raw:
        assert (await raw.ask(post(padded(1024, HEARTBEAT)))).status == 200
        assert (await raw.ask(post(padded(1025, HEARTBEAT)))).status == 413
    assert served.ways == [True, False]


BREAKS = """
CREATE FUNCTION ours() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RAISE 'on fire' USING ERRCODE = 'internal_error'; END $$;
"""
# What stands in the way of an event, how it is removed, and the status meanwhile.
IN_THE_WAY = {
    "refused": (
        f"ALTER TABLE {TABLE} ADD CONSTRAINT ours CHECK (version < 6)",
        f"ALTER TABLE {TABLE} DROP CONSTRAINT ours",
        422,
    ),
    "nobody foresaw it": (
        BREAKS + f"CREATE TRIGGER ours BEFORE UPDATE ON {TABLE} EXECUTE FUNCTION ours()",
        "DROP FUNCTION ours CASCADE",
        500,
    ),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
@pytest.mark.parametrize("ask", [ASKS["an event"], ASKS["an event with a charset"]], ids=["hot", "usual"])
async def test_an_error_of_postgresqls(hot: Served, raw: Client, access: Access, ask: Ask, kind: str) -> None:
    """A PostgreSQL error is a 422 or, if unforeseen, a 500, with the correlation id; the connection stays open."""
    put_there, remove, status = IN_THE_WAY[kind]
    async with connected(hot.url) as connection:
        await connection.execute(put_there)
        try:
            answer = await raw.ask(ask)
        finally:
            await connection.execute(remove)
    assert (answer.status, answer.header("content-type")) == (status, "application/problem+json")
    assert await access.next() == (answer.header("x-correlation-id"), "POST", EVENTS, status)
    assert (await raw.ask(ask)).status == 200


COLLECTED = {
    "lookup": get(ENTITY),
    "unchanged": get(ENTITY, 'If-None-Match: "5"'),
    "no entity": get(f"/v1/entities/{node(404)}"),
    "event": post(life()[-1]),
    "workflow": get(WORKFLOW),
    "conflict": put(WORKFLOW, NEXT, 'If-Match: "1"'),
}


@pytest.mark.parametrize("case", COLLECTED)
async def test_a_hot_call_leaves_nothing_to_the_garbage_collector(hot: Served, raw: Client, case: str) -> None:
    """When a call is answered, reference counts free it: rings of objects would cost a collection every few calls."""
    ask, calls = COLLECTED[case], 30
    for _ in range(3):
        await raw.ask(ask)
    gc.collect()
    gc.disable()
    try:
        for _ in range(calls):
            await raw.ask(ask)
        rings = gc.collect()
    finally:
        gc.enable()
    assert hot.ways == [True] * (3 + calls)
    assert rings < calls


async def test_an_answer_is_dated(hot: Served, raw: Client) -> None:
    """The direct path's answer begins with `Date`, like uvicorn's other answers, and has the edge headers."""
    one = await raw.ask(get(ENTITY))
    other = await raw.ask(OTHER)
    assert hot.ways == [True, False]
    own = ["content-length", "content-type", "etag"]
    edge = ["cache-control", "x-content-type-options", "content-security-policy"]
    assert [name for name, _ in one.headers] == ["date", *own, *edge, "x-correlation-id"]
    assert other.headers[0][0] == "date"


async def test_the_clients_id_is_stored(hot: Served, raw: Client) -> None:
    """On both paths, an event is stored with the correlation id of its request."""
    await raw.ask(post(HEARTBEAT, ID + GIVEN))
    assert json.loads((await raw.ask(get(ENTITY))).body)["correlation_id"] == GIVEN
    assert hot.ways == [True, True]


@pytest.mark.parametrize("ask", [post(HEARTBEAT), put(WORKFLOW, NEXT, MATCH)], ids=["event", "commit"])
async def test_leave_is_given(raw: Client, ask: Ask) -> None:
    """A client that sends `Expect: 100-continue` is told to continue."""
    head, _, body = replace(ask, headers=(*ask.headers, "Expect: 100-continue")).raw().partition(b"\r\n\r\n")
    await raw.send(head + b"\r\n\r\n")
    assert await raw.line() == b"HTTP/1.1 100 Continue\r\n"
    await raw.line()
    await raw.send(body)
    assert (await raw.answer()).status == 200
