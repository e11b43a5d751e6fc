"""The relay: sends what the outbox holds, in the order of each entity, until the other side has it."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from typing import Literal, assert_never

from msgspec import Struct

from app.breaker import CircuitBreaker
from app.errors import PqsError
from app.outbound.bus import Bus
from app.outbound.consul import Consul
from app.outbound.delivery import Delivery, Destination, Rests, to_handler, to_topic
from app.outbound.kafka import KafkaBus
from app.outbound.memory import MemoryBus
from app.settings import BusKind, Settings
from app.store import dead_letters, outbox
from app.store.database import Connection, Database, watched
from app.store.dead_letters import RELAY, Letter
from app.store.outbox import Pending, Place
from app.wire.envelopes import HEADERS

log = logging.getLogger(__name__)

SHARE = 2  # slots that one pass takes while there is much, so that other relays find some; else it takes all
FULL = 2  # a pass is full, and the next one follows at once, from one part in so many of its page on
LANES = 2  # passes at a time for one destination, when there is enough: while one removes, the other sends
POLL = 0.2  # seconds between two looks when idle: for what other processes have written
PAUSE = 0.2  # seconds after a pass with room left, in which more comes together for the next one
RETRY = 1.0  # seconds after a pass in which nothing got through
GRACE = 5.0  # seconds that a pass has to come to its end when the relay is closed


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

    def __init__(
        self,
        database: Database,
        destinations: Sequence[Destination],
        *,
        share: int = SHARE,
        breakers: Mapping[str, CircuitBreaker] | None = None,
    ) -> None:
        """`database` needs LANES connections for each destination. `breakers` are those of the other sides."""
        self._database = database
        self._destinations = destinations
        self._share = share
        self.breakers = dict(breakers or {})
        self._closing = asyncio.Event()
        self._woken: list[asyncio.Event] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._deliveries: set[Delivery] = set()
        self._rests = {destination.name: Rests(destination.name) for destination in destinations}

    def start(self) -> None:
        """Begin to send."""
        for destination in self._destinations:
            lanes = [asyncio.Event() for _ in range(LANES)]
            self._woken += lanes
            for lane, woken in enumerate(lanes):
                following = lanes[lane + 1 :]
                self._tasks.append(asyncio.create_task(self._run(destination, woken, following, first=lane == 0)))

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

    async def _run(
        self, destination: Destination, woken: asyncio.Event, following: Sequence[asyncio.Event], *, first: bool
    ) -> None:
        """Pass after pass, until the relay is closed. Lanes after the first one help while its passes are full."""
        in_trouble, share = False, self._share
        while not self._closing.is_set():
            called = woken.is_set()
            woken.clear()
            passed = await self._pass(destination, share)
            share = self._share if passed.full else outbox.SLOTS
            if self._closing.is_set():
                return  # what was cut off says nothing about the other side
            if passed.trouble is not None and not in_trouble:
                unexpected = None if isinstance(passed.trouble, PqsError) else passed.trouble
                log.warning("messages for %s wait: %s", destination.name, passed.trouble, exc_info=unexpected)
            elif passed.trouble is None and passed.moved and in_trouble:
                log.info("messages for %s are sent again", destination.name)
            in_trouble = passed.trouble is not None or (in_trouble and not passed.moved)
            if passed.moved and passed.full:
                for lane in following:
                    lane.set()
            elif not first:
                await woken.wait()
            elif passed.trouble is not None and not passed.moved:
                await _either(self._closing, RETRY)
            elif passed.moved or called:  # for what another relay has by now, or for another destination
                await _either(self._closing, PAUSE)
            else:
                await _either(woken, POLL)

    async def _pass(self, destination: Destination, share: int) -> Passed:
        rests, loop = self._rests[destination.name], asyncio.get_running_loop()
        refused: list[tuple[Pending, str]] = []

        async def work(connection: Connection) -> Passed:
            slots = await outbox.take(connection, destination.name, most=share)
            most = max(1, destination.page // max(1, len(slots)))
            resting = rests.at(loop.time())
            messages = await outbox.read(connection, destination.name, slots, most=most, but=resting) if slots else []
            if not messages:  # or the slots were let go by one who had just sent them
                return Passed()
            delivery = await self._send(connection, destination, messages)
            rests.learn(delivery, loop.time())
            gone, left = _ended(messages, delivery)
            refused[:] = delivery.refused
            if refused:
                await dead_letters.add(connection, [_letter(destination.name, *each) for each in refused])
            if left:
                await outbox.keep(connection, left)
            await outbox.remove(connection, gone)
            entries = len({message.id for message in messages})
            return Passed(bool(gone or left), entries >= destination.page // FULL, delivery.trouble)

        try:
            passed = await self._database.write(work)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end this for good
            return Passed(trouble=error)
        said = "a message for %s is refused for good, and a dead letter now: %s: %s"
        for message, why in refused:
            log.error(said, destination.name, message.entity_id, why)
        return passed

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


def _ended(messages: Sequence[Pending], delivery: Delivery) -> tuple[dict[int, Place], list[list[Pending]]]:
    """The entries that are through to their last message, by id with their places, and what is left of those that are
    through in part.
    """
    if len(delivery.arrived) == len(messages):
        return {message.id: message.place for message in messages}, []
    through = {id(message) for message in [*delivery.arrived, *(message for message, _ in delivery.refused)]}
    begun = set[int]()  # entries that something has gone of
    left = defaultdict[int, list[Pending]](list)
    for message in messages:
        if id(message) in through:
            begun.add(message.id)
        else:
            left[message.id].append(message)
    gone = {message.id: message.place for message in messages if message.id not in left}
    return gone, [waiting for id_, waiting in left.items() if id_ in begun]


def _letter(destination: str, message: Pending, why: str) -> Letter:
    return Letter(
        source=RELAY,
        topic=destination,
        key=message.key,
        value=message.envelope,
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
    breakers: dict[str, CircuitBreaker] = {}
    async with AsyncExitStack() as stack:
        if settings.bus is not BusKind.OFF:
            buses = [_open_bus(settings.bus, settings) for _ in range(LANES)]
            stack.push_async_callback(_close, buses)
            destinations.append(to_topic(settings.topic_out, *buses))
        if settings.consul_url is not None:
            consul = Consul(settings.consul_url.get_secret_value())
            stack.push_async_callback(consul.close)
            destinations.append(to_handler("consul", consul.handle))
            breakers["consul"] = consul.breaker
        timeout = timedelta(seconds=settings.statement_timeout)
        # Passes hold their connections while they send: they are not taken from those who answer requests.
        database = Database(url, pool_size=max(1, len(destinations) * LANES), statement_timeout=timeout)
        stack.push_async_callback(database.close)
        relay = Relay(database, destinations, breakers=breakers)
        stack.push_async_callback(relay.close)
        relay.start()
        yield relay


def _open_bus(kind: Literal[BusKind.KAFKA, BusKind.MEMORY], settings: Settings) -> Bus:
    """A bus of this kind; it belongs to the running event loop."""
    match kind:
        case BusKind.KAFKA:
            return KafkaBus(settings.kafka or "")
        case BusKind.MEMORY:
            return MemoryBus()
        case never:
            assert_never(never)


async def _close(buses: Sequence[Bus]) -> None:
    """All at once: each may take its time when the broker is down."""
    await asyncio.gather(*(bus.close() for bus in buses))
