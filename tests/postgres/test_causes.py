"""Causes for which a database cannot serve: each is named in one line, by commands, the log and `/readyz`."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from app.store.schema import LOCK_KEY
from app.store.sessions import parsed
from tests.making import event_json, node
from tests.postgres.servers import Postgres
from tests.processes import pqs, refusal, serving

PASSWORD = "s3cret-p4ss"


@contextmanager
def hba(postgres: Postgres, line: str) -> Iterator[None]:
    """A rule before all others."""
    rules = postgres.folder / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"{line}\n{before}")
    postgres.set("log_min_messages", "warning")  # reads the rules as well
    time.sleep(0.3)
    try:
        yield
    finally:
        rules.write_text(before)
        postgres.set("log_min_messages", "warning")


def said_by(url: str, command: str = "serve") -> str:
    """The one line with which a command ends."""
    return refusal(
        pqs(command, *(["--port", "0"] if command == "serve" else []), database_url=url, log_level="error")
    )


@pytest.mark.parametrize("command", ["serve", "migrate", "relay", "sweep"])
def test_a_wrong_password(postgres: Postgres, name: str, command: str) -> None:
    """It is called a wrong password, and is not shown."""
    role = f"alice_{command}"
    postgres.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'right'")
    settings = {"bus": "kafka", "kafka": "127.0.0.1:1"} if command == "relay" else {}
    arguments = ["--port", "0"] if command == "serve" else []
    with hba(postgres, f"host all {role} 127.0.0.1/32 scram-sha-256"):
        url = postgres.url(name, role=f"{role}:{PASSWORD}")
        said = refusal(pqs(command, *arguments, database_url=url, log_level="error", **settings))
    assert "refuses the password" in said
    assert PASSWORD not in said


@pytest.mark.parametrize("command", ["serve", "migrate"])
@pytest.mark.parametrize(
    ("query", "cause"),
    [
        ("channel_binding=require", "channel_binding=require"),
        ("gssencmode=require", "gssencmode"),
        ("hostaddr=127.0.0.1", "hostaddr"),
        ("connect_timeout=soon", "connect_timeout"),
        ("sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "/nowhere/ca.pem"),
        ("sslmode=require", "does not speak TLS"),
        ("no_such_thing=1", "does not know a parameter"),
    ],
)
def test_parameters_of_the_address(postgres: Postgres, name: str, command: str, query: str, cause: str) -> None:
    """One that cannot be honoured is named."""
    assert cause in said_by(f"{postgres.url(name)}?{query}", command)


def test_parameters_that_are_honoured(postgres: Postgres, name: str) -> None:
    """Those of libpq that mean something here, or nothing, do not stand in the way."""
    query = (
        "channel_binding=prefer&connect_timeout=3&keepalives=1&keepalives_idle=30&keepalives_interval=5"
        "&keepalives_count=3&tcp_user_timeout=9000&gssencmode=disable&options=-c%20geqo%3Doff&application_name=mine"
    )
    assert pqs("migrate", database_url=f"{postgres.url(name)}?{query}").returncode == 0
    address = parsed(f"{postgres.url(name)}?{query}")
    assert dict(address.settings) == {"geqo": "off", "application_name": "mine"}
    assert address.timeout == 3
    assert len(address.socket_options) == 5


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_no_such_database_or_role(postgres: Postgres, command: str) -> None:
    """Each is called what it is."""
    assert "no database of the configured name" in said_by(postgres.url("nowhere"), command)
    assert "the role" in said_by(postgres.url(role="nobody_at_all"), command)


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_another_encoding(postgres: Postgres, command: str) -> None:
    """A database in LATIN1 is refused before anything is written to it."""
    database = f"latin_{command}"
    postgres.sql(f"CREATE DATABASE {database} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    said = said_by(postgres.url(database), command)
    assert "LATIN1" in said
    assert "UTF8" in said
    assert postgres.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", database) == "0"


def test_what_time_may_mend_does_not_stop_the_start(postgres: Postgres, name: str, tmp_path: Path) -> None:
    """Missing schema and rights are named by `/readyz` and the log, and the service is ready once they are there."""
    postgres.sql("CREATE ROLE poor LOGIN")
    postgres.sql("CREATE DATABASE bare")
    with serving(tmp_path, database_url=postgres.url("bare")) as service, service.client() as client:
        assert "pqs migrate" in client.get("/readyz").json()["detail"]
        assert pqs("migrate", database_url=postgres.url("bare")).returncode == 0
        time.sleep(1.1)
        assert client.get("/readyz").status_code == 200
    assert "pqs migrate" in service.log
    with serving(tmp_path, database_url=postgres.url(name, role="poor")) as service, service.client() as client:
        assert "lacks rights: SELECT on" in client.get("/readyz").json()["detail"]
    assert "lacks rights" in service.log


def test_sequences_behind_their_tables(postgres: Postgres, name: str, tmp_path: Path) -> None:
    """After logical replication: a 503 and no 422, named by `/readyz`, and mended by `pqs migrate`."""
    settings = {"database_url": postgres.url(name), "consul_url": "http://127.0.0.1:1", "relay": False}
    with serving(tmp_path, **settings) as service, service.client() as client:
        for number in range(1, 4):
            sent = event_json("node.introspected", 1, entity_id=node(number))
            assert client.post("/v1/events", json=sent).status_code == 200
        postgres.sql("SELECT setval('outbox_id_seq', 1, false), setval('changes_id_seq', 1, false)", name)
        time.sleep(1.1)
        said = client.get("/readyz").json()["detail"]
        assert "outbox_id_seq" in said
        assert "changes_id_seq" in said
        sent = event_json("node.introspected", 1, entity_id=node(9))
        statuses = {client.post("/v1/events", json=sent).status_code for _ in range(3)}
        assert statuses <= {200, 503}
        assert pqs("migrate", database_url=postgres.url(name)).returncode == 0
        assert client.post("/v1/events", json=sent).status_code == 200
        time.sleep(1.1)
        assert client.get("/readyz").status_code == 200


def test_a_lock_of_migrations_that_is_held(postgres: Postgres, name: str) -> None:
    """`pqs migrate` says that it waits, and ends within its bound."""
    held, release = threading.Event(), threading.Event()

    async def hold() -> None:
        connection = await asyncpg.connect(postgres.url(name))
        await connection.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")
        held.set()
        await asyncio.to_thread(release.wait, 60)
        await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    try:
        assert held.wait(30)
        run = pqs("migrate", "--lock-wait", "2", database_url=postgres.url(name))
    finally:
        release.set()
        thread.join()
    assert run.returncode == 1
    *waiting, last = run.stderr.splitlines()
    assert any("waiting for another migration" in line for line in waiting)
    assert last.startswith("pqs: another migration of this database holds the lock, process ")
