"""Traces of a whole service, as a real OTLP receiver has them: by the real exporter, over HTTP."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from uuid import uuid4

import asyncpg
import httpx
import pytest
from confluent_kafka import Producer

from app import main
from app.concurrency.worker import working
from app.parts import Parts
from app.runtime.log import CorrelationFilter
from app.settings import read_settings
from app.wire.envelopes import Envelope
from tests.broker import Broker, read_topic
from tests.consul import consul
from tests.making import Json, event_json, life, node
from tests.otlp import ReceivedSpan, Receiver, receiver

CALLER, TRACE = "00f067aa0ba902b7", "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-00"}


@pytest.fixture
def otlp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver, which the environment names; nothing is sampled but what a caller asks for."""
    with receiver() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield found


@pytest.fixture
async def traced(otlp: Receiver, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that sends its spans to the receiver."""
    app = main.create_app(read_settings({"database_url": database_url, "pool_size": 4}))
    async with app.router.lifespan_context(app):
        yield httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def named(otlp: Receiver, name: str, number: int = 1) -> list[ReceivedSpan]:
    """The spans of this name, as soon as there are so many."""
    return await asyncio.to_thread(otlp.named, name, number)


async def test_a_read_has_its_wait_batch_and_statement(traced: httpx.AsyncClient, otlp: Receiver) -> None:
    """A sampled hot call is a server span below the caller's, with what it waited for below it."""
    await traced.post("/v1/events", json=life()[0])
    await traced.get(f"/v1/entities/{node(9)}", headers=SAMPLED)
    [server] = await named(otlp, "GET /v1/entities/{entity_id}")
    assert (server.kind, server.trace_id, server.parent_id, server.service) == ("server", TRACE, CALLER, "pqs")
    assert server.attributes == {
        "http.request.method": "GET",
        "url.path": f"/v1/entities/{node(9)}",
        "http.route": "/v1/entities/{entity_id}",
        "http.response.status_code": 404,
    }
    wait, batch = otlp.below(server)
    assert (wait.name, batch.name) == ("wait", "batch reads")
    assert batch.attributes == {"pqs.batch.size": 1, "pqs.batch.sampled": 1}
    [statement] = otlp.below(batch)
    assert (statement.name, statement.kind) == ("get_entity_states", "client")
    assert statement.attributes["db.client.connection.pool.name"] == "primary"
    assert server.began <= wait.began <= wait.ended <= batch.began <= statement.began
    assert statement.ended <= batch.ended <= server.ended
    assert otlp.paths == {"/v1/traces"}
    assert len(otlp.spans) == 4  # nothing of the event, which nobody sampled


async def test_a_batch_is_linked_to_what_it_joined(traced: httpx.AsyncClient, otlp: Receiver) -> None:
    """Of the sampled requests of a batch one has the batch; the waits of the others link to it, and it to them."""
    traces = [f"{number:032x}" for number in range(1, 9)]
    await asyncio.gather(
        *(
            traced.get(f"/v1/entities/{node(1)}", headers={"traceparent": f"00-{trace}-{CALLER}-01"})
            for trace in traces
        ),
        *(traced.get(f"/v1/entities/{node(1)}", headers=UNSAMPLED) for _ in range(8)),
    )
    servers = await named(otlp, "GET /v1/entities/{entity_id}", 8)
    assert sorted(span.trace_id for span in servers) == traces
    batches = [span for span in otlp.spans if span.name == "batch reads"]
    assert sum(int(span.attributes["pqs.batch.sampled"]) for span in batches) == 8
    assert sum(int(span.attributes["pqs.batch.size"]) for span in batches) >= 8
    of_servers = {(span.trace_id, span.span_id) for span in servers}
    linked = {link for span in batches for link in span.links}
    owners = {(span.trace_id, span.parent_id) for span in batches}
    assert linked | owners == of_servers
    assert not linked & owners
    waits = [span for span in otlp.spans if span.name == "wait"]
    assert len(waits) == 8
    of_batches = {(span.trace_id, span.span_id) for span in batches}
    assert {link for span in waits for link in span.links} <= of_batches
    assert sum(bool(span.links) for span in waits) == len(linked)


async def test_other_calls_have_their_statements(traced: httpx.AsyncClient, otlp: Receiver) -> None:
    """A call that joins nobody has its statements right below it; one that fails says so."""
    await traced.get("/v1/state-counts", headers=SAMPLED)
    [server] = await named(otlp, "GET /v1/state-counts")
    assert [span.name for span in otlp.below(server)] == ["count_by_state"]
    await traced.put(
        "/v1/workflows/a",
        json={"state": {"n": 1}, "provenance": {"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"}},
        headers={**SAMPLED, "If-None-Match": "*"},
    )
    [server] = await named(otlp, "PUT /v1/workflows/{workflow_key}")
    assert "batch commits" in [span.name for span in otlp.below(server)]
    assert not server.failed


async def test_the_share_and_the_limit(otlp: Receiver, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a caller's decision the share decides; there are no more traces a second than the limit."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "1")
    app = main.create_app(read_settings({"database_url": database_url, "pool_size": 4, "trace_limit": 3}))
    async with app.router.lifespan_context(app):
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
        await asyncio.sleep(1.1)  # what the start has used of a second
        for _ in range(10):
            await client.get(f"/v1/entities/{node(1)}")
        await client.get(f"/v1/entities/{node(1)}", headers=UNSAMPLED)
    found = await named(otlp, "GET /v1/entities/{entity_id}", 3)
    assert 3 <= len(found) <= 6
    assert all(span.parent_id == "" for span in found)
    assert TRACE not in {span.trace_id for span in otlp.spans}


async def test_a_log_line_has_the_ids_of_its_span(
    traced: httpx.AsyncClient, otlp: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The line about a sampled request, and every other one while it runs, have its trace and span id."""
    caplog.handler.addFilter(CorrelationFilter(lambda: None))
    with caplog.at_level(logging.INFO):
        await traced.get("/v1/state-counts", headers=SAMPLED)
    [server] = await named(otlp, "GET /v1/state-counts")
    [line] = [record.__dict__ for record in caplog.records if record.name == "app.access"]
    assert (line["trace_id"], line["span_id"]) == (TRACE, server.span_id)


def introspected(number: int) -> Json:
    """The trigger that registers a node."""
    return event_json("node.introspected", 1, entity_id=node(number), data={"node_type": "compute"})


def parts_of(database_url: str, **given: object) -> Parts:
    """The parts of a worker."""
    return Parts(read_settings({"database_url": database_url, **given}), database_url)


async def test_context_goes_with_each_message(otlp: Receiver, database_url: str, kafka: Broker) -> None:
    """What follows from a sampled event carries its context: as an extension, as a header of Kafka, and to Consul.

    A consumer of the message goes on with the same trace.
    """
    topic, back = f"out-{uuid4().hex[:8]}", f"in-{uuid4().hex[:8]}"
    kafka.create_topic(topic)
    kafka.create_topic(back)
    with consul() as agent:
        settings: Json = {
            "database_url": database_url,
            "pool_size": 4,
            "kafka": kafka.servers,
            "topic_out": topic,
            "consul_url": agent.url,
        }
        app = main.create_app(read_settings(settings))
        async with app.router.lifespan_context(app):
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
            await client.post("/v1/events", json=introspected(1), headers=SAMPLED)
            await client.post("/v1/events", json=introspected(2), headers=UNSAMPLED)
            sent = await named(otlp, f"send {topic}", 3)  # the events that follow
            [call] = await named(otlp, "PUT agent/service/register")
            messages = await asyncio.to_thread(read_topic, kafka, topic, 6)
    [server] = await named(otlp, "POST /v1/events")
    by_id = {span.span_id: span for span in otlp.spans}
    for span, name in (*((each, f"relay topic:{topic}") for each in sent), (call, "relay effect:consul")):
        relay = by_id[span.parent_id]
        assert (relay.name, relay.parent_id, relay.trace_id) == (name, server.span_id, TRACE)
    assert {span.kind for span in sent} == {"producer"}
    assert call.kind == "client"
    one = [message for message in messages if Envelope.from_json(message.value).subject == node(1)]
    two = [message for message in messages if message not in one]
    assert {message.headers["traceparent"] for message in one} == {
        f"00-{TRACE}-{span.span_id}-01".encode() for span in sent
    }
    for message in one:
        assert json.loads(message.value)["traceparent"] == f"00-{TRACE}-{server.span_id}-01"
    for message in two:
        assert "traceparent" not in json.loads(message.value)
        assert "traceparent" not in message.headers

    producer = Producer({"bootstrap.servers": kafka.servers})
    contexts: list[dict[str, str | bytes | None]] = [{"traceparent": one[0].headers["traceparent"]}, {}]
    for number, headers in enumerate(contexts, 3):
        event = event_json("registration.initiated", 1, entity_id=node(number))
        del event["position"]
        producer.produce(back, json.dumps(event).encode(), str(node(number)).encode(), headers=headers)
    assert producer.flush(20) == 0
    async with (
        parts_of(database_url, kafka=kafka.servers, topics_in=back, topic_out=topic) as parts,
        working(parts.consumer()),
    ):
        [taken] = await named(otlp, f"process {back}")
    assert (taken.kind, taken.trace_id) == ("consumer", TRACE)
    assert taken.parent_id in {span.span_id for span in sent}
    [batch] = otlp.below(taken)
    assert batch.name == "batch messages"
    assert "attempt_chosen" in [span.name for span in otlp.below(batch)]


async def test_a_sweep_has_its_spans(otlp: Receiver, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of the sweep that turned deadlines into events is a trace, which its messages carry."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "1")
    async with parts_of(database_url, bus="memory") as parts:
        connection = await asyncpg.connect(database_url)
        app = main.create_app(read_settings({"database_url": database_url, "relay": False, "bus": "memory"}))
        async with app.router.lifespan_context(app):
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
            await client.post("/v1/events", json=life(), headers=UNSAMPLED)
        async with working(parts.sweep()):
            [swept] = await named(otlp, "sweep liveness")
        envelopes = [row["envelope"] for row in await connection.fetch("SELECT envelope FROM outbox")]
        await connection.close()
    assert swept.attributes["pqs.sweep.expired"] == 1
    assert {span.name for span in otlp.below(swept)} >= {"get_passed", "expire_unchanged"}
    assert json.loads(envelopes[-1])["traceparent"].startswith(f"00-{swept.trace_id}-{swept.span_id}")


async def test_without_an_endpoint_nothing_is_imported(database_url: str) -> None:
    """Without the variable a process loads nothing of OpenTelemetry's SDK, and has no tracer."""
    program = (
        "import asyncio, sys\n"
        "from app.parts import Parts\n"
        "from app.settings import read_settings\n"
        "async def work():\n"
        f"    async with Parts(read_settings({{'database_url': {database_url!r}}}), {database_url!r}) as parts:\n"
        "        await parts.service()\n"
        "        assert parts._metrics.tracer is None\n"
        "asyncio.run(work())\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), timedelta(seconds=60).total_seconds())
    assert (process.returncode, output.decode()) == (0, "[]\n"), errors.decode()
