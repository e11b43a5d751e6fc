"""The sweep: passed deadlines become events, each exactly once, however many sweeps run."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import cast

from app.domain.decider import Decision
from app.domain.events import Key, key_of
from app.domain.folding import Save
from app.domain.registration import R, Registration
from app.errors import PqsError, UnavailableError
from app.outbound.entries import Outgoing
from app.store.database import Connection, Database, LostRaceError, translated
from app.store.overdue import BEFORE_ALL, PassedKey
from app.store.registrations import REGISTRATIONS, Store
from app.worker import Worker, set_within

log = logging.getLogger(__name__)

PAGE = 250  # rows of one transaction: computing their events blocks the event loop for some 10 ms
POLL = 0.25  # seconds between two looks when every passed deadline has its event
REST = 1.0  # the pause after a page, in times of the page's duration: half of the time is left to others
RETRY = (0.25, 5.0)  # seconds, the first and the longest wait before a database that does not answer is asked again
STOP_WAIT = 5.0  # seconds that the page under way has when the sweep is stopped; then it is rolled back
LEFT_ALONE = 60.0  # seconds until a row that could not be written is tried again

# Called after each page with the deadline, how many became events, and the seconds by which the latest was late.
Told = Callable[[str, int, float], None]


class Sweep(Worker):
    """Turns passed deadlines into events.

    It goes page by page. A page is read without locks. Then one transaction locks the rows that no other transaction
    has locked, and writes the timeout of those that are still as they were read, guarded by their versions. So a node
    that sends a heartbeat meanwhile is left alone, and sweeps that meet at one page do not wait for each other: one
    has the page, the others go on to the next. A sweep that dies leaves nothing half-done.
    """

    def __init__(
        self,
        database: Database,
        scans: Database,
        outgoing: Outgoing,
        told: Told = lambda *_: None,
        *,
        page: int = PAGE,
        store: Store[R] = REGISTRATIONS,  # type: ignore[assignment]  # the default of R, which mypy does not see here
    ) -> None:
        """Both are the primary, with a connection for each deadline: `scans` to read pages, `database` to write."""
        self._database = database
        self._scans = scans
        self._outgoing = outgoing
        self._told = told
        self._page_size = page
        self._store = cast("Store", store)  # for the rest of the class one row is like any other
        self._left_alone: dict[tuple[str, Key], float] = {}  # rows that can't be written, and until when

    async def run(self, stop: asyncio.Event) -> None:
        """Sweep until `stop` (see Worker). The page under way is finished, or rolled back after STOP_WAIT seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as group:
                for deadline in self._store.projection.deadlines:
                    group.create_task(self._run(deadline, stop))
                await stop.wait()
                limit.reschedule(asyncio.get_running_loop().time() + STOP_WAIT)

    async def _run(self, deadline: str, stop: asyncio.Event) -> None:
        after: PassedKey | None = None
        wait, longest = RETRY
        in_trouble = False
        while not stop.is_set():
            began = time.monotonic()
            try:
                after = await self.page(deadline, after)
            except LostRaceError:  # PostgreSQL broke a tie: the same page again
                pause = time.monotonic() - began
            except Exception as error:  # whatever it is, it must not end this for good
                if not in_trouble:
                    unexpected = None if isinstance(error, PqsError) else error
                    log.warning("passed %s deadlines wait: %s", deadline, error, exc_info=unexpected)
                in_trouble, after = True, None
                pause, wait = wait, min(2 * wait, longest)
            else:
                if in_trouble:
                    log.info("passed %s deadlines are swept again", deadline)
                in_trouble, wait = False, RETRY[0]
                pause = POLL if after is None else REST * (time.monotonic() - began)
            await set_within(stop, pause)

    async def page(self, deadline: str, after: PassedKey | None = None) -> PassedKey | None:
        """Turn one page of passed deadlines into events, and return where the next one begins: None at the end.

        A row that can't be written is logged, and left alone for a while. Raises UnavailableError when the
        database does not answer, and LostRaceError when another transaction was faster.
        """
        try:
            return await self._page(deadline, after or BEFORE_ALL, singly=False)
        except (UnavailableError, LostRaceError):
            raise
        except Exception as error:  # noqa: BLE001 - one row can't be written: the others can
            log.warning("a page of passed %s deadlines is written row by row: %s", deadline, error)
            return await self._page(deadline, after or BEFORE_ALL, singly=True)

    async def _page(self, deadline: str, after: PassedKey, *, singly: bool) -> PassedKey | None:
        scan = self._store.overdue[deadline]
        passed = await self._scans.read(scan.get_passed, after=after, most=self._page_size)
        rows = [row for row in passed.items if not self._is_left_alone(deadline, row)]
        decisions: list[Decision] = []
        if rows:
            decisions = await self._database.write(self._expire_unchanged, deadline, rows, passed.now, singly=singly)
            self._outgoing.committed(decisions)
        late = max(((passed.now - self._due_at(row, deadline)).total_seconds() for row in rows), default=0.0)
        self._told(deadline, len(decisions), late)
        return passed.after

    async def _expire_unchanged(
        self, connection: Connection, deadline: str, rows: Sequence[Registration], now: datetime, *, singly: bool
    ) -> list[Decision]:
        """Lock the rows that nobody else has locked, and write what follows for those that are as they were read."""
        unchanged = await self._store.lock_unchanged(connection, rows)
        if not singly:
            return await self._expire(connection, deadline, unchanged, now)
        decisions: list[Decision] = []
        for row in unchanged:
            decisions += await self._expire_alone(connection, deadline, row, now)
        return decisions

    async def _expire(
        self, connection: Connection, deadline: str, rows: Sequence[Registration], now: datetime
    ) -> list[Decision]:
        """Write what follows for rows that are as they were read."""
        expire = self._store.projection.deadlines[deadline].expire
        decisions: list[Decision] = []
        saves: list[Save] = []
        for row in rows:
            decision = expire(row, now)
            if isinstance(decision, Decision):
                decisions.append(decision)
                saves.append(Save(decision.row, row))
        await self._store.upsert.save(connection, saves, self._outgoing.entries(decisions))
        return decisions

    async def _expire_alone(
        self, connection: Connection, deadline: str, row: Registration, now: datetime
    ) -> list[Decision]:
        """The same for one row, in a savepoint; a row that can't be written is left alone for a while."""
        try:
            with translated():
                async with connection.transaction():
                    return await self._expire(connection, deadline, [row], now)
        except (UnavailableError, LostRaceError):
            raise
        except Exception:
            log.exception("a passed %s deadline is left alone for %d s: %r", deadline, LEFT_ALONE, row)
            self._left_alone[deadline, key_of(row.entity_id, row.domain)] = time.monotonic() + LEFT_ALONE
            return []

    def _is_left_alone(self, deadline: str, row: Registration) -> bool:
        key = key_of(row.entity_id, row.domain)
        until = self._left_alone.get((deadline, key))
        if until is not None and until <= time.monotonic():
            del self._left_alone[deadline, key]
            until = None
        return until is not None

    def _due_at(self, row: Registration, deadline: str) -> datetime:
        return cast("datetime", getattr(row, self._store.projection.deadlines[deadline].deadline))
