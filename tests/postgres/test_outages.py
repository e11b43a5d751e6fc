"""What the service does while its PostgreSQL restarts, fails over, takes no writes, or takes no more connections."""

import asyncio
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import httpx

from tests.making import NODE, event_json, node
from tests.postgres.servers import BACK_WITHIN, Ask, Postgres, haproxy, loaded, servers_folder
from tests.processes import pqs, serving, until

_sequence = count(1)


async def write(client: httpx.AsyncClient) -> httpx.Response:
    """A new event of a node."""
    return await client.post("/v1/events", json=event_json("node.heartbeat", next(_sequence)))


async def read(client: httpx.AsyncClient) -> httpx.Response:
    """A node."""
    return await client.get(f"/v1/entities/{NODE}")


async def tally(client: httpx.AsyncClient) -> httpx.Response:
    """The counts, which come from the other pool."""
    return await client.get("/v1/state-counts")


async def ready(client: httpx.AsyncClient) -> httpx.Response:
    """What a prober asks, who counts for nothing."""
    return await client.get("/readyz")


ASK: dict[str, Ask] = {"write": write, "read": read, "tally": tally, "ready": ready}


def begin(client: httpx.Client) -> None:
    """The node that the requests are about."""
    sent = event_json("registration.initiated", next(_sequence))
    assert client.post("/v1/events", json=sent).status_code == 200


async def through(
    url: str, outage: Callable[[], None], *, before: float = 0.5, after: float = 4.0
) -> dict[str, float]:
    """Seconds from the end of an outage under load until each kind of request is answered again."""
    async with loaded(url, ASK, pace=20) as load:
        await asyncio.sleep(before)
        await asyncio.to_thread(outage)
        back = time.monotonic()
        await asyncio.sleep(after)
    return load.first_success_after(back)


def test_a_restart_under_load(postgres: Postgres, name: str, tmp_path: Path) -> None:
    """After a restart of a moment, every kind of request is answered within two seconds."""

    def restart() -> None:
        postgres.stop()
        postgres.start()

    with serving(tmp_path, database_url=postgres.url(name)) as service:
        with service.client() as client:
            begin(client)
        for _ in range(2):
            back = asyncio.run(through(service.url, restart))
            assert max(back.values()) < BACK_WITHIN, back


def test_an_outage_of_seconds(postgres: Postgres, name: str, tmp_path: Path) -> None:
    """A crash, and eight seconds without a server, cost two seconds after the server is back."""

    def crash() -> None:
        postgres.stop(signal.SIGQUIT)
        time.sleep(8)
        postgres.start()

    with serving(tmp_path, database_url=postgres.url(name)) as service:
        with service.client() as client:
            begin(client)
        back = asyncio.run(through(service.url, crash))
    assert max(back.values()) < BACK_WITHIN, back


def test_a_database_that_comes_up_after_the_service(postgres: Postgres, name: str, tmp_path: Path) -> None:
    """Probes of readiness do not keep the service from being ready."""
    postgres.stop()
    with serving(tmp_path, database_url=postgres.url(name)) as service, service.client() as client:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            assert client.get("/readyz").status_code == 503
            time.sleep(0.1)
        postgres.start()
        came_up = time.monotonic()
        until(lambda: client.get("/readyz").status_code == 200, "it is ready")
        assert client.get("/v1/state-counts").status_code == 200
        assert time.monotonic() - came_up < BACK_WITHIN


def test_a_failover_behind_a_balancer(tmp_path: Path) -> None:
    """The primary dies, its replica is promoted eight seconds later: all goes on within two seconds."""
    with servers_folder() as folder:
        primary = Postgres.new(folder)
        try:
            primary.sql("CREATE DATABASE pqs")
            assert pqs("migrate", database_url=primary.url("pqs")).returncode == 0
            replica = primary.replica(synchronous=True)
            try:
                _fail_over(tmp_path, folder, primary, replica)
            finally:
                replica.stop()
        finally:
            primary.stop()


def _fail_over(tmp_path: Path, folder: Path, primary: Postgres, replica: Postgres) -> None:
    with haproxy(folder, primary, replica) as port:

        def fail_over() -> None:
            primary.stop(signal.SIGQUIT)
            time.sleep(8)
            replica.promote()

        with serving(tmp_path, database_url=primary.url("pqs", port=port)) as service, service.client() as client:
            begin(client)
            back = asyncio.run(through(service.url, fail_over))
            assert max(back.values()) < BACK_WITHIN, back
            assert client.get(f"/v1/entities/{NODE}").status_code == 200


def test_read_only_and_back(postgres: Postgres, name: str, tmp_path: Path) -> None:
    """While the database takes no writes `/readyz` says so and reads go on; it is back as soon as it takes them."""
    with serving(tmp_path, database_url=postgres.url(name)) as service, service.client() as client:
        begin(client)
        postgres.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        postgres.sql(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )  # as a failover does
        until(lambda: "read-only" in client.get("/readyz").text, "it says so")
        refused = client.post("/v1/events", json=event_json("node.heartbeat", next(_sequence)))
        assert (refused.status_code, "read-only" in refused.text) == (503, True)
        assert client.get(f"/v1/entities/{NODE}").status_code == 200
        postgres.sql(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        writable = time.monotonic()
        sent = event_json("node.heartbeat", next(_sequence))
        until(lambda: client.post("/v1/events", json=sent).status_code == 200, "it writes again")
        until(lambda: client.get("/readyz").status_code == 200, "it is ready again")
        assert time.monotonic() - writable < BACK_WITHIN


def test_a_limit_of_connections(postgres: Postgres, name: str, tmp_path: Path) -> None:
    """With fewer connections than clients, all are answered, and the breaker stays closed."""
    role = f"few_{name}"
    postgres.sql(f"CREATE ROLE {role} LOGIN SUPERUSER")  # to be let in by the template's rights
    postgres.sql(f"ALTER ROLE {role} NOSUPERUSER CONNECTION LIMIT 3")
    postgres.sql(
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}",
        name,
    )
    try:
        with serving(tmp_path, database_url=postgres.url(name, role=role)) as service:
            statuses = asyncio.run(_from_sixteen(service.url))
            with service.client() as client:
                assert client.get("/readyz").status_code == 200
                told = client.get("/metrics").text
        assert statuses == {200}
        assert 'pqs_breaker_open{database="primary"} 0.0' in told
    finally:
        postgres.sql(f"DROP OWNED BY {role}", name)
        postgres.sql(f"DROP ROLE {role}")


async def _from_sixteen(url: str) -> set[int]:
    """The statuses that sixteen clients see, who read and write at once."""

    async def one(client: httpx.AsyncClient, number: int) -> set[int]:
        found = set()
        for sequence in range(1, 11):
            sent = event_json("registration.initiated" if sequence == 1 else "node.heartbeat", sequence)
            sent["entity_id"] = str(node(number))
            arrays = await client.post("/v1/events", json=[sent])
            counted = await client.get("/v1/state-counts")
            entity = await client.get(f"/v1/entities/{node(number)}")
            found |= {arrays.status_code, counted.status_code, entity.status_code}
        return found

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        return set().union(*await asyncio.gather(*(one(client, number) for number in range(16))))
