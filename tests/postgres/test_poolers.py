"""The service behind PgBouncer: in session mode it works; another mode is refused, and never gives others' rows."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from app.concurrency.breaker import CircuitBreaker
from app.errors import DatabaseRefusesError
from app.store import sessions
from app.store.database import Database
from tests.making import NODE, event_json, life
from tests.postgres.servers import Postgres, pgbouncer
from tests.processes import pqs, refusal, serving

TIMEOUT = timedelta(seconds=5)


def test_session_mode_works(postgres: Postgres, name: str, tmp_path: Path, folder: Path) -> None:
    """With PgBouncer's own defaults, events, lists, counts, workflows and the feed are answered."""
    with pgbouncer(folder, postgres, "session") as port:
        url = postgres.url(name, port=port)
        with serving(tmp_path, database_url=url, database_read_url=url) as service, service.client() as client:
            assert client.get("/readyz").status_code == 200
            for event in life():
                assert client.post("/v1/events", json=event).status_code == 200
            assert client.get(f"/v1/entities/{NODE}").status_code == 200
            for path in ("/v1/entities", "/v1/state-counts", "/v1/overdue/ack", "/v1/changes"):
                assert client.get(path).status_code == 200, path
            assert client.get("/metrics").status_code == 200
    assert "ERROR" not in service.log


def test_settings_are_made(postgres: Postgres, name: str, folder: Path) -> None:
    """Behind the pooler a session has the same settings as without it."""

    async def shown(url: str) -> list[str]:
        database = Database(url, pool_size=1, statement_timeout=TIMEOUT)
        try:
            names = ("application_name", "TimeZone", "statement_timeout", "plan_cache_mode", "enable_seqscan", "jit")
            query = "SELECT " + ", ".join(f"current_setting('{each}')" for each in names)
            rows = await database.read(lambda connection: connection.fetch(query))
            return list(rows[0])
        finally:
            await database.close()

    with pgbouncer(folder, postgres, "session") as port:
        behind = asyncio.run(shown(postgres.url(name, port=port)))
    assert (
        behind == asyncio.run(shown(postgres.url(name))) == ["pqs", "UTC", "5s", "force_generic_plan", "off", "off"]
    )


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_another_mode_is_refused_at_the_start(postgres: Postgres, name: str, folder: Path, mode: str) -> None:
    """`pqs serve` and `pqs migrate` say in one line that the pooler's mode does not do."""
    with pgbouncer(folder, postgres, mode) as port:
        for command in ("serve", "migrate"):
            said = refusal(pqs(command, database_url=postgres.url(name, port=port), log_level="error"))
            assert "session mode" in said


async def test_a_service_that_meets_it_later_refuses_in_words(postgres: Postgres, name: str, folder: Path) -> None:
    """Every call ends with the cause, never with a row."""
    with pgbouncer(folder, postgres, "transaction") as port:
        database = Database(
            postgres.url(name, port=port), pool_size=2, statement_timeout=TIMEOUT, breaker=CircuitBreaker()
        )
        for _ in range(3):
            with pytest.raises(DatabaseRefusesError, match="session mode"):
                await database.read(lambda connection: connection.fetchval("SELECT 1"))
        await database.close()


async def test_one_pool_of_one_connection_is_no_other_mode(postgres: Postgres, name: str, folder: Path) -> None:
    """A session pool with no second connection is used as it is."""
    with pgbouncer(folder, postgres, "session", size=1) as port:
        database = Database(postgres.url(name, port=port), pool_size=1, statement_timeout=TIMEOUT)
        assert await database.read(lambda connection: connection.fetchval("SELECT 1")) == 1
        await database.close()


async def test_two_processes_have_no_statement_in_common(
    postgres: Postgres, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two processes share a session of the server, neither gets the rows of the other's statement."""

    async def names(process: str) -> set[str]:
        monkeypatch.setattr(sessions, "_process", lambda: process)
        connection = await sessions.connect(postgres.url(name), {})
        await connection.fetch("SELECT 1")
        rows = await connection.fetch("SELECT name FROM pg_prepared_statements")
        await connection.close()
        return {row["name"] for row in rows}

    one, two = await names("one"), await names("two")
    assert one
    assert all(each.startswith("one") for each in one)
    assert all(each.startswith("two") for each in two)


def test_event_is_kept(postgres: Postgres, name: str, tmp_path: Path, folder: Path) -> None:
    """Beside another client of the pooler, the rows are those that were asked for."""
    with pgbouncer(folder, postgres, "session", size=40) as port:
        url = postgres.url(name, port=port)
        with (
            serving(tmp_path, database_url=url) as service,
            serving(tmp_path, database_url=url) as other,
            service.client() as client,
            other.client() as second,
        ):
            assert client.post("/v1/events", json=event_json("registration.initiated", 1)).status_code == 200
            assert second.get("/v1/state-counts").json()["total"] == 1
            assert client.get(f"/v1/entities/{NODE}").json() == second.get(f"/v1/entities/{NODE}").json()
