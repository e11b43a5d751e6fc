"""A service as a process, which the commands of a module ask."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from subprocess import CompletedProcess

import httpx
import pytest

from tests import processes
from tests.databases import new_database
from tests.making import Json, event_json, life, node
from tests.processes import Service, serving

EVIL = "e\x1b[31mvil\x9b\u202e"  # a type of nodes that would steer a terminal
AWAITING, ACTIVE, OTHER, ODD = node(1), node(2), node(3), node(4)

Ask = Callable[..., CompletedProcess[str]]


def events() -> list[Json]:
    """A node that has not acknowledged, two that are active, and one with an odd type."""
    return [
        *life(AWAITING)[:3],
        *life(ACTIVE),
        *life(OTHER),
        event_json("registration.initiated", 1, entity_id=ODD, data={"node_type": EVIL}),
    ]


@pytest.fixture(scope="module")
async def module_database_url() -> AsyncIterator[str]:
    """The address of a database that the tests of a module share."""
    async with new_database() as url:
        yield url


@pytest.fixture(scope="module")
def service(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service, with some entities."""
    with serving(tmp_path_factory.mktemp("service"), database_url=module_database_url, pool_size=4) as service:
        content = "\n".join(map(json.dumps, events()))
        headers = {"Content-Type": "application/x-ndjson"}
        assert httpx.post(f"{service.url}/v1/events", content=content, headers=headers).status_code == 200
        yield service


@pytest.fixture
def ask(service: Service) -> Ask:
    """`pqs` with these arguments, on that service."""
    return lambda *arguments, **settings: processes.pqs(*arguments, **({"url": service.url} | settings))
