"""Rules and dashboard against a real Prometheus that scrapes a live service."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from app.store import watermarks
from app.store.database import Connection, Database
from app.store.watermarks import NOTHING_READ, Advance, FoundPartition
from tests.databases import new_database
from tests.edge.programs import free_port, program
from tests.making import NODE, event_json, life, node
from tests.ops.expressions import alerts, families, in_reference, panels
from tests.processes import PATIENCE, Service, serving, until

EVERY = "2s"  # between two scrapes
SCRAPES = 3
SCRAPED = 'sum_over_time(up{job="pqs"}[1h])'
PROVENANCE = {"effect_id": "test", "timestamp": "2026-01-01T00:00:00Z"}

# The metrics that have no series in a healthy service without a replica. The exposition names them all the same.
NO_SERIES = {
    "pqs_database_errors_total": "nothing fails",
    "pqs_pool_timeouts_total": "no call waits for a connection in vain",
    "pqs_write_retries_total": "no batch begins again",
    "pqs_replica_lag_seconds": "there is no replica",
}


class Prometheus:
    """A running Prometheus."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def is_ready(self) -> bool:
        """Whether it answers queries."""
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series that an expression has now. Fails if Prometheus cannot parse or evaluate it."""
        answer = self._client.get("/api/v1/query", params={"query": expr}).json()
        assert answer["status"] == "success", (expr, answer)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """A Prometheus that scrapes one target as the job `pqs`."""
    path, port = program("prometheus"), free_port()
    scrape = {"job_name": "pqs", "static_configs": [{"targets": [target], "labels": {"role": "serve"}}]}
    configuration = folder / "prometheus.yml"
    configuration.write_text(json.dumps({"global": {"scrape_interval": EVERY}, "scrape_configs": [scrape]}))
    command = [
        path,
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = folder / "prometheus.log"
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client,
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output) as process,
    ):
        try:
            server = Prometheus(client)
            until(lambda: server.is_ready() or process.poll() is not None, "Prometheus is ready")
            assert process.poll() is None, log.read_text()
            yield server
        finally:
            process.terminate()


async def have_a_watermark(url: str) -> None:
    """Write the watermark of a partition, as a consumer does."""
    database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=5))
    a_second_ago = datetime.now(UTC) - timedelta(seconds=1)

    async def work(connection: Connection) -> None:
        await watermarks.find(connection, [FoundPartition("nodes", 0)], "test")
        place = Advance(topic="nodes", partition=0, expected=NOTHING_READ, offset=4, message_at=a_second_ago)
        await watermarks.advance(connection, [place], "test")

    try:
        await database.write(work)
    finally:
        await database.close()


def traffic(client: httpx.Client, number: int) -> None:
    """A call of each kind."""
    client.post("/v1/events", json=event_json("node.introspected", 1, entity_id=node(number)))
    client.post("/v1/events", json=life())
    client.post("/v1/events", json={"type": "nonsense"})
    client.post("/v1/entities/lookup", json={"entity_ids": [str(NODE)]})
    commit = {"state": {"number": number}, "provenance": PROVENANCE}
    client.put(f"/v1/workflows/test-{number}", json=commit, headers={"If-None-Match": "*"})
    for path in (f"/v1/entities/{NODE}", "/v1/entities", "/v1/state-counts", "/v1/overdue/ack", "/v1/nothing"):
        client.get(path)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Prometheus]]:
    """A service with sweep, relay and two workers that has traffic, and a Prometheus that has scraped it."""
    program("prometheus")
    folder = tmp_path_factory.mktemp("scraped")
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(new_database()) as url:
        portal.call(have_a_watermark, url)
        with (
            serving(folder, database_url=url, log_level="error", workers=2, sweep=True, bus="memory") as service,
            prometheus(folder, service.url.removeprefix("http://")) as server,
            service.client() as client,
        ):
            numbers = iter(range(10_000))

            def is_scraped() -> bool:
                traffic(client, next(numbers))
                found = server.query(SCRAPED)
                return bool(found) and int(found[0]["value"][1]) >= SCRAPES and bool(server.query("pqs_swept_total"))

            until(is_scraped, "Prometheus has scraped the service", poll=0.3)
            yield service, server


@pytest.mark.parametrize("expr", [alert["expr"] for alert in alerts()], ids=[alert["alert"] for alert in alerts()])
def test_prometheus_evaluates_each_rule(scraped: tuple[Service, Prometheus], expr: str) -> None:
    """Each rule's expression can be evaluated over what a service exposes, and none says that the service is down."""
    found = scraped[1].query(expr)
    assert found == [] or not expr.startswith(("up", "pqs_ready"))


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel.title)
def test_each_expression_of_the_dashboard_has_series(scraped: tuple[Service, Prometheus], panel: Any) -> None:
    """Each expression returns series, except those over metrics that a healthy service has none of."""
    found = scraped[1].query(panel.expr)
    assert found if families(panel.expr).isdisjoint(NO_SERIES) else not found, panel.expr


def test_each_metric_of_the_reference_is_exposed_and_no_other(scraped: tuple[Service, Prometheus]) -> None:
    """A live service's metrics and the metrics of the reference are the same."""
    with scraped[0].client() as client:
        text = client.get("/metrics").text
    exposed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    of_workers = {name for name in in_reference() if name.startswith("pqs_consumer_")}  # `pqs consume` has them
    assert exposed | set(NO_SERIES) == in_reference() - of_workers


def test_no_metric_is_on_the_list_without_need() -> None:
    """The list of metrics without series names metrics of the reference that the dashboard shows."""
    assert set(NO_SERIES) <= set().union(*(families(panel.expr) for panel in panels()))
    assert set(NO_SERIES) <= in_reference()
