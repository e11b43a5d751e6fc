"""The sweep: turns each passed deadline into an event, exactly once, however many sweeps run."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import cast

from app.concurrency.worker import OwnWorker, set_within
from app.domain.changes import ChangeOutcome, Logging
from app.domain.decider import Decision
from app.domain.events import Key, key_of
from app.domain.folding import Save
from app.domain.registration import Registration
from app.domain.row_type import R
from app.errors import PqsError, UnavailableError
from app.projection.changes import ChangeLog
from app.projection.entries import EntryBuilder
from app.store.database import Connection, Database, LostRaceError
from app.store.failures import translated
from app.store.overdue import BEFORE_ALL, PassedKey
from app.store.registrations import REGISTRATIONS, Store
from app.tracing.recorder import Tracer, recorded

log = logging.getLogger(__name__)

PAGE = 250  # rows of one transaction: computing their events blocks the event loop for some 10 ms
POLL = 0.25  # seconds between two scans when every passed deadline has its event
REST = 1.0  # the pause after a page, in durations of that page: others get half of the time
DATABASE_WAITS = (0.25, 5.0)  # seconds: the first and the longest wait while the database does not answer
STOP_WAIT = 5.0  # seconds to finish a page when the sweep is stopped; then the page is rolled back
LEFT_ALONE = 60.0  # seconds until a row that could not be written is tried again

# Called after each page with the kind of deadline, the number of new events, and the longest delay in seconds.
PageReport = Callable[[str, int, float], None]


class Sweep(OwnWorker):
    """Turns passed deadlines into events.

    It works page by page, and reads a page without locks. Then one transaction locks those rows that no other
    transaction has locked, and writes the timeouts of the unchanged rows, guarded by their versions. So a node that
    sends a heartbeat meanwhile gets no timeout. Sweeps that meet at a page do not wait for each other: one gets the
    page, the others go on to the next. A sweep that dies leaves nothing half-done.
    """

    def __init__(
        self,
        database: Database,
        scans: Database,
        entries: EntryBuilder,
        report: PageReport = lambda *_: None,
        *,
        page: int = PAGE,
        log: ChangeLog | None = None,
        follow: bool = False,
        tracer: Tracer | None = None,
        store: Store[R] = REGISTRATIONS,  # type: ignore[assignment]  # mypy does not see that this is the default of R
    ) -> None:
        """Both are the primary, with a connection for each kind of deadline: `scans` reads, `database` writes.

        With `follow` (PQS_TRACKS), messages of an entity may come from any partition of its topic.
        """
        self._database = database
        self._scans = scans
        self._entries = entries
        self._report = report
        self._page_size = page
        self._follow = follow
        self._tracer = tracer
        self._log = log or ChangeLog(Logging.OFF)
        self._store = cast("Store", store)  # the rest of the class treats all rows alike
        self._left_alone: dict[tuple[str, Key], float] = {}  # rows that failed, and the times of their retries

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
        wait, longest = DATABASE_WAITS
        in_trouble = False
        while not stop.is_set():
            began = time.monotonic()
            try:
                after = await self.page(deadline, after)
            except LostRaceError:  # a deadlock: try the same page again
                pause = time.monotonic() - began
            except Exception as error:  # no error may end the sweep
                if not in_trouble:
                    unexpected = None if isinstance(error, PqsError) else error
                    log.warning("passed %s deadlines wait: %s", deadline, error, exc_info=unexpected)
                in_trouble, after = True, None
                pause, wait = wait, min(2 * wait, longest)
            else:
                if in_trouble:
                    log.info("passed %s deadlines are swept again", deadline)
                in_trouble, wait = False, DATABASE_WAITS[0]
                pause = POLL if after is None else REST * (time.monotonic() - began)
            await set_within(stop, pause)

    async def page(self, deadline: str, after: PassedKey | None = None) -> PassedKey | None:
        """Turn a page of passed deadlines into events, and return the key of the next page, or None at the end.

        A row that cannot be written is logged, and skipped for LEFT_ALONE seconds. Raises UnavailableError if the
        database does not answer, and LostRaceError if another transaction was faster.
        """
        try:
            return await self._page(deadline, after or BEFORE_ALL, singly=False)
        except (UnavailableError, LostRaceError):
            raise
        except Exception as error:  # noqa: BLE001 - one row cannot be written: the others can
            log.warning("writing a page of passed %s deadlines row by row: %s", deadline, error)
            return await self._page(deadline, after or BEFORE_ALL, singly=True)

    async def _page(self, deadline: str, after: PassedKey, *, singly: bool) -> PassedKey | None:
        trace = None if self._tracer is None else self._tracer.begin()
        with recorded(trace):
            after_page, count = await self._swept(deadline, after, singly=singly)
        if trace is not None and count:
            trace.end(f"sweep {deadline}", attributes={"pqs.sweep.expired": count})
        return after_page

    async def _swept(self, deadline: str, after: PassedKey, *, singly: bool) -> tuple[PassedKey | None, int]:
        """Where the next page begins, and how many timeouts were written."""
        scan = self._store.overdue[deadline]
        passed = await self._scans.read(scan.get_passed, after=after, most=self._page_size, follow=self._follow)
        rows = [row for row in passed.items if not self._is_left_alone(deadline, row)]
        decisions: list[Decision] = []
        if rows:
            decisions = await self._database.write(self._expire_unchanged, deadline, rows, passed.now, singly=singly)
            self._entries.committed(decisions)
            self._log.committed(decisions)
            if decisions:
                extra = {"event": "sweep.expired", "kind": deadline, "count": len(decisions)}
                log.info("the %s deadline of %d nodes has passed", deadline, len(decisions), extra=extra)
        late = max(((passed.now - self._due_at(row, deadline)).total_seconds() for row in rows), default=0.0)
        self._report(deadline, len(decisions), late)
        return passed.after, len(decisions)

    async def _expire_unchanged(
        self, connection: Connection, deadline: str, rows: Sequence[Registration], now: datetime, *, singly: bool
    ) -> list[Decision]:
        """Lock the rows that nobody else has locked, and write the timeouts of the unchanged ones."""
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
        """Write the timeouts of rows that are locked and unchanged."""
        expire = self._store.projection.deadlines[deadline].expire
        decisions: list[Decision] = []
        saves: list[Save] = []
        expired: list[Registration] = []
        for row in rows:
            decision = expire(row, now)
            if isinstance(decision, Decision):
                expired.append(row)
                decisions.append(decision)
                saves.append(Save(decision.row, row))
        changes = self._log.given(self._log.made(ChangeOutcome.SWEPT, decisions, expired))
        await self._store.upsert.save(connection, saves, self._entries.build(decisions), changes)
        return decisions

    async def _expire_alone(
        self, connection: Connection, deadline: str, row: Registration, now: datetime
    ) -> list[Decision]:
        """Write what follows for one row, in a savepoint; skip one that cannot be written for LEFT_ALONE seconds."""
        try:
            with translated():
                async with connection.transaction():
                    return await self._expire(connection, deadline, [row], now)
        except (UnavailableError, LostRaceError):
            raise
        except Exception:
            log.exception("a passed %s deadline failed and is tried again in %d s: %r", deadline, LEFT_ALONE, row)
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
