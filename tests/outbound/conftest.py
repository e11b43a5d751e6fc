"""Both kinds of bus, and how to read the messages that they carried."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from app.outbound.bus import Bus
from app.outbound.kafka import KafkaBus
from app.outbound.memory import MemoryBus, MemoryMessage
from tests.broker import Broker, read_topic


@dataclass(frozen=True)
class Line:
    """A bus, a topic of four partitions, and `read(count)`: the messages in the topic, each partition in order."""

    bus: Bus
    topic: str
    read: Callable[[int], list[MemoryMessage]]


@pytest.fixture(params=["memory", "kafka"])
async def line(request: pytest.FixtureRequest, kafka: Broker, topic: str) -> AsyncIterator[Line]:
    """Each kind of bus in turn."""
    if request.param == "memory":
        memory = MemoryBus()
        line = Line(memory, topic, lambda count: memory.messages(topic)[:count])
    else:
        line = Line(KafkaBus(kafka.servers), topic, lambda count: read_topic(kafka, topic, count))
    yield line
    await line.bus.close()
