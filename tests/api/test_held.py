"""Held entities and bulk calls over HTTP."""

import asyncio
import signal
import socket
from typing import Any

import asyncpg
import httpx
import pytest

from app.inbound import bulk
from app.store import letter_runs
from app.store.database import Database
from tests.api.conftest import service_on
from tests.consuming import command
from tests.inbound.test_holding import Log, poisoned
from tests.making import Json, event_json, life, node
from tests.processes import PATIENCE

LIST = "/v1/dead-letters"
QUEUES = f"{LIST}/entities"


@pytest.fixture
def log(database: Database) -> Log:
    """A partition that is taken in."""
    return Log(database)


def lives(number: int) -> list[Json]:
    """The events of some nodes, with a poisoned second step of each."""
    values = []
    for each in range(number):
        first, second, *others = life(node(each))
        values += [first, poisoned(second), *others]
    return values


async def finished(client: httpx.AsyncClient, answer: httpx.Response) -> Json:
    """The run of a bulk call, when it is finished."""
    assert answer.status_code == 202, answer.text
    async with asyncio.timeout(PATIENCE):
        while True:
            run: Json = (await client.get(answer.headers["location"])).json()
            if run["finished_at"] is not None:
                return run
            await asyncio.sleep(0.02)


def numbers(run: Json) -> tuple[int, int, int]:
    """How many letters matched, are done, and failed."""
    return run["matched"], run["done"], run["failed"]


async def states(client: httpx.AsyncClient) -> set[tuple[str, int]]:
    """The states and versions of all nodes."""
    items = (await client.get("/v1/entities")).json()["items"]
    return {(each["current_state"], each["version"]) for each in items}


async def test_held_entities_are_listed_page_by_page(client: httpx.AsyncClient, log: Log) -> None:
    """Each says why it is held, and how many messages wait; one by itself is the same."""
    await log.take(*lives(3))
    url, found = f"{QUEUES}?limit=2", list[Json]()
    while url:
        answer = await client.get(url)
        found += answer.json()["items"]
        url = answer.links["next"]["url"] if "next" in answer.links else ""
        url = url and (url if url.startswith("/") else f"{QUEUES}{url}")
    assert [each["entity_id"] for each in found] == sorted(str(node(number)) for number in range(3))
    assert {each["messages"] for each in found} == {3}
    assert "color" in found[0]["error"]
    assert (await client.get(found[0]["queue"])).json() == found[0]
    assert (await client.get(f"{QUEUES}/{node(9)}")).status_code == 404


@pytest.mark.parametrize("form", ["hot", "framework", "array", "lines"])
async def test_an_event_of_a_held_entity_is_a_conflict(client: httpx.AsyncClient, log: Log, form: str) -> None:
    """One by itself is a problem of its own type, with the path of the queue; among others it is a conflict."""
    await log.take(*lives(1))
    sent = event_json("node.heartbeat", 9, entity_id=node(0))
    if form == "lines":
        media = {"Content-Type": "application/x-ndjson"}
        answer = await client.post(
            "/v1/events", content=f"{httpx.Request('POST', '/', json=sent).read().decode()}\n", headers=media
        )
        assert '"conflict":1' in answer.text
        return
    answer = await client.post(
        "/v1/events" + "?dry_run=false" * (form == "framework"), json=[sent] if form == "array" else sent
    )
    told = answer.json()
    if form == "array":
        assert (answer.status_code, told["results"][0]["outcome"]) == (200, "conflict")
        return
    assert (answer.status_code, told["type"]) == (409, "urn:pqs:problem:held")
    assert (told["entity_id"], told["queue"]) == (str(node(0)), f"{QUEUES}/{node(0)}")
    assert (await client.get(told["queue"])).json()["messages"] == 3


async def test_a_queue_is_retried_and_skipped(client: httpx.AsyncClient, log: Log) -> None:
    """409 at the first message that fails again; then all is in. A skip leaves one out. Both are in the audit log."""
    await log.take(*lives(2))
    refused = await client.post(f"{QUEUES}/{node(0)}/retry")
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:pqs:problem:held")
    assert "nodes-0 offset 1 fails again" in refused.json()["detail"]
    skipped = (await client.post(f"{QUEUES}/{node(1)}/skip")).json()
    assert (skipped["skipped"]["offset"], skipped["messages"]) == (6, 0)
    await log.mend()
    retried = (await client.post(f"{QUEUES}/{node(0)}/retry")).json()
    assert (retried["summary"]["applied"], retried["skipped"], retried["messages"]) == (4, None, 0)
    assert ("active", 5) in await states(client)
    assert (await client.post(f"{QUEUES}/{node(0)}/retry")).status_code == 404
    said = [(each["action"], each["target"]) for each in (await client.get("/v1/audit")).json()["items"]]
    assert said == [
        ("dead-letters.retry", f"held entity {node(0)}"),
        ("dead-letters.skip", f"held entity {node(1)}"),
    ]


async def test_a_letter_that_holds_answers_with_its_queue(client: httpx.AsyncClient, log: Log) -> None:
    """Neither is it retried nor removed by itself; a plain letter is."""
    await log.take(*lives(1), b"broken")
    holding, plain = [each["id"] for each in (await client.get(LIST)).json()["items"]]
    for answer in (await client.post(f"{LIST}/{holding}/retry"), await client.delete(f"{LIST}/{holding}")):
        assert (answer.status_code, answer.json()["queue"]) == (409, f"{QUEUES}/{node(0)}")
    assert (await client.delete(f"{LIST}/{plain}")).status_code == 204


async def test_all_letters_that_match_are_retried(client: httpx.AsyncClient, log: Log) -> None:
    """Letters with what waits behind them, and letters alone; what fails again stays and is counted."""
    await log.take(*lives(3), b"broken", poisoned(event_json("node.heartbeat", 9, entity_id=node(5))))
    await log.mend()
    run = await finished(client, await client.post(f"{LIST}/retry?topic=nodes"))
    assert numbers(run) == (5, 4, 1)
    assert await states(client) == {("active", 5)}
    assert len((await client.get(LIST)).json()["items"]) == 1
    again = await finished(client, await client.post(f"{LIST}/retry?topic=nodes"))
    assert (numbers(again), again["id"] == run["id"]) == ((1, 0, 1), False)
    acts = [(each["action"], each["outcome"]) for each in (await client.get("/v1/audit")).json()["items"]]
    assert acts[-2:] == [("dead-letters.retry", "4 done, 1 failed"), ("dead-letters.retry", "accepted")]


async def test_all_letters_that_match_are_removed(
    client: httpx.AsyncClient, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letters that hold their entity stay, others of the filter are gone, and those of other filters are there."""
    monkeypatch.setattr(bulk, "AT_ONCE", 2)
    await log.take(*lives(1), *[b"broken"] * 5)
    await log.take(b"broken", topic="racks")
    run = await finished(client, await client.post(f"{LIST}/delete?topic=nodes"))
    assert numbers(run) == (6, 5, 1)
    assert [each["topic"] for each in (await client.get(LIST)).json()["items"]] == ["nodes", "racks"]


async def test_a_bulk_call_that_is_under_way_is_the_answer(client: httpx.AsyncClient, log: Log) -> None:
    """The same call again is the same run, while it lasts; other filters are another one."""
    await log.take(b"broken")
    await slow(log, 1)
    first = await client.post(f"{LIST}/delete?topic=nodes")
    second = await client.post(f"{LIST}/delete?topic=nodes")
    other = await client.post(f"{LIST}/delete?topic=nodes&source=consumer")
    assert second.json()["id"] == first.json()["id"] != other.json()["id"]


async def slow(log: Log, seconds: float) -> None:
    """Let the removal of each letter take so long."""
    await log.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN PERFORM pg_sleep({seconds}); RETURN OLD; END $$;"
        "CREATE TRIGGER slow BEFORE DELETE ON dead_letters FOR EACH ROW EXECUTE FUNCTION slow()"
    )


async def test_no_more_bulk_calls_are_accepted_than_the_bound(
    client: httpx.AsyncClient, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """409 until one is finished."""
    monkeypatch.setattr(letter_runs, "MAX_UNFINISHED", 0)
    assert (await client.post(f"{LIST}/delete?topic=nodes")).status_code == 409
    assert (await client.get(f"{LIST}/runs/{node(1)}")).status_code == 404
    assert await log.number("dead_letter_runs") == 0


async def test_a_bulk_call_survives_a_kill(database_url: str, log: Log) -> None:
    """The process that accepted it is killed in its midst; another one goes on, and the counts are exact."""
    letters = 60
    await log.take(
        *[event_json("node.heartbeat", 9, entity_id=node(number)) | {"color": 1} for number in range(letters)]
    )
    await slow(log, 0.03)
    mended = "replace(convert_from(value, 'UTF8'), ',\"color\":1', '')"
    await log.execute(f"UPDATE dead_letters SET value = convert_to({mended}, 'UTF8')")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    given: dict[str, Any] = {"database_url": database_url, "port": port}
    with command("serve", **given) as service:
        async with httpx.AsyncClient(base_url=base) as client:
            accepted = await _accepted(client)
            while not 0 < (await client.get(accepted)).json()["done"] < letters:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        service.send_signal(signal.SIGKILL)
        service.wait(PATIENCE)
    left = await log.number("dead_letters")
    assert 0 < left < letters
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE dead_letter_runs SET leased_until = '-infinity'")  # as some seconds later
    await connection.close()
    async with service_on(database_url) as other:
        answer = await other.get(accepted)
        run = await finished(other, httpx.Response(202, headers={"location": accepted}, request=answer.request))
    assert numbers(run) == (letters, letters, 0)
    assert await log.number("dead_letters") == 0


async def _accepted(client: httpx.AsyncClient) -> str:
    """The path of a bulk call, once the service answers."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                answer = await client.post(f"{LIST}/retry?source=consumer")
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code == 202:
                return str(answer.headers["location"])
            await asyncio.sleep(0.05)
