"""The publisher of snapshots: for each change in the log, the row of its entity goes to a compacted topic.

The log says only which entities have changed; what is published is the row as it stands then. So the changes of a
burst are joined, and nothing is added to the write of a row.

The versions of a key rise along its partition, because nothing else is read for the topic until a row that was read
has arrived. That holds across processes: a publisher whose lease may end before its messages have arrived, or have
failed, does not send them.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from uuid import uuid4

from msgspec import Struct

from app.concurrency.worker import OwnWorker, set_within
from app.domain.events import Key, Name, key_of
from app.domain.registration import Registration
from app.errors import BusError, MessageRefusedError, PqsError
from app.feed.horizon import Horizon
from app.feed.snapshot_messages import SnapshotMessages
from app.outbound.compacted import CompactedTopic
from app.outbound.kafka import PlacedMessage
from app.runtime.snapshot_metrics import SnapshotMetrics
from app.store import changes, snapshots
from app.store.changes import Place
from app.store.database import Connection, Database, watched
from app.store.registrations import REGISTRATIONS
from app.store.snapshots import LostLeaseError, Standing

log = logging.getLogger(__name__)

LEASE = 15.0  # seconds
DELIVERY = 4.0  # seconds after which a message that no broker has confirmed fails
MARGIN = 2.0  # seconds beside that: the client looks for such messages once a second
PAGE = 1000  # changes of one round, and rows of a bootstrap
BURST = 0.05  # seconds between two rounds: changes of one entity that come meanwhile are one message
IDLE = 1.0  # seconds until the log is looked at though nobody said that it has changed
STANDBY = 1.0  # seconds between two tries for the lease
RETRY = 1.0  # seconds after a failure
LOOK = 30.0  # seconds between two looks at the shape of the topic
PUBLISHER_CONNECTIONS = 2  # of a publisher: one is held to hear of commits


class _Round(Struct):
    """What one round publishes, and where the topic stands after it."""

    rows: dict[Key, Registration]
    changes: dict[Key, int]  # the newest change of each entity that has changed
    place: Place | None
    after: Name
    scanned: int  # rows of a bootstrap
    scan_ended: bool
    oldest: float | None  # the time of the oldest change in it, in seconds since 1970
    is_full: bool  # more is there already
    waits: bool  # for a writer


class SnapshotPublisher(OwnWorker):
    """Publishes rows to a topic, at least once. Many may run: the one that holds the lease is at work.

    All rows are published at the first start, on request, and where the log has not all changes since the last one
    that was published; a bootstrap that is broken off goes on where it was.
    """

    def __init__(
        self,
        database: Database,
        topic: CompactedTopic,
        metrics: SnapshotMetrics,
        *,
        drop_expired: bool = False,
        lease: float = LEASE,
        delivery: float = DELIVERY,
    ) -> None:
        """`database` has PUBLISHER_CONNECTIONS to the primary. The bus gives messages up after `delivery` seconds."""
        self._database = database
        self._topic = topic
        self._metrics = metrics
        self._drop_expired = drop_expired
        self._lease = lease
        self._needed = delivery + min(MARGIN, delivery)
        self._name = f"{socket.gethostname()[:200]}:{os.getpid()}:{uuid4().hex[:8]}"
        self._woken = asyncio.Event()
        self._held_until = 0.0  # by the monotonic clock
        self._trouble: str | None = None

    def trouble(self) -> str | None:
        """Why nothing is published now; None also while another publisher is at work (see OwnWorker)."""
        return self._trouble

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until `stop`, and give the lease back.

        Raises StartError for a topic that is not there, or is not compacted, at the start. Later on snapshots wait.
        """
        await self._topic_is_fit(stop)
        while not stop.is_set():
            try:
                standing = await self._take()
                if standing is None:
                    self._trouble = None
                    self._metrics.resting()
                    await set_within(stop, STANDBY)
                else:
                    await self._work(standing, stop)
            except LostLeaseError as error:
                log.warning("%s", error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the rows must go on
                self._failed(error)
                await set_within(stop, RETRY)
        self._metrics.resting()
        with suppress(PqsError):
            await self._database.write_alone(snapshots.release, self._topic.name, self._name)

    def _failed(self, error: Exception) -> None:
        if self._trouble is None:
            unexpected = None if isinstance(error, PqsError) else error
            log.warning("snapshots wait: %s", error, exc_info=unexpected)
        self._trouble = f"snapshots wait: {error}"

    async def _topic_is_fit(self, stop: asyncio.Event) -> None:
        """Wait until a broker answers. Raises StartError as `run` does."""
        while not stop.is_set():
            try:
                await self._topic.look()
            except BusError as error:
                self._failed(error)
                await set_within(stop, RETRY)
            else:
                return

    async def _take(self) -> Standing | None:
        began = time.monotonic()
        standing = await self._database.write(snapshots.take, self._topic.name, self._name, self._lease)
        self._held_until = began + self._lease
        return standing

    async def _save(self, standing: Standing) -> None:
        began = time.monotonic()
        await self._database.write_alone(snapshots.save, standing, self._name, self._lease)
        self._held_until = began + self._lease

    # --- At work

    async def _work(self, standing: Standing, stop: asyncio.Event) -> None:
        listening = asyncio.create_task(self._listen())
        try:
            horizon, messages, looked_at = Horizon(), None, 0.0
            while not stop.is_set():
                if messages is None or time.monotonic() >= looked_at + LOOK:
                    looked_at = time.monotonic()
                    messages = await self._shaped(standing)
                await self._begin(standing)
                self._woken.clear()
                found = await self._database.read(self._gather, standing, horizon)
                if found is None:
                    await self._lost(standing)
                    horizon = Horizon()
                    continue
                await self._publish(standing, messages, found)
                if self._trouble is not None:
                    log.info("snapshots are published again")
                    self._trouble = None
                await self._rest(found)
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening

    async def _shaped(self, standing: Standing) -> SnapshotMessages:
        """The messages for the topic as it is. Where it is another than before, all rows are published again."""
        shape = await self._topic.look()
        if standing.topic_id is not None and shape.topic_id not in {None, standing.topic_id}:
            log.warning("the topic %s was created again: all rows are published", standing.topic)
            standing.partitions_before = []
            standing.begin_again()
        elif standing.partitions not in {None, shape.partitions}:
            said = "the topic %s has %d partitions in place of %d: all rows are published to where they belong now"
            log.warning(said, standing.topic, shape.partitions, standing.partitions)
            standing.partitions_before = [*standing.partitions_before, standing.partitions or 1]
            standing.begin_again()
        standing.topic_id = shape.topic_id or standing.topic_id
        standing.partitions = shape.partitions
        await self._save(standing)
        return SnapshotMessages(shape.partitions, before=standing.partitions_before, drop_expired=self._drop_expired)

    async def _begin(self, standing: Standing) -> None:
        """Begin the bootstrap that is requested, unless one is running: then it comes after that."""
        if standing.requested > standing.begun and not standing.is_bootstrapping:
            standing.begun = standing.requested
            standing.begin_again()
            log.info("publishing all rows to %s", standing.topic, extra={"event": "snapshots.bootstrap"})
            await self._save(standing)

    async def _lost(self, standing: Standing) -> None:
        """Begin with all rows again: the log does not have all changes since the place of this topic."""
        log.warning(
            "the change log does not go back to the last snapshot: all rows are published to %s", standing.topic
        )
        standing.place = None
        standing.begin_again()
        await self._save(standing)

    async def _gather(self, connection: Connection, standing: Standing, horizon: Horizon) -> _Round | None:
        """Read what is to be published next; None if the log does not go back to the place of the topic."""
        drawn = await changes.drawn(connection)
        writers = await changes.writers(connection)  # after it: see Horizon
        try:
            horizon.observe(drawn, writers)
        except LookupError:
            return None
        place, settled = standing.place, horizon.settled
        if place is None:
            if horizon.waits and not settled:
                return _Round({}, {}, None, standing.after, 0, False, None, False, True)
            place = await changes.newest(connection, settled)
        page = await snapshots.changed(connection, place.id, settled, limit=PAGE)
        if not await _is_complete_after(connection, place):
            return None
        names = {key_of(each.entity_id, each.domain): each for each in page if each.entity_id is not None}
        asked = [(each.entity_id, each.domain) for each in names.values() if each.entity_id is not None]
        rows = await REGISTRATIONS.get_entity_states(connection, asked) if asked else {}
        after, scanned, more = standing.after, 0, False
        if standing.is_bootstrapping:
            some, more = await snapshots.scan(connection, after, limit=PAGE)
            for row in some:  # of two readings of a row the later one counts
                key = key_of(row.entity_id, row.domain)
                if (known := rows.get(key)) is None or known.version < row.version:
                    rows[key] = row
            scanned = len(some)
            after = (some[-1].entity_id, some[-1].domain) if some else after
        return _Round(
            rows,
            {key: each.id for key, each in names.items()},
            page[-1].place if page else place,
            after,
            scanned,
            standing.is_bootstrapping and not more,
            page[0].changed_at.timestamp() if page else None,
            len(page) == PAGE or more,
            horizon.waits,
        )

    async def _publish(self, standing: Standing, messages: SnapshotMessages, found: _Round) -> None:
        """Publish the rows of a round, and save that they are there.

        Raises BusError if some may not have arrived: then the next round reads them anew.
        """
        if found.rows:
            self._tell(standing, found.oldest)
            waiting = messages.of(found.rows, found.changes)
            if time.monotonic() > self._held_until - self._needed:
                await self._save(standing)
            self._delivered(waiting, await self._topic.publish(waiting))
        has_moved = standing.place != found.place or found.scan_ended or found.scanned
        standing.place, standing.after = found.place, found.after
        standing.rows += found.scanned
        if found.scan_ended:
            standing.finished = standing.begun
            standing.partitions_before = []
            messages.before = []
            said = "all rows are published to %s: %d"
            log.info(
                said, standing.topic, standing.rows, extra={"event": "snapshots.complete", "rows": standing.rows}
            )
        if has_moved or time.monotonic() > self._held_until - self._lease / 2:
            await self._save(standing)
        self._tell(standing, found.oldest if found.is_full else None)

    def _delivered(self, messages: Sequence[PlacedMessage], failed: dict[int, BusError]) -> None:
        """Count what has arrived. A message that is refused for good is named in the log, and passed over."""
        refused = {index: error for index, error in failed.items() if isinstance(error, MessageRefusedError)}
        for index, error in refused.items():
            log.error("Kafka refuses the snapshot of %s for good: %s", messages[index].key.decode(), error)
        arrived = [message for index, message in enumerate(messages) if index not in failed]
        tombstones = sum(message.value is None for message in arrived)
        self._metrics.published(len(arrived) - tombstones, tombstones, len(refused))
        for index, failure in failed.items():
            if index not in refused:
                raise failure

    def _tell(self, standing: Standing, oldest: float | None) -> None:
        self._metrics.standing(bootstrapping=standing.is_bootstrapping, rows=standing.rows, oldest=oldest)

    async def _rest(self, found: _Round) -> None:
        """Wait until there may be something to publish. What comes within BURST is published together."""
        if found.is_full:
            return
        if not found.waits:
            await set_within(self._woken, IDLE)
        await asyncio.sleep(BURST)

    async def _listen(self) -> None:
        """Be woken by the commits of all processes. Without this the log is still looked at every second."""
        while True:
            with suppress(PqsError):
                await self._database.read(self._hear)
            await asyncio.sleep(RETRY)

    async def _hear(self, connection: Connection) -> None:
        ended = asyncio.Event()
        with watched(connection, ended.set):
            async with changes.listening(connection, self._woken.set):
                await ended.wait()


async def _is_complete_after(connection: Connection, place: Place) -> bool:
    """Whether a place is in the log, or is where retention has come to, and nothing after it was removed."""
    mark = await changes.mark_of(connection, place.id)
    removed = await changes.floor(connection)  # after it: what is missing then, was removed before
    return place.id >= removed.id and place in {removed, Place(place.id, mark or 0)}
