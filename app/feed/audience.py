"""Streams that are caught up: what comes is written once for all that want the same, and sent in one pass.

A stream that has read to the end of the log joins here, and its task rests. Each settled change is then encoded once
for each filter and form, and goes to the connections without a task switch. Whoever can't take it (its client reads
too slowly, or may not read any more) is let go at the place that it has reached, and reads on by itself.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from app.feed.items import Filter, Item, matches
from app.store.changes import Place

AT_ONCE = 64  # streams that are told in one turn of the event loop: what they are told is sent after it


class Sink(Protocol):
    """Where a stream goes to."""

    def push(self, data: bytes) -> bool:
        """Send this at once; False, and nothing is sent, where that is not possible now, or not allowed."""


Written = Callable[[Sequence[Item]], bytes]


class GroupKey(Struct, frozen=True):
    """What is the same for all streams of a group: the filter, and the name of the form."""

    filter: Filter
    form: object


class Listener:
    """A stream that rests. `place` is how far it was told."""

    __slots__ = ("_ended", "_group", "_heard_at", "_loop", "_silence", "_sink", "_timer", "_until", "future", "place")

    def __init__(self, group: "_Group", sink: Sink, place: Place, *, silence: float, until: float) -> None:
        self._group = group
        self._sink = sink
        self._silence = silence
        self._until = until
        self._ended = False
        self._loop = loop = asyncio.get_running_loop()
        self.place = place
        self.future: asyncio.Future[None] = loop.create_future()
        self._heard_at = loop.time()
        self._timer = loop.call_at(min(until, self._heard_at + silence), self._on_time)
        group.listeners[self] = None

    def tell(self, data: bytes, place: Place) -> None:
        """Send this, which reaches up to a place."""
        if self._ended:
            return
        if self._sink.push(data):
            self.place = place
            self._heard_at = self._loop.time()
        else:
            self.end()

    def end(self) -> None:
        """Rest no longer: the stream goes on from its place."""
        if not self._ended:
            self._ended = True
            self._timer.cancel()
            self._group.leave(self)
            if not self.future.done():
                self.future.set_result(None)

    def _on_time(self) -> None:
        """Tell the place after a silence; end when the stream's time is over."""
        now = self._loop.time()
        if now >= self._until:
            self.place = self._group.place_of(self)
            self.end()
            return
        if now >= self._heard_at + self._silence:
            self._heard_at = now
            self.place = self._group.place_of(self)
            if not self._group.is_behind and not self._sink.push(self._group.bookmark(self.place)):
                self.end()
                return
        self._timer = self._loop.call_at(min(self._until, self._heard_at + self._silence), self._on_time)


class _Group:
    """Streams with the same filter and form, and what they still have to be told."""

    def __init__(
        self, audience: "Audience", wanted: GroupKey, written: Written, bookmark: Callable[[Place], bytes]
    ) -> None:
        self._audience = audience
        self._written = written
        self._make_bookmark = bookmark
        self._bookmark: tuple[Place, bytes] | None = None
        self._jobs: deque[tuple[bytes, Place, list[Listener]]] = deque()
        self.wanted = wanted
        self.listeners: dict[Listener, None] = {}

    @property
    def is_behind(self) -> bool:
        """Whether something is still to be told."""
        return bool(self._jobs)

    def place_of(self, listener: Listener) -> Place:
        """How far a stream of this group is: where nothing is to be told, nothing up to the newest concerns it."""
        return listener.place if self._jobs else self._audience.newest

    def bookmark(self, place: Place) -> bytes:
        """What tells this place, made once for all."""
        if self._bookmark is None or self._bookmark[0] != place:
            self._bookmark = place, self._make_bookmark(place)
        return self._bookmark[1]

    def leave(self, listener: Listener) -> None:
        """One fewer."""
        del self.listeners[listener]
        if not self.listeners:
            self._audience.drop(self)

    def tell(self, items: Sequence[Item], place: Place) -> None:
        """Tell all of them these, which reach up to a place."""
        self._jobs.append((self._written(items), place, list(self.listeners)))
        if len(self._jobs) == 1:
            self._go_on(0)

    def _go_on(self, first: int) -> None:
        data, place, listeners = self._jobs[0]
        last = first + AT_ONCE
        for listener in listeners[first:last]:
            listener.tell(data, place)
        if last >= len(listeners):
            self._jobs.popleft()
            last = 0
        if self._jobs:
            asyncio.get_running_loop().call_soon(self._go_on, last)


class Audience:
    """The streams of a process that rest."""

    def __init__(self) -> None:
        self._groups: dict[GroupKey, _Group] = {}
        self._by_entity: dict[bytes, dict[_Group, None]] = defaultdict(dict)
        self._others: dict[_Group, None] = {}
        self.newest: Place

    def join(
        self,
        wanted: GroupKey,
        written: Written,
        bookmark: Callable[[Place], bytes],
        sink: Sink,
        place: Place,
        *,
        silence: float,
        until: float,
    ) -> Listener:
        """A stream that is at `place`, the newest one, rests until `until`, by the event loop's clock.

        `written` and `bookmark` are the same functions of all that want the same. After `silence` seconds without a
        change the stream is told its place.
        """
        self.newest = place
        group = self._groups.get(wanted)
        if group is None:
            group = self._groups[wanted] = _Group(self, wanted, written, bookmark)
            if not wanted.filter.entity_ids:
                self._others[group] = None
            for each in wanted.filter.entity_ids:
                self._by_entity[each.bytes][group] = None
        return Listener(group, sink, place, silence=silence, until=until)

    def drop(self, group: _Group) -> None:
        """Nobody is left in it."""
        if self._groups.pop(group.wanted, None) is None:
            return
        self._others.pop(group, None)
        for each in group.wanted.filter.entity_ids:
            del self._by_entity[each.bytes][group]
            if not self._by_entity[each.bytes]:
                del self._by_entity[each.bytes]

    def tell(self, items: Sequence[Item], newest: Place) -> None:
        """Tell those whom they concern the next items, which reach up to `newest`."""
        concerned: dict[_Group, list[Item]] = {}
        for group in self._others:
            if found := [item for item in items if matches(item, group.wanted.filter)]:
                concerned[group] = found
        if self._by_entity:
            for item in items:
                if item.entity_id is not None:
                    for group in self._by_entity.get(item.entity_id.bytes, ()):
                        if matches(item, group.wanted.filter):
                            concerned.setdefault(group, []).append(item)
        self.newest = newest
        for group, found in concerned.items():
            group.tell(found, newest)

    def call_all(self) -> None:
        """Nobody rests any longer."""
        for group in list(self._groups.values()):
            for listener in list(group.listeners):
                listener.place = group.place_of(listener)
                listener.end()
