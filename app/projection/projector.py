"""Turns events into outcomes, a batch in one transaction: it reads the rows, folds (`app.domain.folding`), writes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Protocol, cast

from msgspec.structs import replace

from app.domain.changes import Logging
from app.domain.events import EventBase, Key
from app.domain.folding import Fold, fold, held_result
from app.domain.order import TrackRule
from app.domain.registration import Timing
from app.domain.results import Outcome, Result
from app.domain.row_type import R
from app.errors import ContentionError, PqsError, RefusedValuesError, UnavailableError
from app.projection.changes import ChangeLog
from app.projection.clock import DatabaseClock
from app.projection.entries import EntryBuilder
from app.store import held as held_entities
from app.store.database import Connection, Database, LostRaceError, check_constraints
from app.store.failures import refused_values
from app.store.registrations import REGISTRATIONS, Store

ATTEMPTS = 10  # attempts of a batch that loses races; from the second on its rows are locked


_NOT_YET = {Outcome.EARLY, Outcome.CONFLICT}  # these write nothing, and would be others later

# Further work in the transaction of a batch. It gets the results; its error rolls everything back.
Also = Callable[[Connection, list[Result]], Awaitable[None]]


# Gives the events of a batch, at the beginning of each attempt of its transaction.
Choose = Callable[[Connection], Awaitable[Sequence[EventBase]]]
# Looks at the results, and gives other events to be folded in place of the batch's; None for none.
Revise = Callable[[Connection, Sequence[Result]], Awaitable[Sequence[EventBase] | None]]


class _Attempt(Protocol):
    """One attempt of a batch's transaction; `lock` locks its rows. Gives what was folded, and of which events."""

    async def __call__(self, connection: Connection, /, *, lock: bool) -> tuple[Fold, Sequence[EventBase]]:
        """Read, fold and write."""


class BatchReport(Protocol):
    """Hears of every batch that was committed, for metrics."""

    def batch(self, events: Sequence[EventBase], results: Sequence[Result], seconds: float) -> None:
        """These events were committed, with these results, in so many seconds, retries included."""

    def retry(self, reason: str) -> None:
        """A batch starts again: `guard`, `rollback` or `plan`."""


class _TakenBackError(PqsError):
    """Rolls back a transaction that was only tried and would have succeeded."""


class Projector:
    """Applies events. It returns outcomes after their commit, so they are final."""

    def __init__(
        self,
        database: Database,
        timing: Timing,
        entries: EntryBuilder | None = None,
        *,
        log: ChangeLog | None = None,
        report: BatchReport | None = None,
        follow: TrackRule | None = None,
        clock: DatabaseClock | None = None,
        store: Store[R] = REGISTRATIONS,  # type: ignore[assignment]  # mypy does not see that this is the default of R
    ) -> None:
        """`entries` builds the outbox entries; without it there are none. Without `log`, no change is logged.

        `follow` allows rows to move to the track of an event; without it, an event on another track is a conflict.
        With `clock`, a heartbeat that no correct clock can have made gives way to a later one. `store` is the
        projection's.
        """
        self._database = database
        self._timing = timing
        self._entries = entries or EntryBuilder()
        self._report = report
        self._log = log or ChangeLog(Logging.OFF)
        self._follow = follow
        self._clock = clock
        self._store = cast("Store", store)  # the rest of the class treats all rows alike
        self._some_held = False  # whether some entity was held when that was last read

    async def persist(
        self,
        events: Sequence[EventBase],
        *,
        by_position: bool = False,
        also: Also | None = None,
        after: asyncio.Task[object] | None = None,
    ) -> list[Result]:
        """Apply a batch in one transaction, and return the result of each event, in the order given.

        The events of an entity are folded in the order given, or, with `by_position`, in the order of their
        positions. If other writers change the same rows meanwhile, the batch starts again. Raises ContentionError
        after ATTEMPTS such races, RefusedValuesError if PostgreSQL refuses a value (by an operator's constraint or
        trigger, or an index's limit), and UnavailableError if the database does not answer. Nothing is written then,
        unless the connection broke during the commit.

        `also` runs after the rows are written, once for each attempt. `after` is a batch without a common entity:
        this batch is read and folded meanwhile, and written after the other's commit. If the other fails, this one
        fails.

        Events of held entities are left out: their results are HeldResults.
        """

        async def attempt(connection: Connection, *, lock: bool) -> tuple[Fold, Sequence[EventBase]]:
            folded = await self._attempt(
                connection, events, by_position=by_position, lock=lock, also=also, after=after
            )
            return folded, events

        return await self._persist(attempt, alone=also is None)

    async def persist_chosen(self, choose: Choose, *, revise: Revise | None = None, also: Also) -> list[Result]:
        """Apply the events that `choose` gives, as `persist` does, but those of held entities as well.

        `choose` locks the queues of held entities that it decides about. The results are those of the events that
        `revise` gives last, if it gives any.
        """

        async def attempt_chosen(connection: Connection, *, lock: bool) -> tuple[Fold, Sequence[EventBase]]:
            return await self._attempt_chosen(connection, choose, revise, also, lock=lock)

        return await self._persist(attempt_chosen, alone=False)

    async def _persist(self, attempt: _Attempt, *, alone: bool) -> list[Result]:
        """Try until no other writer interferes. `alone`: the first attempt writes with one statement."""
        began = time.perf_counter()
        for number in range(ATTEMPTS):
            lock = number > 0
            # Without locks, one guarded statement writes everything, and needs no transaction around it.
            write = self._database.write_alone if alone and not lock else self._database.write
            try:
                with refused_values():
                    folded, events = await write(attempt, lock=lock)
            except LostRaceError as error:
                if self._report is not None:
                    self._report.retry(error.reason)
                continue
            self._entries.committed(folded.decisions)
            self._log.committed(folded.changes)
            self._log.saved(folded.saves)
            if self._report is not None:
                self._report.batch(events, folded.results, time.perf_counter() - began)
            return folded.results
        raise ContentionError(f"other writers were faster {ATTEMPTS} times in a row; nothing was written")

    async def _attempt(
        self,
        connection: Connection,
        events: Sequence[EventBase],
        *,
        by_position: bool,
        lock: bool,
        also: Also | None,
        after: asyncio.Task[object] | None,
    ) -> Fold:
        folded = await self._fold_unheld(connection, events, by_position=by_position, lock=lock, check=lock)
        if after is not None:
            await asyncio.wait([after])
            if after.exception() is not None:
                raise UnavailableError("the batch before this one failed")
        entries, changes = self._entries.build(folded.decisions), self._log.given(folded.changes)
        await self._store.upsert.save(connection, folded.saves, entries, changes)
        if also is not None:
            await also(connection, folded.results)
        return folded

    async def _attempt_chosen(
        self, connection: Connection, choose: Choose, revise: Revise | None, also: Also, *, lock: bool
    ) -> tuple[Fold, Sequence[EventBase]]:
        events = await choose(connection)
        folded = await self._fold(connection, events, by_position=False, lock=lock)
        while revise is not None and (others := await revise(connection, folded.results)) is not None:
            events = others
            folded = await self._fold(connection, events, by_position=False, lock=lock)
        entries, changes = self._entries.build(folded.decisions), self._log.given(folded.changes)
        await self._store.upsert.save(connection, folded.saves, entries, changes, held_too=True)
        await also(connection, folded.results)
        return folded, events

    async def persist_fitting(
        self, events: Sequence[EventBase], *, after: asyncio.Task[object] | None = None
    ) -> list[Result | RefusedValuesError]:
        """Apply a batch as `persist` does, except for the events that PostgreSQL refuses: their results are errors.

        If PostgreSQL refuses one, the halves of the batch are applied in order, each in a transaction of its own.
        """
        try:
            return [*await self.persist(events, after=after)]
        except RefusedValuesError as error:
            if len(events) == 1:
                return [error]
        middle = len(events) // 2
        first = await self.persist_fitting(events[:middle], after=after)
        return first + await self.persist_fitting(events[middle:], after=after)

    async def find_refused(self, events: Sequence[EventBase], *, by_position: bool = False) -> int:
        """The index of the first event that PostgreSQL refuses. It accepts the events before this one.

        Nothing is written: about log2(len(events)) transactions are tried and rolled back.
        """

        async def take_back(connection: Connection, _results: list[Result]) -> None:
            await check_constraints(connection)
            raise _TakenBackError

        fitting, refused = 0, len(events)  # this many of the first events are accepted; this many are refused
        while refused - fitting > 1:
            middle = (fitting + refused) // 2
            try:
                with suppress(_TakenBackError):
                    await self.persist(events[:middle], by_position=by_position, also=take_back)
                fitting = middle
            except RefusedValuesError:
                refused = middle
        return fitting

    async def locked(self, events: Sequence[EventBase]) -> set[Key]:
        """The keys of those rows of these events that another transaction keeps locked now."""
        names = list({event.key: (event.entity_id, event.domain) for event in events}.values())
        return await self._database.write(self._store.locked, names)

    async def foresee(self, events: Sequence[EventBase], *, by_position: bool = False) -> list[Result]:
        """The results that `persist` would return now. Nothing is written."""
        folded = await self._database.read(self._fold_unheld, events, by_position=by_position, lock=False, check=True)
        return folded.results

    async def _fold_unheld(
        self, connection: Connection, events: Sequence[EventBase], *, by_position: bool, lock: bool, check: bool
    ) -> Fold:
        """Fold the events of entities that are not held; the others have HeldResults.

        The statement that writes refuses held entities. So they are looked for only if some entity was held lately,
        after an attempt that failed (`check`), and for results that write nothing and would be others later.
        """
        if not (check or self._some_held):
            folded = await self._fold(connection, events, by_position=by_position, lock=lock)
            if not any(result.version is None or result.outcome in _NOT_YET for result in folded.results):
                return folded
        held, self._some_held = await held_entities.find(connection, [event.entity_id for event in events])
        return await self._fold(connection, events, by_position=by_position, lock=lock, held=held)

    async def _fold(
        self,
        connection: Connection,
        events: Sequence[EventBase],
        *,
        by_position: bool,
        lock: bool,
        held: Collection[bytes] = (),
    ) -> Fold:
        names = {event.key: (event.entity_id, event.domain) for event in events}
        rows = await self._store.get_entity_states(connection, list(names.values()), lock=lock)
        timing = self._timing if self._clock is None else self._clock.timing(self._timing)
        projection = self._store.projection
        folded = fold(
            projection,
            rows,
            [event for event in events if event.entity_id.bytes not in held] if held else events,
            timing,
            by_position=by_position,
            log=self._log.log,
            follow=self._follow,
            log_move=self._log.rebased,
        )
        if not held:
            return folded
        others = iter(folded.results)
        results = [
            held_result(projection, event, rows.get(event.key)) if event.entity_id.bytes in held else next(others)
            for event in events
        ]
        return replace(folded, results=results)
