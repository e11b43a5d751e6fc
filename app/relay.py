"""The relay: sends what the outbox holds, in the order of each entity, until the other side has it."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import assert_never
from uuid import UUID

import msgspec
from msgspec import Struct

from app.bus.bus import Bus
from app.bus.envelopes import HEADERS
from app.bus.kafka import KafkaBus
from app.bus.memory import MemoryBus
from app.domain.intents import Intent
from app.effects.consul import Consul
from app.errors import IntentError, MessageRefusedError, PqsError
from app.settings import BusKind, Settings
from app.store import dead_letters, outbox
from app.store.database import Connection, Database, watched
from app.store.dead_letters import RELAY, Letter
from app.store.outbox import EFFECT, TOPIC, Pending

log = logging.getLogger(__name__)

SHARE = 16  # slots that one pass takes, so that other relays find some
PAGE = 4000  # messages that one pass sends to the bus at most
EFFECTS_PAGE = 500  # intents that one pass hands to a handler at most,
EFFECTS_AT_ONCE = 16  # and so many of them at a time
LANES = 2  # passes at a time for one destination: while one removes what has arrived, the other sends
POLL = 0.2  # seconds between two looks when idle: for what other processes have written
PAUSE = 0.01  # seconds after a pass with room left, in which more comes together for the next one
RETRY = 1.0  # seconds after a pass in which nothing got through
GRACE = 5.0  # seconds that a pass has to come to its end when the relay is closed

Deliver = Callable[[Pending], "asyncio.Future[None]"]


class Destination(Struct, frozen=True):
    """Where messages go. What `deliver` gives is done when the other side has the message.

    It ends in MessageRefusedError or IntentError for one that the other side never takes, and in anything else for
    one that is to be sent again later.
    """

    name: str
    deliver: Deliver
    page: int


def to_topic(bus: Bus, topic: str) -> Destination:
    """A topic of the bus. Envelopes go out as they are kept, with the entity id as key."""

    def deliver(message: Pending) -> "asyncio.Future[None]":
        return bus.send(topic, str(message.entity_id).encode(), message.envelope.encode(), HEADERS)

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

    def deliver(message: Pending) -> "asyncio.Future[None]":
        return asyncio.ensure_future(carry_out(message))

    return Destination(EFFECT + name, deliver, EFFECTS_PAGE)


class _Carried(Struct):
    """What of an envelope a handler needs."""

    data: Intent


_CARRIED = msgspec.json.Decoder(_Carried)


class Delivery:
    """The sending of what one pass has read. What is in neither list at the end stays in the outbox."""

    def __init__(self, destination: Destination, messages: Iterable[Pending]) -> None:
        self._deliver = destination.deliver
        self.arrived: list[Pending] = []
        self.refused: list[tuple[Pending, str]] = []
        self.trouble: BaseException | None = None  # why the last of those that stay does
        rows: defaultdict[UUID, list[Pending]] = defaultdict(list)
        for message in messages:
            rows[message.entity_id].append(message)
        self._rows = len(rows)
        self._on_their_way: set[asyncio.Future[None]] = set()
        self._given_up = False
        self._ended = asyncio.Event()
        for row in rows.values():
            self._next(iter(row))

    async def end(self) -> None:
        """Wait until everything has arrived, or failed."""
        if self._rows:
            await self._ended.wait()

    def give_up(self) -> None:
        """Send nothing more, and do not wait for what is on its way."""
        self._given_up = True
        for report in self._on_their_way:
            report.cancel()

    def _next(self, row: Iterator[Pending]) -> None:
        """Send the next message of one entity, if there is one and it may go."""
        message = None if self._given_up else next(row, None)
        if message is None:
            self._rows -= 1
            if self._rows == 0:
                self._ended.set()
            return
        # A callback and no task for each entity: that takes a third of the time.
        report = self._deliver(message)
        self._on_their_way.add(report)
        report.add_done_callback(partial(self._reported, message, row))

    def _reported(self, message: Pending, row: Iterator[Pending], report: "asyncio.Future[None]") -> None:
        self._on_their_way.discard(report)
        error = asyncio.CancelledError() if report.cancelled() else report.exception()
        if error is None:
            self.arrived.append(message)
        elif isinstance(error, MessageRefusedError | IntentError):
            self.refused.append((message, str(error)))
        else:
            self.trouble = error
            row = iter(())
        self._next(row)


class Passed(Struct, frozen=True):
    """How a pass ended."""

    moved: bool = False  # something left the outbox
    full: bool = False  # there may be more in these slots, or in others
    trouble: BaseException | None = None


class Relay:
    """Sends messages to some destinations, at least once, and removes them when they have arrived.

    Many relays may work on one database: a slot of a destination belongs to one of them at a time, for one pass. A
    pass is a transaction: it takes slots, reads the oldest messages, sends them, removes those that have arrived, and
    lets the slots go. A relay that dies lets them go at once, and what it had sent and not removed is sent again.

    Order: of one entity a message is sent after the one before it has arrived, while those of thousands of other
    entities are on their way. To hand an entity's messages over together would be faster for a long row of them, but
    a bus that gives one up may have delivered the next. So when a message has to be tried again, its successors wait,
    and nobody else's do. One that is refused for good is set aside.

    Destinations do not wait for each other: each has tasks and connections of its own.
    """

    def __init__(self, database: Database, destinations: Sequence[Destination], *, share: int = SHARE) -> None:
        """`database` needs LANES connections for each destination."""
        self._database = database
        self._destinations = destinations
        self._share = share
        self._closing = asyncio.Event()
        self._woken: list[asyncio.Event] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._deliveries: set[Delivery] = set()

    def start(self) -> None:
        """Begin to send."""
        for destination in self._destinations:
            for _ in range(LANES):
                woken = asyncio.Event()
                self._woken.append(woken)
                self._tasks.append(asyncio.create_task(self._run(destination, woken)))

    def wake(self) -> None:
        """Look at the outbox now: something was written there."""
        for woken in self._woken[::LANES]:
            woken.set()

    async def close(self) -> None:
        """Finish what is on its way, for GRACE seconds at most; what is not there by then stays in the outbox."""
        self._closing.set()
        for woken in self._woken:
            woken.set()
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=GRACE)
        for delivery in self._deliveries:
            delivery.give_up()
        if late:  # they remove what has arrived
            _, late = await asyncio.wait(late, timeout=GRACE)
        for task in late:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _run(self, destination: Destination, woken: asyncio.Event) -> None:
        """Pass after pass, until the relay is closed."""
        in_trouble = False
        while not self._closing.is_set():
            woken.clear()
            passed = await self._pass(destination)
            if passed.trouble is not None and not in_trouble:
                unexpected = None if isinstance(passed.trouble, PqsError) else passed.trouble
                log.warning("messages for %s wait: %s", destination.name, passed.trouble, exc_info=unexpected)
            elif passed.trouble is None and passed.moved and in_trouble:
                log.info("messages for %s are sent again", destination.name)
            in_trouble = passed.trouble is not None or (in_trouble and not passed.moved)
            if passed.moved:
                if not passed.full:
                    await _either(self._closing, PAUSE)
            elif passed.trouble is not None:
                await _either(self._closing, RETRY)
            else:
                await _either(woken, POLL)

    async def _pass(self, destination: Destination) -> Passed:
        async def work(connection: Connection) -> Passed:
            slots = await outbox.take(connection, destination.name, most=self._share)
            most = max(1, destination.page // max(1, len(slots)))
            messages = await outbox.read(connection, destination.name, slots, most=most) if slots else []
            if not messages:  # or the slots were let go by one who had just sent them
                return Passed()
            delivery = await self._send(connection, destination, messages)
            letters = [_letter(destination.name, message, why) for message, why in delivery.refused]
            if letters:
                await dead_letters.add(connection, letters)
            gone = delivery.arrived + [message for message, _ in delivery.refused]
            await outbox.remove(connection, destination.name, gone)
            for letter in letters:
                log.error(
                    "a message for %s is refused for good, and a dead letter now: %s", letter.topic, letter.error
                )
            full = len(slots) == self._share or len(messages) >= most
            return Passed(bool(delivery.arrived or delivery.refused), full, delivery.trouble)

        try:
            return await self._database.write(work)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end this for good
            return Passed(trouble=error)

    async def _send(self, connection: Connection, destination: Destination, messages: Sequence[Pending]) -> Delivery:
        delivery = Delivery(destination, messages)
        self._deliveries.add(delivery)
        try:
            # Without the connection the slots are somebody else's, and what is not sent yet is theirs to send.
            with watched(connection, delivery.give_up):
                await delivery.end()
        finally:
            delivery.give_up()
            self._deliveries.discard(delivery)
        return delivery


def _letter(destination: str, message: Pending, why: str) -> Letter:
    return Letter(
        source=RELAY,
        topic=destination,
        key=str(message.entity_id).encode(),
        value=message.envelope.encode(),
        headers=list(HEADERS.items()),
        error=why,
    )


async def _either(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, so many seconds at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


@asynccontextmanager
async def relaying(settings: Settings, url: str) -> AsyncIterator[Relay]:
    """A relay that sends while this lasts, to what the settings name: a bus, Consul, both, or nothing at all.

    `url` is the database's. Raises StartError for settings that the Kafka client refuses, and as `routes_of` does.
    """
    destinations: list[Destination] = []
    async with AsyncExitStack() as stack:
        if (bus := open_bus(settings)) is not None:
            stack.push_async_callback(bus.close)
            destinations.append(to_topic(bus, settings.topic_out))
        if settings.consul_url is not None:
            consul = Consul(settings.consul_url.get_secret_value())
            stack.push_async_callback(consul.close)
            destinations.append(to_handler("consul", consul.handle))
        timeout = timedelta(seconds=settings.statement_timeout)
        # Passes hold their connections while they send: they are not taken from those who answer requests.
        database = Database(url, pool_size=max(1, len(destinations) * LANES), statement_timeout=timeout)
        stack.push_async_callback(database.close)
        relay = Relay(database, destinations)
        stack.push_async_callback(relay.close)
        relay.start()
        yield relay


def open_bus(settings: Settings) -> Bus | None:
    """The bus that the settings name; it belongs to the running event loop."""
    match settings.bus:
        case BusKind.KAFKA:
            return KafkaBus(settings.kafka or "")
        case BusKind.MEMORY:
            return MemoryBus()
        case BusKind.OFF:
            return None
        case never:
            assert_never(never)
