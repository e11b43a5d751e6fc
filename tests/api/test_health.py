"""Liveness, readiness and metrics."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from time import monotonic

import asyncpg
import httpx
import pytest

from app.concurrency.breaker import FAILURES
from app.domain.results import Outcome
from app.store import dead_letters, watermarks
from app.store.database import Connection, Database
from app.store.dead_letters import Letter
from app.store.schema import HEAD, REVISIONS
from app.store.watermarks import NOTHING_READ, Advance, FoundPartition
from tests.api.conftest import service_on
from tests.consul import consul
from tests.inbound.test_holding import Log, poisoned
from tests.making import NODE, Json, event_json, life, node

READS = [
    f"/v1/entities/{NODE}",
    f"/v1/entities/{NODE}/state",
    "/v1/entities",
    "/v1/state-counts",
    "/v1/overdue/ack",
    "/v1/overdue/liveness",
]


PATIENCE = 60.0  # seconds; only a test that fails waits that long


async def set_revision(url: str, revision: str | None) -> None:
    """Set the revision that a database reports."""
    connection = await asyncpg.connect(url)
    await connection.execute("DELETE FROM alembic_version")
    if revision is not None:
        await connection.execute("INSERT INTO alembic_version VALUES ($1)", revision)
    await connection.close()


async def test_a_process_that_is_up_is_alive(shared: httpx.AsyncClient) -> None:
    """`/livez` answers 200 while the process runs."""
    answer = await shared.get("/livez")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


async def test_a_service_with_its_schema_is_ready(shared: httpx.AsyncClient) -> None:
    """`/readyz` names the revision of the database."""
    answer = await shared.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "revision": HEAD})


async def refusal(client: httpx.AsyncClient, path: str = "/readyz") -> str:
    """The detail of a 503 from `/readyz`; also checks its `Retry-After`."""
    answer = await client.get(path)
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert list(answer.json()) == ["type", "title", "status", "detail", "instance"]
    assert int(answer.headers["retry-after"]) >= 1
    return str(answer.json()["detail"])


async def test_a_database_without_a_schema_is_not_ready(empty_database_url: str) -> None:
    """An unmigrated database is a 503 that names each missing revision and the command that applies them."""
    async with service_on(empty_database_url) as client:
        detail = await refusal(client)
    assert all(revision in detail for revision in REVISIONS)
    assert "pqs migrate" in detail


async def test_a_database_that_is_behind_is_not_ready(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database at an older revision is a 503 that names exactly the missing revisions."""
    known = (*REVISIONS, "9998", "9999")
    monkeypatch.setattr("app.store.schema.REVISIONS", known)
    monkeypatch.setattr("app.store.schema.HEAD", "9999")
    async with service_on(database_url) as client:
        detail = await refusal(client)
    assert f"at revision {REVISIONS[-1]}; missing: 9998, 9999;" in detail


async def test_a_database_that_is_ahead_is_not_ready(database_url: str) -> None:
    """A database at a revision unknown to the code is a 503 that names both revisions."""
    await set_revision(database_url, "9999")
    async with service_on(database_url) as client:
        detail = await refusal(client)
    assert "9999" in detail
    assert HEAD in detail


async def test_a_migration_that_did_not_end_is_not_ready(database_url: str) -> None:
    """A database that reports no revision is a 503 that names all revisions as missing."""
    await set_revision(database_url, None)
    async with service_on(database_url) as client:
        assert HEAD in await refusal(client)


async def test_a_database_that_is_down_is_not_ready(unreachable_url: str) -> None:
    """A database that does not answer is a 503; its address is in the log and not in the answer."""
    async with service_on(unreachable_url) as client:
        detail = await refusal(client)
    assert "nobody" not in detail
    assert "127.0.0.1" not in detail


@pytest.mark.parametrize("path", READS)
async def test_reads_of_an_unmigrated_database_are_503(empty_database_url: str, path: str) -> None:
    """A read that finds no tables is a 503 that points to `/readyz`, not a 500."""
    async with service_on(empty_database_url) as client:
        assert "/readyz" in await refusal(client, path)


async def test_writes_to_an_unmigrated_database_are_503(empty_database_url: str) -> None:
    """Events for a database without tables get a 503."""
    async with service_on(empty_database_url) as client:
        answer = await client.post("/v1/events", json=life())
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)


async def test_an_unmigrated_database_does_not_open_the_breaker(empty_database_url: str) -> None:
    """A missing schema does not open the breaker, so the service notices a migration at once."""
    async with service_on(empty_database_url) as client:
        for _ in range(FAILURES + 1):
            assert "does not answer" not in await refusal(client, "/v1/state-counts")
        assert 'pqs_breaker_open{database="scans"} 0.0' in (await client.get("/metrics")).text.splitlines()


async def test_a_process_is_alive_whatever_its_database_does(unreachable_url: str) -> None:
    """`/livez` and `/metrics` answer without the database, even while the breaker is open."""
    async with service_on(unreachable_url) as client:
        for _ in range(FAILURES + 1):
            await client.get("/v1/state-counts")
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200


# --- Metrics -------------------------------------------------------------------------------------------------------


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """Each metric series and its value."""
    lines = (await client.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


async def test_metrics_are_prometheus_text(shared: httpx.AsyncClient) -> None:
    """`/metrics` is in Prometheus' text format, each metric with its help and type."""
    answer = await shared.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    named = {line.split()[2] for line in answer.text.splitlines() if line.startswith("# TYPE")}
    assert {
        "http_server_request_duration_seconds",
        "db_client_operation_duration_seconds",
        "pqs_events_total",
        "pqs_build_info",
    } <= named


async def test_requests_are_counted_by_route(client: httpx.AsyncClient) -> None:
    """Labels are the templates of paths, never text that a client chose."""
    for path in (f"/v1/entities/{NODE}", f"/v1/entities/{node(1)}", "/v1/entities/x", "/v1/nodes", "/v1/nodes/2"):
        await client.get(path)
    await client.request("BREW", "/v1/state-counts")
    counted = await metrics(client)
    assert (
        counted[
            'http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="404",http_route="/v1/entities/{entity_id}"}'
        ]
        == 2
    )
    assert (
        counted[
            'http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="422",http_route="/v1/entities/{entity_id}"}'
        ]
        == 1
    )
    assert (
        counted[
            'http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="404",http_route="unknown"}'
        ]
        == 2
    )
    assert (
        counted[
            'http_server_request_duration_seconds_count{http_request_method="other",http_response_status_code="405",http_route="/v1/state-counts"}'
        ]
        == 1
    )
    assert not [name for name in counted if str(NODE) in name or "nodes" in name]


async def test_events_are_counted_by_outcome(client: httpx.AsyncClient) -> None:
    """Events of objects, arrays and lines are counted by outcome; refused arrays and dry runs are not counted."""
    early = event_json("node.heartbeat", 9, position={"sequence": 9, "previous": 8})
    await client.post("/v1/events", json=life()[0])
    await client.post("/v1/events", json=life())
    await client.post("/v1/events", json=early)
    await client.post("/v1/events", json=event_json("node.heartbeat", 5))
    await client.post("/v1/events", json=event_json("node.heartbeat", 5, entity_id=node(1)))
    await client.post("/v1/events?dry_run=true", json=life())
    await client.post("/v1/events", json=[life()[0], 1])
    lines = b"nonsense\n\n" + httpx.Request("POST", "http://localhost", json=life()[4]).content
    await client.post("/v1/events", content=lines, headers={"Content-Type": "application/x-ndjson"})
    counted = await metrics(client)
    outcomes = dict.fromkeys((*Outcome, "invalid"), 0.0)
    for name, count in counted.items():
        if found := re.fullmatch(r'pqs_events_total\{outcome="(\w+)",source="http",type="[\w.]+"\}', name):
            outcomes[found[1]] += count
    assert outcomes == {
        "applied": 5,
        "ignored": 1,
        "duplicate": 2,
        "stale": 0,
        "early": 1,
        "conflict": 1,
        "invalid": 1,
    }


async def test_no_series_says_when_it_was_made(shared: httpx.AsyncClient) -> None:
    """There is no series that ends in `_created`."""
    await shared.get("/v1/state-counts")
    assert [name for name in await metrics(shared) if name.partition("{")[0].endswith("_created")] == []


async def test_entities_and_overdue_deadlines_are_gauges(client: httpx.AsyncClient) -> None:
    """Entities are counted by domain and state; the oldest deadline that has passed says by how many seconds."""
    assert (await metrics(client))['pqs_overdue_oldest_seconds{kind="ack"}'] == 0
    long_ago = event_json("registration.accepted", 2, data={"ack_deadline": "2026-01-01T00:00:30Z"})
    await client.post("/v1/events", json=[event_json("registration.initiated", 1), long_ago])
    told = await metrics(client)
    assert told['pqs_entities{domain="registration",state="accepted"}'] == 1
    since = (datetime.now(UTC) - datetime(2026, 1, 1, 0, 0, 30, tzinfo=UTC)).total_seconds()
    assert told['pqs_overdue_oldest_seconds{kind="ack"}'] == pytest.approx(since, abs=60)
    assert told['pqs_overdue_oldest_seconds{kind="liveness"}'] == 0


async def test_work_on_the_database_is_timed_by_name_and_pool(client: httpx.AsyncClient) -> None:
    """Each piece of work has a series by its name and pool, and so have batches and lanes."""
    await client.post("/v1/events", json=event_json("registration.initiated", 1))
    await client.get(f"/v1/entities/{NODE}")
    await client.get("/v1/state-counts")
    told = await metrics(client)
    series = (
        'db_client_operation_duration_seconds_count{{db_client_connection_pool_name="{}",db_operation_name="{}"}}'
    )
    assert told[series.format("primary", "get_entity_states")] == 1
    assert told[series.format("joined", "attempt")] == 1
    assert told[series.format("scans", "count_by_state")] == 1
    assert told['pqs_lane_batch_size_count{lane="events"}'] == 1
    assert told['pqs_event_batch_size_sum{source="http"}'] == 1


async def test_a_process_tells_of_itself(client: httpx.AsyncClient) -> None:
    """Memory, descriptors, the event loop's delay, pools, and what was built."""
    told = await metrics(client)
    assert told["pqs_memory_bytes"] > 10_000_000
    assert 3 < told["pqs_open_descriptors"] < told["pqs_max_descriptors"]
    assert told['pqs_ready{database="primary"}'] == 1
    assert 0 <= told["pqs_loop_lag_seconds"] < 60
    assert told['pqs_pool_size{pool="primary"}'] >= 0
    assert [value for name, value in told.items() if name.startswith("pqs_build_info")] == [1]


async def test_an_opening_is_counted_when_it_happens(unreachable_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A breaker that opens says so in the log, and is counted, once."""
    async with service_on(unreachable_url) as client:
        for _ in range(FAILURES + 2):
            await client.get("/v1/state-counts")
        assert (await metrics(client))['pqs_breaker_openings_total{database="scans"}'] == 1
    opened = [record for record in caplog.records if getattr(record, "event", None) == "breaker.opened"]
    assert len(opened) == 1


async def test_the_breaker_is_a_gauge(unreachable_url: str) -> None:
    """The gauge of a database's breaker is 0 until the breaker opens, and 1 from then on."""
    async with service_on(unreachable_url) as client:
        before = await metrics(client)
        for _ in range(FAILURES):
            await client.get("/v1/state-counts")
        after = await metrics(client)
    names = ['pqs_breaker_open{database="primary"}', 'pqs_breaker_open{database="scans"}']
    assert [before[name] for name in names] == [0, 0]
    assert [after[name] for name in names] == [0, 1]


async def test_consuls_breaker_is_a_gauge(database_url: str) -> None:
    """Where the service speaks to Consul, Consul's breaker is a gauge too: 1 after repeated failures."""
    name = 'pqs_breaker_open{database="consul"}'
    with consul() as agent:
        agent.answers = [503] * 1000
        async with service_on(database_url, consul_url=agent.url) as client:
            assert (await metrics(client))[name] == 0
            nodes = [event_json("node.introspected", 1, entity_id=node(number)) for number in range(FAILURES)]
            assert (await client.post("/v1/events", json=nodes)).status_code == 200
            async with asyncio.timeout(PATIENCE):
                while (await metrics(client))[name] == 0:  # noqa: ASYNC110 - it opens in the relay's own time
                    await asyncio.sleep(0.02)


@pytest.mark.parametrize("given", [{}, {"consul_url": "http://127.0.0.1:1", "relay": False}])
async def test_without_consul_its_breaker_is_no_gauge(database_url: str, given: Json) -> None:
    """If Consul is off, or another process speaks to it, the service reports no breaker of Consul."""
    async with service_on(database_url, **given) as client:
        assert [name for name in await metrics(client) if "consul" in name and "breaker" in name] == []


async def test_partitions_and_dead_letters_are_gauges(client: httpx.AsyncClient, database: Database) -> None:
    """A partition reports its lag in seconds; a partition without a known time reports none."""
    assert (await metrics(client))["pqs_dead_letters"] == 0
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)

    async def work(connection: Connection) -> None:
        advances = [
            Advance(topic="nodes", partition=0, expected=NOTHING_READ, offset=4, message_at=an_hour_ago),
            Advance(
                topic="nodes",
                partition=1,
                expected=NOTHING_READ,
                offset=4,
                message_at=an_hour_ago,
                caught_up=monotonic(),
            ),
            Advance(topic="nodes", partition=2, expected=NOTHING_READ, offset=4),
        ]
        found = [FoundPartition(each.topic, each.partition) for each in advances]
        await watermarks.find(connection, [*found, FoundPartition("nodes", 3), FoundPartition("nodes", 4)], "me")
        await watermarks.advance(connection, advances, "me")
        await dead_letters.add(
            connection, [Letter(topic="nodes", key=None, value=None, headers=[], error="") for _ in range(3)]
        )

    await database.write(work)
    told = await metrics(client)
    ages = [told.get(f'pqs_watermark_age_seconds{{partition="{each}",topic="nodes"}}') for each in range(3)]
    assert ages[0] is not None
    assert ages[1] is not None
    assert ages[0] >= 3600 > ages[1] >= 0
    assert ages[2] is None
    assert told['pqs_partitions_unread{topic="nodes"}'] == 2
    assert (told["pqs_dead_letters"], told["pqs_held_entities"]) == (3, 0)
    await Log(database).take(poisoned(event_json("registration.initiated", 1)))
    assert (await metrics(client))["pqs_held_entities"] == 1


async def test_a_database_that_is_down_takes_its_own_gauges_alone(unreachable_url: str) -> None:
    """Without its database a process reports its own counts, and leaves out the gauges read from the database."""
    async with service_on(unreachable_url) as client:
        told = await metrics(client)
    assert 'pqs_breaker_open{database="primary"}' in told
    assert told['pqs_ready{database="primary"}'] == 0
    assert [
        name for name in told if name.startswith(("pqs_outbox", "pqs_watermark", "pqs_dead_letters", "pqs_held"))
    ] == []


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
@pytest.mark.parametrize("query", ["verbose=1", "x=1&x=2", "x="])
async def test_parameters_are_ignored(shared: httpx.AsyncClient, path: str, query: str) -> None:
    """Health and metrics calls ignore all parameters, whatever a prober adds."""
    assert (await shared.get(f"{path}?{query}")).status_code == 200
