"""The events of the last minutes, from counters that only grow."""

import asyncio
from collections import Counter

import pytest

from app.runtime import rates
from app.runtime.rates import MINUTES, Rates

BEGIN = 1_767_225_600  # a full minute


class World:
    """A clock and counters that a test moves."""

    def __init__(self) -> None:
        self.now = float(BEGIN)
        self.totals = Counter(applied=100)
        self.rates = Rates(lambda: Counter(self.totals), clock=lambda: self.now)

    def pass_(self, seconds: float, **events: int) -> list[tuple[int, dict[str, int]]]:
        """Let time pass, then events, and read: minutes since the beginning, and their events."""
        self.now += seconds
        self.totals.update(events)
        return [((at - BEGIN) // 60, dict(found)) for at, found in self.rates.minutes()]


def test_events_before_the_beginning_do_not_count() -> None:
    """The counters may have been running for long, as those of other processes."""
    world = World()
    assert world.pass_(0) == [(0, {})]
    assert world.pass_(5, applied=3) == [(0, {"applied": 3})]


def test_a_minute_has_its_events() -> None:
    """A minute ends with the clock's; the last one is under way."""
    world = World()
    world.pass_(59, applied=3, stale=1)
    assert world.pass_(1) == [(0, {"applied": 3, "stale": 1}), (1, {})]
    assert world.pass_(30, applied=2) == [(0, {"applied": 3, "stale": 1}), (1, {"applied": 2})]


def test_fifteen_minutes_are_kept() -> None:
    """Older minutes are forgotten, also when nobody was there to note them."""
    world = World()
    for number in range(40):
        found = world.pass_(60, applied=number + 1)
    assert [minute for minute, _ in found] == list(range(26, 41))
    assert len(found) == MINUTES
    assert [minute for minute, _ in world.pass_(600)] == [*range(36, 41), 50]
    assert [minute for minute, _ in world.pass_(3600)] == [110]


def test_a_clock_that_goes_back_ends_no_minute() -> None:
    """Events count for the minute that was reached."""
    world = World()
    world.pass_(60, applied=1)
    assert world.pass_(-120, applied=1) == [(0, {"applied": 1}), (1, {"applied": 1})]


async def test_minutes_end_without_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker notes the counters at the end of each minute, until it is stopped."""
    monkeypatch.setattr(rates, "MINUTE", 1)
    totals = Counter(applied=1)
    kept = Rates(lambda: Counter(totals))
    stop = asyncio.Event()
    running = asyncio.create_task(kept.run(stop))
    noted = len(kept._ended)
    async with asyncio.timeout(5):
        while len(kept._ended) == noted:  # noqa: ASYNC110 - the time passes
            await asyncio.sleep(0.05)
    stop.set()
    await running
