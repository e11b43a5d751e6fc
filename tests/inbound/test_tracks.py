"""Topics that change: more partitions, another name, created again, messages removed before they were read."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from app.domain.decider import Deadline
from app.domain.order import within
from app.domain.registration import Timing
from app.inbound.topics import GapError, TopicRestartedError
from app.projection.changes import ChangeLog
from app.projection.entries import EntryBuilder
from app.projection.projector import Projector
from app.projection.sweep import Sweep
from app.store.database import Database
from tests.broker import PATIENCE, Broker
from tests.consuming import command, consumer_on, patient_database, produce, rows, running, taken, until
from tests.making import Json, event_json, life, node
from tests.processes import pqs

NODES = 8
STATES = "SELECT string_agg(DISTINCT current_state::text, ' ') FROM registration_projections"
DEAD = "SELECT count(*) FROM dead_letters"

needs_kafka = pytest.mark.skipif(
    "TEST_KAFKA" not in os.environ, reason="no real Kafka (kafka/run starts one): the built-in broker cannot do this"
)


@asynccontextmanager
async def reading(
    kafka: Broker, topic: str, url: str, *, follow: bool = False, timing: Timing | None = None, **more: Any
) -> AsyncIterator[None]:
    """A consumer that reads a topic into a database while this lasts."""
    database = patient_database(url)
    projector = Projector(
        database, timing or Timing(), log=ChangeLog(), follow=within(topic.__eq__) if follow else None
    )
    try:
        async with running(consumer_on(database, kafka.servers, topic, uuid4().hex, projector=projector, **more)):
            yield
    finally:
        await database.close()


async def read_to_an_error(kafka: Broker, topic: str, url: str, error: type[Exception], **more: Any) -> str:
    """Read a topic with a consumer that is to end by an error; what that says."""
    database = patient_database(url)
    try:
        consumer = consumer_on(database, kafka.servers, topic, uuid4().hex, **more)
        with pytest.raises(error) as raised:
            await asyncio.wait_for(consumer.run(asyncio.Event()), PATIENCE)
    finally:
        await database.close()
    return str(raised.value)


def lives() -> list[Json]:
    """The events of some nodes, one step of each after the other."""
    return [event for step in zip(*(life(node(number)) for number in range(NODES)), strict=True) for event in step]


def heartbeats(sequence: int) -> list[Json]:
    """A heartbeat of each node."""
    return [event_json("node.heartbeat", sequence, entity_id=node(number)) for number in range(NODES)]


def present() -> str:
    """The present time."""
    return datetime.now(UTC).isoformat()


async def swept(url: str, *, follow: bool) -> None:
    """Turn every passed deadline into an event."""
    database, scans = (
        patient_database(url),
        Database(url, pool_size=1, statement_timeout=timedelta(seconds=5), scans=True),
    )
    try:
        await Sweep(database, scans, EntryBuilder(), follow=follow).page(Deadline.LIVENESS)
    finally:
        await database.close()
        await scans.close()


async def test_a_node_that_follows_its_messages_stays_alive(kafka: Broker, topic: str, database_url: str) -> None:
    """Heartbeats that come on other partitions than the registration are applied, and each move is noted once."""
    produce(kafka, topic, lives(), partition=0)
    async with reading(kafka, topic, database_url, follow=True):
        await until(database_url, *taken(5 * NODES))
        produce(kafka, topic, heartbeats(30), partition=1)
        produce(kafka, topic, heartbeats(31), partition=1)
        await until(database_url, *taken(7 * NODES))
    assert await rows(database_url, DEAD) == [(0,)]
    tracks = "SELECT DISTINCT last_applied_partition, version FROM registration_projections"
    assert await rows(database_url, tracks) == [(f"{topic}-1", 8)]
    assert await rows(database_url, "SELECT count(*) FROM changes WHERE outcome = 'rebased'") == [(NODES,)]


async def test_a_node_whose_messages_conflict_is_not_expired(kafka: Broker, topic: str, database_url: str) -> None:
    """With strict tracks the heartbeats are dead letters, which say that the nodes are alive."""
    produce(kafka, topic, lives(), partition=0)
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(5 * NODES))
        produce(kafka, topic, heartbeats(30), partition=1)
        await until(database_url, DEAD, NODES)
        await until(
            database_url,
            "SELECT count(*) FROM watermarks WHERE caught_up_at IS NULL OR caught_up_at < '2026-02-01'",
            0,
        )
        await swept(database_url, follow=False)
    assert await rows(database_url, STATES) == [("active",)]
    assert await rows(database_url, "SELECT count(DISTINCT entity_id) FROM dead_letters") == [(NODES,)]


async def test_a_topic_under_another_name(kafka: Broker, topic: str, database_url: str) -> None:
    """`pqs rebase --from --to` moves all nodes of a topic, and they take the other topic's messages from offset 0."""
    produce(kafka, topic, lives())
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(5 * NODES))
    other = f"{topic}.v2"
    kafka.create_topic(other, 3)
    run = pqs("rebase", "--from", topic, "--to", other, database_url=database_url)
    assert run.stdout == f"{NODES} entities moved from {topic}-* to partition {other}-* offset -1\n", run.stderr
    produce(kafka, other, heartbeats(30))
    async with reading(kafka, other, database_url):
        await until(
            database_url,
            f"SELECT count(*) FROM registration_projections WHERE last_applied_partition ~ '^{other}-[0-9]$'",
            NODES,
        )
    assert await rows(database_url, DEAD) == [(0,)]
    assert await rows(database_url, "SELECT DISTINCT version FROM registration_projections") == [(7,)]


async def test_values_that_are_not_events_are_passed_over(kafka: Broker, topic: str, database_url: str) -> None:
    """Tombstones and events of others are no dead letters, and the watermark goes past them."""
    foreign = {"specversion": "1.0", "type": "invoice.paid", "id": "1", "source": "/shop"}
    produce(kafka, topic, [None, foreign, *life(node(0)), {"type": "invoice.paid"}, None], partition=0)
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(9))
    assert await rows(database_url, DEAD) == [(0,)]
    assert await rows(database_url, STATES) == [("active",)]


async def test_values_that_are_not_events_may_be_kept(kafka: Broker, topic: str, database_url: str) -> None:
    """With PQS_FOREIGN=dead_letter they are kept with what they are."""
    produce(kafka, topic, [None, {"type": "invoice.paid"}], partition=0)
    async with reading(kafka, topic, database_url, keep_foreign=True):
        await until(database_url, DEAD, 2)
    errors = await rows(database_url, 'SELECT error FROM dead_letters ORDER BY "offset"')
    assert errors == [("it has no value (a tombstone)",), ("its type is 'invoice.paid'",)]


async def test_an_event_ahead_of_the_clock_is_a_dead_letter(kafka: Broker, topic: str, database_url: str) -> None:
    """A clock that is years ahead can't make its node immortal, and other events go on."""
    ahead = event_json("node.heartbeat", 9, entity_id=node(0), occurred_at="2036-01-01T00:00:00Z")
    hidden = event_json("node.heartbeat", 10, entity_id=node(0), data={"heartbeat_at": "2036-01-01T00:00:00Z"})
    produce(
        kafka,
        topic,
        [*life(node(0)), ahead, hidden, event_json("node.heartbeat", 11, entity_id=node(0))],
        partition=0,
    )
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(8))
    errors = [str(error) for (error,) in await rows(database_url, 'SELECT error FROM dead_letters ORDER BY "offset"')]
    assert [error.partition(":")[0] for error in errors] == ["#/occurred_at", "#/data/heartbeat_at"]
    assert "PQS_MAX_SKEW" in errors[0]
    assert await rows(database_url, "SELECT version FROM registration_projections") == [(6,)]


async def test_a_new_partition_is_known_before_it_is_read(kafka: Broker, topic: str, database_url: str) -> None:
    """Every partition of a topic has a watermark before its first message: -1, until its end was reached."""
    async with reading(kafka, topic, database_url):
        await until(database_url, "SELECT count(*) FROM watermarks WHERE caught_up_at IS NOT NULL", 4)
    assert await rows(database_url, 'SELECT DISTINCT "offset" FROM watermarks') == [(-1,)]


# --- With a real Kafka ---------------------------------------------------------------------------------------------


def changed(kafka: Broker, change: Callable[[AdminClient], Mapping[Any, "Future[Any]"]]) -> None:
    """Have topics changed, and wait until they are."""
    admin = AdminClient({"bootstrap.servers": kafka.servers})  # it must live until the answers are there
    for future in change(admin).values():
        future.result(PATIENCE)


@needs_kafka
async def test_more_partitions(kafka: Broker, database_url: str) -> None:
    """From one partition to four while nodes send heartbeats by key: nobody expires, and nothing is a dead letter."""
    kafka.create_topic(topic := f"grows-{uuid4()}", 1)
    produce(kafka, topic, [each | {"occurred_at": present()} for each in lives()])
    soon = timedelta(seconds=4)
    timing = Timing(liveness_interval=soon, liveness_window=soon)
    async with reading(kafka, topic, database_url, follow=True, timing=timing):
        await until(database_url, *taken(5 * NODES))
        changed(kafka, lambda admin: admin.create_partitions([NewPartitions(topic, 4)]))
        for sequence in range(30, 60):
            produce(kafka, topic, [each | {"occurred_at": present()} for each in heartbeats(sequence)])
            await swept(database_url, follow=True)
            await asyncio.sleep(0.3)
        await until(database_url, *taken(35 * NODES))
    assert await rows(database_url, DEAD) == [(0,)]
    assert await rows(database_url, STATES) == [("active",)]
    moved = "SELECT count(DISTINCT last_applied_partition) > 1 FROM registration_projections"
    assert await rows(database_url, moved) == [(True,)]


@needs_kafka
@pytest.mark.parametrize("messages", [3, 12], ids=["shorter", "longer than what was read"])
async def test_a_topic_that_was_created_again(kafka: Broker, database_url: str, messages: int) -> None:
    """The consumer stops and names the topic; with --restarted its messages are applied from the first one on."""
    kafka.create_topic(topic := f"again-{uuid4()}", 1)
    produce(kafka, topic, life(node(0)))
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(5))
    changed(kafka, lambda admin: admin.delete_topics([topic]))
    await asyncio.sleep(1)
    kafka.create_topic(topic, 1)
    produce(kafka, topic, [event_json("node.heartbeat", 30 + each, entity_id=node(0)) for each in range(messages)])
    said = await read_to_an_error(kafka, topic, database_url, TopicRestartedError)
    assert f"topic {topic} was deleted and created again" in said
    assert f"pqs consume --restarted {topic}" in said
    assert await rows(database_url, "SELECT version FROM registration_projections") == [(5,)]
    settings = {"database_url": database_url, "kafka": kafka.servers, "topics_in": topic, "bus": "off"}
    with command("consume", "--restarted", topic, **settings):
        await until(database_url, *taken(messages))
    assert await rows(database_url, "SELECT version FROM registration_projections") == [(6 + messages,)]
    assert await rows(database_url, DEAD) == [(0,)]


@needs_kafka
@pytest.mark.parametrize("stop", [False, True], ids=["skip", "stop"])
async def test_messages_removed_before_they_were_read(
    kafka: Broker, database_url: str, stop: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What retention took is named by its first and last offset; the consumer goes on behind it, or stops there."""
    kafka.create_topic(topic := f"cut-{uuid4()}", 1)
    produce(kafka, topic, life(node(0)))
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(5))
    produce(kafka, topic, [event_json("node.heartbeat", each, entity_id=node(0)) for each in range(30, 40)])
    changed(kafka, lambda admin: admin.delete_records([TopicPartition(topic, 0, 12)]))
    said = f"messages 5 to 11 of {topic}-0 were removed before they were read"
    if stop:
        assert said in await read_to_an_error(kafka, topic, database_url, GapError, stop_at_gaps=True)
        return
    async with reading(kafka, topic, database_url):
        await until(database_url, *taken(15))
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [said]
    assert await rows(database_url, "SELECT version FROM registration_projections") == [(8,)]
