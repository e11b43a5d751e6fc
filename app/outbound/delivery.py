"""One delivery: the sending of messages to a destination, each entity's in order, many entities at a time."""

import asyncio
import logging
import time
from asyncio import CancelledError
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
from msgspec import Struct

from app.domain.intents import Intent
from app.errors import IntentError, MessageRefusedError, NotNowError
from app.outbound.bus import Bus
from app.store.outbox import EFFECT, TOPIC, PendingMessage
from app.tracing.context import TRACEPARENT, traceparent_in
from app.tracing.recorder import Recorder, SpanKind, Tracer, recorded
from app.wire.envelopes import HEADERS

log = logging.getLogger(__name__)

PAGE = 2000  # entries that one pass sends to the bus, at most
EFFECTS_PAGE = 500  # intents that one pass hands to a handler, at most
EFFECTS_AT_ONCE = 16  # intents that a handler carries out at a time
REST = 1.0  # first back-off, in seconds, of an entity whose message failed on its own; doubles each time
LONGEST_REST = 60.0  # seconds of the longest back-off
RESTING = 10_000  # entities that are remembered to rest, at most; the oldest is forgotten first

# Sends messages, each entity's in order, and tells the delivery the result of each.
Deliver = Callable[[Sequence[PendingMessage], "Delivery"], Awaitable[None]]


class Destination(Struct, frozen=True):
    """A receiver of messages; `deliver` sends them.

    It tells MessageRefusedError or IntentError for a message that the other side never accepts, NotNowError for one
    to send again later while others may get through, and any other error if nothing gets through for now. After the
    last two it sends no further message of the same entity.
    """

    name: str
    deliver: Deliver
    page: int


def to_topic(topic: str, *buses: Bus, tracer: Tracer | None = None) -> Destination:
    """A topic of the bus. Envelopes are sent as they are stored, with the entity id as key.

    Each delivery uses the bus with the fewest users: with enough `buses`, none waits for another's broker.
    """
    users = [0] * len(buses)

    async def deliver(messages: Sequence[PendingMessage], delivery: Delivery) -> None:
        mine = users.index(min(users))
        users[mine] += 1
        try:
            for wave in waves(messages):
                await send(buses[mine], wave, delivery)
        finally:
            users[mine] -= 1

    async def send(bus: Bus, wave: Sequence[PendingMessage], delivery: Delivery) -> None:
        going = [message for message in wave if message.key not in delivery.waiting] if delivery.waiting else wave
        if tracer is not None:
            # Each has a header of its own. A wave has one message of an entity, so none overtakes another.
            traced = [message for message in going if traceparent_in(message.envelope) is not None]
            if traced:
                going = [message for message in going if traceparent_in(message.envelope) is None]
                await asyncio.gather(*(send_traced(bus, message, delivery) for message in traced))
        if not going:
            return
        failed = await bus.publish_all(topic, [(message.key, message.envelope) for message in going], HEADERS)
        if not failed:
            delivery.arrived += going
            return
        for index, message in enumerate(going):
            delivery.told(message, failed.get(index))

    async def send_traced(bus: Bus, message: PendingMessage, delivery: Delivery) -> None:
        with relayed(tracer, TOPIC + topic, message) as trace:
            began, span = time.perf_counter(), None if trace is None else trace.child()
            traceparent = traceparent_in(message.envelope) if span is None else span.traceparent.encode()
            headers = {**HEADERS, TRACEPARENT: traceparent or b""}
            failed = await bus.publish_all(topic, [(message.key, message.envelope)], headers)
            delivery.told(message, failed.get(0))
            if span is not None:
                attributes: dict[str, str | int | float] = {
                    "messaging.system": "kafka",
                    "messaging.operation.type": "send",
                    "messaging.destination.name": topic,
                    "messaging.message.body.size": len(message.envelope),
                }
                error = type(failed[0]).__name__ if failed else None
                span.end(f"send {topic}", SpanKind.PRODUCER, attributes, began=began, error=error)

    return Destination(TOPIC + topic, deliver, PAGE)


@contextmanager
def relayed(tracer: Tracer | None, destination: str, message: PendingMessage) -> Iterator[Recorder | None]:
    """Record the relaying of a message, if it was caused by something that is sampled."""
    traceparent = None if tracer is None else traceparent_in(message.envelope)
    trace = tracer.begin(traceparent) if tracer is not None and traceparent is not None else None
    if trace is None:
        yield None
        return
    error = None
    try:
        with recorded(trace):
            yield trace
    except BaseException as failed:
        error = type(failed).__name__
        raise
    finally:
        trace.end(f"relay {destination}", attributes={"pqs.destination": destination}, error=error)


def waves(messages: Iterable[PendingMessage]) -> list[list[PendingMessage]]:
    """The first message of each entity, then the second of each that has one, and so on."""
    found: list[list[PendingMessage]] = []
    counts: dict[bytes, int] = {}
    for message in messages:
        nth = counts.get(message.key, 0)
        counts[message.key] = nth + 1
        if nth == len(found):
            found.append([])
        found[nth].append(message)
    return found


def to_handler(name: str, handle: Callable[[Intent], Awaitable[None]], tracer: Tracer | None = None) -> Destination:
    """A handler of intents."""
    room = asyncio.Semaphore(EFFECTS_AT_ONCE)

    async def carry_out(message: PendingMessage) -> None:
        try:
            intent = _CARRIED.decode(message.envelope).data
        except msgspec.DecodeError as error:
            raise IntentError(f"the envelope does not hold an intent: {error}") from error
        async with room:
            with relayed(tracer, EFFECT + name, message):
                await handle(intent)

    return Destination(EFFECT + name, one_by_one(carry_out), EFFECTS_PAGE)


def one_by_one(take: Callable[[PendingMessage], Awaitable[None]]) -> Deliver:
    """Hand over each entity's messages one by one, in one task per entity: entities do not wait for each other."""

    async def line(messages: Iterable[PendingMessage], delivery: Delivery) -> None:
        for message in messages:
            error: BaseException | None = None
            try:
                await take(message)
            except (Exception, CancelledError) as failed:  # noqa: BLE001 - the delivery is told
                error = failed
            delivery.told(message, error)
            if message.key in delivery.waiting or delivery.given_up:
                return

    async def deliver(messages: Sequence[PendingMessage], delivery: Delivery) -> None:
        lines: defaultdict[bytes, list[PendingMessage]] = defaultdict(list)
        for message in messages:
            lines[message.key].append(message)
        await asyncio.gather(*(line(each, delivery) for each in lines.values()))

    return deliver


class _Carried(Struct):
    """The part of an envelope that a handler needs."""

    data: Intent


_CARRIED = msgspec.json.Decoder(_Carried)


class Delivery:
    """The sending of the messages of one pass. A message in neither `arrived` nor `refused` stays in the outbox."""

    def __init__(self, destination: Destination, messages: Sequence[PendingMessage]) -> None:
        self.arrived: list[PendingMessage] = []
        self.refused: list[tuple[PendingMessage, str]] = []
        self.not_now: list[tuple[PendingMessage, str]] = []  # failed on their own
        self.waiting: set[bytes] = set()  # the keys of messages to send again: nothing more with these keys is sent
        self.trouble: BaseException | None = None  # the last error that concerns more than one message
        self.given_up = False
        self._ended = asyncio.Event()
        self._sending = asyncio.ensure_future(destination.deliver(messages, self))
        self._sending.add_done_callback(self._end)

    def told(self, message: PendingMessage, error: BaseException | None) -> None:
        """Hear the result of a message: None if the other side has it. After `give_up` results are ignored."""
        if self.given_up:
            return
        if error is None:
            self.arrived.append(message)
        elif isinstance(error, MessageRefusedError | IntentError):
            self.refused.append((message, str(error)))
        elif isinstance(error, NotNowError):
            self.not_now.append((message, str(error)))
            self.waiting.add(message.key)
        else:
            if not isinstance(error, CancelledError):  # a cancellation is no error of the other side
                self.trouble = error
            self.waiting.add(message.key)

    def _end(self, sending: "asyncio.Future[None]") -> None:
        if not sending.cancelled() and (error := sending.exception()) is not None:
            self.trouble = error
        self._ended.set()

    async def end(self) -> None:
        """Wait until every message has arrived or failed."""
        await self._ended.wait()

    def give_up(self) -> None:
        """Send nothing more, and do not wait for messages under way. To be called at the end in any case."""
        self.given_up = True
        self._ended.set()
        self._sending.cancel()


class Rests:
    """The entities of a destination that rest because their messages failed on their own, and until when.

    Each further rest is twice as long. Times are by the event loop's clock.
    """

    def __init__(self, destination: str) -> None:
        self._destination = destination
        self._until: dict[str, tuple[float, float | None]] = {}  # with the seconds of that rest

    def at(self, now: float) -> list[str]:
        """The ids, as text, of the entities that rest now."""
        return [key for key, (until, _) in self._until.items() if until > now]

    def learn(self, delivery: Delivery, now: float) -> None:
        """Learn from the results of a pass."""
        if self._until:
            waiting = {message.key for message, _ in delivery.not_now}  # even if an earlier message arrived
            for message in [*delivery.arrived, *(message for message, _ in delivery.refused)]:
                if message.key not in waiting:
                    self._until.pop(message.entity_id, None)
        for message, why in delivery.not_now:
            entity_id = message.entity_id
            _, last = self._until.pop(entity_id, (0.0, None))
            if last is None:
                log.warning("the messages of %s for %s wait: %s", entity_id, self._destination, why)
            rest = REST if last is None else min(2 * last, LONGEST_REST)
            self._until[entity_id] = (now + rest, rest)
        while len(self._until) > RESTING:
            del self._until[next(iter(self._until))]
