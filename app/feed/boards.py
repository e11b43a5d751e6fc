"""Boards: what is overdue, kept up to date for all who wait for it to change.

There is one board for each domain, kind of deadline and page size, and only while somebody waits. It is read again
when the next deadline passes by the database's clock, when a change concerns its states, when somebody joins, and
once a second. Whoever joins is answered from a reading that began after that, so no change falls between.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime

from msgspec import Struct, field

from app.errors import TooManyFollowersError, UnavailableError
from app.feed.feed import Feed, spread
from app.feed.items import Item

log = logging.getLogger(__name__)

MOST = 256  # boards of a process
IDLE = 1.0  # seconds until a board is read though nobody said that it has changed
SPACING = 0.02  # seconds between two readings at least, for changes and joiners
REST = 2.0  # the same, in durations of a reading: so that a storm of changes leaves the database to others
AFTER = 0.0005  # seconds after a deadline: it has passed when the clock is behind it
RETRY = 0.5  # seconds until a database that does not answer is asked again
AT_ONCE = 64  # waits that are told in one turn of the event loop
MEASURED = 16  # readings of the database's clock that are remembered


class Shown(Struct, frozen=True):
    """A page as it was read: its tag, which other pages have not; its body; and what its next reading depends on.

    `answers` holds the answers that were made of it, for those who ask in the same words.
    """

    tag: str
    body: bytes
    cursor: str | None
    as_of: datetime  # by the database's clock
    read_at: float  # time.monotonic(), just after that clock was read
    next_deadline: datetime | None
    answers: dict[tuple[object, ...], object] = field(default_factory=dict)


class BoardClock:
    """The database's clock, by this process's: the smallest difference that was measured lately."""

    def __init__(self) -> None:
        self._offsets = deque[float](maxlen=MEASURED)

    def measure(self, as_of: datetime, read_at: float) -> None:
        """The database's clock stood at `as_of` at `read_at` or a little before."""
        self._offsets.append(read_at - as_of.timestamp())

    def monotonic_at(self, moment: datetime) -> float:
        """When the database's clock stands there, in time.monotonic()."""
        return moment.timestamp() + min(self._offsets)


Reading = Callable[[], Awaitable[Shown]]
BoardKey = tuple[str, str, int]  # kind of deadline, domain, rows of the page


class Boards:
    """The boards of a process: an observer of its feed."""

    def __init__(self, feed: Feed, *, logged: bool) -> None:
        """Who waits counts as one of the feed's followers. `logged`: there is a change log."""
        self._feed = feed
        self._logged = logged
        self._clock = BoardClock()
        self._boards: dict[BoardKey, _Board] = {}
        feed.observe(self)

    @property
    def count(self) -> int:
        """How many wait."""
        return sum(len(board.waiting) for board in self._boards.values())

    def ask(
        self, key: BoardKey, states: frozenset[str], read: Reading, known: Callable[[str], bool], wait: float
    ) -> "asyncio.Future[Shown]":
        """The page as soon as the caller does not have it, by its tag; after up to `wait` seconds as it is then.

        `states` are those in which rows wait for this kind of deadline. `read` reads the page; it is that of the
        first who waits. The future has UnavailableError when the page could not be read; who cancels it, waits no
        longer. It needs no task: a thousand answers that come at once are made without one. Raises
        TooManyFollowersError.
        """
        board = self._boards.get(key)
        if board is None and len(self._boards) >= MOST:
            raise TooManyFollowersError(f"{MOST} pages of overdue entities are waited for here already")
        self._feed.join()
        if self._logged:
            self._feed.start()
        if board is None:
            board = self._boards[key] = _Board(key[1], states, read, self._clock)
        waiting = _Waiting(known)
        board.join(waiting)
        timer = asyncio.get_running_loop().call_later(0 if self._feed.stopping else spread(wait), waiting.end)

        def leave(_: object) -> None:
            timer.cancel()
            self._feed.leave()
            board.leave(waiting)
            if not board.waiting and self._boards.get(key) is board:
                del self._boards[key]

        waiting.future.add_done_callback(leave)
        return waiting.future

    def told(self, items: Sequence[Item]) -> None:
        """Settled changes."""
        for board in self._boards.values():
            board.told(items)

    def lost(self) -> None:
        """Changes were missed."""
        for board in self._boards.values():
            board.look()

    def stopped(self) -> None:
        """Let everybody go."""
        for board in self._boards.values():
            board.let_go()

    async def close(self) -> None:
        """Stop reading."""
        tasks = [board.task for board in self._boards.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class _Waiting:
    """One who waits: the tags that it has, and since when."""

    def __init__(self, known: Callable[[str], bool]) -> None:
        self.known = known
        self.since = time.monotonic()
        self.shown: Shown | None = None  # the page, as read since
        self.future: asyncio.Future[Shown] = asyncio.get_running_loop().create_future()

    def show(self, shown: Shown) -> None:
        """The page, as read after it began to wait. The first page that it does not have ends the wait."""
        if not self.future.done():
            self.shown = shown
            if not self.known(shown.tag):
                self.end()

    def end(self) -> None:
        """End the wait, with the page as it was read last."""
        if self.future.done():
            return
        if self.shown is None:
            self.future.set_exception(UnavailableError("what is overdue could not be read"))
        else:
            self.future.set_result(self.shown)


class _Board:
    """One page, and those who wait for it to change. It reads as long as there are any."""

    def __init__(self, domain: str, states: frozenset[str], read: Reading, clock: BoardClock) -> None:
        self._domain = domain
        self._states = states
        self._read = read
        self._clock = clock
        self._look = asyncio.Event()
        self.waiting: set[_Waiting] = set()
        self.task = asyncio.create_task(self._run())

    def join(self, waiting: _Waiting) -> None:
        """One more waits."""
        self.waiting.add(waiting)
        self._look.set()

    def leave(self, waiting: _Waiting) -> None:
        """One fewer waits."""
        self.waiting.discard(waiting)
        if not self.waiting:
            self.task.cancel()

    def look(self) -> None:
        """Read the page again, soon."""
        self._look.set()

    def told(self, items: Sequence[Item]) -> None:
        """Read the page again if one of these changes concerns it."""
        if not self._look.is_set() and any(
            item.domain == self._domain and (item.current_state in self._states or item.before in self._states)
            for item in items
        ):
            self._look.set()

    def let_go(self) -> None:
        """End all waits."""
        for waiting in self.waiting:
            waiting.end()

    async def _run(self) -> None:
        while True:
            self._look.clear()
            began = time.monotonic()
            try:
                shown = await self._read()
            except Exception as error:  # noqa: BLE001 - whatever it is, they are not to wait for good
                log.debug("a board is not read: %s", error)
                await asyncio.sleep(RETRY)
                continue
            self._clock.measure(shown.as_of, shown.read_at)
            for number, waiting in enumerate(list(self.waiting), 1):
                if waiting.since <= began:
                    waiting.show(shown)
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)  # what was answered is sent meanwhile
            await self._rest(shown, began)

    async def _rest(self, shown: Shown, began: float) -> None:
        """Wait until the page has to be read again."""
        now = time.monotonic()
        until, due = began + IDLE, None
        if shown.next_deadline is not None:
            due = max(self._clock.monotonic_at(shown.next_deadline) + AFTER, now + AFTER)
            until = min(until, due)
        with suppress(TimeoutError):
            async with asyncio.timeout(until - now):
                await self._look.wait()
        pause = began + max(SPACING, REST * (now - began)) - time.monotonic()
        if due is not None:
            pause = min(pause, due - time.monotonic())
        if pause > 0:
            await asyncio.sleep(pause)
