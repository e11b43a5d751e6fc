"""Tells the readers of all processes that changes were committed, seldom enough to cost nothing."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from app.concurrency.worker import Worker, until_stopped
from app.errors import PqsError
from app.store import changes
from app.store.database import Database

log = logging.getLogger(__name__)

SPACING = 0.02  # seconds between two announcements at least


class Announcer(Worker):
    """Wakes this process's reader at once, and those of other processes by a NOTIFY after the commit."""

    def __init__(self, database: Database, wake: Callable[[], None] = lambda: None) -> None:
        self._database = database
        self._wake = wake
        self._committed = asyncio.Event()

    def committed(self) -> None:
        """Changes were committed."""
        self._wake()
        self._committed.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Announce commits until `stop`. One that can't be announced is found by the readers all the same."""
        await until_stopped(self._run(), stop)

    async def _run(self) -> None:
        while True:
            await self._committed.wait()
            self._committed.clear()
            with suppress(PqsError):
                await self._database.write_alone(changes.announce)
            await asyncio.sleep(SPACING)
