"""Which messages of a batch are applied, which become dead letters, and which wait behind one of their entity.

A transition that fails holds its entity: after a retry of that message alone, everything behind it would be stale. So
the later messages of the entity wait, unchanged, until the letter is retried or skipped. A heartbeat that fails holds
nothing: the next one says the same.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from enum import Enum, auto
from uuid import UUID

from msgspec import Struct

from app.domain.events import Event, EventBase, Heartbeat
from app.domain.results import Outcome, Result
from app.store import dead_letters, held
from app.store.database import Connection
from app.store.dead_letters import Letter
from app.wire.messages import KafkaMessage, entity_of, is_heartbeat

log = logging.getLogger(__name__)

HEADERLESS = "its headers are lost: one of their names is not UTF-8, and the Kafka client then returns none"


class Unfit(Struct, frozen=True):
    """Why a message has no event. One that is `foreign` is none of ours, and holds nothing."""

    error: str
    foreign: bool = False


REFUSED_OUTCOMES = {Outcome.EARLY, Outcome.CONFLICT}

MessageRead = Event | Unfit | None  # the event of a message, why it has none, or nothing: it is passed over


class Fate(Enum):
    """What becomes of a message."""

    APPLIED = auto()
    DEAD = auto()
    HELD = auto()
    NOTHING = auto()


class Sorting:
    """A batch that is sorted, in one transaction: call `choose`, then `revise` with the results, then `write`.

    Without `holds` (PQS_DEAD_LETTERS=pass) no message waits for another one. `letters` are the dead letters of the
    last attempt, `held` and `passed` its numbers of messages that wait, and that should but found no room.
    """

    def __init__(self, messages: Sequence[KafkaMessage], decoded: Sequence[MessageRead], *, holds: bool) -> None:
        self._messages = messages
        self._decoded = decoded
        self._holds = holds
        self._any_unfit = any(isinstance(each, Unfit) for each in decoded)
        self.letters: list[Letter] = []
        self._begin({})

    def _begin(self, queues: dict[bytes, int]) -> None:
        self._queues = queues  # of the held entities, by the bytes of their ids: the messages that wait for each
        self._room: int | None = None  # for further held entities, once it is known
        self._fates = [
            Fate.APPLIED if isinstance(each, EventBase) else Fate.NOTHING if each is None else Fate.DEAD
            for each in self._decoded
        ]
        self._holding: dict[bytes, int] = {}  # the entities that are held from now on, and the place of the letter
        self._passed: Counter[bytes] = Counter()
        self._crowded: set[int] = set()  # places of letters that hold nothing, as too many entities are held already

    @property
    def held(self) -> int:
        """The number of messages that wait behind a letter."""
        return self._fates.count(Fate.HELD)

    @property
    def passed(self) -> int:
        """The number of messages that passed a letter, and of letters that hold nothing, for lack of room."""
        return self._passed.total() + len(self._crowded)

    async def choose(self, connection: Connection) -> list[EventBase]:
        """The events to be applied. Locks the queues of their entities, so that nobody retries them meanwhile."""
        self._begin({})
        if self._holds:
            if await held.is_any(connection):
                entities = (self._entity(*each) for each in zip(*self._both, strict=True))
                self._begin(await held.lock(connection, [each for each in entities if each is not None]))
            if self._any_unfit or self._queues:
                await self._sort(connection)
        return self._events

    @property
    def _both(self) -> tuple[Sequence[KafkaMessage], Sequence[MessageRead]]:
        return self._messages, self._decoded

    @property
    def _events(self) -> list[EventBase]:
        return [
            each
            for each, fate in zip(self._decoded, self._fates, strict=True)
            if fate is Fate.APPLIED and isinstance(each, EventBase)
        ]

    async def revise(self, connection: Connection, results: Sequence[Result]) -> list[EventBase] | None:
        """The events without those behind a transition that failed; None if there are none."""
        if not self._holds or not any(result.outcome in REFUSED_OUTCOMES for result in results):
            return None
        before = self._fates.count(Fate.HELD)
        of_events = iter(results)
        for place, fate in enumerate(self._fates):
            if fate is not Fate.APPLIED:
                continue
            each, result = self._decoded[place], next(of_events)
            if refusal(result) is None or isinstance(each, Heartbeat) or result.entity_id.bytes in self._queues:
                continue
            behind = self._holding.get(result.entity_id.bytes)
            if behind is None:
                await self._hold(connection, result.entity_id.bytes, place)
            elif place < behind:  # the message behind which it was to be held waits, too
                self._holding[result.entity_id.bytes] = place
        await self._sort(connection)
        return None if self._fates.count(Fate.HELD) == before else self._events

    async def _sort(self, connection: Connection) -> None:
        """Let the messages of held entities wait, and hold those whose message has no event."""
        waiting = Counter(self._queues)
        self._passed.clear()
        for place, each in enumerate(self._decoded):
            entity_id = self._entity(self._messages[place], each)
            if entity_id is None or (isinstance(each, Unfit) and not self._is_transition(place)):
                continue
            key = entity_id.bytes
            behind = self._holding.get(key)
            if key in self._queues or (behind is not None and behind < place):
                if waiting[key] < held.MAX_MESSAGES:
                    waiting[key] += 1
                    self._fates[place] = Fate.HELD
                else:
                    self._passed[key] += 1
            elif isinstance(each, Unfit) and behind is None:
                await self._hold(connection, key, place)

    async def _hold(self, connection: Connection, key: bytes, place: int) -> None:
        if self._room is None:
            self._room = await held.room(connection)
        if len(self._holding) < self._room:
            self._holding[key] = place
        else:
            self._crowded.add(place)

    def _is_transition(self, place: int) -> bool:
        each = self._decoded[place]
        return isinstance(each, Unfit) and not each.foreign and not is_heartbeat(self._messages[place])

    @staticmethod
    def _entity(message: KafkaMessage, decoded: MessageRead) -> UUID | None:
        if isinstance(decoded, Unfit):
            return None if decoded.foreign else entity_of(message)
        return None if decoded is None else decoded.entity_id

    async def write(self, connection: Connection, results: Sequence[Result]) -> None:
        """Store the dead letters, and the messages that wait behind them."""
        of_events = iter(results)
        self.letters = []
        for place, fate in enumerate(self._fates):
            each = self._decoded[place]
            if fate is Fate.APPLIED:
                error = refusal(next(of_events))
            else:
                error = each.error if fate is Fate.DEAD and isinstance(each, Unfit) else None
            if error is not None:
                self.letters.append(_letter(self._messages[place], each, error))
        if self.letters:
            await dead_letters.add(connection, self.letters)
        if self._holding:
            await held.hold(connection, {id_: self._messages[place] for id_, place in self._holding.items()})
        if not (self._queues or self._holding):
            return
        waiting = [
            (entity_id, message)
            for message, each, fate in zip(*self._both, self._fates, strict=True)
            if fate is Fate.HELD and (entity_id := self._entity(message, each)) is not None
        ]
        if waiting or self._passed:
            await held.append(connection, waiting, self._passed)

    def tell(self) -> None:
        """Log the letters, and the messages that found no room."""
        for each in self.letters:
            log.warning(
                "message moved to the dead letters: %s-%s@%s: %s", each.topic, each.partition, each.offset, each.error
            )
        for key, number in self._passed.items():
            log.warning(
                "%d messages of entity %s passed its dead letter: %d wait already",
                number,
                UUID(bytes=key),
                held.MAX_MESSAGES,
            )
        if self._crowded:
            log.warning(
                "%d dead letters hold nothing: %d entities are held already", len(self._crowded), held.MAX_ENTITIES
            )


def _letter(message: KafkaMessage, decoded: MessageRead, error: str) -> Letter:
    if message.headers is None:
        error = f"{error}; {HEADERLESS}"
    return Letter(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        key=message.key,
        value=message.value,
        headers=message.headers or [],
        error=error,
        entity_id=decoded.entity_id if isinstance(decoded, EventBase) else entity_of(message),
    )


def refusal(result: Result) -> str | None:
    """Why an event is not in, as its dead letter says it; None if it is in, or never will be."""
    if result.outcome in REFUSED_OUTCOMES:
        return f"{result.outcome}: {result.reason}"
    return None
