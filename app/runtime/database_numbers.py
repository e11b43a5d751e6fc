"""Numbers that the database has for metrics, the same for all processes."""

from collections.abc import Collection, Iterable, Sequence

from msgspec import Struct
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.errors import UnavailableError
from app.store import dead_letters, held, outbox, watermarks
from app.store.database import Connection, Database
from app.store.outbox import Backlog
from app.store.registrations import REGISTRATIONS
from app.store.watermarks import Age

LABELS = ("destination",)
MOST_COUNTS = 800  # pairs of domain and state: those of the first hundred domains


class DatabaseNumbers(Struct, frozen=True):
    """Numbers from the database; empty or None if it did not answer."""

    backlogs: Sequence[Backlog] = ()
    ages: Sequence[Age] = ()
    dead_letters: int | None = None
    entities: Sequence[tuple[str, str, int]] = ()  # domain, state, number
    overdue: Sequence[tuple[str, float]] = ()  # kind of deadline, seconds since the oldest has passed
    replica_lag: float | None = None
    held_entities: int | None = None
    unread: Sequence[tuple[str, int]] = ()  # topic, partitions of it that nobody has read yet
    ready: Sequence[tuple[str, bool]] = ()  # database, whether it can serve; from the check of `/readyz`


async def read_numbers(database: Database, destinations: Collection[str]) -> DatabaseNumbers:
    """Read the numbers. Each of `destinations` has a backlog, even an empty one.

    If the database does not answer, only these numbers are missing.
    """
    try:
        return await database.read(_read_numbers, destinations)
    except UnavailableError:
        return DatabaseNumbers()


async def _read_numbers(connection: Connection, destinations: Collection[str]) -> DatabaseNumbers:
    backlogs = await outbox.backlogs(connection)
    waiting = {each.destination for each in backlogs}
    backlogs += [Backlog(name, 0, 0.0) for name in destinations if name not in waiting]
    scans = REGISTRATIONS.overdue
    return DatabaseNumbers(
        backlogs,
        await watermarks.ages(connection),
        await dead_letters.count(connection),
        entities=await REGISTRATIONS.counts.count_everywhere(connection, limit=MOST_COUNTS),
        overdue=[(kind, await scan.oldest_seconds(connection)) for kind, scan in scans.items()],
        held_entities=await held.count(connection),
        unread=await watermarks.count_unread(connection),
    )


class DatabaseCollector(Collector):
    """The numbers from the database, as gauges."""

    def __init__(self, numbers: DatabaseNumbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterable[Metric]:
        """A family for each kind of number; without samples where the database did not answer."""
        waiting = GaugeMetricFamily(
            "pqs_outbox_messages", "Messages that wait to be sent; an estimate if there are many.", labels=LABELS
        )
        oldest = GaugeMetricFamily(
            "pqs_outbox_oldest_seconds", "Seconds since the oldest waiting message was written.", labels=LABELS
        )
        for each in self._numbers.backlogs:
            waiting.add_metric([each.destination], each.messages)
            oldest.add_metric([each.destination], each.oldest_seconds)
        behind = GaugeMetricFamily(
            "pqs_watermark_age_seconds",
            "Seconds since the time up to which all messages of a Kafka partition are applied.",
            labels=("topic", "partition"),
        )
        for age in self._numbers.ages:
            behind.add_metric([age.topic, str(age.partition)], age.seconds)
        unread = GaugeMetricFamily(
            "pqs_partitions_unread", "Kafka partitions that no consumer has read to their end yet.", labels=("topic",)
        )
        for topic, count in self._numbers.unread:
            unread.add_metric([topic], count)
        dead = GaugeMetricFamily("pqs_dead_letters", "Dead letters; an estimate if there are many.")
        if self._numbers.dead_letters is not None:
            dead.add_metric([], self._numbers.dead_letters)
        held_back = GaugeMetricFamily("pqs_held_entities", "Entities whose messages wait behind a dead letter.")
        if self._numbers.held_entities is not None:
            held_back.add_metric([], self._numbers.held_entities)
        entities = GaugeMetricFamily("pqs_entities", "Entities by domain and state.", labels=("domain", "state"))
        for domain, state, count in self._numbers.entities:
            entities.add_metric([domain, state], count)
        overdue = GaugeMetricFamily(
            "pqs_overdue_oldest_seconds",
            "Seconds since the oldest deadline passed that has no timeout event yet; 0 without one.",
            labels=("kind",),
        )
        for kind, seconds in self._numbers.overdue:
            overdue.add_metric([kind], seconds)
        lag = GaugeMetricFamily("pqs_replica_lag_seconds", "Seconds that the replica lags behind, at most.")
        if self._numbers.replica_lag is not None:
            lag.add_metric([], self._numbers.replica_lag)
        ready = GaugeMetricFamily(
            "pqs_ready",
            "1 while this database can serve: it answers, with the schema and rights.",
            labels=("database",),
        )
        for database, is_ready in self._numbers.ready:
            ready.add_metric([database], is_ready)
        return [ready, entities, overdue, waiting, oldest, behind, unread, dead, held_back, lag]
