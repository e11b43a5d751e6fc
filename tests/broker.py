"""Kafka for tests: the broker that librdkafka has built in, and a real one where TEST_KAFKA names its servers.

The built-in broker is what `test.mock.num.brokers` starts. It is started through librdkafka's own interface here
(rdkafka_mock.h), which can also make topics, take the broker down, and have requests refused. It speaks Kafka's
protocol on a port of 127.0.0.1, so other processes can use it as well.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from uuid import uuid4

import confluent_kafka
import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition, cimpl
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from app.outbound.memory import MemoryMessage

PATIENCE = 20.0  # seconds
PARTITIONS = 4  # that a topic of the built-in broker has when nobody made it
BROKER_ID = 1

# Request types and error codes of Kafka's protocol.
INIT_PRODUCER_ID = 22
CLUSTER_AUTHORIZATION_FAILED = 31


class Broker(Protocol):
    """A Kafka to test with."""

    servers: str

    def create_topic(self, name: str, partitions: int = PARTITIONS) -> None:
        """Make a topic."""


class RealBroker:
    """A Kafka that runs already. Topics made here are removed at the end."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self._admin = AdminClient({"bootstrap.servers": servers})
        self._made: set[str] = set()
        self._give_out_producer_ids()

    def _give_out_producer_ids(self) -> None:
        """Return when it does: the first that asks a new Kafka is told to try again, and says so in its log."""
        self.create_topic(name := f"warm-{uuid4()}", 1)
        producer = Producer({"bootstrap.servers": self.servers, "enable.idempotence": True, "log_level": 0})
        producer.produce(name, b"")
        assert producer.flush(PATIENCE) == 0

    def create_topic(self, name: str, partitions: int = PARTITIONS) -> None:
        """Make a topic."""
        [made] = self._admin.create_topics([NewTopic(name, partitions, 1)]).values()
        made.result(PATIENCE)
        self._made.add(name)

    def close(self) -> None:
        """Remove the topics that were made."""
        for removed in self._admin.delete_topics(sorted(self._made)).values() if self._made else ():
            removed.result(PATIENCE)


class BuiltInBroker:
    """librdkafka's built-in broker, in this process, on a thread of its own."""

    def __init__(self) -> None:
        # The module is linked to the very librdkafka that is to be called, so its symbols are found through it.
        self._library = ctypes.CDLL(cimpl.__file__)
        error = ctypes.create_string_buffer(512)
        size = ctypes.c_size_t(len(error))
        for name in ("conf_new", "new", "mock_cluster_new"):
            getattr(self._library, f"rd_kafka_{name}").restype = ctypes.c_void_p
        self._library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        configuration = ctypes.c_void_p(self._library.rd_kafka_conf_new())
        self._library.rd_kafka_conf_set(configuration, b"log_level", b"0", error, size)
        self._client = ctypes.c_void_p(self._library.rd_kafka_new(0, configuration, error, size))
        assert self._client.value, error.value
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(self._client, BROKER_ID))
        # Else each new consumer group waits 3 seconds for more members before its first assignment.
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.servers: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create_topic(self, name: str, partitions: int = PARTITIONS) -> None:
        """Make a topic."""
        assert self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1) == 0

    def go_down(self) -> None:
        """Cut all connections and take no new ones. What the topics hold is kept."""
        assert self._library.rd_kafka_mock_broker_set_down(self._cluster, BROKER_ID) == 0

    def come_up(self) -> None:
        """Listen again, at the same address."""
        assert self._library.rd_kafka_mock_broker_set_up(self._cluster, BROKER_ID) == 0

    def refuse(self, request: int, error: int) -> None:
        """Answer the next request of a type with an error."""
        self._library.rd_kafka_mock_push_request_errors(
            self._cluster, ctypes.c_int16(request), ctypes.c_size_t(1), ctypes.c_int(error)
        )

    def close(self) -> None:
        """Stop it. What it held is gone."""
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)


@contextmanager
def built_in_broker() -> Iterator[BuiltInBroker]:
    """A built-in broker of one's own, to be taken down and the like."""
    broker = BuiltInBroker()
    try:
        yield broker
    finally:
        broker.close()


@contextmanager
def some_broker() -> Iterator[Broker]:
    """The Kafka that TEST_KAFKA names, else a built-in broker."""
    broker = RealBroker(os.environ["TEST_KAFKA"]) if "TEST_KAFKA" in os.environ else BuiltInBroker()
    try:
        yield broker
    finally:
        broker.close()


def produce_raw(broker: Broker, topic: str, value: bytes, header: bytes) -> None:
    """Write a message to partition 0 with a header of any name, which the Python client does not do."""
    topic_, partition_, value_, flags, header_, end = 1, 3, 4, 7, 9, 0  # RD_KAFKA_VTYPE_ in rdkafka.h
    copy, size = 2, ctypes.c_size_t
    library = ctypes.CDLL(cimpl.__file__)
    for name in ("conf_new", "new"):
        getattr(library, f"rd_kafka_{name}").restype = ctypes.c_void_p
    configuration, error = ctypes.c_void_p(library.rd_kafka_conf_new()), ctypes.create_string_buffer(512)
    for option, setting in ((b"bootstrap.servers", broker.servers.encode()), (b"log_level", b"0")):
        library.rd_kafka_conf_set(configuration, option, setting, error, size(len(error)))
    client = ctypes.c_void_p(library.rd_kafka_new(0, configuration, error, size(len(error))))
    place = (topic_, topic.encode(), partition_, ctypes.c_int32(0), flags, copy)
    content = (value_, value, size(len(value)), header_, header, b"value", size(5))
    assert library.rd_kafka_producev(client, *place, *content, end) == 0
    assert library.rd_kafka_flush(client, int(PATIENCE * 1000)) == 0
    library.rd_kafka_destroy(client)


def read_topic(broker: Broker, topic: str, count: int | None = None) -> list[MemoryMessage]:
    """The first `count` messages of a topic, or all that are there now, each partition in its order."""
    settings = {"bootstrap.servers": broker.servers, "group.id": "tests", "enable.auto.commit": False, "log_level": 0}
    consumer = Consumer(settings)
    try:
        partitions = consumer.list_topics(topic, timeout=PATIENCE).topics[topic].partitions
        places = [TopicPartition(topic, partition, 0) for partition in partitions]
        if count is None:
            count = sum(consumer.get_watermark_offsets(place, timeout=PATIENCE)[1] for place in places)
        consumer.assign(places)
        messages: list[MemoryMessage] = []
        while len(messages) < count:
            some = consumer.consume(count - len(messages), timeout=PATIENCE)
            assert some, f"{len(messages)} of {count} messages came"
            messages += [_read(message) for message in some]
        return messages
    finally:
        consumer.close()


def _read(message: confluent_kafka.Message) -> MemoryMessage:
    assert message.error() is None, message.error()
    topic, partition, offset, value = message.topic(), message.partition(), message.offset(), message.value()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    assert value is not None
    headers = dict(message.headers() or {})
    return MemoryMessage(topic, partition, offset, message.key(), value, msgspec.convert(headers, dict[str, bytes]))
