"""What a consumer counts, and what it says of its health."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from app.domain.registration import Timing
from app.inbound.consumer import Consumer
from app.projection.projector import Projector
from app.runtime.consumer_metrics import ConsumerMetrics
from app.runtime.metrics import KAFKA, Metrics
from app.store.watermarks import Advance
from tests.broker import PATIENCE, Broker, BuiltInBroker, built_in_broker
from tests.consuming import consumer_on, patient_database, produce, running, taken, until
from tests.making import life

POLL = 0.05  # seconds
FRAMED = b"\0\0\0\0\7{}"
FOREIGN = {"type": "billing.paid", "entity_id": "5b0b3c1e-6ef0-4a3d-8a6a-1f4a3a1f8a11"}


def samples(metrics: Metrics, prefix: str) -> dict[tuple[str, ...], float]:
    """The samples of the families with this prefix: by name and values of labels, in the order of their names."""
    return {
        (sample.name.removeprefix(prefix), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name.startswith(prefix)
    }


async def until_so(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - a thread of the client changes it
            await asyncio.sleep(POLL)


async def test_a_consumer_counts_what_it_reads(kafka: Broker, topic: str, database_url: str) -> None:
    """Events count by type, outcome and source, what is none by its kind; the lag falls to zero."""
    wrong = {"type": "node.heartbeat"}
    produce(kafka, topic, [*life(), None, FOREIGN, FRAMED, wrong], partition=1)
    metrics, database = Metrics(), patient_database(database_url)
    projector = Projector(database, Timing(), report=metrics.batches(KAFKA))
    consumer = consumer_on(database, kafka.servers, topic, uuid4().hex, projector=projector, metrics=metrics)
    try:
        async with running(consumer):
            await until(database_url, *taken(9))
            caught_up = ("lag_messages", "1", topic)
            await until_so(lambda: samples(metrics, "pqs_consumer_").get(caught_up) == 0)
            assert consumer.trouble() is None
            found = samples(metrics, "pqs_consumer_")
            assert 0 <= found["lag_seconds", "1", topic] < PATIENCE
    finally:
        await database.close()
    assert found["rebalances_total", "assigned"] >= 1
    kinds = ("tombstone", "type", "framed")
    assert [found["foreign_messages_total", kind] for kind in kinds] == [1, 1, 1]
    events = samples(metrics, "pqs_events_total")
    assert {key[1:]: number for key, number in events.items()} == {
        ("applied", KAFKA, "registration.initiated"): 1,
        ("applied", KAFKA, "registration.accepted"): 1,
        ("applied", KAFKA, "registration.ack_requested"): 1,
        ("applied", KAFKA, "registration.ack_received"): 1,
        ("applied", KAFKA, "registration.activated"): 1,
        ("invalid", KAFKA, "unknown"): 2,  # the framed one, and the heartbeat of nobody
    }
    assert not any(key[0].startswith("lag_") for key in samples(metrics, "pqs_consumer_")), "nothing is read any more"


async def test_a_consumer_without_a_partition_is_healthy(kafka: Broker, topic: str, database_url: str) -> None:
    """A consumer to which its group gives no partition can take over at any time: it is in no trouble."""
    kafka.create_topic(single := f"{topic}-single", 1)
    database, group = patient_database(database_url), uuid4().hex
    consumers = [consumer_on(database, kafka.servers, single, group) for _ in range(2)]
    try:
        async with running(consumers[0]):
            await until_so(lambda: consumers[0].trouble() is None)
            async with running(consumers[1]):
                await until_so(lambda: all(each.trouble() is None for each in consumers))
    finally:
        await database.close()


async def trouble_of(consumer: Consumer, word: str) -> None:
    """Wait until a consumer names this trouble."""
    await until_so(lambda: word in (consumer.trouble() or ""))


async def test_a_consumer_says_why_it_reads_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer names missing topics, and a Kafka that does not answer."""
    monkeypatch.setattr("app.inbound.topics.SILENT", 3.5)  # a look every two seconds, and a second for its answer
    with built_in_broker() as broker:
        database = patient_database(database_url)
        consumer = consumer_on(database, broker.servers, "later", uuid4().hex, options=SOON)
        assert consumer.trouble() == "reading begins again"
        try:
            async with running(consumer):
                await comes_and_goes(consumer, broker)
        finally:
            await database.close()


SOON = {"topic.metadata.refresh.interval.ms": 300, "reconnect.backoff.max.ms": 300, "session.timeout.ms": 1500}


async def comes_and_goes(consumer: Consumer, broker: BuiltInBroker) -> None:
    """A topic appears, then Kafka goes away and comes back."""
    await trouble_of(consumer, "Kafka has none of the topics to read")
    broker.create_topic("later", 1)
    await until_so(lambda: consumer.trouble() is None)
    broker.go_down()
    await trouble_of(consumer, "Kafka has not answered for")
    broker.come_up()
    await until_so(lambda: consumer.trouble() is None)


def test_the_lag_grows_while_nothing_is_written() -> None:
    """The lag in seconds follows the clock from the time up to which all is applied, not the last report."""
    registry = CollectorRegistry()
    report = ConsumerMetrics(registry, lambda _: None)

    def lag(unit: str) -> float | None:
        return registry.get_sample_value(f"pqs_consumer_lag_{unit}", {"topic": "nodes", "partition": "3"})

    report.assigned({("nodes", 3): 9})
    assert (lag("messages"), lag("seconds")) == (None, None)
    report.ends({("nodes", 3): 25, ("others", 0): 7})
    assert lag("messages") == 15
    minute_ago = datetime.fromtimestamp(time.time() - 60, UTC)
    report.written([Advance(topic="nodes", partition=3, expected=9, offset=14, message_at=minute_ago)])
    assert lag("messages") == 10
    assert 60 <= (lag("seconds") or 0) < 70
    now = time.monotonic()
    report.written([Advance(topic="nodes", partition=3, expected=14, offset=24, caught_up=now)])
    assert lag("messages") == 0
    assert 0 <= (lag("seconds") or 0) < 10
    report.revoked([("nodes", 3)])
    assert (lag("messages"), lag("seconds")) == (None, None)
