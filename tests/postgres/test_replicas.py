"""Reads from a replica that lags or is down: the lag is measured and reported, and the primary answers if so set."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from tests.making import event_json, node
from tests.postgres.servers import Postgres, servers_folder
from tests.processes import pqs, serving, until

OVERDUE = "/v1/overdue/liveness"
ROLE = "service"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Postgres, Postgres]]:
    """A primary and its replica, with a migrated database and a role that has only its rights."""
    with servers_folder() as folder:
        primary = Postgres.new(folder)
        try:
            primary.sql("CREATE DATABASE pqs")
            primary.sql(f"CREATE ROLE {ROLE} LOGIN")
            assert pqs("migrate", database_url=primary.url("pqs")).returncode == 0
            primary.sql(
                f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}; "
                f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {ROLE}",
                "pqs",
            )
            replica = primary.replica()
            try:
                yield primary, replica
            finally:
                replica.stop()
        finally:
            primary.stop()


def settings(pair: tuple[Postgres, Postgres], **more: object) -> dict[str, object]:
    """The settings of a service with primary and replica."""
    primary, replica = pair
    urls = {"database_url": primary.url("pqs", role=ROLE), "database_read_url": replica.url("pqs", role=ROLE)}
    return urls | more


def lag(client: httpx.Client) -> float | None:
    """The replica's lag in the metrics."""
    lines = client.get("/metrics").text.splitlines()
    found = [float(line.split()[1]) for line in lines if line.startswith("pqs_replica_lag_seconds ")]
    return found[0] if found else None


def is_near(client: httpx.Client) -> bool:
    """Whether the replica is known to be up to date."""
    found = lag(client)
    return found is not None and found < 2


def hold(replica: Postgres, *, back: bool) -> None:
    """Pause or resume the replica's replay."""
    replica.sql(f"SELECT pg_wal_replay_{'pause' if back else 'resume'}()")


def begin(client: httpx.Client, number: int, at: datetime) -> None:
    """Create an active node whose deadline is a minute and a half after `at`."""
    types = ("initiated", "accepted", "ack_requested", "ack_received", "activated")
    for sequence, type_ in enumerate(types, 1):
        sent = event_json(f"registration.{type_}", sequence, entity_id=node(number)) | {"occurred_at": at.isoformat()}
        assert client.post("/v1/events", json=sent).status_code == 200


def overdue_at(client: httpx.Client, at: datetime, number: int) -> bool:
    """Whether a node is listed as overdue."""
    found = client.get(OVERDUE, params={"as_of": at.isoformat(), "limit": 1000}).json()["items"]
    return str(node(number)) in [each["entity_id"] for each in found]


def test_a_live_node_is_not_overdue_on_a_lagging_replica(pair: tuple[Postgres, Postgres], tmp_path: Path) -> None:
    """The primary answers overdue scans; counts come from the replica, with the lag in a header."""
    began = datetime.now(UTC)
    with serving(tmp_path, **settings(pair)) as service, service.client() as client:
        begin(client, 1, began)
        until(lambda: is_near(client), "the lag is measured")
        until(lambda: str(node(1)) in client.get("/v1/entities?limit=1000").text, "the replica has it")
        hold(pair[1], back=True)
        try:
            beat = event_json("node.heartbeat", 6, entity_id=node(1))
            beat["occurred_at"] = (began + timedelta(seconds=80)).isoformat()
            assert client.post("/v1/events", json=beat).status_code == 200
            assert not overdue_at(client, began + timedelta(seconds=100), 1)
            assert "pqs-replica-lag" not in client.get(OVERDUE).headers
            until(lambda: (lag(client) or 0) > 2, "the lag is seen")
            assert float(client.get("/v1/state-counts").headers["pqs-replica-lag"]) > 2
        finally:
            hold(pair[1], back=False)


def test_a_bound_of_the_lag(pair: tuple[Postgres, Postgres], tmp_path: Path) -> None:
    """With a bound, the replica answers overdue scans too, until it lags more; then the primary answers all reads."""
    with serving(tmp_path, **settings(pair, read_max_lag=2)) as service, service.client() as client:
        until(lambda: "pqs-replica-lag" in client.get(OVERDUE).headers, "the replica answers")
        hold(pair[1], back=True)
        try:
            begin(client, 2, datetime.now(UTC))
            total = client.get("/v1/state-counts").json()["total"]
            until(lambda: client.get("/v1/state-counts").json()["total"] == total + 1, "the primary answers")
            answer = client.get("/v1/state-counts")
            assert "pqs-replica-lag" not in answer.headers
        finally:
            hold(pair[1], back=False)
        until(lambda: "pqs-replica-lag" in client.get(OVERDUE).headers, "the replica answers again")


def test_a_replica_that_is_down(pair: tuple[Postgres, Postgres], tmp_path: Path) -> None:
    """If the replica is down the primary answers in its place, and `/readyz` says so."""
    with serving(tmp_path, **settings(pair)) as service, service.client() as client:
        until(lambda: is_near(client), "the lag is measured")
        assert "read_database" not in client.get("/readyz").json()
        pair[1].stop()
        try:
            for _ in range(8):
                for path in (OVERDUE, "/v1/state-counts", "/v1/entities", "/v1/entities?node_type=compute"):
                    assert client.get(path).status_code == 200
            until(lambda: "read_database" in client.get("/readyz").json(), "it says so")
            assert 'pqs_ready{database="replica"} 0.0' in client.get("/metrics").text
            assert client.get("/readyz").status_code == 200
        finally:
            pair[1].start()
        until(lambda: "pqs-replica-lag" in client.get("/v1/state-counts").headers, "the replica answers again")
        until(lambda: "read_database" not in client.get("/readyz").json(), "it says so")
