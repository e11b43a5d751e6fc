"""Limits of an operator's database: timeouts of sessions, and disk space."""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.consul import consul
from tests.making import event_json, node
from tests.postgres.servers import BACK_WITHIN, Postgres, fetch, give, servers_folder
from tests.processes import serving, until

SLOW = 1.4  # seconds that Consul takes for an answer


@pytest.mark.parametrize("setting", ["idle_in_transaction_session_timeout", "idle_session_timeout"])
def test_the_relay_outlives_time_outs_of_sessions(
    postgres: Postgres, name: str, tmp_path: Path, setting: str
) -> None:
    """A Consul slower than the database's session timeout gets each message once."""
    postgres.sql(f"ALTER DATABASE {name} SET {setting} = '1s'")
    with consul() as agent:
        agent.takes = SLOW
        with serving(tmp_path, database_url=postgres.url(name), consul_url=agent.url) as service:
            with service.client() as client:
                sent = [event_json("node.introspected", 1, entity_id=node(number)) for number in range(3)]
                assert client.post("/v1/events", json=sent).status_code == 200
            until(lambda: postgres.sql("SELECT count(*) FROM outbox", name) == "0", "the outbox is empty")
        assert agent.registrations == 3


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 24 MiB; skips the test if it cannot be mounted."""
    with servers_folder() as folder:
        mounted = folder / "small"
        mounted.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0777", "tmpfs", str(mounted)]
        if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
            pytest.skip("a small file system cannot be mounted here")
        try:
            space = mounted / "space"
            space.mkdir()
            give(space)
            yield space
        finally:
            subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_a_full_disk(postgres: Postgres, name: str, tmp_path: Path, small_disk: Path) -> None:
    """On a full disk writes are 503 and reads go on; writes succeed once there is room again."""
    ballast = small_disk.parent / "ballast"
    postgres.sql(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    try:
        postgres.sql(f"ALTER DATABASE {name} SET TABLESPACE small")
        with serving(tmp_path, database_url=postgres.url(name)) as service, service.client() as client:
            array = [event_json("registration.initiated", 1, entity_id=node(number)) for number in range(100)]
            assert client.post("/v1/events", json=array).status_code == 200
            room = os.statvfs(small_disk)
            ballast.write_bytes(b"x" * (room.f_bavail * room.f_frsize))
            statuses = []
            for number in range(100, 20_000, 500):
                more = [
                    event_json("registration.initiated", 1, entity_id=node(each))
                    for each in range(number, number + 500)
                ]
                answer = client.post("/v1/events", json=more)
                statuses.append(answer.status_code)
                assert client.get(f"/v1/entities/{node(1)}").status_code == 200
                assert client.get("/v1/state-counts").status_code == 200
                if statuses[-7:] == [503] * 7:  # more than would open a breaker
                    break
            assert statuses[-7:] == [503] * 7
            assert "disk is full" in answer.json()["detail"]
            ballast.unlink()
            freed = time.monotonic()
            until(lambda: client.post("/v1/events", json=more).status_code == 200, "it writes again")
            assert time.monotonic() - freed < BACK_WITHIN
    finally:
        ballast.unlink(missing_ok=True)
        postgres.sql(f"ALTER DATABASE {name} SET TABLESPACE pg_default")
        postgres.sql("DROP TABLESPACE small")


def test_no_room_injected(postgres: Postgres, name: str, tmp_path: Path) -> None:
    """PostgreSQL's disk-full error, wherever it is raised, does not stop reads."""
    asyncio.run(
        fetch(
            postgres.url(name),
            """
            DO $do$ BEGIN
                CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN RAISE 'could not extend file' USING ERRCODE = '53100'; END $$;
                CREATE TRIGGER full_disk BEFORE INSERT ON registration_projections EXECUTE FUNCTION full_disk();
            END $do$
            """,
        )
    )
    with serving(tmp_path, database_url=postgres.url(name)) as service, service.client() as client:
        for number in range(8):
            sent = event_json("registration.initiated", 1, entity_id=node(number))
            assert client.post("/v1/events", json=sent).status_code == 503
            assert client.get("/v1/state-counts").status_code == 200
            assert client.get(f"/v1/entities/{node(1)}").status_code == 404
        postgres.sql("DROP TRIGGER full_disk ON registration_projections", name)
        assert client.post("/v1/events", json=sent).status_code == 200
