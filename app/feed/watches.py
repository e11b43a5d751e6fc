"""Reads that wait for one entity: for its first row, a further version, a state, or a position.

Who wakes a wait, from the fastest: a commit of this process, heartbeats included; a settled change of any process; a
look at the versions of all entities that are waited for, once a second, which finds what is not logged (heartbeats of
other processes; everything, where the log is off). A wait is registered before the row is read, so nothing falls
between the two. It holds no connection: whoever was woken reads the row through the joined reader.
"""

import asyncio
import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct

from app.domain.events import Key, Name, key_of
from app.domain.folding import Save
from app.domain.positions import Position
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.errors import ForgottenError, UnavailableError
from app.feed.feed import Feed, spread
from app.feed.items import Item
from app.feed.late import OtherTrackError
from app.store import waits
from app.store.database import Database

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks at the versions of what is waited for
LOOKED_AT = 1000  # entities in one statement of a look

Read = Callable[..., "asyncio.Future[Registration | None]"]  # by id and domain: the joined point read


class Wanted(Struct, frozen=True, kw_only=True):
    """The conditions of a read. All that are given have to hold; without any, there only has to be a row."""

    is_new: Callable[[int], bool] | None = None  # whether a version is not among those that the caller has
    after_version: int | None = None
    until: frozenset[RegistrationState] = frozenset()
    min_sequence: int | None = None


class Found(Struct, frozen=True):
    """The row as it was read last, and what it lacks.

    `reached` is the version in which one of the wanted states was reached. `late`: a state or a position is missing;
    `unchanged`: only a newer version is.
    """

    row: Registration | None
    reached: int | None = None
    late: bool = False
    unchanged: bool = False

    @property
    def is_met(self) -> bool:
        """Whether all conditions hold."""
        return self.row is not None and not self.late and not self.unchanged

    @property
    def is_unchanged(self) -> bool:
        """Whether all that is missing is a newer version."""
        return self.unchanged and not self.late


class _Watch:
    """One entity, and those who wait for it."""

    def __init__(self, name: Name, ask: Callable[[], "asyncio.Future[Registration | None]"]) -> None:
        self.name = name
        self._ask = ask
        self._sleeping: set[asyncio.Future[None]] = set()
        self._reading: asyncio.Future[Registration | None] | None = None
        self.generation = 0  # counts the times that it was woken
        self.version = 0  # that was read last
        self.users = 0

    def wake(self) -> None:
        """Something may have changed."""
        self.generation += 1
        self._reading = None
        for future in self._sleeping:
            if not future.done():
                future.set_result(None)

    async def woken_since(self, generation: int, seconds: float) -> bool:
        """Whether it was woken after that generation, within these seconds."""
        if self.generation != generation:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleeping.add(future)
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return False
        finally:
            self._sleeping.discard(future)
        return True

    async def row(self) -> Registration | None:
        """The row after the last wake. All who were woken by it share the read."""
        if self._reading is None:
            self._reading = self._ask()
        try:
            return await asyncio.shield(self._reading)
        except UnavailableError as error:
            raise copy.copy(error) from None  # one object for all would collect their tracebacks


class Watches:
    """The waits of a process for single entities: an observer of its feed."""

    def __init__(self, feed: Feed, database: Database, read: Read, *, logged: bool) -> None:
        """`read` is the joined point read; whatever it raises ends the wait. `logged`: there is a change log."""
        self._feed = feed
        self._database = database
        self._read = read
        self._logged = logged
        self._watches: dict[Key, _Watch] = {}
        self._looking: asyncio.Task[None] | None = None
        self._ended = False
        self.count = 0  # of reads that wait
        feed.observe(self)

    # --- Waking -----------------------------------------------------------------------------------------------------

    def committed(self, saves: Sequence[Save[Registration]]) -> None:
        """This process has committed these rows."""
        if self._watches:
            for save in saves:
                watch = self._watches.get(key_of(save.row.entity_id, save.row.domain))
                if watch is not None:
                    watch.wake()

    def told(self, items: Sequence[Item]) -> None:
        """Settled changes."""
        if self._watches:
            for item in items:
                watch = item.entity_id and self._watches.get(key_of(item.entity_id, item.domain))
                if watch:
                    watch.wake()

    def lost(self) -> None:
        """Changes were missed."""
        for watch in self._watches.values():
            watch.wake()

    stopped = lost

    async def close(self) -> None:
        """Stop looking."""
        self._ended = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    # --- Waiting ----------------------------------------------------------------------------------------------------

    async def get(self, name: Name, wanted: Wanted, wait: float) -> Found:
        """The row of an entity as soon as it meets the conditions; after up to `wait` seconds as it is then.

        Raises OtherTrackError when the row's positions are no sequences, TooManyFollowersError when too many wait,
        and UnavailableError without the database.
        """
        end = time.monotonic() + spread(wait)
        row = await self._read(*name)
        seen = _version(row) if wanted.after_version is None else wanted.after_version
        reached = await self._reached(row, wanted, seen)
        found = _judge(row, wanted, reached)
        if found.is_met or not wait or self._feed.stopping:
            return found
        seen = max(seen, _version(row))
        with self._feed.following(), self._watching(name) as watch:
            generation, row = watch.generation, await self._read(*name)
            while True:
                watch.version = _version(row)
                if reached is None:
                    reached = await self._reached(row, wanted, seen)
                seen = max(seen, watch.version)
                found = _judge(row, wanted, reached)
                left = end - time.monotonic()
                if found.is_met or left <= 0 or self._feed.stopping:
                    return found
                if not await watch.woken_since(generation, left):
                    return found
                generation, row = watch.generation, await watch.row()

    async def _reached(self, row: Registration | None, wanted: Wanted, seen: int) -> int | None:
        """The first version after the one that was seen in which the entity was in a wanted state.

        The log is asked where versions between the two were not seen.
        """
        if row is None or row.version <= seen or not wanted.until:
            return None
        if row.version == seen + 1 or not self._logged:
            return row.version if row.current_state in wanted.until else None
        return await self._database.read(waits.reached, row, after=seen, states=wanted.until)

    @contextmanager
    def _watching(self, name: Name) -> Iterator[_Watch]:
        key = key_of(*name)
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = _Watch(name, lambda: self._read(*name))
        if self._looking is None and not self._ended:
            self._looking = asyncio.create_task(self._look())
        watch.users += 1
        self.count += 1
        if self._logged:
            self._feed.start()
        try:
            yield watch
        finally:
            self.count -= 1
            watch.users -= 1
            if not watch.users:
                del self._watches[key]

    async def _look(self) -> None:
        """Find what nobody told: once a second, wake those whose entity has another version than they have seen."""
        try:
            while self._watches:
                await asyncio.sleep(LOOK)
                watches = list(self._watches.values())
                for begin in range(0, len(watches), LOOKED_AT):
                    await self._look_at(watches[begin : begin + LOOKED_AT])
        finally:
            self._looking = None

    async def _look_at(self, watches: Sequence[_Watch]) -> None:
        try:
            found = await self._database.read(waits.versions, [watch.name for watch in watches])
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look finds what this one did not
            log.debug("entities that are waited for are not looked at: %s", error)
            return
        for watch in watches:
            if watch.version != found.get(key_of(*watch.name), 0):
                watch.wake()


def _version(row: Registration | None) -> int:
    return 0 if row is None else row.version


def check_present(row: Registration) -> None:
    """Raises ForgottenError for a tombstone."""
    if row.forgotten_at is not None:
        permanent = row.forgotten_permanently is True
        raise ForgottenError(row.entity_id, row.domain, row.forgotten_at, permanent=permanent)


def as_it_is(row: Registration | None) -> Found:
    """What a read without conditions finds."""
    return Found(row)


def _judge(row: Registration | None, wanted: Wanted, reached: int | None) -> Found:
    """Which conditions hold. Raises OtherTrackError, and ForgottenError for a tombstone: nobody waits for it."""
    demands = bool(wanted.until) or wanted.min_sequence is not None
    if row is None:
        return Found(None, late=demands)
    check_present(row)
    if wanted.min_sequence is not None and row.last_applied_sequence is None:
        raise OtherTrackError("the entity's row has no sequence: it stands in a partition", row.position)
    unchanged = (wanted.is_new is not None and not wanted.is_new(row.version)) or (
        wanted.after_version is not None and row.version <= wanted.after_version
    )
    if reached is None and row.current_state in wanted.until and not unchanged:
        reached = row.version
    late = (bool(wanted.until) and reached is None) or not _stands_at(row.position, wanted.min_sequence)
    return Found(row, reached, late=late, unchanged=unchanged)


def _stands_at(position: Position, least: int | None) -> bool:
    return least is None or (position.sequence is not None and position.sequence >= least)
