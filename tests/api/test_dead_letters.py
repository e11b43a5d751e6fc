"""Watermarks and dead letters over HTTP: listed, retried, removed."""

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urljoin

import httpx
import msgspec
import pytest

from app.domain.positions import MAX_NUMBER
from app.outbound import relay
from app.store import dead_letters, outbox, watermarks
from app.store.database import Connection, Database
from app.store.dead_letters import RELAY, Letter
from app.store.outbox import PendingMessage
from app.store.watermarks import NOTHING_READ, Advance, FoundPartition
from tests.api.conftest import service_on
from tests.making import NODE, Json, event_json, node, when
from tests.processes import PATIENCE
from tests.wire.test_envelopes import envelope

LIST = "/v1/dead-letters"
INITIATED = event_json("registration.initiated", 1)


def letter(offset: int | None, value: Json | bytes | None, **fields: Any) -> Letter:
    """A message that could not be applied."""
    encoded = msgspec.json.encode(value) if isinstance(value, dict) else value
    place: Json = {"topic": "nodes", "partition": 3, "offset": offset, "key": b"key", "headers": []}
    return Letter(**{**place, "value": encoded, "error": "unreadable", **fields})


Add = Callable[..., Awaitable[None]]


@pytest.fixture
def add(database: Database) -> Add:
    """Store letters as dead letters."""

    async def add(*letters: Letter) -> None:
        async def work(connection: Connection) -> None:
            await dead_letters.add(connection, letters)

        await database.write(work)

    return add


async def listed(client: httpx.AsyncClient) -> list[Json]:
    """All dead letters."""
    items: list[Json] = (await client.get(LIST)).json()["items"]
    return items


async def test_a_dead_letter_is_shown_as_it_was(client: httpx.AsyncClient, add: Add) -> None:
    """A dead letter shows position, error, key, value and headers; bytes that are not text come in base64."""
    await add(letter(7, b"\xff\0", headers=[("a", b"text"), ("b", b"\xfe"), ("c", None)], error="bad\0 \ud800"))
    [shown] = await listed(client)
    assert shown.pop("created_at")
    assert shown == {
        "id": 1,
        "source": "consumer",
        "topic": "nodes",
        "partition": 3,
        "offset": 7,
        "error": "bad\\u0000 ?",
        "key": "key",
        "key_base64": None,
        "value": None,
        "value_base64": b64encode(b"\xff\0").decode(),
        "headers": [
            {"name": "a", "value": "text", "value_base64": None},
            {"name": "b", "value": None, "value_base64": "/g=="},
            {"name": "c", "value": None, "value_base64": None},
        ],
    }


async def test_pages_lead_to_the_end(client: httpx.AsyncClient, add: Add) -> None:
    """Links lead through all dead letters once, oldest first; a page ends early rather than become too large."""
    await add(*(letter(offset, b"x" * (dead_letters.PAGE_BYTES // 2)) for offset in range(5)))
    url, offsets, pages = f"{LIST}?limit=3", list[int](), 0
    while url:
        answer = await client.get(url)
        pages += 1
        offsets += [each["offset"] for each in answer.json()["items"]]
        url = urljoin("/v1/dead-letters", answer.links["next"]["url"]) if "next" in answer.links else ""
        assert bool(url) == (answer.json()["next_cursor"] is not None)
    assert (offsets, pages) == ([0, 1, 2, 3, 4], 3)


FILTERED = (  # by offset
    letter(1, b"", topic="nodes", error="#/data/color: unknown field", entity_id=node(1)),
    letter(2, b"", topic="nodes", error="conflict: 100%_sure", entity_id=node(2)),
    letter(3, b"", topic="racks", error="#/data/size: unknown field", entity_id=node(1)),
    letter(None, b"", partition=None, source=RELAY, topic="effect:consul", error="refused"),
)


@pytest.mark.parametrize(
    ("query", "offsets"),
    [
        ("source=consumer", [1, 2, 3]),
        ("source=relay", [None]),
        ("topic=nodes", [1, 2]),
        ("error=unknown+field", [1, 3]),
        ("error=100%25_", [2]),
        ("error=%25", [2]),
        (f"entity_id={node(1)}", [1, 3]),
        (f"entity_id={node(1)}&topic=racks", [3]),
        ("since=2026-01-01T00:00:00Z", [1, 2, 3, None]),
        ("since=2999-01-01T00:00:00Z", []),
        ("order=desc", [None, 3, 2, 1]),
        ("order=desc&topic=nodes", [2, 1]),
    ],
)
async def test_a_list_may_be_filtered_and_turned_around(
    client: httpx.AsyncClient, add: Add, query: str, offsets: list[int | None]
) -> None:
    """Letters that match all filters are there, page by page as in one page, in either order."""
    await add(*FILTERED)
    assert [each["offset"] for each in (await client.get(f"{LIST}?{query}")).json()["items"]] == offsets
    url, found = f"{LIST}?{query}&limit=1", list[int | None]()
    while url:
        answer = await client.get(url)
        found += [each["offset"] for each in answer.json()["items"]]
        url = urljoin(LIST, answer.links["next"]["url"]) if "next" in answer.links else ""
    assert found == offsets


async def test_a_cursor_belongs_to_its_filters(client: httpx.AsyncClient, add: Add) -> None:
    """A cursor of one filter is refused with another, and in the other order."""
    await add(*FILTERED)
    cursor = (await client.get(f"{LIST}?topic=nodes&limit=1")).json()["next_cursor"]
    for other in ("", "topic=racks&", "topic=nodes&order=desc&"):
        assert (await client.get(f"{LIST}?{other}cursor={cursor}")).status_code == 400


@pytest.mark.parametrize("query", ["source=kafka", "entity_id=node-1", "since=now", "error=", "order=up", "limits=1"])
async def test_a_filter_that_is_not_valid_is_refused(shared: httpx.AsyncClient, query: str) -> None:
    """An unknown filter, or a value of the wrong form, is a 422 that names it."""
    answer = await shared.get(f"{LIST}?{query}")
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.json()["errors"][0]["pointer"]


async def test_one_letter_is_shown_by_its_id(client: httpx.AsyncClient, add: Add) -> None:
    """It is the item of the list; an id without a letter is a 404."""
    await add(letter(7, b"\xff"))
    [item] = await listed(client)
    answer = await client.get(f"{LIST}/{item['id']}")
    assert (answer.status_code, answer.json()) == (200, item)
    assert (await client.get(f"{LIST}/4711")).status_code == 404


async def test_a_message_is_kept_once(client: httpx.AsyncClient, add: Add) -> None:
    """A message that is read again with its partition is stored once; one without a position is always new."""
    out = letter(None, b"", partition=None, source=RELAY)
    await add(letter(7, b"x"), letter(7, b"x"), out, out)
    await add(letter(7, b"x"))
    assert [each["offset"] for each in await listed(client)] == [7, None, None]


@pytest.mark.parametrize(
    ("before", "outcome"),
    [
        ((), "applied"),
        ((("registration.initiated", 6, "x"),), "ignored"),
        ((("registration.initiated", 7, None),), "duplicate"),
        ((("registration.initiated", 9, "x"),), "stale"),
    ],
)
async def test_what_is_in_is_removed(
    client: httpx.AsyncClient, add: Add, before: tuple[tuple[str, int, str | None], ...], outcome: str
) -> None:
    """A successful retry applies the event at its original position, answers like a POST, and removes the letter."""
    for type_, offset, other in before:
        event = event_json(type_, 1, position={"partition": "nodes-3", "offset": offset})
        await client.post("/v1/events", json=event | ({"event_id": str(node(99))} if other else {}))
    await add(letter(7, INITIATED))
    answer = await client.post(f"{LIST}/1/retry")
    assert (answer.status_code, answer.json()["outcome"]) == (200, outcome)
    assert answer.json()["stands_at"]["partition"] == "nodes-3"
    assert await listed(client) == []


async def test_what_conflicts_stays(client: httpx.AsyncClient, add: Add) -> None:
    """A retry that conflicts gets the 409 of an event and keeps the letter; after a rebase the retry succeeds."""
    await client.post("/v1/events", json=INITIATED)
    await add(letter(7, event_json("registration.accepted", 2)))
    answer = await client.post(f"{LIST}/1/retry")
    told = answer.json()
    assert (answer.status_code, told["outcome"], told["entity_id"]) == (409, "conflict", str(NODE))
    assert told["instance"] == f"{LIST}/1/retry"
    assert len(await listed(client)) == 1


@pytest.mark.parametrize(
    ("letter_", "status"),
    [
        (letter(7, b"{"), 400),
        (letter(7, b"\xff"), 400),
        (letter(7, b"{}"), 422),
        (letter(7, None), 422),
    ],
)
async def test_what_still_cannot_be_read_stays(
    client: httpx.AsyncClient, add: Add, letter_: Letter, status: int
) -> None:
    """A retry of an unreadable message gets a problem, and the letter stays."""
    await add(letter_)
    answer = await client.post(f"{LIST}/1/retry")
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert len(await listed(client)) == 1


async def test_what_was_to_go_out_waits_in_the_outbox_again(
    client: httpx.AsyncClient, add: Add, database: Database
) -> None:
    """A retried outgoing message is back in the outbox, with destination, entity and envelope; its letter is gone."""
    value = envelope(domain="other").to_json()
    await add(letter(None, value, topic="effect:consul", partition=None, source=RELAY))
    answers = await asyncio.gather(*(client.post(f"{LIST}/1/retry") for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [202, 404, 404, 404]
    assert await listed(client) == []

    async def work(connection: Connection) -> list[PendingMessage]:
        return await outbox.read(connection, "effect:consul", range(outbox.SLOTS), most=9)

    [waiting] = await database.read(work)
    assert (waiting.key, waiting.envelope) == (envelope().key, value)


async def test_a_message_that_goes_out_again_wakes_the_relay(
    add: Add, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retried outgoing message is sent at once, not at the relay's next poll."""
    monkeypatch.setattr(relay, "POLL", PATIENCE)
    refused = letter(None, envelope().to_json(), topic="topic:registration-events", partition=None, source=RELAY)
    await add(refused, refused)
    async with service_on(database_url, bus="memory") as client, asyncio.timeout(PATIENCE / 2):
        for id_ in (1, 2):
            assert (await client.post(f"{LIST}/{id_}/retry")).status_code == 202
            while await database.read(outbox.backlogs):
                pass
            await asyncio.sleep(3 * relay.PAUSE)  # by now it has found that there is no more, and looks at its POLL


async def test_what_postgresql_still_refuses_stays(client: httpx.AsyncClient, add: Add, database: Database) -> None:
    """A retry that violates a constraint is a 422 without PostgreSQL's words; without the constraint it works."""

    async def execute(statement: str) -> None:
        await database.write(lambda connection: connection.execute(statement))

    await execute("ALTER TABLE registration_projections ADD CONSTRAINT ours CHECK (node_type <> 'compute')")
    await add(letter(7, INITIATED))
    answer = await client.post(f"{LIST}/1/retry")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#")
    assert "ours" not in answer.text
    assert len(await listed(client)) == 1
    await execute("ALTER TABLE registration_projections DROP CONSTRAINT ours")
    assert (await client.post(f"{LIST}/1/retry")).json()["outcome"] == "applied"


async def test_headers_count_in_a_retry_too(client: httpx.AsyncClient, add: Add) -> None:
    """A retry reads a CloudEvent in binary mode by the headers stored with it."""
    attributes = {
        "specversion": "1.0",
        "id": str(node(1)),
        "source": "x",
        "type": "registration.initiated",
        "subject": str(NODE),
        "time": "2026-01-01T00:00:00Z",
    }
    headers = [(f"ce_{name}", value.encode()) for name, value in attributes.items()]
    await add(letter(7, {"node_type": "compute"}, headers=headers))
    assert (await client.post(f"{LIST}/1/retry")).json()["outcome"] == "applied"


async def test_a_dead_letter_can_be_removed(client: httpx.AsyncClient, add: Add) -> None:
    """DELETE removes a dead letter; a second DELETE is a 404."""
    await add(letter(7, b"{"))
    answer = await client.delete(f"{LIST}/1")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await client.delete(f"{LIST}/1")).status_code == 404
    assert (await client.post(f"{LIST}/1/retry")).status_code == 404


@pytest.mark.parametrize("id_", ["0", "x", str(MAX_NUMBER + 1)])
async def test_what_is_no_id_is_refused(shared: httpx.AsyncClient, id_: str) -> None:
    """An id that is not a number from 1 to 2^63-1 is refused."""
    for answer in (await shared.delete(f"{LIST}/{id_}"), await shared.post(f"{LIST}/{id_}/retry")):
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "#/path/id"


async def test_watermarks_are_listed(client: httpx.AsyncClient, database: Database) -> None:
    """Each partition lists its offset, and as `as_of` the later of its two times."""

    async def work(connection: Connection) -> None:
        advances = [
            Advance(topic="nodes", partition=10, expected=NOTHING_READ, offset=4, message_at=when(1)),
            Advance(topic="nodes", partition=9, expected=NOTHING_READ, offset=0, message_at=when(1), caught_up=0.0),
            Advance(topic="a", partition=0, expected=NOTHING_READ, offset=1),
        ]
        await watermarks.find(connection, [FoundPartition(each.topic, each.partition) for each in advances], "me")
        await watermarks.advance(connection, advances, "me")

    await database.write(work)
    items = (await client.get("/v1/watermarks")).json()["items"]
    assert [(each["topic"], each["partition"], each["offset"]) for each in items] == [
        ("a", 0, 1),
        ("nodes", 9, 0),
        ("nodes", 10, 4),
    ]
    assert items[0]["as_of"] is None
    assert items[1]["as_of"] == items[1]["caught_up_at"] > items[1]["message_at"]
    assert items[2]["as_of"] == items[2]["message_at"] == "2026-01-01T00:00:01Z"
    assert {each["consumer"] for each in items} == {"me"}
