"""Events in, outcomes out: order → evolve → upsert, one transaction."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import assert_never
from uuid import UUID

from msgspec import UNSET, Struct, UnsetType

from app.domain.decider import Decision, decide
from app.domain.events import Deregistered, Event, Introspected, RegistrationAcked
from app.domain.positions import Comparison, Position, compare, in_order
from app.domain.registration import Ignored, Outcome, Registration, Timing, evolve, record
from app.domain.states import RegistrationState
from app.errors import ContentionError, PqsError, RefusedValuesError, UnavailableError
from app.outbound.entries import Outgoing
from app.store import registrations
from app.store.database import Connection, Database, LostRaceError, check_constraints, refused_values
from app.store.registrations import Key, Save

ATTEMPTS = 10  # a batch that loses a race is folded again this often; from the second on its rows are locked


# The triggers that are no facts: what follows from them is evolved. A heartbeat evolves as it is.
_DECIDED = (Introspected, RegistrationAcked, Deregistered)


class Followed(Struct, frozen=True):
    """An event that followed from a trigger."""

    event_id: UUID
    type: str


class Result(Struct, frozen=True, gc=False):
    """What became of one event, and how its entity's row stands after it.

    Without a row `current_state`, `version` and `stands_at` are None. `reason` is None when the event was applied.
    `events` is what followed, in its order, and is there for triggers alone (a heartbeat is its own event).
    """

    event_id: UUID
    outcome: Outcome
    reason: str | None
    entity_id: UUID
    domain: str
    current_state: RegistrationState | None
    version: int | None
    stands_at: Position | None
    events: list[Followed] | UnsetType = UNSET


# What else is done in the transaction that takes a batch in: it gets the results, and its errors roll all of it back.
Also = Callable[[Connection, list[Result]], Awaitable[None]]


class Fold(Struct, frozen=True):
    """What a batch makes of the rows that were read: a result for each event, the rows to write, what followed."""

    results: list[Result]
    saves: list[Save]
    decisions: list[Decision] = []


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
                await registrations.save(connection, folded.saves, self._outgoing.entries(folded.decisions))
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


def fold(rows: dict[Key, Registration], events: Sequence[Event], timing: Timing, *, by_position: bool) -> Fold:
    """Fold a batch onto the rows of its entities. Pure: the same rows and events always give the same."""
    results: list[Result | None] = [None] * len(events)
    saves: list[Save] = []
    decisions: list[Decision] = []
    places: dict[Key, list[int]] = defaultdict(list)
    for place, event in enumerate(events):
        places[event.key].append(place)
    for key, places_of_entity in places.items():
        read = registration = rows.get(key)
        ordered: Iterable[int] = places_of_entity
        if by_position:
            ordered = in_order(places_of_entity, lambda place: events[place].position)
        for place in ordered:
            registration, results[place] = take_in(registration, events[place], timing, decisions)
        if registration is not None and registration is not read:
            saves.append(Save(registration, read))
    return Fold([result for result in results if result is not None], saves, decisions)


def take_in(
    registration: Registration | None, event: Event, timing: Timing, decisions: list[Decision] | None = None
) -> tuple[Registration | None, Result]:
    """One event onto one row: the row after it (the same object when it is untouched), and the result.

    What follows from a trigger is put at the end of `decisions`.
    """
    refusal = check_order(registration, event)
    if refusal is not None:
        outcome, reason = refusal
        return registration, _result(event, outcome, reason, registration)
    if isinstance(event, _DECIDED):
        decided = decide(registration, event, timing)
        if isinstance(decided, Decision):
            if decisions is not None:
                decisions.append(decided)
            return decided.registration, _result(event, Outcome.APPLIED, None, decided.registration, decided)
        evolved: Registration | Ignored = decided
    else:
        evolved = evolve(registration, event, timing)
    if isinstance(evolved, Registration):
        return evolved, _result(event, Outcome.APPLIED, None, evolved)
    recorded = None if registration is None else record(registration, event)
    return recorded, _result(event, Outcome.IGNORED, evolved.reason, recorded)


def check_order(registration: Registration | None, event: Event) -> tuple[Outcome, str] | None:
    """Why the event's position does not fit its entity's row now, as outcome and reason; None when it does."""
    stands_at = None if registration is None else registration.position
    if registration is not None and stands_at is not None:
        match compare(event.position, stands_at):
            case Comparison.OTHER_TRACK:
                return Outcome.CONFLICT, f"the positions can't be compared: the row stands at {stands_at}"
            case Comparison.SAME if registration.last_applied_event_id == event.event_id:
                return Outcome.DUPLICATE, f"this event is already in: the row stands at {stands_at}"
            case Comparison.SAME:
                claimed_by = registration.last_applied_event_id
                return Outcome.CONFLICT, f"two events claim one position: {stands_at} is event {claimed_by}"
            case Comparison.LOWER:
                return Outcome.STALE, f"the row is further on: it stands at {stands_at}"
            case Comparison.HIGHER:
                pass
            case never:
                assert_never(never)
    previous = event.position.previous
    if previous is not None and (stands_at is None or stands_at.number < previous):
        at = "there is no row yet" if stands_at is None else f"the row stands at {stands_at}"
        return Outcome.EARLY, f"the event at {previous} comes before this one, and {at}: send this one again after it"
    return None


def _result(
    event: Event,
    outcome: Outcome,
    reason: str | None,
    registration: Registration | None,
    decision: Decision | None = None,
) -> Result:
    events: list[Followed] | UnsetType = UNSET
    if isinstance(event, _DECIDED):
        events = [Followed(each.event_id, each.type) for each in decision.events] if decision else []
    if registration is None:
        return Result(event.event_id, outcome, reason, event.entity_id, event.domain, None, None, None, events)
    return Result(
        event.event_id,
        outcome,
        reason,
        event.entity_id,
        event.domain,
        registration.current_state,
        registration.version,
        registration.position,
        events,
    )
