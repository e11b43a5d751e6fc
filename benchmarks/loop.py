"""The speed of the registration loop: triggers with a bus, input from Kafka, and simultaneous deadlines."""

import asyncio
import sys
import time
from collections.abc import Iterable
from functools import partial

import asyncpg
from confluent_kafka import KafkaError, Message, Producer

from benchmarks import rows as table
from benchmarks.bench import MAIN, Bench
from benchmarks.contenders import serving, start_ours
from benchmarks.load import wrk
from benchmarks.machine import BenchmarkError, Child, Machine
from benchmarks.report import Row, compared
from benchmarks.rows import Event
from benchmarks.throughput import POST_CONNECTIONS, RATE, stream
from tests.broker import Broker, some_broker

PATIENCE = 120.0  # seconds
LOOK = 0.02  # seconds between two checks of progress
ROUNDS = 3
VERSIONS = "SELECT coalesce(sum(version), 0)::bigint FROM registration_projections"

# --- Triggers

NODES = 2_000  # that requests.lua sends triggers for, one after the other
FOLLOWS = (3, 2, 1)  # events that follow from each of a node's triggers, in their order
TRIGGER_ROUNDS = (
    21  # when this part is asked for by name: the two are close, and the machine's own ups and downs large
)

WITH_BUS, WORST_WITH_BUS = 0.85, 0.75  # of the speed without it: of the median round, of the worst one

# --- Kafka in

CONSUMES = 0.85  # of the speed of one NDJSON stream

CONSUMED = "consumed"  # a database of the same size, whose rows stand at the beginning of the topic
TOPIC = "bench-in"
TAKEN_IN = 'SELECT coalesce(sum("offset" + 1), 0)::bigint FROM watermarks'

# --- Deadlines

SWEPT = "swept"  # a database whose rows are all alive, with deadlines that pass within one minute
FEW = 4  # connections
AHEAD = 120  # seconds until the first deadline passes: time to load the table and to measure the phase before
SWEEP_PATIENCE = 1200.0  # seconds
ALL_ALIVE = f"""
INSERT INTO registration_projections (
    entity_id, domain, current_state, node_type, node_version, capabilities, liveness_deadline, last_heartbeat_at,
    last_applied_event_id, last_applied_sequence, registered_at, updated_at, version)
SELECT
    (lpad(to_hex(i * {table.SCATTER} % 4294967296), 8, '0') || '-0000-4000-8000-' || lpad(to_hex(i), 12, '0'))::uuid,
    'registration', 'active', 'compute', '1.0.0', '{{"cpu": 16, "tags": ["rack-7"]}}',
    now() + make_interval(secs => $2::float + random() * 60), now(), gen_random_uuid(), 5, now(), now(), 5
FROM generate_series(0, $1::bigint - 1) AS i
"""
ALIVE = "SELECT count(*) FROM registration_projections WHERE version = 5 AND current_state = 'active'"


def triggers(bench: Bench) -> list[Row]:
    """Introspections, acks and deregistrations, which all publish events, with a bus and without."""
    machine, source = bench.machine, bench.source
    with some_broker() as broker:
        broker.create_topic("registration-events")
        ports: dict[str, int] = {}
        children: list[Child] = []
        try:
            for name, servers in (("on", broker.servers), ("off", "")):
                child, ports[name] = start_ours(machine, MAIN, PQS_KAFKA=servers)
                children.append(child)
                child.answers(ports[name], "/readyz")
                child.rest()

            def send(port: int) -> float:
                before = _number(machine, MAIN, VERSIONS)
                load = wrk(machine, port, "trigger", source, connections=POST_CONNECTIONS, seconds=bench.seconds)
                _drained(machine)
                followed = _number(machine, MAIN, VERSIONS) - before
                if followed < _follows(load.answers - POST_CONNECTIONS):
                    raise BenchmarkError(f"{load.answers} triggers were answered, and {followed} events followed")
                return load.rate

            contenders = {name: partial(send, port) for name, port in ports.items()}
            bench.warm(contenders)
            rounds = TRIGGER_ROUNDS if "triggers" in bench.named and not bench.quick else 0
            measured = bench.turns(contenders, rounds, {"off": WITH_BUS})
        finally:
            for child in children:
                child.stop()
    what = f"POST of a trigger that has something to publish, {POST_CONNECTIONS} connections"
    on, off = measured["on"], measured["off"]
    worst = min(zip(on, off, strict=True), key=lambda turn: turn[0] / turn[1])
    return [
        compared(what, on, "the same without a bus", off, RATE, WITH_BUS),
        Row(
            f"{what}: the worst of {len(on)} rounds",
            "the same without a bus",
            RATE,
            *worst,
            None,
            None,
            WORST_WITH_BUS,
        ),
    ]


def _drained(machine: Machine, database: str = MAIN) -> None:
    """Wait until the relays have sent everything, so that one round does not slow the next."""
    end = time.monotonic() + PATIENCE
    while machine.ask(database, "SELECT EXISTS (SELECT FROM outbox)"):
        if time.monotonic() > end:
            raise BenchmarkError(f"the outbox was not empty after {PATIENCE:.0f} s")
        time.sleep(10 * LOOK)


def _follows(triggers: int) -> int:
    """The number of events that follow from this many triggers, sent node by node."""
    rounds, rest = divmod(triggers, NODES)
    whole, last = divmod(rounds, len(FOLLOWS))
    return NODES * (whole * sum(FOLLOWS) + sum(FOLLOWS[:last])) + rest * FOLLOWS[last]


def consume(bench: Bench) -> list[Row]:
    """One consumer on a full topic, compared with one NDJSON stream of as many such events."""
    machine, source = bench.machine, bench.source
    count = bench.size.stream_events // 2  # the built-in broker keeps 5 MB of a partition
    table.load(machine, CONSUMED, bench.size.rows, bench.as_of, partition=f"{TOPIC}-0")
    with some_broker() as broker, serving(machine, source, MAIN, ["ours"], bench.notes) as ports:
        broker.create_topic(TOPIC, partitions=1)
        consumer = Consumer(machine, broker)

        def ours() -> float:
            return consumer.rate(source.events(count)[0])

        def streamed() -> float:
            return count / stream(ports["ours"], source.events(count), count)

        contenders = {"ours": ours, "streamed": streamed}
        bench.warm(contenders)
        measured = bench.turns(contenders, ROUNDS, {"streamed": CONSUMES})
    what = "Kafka in, one consumer"
    return [compared(what, measured["ours"], "NDJSON ingest, one stream", measured["streamed"], "events/s", CONSUMES)]


class Consumer:
    """`pqs consume` on a topic, run repeatedly: each run continues where the last one ended."""

    def __init__(self, machine: Machine, broker: Broker) -> None:
        self._machine = machine
        self._broker = broker
        self._sent = 0  # messages, in all

    def rate(self, events: Iterable[Event]) -> float:
        """Fill the topic, start a consumer, and measure from its first batch on; every event must be applied."""
        machine = self._machine
        versions = _number(machine, CONSUMED, VERSIONS)
        count = _produce(self._broker, events)
        self._sent += count
        machine.rest(CONSUMED)
        environment = {
            "PQS_DATABASE_URL": machine.url(CONSUMED),
            "PQS_KAFKA": self._broker.servers,
            "PQS_TOPICS_IN": TOPIC,
            "PQS_BUS": "off",  # no messages are sent
            "PQS_LOG_LEVEL": "warning",
        }
        child = machine.spawn("consume", [sys.executable, "-m", "app", "consume"], **environment)
        try:
            rate = asyncio.run(self._timed(self._sent - count))
        finally:
            child.stop()
        applied = _number(machine, CONSUMED, VERSIONS) - versions
        if applied != count:
            raise BenchmarkError(f"{applied} of {count} messages were applied")
        return rate

    async def _timed(self, before: int) -> float:
        """Messages per second, from the first batch seen to the last."""
        connection = await asyncpg.connect(self._machine.url(CONSUMED))
        try:
            first, began = 0, 0.0
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                read = await connection.fetchval(TAKEN_IN) - before
                if read and not first:
                    first, began = read, time.perf_counter()
                if read == self._sent - before:
                    return float((read - first) / (time.perf_counter() - began))
                await asyncio.sleep(LOOK)
        finally:
            await connection.close()
        raise BenchmarkError(f"the consumer had {read} of {self._sent - before} messages after {PATIENCE:.0f} s")


def _produce(broker: Broker, events: Iterable[Event]) -> int:
    """Write events to the topic; returns their number."""
    producer = Producer({"bootstrap.servers": broker.servers, "compression.type": "lz4", "acks": "all"})
    sent = delivered = 0

    def reported(error: KafkaError | None, _: Message) -> None:
        nonlocal delivered
        delivered += error is None

    for event in events:
        while True:
            try:
                producer.produce(TOPIC, event.json().encode(), event.entity_id.encode(), on_delivery=reported)
                break
            except BufferError:
                producer.poll(LOOK)
        producer.poll(0)
        sent += 1
    producer.flush(PATIENCE)
    producer.close()
    if delivered != sent:
        raise BenchmarkError(f"{delivered} of {sent} messages came to the topic")
    return sent


def deadlines(bench: Bench) -> list[Row]:
    """All rows' deadlines pass within one minute: the latency of other requests meanwhile, and the time it takes."""
    machine, rows = bench.machine, bench.size.rows
    ahead = AHEAD / (10 if bench.quick else 1)
    passing = time.monotonic() + ahead
    machine.ask("postgres", f"CREATE DATABASE {SWEPT}")
    machine.pqs("migrate", database=SWEPT)
    machine.ask(SWEPT, ALL_ALIVE, rows, ahead)
    machine.rest(SWEPT)
    with some_broker() as broker:
        broker.create_topic("registration-events")
        server, port = start_ours(machine, SWEPT, PQS_KAFKA=broker.servers)
        environment = {
            "PQS_DATABASE_URL": machine.url(SWEPT),
            "PQS_KAFKA": broker.servers,
            "PQS_LOG_LEVEL": "warning",
        }
        children = [server]
        try:
            server.answers(port, "/readyz")
            server.rest()
            before = [_waits(bench, port) for _ in range(bench.size.rounds)]
            children.append(machine.spawn("sweep", [sys.executable, "-m", "app", "sweep"], **environment))
            time.sleep(max(0.0, passing - time.monotonic()))
            if (alive := _number(machine, SWEPT, ALIVE)) < rows * 0.9:
                raise BenchmarkError(f"{rows - alive:,} deadlines had passed too early: loading took too long")
            meanwhile = [_waits(bench, port) for _ in range(bench.size.rounds)]
            while _number(machine, SWEPT, ALIVE) and time.monotonic() < passing + SWEEP_PATIENCE:
                time.sleep(1.0)
            took = time.monotonic() - passing
            _drained(machine, SWEPT)
        finally:
            for child in children:
                child.stop()
    if left := _number(machine, SWEPT, ALIVE):
        raise BenchmarkError(f"{left:,} of {rows:,} deadlines were no events after {took:.0f} s")
    bench.notes.append(
        f"deadlines: {rows:,} passed within one minute, and were events after {took:.0f} s, {rows / took:,.0f}/s"
    )
    return [
        compared(
            f"{what}, {FEW} connections, while {rows:,} deadlines pass",
            [waits[what] for waits in meanwhile],
            "before",
            [waits[what] for waits in before],
            "ms",
            at_most=True,
        )
        for what in before[0]
    ]


def _waits(bench: Bench, port: int) -> dict[str, float]:
    """The latency in ms that a few clients see for lookups and triggers."""
    waits: dict[str, float] = {}
    for what in ("lookup", "trigger"):
        load = wrk(bench.machine, port, what, bench.source, connections=FEW, seconds=bench.seconds)
        waits |= {f"p50 of {what}": load.p50, f"p99 of {what}": load.p99}
    return waits


def _number(machine: Machine, database: str, query: str) -> int:
    return int(str(machine.ask(database, query)))
