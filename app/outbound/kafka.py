"""Kafka as a bus."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from msgspec import Struct, field

from app.errors import BusError, MessageRefusedError, StartError
from app.outbound.bus import Bus, Keyed
from app.outbound.client_log import client_log
from app.outbound.kafka_options import Credentials

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 10_000  # messages of a flight, unless one call has more; further ones take the next flight
SOONEST = 0.001  # seconds until the next look for reports, after a look that found some
SLOWER = 1.2  # each wait is longer than the one before by this factor, while looks find no report
LATEST_BUSY = 0.05  # seconds of the longest wait while reports are expected
LATEST_IDLE = 1.0  # seconds of the longest wait otherwise, for the library's own news
MAX_MESSAGE = 100_000_000  # bytes; the broker decides what is too large, after compression
DELIVERY_TIMEOUT = timedelta(seconds=30)  # until a message that no broker confirms has failed
GRACE = timedelta(seconds=5)  # for messages under way when the bus is closed

# The message itself is at fault: a retry changes nothing.
_NEVER_TAKEN = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD}


_Headers = list[tuple[str, str | bytes | None]]  # the values are bytes


class PlacedMessage(Struct, frozen=True, gc=False):
    """A message for a partition that its sender has chosen, with headers of its own; without a value, a tombstone."""

    key: bytes
    value: bytes | None
    partition: int
    headers: _Headers


class _Group(Struct, eq=False):
    """Messages that were handed over together, and their failures. `headers` are those of all plain messages."""

    topic: str
    messages: Sequence[Keyed] | Sequence[PlacedMessage]
    headers: _Headers
    landed: asyncio.Future[dict[int, BusError]]
    failed: dict[int, BusError] = field(default_factory=dict)

    def fail(self, index: int, error: KafkaError | None, _: Message) -> None:
        """Hear the delivery report of a message; the client sends one only for an error."""
        if error is not None:
            self.failed[index] = _failure(error)


class KafkaBus(Bus):
    """An idempotent producer: a published message is on all in-sync replicas, and retries do not repeat it.

    Messages go in flights, one at a time: all waiting messages depart together, and have landed when the client holds
    none of them any more. Those without an error report have then arrived. Reports of successes, too, would take as
    long as handing the messages over (`docs/decisions/0010-bus.md`).

    The bus belongs to the running event loop and looks there for delivery reports; it has no Python thread. `servers`
    are bootstrap servers; they need not be up. A message that no broker confirms within `delivery_timeout` fails with
    BusError. `options` are librdkafka's and override the settings below. Raises StartError for settings that
    librdkafka refuses.
    """

    def __init__(
        self,
        servers: str,
        *,
        delivery_timeout: timedelta = DELIVERY_TIMEOUT,
        options: Mapping[str, str | int] | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._credentials = credentials
        self._settings: dict[str, object] = {
            "bootstrap.servers": servers,
            "client.id": "pqs",
            "enable.idempotence": True,  # and so acks=all
            "partitioner": "murmur2_random",  # as Kafka's Java client has it, and partitioner.py
            "compression.type": "lz4",
            "linger.ms": 2,
            "message.max.bytes": MAX_MESSAGE,
            "delivery.report.only.error": True,
            "message.timeout.ms": round(delivery_timeout.total_seconds() * 1000),
            **(options or {}),
            "logger": client_log,
        }
        try:
            self._producer: Producer | None = Producer(self._settings)
        except KafkaException as error:
            raise StartError(f"the Kafka client refuses its settings: {_said(error.args[0])}") from error
        self._waiting = deque[_Group]()
        self._flight: list[_Group] = []
        self._wait = LATEST_IDLE
        self._loop = asyncio.get_running_loop()
        self._next_look = self._loop.call_later(self._wait, self._look)
        self._ending: asyncio.Task[None] | None = None  # the end of a producer that failed for good
        self._closed = False

    async def publish_all(
        self, topic: str, messages: Sequence[Keyed], headers: Mapping[str, bytes]
    ) -> dict[int, BusError]:
        """Produce messages, and wait until their flight has landed."""
        return await self._send(_Group(topic, messages, list(headers.items()), self._loop.create_future()))

    async def publish_placed(self, topic: str, messages: Sequence[PlacedMessage]) -> dict[int, BusError]:
        """The same for messages whose partitions are chosen; each partition gets its messages in this order."""
        return await self._send(_Group(topic, messages, [], self._loop.create_future()))

    def partitions_of(self, topic: str, timeout: float) -> int | None:
        """How many partitions a topic has, within `timeout` seconds; None without one. To be called in a thread.

        From then on the producer knows partitions that the topic has been given. Raises BusError when nobody answers.
        """
        if self._producer is None:
            raise BusError("there is no Kafka client at the moment")
        try:
            found = self._producer.list_topics(topic, timeout).topics.get(topic)
        except KafkaException as error:
            raise BusError(f"Kafka does not say which topics it has: {_said(error.args[0])}") from error
        return None if found is None or found.error is not None else len(found.partitions)

    async def _send(self, group: _Group) -> dict[int, BusError]:
        if self._closed:
            return dict.fromkeys(range(len(group.messages)), _closed())
        self._waiting.append(group)
        if not self._flight:
            self._loop.call_soon(self._depart)  # together with all other calls of this turn of the loop
        return await group.landed

    def _depart(self) -> None:
        """Start a flight of the waiting messages, as far as there is room, unless one is under way."""
        if self._flight or self._producer is None or self._closed:
            return
        room = MAX_IN_FLIGHT
        while self._waiting and (room >= len(self._waiting[0].messages) or not self._flight):
            group = self._waiting.popleft()
            if not group.landed.done():  # else its caller was cancelled
                room -= len(group.messages)
                self._flight.append(group)
                _produce(self._producer, group)
        if self._flight:
            self._look_in(SOONEST)

    def _land(self) -> None:
        """Tell the callers of the flight their failures. The other messages have arrived for good."""
        flight, self._flight = self._flight, []
        for group in flight:
            if not group.landed.done():
                group.landed.set_result(group.failed)

    def _look(self) -> None:
        """Fetch the reports that have arrived, and look again: soon if there were some, else after ever longer waits.

        A thread that waits for reports would compete with the event loop for the interpreter's lock.
        """
        if self._producer is None:
            return
        if self._credentials is not None:
            self._credentials.renew(self._producer, self._settings)
        try:
            found = self._producer.poll(0)
        except Exception as error:
            if not isinstance(error, KafkaException):  # the client logs those itself
                log.exception("the Kafka client has failed")
            self._end_producer(self._producer)
            return
        if self._flight and not len(self._producer):
            self._land()
            self._loop.call_soon(self._depart)  # with the next messages of the callers that were just told
        if found:
            self._look_in(SOONEST)
        else:
            self._look_in(min(self._wait * SLOWER, LATEST_BUSY if self._flight else LATEST_IDLE))

    def _look_in(self, seconds: float) -> None:
        self._wait = seconds
        self._next_look.cancel()
        self._next_look = self._loop.call_later(seconds, self._look)

    def _end_producer(self, producer: Producer) -> None:
        """Close a producer that failed for good. Its messages fail, or are still confirmed.

        Nothing departs until that is known, so the flight that lands then is the old producer's.
        """
        self._producer = None
        self._ending = self._loop.create_task(_end(producer, GRACE))
        self._ending.add_done_callback(self._ended)

    def _ended(self, ending: asyncio.Task[None]) -> None:
        self._ending = None
        if ending.cancelled() or ending.exception() is not None:
            _refuse(self._flight, BusError("the Kafka client ended without reporting which messages arrived"))
        self._land()
        if not self._closed:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Create another producer. If that fails, fail the waiting messages, and try again later."""
        try:
            self._producer = Producer(self._settings)
        except KafkaException as error:
            failure = BusError(f"there is no Kafka client: {_said(error.args[0])}")
            log.error("%s", failure)  # noqa: TRY400 - a traceback would add nothing
            _refuse(self._waiting, failure)
            self._waiting.clear()
            self._next_look = self._loop.call_later(LATEST_IDLE, self._begin_anew)
        else:
            self._look_in(SOONEST)
            self._depart()

    async def close(self) -> None:
        """Wait `GRACE` for messages under way; those not confirmed by then fail."""
        self._depart()
        self._closed = True
        self._next_look.cancel()
        try:
            if self._ending is not None:
                await asyncio.wait([self._ending])
            if self._producer is not None:
                await _end(self._producer, GRACE)
                self._land()
        except TimeoutError:
            log.warning("the Kafka client ended without reporting which messages arrived")
        finally:
            _refuse([*self._flight, *self._waiting], _closed())


def _produce(producer: Producer, group: _Group) -> None:
    for index, message in enumerate(group.messages):
        try:
            if isinstance(message, PlacedMessage):
                producer.produce(
                    group.topic,
                    message.value,
                    message.key,
                    message.partition,
                    headers=message.headers,
                    on_delivery=partial(group.fail, index),
                )
            else:
                key, value = cast("Keyed", message)
                producer.produce(
                    group.topic, value, key, headers=group.headers, on_delivery=partial(group.fail, index)
                )
        except BufferError:
            group.failed[index] = BusError("the Kafka client's queue is full")
        except KafkaException as error:
            group.failed[index] = _failure(error.args[0])
        except Exception as error:  # noqa: BLE001 - a message that was not handed over must not count as arrived
            group.failed[index] = BusError(f"the Kafka client did not accept the message: {error}")


def _refuse(groups: Iterable[_Group], error: BusError) -> None:
    """Fail all messages of these groups."""
    for group in groups:
        if not group.landed.done():
            group.landed.set_result(dict.fromkeys(range(len(group.messages)), error))


async def _end(producer: Producer, grace: timedelta) -> None:
    """Deliver or fail the messages that a producer still holds, and stop its threads.

    Raises TimeoutError if it does not even give up in time: then nobody knows which messages arrived.
    """
    try:
        async with asyncio.timeout(grace.total_seconds()):
            await _served(producer)
    except TimeoutError:
        await asyncio.to_thread(producer.purge)
        async with asyncio.timeout(grace.total_seconds()):
            await _served(producer)
    await asyncio.to_thread(producer.close)


async def _served(producer: Producer) -> None:
    """Fetch reports until none is outstanding."""
    while len(producer):
        with suppress(KafkaException):  # it failed for good, which the reports say, too
            producer.poll(0)
        await asyncio.sleep(SOONEST)


def _closed() -> BusError:
    return BusError("the bus is closed")


def _failure(error: KafkaError) -> BusError:
    return (MessageRefusedError if error.code() in _NEVER_TAKEN else BusError)(_said(error))


def _said(error: KafkaError) -> str:
    return f"{error.str()} ({error.name()})"
