"""Ids that a client chooses so that their hashes collide: no dictionary is keyed by ids.

The hash of a UUID is its number modulo 2^61-1, so ids that differ by multiples of it share one, and a dictionary of n
such ids costs n² comparisons. Here hashing a UUID raises an error, and every call that takes ids still answers.
"""

from uuid import UUID

import httpx
import msgspec
import pytest

from app.store.database import Database
from tests.inbound.test_holding import Log, poisoned
from tests.making import event_json

MODULUS = 2**61 - 1
COLLIDING = [UUID(int=2**100 + number * MODULUS) for number in range(50)]
JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}


class HashedError(AssertionError):
    """A UUID was used as the key of a dictionary or a set."""


@pytest.fixture
def unhashable(monkeypatch: pytest.MonkeyPatch) -> None:
    """UUIDs whose hash raises an error."""
    assert len({hash(each) for each in COLLIDING}) == 1

    def refuse(_self: UUID) -> int:
        raise HashedError

    monkeypatch.setattr(UUID, "__hash__", refuse)


@pytest.mark.usefixtures("unhashable")
async def test_no_id_is_the_key_of_a_dictionary(shared: httpx.AsyncClient) -> None:
    """Arrays, dry runs, streams, single events, triggers, lookups and reads are answered without hashing a UUID."""
    first, *others = COLLIDING
    events = [event_json("registration.initiated", 1, entity_id=each) for each in others]
    array = msgspec.json.encode(events)
    for query in ("?dry_run=true", ""):
        answered = await shared.post(f"/v1/events{query}", content=array, headers=JSON)
        assert answered.json()["summary"]["applied"] == len(others), answered.text
    lines = [event_json("registration.accepted", 2, entity_id=each) for each in others]
    lines += [event_json("registration.ack_requested", 3, entity_id=each) for each in others]
    stream = await shared.post("/v1/events", content=b"\n".join(map(msgspec.json.encode, lines)), headers=NDJSON)
    assert msgspec.json.decode(stream.content)["summary"]["applied"] == len(lines)
    trigger = event_json("node.introspected", 1, entity_id=first)
    single = await shared.post("/v1/events", json=trigger)
    assert single.json()["outcome"] == "applied"
    asked = [*map(str, COLLIDING), str(first), str(UUID(int=7))]
    found = (await shared.post("/v1/entities/lookup", json={"entity_ids": asked})).json()
    assert [each["entity_id"] for each in found["items"]] == [str(each) for each in COLLIDING]
    assert found["missing"] == [str(UUID(int=7))]
    assert (await shared.get(f"/v1/entities/{first}")).json()["last_applied_event_id"] == trigger["event_id"]


@pytest.mark.usefixtures("unhashable")
async def test_nor_is_that_of_a_held_entity(client: httpx.AsyncClient, database: Database) -> None:
    """Messages wait, and events over HTTP are refused, without hashing a UUID."""
    log = Log(database)
    await log.take(*(poisoned(event_json("registration.initiated", 1, entity_id=each)) for each in COLLIDING))
    await log.take(*(event_json("node.heartbeat", 2, entity_id=each) for each in COLLIDING))
    events = [event_json("registration.initiated", 3, entity_id=each) for each in COLLIDING]
    answered = await client.post("/v1/events", content=msgspec.json.encode(events), headers=JSON)
    assert answered.json()["summary"]["conflict"] == len(COLLIDING)
    assert [await log.number(each) for each in ("held_entities", "held_messages")] == [len(COLLIDING)] * 2
