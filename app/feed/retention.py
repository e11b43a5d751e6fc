"""Retention: changes that are older than PQS_CHANGES_KEEP are removed, a slice at once where that can be."""

import asyncio
import logging
from datetime import datetime, timedelta

from app.concurrency.worker import Worker, until_stopped
from app.errors import PqsError
from app.store import changes
from app.store.database import Database, LostRaceError
from app.store.tables import SLICES

log = logging.getLogger(__name__)

PAUSE = 60.0  # seconds between two looks
REST = 0.1  # seconds between two batches: most of the time is for others


class Retention(Worker):
    """Removes what has expired. Many may run: they find the work done.

    A slice is emptied when its newest change has expired, so a change is kept for at most a slice's time longer.
    Where a slice comes to be written again before that (`keep` was raised, or nobody removed anything for long), it
    has changes of two ages, and the expired ones are deleted in batches.
    """

    def __init__(self, database: Database, keep: timedelta) -> None:
        self._database = database
        self._keep = keep
        self._slice_time = timedelta(seconds=changes.slice_seconds(keep))

    async def run(self, stop: asyncio.Event) -> None:
        """Remove what expires, until `stop`. A batch that is being removed then is rolled back."""
        await until_stopped(self._run(), stop)

    async def _run(self) -> None:
        while True:
            try:
                await self.remove()
            except PqsError as error:
                log.warning("expired changes are kept for now: %s", error)
            except Exception:
                log.exception("expired changes are kept for now")
            await asyncio.sleep(min(PAUSE, self._slice_time.total_seconds()))

    async def remove(self) -> None:
        """Look at each slice once. Raises UnavailableError when the database does not answer."""
        for number in range(SLICES):
            ends = await self._database.read(changes.ends_of, number)
            if ends is None:
                continue
            before = ends.now - self._keep
            if ends.newest_at < before:
                await self._database.write(changes.empty, number, before)
            elif ends.oldest_at < before - self._slice_time:
                await self._delete(number, before - self._slice_time)

    async def _delete(self, number: int, before: datetime) -> None:
        while True:
            try:
                if await self._database.write(changes.delete, number, before) < changes.DELETE_BATCH:
                    return
            except LostRaceError:
                pass
            await asyncio.sleep(REST)
