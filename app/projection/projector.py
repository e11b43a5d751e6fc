"""Events in, outcomes out, one transaction for a batch: read the rows, fold, write. `app.domain.folding` folds."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from app.domain.events import Event
from app.domain.folding import Fold, fold
from app.domain.registration import Timing
from app.domain.results import Result
from app.errors import ContentionError, PqsError, RefusedValuesError, UnavailableError
from app.outbound.entries import Outgoing
from app.store import registrations, upsert
from app.store.database import Connection, Database, LostRaceError, check_constraints, refused_values

ATTEMPTS = 10  # a batch that loses a race is folded again this often; from the second on its rows are locked


# What else is done in the transaction that takes a batch in: it gets the results, and its errors roll all of it back.
Also = Callable[[Connection, list[Result]], Awaitable[None]]


class _TakenBackError(PqsError):
    """A transaction was done to its end, to see whether that can be, and is not wanted."""


class Projector:
    """Takes events in. Its outcomes are final: they are returned after the commit that they speak of."""

    def __init__(self, database: Database, timing: Timing, outgoing: Outgoing | None = None) -> None:
        """`outgoing` says where what follows is sent; without it, nowhere."""
        self._database = database
        self._timing = timing
        self._outgoing = outgoing or Outgoing()

    async def persist(
        self,
        events: Sequence[Event],
        *,
        by_position: bool = False,
        also: Also | None = None,
        after: asyncio.Task[object] | None = None,
    ) -> list[Result]:
        """Take in a batch as one transaction, and return a result for each event, in the order given.

        The events of one entity are folded as they come, or, `by_position`, in the order of their positions. When
        other writers change the same rows meanwhile, the batch starts anew. Raises ContentionError when that
        happens ATTEMPTS times, RefusedValuesError when PostgreSQL is against a value (a constraint or a trigger of an
        operator's, an index's limit), and UnavailableError when the database does not answer; nothing is written
        then, unless the connection broke in the commit itself. `also` is done after the rows, once for each attempt.
        `after` is a batch that has no entity in common with this one: this one is read and folded meanwhile, and
        written when that one is in; else not at all.
        """
        for attempt in range(ATTEMPTS):
            lock = attempt > 0

            async def work(connection: Connection, *, lock: bool = lock) -> Fold:
                folded = await self._fold(connection, events, by_position=by_position, lock=lock)
                if after is not None:
                    await asyncio.wait([after])
                    if after.exception() is not None:
                        raise UnavailableError("what comes before this is not in")
                await upsert.save(connection, folded.saves, self._outgoing.entries(folded.decisions))
                if also is not None:
                    await also(connection, folded.results)
                return folded

            try:
                # Unlocked, there is one statement that writes, and it is guarded: it needs no transaction around it.
                alone = not lock and also is None
                with refused_values():
                    folded = await (self._database.write_alone(work) if alone else self._database.write(work))
            except LostRaceError:
                continue
            self._outgoing.committed(folded.decisions)
            return folded.results
        raise ContentionError(f"other writers were faster {ATTEMPTS} times in a row; nothing was written")

    async def persist_fitting(
        self, events: Sequence[Event], *, after: asyncio.Task[object] | None = None
    ) -> list[Result | RefusedValuesError]:
        """Take in a batch as `persist` does, but for those events that PostgreSQL refuses.

        When it refuses one, the batch goes in by halves, in their order, each a transaction of its own.
        """
        try:
            return [*await self.persist(events, after=after)]
        except RefusedValuesError as error:
            if len(events) == 1:
                return [error]
        middle = len(events) // 2
        first = await self.persist_fitting(events[:middle], after=after)
        return first + await self.persist_fitting(events[middle:], after=after)

    async def find_refused(self, events: Sequence[Event], *, by_position: bool = False) -> int:
        """The index of the event by which PostgreSQL refuses a batch: what was sent before it would get in.

        Nothing is written. It takes some log2(len(events)) transactions, which are rolled back.
        """

        async def take_back(connection: Connection, _results: list[Result]) -> None:
            await check_constraints(connection)
            raise _TakenBackError

        fitting, refused = 0, len(events)  # so many events from the first on get in, and so many do not
        while refused - fitting > 1:
            middle = (fitting + refused) // 2
            try:
                with suppress(_TakenBackError):
                    await self.persist(events[:middle], by_position=by_position, also=take_back)
                fitting = middle
            except RefusedValuesError:
                refused = middle
        return fitting

    async def foresee(self, events: Sequence[Event], *, by_position: bool = False) -> list[Result]:
        """What `persist` would return now. Nothing is written."""

        async def work(connection: Connection) -> list[Result]:
            return (await self._fold(connection, events, by_position=by_position, lock=False)).results

        return await self._database.read(work)

    async def _fold(self, connection: Connection, events: Sequence[Event], *, by_position: bool, lock: bool) -> Fold:
        keys = list({event.key for event in events})
        rows = await registrations.get_entity_states(connection, keys, lock=lock)
        return fold(rows, events, self._timing, by_position=by_position)
