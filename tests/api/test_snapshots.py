"""`/v1/snapshots`: how far snapshots are published, and all rows once more."""

from collections.abc import AsyncIterator

import httpx
import pytest

from app.store import audit, snapshots
from app.store.database import Database
from pqs_client import Client, NotFoundError
from tests.api.conftest import service_on

TOPIC = "node-snapshots"
GIVEN = {"kafka": "127.0.0.1:1", "bus": "off", "topic_snapshots": TOPIC, "snapshots": False}


@pytest.fixture
async def publishing(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A service with a topic, to which others publish."""
    async with service_on(database_url, **GIVEN) as client:
        yield client


async def test_republishing_is_asked_for_and_seen(publishing: httpx.AsyncClient, database: Database) -> None:
    """A request is counted, whoever publishes sees it, and the audit log has it."""
    assert (await publishing.get("/v1/snapshots")).status_code == 404
    standing = await database.write(snapshots.take, TOPIC, "somebody", 60.0)
    assert standing is not None
    asked = await publishing.post("/v1/snapshots/republish")
    assert (asked.status_code, asked.headers["location"]) == (202, "/v1/snapshots")
    assert asked.json() == (await publishing.get("/v1/snapshots")).json()
    assert (asked.json()["requested"], asked.json()["at_work"], asked.json()["bootstrapping"]) == (2, True, True)
    await database.write(snapshots.save, standing, "somebody", 60.0)
    assert standing.requested == 2
    [entry] = await database.read(audit.get_page, before=audit.NEWEST, limit=5)
    assert (entry.action, entry.target) == ("snapshots.republish", TOPIC)


async def test_without_a_topic_there_are_no_snapshots(client: httpx.AsyncClient) -> None:
    """Without PQS_TOPIC_SNAPSHOTS both calls are 404, which names it."""
    for answer in (await client.get("/v1/snapshots"), await client.post("/v1/snapshots/republish")):
        assert (answer.status_code, "PQS_TOPIC_SNAPSHOTS" in answer.json()["detail"]) == (404, True)


async def test_the_client_has_both_calls(publishing: httpx.AsyncClient) -> None:
    """The Python client asks for all rows, and sees how far they are."""
    async with Client("http://localhost", transport=publishing._transport) as pqs:
        with pytest.raises(NotFoundError):
            await pqs.snapshots()
        assert (await pqs.republish_snapshots()).requested == 1
        assert (await pqs.republish_snapshots()).requested == 2
        assert (await pqs.snapshots()).topic == TOPIC
