"""Services for tests of the HTTP interface."""

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest

from app.settings import read_settings
from tests.conftest import application
from tests.databases import new_database


@asynccontextmanager
async def service_on(database_url: str, **given: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service on that database; `given` are more of its settings."""
    async with application(read_settings({"database_url": database_url, "pool_size": 4, **given})) as client:
        yield client


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that the tests of a module share: for those that are refused, or only read."""
    async with new_database() as url, service_on(url) as client:
        yield client


@pytest.fixture
def unreachable_url() -> Iterator[str]:
    """The address of a database that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening: connections are refused for as long as this lives
        yield f"postgresql://nobody@127.0.0.1:{taken.getsockname()[1]}/nothing"
