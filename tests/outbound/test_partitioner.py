"""The partitioner, compared with the Kafka client's own."""

import asyncio
import random
from uuid import UUID

import confluent_kafka
import pytest

from app.outbound.kafka import KafkaBus
from app.outbound.partitioner import murmur2, partition_of
from tests.broker import Broker, read_topic

PARTITIONS = 7
COUNT = 10_000


def keys() -> list[bytes]:
    """Different keys: the empty one, ids as text, and bytes of every length up to 40."""
    dice = random.Random(2026)
    found = {b"", *(str(UUID(int=dice.getrandbits(128))).encode() for _ in range(COUNT // 2))}
    while len(found) < COUNT:
        found.add(dice.randbytes(dice.randrange(1, 41)))
    return sorted(found)


async def test_kafka_puts_keys_where_the_partitioner_says(kafka: Broker, topic: str) -> None:
    """Each of 10,000 keys, published by the Kafka client, is in the partition that the partitioner names."""
    wide = f"{topic}-wide"
    kafka.create_topic(wide, PARTITIONS)
    bus = KafkaBus(kafka.servers)
    await asyncio.gather(*(bus.publish(wide, key, b"", {}) for key in keys()))
    await bus.close()
    placed = {message.key or b"": message.partition for message in read_topic(kafka, wide, COUNT)}
    assert placed == {key: partition_of(key, PARTITIONS) for key in keys()}


@pytest.mark.parametrize("partitions", [1, 2, 4, 64, 1000])
def test_the_client_computes_the_same(partitions: int) -> None:
    """The client's own function names the same partition for each key, for any number of partitions."""
    assert [partition_of(key, partitions) for key in keys()] == [
        confluent_kafka.murmur2(key, partitions) for key in keys()
    ]


@pytest.mark.parametrize(
    ("key", "hashed"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"abc", 479470107)],
)
def test_the_hashes_are_those_of_kafka(key: bytes, hashed: int) -> None:
    """Keys have the hashes listed in Apache Kafka's own tests, as signed numbers (UtilsTest.testMurmur2)."""
    assert murmur2(key) == hashed % 2**32
