"""Forgetting and evictions over HTTP, as seen by readers, followers, other services and the audit log."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import httpx
import msgspec
import pytest

from app.domain.positions import Position
from app.domain.registration import Registration
from app.projection.entries import EntryBuilder
from app.projection.sweep import Sweep
from app.store import dead_letters, erasure, outbox
from app.store.database import Connection, Database
from app.store.dead_letters import RELAY, Letter
from app.store.registrations import REGISTRATIONS
from tests.api.conftest import service_on
from tests.inbound.test_holding import Log, nothing, poisoned
from tests.making import NODE, Json, event_json, life, node
from tests.wire.test_envelopes import envelope

ENTITY = f"/v1/entities/{NODE}"
FORGET, DEREGISTER = f"{ENTITY}/forget", f"{ENTITY}/deregister"
OTHER_TRACK = Position(partition="nodes-1", offset=0)
ALL_CHANGES = "/v1/changes?after=start&limit=1000"


async def post(client: httpx.AsyncClient, *events: Json) -> list[Json]:
    """Send events as an array; returns their results."""
    answer = await client.post("/v1/events", json=list(events))
    assert answer.status_code == 200, answer.text
    results: list[Json] = answer.json()["results"]
    return results


async def forget(client: httpx.AsyncClient, path: str = FORGET, **body: object) -> Json:
    """Forget an entity by the operator's call."""
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    forgotten: Json = answer.json()
    return forgotten


async def changes(client: httpx.AsyncClient) -> list[Json]:
    """All changes in the log that are not erased."""
    items: list[Json] = (await client.get(ALL_CHANGES)).json()["items"]
    return items


async def sql(database: Database, query: str, *given: object) -> list[tuple[Any, ...]]:
    """The result of a query."""
    return [tuple(row) for row in await database.read(lambda connection: connection.fetch(query, *given))]


async def row(database: Database) -> Registration:
    """The stored row of the node."""
    found = await database.read(lambda connection: REGISTRATIONS.get_entity_state(connection, NODE, "registration"))
    assert found is not None
    return found


async def counts_are_right(database: Database) -> bool:
    """Whether the state counts equal a full count."""
    return await database.read(REGISTRATIONS.counts.verify_counts) == []


# --- Readers -------------------------------------------------------------------------------------------------------


async def test_a_forgotten_entity_is_gone_for_readers(client: httpx.AsyncClient, database: Database) -> None:
    """Reads of a forgotten entity are 410 on both paths; lookups call it missing; lists and counts omit it."""
    await post(client, *life(), *life(node(1)))
    forgotten = await forget(client, reason="scrapped")
    assert {name: forgotten[name] for name in ("permanent", "version", "stands_at", "erased")} == {
        "permanent": False,
        "version": 6,
        "stands_at": {"sequence": 5},
        "erased": None,
    }
    for path in (ENTITY, f"{ENTITY}?domain=registration", f"{ENTITY}/state"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["type"]) == (410, "urn:pqs:problem:forgotten")
        assert answer.json()["forgotten_at"] == forgotten["forgotten_at"]
    found = (await client.post("/v1/entities/lookup", json={"entity_ids": [str(NODE), str(node(1))]})).json()
    assert ([item["entity_id"] for item in found["items"]], found["missing"]) == ([str(node(1))], [str(NODE)])
    for filters in ("", "?state=rejected&state=active", "?capabilities={}", "?node_type=compute"):
        listed = (await client.get(f"/v1/entities{filters}")).json()["items"]
        assert [item["entity_id"] for item in listed] == [str(node(1))]
    event_id = (await row(database)).last_applied_event_id
    assert (await client.get(f"/v1/entities?event_id={event_id}")).json()["items"] == []
    counted = (await client.get("/v1/state-counts")).json()
    assert (counted["total"], counted["counts"]["active"], counted["counts"]["rejected"]) == (1, 1, 0)
    assert await counts_are_right(database)


async def test_no_answer_has_the_columns_of_tombstones(client: httpx.AsyncClient) -> None:
    """A row's answer has no column of tombstones."""
    await post(client, *life())
    assert not {"forgotten_at", "forgotten_permanently"} & set((await client.get(ENTITY)).json())


async def test_a_snapshot_leaves_tombstones_out_and_a_forget_is_followed(client: httpx.AsyncClient) -> None:
    """Every follower gets the forget, whatever its filter; a later snapshot omits the entity."""
    await post(client, *life(), *life(node(1)))
    token = (await client.get("/v1/changes?after=now")).json()["next"]
    await forget(client, reason="scrapped")
    for filters in ("", "&node_type=compute", "&state=active", f"&entity_id={NODE}"):
        [item] = (await client.get(f"/v1/changes?after={token}&wait=5{filters}")).json()["items"]
        assert [item[name] for name in ("outcome", "reason", "before", "current_state", "type", "node_type")] == [
            "forgotten",
            "scrapped",
            "active",
            "rejected",
            "registration.forgotten",
            "",
        ]
    for filters in ("", f"&entity_id={NODE}&entity_id={node(1)}"):
        items = (await client.get(f"/v1/changes?snapshot=true{filters}")).json()["items"]
        assert [item["entity_id"] for item in items if item["kind"] == "row"] == [str(node(1))]


# --- Events that meet a tombstone ----------------------------------------------------------------------------------


async def test_events_behind_and_after_a_tombstone(client: httpx.AsyncClient, database: Database) -> None:
    """Events before a tombstone's position are stale, later ones ignored, until one begins a new registration."""
    await post(client, *life())
    forgotten = await forget(client)
    later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat().replace("+00:00", "Z")
    sent = [
        event_json("node.heartbeat", 4),
        life()[-1],
        event_json("node.heartbeat", 6, occurred_at=later),
        event_json("node.introspected", 7),
        event_json("registration.recorded", 8, data=msgspec.json.decode(RECORDED)),
        event_json("node.introspected", 9, occurred_at=later),
        event_json("node.heartbeat", 10, occurred_at=later),
    ]
    dry = (await client.post("/v1/events?dry_run=true", json=sent)).json()["results"]
    results = await post(client, *sent)
    assert dry == results
    outcomes = [result["outcome"] for result in results]
    assert outcomes == ["stale", "duplicate", "ignored", "ignored", "ignored", "applied", "applied"]
    assert [result["version"] for result in results[2:]] == [7, 8, 9, 12, 13]
    assert {(result["reason"] or "").partition(" at ")[0] for result in results[2:5]} == {
        "forgotten: the entity was forgotten"
    }
    found = (await client.get(ENTITY)).json()
    assert (found["current_state"], found["registered_at"], found["version"]) == ("awaiting_ack", later, 13)
    begun = [item for item in await changes(client) if item["version"] > forgotten["version"]]
    assert [(item["type"], item["before"]) for item in begun] == [("node.introspected", None)]
    assert await counts_are_right(database)


RECORDED = b'{"current_state": "active", "node_type": "compute", "registered_at": "2026-01-01T00:00:00Z"}'


async def test_lines_and_cloudevents_meet_a_tombstone_too(client: httpx.AsyncClient) -> None:
    """The domain's rule for tombstones holds for every form of input."""
    await post(client, *life())
    await forget(client, permanent=True)
    lines = "".join(json.dumps(event) + "\n" for event in (life()[0], event_json("node.introspected", 8)))
    answer = await client.post("/v1/events", content=lines, headers={"Content-Type": "application/x-ndjson"})
    assert [json.loads(line).get("outcome") for line in answer.text.splitlines()] == ["stale", "ignored", None]
    cloudevent = {
        "specversion": "1.0",
        "id": str(node(5)),
        "source": "/",
        "type": "registration.forgotten",
        "subject": str(node(7)),
        "time": "2026-01-01T00:00:00Z",
        "sequence": "7",
        "data": {"permanent": True},
    }
    taken = await client.post("/v1/events", json=cloudevent, headers={"Content-Type": "application/cloudevents+json"})
    assert (taken.json()["outcome"], taken.json()["version"]) == ("applied", 1)
    assert (await client.get(f"/v1/entities/{node(7)}")).json()["permanent"] is True


async def test_an_event_forgets_at_its_own_place(client: httpx.AsyncClient, database: Database) -> None:
    """A forget event works from any state and without a row; events before its position are then stale."""
    await post(client, *life())
    forgetting = event_json("registration.forgotten", 6, data={"reason": "scrapped"})
    [result, again] = await post(client, forgetting, forgetting)
    [late] = await post(client, event_json("node.heartbeat", 5))
    assert (result["outcome"], result["version"], result["stands_at"]) == ("applied", 6, {"sequence": 6})
    assert result["events"] == [{"event_id": forgetting["event_id"], "type": "registration.forgotten"}]
    assert (again["outcome"], late["outcome"]) == ("duplicate", "stale")
    unknown = event_json("registration.forgotten", 6, entity_id=node(3))
    first = event_json("registration.initiated", 1, entity_id=node(3))
    assert [each["outcome"] for each in [*await post(client, unknown), *await post(client, first)]] == [
        "applied",
        "stale",
    ]
    assert (await client.get("/v1/state-counts")).json()["total"] == 0
    assert await counts_are_right(database)


async def test_a_tombstone_against_events_that_still_wait(client: httpx.AsyncClient) -> None:
    """Forgetting an entity without a row needs a position; events up to it are stale."""
    assert (await client.post(FORGET, json={})).status_code == 404
    forgotten = await forget(client, position={"partition": "nodes-0", "offset": 9})
    assert (forgotten["version"], forgotten["stands_at"]) == (1, {"partition": "nodes-0", "offset": 9})
    [behind, after] = await post(
        client,
        event_json("registration.initiated", 1, position={"partition": "nodes-0", "offset": 3}),
        event_json("registration.initiated", 1, position={"partition": "nodes-0", "offset": 12}),
    )
    assert (behind["outcome"], after["outcome"]) == ("stale", "ignored")


async def test_a_tombstone_is_rebased_without_a_word_to_followers(
    client: httpx.AsyncClient, database: Database
) -> None:
    """A rebased tombstone stays one on its new track, and followers get no change."""
    await post(client, *life())
    await forget(client)
    before = await changes(client)
    moved = await database.write(REGISTRATIONS.rebase, NODE, "registration", OTHER_TRACK)
    assert moved is not None
    assert (moved[1].position, moved[1].forgotten_at) == (OTHER_TRACK, moved[0].forgotten_at)
    assert await changes(client) == before
    assert (await client.get(ENTITY)).status_code == 410


async def test_the_sweep_passes_over_tombstones(database_url: str, database: Database) -> None:
    """A forgotten node does not expire, although its deadline has passed."""
    async with service_on(database_url, sweep=False) as client:
        await post(client, *life())
        await forget(client)
        before = await row(database)
        sweep = Sweep(database, database, EntryBuilder())
        for deadline in ("ack", "liveness"):
            assert await sweep.page(deadline) is None
        assert await row(database) == before


# --- The call ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [FORGET, DEREGISTER])
async def test_a_row_that_has_changed_is_left_alone(client: httpx.AsyncClient, path: str) -> None:
    """With `If-Match`, a forget or an eviction applies only to the version named."""
    await post(client, *life())
    refused = await client.post(path, headers={"If-Match": '"4"'})
    assert (refused.status_code, refused.headers["etag"]) == (412, '"5"')
    done = await client.post(path, headers={"If-Match": '"5"'})
    assert (done.status_code, done.headers["etag"]) == (200, '"6"')


async def test_without_a_row_if_match_fails(client: httpx.AsyncClient) -> None:
    """With `If-Match` and no row, the call fails."""
    refused = await client.post(FORGET, json={"position": {"sequence": 1}}, headers={"If-Match": "*"})
    assert (refused.status_code, "etag" in refused.headers) == (412, False)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"reason": ""}, "#/reason"),
        ({"reason": "x" * 1001}, "#/reason"),
        ({"reason": "a\0"}, "#/reason"),
        ({"why": "x"}, "#/why"),
        ({"position": {"sequence": 2, "previous": 1}}, "#/position/previous"),
        ({"position": {"offset": 2}}, "#/position"),
        ({"position": {"partition": "a\0", "offset": 1}}, "#/position/partition"),
        ({"erase": 1}, "#/erase"),
    ],
    ids=str,
)
async def test_a_body_that_is_wrong(client: httpx.AsyncClient, body: Json, pointer: str) -> None:
    """The fault of an invalid body is named, and nothing is forgotten."""
    await post(client, *life())
    answer = await client.post(FORGET, json=body)
    assert (answer.status_code, [fault["pointer"] for fault in answer.json()["errors"]]) == (422, [pointer])
    assert (await client.get(ENTITY)).status_code == 200


async def test_to_forget_again_is_safe(client: httpx.AsyncClient) -> None:
    """A second forget raises version and time, and stays permanent; only the audit log records it."""
    await post(client, *life())
    first = await forget(client, permanent=True)
    before = await changes(client)
    second = await forget(client)
    assert (second["version"], second["permanent"]) == (7, True)
    assert second["forgotten_at"] > first["forgotten_at"]
    assert await changes(client) == before


async def test_acts_are_in_the_audit_log(client: httpx.AsyncClient) -> None:
    """The audit log has each act with its reason; a refused eviction of a forgotten node is not an act."""
    await post(client, *life(), *life(node(1)))
    await client.post(DEREGISTER, json={"reason": "out of its rack"})
    await client.post(DEREGISTER)
    await forget(client, reason="scrapped", erase=True)
    assert (await client.post(DEREGISTER)).status_code == 410
    audited = [
        (item["action"], item["target"], item["outcome"]) for item in (await client.get("/v1/audit")).json()["items"]
    ]
    target = f"registration/{NODE}"
    assert audited == [
        ("entities.erase", target, "6 changes, 0 dead letters, 0 messages"),
        ("entities.forget", f"{target}: scrapped", "done"),
        ("entities.deregister", target, "ignored"),
        ("entities.deregister", f"{target}: out of its rack", "done"),
    ]


async def test_writers_that_race_with_a_forget(client: httpx.AsyncClient, database: Database) -> None:
    """Whichever write is first, the node ends forgotten or registered anew, and the counts are right."""
    for number in range(10):
        entity = node(number)
        await post(client, event_json("registration.initiated", 1, entity_id=entity))
        beats = [client.post("/v1/events", json=event) for event in life(entity)[1:]]
        path = f"/v1/entities/{entity}/forget"
        answers = await asyncio.gather(*beats[:2], client.post(path), *beats[2:])
        assert answers[2].status_code == 200
        assert (await client.get(f"/v1/entities/{entity}")).status_code == 410
    assert (await client.get("/v1/state-counts")).json()["total"] == 0
    assert await counts_are_right(database)


async def test_a_tombstone_for_no_row_races_with_the_first_event(
    client: httpx.AsyncClient, database: Database
) -> None:
    """The first event is either stale or its row is forgotten; it never survives the forget."""
    for number in range(10):
        entity = node(number)
        begin = client.post("/v1/events", json=event_json("registration.initiated", 1, entity_id=entity))
        forgetting = client.post(f"/v1/entities/{entity}/forget", json={"position": {"sequence": 9}})
        for answer in await asyncio.gather(*((begin, forgetting) if number % 2 else (forgetting, begin))):
            assert answer.status_code == 200, answer.text
        assert (await client.get(f"/v1/entities/{entity}")).status_code == 410
    assert await counts_are_right(database)


# --- Other services ------------------------------------------------------------------------------------------------


async def messages(database: Database) -> list[tuple[str, Json]]:
    """The destinations and envelopes in the outbox."""
    found = await sql(database, "SELECT destination, envelope FROM outbox ORDER BY id")
    return [(destination, json.loads(line)) for destination, lines in found for line in lines.split("\n")]


SENDING: Json = {"bus": "memory", "relay": False, "consul_url": "http://127.0.0.1:1", "topic_out": "out"}


@pytest.mark.parametrize("by_event", [False, True], ids=["call", "event"])
async def test_other_services_hear_of_a_forget(database_url: str, database: Database, by_event: bool) -> None:
    """The bus gets one event with the tombstone's version, and Consul is told."""
    async with service_on(database_url, **SENDING) as client:
        await post(client, *life())
        for sequence in (6, 7):
            if by_event:
                await post(client, event_json("registration.forgotten", sequence, data={"reason": "scrapped"}))
            else:
                await forget(client, reason="scrapped")
        [(topic, told), (effect, intent)] = await messages(database)
    assert (topic, told["type"], told["subject"]) == ("topic:out", "registration.forgotten", str(NODE))
    assert (told["data"], int(told["sequence"])) == ({"reason": "scrapped"}, 6)
    assert (effect, intent["type"], intent["subject"]) == ("effect:consul", "consul.deregister", str(NODE))


async def test_an_eviction_is_what_the_node_would_have_said(database_url: str, database: Database) -> None:
    """An eviction has the event and intents of the node's own leaving, and the node's next message still fits."""
    async with service_on(database_url, **SENDING) as client:
        await post(client, *life())
        evicted = (await client.post(DEREGISTER, json={"reason": "out of its rack"})).json()
        event_id = str(uuid5(NODE, "registration deregistered 6"))
        assert evicted == {
            "entity_id": str(NODE),
            "domain": "registration",
            "outcome": "applied",
            "reason": None,
            "current_state": "liveness_expired",
            "version": 6,
            "stands_at": {"sequence": 5},
            "events": [{"event_id": event_id, "type": "registration.liveness_expired"}],
        }
        assert [envelope["type"] for _, envelope in await messages(database)] == [
            "registration.liveness_expired",
            "consul.deregister",
        ]
        assert [(item["outcome"], item["reason"]) for item in (await changes(client))[-1:]] == [
            ("deregistered", "out of its rack")
        ]
        ignored = (await client.post(DEREGISTER)).json()
        assert (ignored["outcome"], ignored["version"], ignored["events"]) == ("ignored", 6, [])
        [own] = await post(client, event_json("node.introspected", 6))
        assert (own["outcome"], own["current_state"]) == ("applied", "awaiting_ack")
    assert await counts_are_right(database)


async def test_an_unknown_node_is_not_evicted(client: httpx.AsyncClient) -> None:
    """An eviction of an unknown node is refused."""
    assert (await client.post(DEREGISTER)).status_code == 404


# --- Erasing -------------------------------------------------------------------------------------------------------


def letter(offset: int | None, value: bytes | None, **fields: Any) -> Letter:
    """A dead letter."""
    place: Json = {"topic": "nodes", "partition": 0, "offset": offset, "key": None, "headers": [], "error": "no"}
    return Letter(**{**place, "value": value, **fields})


KEY = str(NODE).encode()
OF_OTHERS = [
    letter(1, msgspec.json.encode(event_json("node.heartbeat", 1, entity_id=node(1), data={"x": str(NODE)}))),
    letter(2, msgspec.json.encode(event_json("node.heartbeat", 1, domain="edge"))),
    letter(3, b'{"entity_id": "%b", "domain": "edge"}' % KEY, key=KEY),
    letter(4, b"{", key=str(node(1)).encode(), headers=[("about", KEY)]),
    letter(5, None),
    letter(6, b"{}", headers=[("ce_subject", KEY), ("ce_domain", b"edge")]),
]
OF_THE_NODE = [
    letter(11, msgspec.json.encode(event_json("node.heartbeat", 1))),
    letter(12, b"{", key=KEY),
    letter(13, b"\xff" + KEY.upper()),
    letter(14, b"{}", headers=[("CE_SUBJECT", KEY)]),
    letter(15, b'{"entity_id": "%b"' % NODE.hex.encode()),
    letter(16, b'{"subject": "%b", "specversion": "1.0"}' % KEY),
    letter(
        None, envelope(subject=NODE, domain="registration").to_json(), source=RELAY, topic="topic:out", partition=None
    ),
]


async def test_what_else_is_stored_is_erased(
    client: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entity's changes are emptied except for id and mark, its dead letters are removed, and others' stay."""
    monkeypatch.setattr(erasure, "PAGE", 4)
    await post(client, *life(), *life(domain="edge"), *life(node(1)))
    at_start = (await client.get("/v1/changes?after=start&limit=2")).json()["next"]

    async def add(connection: Connection) -> None:
        await dead_letters.add(connection, OF_OTHERS)
        await dead_letters.add(connection, OF_THE_NODE)

    await database.write(add)
    logged = await sql(database, "SELECT id, mark, slice, changed_at FROM changes ORDER BY id")
    forgotten = await forget(client, erase=True, reason="scrapped")
    assert forgotten["erased"] == {"changes": 5, "dead_letters": len(OF_THE_NODE), "messages": 0}
    left = await sql(database, 'SELECT "offset" FROM dead_letters ORDER BY id')
    assert [offset for (offset,) in left] == [each.offset for each in OF_OTHERS]
    after = await sql(database, "SELECT id, mark, slice, changed_at FROM changes ORDER BY id")
    assert after[:-1] == logged
    naming = "SELECT domain, type FROM changes AS c WHERE c::text LIKE $1 ORDER BY id"
    named = await sql(database, naming, f"%{NODE}%")
    assert named == [
        *(("edge", each["type"]) for each in life()),
        ("registration", "registration.forgotten"),
    ]
    emptied = (
        "SELECT (SELECT count(*) FROM jsonb_each(to_jsonb(c)) WHERE value <> 'null')"
        " FROM changes AS c WHERE entity_id IS NULL"
    )
    assert await sql(database, emptied) == [(4,)] * 5
    assert (await client.get(f"/v1/changes?after={at_start}")).status_code == 200


@pytest.mark.parametrize("domain", ["registration", "edge"], ids=["its letter", "the other's letter"])
async def test_messages_behind_a_dead_letter_are_erased(
    client: httpx.AsyncClient, database: Database, domain: str
) -> None:
    """The node's messages are gone from the queue, its letter too; those of the same id elsewhere still wait."""
    log = Log(database)
    bad = poisoned(event_json("registration.initiated", 1, domain=domain))
    await log.take(life()[0], bad, *life()[1:], *life(domain="edge"), *life(first=9))
    erased = (await forget(client, erase=True))["erased"]
    assert erased["dead_letters"] == 9 + (domain == "registration")
    found = await log.held(NODE)
    assert found is not None
    if domain == "edge":
        assert (found.offset, found.messages) == (1, 5)
    else:
        assert (found.offset, found.messages, found.error) == (6, 4, erasure.LETTER_ERASED)
    left = [await log.number(each) for each in ("dead_letters", "held_messages")]
    assert left == [1, found.messages]
    await log.mend()
    answer = await log.letters.retry_queue(NODE, nothing)
    assert answer.summary.applied == 5
    assert (await forget(client, erase=True))["erased"]["dead_letters"] == 0


async def test_with_a_node_its_whole_queue_is_erased(client: httpx.AsyncClient, database: Database) -> None:
    """Where nobody else has messages in it, nothing is held any more."""
    log = Log(database)
    await log.take(*life()[:1], poisoned(life()[1]), *life()[2:])
    assert (await forget(client, erase=True))["erased"]["dead_letters"] == 4
    assert [await log.number(each) for each in ("dead_letters", "held_entities", "held_messages")] == [0, 0, 0]


async def test_waiting_messages_are_erased_but_that_it_was_forgotten(database_url: str, database: Database) -> None:
    """Of the entity's messages in the outbox only the forget's own stay; others' in the same entries keep order."""
    same_slot = UUID(int=NODE.int + outbox.SLOTS)
    async with service_on(database_url, **SENDING) as client:
        both = [event_json("node.introspected", 1, entity_id=each) for each in (NODE, same_slot)]
        await post(client, *both)
        await post(client, event_json("node.registration_acked", 2))
        forgotten = await forget(client, erase=True)
        assert forgotten["erased"]["messages"] == 3 + 1 + 3  # with the activation at Consul
        waiting = [(told["type"], told["subject"]) for _, told in await messages(database)]
        assert sorted(waiting) == sorted(
            [
                ("registration.initiated", str(same_slot)),
                ("registration.accepted", str(same_slot)),
                ("registration.ack_requested", str(same_slot)),
                ("consul.register", str(same_slot)),
                ("registration.forgotten", str(NODE)),
                ("consul.deregister", str(NODE)),
            ]
        )
        counted = await sql(database, "SELECT messages, envelope FROM outbox")
        assert all(number == len(lines.split("\n")) for number, lines in counted)
        assert (await forget(client, erase=True))["erased"] == {"changes": 0, "dead_letters": 0, "messages": 0}
        assert len(await messages(database)) == 6
