"""The newest changes in memory, each encoded once, and the requests that wait for the next ones."""

import asyncio
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from operator import attrgetter

from msgspec import Struct

from app.feed.items import Filter, Item, matches
from app.store.changes import Place

CAPACITY = 16_384  # changes
ROOM = 32 * 1024 * 1024  # bytes of their JSON

_id_of = attrgetter("place.id")


class Scan(Struct, frozen=True):
    """What a scan found: matching items, the place up to which it went, and whether that is the newest."""

    items: list[Item]
    place: Place
    caught_up: bool


class Ring:
    """The changes after `begin`, without a gap. A follower is a place in it, and nothing is kept for one."""

    def __init__(self, begin: Place, *, capacity: int = CAPACITY, room: int = ROOM) -> None:
        self._begin = begin
        self._items: list[Item] = []
        self._bytes = 0
        self._capacity = capacity
        self._room = room

    @property
    def newest(self) -> Place:
        """The place of the newest change."""
        return self._items[-1].place if self._items else self._begin

    def add(self, items: Sequence[Item]) -> None:
        """Take in the next changes; the oldest make room."""
        self._items += items
        self._bytes += sum(len(item.body) + len(item.row or "") for item in items)
        if len(self._items) > self._capacity or self._bytes > self._room:
            keep, size = 0, 0
            for item in reversed(self._items):  # to half: so that room is made seldom
                size += len(item.body) + len(item.row or "")
                if keep >= self._capacity // 2 or size > self._room // 2:
                    break
                keep += 1
            cut = len(self._items) - keep
            self._begin = self._items[cut - 1].place
            del self._items[:cut]
            self._bytes = sum(len(item.body) + len(item.row or "") for item in self._items)

    def has(self, place: Place) -> bool:
        """Whether everything after this place is here, and the place is one of this log's."""
        if place.id <= self._begin.id:
            return place == self._begin
        at = bisect_right(self._items, place.id, key=_id_of) - 1
        return at >= 0 and self._items[at].place == place

    def scan(self, after: Place, wanted: Filter, limit: int) -> Scan:
        """The first `limit` changes after a place that the ring has which the filter lets through."""
        found: list[Item] = []
        for item in self.after(after):
            if matches(item, wanted):
                found.append(item)
                if len(found) == limit:
                    return Scan(found, item.place, item.place == self.newest)
        return Scan(found, self.newest, caught_up=True)

    def after(self, place: Place) -> Iterator[Item]:
        """All changes after a place that the ring has."""
        for at in range(bisect_right(self._items, place.id, key=_id_of), len(self._items)):
            yield self._items[at]


class Waiters:
    """Requests that wait for changes, by their filters: each filter is tried once, however many have it."""

    def __init__(self) -> None:
        self._by_entity: dict[bytes, dict[Filter, set[asyncio.Future[Place | None]]]] = defaultdict(dict)
        self._others: dict[Filter, set[asyncio.Future[Place | None]]] = {}
        self.count = 0

    async def wait(self, wanted: Filter, seconds: float) -> Place | None:
        """Wait until something comes that the filter lets through: the place before it; None when all are called.

        Raises TimeoutError when the time is over: nothing has come for this filter until then. What was there before
        is not waited for: look first, without an await between the look and this.
        """
        future: asyncio.Future[Place | None] = asyncio.get_running_loop().create_future()
        groups = [self._by_entity[each.bytes] for each in wanted.entity_ids] if wanted.entity_ids else [self._others]
        for group in groups:
            group.setdefault(wanted, set()).add(future)
        self.count += 1
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            if not future.cancelled():  # both at once: what came is not to be missed
                return future.result()
            raise
        finally:
            self.count -= 1
            for group in groups:
                group[wanted].discard(future)
                if not group[wanted]:
                    del group[wanted]
            for each in wanted.entity_ids:
                if not self._by_entity[each.bytes]:
                    del self._by_entity[each.bytes]

    def tell(self, items: Sequence[Item], before: Place) -> None:
        """Wake those for whom one of the items is, which come after the place `before`."""
        for wanted, waiting in self._others.items():
            if any(matches(item, wanted) for item in items):
                _wake(waiting, before)
        if self._by_entity:
            for item in items:
                if item.entity_id is not None:
                    for wanted, waiting in self._by_entity.get(item.entity_id.bytes, {}).items():
                        if matches(item, wanted):
                            _wake(waiting, before)

    def call_all(self) -> None:
        """Wake everybody."""
        for groups in (self._others, *self._by_entity.values()):
            for waiting in groups.values():
                _wake(waiting, None)


def _wake(waiting: set[asyncio.Future[Place | None]], before: Place | None) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(before)
