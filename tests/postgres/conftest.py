"""A PostgreSQL 15 that the tests of a module share, and a migrated database on it for each test."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.postgres.servers import Postgres, servers_folder
from tests.processes import pqs

TEMPLATE = "migrated"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for servers."""
    with servers_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def postgres(folder: Path) -> Iterator[Postgres]:
    """The server, with a template of migrated databases."""
    server = Postgres.new(folder)
    try:
        server.sql(f"CREATE DATABASE {TEMPLATE}")
        assert pqs("migrate", database_url=server.url(TEMPLATE)).returncode == 0
        yield server
    finally:
        server.stop()


@pytest.fixture
def name(postgres: Postgres) -> Iterator[str]:
    """The name of a migrated, empty database there."""
    name = f"test_{uuid4().hex}"
    postgres.sql(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield name
    if postgres.answers():
        postgres.sql(f"DROP DATABASE {name} WITH (FORCE)")
