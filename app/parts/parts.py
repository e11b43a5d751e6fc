"""Builds the parts of a service and of its workers, from settings, and closes them in order. Nothing else does."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import cached_property
from types import TracebackType
from typing import Self

from app.access.access import Access
from app.concurrency.breaker import CircuitBreaker
from app.concurrency.lanes import PLACES
from app.concurrency.worker import OwnWorker, Together, Worker, working
from app.domain.changes import Logging
from app.domain.decider import Deadline
from app.domain.order import TrackRule, within
from app.domain.positions import ANY_PARTITION, before_topic
from app.domain.registration import Timing
from app.errors import StartError
from app.feed.announcer import Announcer
from app.feed.feed import CONNECTIONS, Feed
from app.feed.follow import Follow
from app.feed.publisher import DELIVERY, PUBLISHER_CONNECTIONS, SnapshotPublisher
from app.feed.retention import Retention
from app.feed.waits import FollowingReport, Waits
from app.inbound.bulk import BulkCalls
from app.inbound.consumer import FIRST_WAIT, Consumer
from app.inbound.letters import Letters
from app.inbound.subscription import Subscription
from app.outbound import contract
from app.outbound.buses import close_all, kafka_bus, open_bus
from app.outbound.compacted import CompactedTopic
from app.outbound.consul import Consul, Reconciler, profile_of, rights_of
from app.outbound.delivery import Destination, to_handler, to_topic
from app.outbound.kafka_options import client_options, credentials_of
from app.outbound.relay import LANES, Relay
from app.parts.service import Observed, Service
from app.projection.acts import Acts
from app.projection.batching import Reader, Writer
from app.projection.changes import ChangeLog, change_log_of
from app.projection.clock import DatabaseClock
from app.projection.entries import EntryBuilder
from app.projection.projector import Projector
from app.projection.sweep import DATABASE_WAITS, Sweep
from app.projection.tracks import move_track
from app.runtime.metrics import HTTP, KAFKA, DatabaseNumbers, Metrics, read_numbers
from app.runtime.rates import Rates
from app.runtime.vitals import Vitals
from app.settings import BusKind, DeadLetterRule, Foreign, Gaps, Settings, Tracks, address_of
from app.store import audit, watermarks
from app.store.audit import Act
from app.store.database import LONG_TRANSACTIONS, NO_SETTINGS, Database
from app.store.readiness import Readiness
from app.store.replica import ReadSide, Replica
from app.tracing.exporter import open_exporter, tracer_to
from app.workflows import Pruner, QuotaWatch, WorkflowStore

FULL_SCANS = 2  # lists at once that read a whole domain: on connections that nothing else waits for
LOCK_WAIT = "200ms"  # that a joined batch waits for a row which another client has locked
CONSUMER_CONNECTIONS = 2  # one for batches, one to read watermarks


class Parts:
    """Builds parts from settings. Leaving the context closes what was built, the last part first.

    A part that is built belongs to the running event loop. Building connects to nothing.
    """

    def __init__(self, settings: Settings, url: str, metrics: Metrics | None = None) -> None:
        """`url` is the address of the primary: that of the settings, or of the service's own PostgreSQL."""
        self._metrics = metrics or Metrics(slow=settings.slow)
        self._settings = settings
        self._primary = address_of(settings, "database_url", lambda: url)
        self._timeout = timedelta(seconds=settings.statement_timeout)
        self._stack = AsyncExitStack()
        self._databases: list[Database] = []

    async def __aenter__(self) -> Self:
        """Begin. Spans of whatever the parts do are sent until they are closed."""
        if (exporter := open_exporter()) is not None:
            self._metrics.tracer = tracer_to(exporter, self._settings.trace_limit)
            self._stack.push_async_callback(exporter.close)
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything."""
        await self._stack.__aexit__(type_, error, trace)

    @cached_property
    def timing(self) -> Timing:
        """The time limits of nodes."""
        return Timing(
            ack_timeout=timedelta(seconds=self._settings.ack_timeout),
            liveness_interval=timedelta(seconds=self._settings.liveness_interval),
            liveness_window=timedelta(seconds=self._settings.liveness_window),
        )

    @cached_property
    def log(self) -> ChangeLog:
        """Where changes are logged."""
        return change_log_of(self._settings)

    @cached_property
    def entries(self) -> EntryBuilder:
        """The builder of outbox entries. Raises StartError for intents that no handler can carry out."""
        topic = None if self._settings.bus is BusKind.OFF else self._settings.topic_out
        handlers = contract.after_the_transaction(contract.routes_of(self._settings))
        return EntryBuilder(topic, handlers, source=self._settings.source)

    async def service(self) -> Service:
        """A service with the workers that its settings enable.

        To close, it first answers the requests that it has accepted, then stops its workers, and last closes its
        databases.
        """
        settings, metrics = self._settings, self._metrics
        database = self._database(settings.pool_size, name="primary")
        access = Access(settings, self._primary, database)
        await access.refresh()
        await self._stack.enter_async_context(working(access))
        scans = self._database(settings.pool_size, scans=True, name="scans")
        full_scans = self._database(FULL_SCANS, scans=True, breaker=scans.breaker, name="full-scans")
        breakers = {"primary": database.breaker, "scans": scans.breaker}
        lists, walking, lag, on_replica = await self._read_sides(scans, full_scans)
        if on_replica is not None:
            breakers["replica"] = on_replica.breaker
        is_traced = metrics.tracer is not None
        reader = Reader(database, joining=settings.batching, report=metrics.lane("reads"), is_traced=is_traced)
        self._stack.push_async_callback(reader.close)
        if settings.relay:
            relay = self.relay()
            self.entries.on_commit = relay.wake
            breakers |= relay.breakers
            await self._stack.enter_async_context(working(relay))
            if (reconciler := self._reconciler()) is not None:
                await self._stack.enter_async_context(working(reconciler))
        for worker in self._others():
            await self._stack.enter_async_context(working(worker))
        feed, follow = await self._feed(database)
        logged = settings.changes is not Logging.OFF
        waits = Waits(feed, database=database, scans=lists, read=reader.ask, logged=logged)
        self._stack.push_async_callback(waits.close)
        self.log.on_save = waits.watches.committed
        following = FollowingReport(feed, waits, metrics)
        await self._stack.enter_async_context(working(following))
        clock = self._clock(database)
        projector, writer, sides = self._writing(database, clock)
        self._stack.push_async_callback(writer.close)
        letters = Letters(projector, clock)
        bulk = BulkCalls(database, letters)
        await self._stack.enter_async_context(working(bulk))
        watch = QuotaWatch(database)
        await self._stack.enter_async_context(working(watch))
        store = WorkflowStore(database, joining=settings.batching, watch=watch, is_traced=is_traced, **sides)
        self._stack.push_async_callback(store.close)
        pruner = Pruner(database, timedelta(seconds=settings.action_retention))
        await self._stack.enter_async_context(working(pruner))
        retention = Retention(database, timedelta(seconds=settings.changes_keep))
        await self._stack.enter_async_context(working(retention))
        for name, breaker in breakers.items():
            metrics.watch(name, breaker)
        lanes = {"reads": lambda: reader.waiting, "events": lambda: writer.waiting}
        await self._stack.enter_async_context(working(Vitals(metrics, self._databases, lanes)))
        rates = Rates(metrics.outcomes)
        await self._stack.enter_async_context(working(rates))
        return Service(
            settings,
            database,
            lists,
            walking,
            reader,
            clock,
            projector,
            writer,
            Acts(database, self.entries, self.log),
            letters,
            bulk,
            store,
            self.entries,
            metrics,
            breakers,
            feed,
            follow,
            waits,
            following,
            access,
            lag,
            Readiness(database, on_replica),
            rates,
            self._databases,
        )

    def _others(self) -> Iterator[Worker]:
        """The workers that the service runs if its settings say so, beside the relay."""
        if self._settings.sweep:
            yield self.sweep()
        if self._settings.topic_snapshots is not None and self._settings.snapshots:
            yield self.snapshots()

    def _writing(self, database: Database, clock: DatabaseClock) -> tuple[Projector, Writer, dict[str, Database]]:
        """What applies events: arrays and streams, single ones, and the databases of joined requests."""
        projector = self._projector(database, clock)
        # A lane must not wait for a row that another client keeps locked: see Side.
        joined = self._database(2, breaker=database.breaker, session={"lock_timeout": LOCK_WAIT}, name="joined")
        waiting = self._database(PLACES, breaker=database.breaker, name="locked-rows")
        if not self._settings.batching:
            return projector, Writer(projector, joining=False), {}
        on_waiting, on_joined = self._projector(waiting, clock), self._projector(joined, clock)
        report, is_traced = self._metrics.lane("events"), self._metrics.tracer is not None
        writer = Writer(on_waiting, joining=True, joined=on_joined, report=report, is_traced=is_traced)
        return projector, writer, {"joined": joined, "waiting": waiting}

    async def _read_sides(
        self, scans: Database, full_scans: Database
    ) -> tuple[ReadSide, ReadSide, Replica | None, Database | None]:
        """Where lists and full scans are read: on the primary, and on the replica if there is one."""
        settings = self._settings
        if settings.database_read_url is None:
            return ReadSide(scans), ReadSide(full_scans), None, None
        replica = address_of(settings, "database_read_url", self._primary)
        on_replica = self._database(settings.pool_size, address=replica, scans=True, name="replica")
        full_scans_there = self._database(
            FULL_SCANS, address=replica, scans=True, breaker=on_replica.breaker, name="replica-full-scans"
        )
        allowed = settings.read_max_lag
        lag = Replica(scans, on_replica, allowed=None if allowed is None else timedelta(seconds=allowed))
        await self._stack.enter_async_context(working(lag))
        return ReadSide(scans, on_replica, lag), ReadSide(full_scans, full_scans_there, lag), lag, on_replica

    async def observed(self) -> Observed:
        """The parts that watch a worker, on a connection of their own; what else was built before is watched too."""
        access = Access(self._settings, self._primary)
        await access.refresh()
        await self._stack.enter_async_context(working(access))
        database = self._database(1, name="metrics")
        await self._stack.enter_async_context(working(Vitals(self._metrics, self._databases, {})))

        async def numbers() -> DatabaseNumbers:
            return await read_numbers(database, self.entries.destinations)

        return Observed(access, Readiness(database), self._metrics, numbers)

    async def announce(self) -> None:
        """From now on, tell the followers of all processes what this process commits."""
        await self._announce(Announcer(self._database(1, name="announcer")))

    async def _announce(self, announcer: Announcer) -> None:
        self.log.on_commit = announcer.committed
        await self._stack.enter_async_context(working(announcer))

    async def _feed(self, database: Database) -> tuple[Feed, Follow]:
        """The feed, on connections of its own, which is woken by this process's commits, as those of others are."""
        own = self._database(CONNECTIONS, name="feed")
        feed = Feed(own, most=self._settings.followers)
        self._stack.push_async_callback(feed.close)
        await self._announce(Announcer(database, feed.wake))
        return feed, Follow(feed, own)

    def relay(self) -> Relay:
        """A relay to the destinations that the settings name: a bus, Consul, both, or none.

        Raises StartError for settings that the Kafka client refuses.
        """
        settings = self._settings
        destinations: list[Destination] = []
        breakers: dict[str, CircuitBreaker] = {}
        if settings.bus is not BusKind.OFF:
            buses = [open_bus(settings.bus, settings) for _ in range(LANES)]
            self._stack.push_async_callback(close_all, buses)
            destinations.append(to_topic(settings.topic_out, *buses, tracer=self._metrics.tracer))
        if (consul := self._consul) is not None:
            destinations.append(to_handler("consul", consul.handle, self._metrics.tracer))
            breakers["consul"] = consul.breaker
        # A pass holds its connection while it sends, so the relay does not share the pool that answers requests.
        database = self._database(max(1, len(destinations) * LANES), session=LONG_TRANSACTIONS, name="relay")
        return Relay(database, destinations, breakers=breakers, report=self._metrics.relayed)

    def senders(self) -> OwnWorker:
        """A relay, and with Consul the reconciler beside it. Raises StartError as `relay` does."""
        relay, reconciler = self.relay(), self._reconciler()
        return relay if reconciler is None else Together(relay, reconciler)

    @cached_property
    def _consul(self) -> Consul | None:
        """Consul, where the settings name one. Raises StartError for files that cannot be used."""
        settings = self._settings
        if settings.consul_url is None:
            return None
        consul = Consul(
            settings.consul_url.get_secret_value(), rights=rights_of(settings), profile=profile_of(settings)
        )
        self._stack.push_async_callback(consul.close)
        return consul

    def _reconciler(self) -> Reconciler | None:
        if self._consul is None:
            return None
        every = timedelta(seconds=self._settings.consul_reconcile)
        return Reconciler(
            self._database(1, name="reconciler", scans=True, session=LONG_TRANSACTIONS), self._consul, every
        )

    def snapshots(self) -> SnapshotPublisher:
        """A publisher of snapshots. Raises StartError without PQS_TOPIC_SNAPSHOTS."""
        settings = self._settings
        if settings.topic_snapshots is None or settings.kafka is None:
            raise StartError("PQS_TOPIC_SNAPSHOTS is not set: the compacted topic to publish to")
        bus = kafka_bus(settings, delivery_timeout=timedelta(seconds=DELIVERY), creates_topics=False)
        topic = CompactedTopic(settings.topic_snapshots, settings, bus)
        self._stack.push_async_callback(topic.close)
        database = self._database(PUBLISHER_CONNECTIONS, name="snapshots")
        drop_expired = settings.snapshots_drop_expired
        return SnapshotPublisher(database, topic, self._metrics.snapshots, drop_expired=drop_expired)

    def sweep(self) -> Sweep:
        """A sweep of the primary."""
        breaker = CircuitBreaker(open_for=timedelta(seconds=DATABASE_WAITS[1]))  # of both: it is one server
        database = self._database(len(Deadline), breaker=breaker, name="sweep")
        scans = self._database(len(Deadline), breaker=breaker, scans=True, name="sweep-scans")
        follow = self._settings.tracks is Tracks.FOLLOW
        report, tracer = self._metrics.swept, self._metrics.tracer
        return Sweep(database, scans, self.entries, report, log=self.log, follow=follow, tracer=tracer)

    def consumer(self) -> Consumer:
        """A consumer of the topics that the settings name.

        Raises StartError if a setting is missing, or if the service's own topic is among the topics to read.
        """
        settings = self._settings
        if settings.kafka is None:
            raise StartError("PQS_KAFKA is not set: the servers to read from, as host:port,host:port")
        subscription = Subscription.of(settings)
        breaker = CircuitBreaker(open_for=timedelta(seconds=FIRST_WAIT))  # the consumer retries at its own pace
        self._metrics.watch("consumer", breaker)
        database = self._database(CONSUMER_CONNECTIONS, breaker=breaker, session=LONG_TRANSACTIONS, name="consumer")
        clock = self._clock(database)
        follow = within(subscription.reads) if settings.tracks is Tracks.FOLLOW else None
        return Consumer(
            database,
            self._projector(database, clock, follow, source=KAFKA),
            clock,
            servers=settings.kafka,
            topics=subscription.topics,
            group=settings.consumer_group,
            options=client_options(settings),
            credentials=credentials_of(settings),
            static_id=settings.consumer_id,
            stop_at_gaps=settings.gaps is Gaps.STOP,
            keep_foreign=settings.foreign is Foreign.DEAD_LETTER,
            holds=settings.dead_letters is DeadLetterRule.HOLD,
            tracer=self._metrics.tracer,
            metrics=self._metrics,
        )

    async def restart(self, topic: str, principal: str) -> int:
        """Have a topic that was created again read from its first message; how many rows were moved there."""
        database = self._database(1, name="tracks")
        await database.write(watermarks.restart, topic)
        number = await move_track(database, self.log, f"{topic}-{ANY_PARTITION}", before_topic(topic))
        target = f"topic {topic}: {number} entities stand before its first message"
        await database.write(audit.add, Act(principal=principal, action="consume.restarted", target=target))
        return number

    def _projector(
        self, database: Database, clock: DatabaseClock, follow: TrackRule | None = None, *, source: str = HTTP
    ) -> Projector:
        report = self._metrics.batches(source)
        return Projector(database, self.timing, self.entries, log=self.log, report=report, clock=clock, follow=follow)

    def _clock(self, database: Database) -> DatabaseClock:
        return DatabaseClock(database, timedelta(seconds=self._settings.max_skew))

    def _database(
        self,
        pool_size: int,
        *,
        address: Callable[[], str] | None = None,
        scans: bool = False,
        breaker: CircuitBreaker | None = None,
        session: Mapping[str, str] = NO_SETTINGS,
        name: str,
    ) -> Database:
        database = Database(
            address or self._primary,
            pool_size=pool_size,
            statement_timeout=self._timeout,
            scans=scans,
            breaker=breaker,
            settings=session,
            siblings=self._databases,
            name=name,
            observer=self._metrics,
        )
        self._databases.append(database)
        self._stack.push_async_callback(database.close)
        return database
