"""The sending of some messages to one destination: each entity's in their order, many entities at once."""

import asyncio
import logging
from asyncio import CancelledError
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable

import msgspec
from msgspec import Struct

from app.bus.bus import Bus
from app.bus.envelopes import HEADERS
from app.domain.intents import Intent
from app.errors import IntentError, MessageRefusedError, NotNowError
from app.store.outbox import EFFECT, TOPIC, Pending

log = logging.getLogger(__name__)

PAGE = 2000  # entries whose messages one pass sends to the bus at most
EFFECTS_PAGE = 500  # intents that one pass hands to a handler at most,
EFFECTS_AT_ONCE = 16  # and so many of them at a time
REST = 1.0  # seconds that an entity rests whose message alone did not get through; each further time twice as long,
LONGEST_REST = 60.0  # up to this
RESTING = 10_000  # entities at most that are remembered to rest; the one that came first is forgotten first

# Told once what became of a message: None when the other side has it.
Told = Callable[[BaseException | None], None]
# Begins to send a message, and never tells within the call. What it gives, if anything, can be cancelled.
Deliver = Callable[[Pending, Told], "asyncio.Task[None] | None"]


class Destination(Struct, frozen=True):
    """Where messages go, by `deliver`.

    It tells MessageRefusedError or IntentError for a message that the other side never takes, NotNowError for one
    that is to be sent again later while others may get through, and anything else where nothing does for now.
    """

    name: str
    deliver: Deliver
    page: int


def to_topic(bus: Bus, topic: str) -> Destination:
    """A topic of the bus. Envelopes go out as they are kept, with the entity id as key."""

    def deliver(message: Pending, told: Told) -> None:
        bus.send(topic, message.key, message.envelope, HEADERS, told)

    return Destination(TOPIC + topic, deliver, PAGE)


def to_handler(name: str, handle: Callable[[Intent], Awaitable[None]]) -> Destination:
    """A handler of intents."""
    room = asyncio.Semaphore(EFFECTS_AT_ONCE)

    async def carry_out(message: Pending) -> None:
        try:
            intent = _CARRIED.decode(message.envelope).data
        except msgspec.DecodeError as error:
            raise IntentError(f"the envelope holds no intent: {error}") from error
        async with room:
            await handle(intent)

    return Destination(EFFECT + name, in_tasks(carry_out), EFFECTS_PAGE)


def in_tasks(take: Callable[[Pending], Coroutine[None, None, None]]) -> Deliver:
    """Deliver each message by a task, which tells by its end."""

    def deliver(message: Pending, told: Told) -> "asyncio.Task[None]":
        def ended(task: "asyncio.Task[None]") -> None:
            told(CancelledError() if task.cancelled() else task.exception())

        task = asyncio.create_task(take(message))
        task.add_done_callback(ended)
        return task

    return deliver


class _Carried(Struct):
    """What of an envelope a handler needs."""

    data: Intent


_CARRIED = msgspec.json.Decoder(_Carried)


class Delivery:
    """The sending of what one pass has read. What is in neither list at the end stays in the outbox."""

    def __init__(self, destination: Destination, messages: Iterable[Pending]) -> None:
        self.deliver = destination.deliver
        self.arrived: list[Pending] = []
        self.refused: list[tuple[Pending, str]] = []
        self.not_now: list[tuple[Pending, str]] = []  # these wait alone
        self.trouble: BaseException | None = None  # why the last of those that stay does
        self.given_up = False
        self._ended = asyncio.Event()
        by_entity: defaultdict[bytes, list[Pending]] = defaultdict(list)
        for message in messages:
            by_entity[message.key].append(message)
        self._lines = [_Line(self, each) for each in by_entity.values()]
        self._left = len(self._lines)
        for line in self._lines:
            line.send_next()

    async def end(self) -> None:
        """Wait until everything has arrived, or failed."""
        if self._left:
            await self._ended.wait()

    def line_ended(self) -> None:
        """Say that one entity's messages are through, or must wait."""
        self._left -= 1
        if self._left == 0:
            self._ended.set()

    def give_up(self) -> None:
        """Send nothing more, and do not wait for what is on its way. To be called at the end in any case."""
        if self.given_up:
            return
        self.given_up = True
        if self._left:
            self._ended.set()
            for line in self._lines:
                line.cancel()
        self._lines.clear()  # they name this delivery: what has been sent would stay until a garbage collection


class _Line:
    """The messages of one entity, one after the other. A task for each entity would take three times as long."""

    __slots__ = ("_delivery", "_rest", "_sending", "_task")

    def __init__(self, delivery: Delivery, messages: Iterable[Pending]) -> None:
        self._delivery = delivery
        self._rest = iter(messages)
        self._sending: Pending
        self._task: asyncio.Task[None] | None = None

    def send_next(self) -> None:
        """Send the next message, if there is one."""
        message = next(self._rest, None)
        if message is None:
            self._delivery.line_ended()
        else:
            self._sending = message
            self._task = self._delivery.deliver(message, self._told)

    def _told(self, error: BaseException | None) -> None:
        delivery = self._delivery
        if delivery.given_up:
            return
        if error is None:
            delivery.arrived.append(self._sending)
        elif isinstance(error, MessageRefusedError | IntentError):
            delivery.refused.append((self._sending, str(error)))
        elif isinstance(error, NotNowError):
            delivery.not_now.append((self._sending, str(error)))
            delivery.line_ended()
            return
        else:
            if not isinstance(error, CancelledError):  # whoever cancels knows why
                delivery.trouble = error
            delivery.line_ended()
            return
        self.send_next()

    def cancel(self) -> None:
        """Stop what is on its way, where that can be."""
        if self._task is not None:
            self._task.cancel()


class Rests:
    """The entities of a destination that rest, because their messages alone did not get through, and until when.

    Each further time is twice as long. Times are by the event loop's clock.
    """

    def __init__(self, destination: str) -> None:
        self._destination = destination
        self._until: dict[str, tuple[float, float | None]] = {}  # and how long that was

    def at(self, now: float) -> list[str]:
        """Who rests now, by their ids as text."""
        return [key for key, (until, _) in self._until.items() if until > now]

    def learn(self, delivery: Delivery, now: float) -> None:
        """Take in what became of a pass."""
        if self._until:
            waiting = {message.key for message, _ in delivery.not_now}  # though an earlier one arrived
            for message in [*delivery.arrived, *(message for message, _ in delivery.refused)]:
                if message.key not in waiting:
                    self._until.pop(message.key.decode(), None)
        for message, why in delivery.not_now:
            entity_id = message.key.decode()
            _, last = self._until.pop(entity_id, (0.0, None))
            if last is None:
                log.warning("the messages of %s for %s wait: %s", entity_id, self._destination, why)
            rest = REST if last is None else min(2 * last, LONGEST_REST)
            self._until[entity_id] = (now + rest, rest)
        while len(self._until) > RESTING:
            del self._until[next(iter(self._until))]
