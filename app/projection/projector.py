"""Events in, outcomes out, one transaction for a batch: read the rows, fold, write. `app.domain.folding` folds."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import cast

from app.domain.events import Envelope
from app.domain.folding import Fold, fold
from app.domain.registration import R, Timing
from app.domain.results import Result
from app.errors import ContentionError, PqsError, RefusedValuesError, UnavailableError
from app.outbound.entries import Outgoing
from app.store.database import Connection, Database, LostRaceError, check_constraints, refused_values
from app.store.registrations import REGISTRATIONS, Store

ATTEMPTS = 10  # a batch that loses a race is folded again this often; from the second on its rows are locked


# What else is done in the transaction that takes a batch in: it is given the results, and its error rolls all back.
Also = Callable[[Connection, list[Result]], Awaitable[None]]


class _TakenBackError(PqsError):
    """A transaction that was only tried: it went through, and is rolled back."""


class Projector:
    """Takes events in. Its outcomes are final: it returns them after the commit that they speak of."""

    def __init__(
        self,
        database: Database,
        timing: Timing,
        outgoing: Outgoing | None = None,
        *,
        store: Store[R] = REGISTRATIONS,  # type: ignore[assignment]  # the default of R, which mypy does not see here
    ) -> None:
        """`outgoing` says where what follows is sent; without it, nowhere. `store` is the projection's."""
        self._database = database
        self._timing = timing
        self._outgoing = outgoing or Outgoing()
        self._store = cast("Store", store)  # for the rest of the class one row is like any other

    async def persist(
        self,
        events: Sequence[Envelope],
        *,
        by_position: bool = False,
        also: Also | None = None,
        after: asyncio.Task[object] | None = None,
    ) -> list[Result]:
        """Take in a batch as one transaction, and return a result for each event, in the order given.

        The events of one entity are folded in the order given, or, `by_position`, in the order of their positions.
        When other writers change the same rows meanwhile, the batch starts again. Raises ContentionError when that
        happens ATTEMPTS times, RefusedValuesError when PostgreSQL refuses a value (a constraint or a trigger of an
        operator's, an index's limit), and UnavailableError when the database does not answer; nothing is written
        then, unless the connection broke in the commit itself. `also` is done after the rows, once for each attempt.
        `after` is a batch that has no entity in common with this one: this one is read and folded meanwhile, and
        written when the other has been committed; when the other fails, this one fails too.
        """
        for attempt in range(ATTEMPTS):
            lock = attempt > 0
            # Unlocked, one guarded statement does all the writing: it needs no transaction around it.
            write = self._database.write if lock or also is not None else self._database.write_alone
            try:
                with refused_values():
                    folded = await write(
                        self._attempt, events, by_position=by_position, lock=lock, also=also, after=after
                    )
            except LostRaceError:
                continue
            self._outgoing.committed(folded.decisions)
            return folded.results
        raise ContentionError(f"other writers were faster {ATTEMPTS} times in a row; nothing was written")

    async def _attempt(
        self,
        connection: Connection,
        events: Sequence[Envelope],
        *,
        by_position: bool,
        lock: bool,
        also: Also | None,
        after: asyncio.Task[object] | None,
    ) -> Fold:
        folded = await self._fold(connection, events, by_position=by_position, lock=lock)
        if after is not None:
            await asyncio.wait([after])
            if after.exception() is not None:
                raise UnavailableError("what comes before this is not in")
        await self._store.upsert.save(connection, folded.saves, self._outgoing.entries(folded.decisions))
        if also is not None:
            await also(connection, folded.results)
        return folded

    async def persist_fitting(
        self, events: Sequence[Envelope], *, after: asyncio.Task[object] | None = None
    ) -> list[Result | RefusedValuesError]:
        """Take in a batch as `persist` does, without the events that PostgreSQL refuses; each of those is an error.

        When it refuses one, the batch goes in by halves, in their order, each half in a transaction of its own.
        """
        try:
            return [*await self.persist(events, after=after)]
        except RefusedValuesError as error:
            if len(events) == 1:
                return [error]
        middle = len(events) // 2
        first = await self.persist_fitting(events[:middle], after=after)
        return first + await self.persist_fitting(events[middle:], after=after)

    async def find_refused(self, events: Sequence[Envelope], *, by_position: bool = False) -> int:
        """The index of the first event for which PostgreSQL refuses a batch: it takes all events before it.

        Nothing is written: it takes some log2(len(events)) transactions, which are rolled back.
        """

        async def take_back(connection: Connection, _results: list[Result]) -> None:
            await check_constraints(connection)
            raise _TakenBackError

        fitting, refused = 0, len(events)  # so many of the first events get in, so many do not
        while refused - fitting > 1:
            middle = (fitting + refused) // 2
            try:
                with suppress(_TakenBackError):
                    await self.persist(events[:middle], by_position=by_position, also=take_back)
                fitting = middle
            except RefusedValuesError:
                refused = middle
        return fitting

    async def foresee(self, events: Sequence[Envelope], *, by_position: bool = False) -> list[Result]:
        """What `persist` would return now. Nothing is written."""
        folded = await self._database.read(self._fold, events, by_position=by_position, lock=False)
        return folded.results

    async def _fold(
        self, connection: Connection, events: Sequence[Envelope], *, by_position: bool, lock: bool
    ) -> Fold:
        names = {event.key: (event.entity_id, event.domain) for event in events}
        rows = await self._store.get_entity_states(connection, list(names.values()), lock=lock)
        return fold(self._store.projection, rows, events, self._timing, by_position=by_position)
