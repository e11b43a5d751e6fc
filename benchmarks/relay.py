"""The speed of the relay, compared with the Kafka client without it."""

import gc
import sys
import time
from uuid import UUID

import uvloop
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from app.outbound.kafka import KafkaBus
from app.store.outbox import Lines, packed, slot_of
from app.wire.envelopes import HEADERS, Envelope, in_digits
from benchmarks.bench import Bench
from benchmarks.machine import BenchmarkError
from benchmarks.report import Row, compared
from tests.broker import some_broker
from tests.making import START, node

DATABASE = "relayed"
TOPIC = "relayed"
EACH = 3  # messages of a node, as after its introspection
TOGETHER = 15  # triggers of one transaction: as many as two workers join for 64 clients
LEFT = "SELECT EXISTS (SELECT FROM outbox)"
LOOK = 0.01  # seconds between two checks of progress
PATIENCE = 120.0  # seconds
FILL = """
    INSERT INTO outbox (destination, slot, envelope, messages)
    SELECT $1, slot, envelope, messages
    FROM unnest($2::smallint[], $3::text[], $4::smallint[]) WITH ORDINALITY AS m (slot, envelope, messages, place)
    ORDER BY place
"""

Messages = list[tuple[UUID, bytes]]


def relay(bench: Bench) -> list[Row]:
    """One relay with a full outbox, compared with a producer with the same settings and the messages in memory."""
    machine, count = bench.machine, bench.size.stream_events
    machine.ask("postgres", f"CREATE DATABASE {DATABASE}")
    machine.pqs("migrate", database=DATABASE)
    messages = _messages(count)
    gc.collect()
    gc.freeze()  # so that they do not slow down the client, which is measured in this process
    with some_broker() as broker:
        broker.create_topic(TOPIC)

        def ours() -> float:
            _fill(bench, messages)
            return _relayed(bench, broker.servers, len(messages))

        def client() -> float:
            return len(messages) / uvloop.run(_produced(broker.servers, messages))

        contenders = {"ours": ours, "client": client}
        bench.warm(contenders)
        measured = bench.turns(contenders)
    what = f"relay, {EACH} messages a node"
    return [compared(what, measured["ours"], "the Kafka client alone", measured["client"], "messages/s", 0.2)]


def _messages(count: int) -> Messages:
    """Envelopes as in the outbox, node by node."""
    messages: Messages = []
    for number in range(count // EACH):
        entity_id = node(number)
        for sequence in range(1, EACH + 1):
            envelope = Envelope(
                id=node(-number * EACH - sequence),
                source="urn:pqs",
                type="registration.initiated",
                subject=entity_id,
                time=START,
                partitionkey=entity_id,
                digits=in_digits(sequence),
                data={"node_type": "compute", "node_version": "1.0.0", "capabilities": {"gpu": True}},
            )
            messages.append((entity_id, envelope.to_json()))
    return messages


def _fill(bench: Bench, messages: Messages) -> None:
    """Fill the outbox as transactions of TOGETHER triggers leave it."""
    nodes = [messages[place : place + EACH] for place in range(0, len(messages), EACH)]
    lines = [Lines(slot_of(of[0][0]), EACH, b"".join(value + b"\n" for _, value in of)) for of in nodes]
    rows = [row for place in range(0, len(lines), TOGETHER) for row in packed(TOPIC, lines[place : place + TOGETHER])]
    arrays = ([getattr(row, name) for row in rows] for name in ("slot", "envelope", "messages"))
    bench.machine.ask(DATABASE, FILL, f"topic:{TOPIC}", *arrays)
    bench.machine.rest(DATABASE)


def _relayed(bench: Bench, servers: str, count: int) -> float:
    """Messages per second by `pqs relay`, from the first one seen on the topic until the outbox is empty."""
    machine = bench.machine
    environment = {"PQS_DATABASE_URL": machine.url(DATABASE), "PQS_KAFKA": servers, "PQS_TOPIC_OUT": TOPIC}
    topic = Consumer({"bootstrap.servers": servers, "group.id": "bench", "log_level": 0})
    child = machine.spawn("relay", [sys.executable, "-m", "app", "relay"], PQS_LOG_LEVEL="warning", **environment)
    try:
        before, first, began = _messages_on(topic), 0, 0.0
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            there = _messages_on(topic) - before
            if there and not first:
                first, began = there, time.perf_counter()
            if there >= count and not machine.ask(DATABASE, LEFT):
                return (count - first) / (time.perf_counter() - began)
            time.sleep(LOOK)
    finally:
        child.stop()
        topic.close()
    raise BenchmarkError(f"the outbox of {count} messages was not empty after {PATIENCE:.0f} s")


def _messages_on(topic: Consumer) -> int:
    """The number of messages in the topic."""
    partitions = topic.list_topics(TOPIC, timeout=PATIENCE).topics[TOPIC].partitions
    offsets = (topic.get_watermark_offsets(TopicPartition(TOPIC, each), timeout=PATIENCE) for each in partitions)
    return sum(each[1] for each in offsets)


async def _produced(servers: str, messages: Messages) -> float:
    """Seconds until the client has delivered all messages. Raises BenchmarkError after an error."""
    bus = KafkaBus(servers)
    producer = Producer(bus._settings)  # noqa: SLF001 - the same ones, whatever they become
    await bus.close()
    failed = 0

    def reported(error: KafkaError | None, _: Message) -> None:
        nonlocal failed
        failed += error is not None

    began = time.perf_counter()
    for entity_id, value in messages:
        while True:
            try:
                key = str(entity_id).encode()
                producer.produce(TOPIC, value, key, headers=HEADERS, on_delivery=reported)  # type: ignore[arg-type]
                break
            except BufferError:
                producer.poll(LOOK)
        producer.poll(0)
    failed += producer.flush(PATIENCE)
    took = time.perf_counter() - began
    producer.close()
    if failed:
        raise BenchmarkError(f"{failed} of {len(messages)} messages were not delivered")
    return took
