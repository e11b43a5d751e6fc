"""The relay: sends the messages of the outbox, each entity's in order, until the other side has them."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from app.concurrency.breaker import CircuitBreaker
from app.concurrency.worker import OwnWorker, set_within
from app.errors import PqsError
from app.outbound.delivery import Delivery, Destination, Rests
from app.store import dead_letters, outbox
from app.store.database import Connection, Database, watched
from app.store.dead_letters import RELAY, Letter
from app.store.outbox import PendingMessage, TupleId
from app.wire.envelopes import HEADERS

log = logging.getLogger(__name__)

SHARE = 2  # slots of one pass while passes are full, so that other relays find some; otherwise a pass takes all
FULL = 2  # a pass of at least 1/FULL of its page counts as full: the next one follows at once
LANES = 2  # passes at a time for one destination, while they are full: one removes while the other sends
POLL = 0.2  # seconds between two looks when idle, for entries of other processes
PAUSE = 0.2  # seconds after a pass that was not full, to collect messages for the next one
RETRY = 1.0  # seconds after a pass in which no message arrived
GRACE = 5.0  # seconds for a pass to end when the relay is stopped


# Called with the destination, and the numbers of messages that arrived and that were refused for good.
PassReport = Callable[[str, int, int], None]


class PassResult(Struct, frozen=True):
    """How a pass ended."""

    moved: bool = False  # messages left the outbox
    full: bool = False  # there may be more in these slots, or in others
    trouble: BaseException | None = None
    arrived: int = 0  # messages
    refused: Sequence[tuple[PendingMessage, str]] = ()  # messages that are dead letters now, and why


class Relay(OwnWorker):
    """Sends messages to some destinations, at least once, and removes them when they have arrived.

    Many relays may work on one database: a slot of a destination belongs to one relay at a time, for one pass. A pass
    is a transaction: it takes slots, reads the oldest messages, sends them, removes those that have arrived, and
    releases the slots. If a relay dies, PostgreSQL releases them at once; messages that it sent, but did not remove,
    are sent again.

    Order: a message of an entity is sent after its predecessor has arrived; messages of other entities are on their
    way meanwhile. Handing over an entity's messages together would be faster, but a bus that gives one up may have
    delivered the next. If a message must be retried, only the later messages of its entity wait. A message that is
    refused for good becomes a dead letter.

    Destinations do not wait for each other: each has its own tasks and connections.
    """

    def __init__(
        self,
        database: Database,
        destinations: Sequence[Destination],
        *,
        share: int = SHARE,
        breakers: Mapping[str, CircuitBreaker] | None = None,
        report: PassReport = lambda *_: None,
    ) -> None:
        """`database` needs LANES connections per destination. `report` is called after each pass that moved messages.

        `breakers` are those of the destinations, by name."""
        self._database = database
        self._destinations = destinations
        self._share = share
        self._report = report
        self.breakers = dict(breakers or {})
        self._closing = asyncio.Event()
        self._woken: list[asyncio.Event] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._deliveries: set[Delivery] = set()
        self._troubles: dict[str, BaseException] = {}  # by destination: nothing gets through
        self._rests = {destination.name: Rests(destination.name) for destination in destinations}

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop`, then finish what is on its way, for GRACE seconds at most (see Worker).

        What has not arrived by then stays in the outbox.
        """
        for destination in self._destinations:
            lanes = [asyncio.Event() for _ in range(LANES)]
            self._woken += lanes
            for lane, woken in enumerate(lanes):
                following = lanes[lane + 1 :]
                self._tasks.append(asyncio.create_task(self._run(destination, woken, following, first=lane == 0)))
        try:
            await stop.wait()
        finally:
            await self._end()

    def trouble(self) -> str | None:
        """The destinations to which nothing gets through (see OwnWorker)."""
        return "; ".join(f"messages for {name} wait: {error}" for name, error in self._troubles.items()) or None

    def wake(self) -> None:
        """Look at the outbox now: entries were written."""
        for woken in self._woken[::LANES]:
            woken.set()

    async def _end(self) -> None:
        self._closing.set()
        for woken in self._woken:
            woken.set()
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=GRACE)
        for delivery in self._deliveries:
            delivery.give_up()
        if late:  # these still remove messages that have arrived
            _, late = await asyncio.wait(late, timeout=GRACE)
        for task in late:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _run(
        self, destination: Destination, woken: asyncio.Event, following: Sequence[asyncio.Event], *, first: bool
    ) -> None:
        """Do pass after pass, until the relay is stopped. Further lanes help while the first lane has full passes."""
        in_trouble, share = False, self._share
        while not self._closing.is_set():
            called = woken.is_set()
            woken.clear()
            passed = await self._pass(destination, share)
            share = self._share if passed.full else outbox.SLOTS
            if self._closing.is_set():
                return  # an interrupted pass says nothing about the other side
            if passed.trouble is not None and not in_trouble:
                unexpected = None if isinstance(passed.trouble, PqsError) else passed.trouble
                log.warning("messages for %s wait: %s", destination.name, passed.trouble, exc_info=unexpected)
            elif passed.trouble is None and passed.moved and in_trouble:
                log.info("messages for %s get through again", destination.name)
            in_trouble = passed.trouble is not None or (in_trouble and not passed.moved)
            if passed.trouble is not None and not passed.moved:
                self._troubles[destination.name] = passed.trouble
            elif first or passed.moved:
                self._troubles.pop(destination.name, None)
            if passed.moved and passed.full:
                for lane in following:
                    lane.set()
            elif not first:
                await woken.wait()
            elif passed.trouble is not None and not passed.moved:
                await set_within(self._closing, RETRY)
            elif passed.moved or called:  # the entries may be another relay's by now, or for another destination
                await set_within(self._closing, PAUSE)
            else:
                await set_within(woken, POLL)

    async def _pass(self, destination: Destination, share: int) -> PassResult:
        try:
            passed = await self._database.write(self._move, destination, share)
        except Exception as error:  # noqa: BLE001 - no error may end the relay
            return PassResult(trouble=error)
        if passed.arrived or passed.refused:
            self._report(destination.name, passed.arrived, len(passed.refused))
        said = "a message for %s was refused for good and is a dead letter now: %s: %s"
        for message, why in passed.refused:
            log.error(said, destination.name, message.entity_id, why)
        return passed

    async def _move(self, connection: Connection, destination: Destination, share: int) -> PassResult:
        """The transaction of a pass."""
        rests, loop = self._rests[destination.name], asyncio.get_running_loop()
        slots = await outbox.take(connection, destination.name, most=share)
        most = max(1, destination.page // max(1, len(slots)))
        resting = rests.at(loop.time())
        messages = await outbox.read(connection, destination.name, slots, most=most, but=resting) if slots else []
        if not messages:  # or another relay has just sent them and released the slots
            return PassResult()
        delivery = await self._send(connection, destination, messages)
        rests.learn(delivery, loop.time())
        gone, left = _ended(messages, delivery)
        if delivery.refused:
            await dead_letters.add(connection, [_letter(destination.name, *each) for each in delivery.refused])
        if left:
            await outbox.keep(connection, left)
        await outbox.remove(connection, gone)
        entries = len({message.id for message in messages})
        return PassResult(
            bool(gone or left),
            entries >= destination.page // FULL,
            delivery.trouble,
            len(delivery.arrived),
            delivery.refused,
        )

    async def _send(
        self, connection: Connection, destination: Destination, messages: Sequence[PendingMessage]
    ) -> Delivery:
        delivery = Delivery(destination, messages)
        self._deliveries.add(delivery)
        try:
            # When the connection ends, the slots are free for another relay, which sends the rest.
            with watched(connection, delivery.give_up):
                await delivery.end()
        finally:
            delivery.give_up()
            self._deliveries.discard(delivery)
        return delivery


def _ended(
    messages: Sequence[PendingMessage], delivery: Delivery
) -> tuple[dict[int, TupleId], list[list[PendingMessage]]]:
    """The finished entries, by id with their places in the table, and the remaining messages of entries of which only
    some are finished.
    """
    if len(delivery.arrived) == len(messages):
        return {message.id: message.place for message in messages}, []
    through = {id(message) for message in [*delivery.arrived, *(message for message, _ in delivery.refused)]}
    begun = set[int]()  # entries of which messages are finished
    left = defaultdict[int, list[PendingMessage]](list)
    for message in messages:
        if id(message) in through:
            begun.add(message.id)
        else:
            left[message.id].append(message)
    gone = {message.id: message.place for message in messages if message.id not in left}
    return gone, [waiting for id_, waiting in left.items() if id_ in begun]


def _letter(destination: str, message: PendingMessage, why: str) -> Letter:
    return Letter(
        source=RELAY,
        topic=destination,
        key=message.key,
        value=message.envelope,
        headers=list(HEADERS.items()),
        error=why,
    )
