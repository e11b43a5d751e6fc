"""What goes through Kafka: a producer of events, and the messages that the relay sent, read back."""

import asyncio
import threading
from functools import partial
from random import Random
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec
from confluent_kafka import KafkaError, Message, Producer
from msgspec import Struct

from tests.broker import read_topic
from tests.faults.clients import Client
from tests.faults.events import Entity, recorded
from tests.faults.history import Sent
from tests.faults.kafka import Kafka

ENTITIES = 20
DELIVERED_WITHIN = 300.0  # seconds
POLL = 0.02  # seconds


class Producing(Client):
    """Writes events of entities of its own to a topic, keyed by entity; each delivered message is a sent event.

    It can be paused, for an operator who changes the topic while nobody writes to it.
    """

    def __init__(self, kafka: Kafka, topic: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._kafka, self._topic = kafka, topic
        self._producer = self._connected()
        self.entities = [
            Entity(uuid5(NAMESPACE_URL, f"{self.seed} {self.name} {number}")) for number in range(ENTITIES)
        ]
        self._may_go = threading.Event()
        self._may_go.set()
        self._idle = threading.Event()
        self._waiting = 0

    def _connected(self) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self._kafka.servers,
                "enable.idempotence": True,
                "message.timeout.ms": int(DELIVERED_WITHIN * 1000),
                "topic.metadata.refresh.interval.ms": 500,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Write until told to stop, and until everything is delivered."""
        while not stop.is_set():
            if self._may_go.is_set():
                self._idle.clear()
                await self.step(self.dice())
            else:
                await self._drain()
                self._idle.set()
                await asyncio.sleep(POLL)
        await self._drain()
        self._idle.set()

    async def step(self, dice: Random) -> None:
        """Write some messages."""
        for _ in range(dice.randint(1, 10)):
            event = recorded(dice.choice(self.entities), dice)
            del event["position"]
            self._waiting += 1
            self._producer.produce(
                self._topic,
                msgspec.json.encode(event),
                event["entity_id"].encode(),
                on_delivery=partial(self._delivered, event),
            )
        self._producer.poll(0)
        await asyncio.sleep(dice.uniform(0, 0.4))

    def _delivered(self, event: dict[str, Any], error: KafkaError | None, _: Message) -> None:
        self._waiting -= 1
        if error is not None:
            self.surprised(f"Kafka did not take a message within {DELIVERED_WITHIN:.0f} s: {error}")
            return
        self.history.add(
            Sent(self.name, UUID(event["entity_id"]), UUID(event["event_id"]), event["type"], "applied", 1)
        )

    async def _drain(self) -> None:
        while self._waiting:
            self._producer.poll(0)
            await asyncio.sleep(POLL)

    def pause(self) -> None:
        """Stop writing; returns when everything written is delivered. For other threads."""
        self._idle.clear()
        self._may_go.clear()
        assert self._idle.wait(DELIVERED_WITHIN)

    def go_on(self) -> None:
        """Write again, with what the topic has become."""
        self._producer = self._connected()
        self._may_go.set()


class Published(Struct, frozen=True):
    """A message that the relay sent."""

    id: UUID
    entity_id: UUID
    type: str
    sequence: int


class _CloudEvent(Struct):
    id: UUID
    subject: UUID
    type: str
    sequence: str


def published(kafka: Kafka, topic: str) -> list[Published]:
    """All messages of the topic to which the relay sends, each partition in its order."""
    decoder = msgspec.json.Decoder(_CloudEvent)
    events = [decoder.decode(each.value) for each in read_topic(kafka, topic)]
    return [Published(each.id, each.subject, each.type, int(each.sequence)) for each in events]
