"""Services for tests of the HTTP interface."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest

from app.api.context import correlation_id
from app.settings import read_settings
from tests.conftest import application
from tests.connections import PATIENCE, Client, Plain, Served
from tests.databases import new_database


@asynccontextmanager
async def service_on(database_url: str, **given: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service on that database; `given` holds further settings."""
    async with application(
        read_settings({"database_url": database_url, "pool_size": 4, "access_log": "all", **given})
    ) as client:
        yield client


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that all tests of a module share: for tests whose requests are refused or only read."""
    async with new_database() as url, service_on(url) as client:
        yield client


@pytest.fixture
def unreachable_url() -> Iterator[str]:
    """The address of a database at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening: connections are refused for as long as this lives
        yield f"postgresql://nobody@127.0.0.1:{taken.getsockname()[1]}/nothing"


class Access(logging.Handler):
    """The lines of the access log: correlation id, method, path, status."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = asyncio.Queue[tuple[str | None, str, str, int]]()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        said = record.__dict__
        self._lines.put_nowait((correlation_id.get(), said["method"], said["path"], said["status"]))

    def forget(self) -> None:
        """Drop the lines that no test has fetched yet."""
        while not self._lines.empty():
            self._lines.get_nowait()

    async def next(self) -> tuple[str | None, str, str, int]:
        """The oldest line that no test has fetched yet."""
        async with asyncio.timeout(PATIENCE):
            return await self._lines.get()


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[Served]:
    """A service behind uvicorn, shared by the tests of a module."""
    async with new_database() as url:
        served = Served(url)
        async with served.running():
            yield served


@pytest.fixture(scope="module")
async def plain() -> AsyncIterator[Plain]:
    """A service within the test process, shared by the tests of a module."""
    async with new_database() as url:
        plain = Plain(url)
        async with plain.running():
            yield plain


@pytest.fixture
async def hot(served: Served) -> Served:
    """The service behind uvicorn, with one entity and one workflow, and without an open connection."""
    await served.has_no_connection()
    await served.reset()
    served.untouched = False
    served.ways.clear()
    return served


@pytest.fixture
async def in_process(plain: Plain) -> Plain:
    """The service within the test process, with one entity and one workflow."""
    await plain.reset()
    plain.untouched = False
    return plain


@pytest.fixture
async def raw(hot: Served) -> AsyncIterator[Client]:
    """A connection to the service behind uvicorn."""
    async with hot.connect() as client:
        yield client


@pytest.fixture
def access(hot: Served, caplog: pytest.LogCaptureFixture) -> Iterator[Access]:
    """The access log, empty, from the moment the service is idle."""
    handler = Access()
    logger = logging.getLogger("app.access")
    logger.addHandler(handler)
    with caplog.at_level("INFO", "app.access"):
        yield handler
    logger.removeHandler(handler)
