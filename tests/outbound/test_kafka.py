"""Failures of the Kafka bus, on a built-in broker of its own that the tests take down."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from app.errors import BusError, MessageRefusedError, StartError
from app.outbound import kafka as kafka_bus
from app.outbound.kafka import KafkaBus
from tests.broker import (
    CLUSTER_AUTHORIZATION_FAILED,
    INIT_PRODUCER_ID,
    PATIENCE,
    BuiltInBroker,
    built_in_broker,
    read_topic,
)

TOPIC = "topic"
AT_ONCE = timedelta(milliseconds=200)


@pytest.fixture
def broker() -> Iterator[BuiltInBroker]:
    """A broker that accepts connections."""
    with built_in_broker() as broker:
        broker.create_topic(TOPIC)
        yield broker


@asynccontextmanager
async def connected(broker: BuiltInBroker, **given: Any) -> AsyncIterator[KafkaBus]:
    """A bus on that broker, closed at the end."""
    bus = KafkaBus(broker.servers, **given)
    try:
        yield bus
    finally:
        await bus.close()


def values(broker: BuiltInBroker, count: int) -> list[bytes]:
    """The values of the first messages of the topic."""
    return [message.value for message in read_topic(broker, TOPIC, count)]


async def test_a_broker_that_is_down_is_an_error_by_name(broker: BuiltInBroker) -> None:
    """A message that no broker confirms in time raises an error; once the broker is back, messages arrive."""
    async with connected(broker, delivery_timeout=AT_ONCE) as bus:
        broker.go_down()
        with pytest.raises(BusError, match="timed out"):
            await bus.publish(TOPIC, b"key", b"lost", {})
        broker.come_up()
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await bus.publish(TOPIC, b"key", b"there", {})
                    break
                except BusError:
                    continue
    assert values(broker, 1) == [b"there"]


async def test_messages_wait_for_a_broker_that_comes_back(broker: BuiltInBroker) -> None:
    """Messages published during an outage of the broker arrive after it, in order."""
    async with connected(broker) as bus:
        broker.go_down()
        sent = [b"%d" % number for number in range(100)]
        waiting = asyncio.gather(*(bus.publish(TOPIC, b"key", value, {}) for value in sent))
        await asyncio.wait([waiting], timeout=0.1)
        assert not waiting.done()
        broker.come_up()
        async with asyncio.timeout(PATIENCE):
            await waiting
    assert values(broker, 100) == sent


async def test_the_event_loop_goes_on_while_a_broker_is_down(broker: BuiltInBroker) -> None:
    """Other tasks run while a message waits for its broker."""
    broker.go_down()
    async with connected(broker, delivery_timeout=AT_ONCE) as bus:
        publishing = asyncio.create_task(bus.publish(TOPIC, b"key", b"", {}))
        turns = 0
        while not publishing.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns > 1
        assert isinstance(publishing.exception(), BusError)


async def test_a_message_that_is_too_large_is_refused(broker: BuiltInBroker) -> None:
    """A message too large to publish raises its own error, and does not block the next message."""
    async with connected(broker, options={"message.max.bytes": 1_000_000}) as bus:
        with pytest.raises(MessageRefusedError, match="too large"):
            await bus.publish(TOPIC, b"key", b"x" * 2_000_000, {})
        await bus.publish(TOPIC, b"key", b"small", {})
    assert values(broker, 1) == [b"small"]


async def test_the_broker_says_what_is_too_large(broker: BuiltInBroker) -> None:
    """A message of the largest body size is sent; the broker's limit counts its compressed size."""
    async with connected(broker) as bus:
        await bus.publish(TOPIC, b"key", b"x" * 8_000_000, {})
    assert [len(value) for value in values(broker, 1)] == [8_000_000]


async def test_a_caller_that_goes_away_disturbs_nobody(broker: BuiltInBroker) -> None:
    """A cancelled call still sends its message, and other calls get their answers."""
    broker.go_down()
    async with connected(broker) as bus:
        gone = asyncio.create_task(bus.publish(TOPIC, b"key", b"gone", {}))
        stays = asyncio.create_task(bus.publish(TOPIC, b"key", b"stays", {}))
        await asyncio.wait([gone, stays], timeout=0.1)
        gone.cancel()
        broker.come_up()
        await stays
        assert gone.cancelled()
    assert values(broker, 2) == [b"gone", b"stays"]


async def test_what_waits_for_the_next_flight_is_not_begun_when_its_caller_has_gone(broker: BuiltInBroker) -> None:
    """A message that waits behind a flight and is cancelled is never sent; the messages after it are."""
    broker.go_down()
    async with connected(broker) as bus:
        first = asyncio.create_task(bus.publish(TOPIC, b"key", b"first", {}))
        await asyncio.wait([first], timeout=0.1)
        gone = asyncio.create_task(bus.publish(TOPIC, b"key", b"gone", {}))
        last = asyncio.create_task(bus.publish(TOPIC, b"key", b"last", {}))
        await asyncio.sleep(0)
        gone.cancel()
        broker.come_up()
        await asyncio.gather(first, last)
        assert gone.cancelled()
    assert [message.value for message in read_topic(broker, TOPIC)] == [b"first", b"last"]


async def test_what_is_handed_over_together_fails_one_by_one(broker: BuiltInBroker) -> None:
    """In one flight of several calls only the messages that are too large fail, each by its index in its call."""
    async with connected(broker, options={"message.max.bytes": 1_000_000}) as bus:
        large = b"x" * 2_000_000
        some, none, one = await asyncio.gather(
            bus.publish_all(TOPIC, [(b"a", b"1"), (b"b", large), (b"c", b"2"), (b"d", large)], {}),
            bus.publish_all(TOPIC, [(b"e", b"3")], {}),
            bus.publish_all(TOPIC, [(b"f", large)], {}),
        )
        assert (sorted(some), none, list(one)) == ([1, 3], {}, [0])
        assert {type(error) for error in [*some.values(), *one.values()]} == {MessageRefusedError}
    assert sorted(values(broker, 3)) == [b"1", b"2", b"3"]


async def test_of_a_flight_fails_what_the_broker_does_not_confirm(broker: BuiltInBroker) -> None:
    """If the broker stays away, every message of a call fails, however many there are."""
    broker.go_down()
    async with connected(broker, delivery_timeout=AT_ONCE) as bus:
        failed = await bus.publish_all(TOPIC, [(b"%d" % number, b"") for number in range(50)], {})
    assert sorted(failed) == list(range(50))
    assert {str(error) for error in failed.values()} == {str(failed[0])}
    assert "timed out" in str(failed[0])


async def test_what_is_on_its_way_arrives_before_the_end(broker: BuiltInBroker) -> None:
    """Closing waits for the messages that were handed over."""
    bus = KafkaBus(broker.servers)
    publishing = asyncio.gather(*(bus.publish(TOPIC, b"key", b"%d" % number, {}) for number in range(100)))
    await asyncio.sleep(0)
    await bus.close()
    await publishing
    assert len(values(broker, 100)) == 100


async def test_what_cannot_arrive_fails_at_the_end(broker: BuiltInBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing does not wait for a broker that is down: after the grace period, all waiting calls fail."""
    monkeypatch.setattr(kafka_bus, "GRACE", AT_ONCE)
    monkeypatch.setattr(kafka_bus, "MAX_IN_FLIGHT", 5)
    broker.go_down()
    bus = KafkaBus(broker.servers)
    waiting = [asyncio.create_task(bus.publish(TOPIC, b"key", b"", {})) for _ in range(10)]
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await bus.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [BusError] * 10


async def test_more_than_may_be_in_flight_take_turns(broker: BuiltInBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages beyond the bound wait until others are confirmed, and keep their order."""
    monkeypatch.setattr(kafka_bus, "MAX_IN_FLIGHT", 7)
    sent = [b"%d" % number for number in range(100)]
    async with connected(broker) as bus:
        await asyncio.gather(*(bus.publish(TOPIC, b"key", value, {}) for value in sent))
    assert values(broker, 100) == sent


async def test_a_full_queue_of_the_client_is_an_error_by_name(broker: BuiltInBroker) -> None:
    """A message that finds the client's own queue full fails at once, to be published again."""
    broker.go_down()
    options = {"queue.buffering.max.messages": 1}
    async with connected(broker, delivery_timeout=AT_ONCE, options=options) as bus:
        first = asyncio.create_task(bus.publish(TOPIC, b"key", b"1", {}))
        await asyncio.sleep(0)
        with pytest.raises(BusError, match="full"):
            await bus.publish(TOPIC, b"key", b"2", {})
        with pytest.raises(BusError, match="timed out"):
            await first


async def test_a_producer_that_fails_for_good_is_replaced(broker: BuiltInBroker) -> None:
    """After an error that librdkafka calls fatal, the bus continues with a new producer."""
    broker.refuse(INIT_PRODUCER_ID, CLUSTER_AUTHORIZATION_FAILED)
    async with connected(broker) as bus:
        with pytest.raises(BusError):
            await bus.publish(TOPIC, b"key", b"lost", {})
        await bus.publish(TOPIC, b"key", b"there", {})
    assert values(broker, 1) == [b"there"]


async def test_what_comes_while_a_failed_producer_ends_is_no_part_of_its_flight(
    broker: BuiltInBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an idle producer fails for good, messages published meanwhile are confirmed by the next one."""
    ending, end_producer = asyncio.Event(), KafkaBus._end_producer

    def told(bus: KafkaBus, producer: Producer) -> None:
        end_producer(bus, producer)
        ending.set()

    monkeypatch.setattr(KafkaBus, "_end_producer", told)
    broker.refuse(INIT_PRODUCER_ID, CLUSTER_AUTHORIZATION_FAILED)
    async with connected(broker, delivery_timeout=AT_ONCE) as bus:
        await ending.wait()
        broker.go_down()
        with pytest.raises(BusError, match="timed out"):
            await bus.publish(TOPIC, b"key", b"lost", {})
        broker.come_up()
        await published(bus, b"there")
    assert [message.value for message in read_topic(broker, TOPIC)] == [b"there"]


async def published(bus: KafkaBus, value: bytes) -> None:
    """Publish a message, repeatedly until it succeeds."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await bus.publish(TOPIC, b"key", value, {})
            except BusError:
                await asyncio.sleep(0.01)


async def test_what_is_not_handed_over_fails(broker: BuiltInBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of the client for one message of a flight fails that message only; the others arrive."""

    class Moody(Producer):
        def produce(self, topic: str, value: Any = None, *given: Any, **named: Any) -> None:
            if value == b"1":
                raise RuntimeError("not in the mood")
            super().produce(topic, value, *given, **named)

    monkeypatch.setattr(kafka_bus, "Producer", Moody)
    async with connected(broker) as bus:
        failed = await bus.publish_all(TOPIC, [(b"key", b"%d" % number) for number in range(3)], {})
    assert {place: str(error) for place, error in failed.items()} == {
        1: "the Kafka client did not accept the message: not in the mood"
    }
    assert values(broker, 2) == [b"0", b"2"]


async def test_without_a_producer_whoever_publishes_is_told(
    broker: BuiltInBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a fatal error, while no new producer can be made, each message raises BusError."""
    broker.refuse(INIT_PRODUCER_ID, CLUSTER_AUTHORIZATION_FAILED)
    async with connected(broker) as bus:

        def none_left(_: object) -> None:
            raise KafkaException(KafkaError(KafkaError._CRIT_SYS_RESOURCE))

        monkeypatch.setattr(kafka_bus, "Producer", none_left)
        with pytest.raises(BusError):
            await bus.publish(TOPIC, b"key", b"lost", {})
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(BusError, match="no Kafka client"):
                await bus.publish(TOPIC, b"key", b"lost", {})
        monkeypatch.undo()
        await published(bus, b"there")
    assert [message.value for message in read_topic(broker, TOPIC)] == [b"there"]


async def test_a_client_that_does_not_end_leaves_nobody_waiting(
    broker: BuiltInBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If even purging the client does not end it, its messages fail and closing ends."""
    monkeypatch.setattr(kafka_bus, "GRACE", AT_ONCE)

    class Stubborn(Producer):
        def purge(self, *_given: Any, **_named: Any) -> None:
            pass

    monkeypatch.setattr(kafka_bus, "Producer", Stubborn)
    broker.go_down()
    bus = KafkaBus(broker.servers, delivery_timeout=timedelta(seconds=3))
    publishing = asyncio.create_task(bus.publish(TOPIC, b"key", b"", {}))
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await bus.close()
        with pytest.raises(BusError, match="closed"):
            await publishing


@pytest.mark.parametrize(
    ("options", "said"), [({"no.such.setting": 1}, "no.such.setting"), ({"acks": 0}, "enable.idempotence")]
)
async def test_settings_that_the_client_refuses_stop_the_start(options: dict[str, int], said: str) -> None:
    """A setting that does not exist, or would cost safety, is an error that names it."""
    with pytest.raises(StartError, match=said):
        KafkaBus("127.0.0.1:1", options=options)
