"""Reads that wait until Kafka's partitions are applied up to some offsets."""

import asyncio
import logging
import time
from collections.abc import Mapping

from app.feed.feed import Feed, spread
from app.store import watermarks
from app.store.database import Database
from app.store.replica import ReadSide
from app.store.watermarks import KafkaPartition

log = logging.getLogger(__name__)

POLL = 0.02  # seconds between two looks while somebody waits: a read of as many rows as there are partitions
RETRY = 0.5  # seconds until a database that does not answer is asked again

Offsets = Mapping[KafkaPartition, int]


class Marks:
    """Waits for watermarks, on the connections that the reads go to. One look is for all who wait.

    A consumer moves the watermark in the transaction of its batch. So on a replica, too, whoever sees a watermark
    sees everything up to it: the replica has replayed the primary up to there.
    """

    def __init__(self, feed: Feed, database: Database | ReadSide) -> None:
        """Who waits counts as one of the feed's followers."""
        self._feed = feed
        self._database = database
        self._waiting: set[_Waiting] = set()
        self._looking: asyncio.Task[None] | None = None
        self._ended = False
        feed.observe(self)

    @property
    def count(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def get(self, wanted: Offsets, wait: float) -> Offsets:
        """The watermarks of these partitions as soon as none is below its offset; after up to `wait` seconds as they
        are then, without those that do not exist.

        Raises TooManyFollowersError when too many wait, and UnavailableError without the database.
        """
        end = time.monotonic() + spread(wait)
        found: Offsets = await self._database.read(watermarks.read, wanted)
        if is_reached(wanted, found) or not wait or self._feed.stopping:
            return found
        with self._feed.following():
            waiting = _Waiting(wanted, found)
            self._waiting.add(waiting)
            if self._looking is None and not self._ended:
                self._looking = asyncio.create_task(self._look())
            try:
                async with asyncio.timeout(end - time.monotonic()):
                    await waiting.future
            except TimeoutError:
                pass
            finally:
                self._waiting.discard(waiting)
            return waiting.found

    def told(self, _items: object) -> None:
        """Changes are not what is waited for."""

    def lost(self) -> None:
        """Neither are they missed."""

    def stopped(self) -> None:
        """Let everybody go."""
        for waiting in self._waiting:
            waiting.end()

    async def close(self) -> None:
        """Stop looking."""
        self._ended = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _look(self) -> None:
        try:
            while self._waiting:
                asked = {partition for waiting in self._waiting for partition in waiting.wanted}
                pause = POLL
                try:
                    self._tell(await self._database.read(watermarks.read, asked))
                except Exception as error:  # noqa: BLE001 - whatever it is, they are not to wait for good
                    log.debug("watermarks that are waited for are not read: %s", error)
                    pause = RETRY
                await asyncio.sleep(pause)
        finally:
            self._looking = None

    def _tell(self, found: Offsets) -> None:
        for waiting in self._waiting:
            waiting.found = {partition: found[partition] for partition in waiting.wanted if partition in found}
            if is_reached(waiting.wanted, waiting.found):
                waiting.end()


class _Waiting:
    """One who waits, and what was found last."""

    def __init__(self, wanted: Offsets, found: Offsets) -> None:
        self.wanted = wanted
        self.found = found
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        """End the wait."""
        if not self.future.done():
            self.future.set_result(None)


def is_reached(wanted: Offsets, found: Offsets) -> bool:
    """Whether no watermark is below its offset."""
    return all(found.get(partition, -1) >= offset for partition, offset in wanted.items())
