"""`pqs relay` as processes: stopped, killed at work, and the relay within a service."""

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from confluent_kafka import Consumer, TopicPartition

from app.domain.registration import Timing
from app.projection.entries import EntryBuilder
from app.projection.projector import Projector
from app.store import outbox
from app.store.database import Database
from app.wire.envelopes import Envelope
from tests.broker import Broker, read_topic
from tests.making import event, event_json, node
from tests.processes import COMMAND, PATIENCE, Service, environment, pqs, refusal, serving, until

WAY = ("node.introspected", "node.registration_acked", "node.deregistered")
EVENTS = 6  # that follow from one such way
KILLS = 5
WAITERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
NODES = 300  # that come and go before each kill


@contextmanager
def relay(**settings: object) -> Iterator["subprocess.Popen[str]"]:
    """A running relay, which is killed at the end unless it has ended."""
    command = [*COMMAND, "relay"]
    # What it logs comes with what it prints: nobody reads two pipes at once here.
    with subprocess.Popen(
        command, env=environment(**settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            process.communicate(timeout=PATIENCE)


async def is_at_work(process: "subprocess.Popen[str]") -> None:
    """Wait until the relay reports that it is at work."""
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(PATIENCE):
        while not said.endswith("relaying\n"):  # lines of the log may stand before it
            line = await asyncio.to_thread(process.stdout.readline)
            assert line, f"the relay has ended:\n{said}"
            said += line


def length(kafka: Broker, topic: str) -> int:
    """The number of messages in a topic."""
    consumer = Consumer({"bootstrap.servers": kafka.servers, "group.id": "tests", "log_level": 0})
    try:
        partitions = consumer.list_topics(topic, timeout=PATIENCE).topics[topic].partitions
        ends = [consumer.get_watermark_offsets(TopicPartition(topic, each), timeout=PATIENCE) for each in partitions]
        return sum(high for _, high in ends)
    finally:
        consumer.close()


async def left(database: Database) -> int:
    """The number of messages in the outbox."""
    return sum(each.messages for each in await database.read(outbox.backlogs))


async def drained(database: Database) -> None:
    """Wait until the outbox is empty."""
    async with asyncio.timeout(PATIENCE):
        while await left(database):  # noqa: ASYNC110 - what is waited for is in the database
            await asyncio.sleep(0.02)


async def test_killed_relays_lose_and_reorder_nothing(
    database: Database, database_url: str, kafka: Broker, topic: str
) -> None:
    """With relays killed at work and replaced, every event arrives in order, and repeats have the same id."""
    settings = {"database_url": database_url, "kafka": kafka.servers, "topic_out": topic}
    projector = Projector(database, Timing(), EntryBuilder(topic))
    with ExitStack() as stack:
        workers = [stack.enter_context(relay(**settings)) for _ in range(2)]
        for number in range(KILLS):
            for worker in workers[-1 if number else -2 :]:
                await is_at_work(worker)
            some = [node(number * NODES + each) for each in range(NODES)]
            before = await asyncio.to_thread(length, kafka, topic)
            for place, type_ in enumerate(WAY, start=1):
                await projector.persist([event(type_, place, entity_id=each) for each in some])
            async with asyncio.timeout(PATIENCE):
                while await asyncio.to_thread(length, kafka, topic) == before:
                    pass
            workers.pop(0).kill()
            workers.append(stack.enter_context(relay(**settings)))
        await drained(database)
    read = read_topic(kafka, topic, length(kafka, topic))
    ids: dict[tuple[UUID, int], set[object]] = {}
    told: dict[UUID, list[int]] = {}
    for message in read:
        envelope = Envelope.from_json(message.value)
        if envelope.sequence not in told.setdefault(envelope.subject, []):
            told[envelope.subject].append(envelope.sequence)
        ids.setdefault((envelope.subject, envelope.sequence), set()).add(envelope.id)
    assert told == {node(each): list(range(1, EVENTS + 1)) for each in range(KILLS * NODES)}
    assert all(len(each) == 1 for each in ids.values())


async def test_what_a_killed_relay_had_sent_is_sent_again_with_its_id(
    database: Database, database_url: str, kafka: Broker, topic: str
) -> None:
    """A relay killed between sending and removal leaves its messages to the next, which resends them by id."""
    settings = {"database_url": database_url, "kafka": kafka.servers, "topic_out": topic}
    projector = Projector(database, Timing(), EntryBuilder(topic))
    some = [node(each) for each in range(20)]
    await projector.persist([event("node.introspected", 1, entity_id=each) for each in some])
    written = await left(database)
    connection = await asyncpg.connect(database_url)
    async with connection.transaction():
        await connection.execute("SELECT FROM outbox FOR UPDATE")
        with relay(**settings) as process:
            await is_at_work(process)
            async with asyncio.timeout(PATIENCE):
                # Asked for outside of the transaction, which would see the same answer each time.
                while not await database.read(lambda other: other.fetchval(WAITERS)):  # noqa: ASYNC110 - it waits there
                    await asyncio.sleep(0.02)
            process.kill()
            await asyncio.to_thread(process.wait, PATIENCE)
    await connection.close()
    assert await left(database) == written
    with relay(**settings):
        await drained(database)
    read = [Envelope.from_json(each.value) for each in read_topic(kafka, topic, length(kafka, topic))]
    ids: dict[tuple[UUID, int], list[object]] = {}
    for envelope in read:
        ids.setdefault((envelope.subject, envelope.sequence), []).append(envelope.id)
    assert sorted(ids) == sorted((each, number) for each in some for number in (1, 2, 3))
    assert all(len(set(each)) == 1 for each in ids.values())
    assert len(read) > written


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_relay_that_is_stopped_finishes_what_it_sends(
    number: signal.Signals, database: Database, database_url: str, kafka: Broker, topic: str
) -> None:
    """A relay stopped at work exits with success, and leaves in the outbox only messages that it did not send."""
    projector = Projector(database, Timing(), EntryBuilder(topic))
    some = [node(each) for each in range(2000)]
    await projector.persist([event("node.introspected", 1, entity_id=each) for each in some])
    with relay(database_url=database_url, kafka=kafka.servers, topic_out=topic) as process:
        await is_at_work(process)
        async with asyncio.timeout(PATIENCE):
            while await asyncio.to_thread(length, kafka, topic) == 0:
                pass
        process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.to_thread(process.wait) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert await left(database) + length(kafka, topic) == len(some) * 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "there is nowhere to send to; set PQS_KAFKA, PQS_CONSUL_URL or both"),
        ({"bus": "memory"}, "PQS_BUS=memory is a bus inside `pqs serve`"),
        ({"bus": "kafka"}, "PQS_BUS: kafka needs PQS_KAFKA"),
    ],
    ids=["nothing", "memory", "no servers"],
)
def test_a_relay_with_nowhere_to_send_to_does_not_start(settings: dict[str, str], said: str) -> None:
    """A relay without a destination ends with a line that names the missing setting."""
    assert said in refusal(pqs("relay", database_url="postgresql://127.0.0.1:1/nowhere", **settings))


def told_of(service: Service, series: str) -> float:
    """The value of a metric series."""
    with service.client() as client:
        lines = client.get("/metrics").raise_for_status().text.splitlines()
    [value] = [line.removeprefix(series) for line in lines if line.startswith(f"{series} ")]
    return float(value)


def test_a_service_relays_what_it_writes(data_dir: Path, tmp_path: Path, kafka: Broker, topic: str) -> None:
    """With a Kafka, `pqs serve` sends its events, with several workers too; without its relay, they wait."""
    settings = {"data_dir": data_dir, "kafka": kafka.servers, "topic_out": topic}
    series = f'pqs_outbox_messages{{destination="topic:{topic}"}}'
    with serving(tmp_path, relay=False, **settings) as service, service.client() as client:
        client.post("/v1/events", json=event_json("node.introspected", 1)).raise_for_status()
        assert told_of(service, series) == 3
        assert told_of(service, f'pqs_outbox_oldest_seconds{{destination="topic:{topic}"}}') > 0
    with serving(tmp_path, workers=2, **settings) as service, service.client() as client:
        client.post("/v1/events", json=event_json("node.registration_acked", 2)).raise_for_status()
        until(lambda: told_of(service, series) == 0, "nothing waits any more")
    envelopes = [Envelope.from_json(each.value) for each in read_topic(kafka, topic, 5)]
    assert [each.sequence for each in envelopes] == [1, 2, 3, 4, 5]
