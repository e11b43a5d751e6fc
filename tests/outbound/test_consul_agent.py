"""The whole way against a Consul: a real one where there is one (see `some_consul`), by what its clients see."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from app.domain.events import DEFAULT_DOMAIN
from app.domain.intents import ActivateService, DeregisterService, RegisterService
from app.outbound.consul import Consul, Profile, Reconciler, Rights
from app.projection.projector import Projector
from app.store.database import Database
from tests.consul import some_consul
from tests.making import Json, event

PATIENCE = 30.0  # seconds; the catalog of a real Consul follows its agents
TOKEN = os.environ.get("CONSUL_HTTP_TOKEN")  # for an agent that wants one
ACTIVE = ("node.introspected", "node.registration_acked")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a Consul."""
    with some_consul() as url:
        yield url


@pytest.fixture
async def handler(url: str) -> AsyncIterator[Consul]:
    """A handler whose mark and node types are its own, in a Consul that may have other services."""
    profile = Profile(mark=f"test-{uuid4()}", ttl=timedelta(seconds=30))
    consul = Consul(url, rights=Rights(token=lambda: TOKEN), profile=profile)
    yield consul
    for service_id in await consul.services():
        await consul.remove(service_id)
    await consul.close()


def describing(consul: Consul, entity_id: UUID, **changes: Any) -> Json:
    """The fields of a registration."""
    fields: Json = {"entity_id": entity_id, "domain": "edge", "node_type": consul.profile.mark, "tags": ("a",)}
    capabilities: Json = {"address": "10.0.0.7", "port": 8080}
    return fields | {"version": 1, "capabilities": capabilities} | changes


async def seen(consul: Consul, url: str, *, passing: bool = False) -> list[Json]:
    """What a client of Consul finds under the node type of this test."""
    name = consul.profile.mark
    headers = {} if TOKEN is None else {"X-Consul-Token": TOKEN}
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        answer = await client.get(f"/v1/health/service/{name}", params={"passing": "1"} if passing else {})
    found: list[Json] = answer.raise_for_status().json()
    return [instance["Service"] for instance in found]


async def until_seen(
    consul: Consul, url: str, ids: set[str], *, passing: bool = True, tags: list[str] | None = None
) -> list[Json]:
    """Wait until a client finds exactly these, with these tags if any are given."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await seen(consul, url, passing=passing)
            if {each["ID"] for each in found} == ids and all(tags in (None, each["Tags"]) for each in found):
                return found
            await asyncio.sleep(0.05)


async def test_a_node_is_found_from_its_activation_on(handler: Consul, url: str) -> None:
    """With address, port, tags and Meta; before that it is there, but does not pass; after it left it is gone."""
    entity_id = uuid4()
    service_id = f"edge.{entity_id}"
    await handler.handle(RegisterService(**describing(handler, entity_id)))
    await until_seen(handler, url, {service_id}, passing=False)
    assert await seen(handler, url, passing=True) == []
    await handler.handle(ActivateService(**describing(handler, entity_id, passing=True)))
    [service] = await until_seen(handler, url, {service_id})
    assert (service["Address"], service["Port"], service["Tags"]) == ("10.0.0.7", 8080, ["a"])
    assert service["Meta"] == {"registered_by": handler.profile.mark, "domain": "edge", "version": "1"}
    await handler.handle(RegisterService(**describing(handler, entity_id, tags=("new",), passing=True)))
    await until_seen(handler, url, {service_id}, tags=["new"])
    await handler.handle(DeregisterService(entity_id=entity_id, domain="edge"))
    await handler.handle(DeregisterService(entity_id=entity_id, domain="edge"))
    await until_seen(handler, url, set(), passing=False)


async def test_the_reconciler_mends_it(handler: Consul, url: str, projector: Projector, database: Database) -> None:
    """What was lost is there again, what should not be there is gone, and nothing else changes."""
    nodes = [uuid4() for _ in range(3)]
    data: Json = {"node_type": handler.profile.mark}
    now = datetime.now(UTC).isoformat()
    for sequence, type_ in enumerate(ACTIVE, start=1):
        given = data if type_ == "node.introspected" else None
        await projector.persist(
            [event(type_, sequence, entity_id=each, data=given, occurred_at=now) for each in nodes]
        )
    ids = {f"{DEFAULT_DOMAIN}.{each}" for each in nodes}
    reconciler = Reconciler(database, handler)
    await database.write(reconciler.reconcile)
    await until_seen(handler, url, ids)
    await handler.remove(f"{DEFAULT_DOMAIN}.{nodes[0]}")
    await handler.register(RegisterService(**describing(handler, uuid4())))
    await until_seen(handler, url, ids - {f"{DEFAULT_DOMAIN}.{nodes[0]}"})
    await database.write(reconciler.reconcile)
    await until_seen(handler, url, ids, passing=False)
    await until_seen(handler, url, ids)
