"""Reads that wait: for a row, a version, a state, a position; and what they answer when it does not come."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import httpx
import pytest

from tests.api.conftest import service_on
from tests.databases import new_database
from tests.making import NODE, event_json, life, node

ENTITY = f"/v1/entities/{NODE}"
PROMPTLY = 0.9  # seconds in which a wait of this process is over: less than a look at everything takes to come

Ask = Callable[[], Awaitable[httpx.Response]]


async def post(client: httpx.AsyncClient, *events: dict[str, Any]) -> None:
    """Send events."""
    answer = await client.post("/v1/events", json=list(events))
    assert answer.status_code == 200, answer.text


async def get(client: httpx.AsyncClient, path: str = ENTITY, prefer: str = "", **query: Any) -> httpx.Response:
    """An answer."""
    tag = query.pop("tag", None)
    headers = ({"Prefer": prefer} if prefer else {}) | ({"If-None-Match": tag} if tag else {})
    return await client.get(path, params=query, headers=headers)


async def waiting(client: httpx.AsyncClient, path: str = ENTITY, prefer: str = "", **query: Any) -> Any:
    """A read that waits."""
    task = asyncio.create_task(get(client, path, prefer, **query))
    await asyncio.sleep(0.2)
    assert not task.done(), (await task).text
    return task


async def soon(task: "asyncio.Task[httpx.Response]", event: Awaitable[None]) -> httpx.Response:
    """The answer, which comes soon after the event."""
    await event
    began = time.monotonic()
    answer = await task
    assert time.monotonic() - began < PROMPTLY
    return answer


# --- What is waited for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", [{}, {"after_version": 0}, {"until": "pending_registration"}, {"min_sequence": 1}])
async def test_an_unknown_entity_is_waited_for(client: httpx.AsyncClient, query: dict[str, Any]) -> None:
    """Its first version is the answer."""
    task = await waiting(client, wait=20, **query)
    answer = await soon(task, post(client, *life()[:1]))
    assert (answer.status_code, answer.json()["version"], answer.headers["etag"]) == (200, 1, '"1"')
    assert "preference-applied" not in answer.headers


@pytest.mark.parametrize("query", [{"tag": '"1"'}, {"after_version": 1}])
async def test_another_version_is_waited_for(client: httpx.AsyncClient, query: dict[str, Any]) -> None:
    """By either condition; a preference is confirmed."""
    await post(client, *life()[:1])
    task = await waiting(client, prefer="wait=20", **query)
    answer = await soon(task, post(client, *life()[1:2]))
    assert (answer.status_code, answer.json()["version"]) == (200, 2)
    assert answer.headers["preference-applied"] == "wait=20"
    late = await get(client, prefer="wait=1", **({"tag": '"2"'} if "tag" in query else {"after_version": 2}))
    assert (late.status_code, late.headers["etag"], late.content) == (304, '"2"', b"")
    assert late.headers["preference-applied"] == "wait=1"


async def test_a_heartbeat_is_another_version(client: httpx.AsyncClient) -> None:
    """It is in no log, and this process wakes who waits for it all the same."""
    await post(client, *life())
    task = await waiting(client, wait=20, after_version=5)
    answer = await soon(task, post(client, event_json("node.heartbeat", 6)))
    assert answer.json()["version"] == 6


@pytest.mark.parametrize("path", [ENTITY, ENTITY + "/state"])
async def test_a_state_is_waited_for(client: httpx.AsyncClient, path: str) -> None:
    """The version in which it was reached is told, also where it was only passed through."""
    await post(client, *life()[:1])
    task = await waiting(client, path, wait=20, until=["accepted", "rejected"])
    answer = await soon(task, post(client, *life()[1:]))
    assert answer.status_code == 200
    assert (answer.json()["current_state"], answer.headers["pqs-reached"]) == ("active", "2")
    present = await get(client, path, until="active")
    assert (present.status_code, present.headers["pqs-reached"]) == (200, "5")


async def test_a_state_that_was_passed_through_before_the_call(client: httpx.AsyncClient) -> None:
    """It counts from `after_version` on, with a wait and without; and not without `after_version`."""
    await post(client, *life())
    answer = await get(client, until="accepted", after_version=1)
    assert (answer.status_code, answer.headers["pqs-reached"]) == (200, "2")
    assert (await get(client, until="accepted", after_version=2)).status_code == 504
    assert (await get(client, until="accepted")).status_code == 504
    task = await waiting(client, wait=20, until="pending_registration", after_version=1)
    more = [event_json("registration.liveness_expired", 6), event_json("registration.initiated", 7)]
    answer = await soon(task, post(client, *more, *life(first=8)[1:3]))
    assert answer.headers["pqs-reached"] == "7"


async def test_a_sequence_is_waited_for(client: httpx.AsyncClient) -> None:
    """Late, and at once without a wait, it is a 504 that says where the row stands."""
    await post(client, *life()[:2])
    task = await waiting(client, wait=20, min_sequence=4)
    answer = await soon(task, post(client, *life()[2:]))
    assert (answer.status_code, answer.json()["last_applied_sequence"]) == (200, 5)
    for wait in (0, 0.5):
        late = await get(client, min_sequence=6, wait=wait)
        problem = late.json()
        assert (late.status_code, problem["type"]) == (504, "urn:pqs:problem:late")
        assert (problem["stands_at"], problem["current"]["version"], problem["watermarks"]) == (
            {"sequence": 5},
            5,
            None,
        )
        assert late.headers["content-type"] == "application/problem+json"
    stale = await get(client, min_sequence=6, late="stale")
    assert (stale.status_code, stale.headers["pqs-late"], stale.json()["version"]) == (200, "true", 5)
    unknown = await get(client, f"/v1/entities/{node(9)}", min_sequence=1)
    assert (unknown.status_code, unknown.json()["current"]) == (504, None)
    assert (await get(client, f"/v1/entities/{node(9)}", min_sequence=1, late="stale")).status_code == 504


async def test_a_sequence_of_a_row_in_a_partition(client: httpx.AsyncClient) -> None:
    """409 at once, and where the row stands."""
    await post(client, event_json("registration.initiated", 1, position={"partition": "t-0", "offset": 3}))
    answer = await get(client, wait=20, min_sequence=1)
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:pqs:problem:other-track")
    assert answer.json()["stands_at"] == {"partition": "t-0", "offset": 3}


async def test_the_end_of_a_wait(client: httpx.AsyncClient) -> None:
    """It comes after 0.9 to 1.0 of the time: 404 without a row, 504 for a state."""
    began = time.monotonic()
    assert (await get(client, wait=1)).status_code == 404
    assert 0.9 <= time.monotonic() - began < 1.6
    await post(client, *life()[:1])
    late = await get(client, wait=0.5, until="active")
    assert (late.status_code, late.json()["current"]["current_state"]) == (504, "pending_registration")
    assert "`active`" in late.json()["detail"]


async def test_a_state_has_a_weak_tag(client: httpx.AsyncClient) -> None:
    """Both of its forms have the same."""
    await post(client, *life())
    plain = await get(client, ENTITY + "/state")
    assert plain.headers["etag"] == 'W/"5"'
    assert (await get(client, ENTITY + "/state", tag='W/"5"')).status_code == 304
    assert (await get(client, ENTITY + "/state", tag='"5"', wait=0.3)).status_code == 304
    task = await waiting(client, ENTITY + "/state", tag='W/"5"', wait=20)
    answer = await soon(task, post(client, event_json("registration.liveness_expired", 6)))
    assert answer.json()["current_state"] == "liveness_expired"


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"wait": 61}, "#/query/wait"),
        ({"wait": "soon"}, "#/query/wait"),
        ({"until": "gone"}, "#/query/until/0"),
        ({"after_version": -1}, "#/query/after_version"),
        ({"min_sequence": 2**63}, "#/query/min_sequence"),
        ({"min_offset": "orders:7"}, "#/query/min_offset/0"),
        ({"late": "never"}, "#/query/late"),
    ],
)
async def test_what_is_wrong_with_a_query(shared: httpx.AsyncClient, query: dict[str, Any], pointer: str) -> None:
    """422, and where."""
    for path in (ENTITY, ENTITY + "/state"):
        answer = await get(shared, path, **query)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("prefer", ["wait=soon", "wait", "wait=-1", "return=minimal"])
async def test_preferences_that_mean_nothing(shared: httpx.AsyncClient, prefer: str) -> None:
    """They are passed over, as RFC 7240 wants it."""
    answer = await get(shared, f"/v1/entities/{node(77)}", prefer)
    assert (answer.status_code, answer.headers.get("preference-applied")) == (404, None)


# --- Offsets -------------------------------------------------------------------------------------------------------

READS = [ENTITY, ENTITY + "/state", "/v1/entities", "/v1/state-counts", "/v1/overdue/ack", "/v1/overdue/liveness"]
ADVANCE = """
    INSERT INTO watermarks (topic, partition, "offset", updated_at, consumer) VALUES ($1, $2, $3, now(), 'me')
    ON CONFLICT (topic, partition) DO UPDATE SET "offset" = excluded."offset"
"""


async def advance(url: str, topic: str, partition: int, offset: int) -> None:
    """Move a watermark."""
    connection = await asyncpg.connect(url)
    await connection.execute(ADVANCE, topic, partition, offset)
    await connection.close()


async def test_offsets_are_waited_for_by_every_read(client: httpx.AsyncClient, database_url: str) -> None:
    """All of them have to be reached; late, each watermark is told."""
    await post(client, *life())
    await advance(database_url, "orders-eu", 3, 7)
    offsets = ["orders-eu-3:7", "orders-eu-4:2"]
    for path in READS:
        late = await get(client, path, min_offset=offsets)
        assert (late.status_code, late.json()["type"]) == (504, "urn:pqs:problem:late")
        assert late.json()["watermarks"] == [
            {"topic": "orders-eu", "partition": 3, "offset": 7},
            {"topic": "orders-eu", "partition": 4, "offset": None},
        ]
        stale = await get(client, path, min_offset=offsets, late="stale")
        assert (stale.status_code, stale.headers["pqs-late"]) == (200, "true")

    async def look_up(**query: Any) -> httpx.Response:
        body = {"entity_ids": [str(NODE)]}
        return await client.post("/v1/entities/lookup", json=body, params={"min_offset": offsets, **query})

    assert (await look_up()).status_code == 504
    tasks = [await waiting(client, path, prefer="wait=20", min_offset=offsets) for path in READS]
    tasks.append(asyncio.create_task(look_up(wait=20)))
    await asyncio.sleep(0.1)
    await advance(database_url, "orders-eu", 4, 2)
    answers = await asyncio.gather(*tasks)
    assert [answer.status_code for answer in answers] == [200] * len(tasks)
    assert all(answer.headers["preference-applied"] == "wait=20" for answer in answers[:-1])
    assert (await get(client, min_offset=offsets)).status_code == 200


async def test_a_replica_has_to_have_it_too(database_url: str) -> None:
    """Lists wait until the watermark is in the database that they read."""
    async with new_database() as replica, service_on(database_url, database_read_url=replica) as client:
        await post(client, *life())
        await advance(database_url, "t", 0, 5)
        assert (await get(client, min_offset="t-0:5")).status_code == 200
        task = await waiting(client, "/v1/state-counts", wait=20, min_offset="t-0:5")
        await advance(replica, "t", 0, 5)
        assert (await task).status_code == 200


# --- Other ways ----------------------------------------------------------------------------------------------------


async def test_what_no_log_has_is_found_by_a_look(database_url: str) -> None:
    """A row that another process wrote, and all rows where the log is off."""
    for changes in ("transitions", "off"):
        async with service_on(database_url, changes=changes) as client:
            present = (await get(client)).json().get("version", 0)
            task = await waiting(client, wait=20, after_version=present)
            connection = await asyncpg.connect(database_url)
            if present == 0:
                await post(client, *life()[:1])
            await connection.execute("UPDATE registration_projections SET version = version + 5")
            await connection.close()
            assert (await task).json()["version"] > present


async def test_a_log_that_is_off_still_lets_wait_for_states(database_url: str) -> None:
    """For those that the row is seen in."""
    async with service_on(database_url, changes="off") as client:
        task = await waiting(client, wait=20, until="active")
        assert (await soon(task, post(client, *life()))).headers["pqs-reached"] == "5"
        assert (await get(client, until="accepted", after_version=1)).status_code == 504


async def test_too_many_waits(database_url: str) -> None:
    """503 past PQS_FOLLOWERS, which followers count for as well; reads that need not wait are answered."""
    async with service_on(database_url, followers=1) as client:
        await post(client, *life())
        task = await waiting(client, wait=1, after_version=5)
        refused = await get(client, wait=1, after_version=5)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert (await client.get("/v1/changes")).status_code == 503
        assert (await get(client, "/v1/overdue/ack", wait=1, tag="*")).status_code == 503
        assert (await get(client, wait=1, after_version=4)).status_code == 200
        metrics = (await client.get("/metrics")).text
        assert "pqs_waiting_reads 1.0" in metrics
        assert "pqs_followers 0.0" in metrics
        assert (await task).status_code == 304
        assert (await get(client, wait=0.1, after_version=5)).status_code == 304
