"""Following: the page of changes after a place, from memory or from the table, at once or when something comes."""

import asyncio
import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from typing import Protocol

from msgspec import Struct

from app.errors import ChangesGoneError, TooManyFollowersError, UnavailableError
from app.feed import tokens
from app.feed.audience import Audience
from app.feed.items import Filter, Item, matches
from app.feed.reader import ChangeReader
from app.feed.ring import Ring, Waiters
from app.feed.tokens import Token
from app.store import changes
from app.store.changes import BEGINNING, Logged, Place
from app.store.database import Connection, Database

log = logging.getLogger(__name__)

SLOW = 4  # followers that read from the table at once
CONNECTIONS = SLOW + 2  # of a feed: the reader's two as well
PAGE = 1000  # changes that are read from the table at once: they hold the event loop up for some 10 ms
SCAN = 0.5  # seconds that a request without a wait may look for the first change that its filter lets through
CATCH_UP = 0.5  # seconds that a request without a wait allows writers for their commits
POLL = 0.005  # seconds between two looks at whether an id is settled
BEGIN_WITHIN = 5.0  # seconds until the reader has to know where the log ends
LINGER = 10.0  # seconds that the reader goes on after the last follower: who polls comes again
SPREAD = (
    0.1  # of a wait: by up to so much it ends earlier, so that those who came together do not come again together
)


class Start(Enum):
    """A place that has no token."""

    NOW = auto()
    OLDEST = auto()


class Page(Struct, frozen=True):
    """Some changes, the place after them, and whether nothing is known beyond it."""

    items: Sequence[Item]
    place: Place
    caught_up: bool


class Observer(Protocol):
    """Somebody in this process who is told what the reader reads, while it reads."""

    def told(self, items: Sequence[Item]) -> None:
        """These changes are settled."""

    def lost(self) -> None:
        """Changes may be missing in what was told since: look for yourself."""

    def stopped(self) -> None:
        """The service stops: let everybody go who waits."""


class Feed:
    """What followers ask. It holds a reader and a ring as long as somebody follows, and nothing for a follower.

    `database` is the primary, with CONNECTIONS of its own: whoever waits holds none of them.
    """

    def __init__(self, database: Database, *, most: int, linger: float = LINGER) -> None:
        """`most` is how many may follow at once."""
        self._database = database
        self._most = most
        self._linger = linger
        self._slow = asyncio.Semaphore(SLOW)
        self._waiters = Waiters()
        self._audience = Audience()
        self._reader: ChangeReader | None = None
        self._task: asyncio.Task[None] | None = None
        self._ring: Ring | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._ended: asyncio.Task[None] | None = None
        self._observers: list[Observer] = []
        self.followers = 0  # with those who wait for a read
        self.stopping = False
        self.lag_seconds = 0.0  # from the change that was told last until it was told

    @property
    def unsettled_seconds(self) -> float:
        """For how long drawn ids have been waiting to be settled; 0.0 while nobody follows."""
        return 0.0 if self._reader is None else self._reader.unsettled_seconds

    @property
    def waiting(self) -> int:
        """How many requests wait for a change."""
        return self._waiters.count

    def observe(self, observer: Observer) -> None:
        """From now on, tell this observer too."""
        self._observers.append(observer)

    def wake(self) -> None:
        """This process has committed changes."""
        if self._reader is not None:
            self._reader.wake()

    def stop(self) -> None:
        """Let everybody go who waits: the service stops."""
        self.stopping = True
        self._waiters.call_all()
        self._audience.call_all()
        for observer in self._observers:
            observer.stopped()

    async def close(self) -> None:
        """Stop the reader."""
        self.stop()
        if self._ending is not None:
            self._ending.cancel()
        self._end()
        if self._ended is not None:
            await asyncio.wait([self._ended])

    def admit(self) -> None:
        """Raises TooManyFollowersError when there is no room for one follower more."""
        if self.followers >= self._most:
            raise TooManyFollowersError(f"{self._most} requests follow the changes here already (PQS_FOLLOWERS)")

    @contextmanager
    def following(self) -> Iterator[None]:
        """One follower more, while this lasts. Raises TooManyFollowersError."""
        self.join()
        try:
            yield
        finally:
            self.leave()

    def join(self) -> None:
        """One follower more. Raises TooManyFollowersError."""
        self.admit()
        self.followers += 1
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def leave(self) -> None:
        """One fewer."""
        self.followers -= 1
        if self.followers == 0 and not self.stopping:
            self._ending = asyncio.get_running_loop().call_later(self._linger, self._end)

    # --- Pages ------------------------------------------------------------------------------------------------------

    async def page(self, after: Place | Start, wanted: Filter, *, limit: int, wait: float) -> Page:
        """The first `limit` changes after a place; without any, the page after up to `wait` seconds.

        To be called within `following`. Raises ChangesGoneError when the place is not in the log any more.
        """
        end = time.monotonic() + spread(wait)
        scan_until = max(end, time.monotonic() + SCAN)
        place = await self._place(after)
        if not wait:
            await self._catch_up()
        while True:
            ring = await self._running()
            if not ring.has(place):
                page = await self._read(place, wanted, limit, scan_until)
                if page.items or self.stopping or time.monotonic() >= end:
                    return page
                place = page.place
                continue
            scan = ring.scan(place, wanted, limit)
            if scan.items or self.stopping or time.monotonic() >= end:
                return Page(scan.items, scan.place, scan.caught_up)
            place = scan.place
            try:
                before = await self._waiters.wait(wanted, end - time.monotonic())
            except TimeoutError:
                before = None if self._ring is None else self._ring.newest
            if before is not None and before.id > place.id:  # a ring that began anew may end before the place
                place = before

    def resting_at(self, place: Place) -> Audience | None:
        """Where a stream at this place may rest until something comes; None when there is something to read first.

        To be joined without an await in between.
        """
        is_there = self._ring is not None and self._ring.newest == place and not self.stopping
        return self._audience if is_there else None

    async def newest(self) -> Place:
        """The place at which followers of `now` begin."""
        return (await self._running()).newest

    async def settled(self, drawn: int, *, within: float) -> Ring | None:
        """The ring as soon as ids up to `drawn` are settled and in it; None when that takes longer."""
        end = time.monotonic() + within
        ring = await self._running()
        while self._reader is not None and self._reader.read_to < drawn:
            if time.monotonic() >= end or self.stopping:
                return None
            self._reader.wake()
            await asyncio.sleep(POLL)
            ring = await self._running()
        return ring

    async def _catch_up(self) -> None:
        """See to it that who does not wait finds what was committed before the question."""
        async with self._slow:
            drawn = await self._database.read(changes.drawn)
        await self.settled(drawn, within=CATCH_UP)

    async def _place(self, after: Place | Start) -> Place:
        if after is Start.NOW:
            return await self.newest()
        if after is Start.OLDEST:
            async with self._slow:
                return await self._database.read(changes.floor)
        return after

    async def _read(self, place: Place, wanted: Filter, limit: int, end: float) -> Page:
        """Read from the table, up to the horizon. It goes on from page to page while nothing is found."""
        async with self._slow:
            await self._database.read(_check, place)
        if place.id > (await self._running()).newest.id:  # another process, which is ahead, has told it
            await self.settled(place.id, within=end - time.monotonic())
        async with self._slow:
            while True:
                ring = await self._running()
                newest = ring.newest
                logged = await self._database.read(_read_after, place, newest.id)
                found: list[Item] = []
                for each in logged:
                    place = each.place
                    if matches(each, wanted):
                        found.append(Item(each))
                        if len(found) == limit:
                            break
                if len(logged) < PAGE and len(found) < limit:
                    if newest.id < place.id:  # still behind: a follower's place never goes back
                        return Page(found, place, caught_up=False)
                    return Page(found, newest, caught_up=newest == ring.newest)
                if found or self.stopping or time.monotonic() >= end:
                    return Page(found, place, caught_up=False)

    def start(self) -> None:
        """Have the changes read, for observers. To be called within `following`."""
        if self._task is None and not self.stopping:
            self._reader = ChangeReader(self._database, self._take, self._lose)
            self._task = asyncio.create_task(self._reader.run())

    # --- The reader -------------------------------------------------------------------------------------------------

    async def _running(self) -> Ring:
        """The ring of a reader that has begun."""
        self.start()
        reader = self._reader
        if reader is None:
            raise UnavailableError("the service is stopping")
        if self._ring is None:
            try:
                async with asyncio.timeout(BEGIN_WITHIN):
                    await reader.begun.wait()
            except TimeoutError:
                raise UnavailableError("the change log can't be read at the moment") from None
            if self._ring is None:
                self._ring = Ring(reader.last or BEGINNING)
        return self._ring

    def _take(self, logged: Sequence[Logged]) -> None:
        items = [Item(each) for each in logged]
        self.lag_seconds = max(0.0, time.time() - logged[-1].changed_at.timestamp())
        if self._ring is not None:  # else nobody has asked yet; they begin at what the reader has read
            before = self._ring.newest
            self._ring.add(items)
            self._waiters.tell(items, before)
            self._audience.tell(items, self._ring.newest)
        for observer in self._observers:
            observer.told(items)

    def _lose(self) -> None:
        self._ring = None
        self._waiters.call_all()
        self._audience.call_all()
        for observer in self._observers:
            observer.lost()

    def _end(self) -> None:
        """End the reader. The next follower has a new one."""
        task, self._task, self._reader, self._ring = self._task, None, None, None
        if task is not None:
            task.cancel()
            self._ended = task


def spread(wait: float) -> float:
    """A wait that ends between 0.9 and 1.0 of what was asked for."""
    return wait * (1 - SPREAD * random.random())  # noqa: S311 - no secret


async def _check(connection: Connection, place: Place) -> None:
    """Raises ChangesGoneError when this place is not in the log, or when something after it was removed."""
    mark = await changes.mark_of(connection, place.id)
    removed = await changes.floor(connection)  # after it: what is missing then, was removed before
    if place.id < removed.id:
        raise ChangesGoneError("expired", tokens.write(Token(removed)))
    if place not in {removed, Place(place.id, mark or 0)}:
        raise ChangesGoneError("history", tokens.write(Token(removed)))


async def _read_after(connection: Connection, place: Place, to: int) -> list[Logged]:
    """The changes after a place, PAGE at most. Raises ChangesGoneError when the first of them were removed."""
    logged = await changes.read(connection, place.id, to, limit=PAGE)
    removed = await changes.floor(connection)
    if removed.id > place.id:
        raise ChangesGoneError("expired", tokens.write(Token(removed)))
    return logged
