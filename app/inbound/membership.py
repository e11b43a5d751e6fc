"""Reading from Kafka: one membership in a consumer group, and the batches that it fetches.

All calls of librdkafka are in a thread, one at a time, and what it calls back runs inside them.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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

from app.errors import StartError, UnavailableError
from app.store.dead_letters import Headers
from app.store.watermarks import Advance, Partition
from app.wire.messages import KafkaMessage

log = logging.getLogger(__name__)

MAX_BATCH = 1000  # messages that one transaction takes in
IDLE = 0.2  # seconds that the thread waits for a first message, before it looks up
LOOK = 0.5  # seconds between two looks at whether a partition that was read to its end still ends there
ANSWER = 1.0  # seconds that a broker has to say where a partition ends
HANDOVER = timedelta(seconds=10)  # that a partition which is taken away waits for what is being written of it
LAST_TIME = 253_370_764_799_999  # milliseconds since 1970: the end of the year 9998


class Batch(Struct, frozen=True):
    """What was read in one go, and how that moves the watermarks of its partitions."""

    messages: list[KafkaMessage]
    advances: list[Advance]

    def halves(self) -> "tuple[Batch, Batch]":
        """The same as two batches, to be taken in one after the other.

        Where the watermark of a partition stands between them, the time of its message is not known: the sweep
        waits for the second half.
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
                between = max(reached[partition], each.expected or 0)
                first.append(replace(each, offset=between, message_at=None, caught_up=None))
                second.append(replace(each, expected=between))
        return Batch(one, first), Batch(other, second)


class Times:
    """What the times of a partition's messages say about how far it is read. Milliseconds since 1970.

    By default a time is its producer's clock's, so times go back where clocks differ. By how much they were seen to,
    at most, is what `reached` stays behind the newest one: the time of the last message when they never went back.
    """

    __slots__ = ("_back", "_newest")

    def __init__(self) -> None:
        self._newest = -1
        self._back = 0

    def add(self, time: int) -> None:
        """Take in the time of the next message. One that no calendar has counts as the nearest that one has."""
        time = min(max(time, 0), LAST_TIME)
        if time >= self._newest:
            self._newest = time
        elif self._newest - time > self._back:
            self._back = self._newest - time

    @property
    def reached(self) -> datetime | None:
        """What is older than this is in, as far as these messages tell; None when none of them has a time.

        No message that is added later is older, but by one that goes back further than any before it.
        """
        return None if self._newest < 0 else datetime.fromtimestamp((self._newest - self._back) / 1000, UTC)


# Where partitions are to be read on from; those of which nothing was read are left out.
Offsets = Callable[[Sequence[Partition]], dict[Partition, int]]


class Membership:
    """One membership in the group, and how far each partition is read in it. Its methods are called in a thread, one
    at a time; `is_written`, `is_done` and `end` by the event loop meanwhile."""

    def __init__(
        self, settings: Mapping[str, object], topics: list[str], offsets: Offsets, *, batch: int = MAX_BATCH
    ) -> None:
        """Join the group, to fetch up to `batch` messages at a time.

        Raises StartError for settings that librdkafka refuses.
        """
        try:
            self._client = Client(dict(settings))
        except KafkaException as error:
            raise StartError(f"the Kafka client refuses its settings: {error.args[0]}") from error
        self._watermarks = offsets
        self._batch = batch
        self._offsets: dict[Partition, int | None] = {}  # the offset up to which each of ours is read
        self._ends: dict[Partition, int] = {}  # the offset after the last message, of those that were read to it
        self._times: dict[Partition, Times] = {}  # of what was read of each of ours since we have it
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
        """The next messages, as many as are there, up to a batch; after a while without any, none."""
        self._commit()
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

    def _failed(self, partition: Partition, message: ClientMessage, error: KafkaError) -> None:
        if error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - that is its public name
            log.warning("Kafka: %s", error)
        elif partition in self._offsets:
            self._ends[partition] = message.offset() or 0

    def _advances(self, last: Mapping[Partition, ClientMessage]) -> list[Advance]:
        """How the watermarks move by these messages, the last ones of their partitions, and by what has no more."""
        caught_up = self._look()
        advances = []
        for partition in dict.fromkeys([*last, *caught_up]):
            known, message = self._offsets[partition], last.get(partition)
            offset = known if message is None else message.offset()
            if offset is None:  # nothing was ever read of it
                continue
            if known is not None and offset < known:
                log.warning("%s-%d has offsets again that it had before: was the topic made anew?", *partition)
                offset = known
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

    def _look(self) -> dict[Partition, float]:
        """Which partitions have nothing that was not read, and since when that is sure, by the monotonic clock.

        That librdkafka came to the end is not enough: since then it may have waited for a broker that is away.
        """
        now = time.monotonic()
        if now < self._looked_at + LOOK:
            return {}
        self._looked_at = now
        asked = [TopicPartition(*each, OFFSET_END) for each in self._ends if self._offsets[each] is not None]
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
            offsets = self._watermarks(ours)
        except UnavailableError:  # and it is to stop
            return
        log.info("reading %s", ", ".join(f"{topic}-{number}" for topic, number in ours) or "no new partition")
        for each in partitions:
            known = offsets.get((each.topic, each.partition))
            each.offset = OFFSET_BEGINNING if known is None else known + 1
            self._offsets[each.topic, each.partition] = known
            self._times[each.topic, each.partition] = Times()
        client.incremental_assign(partitions)

    def _revoked(self, client: Client, partitions: list[TopicPartition]) -> None:
        """Give partitions away once all that was fetched is written: then nobody reads it a second time."""
        theirs = {(each.topic, each.partition) for each in partitions}
        self._held[:] = [each for each in self._held if (each.topic(), each.partition()) not in theirs]
        for partition in theirs:
            self._offsets.pop(partition, None)
            self._times.pop(partition, None)
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


# What a message's `headers()` gives. For a name that is not UTF-8 the client, up to 2.16.1 at least, sets an error
# and gives a broken list all the same. A call from Python code that was specialised does not look whether both are
# there, and reading the list then ends the process; this one looks, and makes a SystemError of it.
_headers_of = methodcaller("headers")


def _incoming(message: ClientMessage) -> KafkaMessage:
    try:
        headers = cast("Headers", _headers_of(message) or [])
    except SystemError:
        headers = None
    # What the client's types call optional is there in every message that came from a broker.
    place = cast("tuple[str, int, int]", (message.topic(), message.partition(), message.offset()))
    return KafkaMessage(*place, message.key(), message.value(), headers)
