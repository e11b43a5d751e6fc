"""A real PostgreSQL for all tests, with the real migrations, and a fresh database for each test that asks for one.

`databases.py` provides the databases.
"""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from app import main
from app.domain.registration import Timing
from app.embedded.postgres import EmbeddedPostgres
from app.projection.projector import Projector
from app.settings import PREFIX, Settings, read_settings
from app.store.database import Database
from tests.broker import Broker, some_broker
from tests.databases import SERVER, bare_database, drop_free, make_template, new_database

# Durability is tested by killing processes, not by cutting the power: the kernel keeps what was written. And as
# databases are used again, nothing but the test at hand is to come to one, not even a vacuum.
PARAMETERS = {"fsync": "off", "autovacuum": "off", "max_connections": "300", "shared_buffers": "64MB"}

# The tests that cover wholly what has to be covered. Tracing takes a third of the time of every test that is traced.
TRACED = (
    *("domain", "projection", "feed", "inbound/test_lines.py", "inbound/test_holding.py"),
    *("api/test_refused_values.py", "api/test_streams.py", "api/test_workflows.py"),
)
TRACED_PATHS = tuple(Path(__file__).parent / each for each in TRACED)

_running: list[tuple[EmbeddedPostgres, Path]] = []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One and a half times the number of processors: tests wait for other processes, and for time to pass."""
    given = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(given) if given else max(2, processors * 3 // 2)


def pytest_configure(config: pytest.Config) -> None:
    """Start the server once, in the process that starts the others; TEST_DATABASE_URL names a running one instead."""
    # In the background, or by nohup, these are ignored, and so they would be in all that tests start.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    url = os.environ.get("TEST_DATABASE_URL")
    if url is None:
        folder = Path(tempfile.mkdtemp(prefix="pqs-tests-"))
        server = EmbeddedPostgres(folder, parameters=PARAMETERS, sync=False)
        _running.append((server, folder))
        url = server.start()
    os.environ[SERVER] = url
    asyncio.run(make_template(url))


def pytest_unconfigure() -> None:
    """Stop the server, and leave nothing behind."""
    asyncio.run(drop_free())
    for server, folder in _running:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    _running.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure coverage only in the tests of TRACED, with their fixtures."""
    plugin = item.config.pluginmanager.get_plugin("_cov")
    controller = None if plugin is None else plugin.cov_controller
    if controller is None or any(item.path.is_relative_to(each) for each in TRACED_PATHS):
        return (yield)
    controller.pause()
    try:
        return (yield)
    finally:
        controller.resume()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio."""
    return "asyncio"


@pytest.fixture
async def database_url() -> AsyncIterator[str]:
    """The address of a migrated, empty database."""
    async with new_database() as url:
        yield url


@pytest.fixture
async def empty_database_url() -> AsyncIterator[str]:
    """The address of a database without a schema."""
    async with bare_database() as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated, empty database."""
    database = Database(database_url, pool_size=4, statement_timeout=timedelta(seconds=5))
    yield database
    await database.close()


@pytest.fixture
def projector(database: Database) -> Projector:
    """A projector on that database, with the default timing."""
    return Projector(database, Timing())


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings for a service on a database of its own."""
    return read_settings({"database_url": database_url, "pool_size": 4})


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the whole application, in this process."""
    async with application(settings) as client:
        yield client


@asynccontextmanager
async def application(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The whole application with its lifespan, in this process."""
    app = main.create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder for a service's own PostgreSQL, with a short path, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="pqs-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def kafka() -> Iterator[Broker]:
    """A Kafka, shared by the tests of this process."""
    with some_broker() as broker:
        yield broker


@pytest.fixture
def topic(kafka: Broker) -> str:
    """A new topic with four partitions."""
    name = f"test-{uuid4().hex}"
    kafka.create_topic(name)
    return name
