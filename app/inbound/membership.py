"""A membership in a Kafka consumer group, and the batches of messages that it fetches.

All calls of librdkafka run in a thread, one at a time; its callbacks run inside those calls.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from operator import methodcaller
from typing import cast

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
from msgspec.structs import replace

from app.errors import PqsError, StartError, UnavailableError
from app.inbound.topics import ANSWER, ClusterTopics, GapError, TopicRestartedError, check_ids
from app.outbound.kafka_options import Credentials
from app.runtime.consumer_metrics import ConsumerMetrics
from app.store.dead_letters import MessageHeaders
from app.store.watermarks import NOTHING_READ, Advance, FoundPartition, KafkaPartition, PartitionProgress
from app.wire.messages import KafkaMessage

log = logging.getLogger(__name__)

MAX_BATCH = 1000  # messages of one transaction
IDLE = 0.2  # seconds that a fetch waits for its first message
LOOK = 0.5  # seconds between two checks whether partitions still end at the last message read
HANDOVER = timedelta(seconds=10)  # to write the messages of a partition before it goes to another consumer
LAST_TIME = 253_370_764_799_999  # milliseconds since 1970: the end of the year 9998


class Batch(Struct, frozen=True):
    """Messages that were read together, and the moves of their partitions' watermarks."""

    messages: list[KafkaMessage]
    advances: list[Advance]

    def halves(self) -> "tuple[Batch, Batch]":
        """This batch as two, to be applied one after the other.

        If a partition is in both, its watermark has no known time after the first half: the sweep waits for the
        second.
        """
        middle = len(self.messages) // 2
        one, other = self.messages[:middle], self.messages[middle:]
        reached = {(each.topic, each.partition): each.offset for each in one}
        ahead = {(each.topic, each.partition) for each in other}
        first, second = [], []
        for each in self.advances:
            partition = (each.topic, each.partition)
            if partition not in reached:
                second.append(each)
            elif partition not in ahead:
                first.append(each)
            else:
                between = max(reached[partition], each.expected)
                first.append(replace(each, offset=between, message_at=None, caught_up=None))
                second.append(replace(each, expected=between))
        return Batch(one, first), Batch(other, second)


class OutOfRangeError(PqsError):
    """A partition does not have the message that is to be read next. A new membership finds out what that means."""


class Times:
    """The time up to which a partition is read, by the times of its messages, in milliseconds since 1970.

    By default a message has the time of its producer's clock, so times go back where clocks differ. `reached` is the
    newest time minus the largest step back so far; without such a step it is the time of the last message.
    """

    __slots__ = ("_back", "_newest")

    def __init__(self) -> None:
        self._newest = -1
        self._back = 0

    def add(self, time: int) -> None:
        """Add the time of the next message. A time outside the calendar counts as the nearest one inside."""
        time = min(max(time, 0), LAST_TIME)
        if time >= self._newest:
            self._newest = time
        elif self._newest - time > self._back:
            self._back = self._newest - time

    @property
    def reached(self) -> datetime | None:
        """All messages older than this have been read, as far as these messages tell; None if no message has a time.

        A later message is older only if its time goes back further than any before.
        """
        return None if self._newest < 0 else datetime.fromtimestamp((self._newest - self._back) / 1000, UTC)


# A function from partitions to how far they are read. It gives new partitions a watermark.
Watermarks = Callable[[Sequence[FoundPartition]], dict[KafkaPartition, PartitionProgress]]


class Membership:
    """One membership in the group, with its progress in each partition.

    Its methods are called in a thread, one at a time, except for `is_written`, `is_done` and `end`, which the event
    loop calls meanwhile.
    """

    def __init__(
        self,
        settings: dict[str, object],
        topics: list[str],
        watermarks: Watermarks,
        *,
        batch: int = MAX_BATCH,
        credentials: Credentials | None = None,
        stop_at_gaps: bool = False,
        report: ConsumerMetrics,
    ) -> None:
        """Join the group, to fetch up to `batch` messages at a time.

        With `stop_at_gaps` it ends where Kafka removed messages before they were read; else it goes on behind them.
        Raises StartError for settings that librdkafka refuses.
        """
        try:
            self._client = Client(dict(settings))
        except KafkaException as error:
            raise StartError(f"the Kafka client refuses its settings: {error.args[0]}") from error
        self._settings = settings
        self._credentials = credentials
        self._topics = ClusterTopics(self._client, settings, topics)
        self._watermarks = watermarks
        self._batch = batch
        self._stop_at_gaps = stop_at_gaps
        self._report = report
        self._is_member = False
        self._offsets: dict[KafkaPartition, int] = {}  # the offset up to which each of our partitions is read
        self._ends: dict[
            KafkaPartition, int
        ] = {}  # of partitions read to their end: the offset after the last message
        self._times: dict[KafkaPartition, Times] = {}  # of the messages read from each of our partitions
        self._looked_at = 0.0  # by the monotonic clock
        self._held: list[ClientMessage] = []
        self._written: dict[KafkaPartition, int] = {}  # offsets not yet committed to Kafka
        self._under_way = 0  # batches that are fetched, but not written
        self._ended = False
        self._change = threading.Condition()
        self._client.subscribe(topics, on_assign=self._assigned, on_revoke=self._revoked)

    # --- On the event loop

    def is_written(self, batch: Batch) -> None:
        """A batch is in the database."""
        with self._change:
            self._written |= {(each.topic, each.partition): each.offset for each in batch.advances}

    def is_done(self) -> None:
        """A batch is written, or has failed."""
        with self._change:
            self._under_way -= 1
            self._change.notify_all()

    def end(self) -> None:
        """No batch will be written from now on, even if one is still fetched."""
        with self._change:
            self._ended = True
            self._change.notify_all()

    def trouble(self) -> str | None:
        """Why nothing is read now; None for a member of the group, even one that has no partition to read."""
        return self._topics.trouble() or (None if self._is_member else "it has not joined its consumer group")

    # --- In the thread

    def fetch(self) -> Batch:
        """The messages that have arrived, up to a batch; none after IDLE seconds without one.

        Raises OutOfRangeError, TopicRestartedError, and GapError if this membership is to stop at gaps.
        """
        self._commit()
        if found := self._topics.new_partitions():
            with suppress(UnavailableError):  # the stop ended the wait for the database
                check_ids(found, self._watermarks(found))
        if self._credentials is not None:
            self._credentials.renew(self._client, self._settings)
        self._held = self._client.consume(1, IDLE)
        if self._held:
            self._held += self._client.consume(self._batch - 1, 0)
        messages, last = [], {}
        for each in self._held:
            partition = (str(each.topic()), each.partition() or 0)
            error = each.error()
            if error is not None:
                self._failed(partition, each, error)
            elif partition in self._offsets:
                last[partition] = each
                self._ends.pop(partition, None)
                kind, time_ = each.timestamp()
                if kind != TIMESTAMP_NOT_AVAILABLE:
                    self._times[partition].add(time_)
                messages.append(_incoming(each))
        self._held = []
        batch = Batch(messages, self._advances(last))
        with self._change:
            self._under_way += 1
        return batch

    def _failed(self, partition: KafkaPartition, message: ClientMessage, error: KafkaError) -> None:
        # The public names of these errors have the underscore.
        if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
            if partition in self._offsets:
                self._ends[partition] = message.offset() or 0
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
            raise OutOfRangeError(f"{partition[0]}-{partition[1]} does not have its next message any more")
        else:
            log.warning("Kafka: %s", error)

    def _start_of(self, partition: KafkaPartition, known: int) -> int:
        """The offset at which to read on after `known`: that of the next message that is still there.

        Raises TopicRestartedError when the partition ends before, and GapError if this membership stops at gaps.
        """
        if known == NOTHING_READ:
            return OFFSET_BEGINNING
        next_ = known + 1
        bounds = self._topics.bounds(partition)
        if bounds is None:
            return next_
        begin, end = bounds
        name = f"{partition[0]}-{partition[1]}"
        if next_ > end:
            raise TopicRestartedError(partition[0], f"{name} ends before offset {next_}")
        if begin > next_:
            said = f"messages {next_} to {begin - 1} of {name} were removed before they were read"
            if self._stop_at_gaps:
                raise GapError(f"{said} (PQS_GAPS is stop; to go on without them: --gaps skip)")
            log.error("%s", said)
            self._report.missing(partition, begin - next_)
        return max(begin, next_)

    def _advances(self, last: Mapping[KafkaPartition, ClientMessage]) -> list[Advance]:
        """The moves of the watermarks: to the `last` messages of partitions, and of partitions at their end."""
        caught_up = self._look()
        advances = []
        for partition in dict.fromkeys([*last, *caught_up]):
            known, message = self._offsets[partition], last.get(partition)
            offset = known if message is None else cast("int", message.offset())
            if offset < known:
                raise TopicRestartedError(partition[0], f"{partition[0]}-{partition[1]} repeats offset {offset}")
            advances.append(
                Advance(
                    topic=partition[0],
                    partition=partition[1],
                    expected=known,
                    offset=offset,
                    message_at=None if message is None else self._times[partition].reached,
                    caught_up=caught_up.get(partition),
                )
            )
            self._offsets[partition] = offset
        return advances

    def _look(self) -> dict[KafkaPartition, float]:
        """The partitions of which every message was read, with the time of this check by the monotonic clock.

        That librdkafka came to the end of a partition is not enough: its broker may have been away since then.
        """
        now = time.monotonic()
        if now < self._looked_at + LOOK:
            return {}
        self._looked_at = now
        self._report.ends(self._known_ends())
        asked = [TopicPartition(*each, OFFSET_END) for each in self._ends]
        try:
            ends = self._client.offsets_for_times(asked, timeout=ANSWER) if asked else []
        except KafkaException as error:
            log.warning("Kafka did not say where its partitions end: %s", error)
            return {}
        found = {(each.topic, each.partition): each for each in ends}
        return {
            partition: now
            for partition, each in found.items()
            if each.error is None and 0 <= each.offset <= self._ends.get(partition, -1)
        }

    def _known_ends(self) -> dict[KafkaPartition, int]:
        """The offsets after the last messages, as the latest answers with messages have told them."""
        places = {
            each: self._client.get_watermark_offsets(TopicPartition(*each), cached=True) for each in self._offsets
        }
        return {partition: end for partition, (_, end) in places.items() if end >= 0}

    def _assigned(self, client: Client, partitions: list[TopicPartition]) -> None:
        """Read new partitions from their watermarks on."""
        ids = self._topics.ids({each.topic for each in partitions})
        ours = [FoundPartition(each.topic, each.partition, ids.get(each.topic)) for each in partitions]
        try:
            progress = self._watermarks(ours)
        except UnavailableError:  # the stop ended the wait for the database
            return
        check_ids(ours, progress)
        log.info("reading %s", ", ".join(f"{each.topic}-{each.partition}" for each in ours) or "no new partition")
        for each in partitions:
            known = progress[each.topic, each.partition].offset
            each.offset = self._start_of((each.topic, each.partition), known)
            self._offsets[each.topic, each.partition] = known
            self._times[each.topic, each.partition] = Times()
        client.incremental_assign(partitions)
        self._report.assigned({each: self._offsets[each] for each in progress})
        self._is_member = True

    def _revoked(self, client: Client, partitions: list[TopicPartition]) -> None:
        """Give partitions away after everything fetched is written, so that nobody reads it a second time."""
        theirs = {(each.topic, each.partition) for each in partitions}
        self._held[:] = [each for each in self._held if (each.topic(), each.partition()) not in theirs]
        for partition in theirs:
            self._offsets.pop(partition, None)
            self._times.pop(partition, None)
            self._ends.pop(partition, None)
        self._report.revoked(theirs)
        self._is_member = bool(self._offsets)  # without one it joins again, or its session is over
        with self._change:
            self._change.wait_for(lambda: self._ended or not self._under_way, HANDOVER.total_seconds())
        self._commit()

    def _commit(self) -> None:
        """Commit to Kafka the offsets that are in the database. If that fails, nothing is lost."""
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


# A message's `headers()`. For a name that is not UTF-8 the client, up to 2.16.1 at least, sets an error but returns a
# broken list. A specialised call from Python code does not check for both, and reading the list ends the process. A
# methodcaller checks, and raises SystemError.
_headers_of = methodcaller("headers")


def _incoming(message: ClientMessage) -> KafkaMessage:
    try:
        headers = cast("MessageHeaders", _headers_of(message) or [])
    except SystemError:
        headers = None
    # These are optional by the client's types only: every message of a broker has them.
    place = cast("tuple[str, int, int]", (message.topic(), message.partition(), message.offset()))
    return KafkaMessage(*place, message.key(), message.value(), headers)
