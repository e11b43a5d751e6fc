"""Metrics for Prometheus: requests, events by outcome, circuit breakers, and numbers from the database."""

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.domain.results import Outcome
from app.errors import UnavailableError
from app.store import dead_letters, outbox, watermarks
from app.store.database import Connection, Database
from app.store.outbox import Backlog
from app.store.watermarks import Age

PROMETHEUS_TEXT = CONTENT_TYPE_PLAIN_0_0_4
SHARED_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # set by `pqs serve` if several processes serve
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
LABELS = ("destination",)
# Of who follows and who waits: the gauge, its meaning, and how the processes' values are put together.
FOLLOWING: tuple[tuple[str, str, Literal["livesum", "livemax"]], ...] = (
    ("pqs_followers", "Requests that follow the changes now.", "livesum"),
    ("pqs_waiting_reads", "Reads that wait now: for an entity, an offset, or a deadline.", "livesum"),
    (
        "pqs_changes_unsettled_seconds",
        "Seconds for which the oldest changes that are not told yet have waited for writers before them.",
        "livemax",
    ),
    ("pqs_changes_lag_seconds", "Seconds from the last change that followers were told until they were.", "livemax"),
)


class DatabaseNumbers(Struct, frozen=True):
    """Numbers from the database, the same for all processes; empty or None if it did not answer."""

    backlogs: Sequence[Backlog] = ()
    ages: Sequence[Age] = ()
    dead_letters: int | None = None
    replica_lag: float | None = None


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
    return DatabaseNumbers(backlogs, await watermarks.ages(connection), await dead_letters.count(connection))


class Metrics:
    """The metrics of one service. Labels come from closed sets: routes, methods, statuses, outcomes."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "pqs_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "pqs_http_request_seconds",
            "Seconds until the last byte of an answer.",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._events = Counter("pqs_events", "Events by outcome.", ["outcome"], registry=self._registry)
        self._commits = Counter(
            "pqs_workflow_commits", "Commits of workflows by outcome.", ["outcome"], registry=self._registry
        )
        self._breaker = Gauge(
            "pqs_breaker_open",
            "1 while this circuit breaker, of a database or of Consul, refuses calls.",
            ["database"],
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        self._swept = Counter(
            "pqs_swept",
            "Passed deadlines that this service turned into events.",
            ["kind"],
            registry=self._registry,
        )
        self._lag = Gauge(
            "pqs_sweep_lag_seconds",
            "Delay of the latest deadline in the last page swept; 0 if none was left.",
            ["kind"],
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        self._following = [
            Gauge(name, told, registry=self._registry, multiprocess_mode=mode) for name, told, mode in FOLLOWING
        ]
        # Looking up a labelled metric takes longer than counting with it.
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._commit_outcomes = {name: self._commits.labels(name) for name in ("committed", "replayed", "conflict")}
        outcomes = (*(str(outcome) for outcome in Outcome), "invalid", "forbidden")
        self._outcomes = {outcome: self._events.labels(outcome) for outcome in outcomes}

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One answered request."""
        known = self._known.get((method, route, status))
        if known is None:
            known = self._requests.labels(method, route, status), self._seconds.labels(method, route)
            self._known[method, route, status] = known
        known[0].inc()
        known[1].observe(seconds)

    def events(self, outcome: str, count: int) -> None:
        """`count` events had this outcome."""
        if count:
            self._outcomes[outcome].inc(count)

    def commit(self, outcome: str) -> None:
        """A commit of a workflow had this outcome: committed, replayed or conflict."""
        self._commit_outcomes[outcome].inc()

    def swept(self, kind: str, count: int, late: float) -> None:
        """`count` deadlines became events, at most `late` seconds late. Called after each page, even an empty one."""
        self._swept.labels(kind).inc(count)
        self._lag.labels(kind).set(late)

    def following(self, *values: float) -> None:
        """The values of FOLLOWING now, in their order."""
        for gauge, value in zip(self._following, values, strict=True):
            gauge.set(value)

    def breaker(self, name: str, *, is_open: bool) -> None:
        """A breaker, of a database or of Consul, is open or closed now."""
        self._breaker.labels(name).set(is_open)

    def text(self, numbers: DatabaseNumbers | None = None) -> bytes:
        """All metrics in Prometheus' text format, of all processes of the service."""
        registry = self._registry
        if SHARED_DIRECTORY in os.environ:
            registry = CollectorRegistry()
            registry.register(_AllProcesses())
        return generate_latest(registry) + generate_latest(_DatabaseCollector(numbers or DatabaseNumbers()))


class _DatabaseCollector(Collector):
    """The numbers from the database, as gauges."""

    def __init__(self, numbers: DatabaseNumbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterable[Metric]:
        """Two gauges per destination, one per partition, and one of dead letters."""
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
        dead = GaugeMetricFamily("pqs_dead_letters", "Dead letters; an estimate if there are many.")
        if self._numbers.dead_letters is not None:
            dead.add_metric([], self._numbers.dead_letters)
        lag = GaugeMetricFamily("pqs_replica_lag_seconds", "Seconds that the replica lags behind, at most.")
        if self._numbers.replica_lag is not None:
            lag.add_metric([], self._numbers.replica_lag)
        return [waiting, oldest, behind, dead, lag]


class _AllProcesses(Collector):
    """The metrics of all processes of the service, which share them in files.

    Two kinds of files are left out, because MultiProcessCollector fails on them: an empty file that another process
    has just created, and the gauges of a process that has ended. Its counters stay.
    """

    def collect(self) -> Iterable[Metric]:
        """Read all files."""
        files = Path(os.environ[SHARED_DIRECTORY]).glob("*.db")
        current = [str(path) for path in files if path.stat().st_size and not _is_state_of_the_dead(path.stem)]
        metrics: Iterable[Metric] = MultiProcessCollector.merge(current)  # type: ignore[no-untyped-call]  # no types there
        return metrics


def _is_state_of_the_dead(name: str) -> bool:
    """Whether a file, named <type>_<mode>_<pid>, is a gauge of a process that has ended."""
    if name.startswith("gauge_live"):
        try:
            os.kill(int(name.rpartition("_")[2]), 0)
        except ProcessLookupError:
            return True
    return False
