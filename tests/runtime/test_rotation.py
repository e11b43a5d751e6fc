"""Passwords that change while the service runs, with a role of a real PostgreSQL that requires them."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from app.embedded.postgres import EmbeddedPostgres
from app.store.schema import create_engine, initialize_schema
from tests.connections import connected
from tests.making import event_json
from tests.processes import serving, until

HBA = "local all keeper scram-sha-256\nlocal all all trust\n"
CUT = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'keeper'"


@pytest.fixture
async def guarded(data_dir: Path) -> AsyncIterator[str]:
    """A migrated PostgreSQL whose role `keeper` needs a password; yields its superuser's address."""
    with EmbeddedPostgres(data_dir, parameters={"fsync": "off"}, sync=False) as url:
        (data_dir / "postgres" / "pg_hba.conf").write_text(HBA)
        engine = create_engine(url, pool_size=2)  # one keeps others from migrating
        await initialize_schema(engine)
        await engine.dispose()
        async with connected(url) as connection:
            await connection.execute("SELECT pg_reload_conf()")
            await connection.execute("CREATE ROLE keeper LOGIN PASSWORD 'first'")
            await connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO keeper")
            await connection.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO keeper")
        yield url


def address(url: str, password: str) -> str:
    """The role's address."""
    return url.replace("postgres@", f"keeper:{quote(password)}@", 1)


def shown(*pids: int) -> str:
    """The parts of processes that other accounts can see: environments and command lines."""
    return str([Path(f"/proc/{pid}/{each}").read_bytes() for pid in pids for each in ("environ", "cmdline")])


async def test_a_password_is_rotated_while_the_service_runs(guarded: str, tmp_path: Path) -> None:
    """Each worker's new connections use the password in the file; neither log nor environment has it."""
    file = tmp_path / "address"
    file.write_text(address(guarded, "first"))
    with serving(tmp_path, workers=2, database_url_file=file, log_level="debug") as service:
        service.await_workers(2)
        with service.client() as client:
            sent = event_json("registration.initiated", 1)
            assert client.post("/v1/events", json=sent).json()["outcome"] == "applied"
            async with connected(guarded) as connection:
                await connection.execute("ALTER ROLE keeper PASSWORD 'other word'")
                file.write_text(address(guarded, "other word"))
                assert await connection.fetchval(CUT) > 0
            until(lambda: client.get("/readyz").status_code == 200, "new connections are made", poll=0.2)
            for _ in range(8):
                until(lambda: httpx.get(f"{service.url}/readyz").status_code == 200, "every worker has some")
            assert client.post("/v1/events", json=sent).json()["outcome"] == "duplicate"
        for secret in ("first", "other word", "other%20word"):
            assert f":{secret}@" not in service.log
            assert secret not in shown(service.pid, *service.workers())


async def test_a_wrong_password_recovers_when_the_file_is_right(guarded: str, tmp_path: Path) -> None:
    """While file and role differ the service answers 503, whichever changed first; then it answers again."""
    file = tmp_path / "address"
    file.write_text(address(guarded, "first"))
    with serving(tmp_path, database_url_file=file) as service, service.client() as client:
        assert client.get("/readyz").status_code == 200
        async with connected(guarded) as connection:
            await connection.execute("ALTER ROLE keeper PASSWORD 'second'")
            await connection.fetchval(CUT)
        until(lambda: client.get("/readyz").status_code == 503, "the old password is refused")
        file.write_text(address(guarded, "second"))
        until(lambda: client.get("/readyz").status_code == 200, "the new one is taken", poll=0.2)
