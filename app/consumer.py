"""Kafka in: the messages of some topics become events, batch by batch, in one transaction with their watermarks.

Where a partition is read on from is its watermark, in the database, and not what is committed to Kafka: that is
written after it, for whoever looks at the group's lag. A batch moves its watermarks from where this consumer knows
them to stand. So whatever two consumers believe, each message is taken in once and in its place, and whoever has lost
a partition writes nothing of it.

librdkafka is asked in a thread, by one call at a time: `_Reading`. Decoding and writing are on the event loop.
"""

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeVar, cast
from uuid import uuid4

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    TIMESTAMP_NOT_AVAILABLE,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka import Consumer as Client
from confluent_kafka import Message as ClientMessage
from msgspec import Struct

from app.breaker import CircuitBreaker
from app.domain.events import Event
from app.domain.registration import Outcome, Timing
from app.effects import contract
from app.errors import InvalidInputError, StartError, UnavailableError, UnreadableError
from app.incoming import Incoming, read_message
from app.outgoing import Outgoing
from app.projector import Projector, Result
from app.settings import BusKind, Settings
from app.store import dead_letters, watermarks
from app.store.database import Connection, Database
from app.store.dead_letters import Letter
from app.store.watermarks import Advance, LostPlaceError, Partition

log = logging.getLogger(__name__)

CONNECTIONS = 2  # one for batches, one to look watermarks up
BATCH = 1000  # messages that one transaction takes in
IDLE = 0.2  # seconds that the thread waits for a first message, before it looks up
DECODED_AT_ONCE = 50  # messages, before the event loop turns to what the database has answered
LOOK = 0.5  # seconds between two looks at whether a partition that was read to its end still ends there
ANSWER = 1.0  # seconds that a broker has to say where a partition ends
HANDOVER = timedelta(seconds=10)  # that a partition which is taken away waits for what is being written of it
SOONEST, LATEST = 0.1, 5.0  # seconds until the database is asked again that did not answer
LAST_TIME = 253_370_764_799_999  # milliseconds since 1970: the end of the year 9998

T = TypeVar("T")


@asynccontextmanager
async def consuming(settings: Settings, url: str) -> AsyncIterator["Consumer"]:
    """A consumer as the settings name it. `url` is the database's.

    Raises StartError where a setting is missing.
    """
    if settings.kafka is None:
        raise StartError("PQS_KAFKA is not set: the servers to read from, as host:port,host:port")
    if settings.topics_in is None:
        raise StartError("PQS_TOPICS_IN is not set: the topics to read, as topic,topic")
    timing = Timing(
        ack_timeout=timedelta(seconds=settings.ack_timeout),
        liveness_interval=timedelta(seconds=settings.liveness_interval),
        liveness_window=timedelta(seconds=settings.liveness_window),
    )
    topic = None if settings.bus is BusKind.OFF else settings.topic_out
    outgoing = Outgoing(topic, contract.after_the_transaction(contract.routes_of(settings)))
    database = Database(
        url,
        pool_size=CONNECTIONS,
        statement_timeout=timedelta(seconds=settings.statement_timeout),
        breaker=CircuitBreaker(open_for=timedelta(seconds=SOONEST)),  # whoever waits here has a pace of its own
    )
    try:
        yield Consumer(
            database,
            Projector(database, timing, outgoing),
            servers=settings.kafka,
            topics=settings.topics_in.split(","),
            group=settings.consumer_group,
        )
    finally:
        await database.close()


class Batch(Struct, frozen=True):
    """What was read in one go, and how that moves the watermarks of its partitions."""

    messages: list[Incoming]
    advances: list[Advance]


class Consumer:
    """Reads topics in a consumer group, each partition from its watermark on, and takes in what they hold.

    It waits for a database or a broker that is down, and begins anew at the watermarks when another consumer has
    moved one of them. `options` are librdkafka's, and override what is set here.
    """

    def __init__(
        self,
        database: Database,
        projector: Projector,
        *,
        servers: str,
        topics: Sequence[str],
        group: str,
        options: Mapping[str, str | int] | None = None,
    ) -> None:
        self._database = database
        self._projector = projector
        self._topics = list(topics)
        self._name = f"{socket.gethostname()[:200]}:{os.getpid()}:{uuid4().hex[:8]}"
        self._settings: dict[str, object] = {
            "bootstrap.servers": servers,
            "client.id": "pqs",
            "group.id": group,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 10_000,  # until the partitions of a consumer that was killed go to others
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 100,  # that a broker waits for messages, and with it what else is asked of it
            "auto.offset.reset": "earliest",  # where Kafka no longer has what the watermark says
            "topic.metadata.refresh.interval.ms": 10_000,  # until a topic that is made later is found
            **(options or {}),
            "logger": log,
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Read until `stop`; then write the batch that is under way, and leave the group.

        A database that does not answer by then does not hold this up: what was not written is read again by who
        comes next. Raises StartError for settings that librdkafka refuses.
        """
        while not stop.is_set():
            reading = _Reading(self._settings, self._topics, self._places_for(stop))
            try:
                await self._read(reading, stop)
            except LostPlaceError as error:
                log.warning("%s; reading begins anew at the watermarks", error)
            except UnavailableError as error:  # which is waited for until there is no more time
                log.warning("stopped before the last batch was written: %s", error)
            except KafkaException as error:
                log.warning("reading begins anew: %s", error)
                await _passed(stop, LATEST)
            finally:
                await asyncio.to_thread(reading.close)

    def _places_for(self, stop: asyncio.Event) -> "_Places":
        """What the thread calls to learn where to read on from."""
        loop = asyncio.get_running_loop()

        def places(partitions: Sequence[Partition]) -> dict[Partition, int]:
            async def work(connection: Connection) -> dict[Partition, int]:
                return await watermarks.read(connection, partitions)

            return asyncio.run_coroutine_threadsafe(_tried(lambda: self._database.read(work), stop), loop).result()

        return places

    async def _read(self, reading: "_Reading", stop: asyncio.Event) -> None:
        """Three things at once: one batch is fetched, the one before it is decoded, and that before it is written."""
        fetching = asyncio.create_task(asyncio.to_thread(reading.fetch))
        writing: asyncio.Task[None] | None = None
        try:
            while True:
                batch = await fetching
                if stop.is_set():
                    break
                fetching = asyncio.create_task(asyncio.to_thread(reading.fetch))
                decoded = await _decoded(batch)
                if writing is not None:
                    await writing
                writing = asyncio.create_task(self._write(reading, batch, decoded, stop))
            if writing is not None:
                await writing
        finally:
            reading.end()
            await asyncio.wait([each for each in (fetching, writing) if each is not None])

    async def _write(
        self, reading: "_Reading", batch: Batch, decoded: "Sequence[Event | str]", stop: asyncio.Event
    ) -> None:
        """Take a batch in: its events, its dead letters and its watermarks, in one transaction."""
        try:
            if batch.advances:
                await _tried(lambda: self._take(batch, decoded), stop)
            reading.is_written(batch)
        finally:
            reading.is_done()

    async def _take(self, batch: Batch, decoded: "Sequence[Event | str]") -> None:
        events = [each for each in decoded if not isinstance(each, str)]
        dead: list[Letter] = []

        async def also(connection: Connection, results: list[Result]) -> None:
            dead[:] = _dead(batch.messages, decoded, results)
            await watermarks.advance(connection, batch.advances, self._name)
            if dead:
                await dead_letters.add(connection, dead)

        # Each partition is in its order already.
        await self._projector.persist(events, also=also)
        for each in dead:
            log.warning("to the dead letters: %s-%s@%s: %s", each.topic, each.partition, each.offset, each.error)


async def _decoded(batch: Batch) -> "list[Event | str]":
    """The event in each message, or what is wrong with it."""
    decoded: list[Event | str] = []
    for number, message in enumerate(batch.messages):
        if number % DECODED_AT_ONCE == 0:
            await asyncio.sleep(0)
        try:
            decoded.append(read_message(message))
        except (InvalidInputError, UnreadableError) as error:
            decoded.append(str(error))
    return decoded


def _dead(messages: Sequence[Incoming], decoded: "Sequence[Event | str]", results: Sequence[Result]) -> list[Letter]:
    """The messages that could not be taken in, in their order."""
    of_events = iter(results)
    letters = []
    for message, each in zip(messages, decoded, strict=True):
        error = each if isinstance(each, str) else _refusal(next(of_events))
        if error is not None:
            letters.append(
                Letter(
                    topic=message.topic,
                    partition=message.partition,
                    offset=message.offset,
                    key=message.key,
                    value=message.value,
                    headers=message.headers,
                    error=error,
                )
            )
    return letters


def _refusal(result: Result) -> str | None:
    if result.outcome in {Outcome.EARLY, Outcome.CONFLICT}:
        return f"{result.outcome}: {result.reason}"
    return None


async def _tried(work: Callable[[], Coroutine[None, None, T]], stop: asyncio.Event) -> T:
    """Do `work`, again and again while the database does not answer; until `stop`, then its error is raised."""
    wait = SOONEST
    while True:
        try:
            return await work()
        except UnavailableError as error:
            log.warning("%s; trying again in %.1f s", error, wait)
            if await _passed(stop, wait):
                raise
            wait = min(2 * wait, LATEST)


async def _passed(stop: asyncio.Event, seconds: float) -> bool:
    """Wait so long, or until `stop`, and return whether it is that."""
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait([waiting], timeout=seconds)
    waiting.cancel()
    return stop.is_set()


_Places = Callable[[Sequence[Partition]], dict[Partition, int]]


class _Reading:
    """One membership in the group, and how far each partition is read in it. Its methods are called in a thread, one
    at a time; `is_written`, `is_done` and `end` by the event loop meanwhile."""

    def __init__(self, settings: Mapping[str, object], topics: list[str], places: _Places) -> None:
        try:
            self._client = Client(dict(settings))
        except KafkaException as error:
            raise StartError(f"the Kafka client refuses its settings: {error.args[0]}") from error
        self._watermarks = places
        self._places: dict[Partition, int | None] = {}  # the offset up to which each of ours is read
        self._ends: dict[Partition, int] = {}  # the offset after the last message, of those that were read to it
        self._looked_at = 0.0  # by the monotonic clock
        self._held: list[ClientMessage] = []
        self._written: dict[Partition, int] = {}  # and not committed to Kafka yet
        self._under_way = 0  # batches that were fetched and are not written
        self._ended = False
        self._change = threading.Condition()
        self._client.subscribe(topics, on_assign=self._assigned, on_revoke=self._revoked)

    # --- On the event loop

    def is_written(self, batch: Batch) -> None:
        """Say that a batch is in the database."""
        with self._change:
            self._written |= {(each.topic, each.partition): each.offset for each in batch.advances}

    def is_done(self) -> None:
        """Say that nothing more will be done for a batch."""
        with self._change:
            self._under_way -= 1
            self._change.notify_all()

    def end(self) -> None:
        """Say that no batch will be written any more, whatever is still fetched."""
        with self._change:
            self._ended = True
            self._change.notify_all()

    # --- In the thread

    def fetch(self) -> Batch:
        """The next messages, as many as are there, at most BATCH; after a while without any, none."""
        self._commit()
        self._held = self._client.consume(1, IDLE)
        if self._held:
            self._held += self._client.consume(BATCH - 1, 0)
        messages, last = [], {}
        for each in self._held:
            partition = (str(each.topic()), each.partition() or 0)
            error = each.error()
            if error is not None:
                self._failed(partition, each, error)
            elif partition in self._places:
                last[partition] = each
                self._ends.pop(partition, None)
                messages.append(_incoming(each))
        self._held = []
        batch = Batch(messages, self._advances(last))
        with self._change:
            self._under_way += 1
        return batch

    def _failed(self, partition: Partition, message: ClientMessage, error: KafkaError) -> None:
        if error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - that is its public name
            log.warning("Kafka: %s", error)
        elif partition in self._places:
            self._ends[partition] = message.offset() or 0

    def _advances(self, last: Mapping[Partition, ClientMessage]) -> list[Advance]:
        """How the watermarks move by these messages, the last ones of their partitions, and by what has no more."""
        caught_up = self._look()
        advances = []
        for partition in dict.fromkeys([*last, *caught_up]):
            place, message = self._places[partition], last.get(partition)
            offset = place if message is None else message.offset()
            if offset is None:  # nothing was ever read of it
                continue
            if place is not None and offset < place:
                log.warning("%s-%d has offsets again that it had before: was the topic made anew?", *partition)
                offset = place
            advances.append(
                Advance(
                    topic=partition[0],
                    partition=partition[1],
                    expected=place,
                    offset=offset,
                    message_at=None if message is None else _time_of(message),
                    caught_up=caught_up.get(partition),
                )
            )
            self._places[partition] = offset
        return advances

    def _look(self) -> dict[Partition, float]:
        """Which partitions have nothing that was not read, and since when that is sure, by the monotonic clock.

        That librdkafka came to the end is not enough: since then it may have waited for a broker that is away.
        """
        now = time.monotonic()
        if now < self._looked_at + LOOK:
            return {}
        self._looked_at = now
        asked = [TopicPartition(*each, OFFSET_END) for each in self._ends if self._places[each] is not None]
        try:
            ends = self._client.offsets_for_times(asked, timeout=ANSWER) if asked else []
        except KafkaException as error:
            log.warning("Kafka does not say where its partitions end: %s", error)
            return {}
        found = {(each.topic, each.partition): each for each in ends}
        return {
            partition: now
            for partition, each in found.items()
            if each.error is None and 0 <= each.offset <= self._ends.get(partition, -1)
        }

    def _assigned(self, client: Client, partitions: list[TopicPartition]) -> None:
        """Read new partitions from their watermarks on."""
        ours = [(each.topic, each.partition) for each in partitions]
        try:
            places = self._watermarks(ours)
        except UnavailableError:  # and it is to stop
            return
        log.info("reading %s", ", ".join(f"{topic}-{number}" for topic, number in ours) or "no new partition")
        for each in partitions:
            place = places.get((each.topic, each.partition))
            each.offset = OFFSET_BEGINNING if place is None else place + 1
            self._places[each.topic, each.partition] = place
        client.incremental_assign(partitions)

    def _revoked(self, client: Client, partitions: list[TopicPartition]) -> None:
        """Give partitions away once all that was fetched is written: then nobody reads it a second time."""
        theirs = {(each.topic, each.partition) for each in partitions}
        self._held[:] = [each for each in self._held if (each.topic(), each.partition()) not in theirs]
        for partition in theirs:
            self._places.pop(partition, None)
            self._ends.pop(partition, None)
        with self._change:
            self._change.wait_for(lambda: self._ended or not self._under_way, HANDOVER.total_seconds())
        self._commit()

    def _commit(self) -> None:
        """Tell Kafka what is in the database. When it does not hear it, nothing is lost."""
        with self._change:
            written, self._written = self._written, {}
        if written:
            offsets = [TopicPartition(*partition, offset + 1) for partition, offset in written.items()]
            try:
                self._client.commit(offsets=offsets, asynchronous=True)
            except KafkaException as error:
                log.debug("not committed: %s", error)

    def close(self) -> None:
        """Leave the group."""
        self._commit()
        self._client.close()


def _incoming(message: ClientMessage) -> Incoming:
    try:
        headers = message.headers() or []
    except UnicodeDecodeError:  # names that are no text are none that say anything here
        headers = []
    # What the client's types call optional is there in every message that came from a broker.
    place = cast("tuple[str, int, int]", (message.topic(), message.partition(), message.offset()))
    return Incoming(*place, message.key(), message.value(), cast("dead_letters.Headers", headers))


def _time_of(message: ClientMessage) -> datetime | None:
    """A message's time, None where it has none, or one that no calendar has."""
    kind, milliseconds = message.timestamp()
    if kind == TIMESTAMP_NOT_AVAILABLE or not 0 <= milliseconds <= LAST_TIME:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
