"""Clients for the tests: of services in this process, and of a real one."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app import main
from app.settings import Settings
from pqs_client import Client
from tests.client.proxy import Proxy
from tests.databases import new_database
from tests.making import Json
from tests.processes import Service, serving


@asynccontextmanager
async def client_in_process(settings: Settings) -> AsyncIterator[Client]:
    """A client of the whole application in this process."""
    app = main.create_app(settings)
    client = Client("http://localhost", transport=httpx.ASGITransport(app))
    async with app.router.lifespan_context(app), client:
        yield client


@pytest.fixture
async def pqs(settings: Settings) -> AsyncIterator[Client]:
    """A client of a service in this process with an empty database."""
    async with client_in_process(settings) as client:
        yield client


@pytest.fixture(scope="module")
async def module_database_url() -> AsyncIterator[str]:
    """The address of a database that the tests of a module share."""
    async with new_database() as url:
        yield url


@pytest.fixture(scope="module")
def service(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service in a process of its own, shared by the tests of a module."""
    with serving(tmp_path_factory.mktemp("service"), database_url=module_database_url, pool_size=4) as service:
        yield service


@pytest.fixture
async def proxy(service: Service) -> AsyncIterator[Proxy]:
    """A proxy in front of the module's service."""
    async with Proxy(service.url) as proxy:
        yield proxy


def asking(app: Callable[..., Awaitable[None]], **options: Any) -> Client:
    """A client of a stand-in application, which is not this service."""
    return Client("http://elsewhere", transport=httpx.ASGITransport(app), **options)


def answering(status: int, body: bytes, **headers: str) -> Callable[..., Awaitable[None]]:
    """An application that answers every request alike, as a load balancer or another server does."""
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]

    async def app(_scope: object, _receive: object, send: Callable[[Json], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": status, "headers": named})
        await send({"type": "http.response.body", "body": body})

    return app
