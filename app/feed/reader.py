"""The one reader of a process: it follows the change log up to the settled horizon, while somebody follows it."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from app.errors import PqsError
from app.feed.horizon import Horizon
from app.store import changes
from app.store.changes import Logged, Place
from app.store.database import Connection, Database, LostRaceError, watched

log = logging.getLogger(__name__)

PAGE = 2000  # changes that are read at once: to turn them into values holds the event loop up for some 10 ms
SPACING = 0.005  # seconds between two looks at least
IDLE = 1.0  # seconds until the log is looked at though nobody said that there is something
UNSETTLED = (0.005, 0.1)  # seconds between two looks while a writer is waited for: first, and at most
RETRY = 0.5  # seconds until a database that does not answer is asked again

Told = Callable[[Sequence[Logged]], None]


class ChangeReader:
    """Reads each change once, in the order of ids, and passes it on when it is settled.

    `told` gets the changes after the place where it began; `lost` is called when the log is no longer the one that
    was read (a restored database, a failover that lost commits): what was told since may not have happened, and
    the reader begins anew at the present end of the log.
    """

    def __init__(
        self, database: Database, told: Told, lost: Callable[[], None], *, begin: Place | None = None
    ) -> None:
        """`database` is the primary: a replica shows no writers. Without `begin`, it begins at the log's end."""
        self._database = database
        self._told = told
        self._lost = lost
        self._begin = begin
        self._horizon = Horizon()
        self._last = begin
        self._read_to = 0
        self._woken = asyncio.Event()
        self._moved_at = time.monotonic()
        self.begun = asyncio.Event()  # set as long as `last` is known

    @property
    def last(self) -> Place | None:
        """The newest change that was read, or where reading began; None as long as that is not known."""
        return self._last

    @property
    def read_to(self) -> int:
        """Ids up to this one are settled, and told."""
        return self._read_to

    @property
    def unsettled_seconds(self) -> float:
        """For how long drawn ids have been waiting to be settled; 0.0 when none do."""
        return time.monotonic() - self._moved_at if self._horizon.waits else 0.0

    def wake(self) -> None:
        """Look now: changes were committed."""
        self._woken.set()

    async def run(self) -> None:
        """Read until cancelled. A database that does not answer is asked again after a while."""
        listening = asyncio.create_task(self._listen())
        try:
            await self._run()
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening

    async def _run(self) -> None:
        pause, longest = UNSETTLED
        in_trouble = False
        while True:
            self._woken.clear()
            try:
                moved = await self._look()
            except LostRaceError:
                continue
            except Exception as error:  # whatever it is, followers must not wait for good
                if not in_trouble:
                    unexpected = None if isinstance(error, PqsError) else error
                    log.warning("the change log is not read: %s", error, exc_info=unexpected)
                in_trouble = True
                await asyncio.sleep(RETRY)
                continue
            if in_trouble:
                log.info("the change log is read again")
                in_trouble = False
            if not self._horizon.waits:
                await self._sleep(IDLE)
            else:
                pause = UNSETTLED[0] if moved else min(2 * pause, longest)
                await asyncio.sleep(pause)

    async def _sleep(self, longest: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), longest)
        await asyncio.sleep(SPACING)  # what is committed meanwhile comes in the same look

    async def _look(self) -> bool:
        """See what is settled and read it; whether the horizon has moved."""
        return await self._database.read(self._look_by)

    async def _look_by(self, connection: Connection) -> bool:
        drawn = await changes.drawn(connection)
        writers = await changes.writers(connection)  # after it: see Horizon
        if not self._horizon.waits:
            self._moved_at = time.monotonic()
        try:
            moved = self._horizon.observe(drawn, writers)
        except LookupError as error:
            self._begin_anew(str(error))
            return True
        if moved:
            self._moved_at = time.monotonic()
        if self._last is None:
            if self._horizon.settled or not self._horizon.waits:
                settled = self._horizon.settled
                self._last = await changes.newest(connection, settled)
                self._read_to = settled
                self.begun.set()
            return moved
        self.begun.set()
        if moved:
            await self._read(connection, self._last)
        elif not self._horizon.waits and not await _is_there(connection, self._last):
            self._begin_anew(f"change {self._last.id} is not there any more")
        return moved

    async def _read(self, connection: Connection, last: Place) -> None:
        """Pass on what is settled. The last change is read again with it, to see that it is still there."""
        settled = self._horizon.settled
        full = True
        while full:
            page = await changes.read(connection, last.id - 1, settled, limit=PAGE)
            full = len(page) == PAGE
            if page and page[0].place == last:
                page.pop(0)
            elif not await _is_there(connection, last):
                self._begin_anew(f"change {last.id} is not there any more")
                return
            if page:
                self._last = last = page[-1].place
                self._told(page)
        self._read_to = settled

    def _begin_anew(self, why: str) -> None:
        log.warning("the database has another past, and followers are told: %s", why)
        self._horizon = Horizon()
        self._last = None
        self._read_to = 0
        self.begun.clear()
        self._lost()

    async def _listen(self) -> None:
        """Be woken by other processes' commits. Without this the log is still looked at every second."""
        while True:
            with suppress(PqsError):
                await self._database.read(self._hear)
            await asyncio.sleep(RETRY)

    async def _hear(self, connection: Connection) -> None:
        ended = asyncio.Event()
        with watched(connection, ended.set):
            async with changes.listening(connection, self.wake):
                await ended.wait()


async def _is_there(connection: Connection, place: Place) -> bool:
    """Whether the change is in the log, or was removed because it has expired."""
    return (
        place.id == 0
        or await changes.mark_of(connection, place.id) == place.mark
        or (await changes.floor(connection)).id >= place.id
    )
