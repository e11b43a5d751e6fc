"""Events of the last minutes by outcome, from the counters of all processes of this service on this machine."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

from app.concurrency.worker import Worker, until_stopped

MINUTES = 15  # that are kept, the present one included
MINUTE = 60  # seconds
EARLY = 0.001  # seconds by which a sleep may end too soon


class Rates(Worker):
    """Notes the counters at the end of each minute; the differences are the events of a minute."""

    def __init__(self, totals: Callable[[], Mapping[str, float]], *, clock: Callable[[], float] = time.time) -> None:
        """`totals` gives the events by outcome since the service has begun. `clock` is in seconds since 1970."""
        self._totals = totals
        self._clock = clock
        self._ended: deque[tuple[int, Counter[str]]] = deque(maxlen=MINUTES - 1)  # minute, its events
        self._minute = int(clock()) // MINUTE
        self._before = Counter(totals())  # the counters at the beginning of the present minute

    async def run(self, stop: asyncio.Event) -> None:
        """Note the counters until `stop` (see Worker)."""
        await until_stopped(self._run(), stop)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(MINUTE - self._clock() % MINUTE + EARLY)
            self.note()

    def note(self) -> None:
        """End the minutes that are over."""
        minute = int(self._clock()) // MINUTE
        if minute > self._minute:  # a clock may go back
            totals = Counter(self._totals())
            self._ended.append((self._minute, totals - self._before))
            self._minute, self._before = minute, totals

    def minutes(self) -> list[tuple[int, Mapping[str, int]]]:
        """The seconds since 1970 at which each minute has begun, and its events by outcome, oldest first.

        The last minute is not over yet. Minutes before this process began are missing.
        """
        self.note()
        first = self._minute - MINUTES + 1
        ended = [(minute * MINUTE, events) for minute, events in self._ended if minute >= first]
        return [*ended, (self._minute * MINUTE, Counter(self._totals()) - self._before)]
