"""The Kafka consumer: messages become events, batch by batch, in one transaction with their watermarks.

A partition is read on from its watermark in the database, not from the offset committed to Kafka. That is committed
after the transaction, for tools that show the group's lag. A batch moves its watermarks only if they stand where this
consumer last saw them. So each message is applied once and in order even if two consumers believe they own a
partition: the one that has lost it writes nothing.

librdkafka is called in a thread, one call at a time (`app/inbound/membership.py`). Decoding and writing run on the
event loop.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TypeVar
from uuid import uuid4

from confluent_kafka import KafkaException

from app.concurrency.worker import OwnWorker, set_within
from app.domain.results import Result
from app.errors import (
    ForeignMessageError,
    FramedMessageError,
    InvalidInputError,
    RefusedValuesError,
    UnavailableError,
    UnreadableError,
)
from app.inbound.foreign import ForeignCount
from app.inbound.holding import MessageRead, Sorting, Unfit
from app.inbound.membership import MAX_BATCH, Batch, Membership, OutOfRangeError, Watermarks
from app.inbound.traced import recorded_messages
from app.outbound.client_log import client_log
from app.outbound.kafka_options import Credentials
from app.projection.clock import DatabaseClock
from app.projection.projector import Projector
from app.runtime.metrics import Metrics
from app.store import watermarks
from app.store.database import Connection, Database
from app.store.watermarks import FoundPartition, KafkaPartition, LostPlaceError, PartitionProgress
from app.tracing.recorder import Tracer
from app.wire.messages import read_message

log = logging.getLogger(__name__)

DECODED_AT_ONCE = 50  # messages, before other tasks of the event loop get a turn
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # seconds before a retry while the database does not answer; doubles each time
REFUSED_BY_DATABASE = Unfit("refused: PostgreSQL does not accept this write; the log of `pqs consume` says why")

T = TypeVar("T")


class Consumer(OwnWorker):
    """Reads topics in a consumer group, each partition from its watermark on, and applies their events.

    It waits for a database or a broker that is down. If another consumer has moved a watermark, it starts again from
    the watermarks. `options` are librdkafka's and override the settings below; `batch` is the most messages of one
    transaction; `static_id` is the consumer's id in its group (KIP-345). Messages that are not events are passed
    over, or with `keep_foreign` become dead letters. With `holds` (PQS_DEAD_LETTERS), the messages of an entity wait
    behind a dead letter that is a transition.
    """

    def __init__(
        self,
        database: Database,
        projector: Projector,
        clock: DatabaseClock,
        *,
        servers: str,
        topics: Sequence[str],
        group: str,
        options: Mapping[str, str | int] | None = None,
        credentials: Credentials | None = None,
        batch: int = MAX_BATCH,
        static_id: str | None = None,
        stop_at_gaps: bool = False,
        keep_foreign: bool = False,
        holds: bool = True,
        tracer: Tracer | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._report = (metrics or Metrics()).consumer
        self._membership: Membership | None = None
        self._clock = clock
        self._stop_at_gaps = stop_at_gaps
        self._keep_foreign = keep_foreign
        self._holds = holds
        self._foreign = ForeignCount()
        self._tracer = tracer
        self._credentials = credentials
        self._database = database
        self._projector = projector
        self._topics = list(topics)
        self._batch = batch
        self._name = f"{socket.gethostname()[:200]}:{os.getpid()}:{uuid4().hex[:8]}"
        self._settings: dict[str, object] = {
            "bootstrap.servers": servers,
            "client.id": "pqs",
            "group.id": group,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 10_000,  # until the partitions of a killed consumer go to others
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 100,  # a broker waits this long for messages, and other answers wait with it
            "topic.metadata.refresh.interval.ms": 2_000,  # until a new topic or partition is found
            **({} if static_id is None else {"group.instance.id": static_id}),
            **(options or {}),
            "auto.offset.reset": "error",  # Membership decides what it means that a message is not there
            "logger": client_log,
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Read until `stop`, then write the batch that is under way and leave the group (see Worker).

        Raises StartError for settings that librdkafka refuses, TopicRestartedError (of a topic that was created
        again), GapError (of removed messages, if it is to stop there), and RefusedValuesError if PostgreSQL refuses a
        dead letter, too.
        """
        while not stop.is_set():
            self._membership = membership = Membership(
                self._settings,
                self._topics,
                self._watermarks_for(stop),
                batch=self._batch,
                credentials=self._credentials,
                stop_at_gaps=self._stop_at_gaps,
                report=self._report,
            )
            try:
                await self._read(membership, stop)
            except (LostPlaceError, OutOfRangeError) as error:
                self._report.restart("lost_place" if isinstance(error, LostPlaceError) else "out_of_range")
                log.warning("%s; reading starts again from the watermarks", error)
            except UnavailableError as error:  # the stop ended the wait for the database
                log.warning("stopped before the last batch was written: %s", error)
            except KafkaException as error:
                self._report.restart("kafka")
                log.warning("Kafka failed, reading starts again: %s", error)
                await set_within(stop, LONGEST_WAIT)
            finally:
                self._membership = None
                await asyncio.to_thread(membership.close)
                self._report.stopped()

    def trouble(self) -> str | None:
        """Why it reads nothing now (see OwnWorker)."""
        return "reading begins again" if self._membership is None else self._membership.trouble()

    def _watermarks_for(self, stop: asyncio.Event) -> Watermarks:
        """A function for the thread that reads watermarks from the database."""
        loop = asyncio.get_running_loop()

        def watermarks_of(partitions: Sequence[FoundPartition]) -> dict[KafkaPartition, PartitionProgress]:
            looking = _tried(lambda: self._database.write(watermarks.find, partitions, self._name), stop)
            return asyncio.run_coroutine_threadsafe(looking, loop).result()

        return watermarks_of

    async def _read(self, membership: Membership, stop: asyncio.Event) -> None:
        """Fetch, decode and write batches, three at the same time: each batch moves from one step to the next."""
        fetching = asyncio.create_task(asyncio.to_thread(membership.fetch))
        writing: asyncio.Task[None] | None = None
        try:
            while True:
                batch = await fetching
                if stop.is_set():
                    break
                fetching = asyncio.create_task(asyncio.to_thread(membership.fetch))
                decoded = await self._decoded(batch, stop)
                if writing is not None:
                    await writing
                writing = asyncio.create_task(self._write(membership, batch, decoded, stop))
            if writing is not None:
                await writing
        finally:
            membership.end()
            await asyncio.wait([each for each in (fetching, writing) if each is not None])

    async def _decoded(self, batch: Batch, stop: asyncio.Event) -> "list[MessageRead]":
        """The event of each message, or the reason why it has none; None for one that is passed over."""
        decoded: list[MessageRead] = []
        for number, message in enumerate(batch.messages):
            if number % DECODED_AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                event = read_message(message)
            except ForeignMessageError as error:
                self._report.foreign(error.kind)
                decoded.append(Unfit(str(error), foreign=True) if self._keep_foreign else None)
                if not self._keep_foreign:
                    self._foreign.add(message, error)
            except (InvalidInputError, UnreadableError) as error:
                if isinstance(error, FramedMessageError):
                    self._report.foreign("framed")
                decoded.append(Unfit(str(error)))
            else:
                fault = None
                if self._clock.may_be_ahead(event):
                    fault = await _tried(partial(self._clock.fault, event), stop)
                decoded.append(event if fault is None else Unfit(f"{fault.pointer}: {fault.detail}"))
        return decoded

    async def _write(
        self, membership: Membership, batch: Batch, decoded: "Sequence[MessageRead]", stop: asyncio.Event
    ) -> None:
        """Apply a batch, and let its offsets be committed to Kafka."""
        try:
            if batch.advances:
                await self._take(batch, decoded, stop)
            membership.is_written(batch)
        finally:
            membership.is_done()

    async def _take(self, batch: Batch, decoded: "Sequence[MessageRead]", stop: asyncio.Event) -> None:
        """Apply a batch as one transaction. If PostgreSQL refuses it, apply it by halves.

        A single message that PostgreSQL refuses becomes a dead letter. Raises RefusedValuesError if that is refused,
        too.
        """
        try:
            await _tried(lambda: self._take_at_once(batch, decoded), stop)
        except RefusedValuesError:
            if len(batch.messages) > 1:
                first, second = batch.halves()
                middle = len(first.messages)
                await self._take(first, decoded[:middle], stop)
                await self._take(second, decoded[middle:], stop)
            elif batch.messages and decoded != [REFUSED_BY_DATABASE]:
                await self._take(batch, [REFUSED_BY_DATABASE], stop)
            else:
                raise

    async def _take_at_once(self, batch: Batch, decoded: "Sequence[MessageRead]") -> None:
        """Write a batch in one transaction: events, dead letters, what waits behind them, and watermarks."""
        sorting = Sorting(batch.messages, decoded, holds=self._holds)

        async def also(connection: Connection, results: list[Result]) -> None:
            await watermarks.advance(connection, batch.advances, self._name)
            await sorting.write(connection, results)

        # The messages of each partition are in order already.
        with nullcontext() if self._tracer is None else recorded_messages(self._tracer, batch.messages, decoded):
            await self._projector.persist_chosen(sorting.choose, revise=sorting.revise, also=also)
        self._report.written(batch.advances)
        if refused := sum(isinstance(each, Unfit) for each in decoded):
            self._report.invalid(refused)
        sorting.tell()


async def _tried(work: Callable[[], Coroutine[None, None, T]], stop: asyncio.Event) -> T:
    """Do `work`, and retry while the database does not answer. After `stop` its error is raised."""
    wait = FIRST_WAIT
    while True:
        try:
            return await work()
        except UnavailableError as error:
            log.warning("%s; trying again in %.1f s", error, wait)
            if await set_within(stop, wait):
                raise
            wait = min(2 * wait, LONGEST_WAIT)
