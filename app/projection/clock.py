"""The database's clock, as a process knows it, and the events that are ahead of it.

A node whose clock is wrong by years could never expire: nothing would be newer than its heartbeat. So an event that
is more than PQS_MAX_SKEW ahead of the database's clock is refused, and a heartbeat from before this rule gives way.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from app.domain.events import EventBase, Heartbeat
from app.domain.registration import Timing
from app.errors import Fault, InvalidInputError
from app.store.database import Database
from app.store.overdue import now

FRESH = 1.0  # seconds for which an answer of the database's clock is counted on: one question serves many events
_NEVER = datetime.min.replace(tzinfo=UTC)
_FOREVER = datetime.max.replace(tzinfo=UTC)


class DatabaseClock:
    """Which times a correct clock can show. It asks the database only about events that may be ahead."""

    def __init__(self, database: Database, max_skew: timedelta) -> None:
        self._database = database
        self._max_skew = max_skew
        self._latest = _NEVER  # as it was at `_asked_at`, by the monotonic clock
        self._asked_at = -FRESH

    def may_be_ahead(self, event: EventBase) -> bool:
        """Whether `fault` has to ask the database about this event."""
        return _latest_time(event) > self._latest

    async def fault(self, event: EventBase) -> Fault | None:
        """What is wrong with an event that is ahead. Raises UnavailableError if the database does not answer."""
        if not self.may_be_ahead(event):
            return None
        if time.monotonic() - self._asked_at >= FRESH:
            await self.refresh()
        return self.known_fault(event)

    def known_fault(self, event: EventBase) -> Fault | None:
        """What is wrong with an event that is ahead of the clock, by the database's last answer."""
        latest = self._latest_now()
        if _latest_time(event) <= latest:
            return None
        pointer = "#/occurred_at" if event.occurred_at > latest else "#/data/heartbeat_at"
        seconds = self._max_skew.total_seconds()
        return Fault(pointer, f"more than {seconds:g} seconds ahead of the database's clock (PQS_MAX_SKEW)")

    async def check(self, events: Sequence[EventBase], *, many: bool) -> None:
        """Raises InvalidInputError, which names each event that is ahead, by its index if there are `many`."""
        faults = []
        for index, event in enumerate(events):
            if self.may_be_ahead(event) and (fault := await self.fault(event)) is not None:
                faults.append(Fault(f"#/{index}{fault.pointer[1:]}", fault.detail) if many else fault)
        if faults:
            raise InvalidInputError(faults)

    def timing(self, timing: Timing) -> Timing:
        """The timing, with the latest time that a correct clock can show now, if the database was ever asked."""
        if self._latest is _NEVER:
            return timing
        return replace(timing, correct_until=self._latest_now())

    def _latest_now(self) -> datetime:
        """The latest time that a correct clock can show now, by the database's last answer."""
        return _later(self._latest, timedelta(seconds=time.monotonic() - self._asked_at))

    async def refresh(self) -> None:
        """Ask the database for its clock. Raises UnavailableError if it does not answer."""
        asked_at = time.monotonic()
        self._latest = _later(await self._database.read(now), self._max_skew)
        self._asked_at = asked_at


def _latest_time(event: EventBase) -> datetime:
    """The latest of the times that an event says have been."""
    if isinstance(event, Heartbeat) and event.data.heartbeat_at is not None:
        return max(event.occurred_at, event.data.heartbeat_at)
    return event.occurred_at


def _later(time_: datetime, by: timedelta) -> datetime:
    try:
        return time_ + by
    except OverflowError:
        return _FOREVER
