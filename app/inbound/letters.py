"""Dead letters, taken in again: one by itself, or one with the messages that wait behind it."""

from collections import Counter
from collections.abc import Sequence
from typing import NoReturn
from uuid import UUID

from app.domain.events import EventBase
from app.domain.results import Outcome, Result
from app.errors import ForeignMessageError, InvalidInputError, PqsError, RefusedValuesError, UnreadableError
from app.inbound.holding import REFUSED_OUTCOMES, refusal
from app.projection.clock import DatabaseClock
from app.projection.projector import Also, Projector
from app.store import dead_letters, held
from app.store.database import Connection, check_constraints
from app.store.dead_letters import DeadLetter
from app.store.held import HeldError, Queue
from app.wire.answers import MessagePlace, QueueAnswer, Summary
from app.wire.messages import KafkaMessage, read_message

REFUSED = "PostgreSQL does not accept this message; the log of the service says why"
READ_ERRORS = (InvalidInputError, UnreadableError, ForeignMessageError)  # what reading a message raises


class NotHeldError(PqsError):
    """The entity is not held, or no longer."""


class _TrialError(PqsError):
    """Rolls back a transaction that was only tried."""


class Letters:
    """Takes dead letters in again."""

    def __init__(self, projector: Projector, clock: DatabaseClock) -> None:
        self._projector = projector
        self._clock = clock

    async def retry(self, letter: DeadLetter, also: Also) -> Result:
        """Apply an incoming message at the position where it was read. It is removed, unless it is not in after all.

        Raises what reading it raises, and RefusedValuesError. An entity that is held gives a HeldResult.
        """
        event = read_message(_message(letter))
        await self._clock.check([event], many=False)

        async def with_removal(connection: Connection, results: list[Result]) -> None:
            await also(connection, results)
            if results[0].outcome not in REFUSED_OUTCOMES:
                await dead_letters.remove(connection, letter.id)

        [result] = await self._projector.persist([event], also=with_removal)
        return result

    async def retry_queue(self, entity_id: UUID, also: Also) -> QueueAnswer:
        """Apply the letter of a held entity and the messages behind it, in order, in one transaction.

        Raises HeldError, and writes nothing, at the first that fails again; and NotHeldError.
        """
        return await self._take(entity_id, also, skip=False)

    async def skip(self, entity_id: UUID, also: Also) -> QueueAnswer:
        """Do the same, but leave out the first message that fails again. The second one becomes the letter.

        So a call always leaves fewer messages. Raises NotHeldError.
        """
        return await self._take(entity_id, also, skip=True)

    async def _take(self, entity_id: UUID, also: Also, *, skip: bool) -> QueueAnswer:
        refused: set[tuple[str, int, int]] = set()  # the places of messages that PostgreSQL does not accept
        while True:
            await self._clock.refresh()
            attempt = _Attempt(self._clock, entity_id, refused, skip=skip)

            async def finish(connection: Connection, results: list[Result], attempt: _Attempt = attempt) -> None:
                await attempt.finish(connection)
                await also(connection, results)

            try:
                results = await self._projector.persist_chosen(attempt.choose, revise=attempt.revise, also=finish)
            except RefusedValuesError:
                refused.add(await self._find_refused(entity_id, refused, skip=skip))
            else:
                return attempt.answer(results)

    async def _find_refused(
        self, entity_id: UUID, refused: set[tuple[str, int, int]], *, skip: bool
    ) -> tuple[str, int, int]:
        """The place of the first message that PostgreSQL refuses, found by trying and rolling back."""

        async def take_back(connection: Connection, _results: list[Result]) -> None:
            await check_constraints(connection)
            raise _TrialError

        fitting, trial = 0, _Attempt(self._clock, entity_id, refused, skip=skip)
        high: int | None = None
        while high is None or high - fitting > 1:
            middle = None if high is None else (fitting + high) // 2
            trial = _Attempt(self._clock, entity_id, refused, skip=skip, most=middle)
            try:
                await self._projector.persist_chosen(trial.choose, revise=trial.revise, also=take_back)
            except _TrialError:
                if middle is None:
                    raise RefusedValuesError(REFUSED) from None  # PostgreSQL accepts it now
                fitting = middle
            except RefusedValuesError:
                high = len(trial.places) if middle is None else middle
        return trial.place_of(fitting)


class _Attempt:
    """One attempt to take in a queue: which of its messages are applied, and where it ends."""

    def __init__(
        self,
        clock: DatabaseClock,
        entity_id: UUID,
        refused: set[tuple[str, int, int]],
        *,
        skip: bool,
        most: int | None = None,
    ) -> None:
        self._clock = clock
        self._entity_id = entity_id
        self._refused = refused
        self._skip = skip
        self._most = most
        self._queue: Queue
        self._read: list[EventBase | str] = []
        self._failed: dict[int, str] = {}
        self._skipped: int | None = None
        self._end: int | None = None
        self.places: list[int] = []  # of the messages that are applied

    async def choose(self, connection: Connection) -> list[EventBase]:
        """The events of the queue, up to the end."""
        queue = await held.get_queue(connection, self._entity_id)
        if queue is None:
            raise NotHeldError(f"entity {self._entity_id} is not held")
        self._queue = queue
        self._read = [self._event_of(each.message) for each in queue.waiting]
        self._failed = {place: each for place, each in enumerate(self._read) if isinstance(each, str)}
        return self._chosen()

    def _event_of(self, message: KafkaMessage) -> EventBase | str:
        if (message.topic, message.partition, message.offset) in self._refused:
            return REFUSED
        try:
            event = read_message(message)
        except READ_ERRORS as error:
            return str(error)
        fault = self._clock.known_fault(event)
        return event if fault is None else f"{fault.pointer}: {fault.detail}"

    def _chosen(self) -> list[EventBase]:
        first, second, *_ = [*sorted(self._failed), None, None]
        self._skipped, self._end = (first, second) if self._skip else (None, first)
        end = len(self._read) if self._end is None else self._end
        self.places = [place for place in range(end) if place != self._skipped][: self._most]
        return [each for place in self.places if isinstance(each := self._read[place], EventBase)]

    async def revise(self, _connection: Connection, results: Sequence[Result]) -> list[EventBase] | None:
        """The events without the first one that failed."""
        for place, result in zip(self.places, results, strict=True):
            if (why := refusal(result)) is not None:
                self._failed[place] = why
                return self._chosen()
        if self._most is None and not self._skip and self._end is not None:
            self._refuse(self._end)
        return None

    def _refuse(self, place: int) -> NoReturn:
        message = self._queue.waiting[place].message
        where = f"{message.topic}-{message.partition} offset {message.offset}"
        raise HeldError(
            self._entity_id, f"the message at {where} fails again, nothing was written: {self._failed[place]}"
        )

    async def finish(self, connection: Connection) -> None:
        """End the queue, or let it begin with the message that failed."""
        if self._end is None:
            await held.release(connection, self._queue)
        else:
            behind = len(self._queue.waiting) - self._end - 1
            await held.promote(connection, self._queue, self._end, self._failed[self._end], waiting=behind)

    def place_of(self, number: int) -> tuple[str, int, int]:
        """Where the message of an event was read."""
        message = self._queue.waiting[self.places[number]].message
        return message.topic, message.partition, message.offset

    def answer(self, results: Sequence[Result]) -> QueueAnswer:
        """What became of the queue."""
        counts = Counter(result.outcome for result in results)
        skipped = None if self._skipped is None else self._queue.waiting[self._skipped].message
        return QueueAnswer(
            self._entity_id,
            Summary(received=len(results), **{str(outcome): counts[outcome] for outcome in Outcome}),
            None if skipped is None else MessagePlace(skipped.topic, skipped.partition, skipped.offset),
            0 if self._end is None else len(self._queue.waiting) - self._end,
        )


def _message(letter: DeadLetter) -> KafkaMessage:
    return KafkaMessage(
        letter.topic, letter.partition or 0, letter.offset or 0, letter.key, letter.value, letter.headers
    )
