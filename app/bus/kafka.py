"""The bus that is a Kafka."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from app.bus.bus import Bus, Reported
from app.bus.client_log import client_log
from app.errors import BusError, MessageRefusedError, StartError

MAX_IN_FLIGHT = 10_000  # messages that await their report; further ones wait for one of those
SOONEST = 0.001  # seconds until the next look for reports, after one that found some
SLOWER = 1.2  # times longer is each wait, while looks find none
LATEST_BUSY = 0.05  # seconds until the next look, while reports are awaited
LATEST_IDLE = 1.0  # seconds until the next look otherwise: for what the library has to say
LARGEST = 100_000_000  # bytes of a message: it is the broker that says what is too large, of what is compressed
GRACE = timedelta(seconds=5)  # for what is on its way when the bus is closed

# The fault is the message's, not the broker's or the moment's: trying again changes nothing.
_REFUSED = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD}


class KafkaBus(Bus):
    """An idempotent producer: what was published is on all in-sync replicas, and not twice by the client's retries.

    It belongs to the running event loop, and looks there for delivery reports: it has no Python thread. `servers` are
    bootstrap servers; they need not be up. A message that no broker confirms within `delivery_timeout` fails with
    BusError. `options` are librdkafka's, and override what is set here. Raises StartError for settings that
    librdkafka refuses.
    """

    def __init__(
        self,
        servers: str,
        *,
        delivery_timeout: timedelta = timedelta(seconds=30),
        options: Mapping[str, str | int] | None = None,
    ) -> None:
        self._settings: dict[str, object] = {
            "bootstrap.servers": servers,
            "client.id": "pqs",
            "enable.idempotence": True,  # and so acks=all
            "partitioner": "murmur2_random",  # as Kafka's Java client has it, and partitioner.py
            "compression.type": "lz4",
            "linger.ms": 2,
            "message.max.bytes": LARGEST,
            "message.timeout.ms": round(delivery_timeout.total_seconds() * 1000),
            **(options or {}),
            "logger": client_log,
        }
        try:
            self._producer = Producer(self._settings)
        except KafkaException as error:
            raise StartError(f"the Kafka client refuses its settings: {_said(error.args[0])}") from error
        self._room = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._awaited = 0  # delivery reports
        self._wait = LATEST_IDLE
        self._loop = asyncio.get_running_loop()
        self._next_look = self._loop.call_later(self._wait, self._look)
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def publish(self, topic: str, key: bytes | None, value: bytes, headers: dict[str, bytes]) -> None:
        """Produce a message, and wait for its delivery report."""
        async with self._room:
            await super().publish(topic, key, value, headers)

    def send(
        self, topic: str, key: bytes | None, value: bytes, headers: dict[str, bytes], reported: Reported
    ) -> None:
        """Produce a message, and tell its delivery report."""
        if self._closed:
            self._loop.call_soon(reported, BusError("the bus is closed"))
            return
        try:
            self._producer.produce(
                topic,
                value,
                key,
                headers=headers,  # type: ignore[arg-type]  # their values may be more than bytes, and here are not
                on_delivery=partial(self._delivered, reported),
            )
        except BufferError:
            self._loop.call_soon(reported, BusError("the Kafka client's queue is full"))
        except KafkaException as error:
            self._look_in(SOONEST)  # a producer that has failed for good says so there
            self._loop.call_soon(reported, _failure(error.args[0]))
        else:
            self._awaited += 1
            if self._wait > SOONEST:
                self._look_in(SOONEST)

    def _delivered(self, reported: Reported, error: KafkaError | None, _: Message) -> None:
        """Called by a look, so on the event loop."""
        self._awaited -= 1
        reported(None if error is None else _failure(error))

    def _look(self) -> None:
        """Fetch the reports that are there, and come again: soon when there were some, else ever later.

        A thread that waits for reports would need the interpreter's lock for each of them, against the event loop.
        """
        try:
            found = self._producer.poll(0)
        except KafkaException:  # it has failed for good; it is in the log
            self._replace_producer()
            found = 0
        if found:
            self._look_in(SOONEST)
        else:
            self._look_in(min(self._wait * SLOWER, LATEST_BUSY if self._awaited else LATEST_IDLE))

    def _look_in(self, seconds: float) -> None:
        self._wait = seconds
        self._next_look.cancel()
        self._next_look = self._loop.call_later(seconds, self._look)

    def _replace_producer(self) -> None:
        """Begin anew with a producer that takes messages; what the last one held fails, or is confirmed yet."""
        ending = self._loop.create_task(_end(self._producer, GRACE))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        self._producer = Producer(self._settings)

    async def close(self) -> None:
        """Wait `GRACE` for what is on its way; what is not confirmed by then fails."""
        self._closed = True
        self._next_look.cancel()
        await asyncio.gather(_end(self._producer, GRACE), *self._ending)


async def _end(producer: Producer, grace: timedelta) -> None:
    """Deliver or fail what a producer still holds, and stop its threads."""
    try:
        async with asyncio.timeout(grace.total_seconds()):
            await _served(producer)
    except TimeoutError:
        await asyncio.to_thread(producer.purge)
        await _served(producer)
    await asyncio.to_thread(producer.close)


async def _served(producer: Producer) -> None:
    """Fetch reports until none is outstanding."""
    while len(producer):
        with suppress(KafkaException):  # that it has failed for good; the reports say so too
            producer.poll(0)
        await asyncio.sleep(SOONEST)


def _failure(error: KafkaError) -> BusError:
    return (MessageRefusedError if error.code() in _REFUSED else BusError)(_said(error))


def _said(error: KafkaError) -> str:
    return f"{error.str()} ({error.name()})"
