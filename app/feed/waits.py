"""All reads of a process that wait: for an entity, for Kafka's partitions, for a deadline."""

import asyncio

from app.concurrency.worker import Worker, set_within
from app.feed.boards import Boards
from app.feed.feed import Feed
from app.feed.marks import Marks
from app.feed.watches import Read, Watches
from app.runtime.metrics import Metrics
from app.store.database import Database
from app.store.replica import ReadSide

REPORT = 1.0  # seconds between two reports


class Waits:
    """The reads that wait, as observers of one feed, whose bound they share."""

    def __init__(self, feed: Feed, *, database: Database, scans: ReadSide, read: Read, logged: bool) -> None:
        """`read` is the joined point read of `database`, the primary. Lists and scans go to `scans`."""
        self.watches = Watches(feed, database, read, logged=logged)
        self.marks = Marks(feed, database)
        self.scan_marks = Marks(feed, scans)
        self.boards = Boards(feed, logged=logged)

    @property
    def count(self) -> int:
        """How many reads wait now."""
        return self.watches.count + self.marks.count + self.scan_marks.count + self.boards.count

    async def close(self) -> None:
        """Stop looking."""
        for each in (self.watches, self.marks, self.scan_marks, self.boards):
            await each.close()


class FollowingReport(Worker):
    """Keeps the gauges of this process true, for a scrape that any process of the service answers."""

    def __init__(self, feed: Feed, waits: Waits, metrics: Metrics) -> None:
        self._feed = feed
        self._waits = waits
        self._metrics = metrics

    def report(self) -> None:
        """Set the gauges."""
        feed, waiting = self._feed, self._waits.count
        self._metrics.following(feed.followers - waiting, waiting, feed.unsettled_seconds, feed.lag_seconds)

    async def run(self, stop: asyncio.Event) -> None:
        """Set them once a second until `stop`."""
        while not await set_within(stop, REPORT):
            self.report()
