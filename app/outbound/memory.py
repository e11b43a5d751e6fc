"""A bus inside the process: for tests, and for trying out the service without Kafka."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence

from msgspec import Struct

from app.errors import BusError
from app.outbound.bus import Bus, Keyed
from app.outbound.partitioner import partition_of

PARTITIONS = 4  # of each topic
KEPT = 10_000  # messages per partition; older ones are forgotten


class MemoryMessage(Struct, frozen=True):
    """A message, with its partition and offset."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]


class MemoryBus(Bus):
    """Keeps the latest messages, in the partitions that Kafka would choose; messages without a key take turns."""

    def __init__(self, *, partitions: int = PARTITIONS, kept: int = KEPT) -> None:
        self._partitions = partitions
        self._ends: defaultdict[str, list[int]] = defaultdict(lambda: [0] * partitions)
        self._kept: defaultdict[str, deque[MemoryMessage]] = defaultdict(lambda: deque(maxlen=kept * partitions))
        self._closed = False

    async def publish_all(
        self, topic: str, messages: Sequence[Keyed], headers: Mapping[str, bytes]
    ) -> dict[int, BusError]:
        """Keep messages."""
        if self._closed:
            return dict.fromkeys(range(len(messages)), BusError("the bus is closed"))
        ends = self._ends[topic]
        for key, value in messages:
            partition = sum(ends) % self._partitions if key is None else partition_of(key, self._partitions)
            self._kept[topic].append(MemoryMessage(topic, partition, ends[partition], key, value, dict(headers)))
            ends[partition] += 1
        await asyncio.sleep(0)  # lets other tasks run, as a real bus does
        return {}

    def messages(self, topic: str) -> list[MemoryMessage]:
        """The messages of a topic, in the order in which they were published."""
        return list(self._kept[topic])

    async def close(self) -> None:
        """Accept no more messages. The kept ones can still be read."""
        self._closed = True
