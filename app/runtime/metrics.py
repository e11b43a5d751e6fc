"""Metrics for Prometheus: requests, events, batches, the database, breakers, and the process itself.

HTTP and database series have OpenTelemetry's stable names, our own begin with `pqs_`. Labels come from closed sets:
routes, methods, statuses, outcomes, event types, names of functions. Domains are the exception: the first hundred.
"""

import collections
import json
import logging
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.concurrency.breaker import CircuitBreaker
from app.domain.events import EventBase
from app.domain.results import Result
from app.runtime.access_log import AccessLog
from app.runtime.consumer_metrics import ConsumerMetrics
from app.runtime.database_numbers import DatabaseCollector, DatabaseNumbers, read_numbers
from app.runtime.snapshot_metrics import SnapshotMetrics
from app.store.database import PoolObserver
from app.store.schema import HEAD
from app.tracing.recorder import Tracer, recording

__all__ = ["PROMETHEUS_TEXT", "SHARED_DIRECTORY", "DatabaseNumbers", "Metrics", "read_numbers"]

log = logging.getLogger(__name__)

PROMETHEUS_TEXT = CONTENT_TYPE_PLAIN_0_0_4
SHARED_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # set by `pqs serve` if several processes serve
# Seconds. A point read takes half a millisecond.
BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000)  # requests or events of a batch
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
NOT_READ = "unknown"  # the type of what is not an event
HTTP, KAFKA = "http", "kafka"  # sources of events; those of the sweep are in pqs_swept_total
# The relay holds its connection while it sends, the reconciler for a round, and who hears of commits as long as it
# listens: none of them is slow.
HOLDING = frozenset({"move", "round", "hear"})


class Metrics(PoolObserver):
    """The metrics of one process; `text` has those of all processes of the service."""

    def __init__(self, access: AccessLog | None = None, *, slow: float = 1.0) -> None:
        """`access` logs the requests that are counted here; without it, all of them are logged.

        Work on the database that takes `slow` seconds or more is logged.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]  # no types there
        self.access = access or AccessLog()
        self.tracer: Tracer | None = None  # set where traces are wanted
        self._slow = slow
        self._registry = registry = CollectorRegistry()
        self._requests = Histogram(
            "http_server_request_duration_seconds",
            "Seconds until the last byte of an answer.",
            ["http_request_method", "http_route", "http_response_status_code"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._operations = Histogram(
            "db_client_operation_duration_seconds",
            "Seconds of one piece of work on a connection: a statement, or a transaction of several.",
            ["db_operation_name", "db_client_connection_pool_name"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._database_errors = Counter(
            "pqs_database_errors",
            "Failures of work on the database: connection, cancelled, lost_race, refused or other.",
            ["pool", "kind"],
            registry=registry,
        )
        self._timeouts = Counter(
            "pqs_pool_timeouts", "Calls that waited for a connection in vain.", ["pool"], registry=registry
        )
        self._pool_size = self._gauge("pqs_pool_size", "Open connections.", "pool")
        self._pool_used = self._gauge("pqs_pool_used", "Connections in use.", "pool")
        self._pool_waiting = self._gauge("pqs_pool_waiting", "Calls that wait for a connection.", "pool")
        self._events = Counter(
            "pqs_events",
            "Events by type, outcome and source; of those that are not valid the type is unknown.",
            ["type", "outcome", "source"],
            registry=registry,
        )
        self._commit_seconds = Histogram(
            "pqs_commit_seconds",
            "Seconds from the beginning of a batch of events to its commit, retries included.",
            ["source"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._event_batches = Histogram(
            "pqs_event_batch_size", "Events of one transaction.", ["source"], buckets=SIZES, registry=registry
        )
        self._retries = Counter(
            "pqs_write_retries",
            "Batches that began again: guard (another writer was faster), rollback (deadlock) or plan (migration).",
            ["source", "reason"],
            registry=registry,
        )
        self._lane_batches = Histogram(
            "pqs_lane_batch_size",
            "Requests that one statement or transaction answers.",
            ["lane"],
            buckets=SIZES,
            registry=registry,
        )
        self._lane_waits = Histogram(
            "pqs_lane_wait_seconds",
            "Seconds that the oldest request of a batch has waited for the batch before it.",
            ["lane"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._lane_refused = Counter(
            "pqs_lane_refused", "Requests refused because too many wait.", ["lane"], registry=registry
        )
        self._lane_waiting = self._gauge("pqs_lane_waiting", "Requests that wait for the next batch.", "lane")
        self._commits = Counter(
            "pqs_workflow_commits", "Commits of workflows by outcome.", ["outcome"], registry=registry
        )
        self._breaker = Gauge(
            "pqs_breaker_open",
            "1 while this circuit breaker, of a database or of Consul, refuses calls.",
            ["database"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._openings = Counter(
            "pqs_breaker_openings", "How often this circuit breaker has opened.", ["database"], registry=registry
        )
        self._swept = Counter(
            "pqs_swept", "Passed deadlines that this service turned into events.", ["kind"], registry=registry
        )
        self._lag = Gauge(
            "pqs_sweep_lag_seconds",
            "Delay of the latest deadline in the last page swept; 0 if none was left.",
            ["kind"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._relayed = Counter(
            "pqs_relay_messages",
            "Messages that left the outbox: arrived, or refused and a dead letter now.",
            ["destination", "outcome"],
            registry=registry,
        )
        self._following = [
            Gauge(name, told, registry=registry, multiprocess_mode=mode) for name, told, mode in FOLLOWING
        ]
        self.consumer = ConsumerMetrics(registry, lambda number: self.event("invalid", KAFKA, number))
        self.snapshots = SnapshotMetrics(registry)
        self._loop_lag = self._gauge("pqs_loop_lag_seconds", "Delay of the event loop.", each=True)
        self._memory = self._gauge("pqs_memory_bytes", "Memory of a process that is in RAM.", each=True)
        self._descriptors = self._gauge("pqs_open_descriptors", "Open file descriptors of a process.", each=True)
        self._most = self._gauge("pqs_max_descriptors", "File descriptors that a process may open.", each=True)
        build = Gauge(
            "pqs_build_info",
            "1; the labels are the release, the schema's revision that it expects, and Python's version.",
            ["version", "schema", "python"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        build.labels(version("projection-query-service"), HEAD, platform.python_version()).set(1)
        # Looking up a labelled metric takes longer than counting with it.
        self._known: dict[tuple[str, str, int], Histogram] = {}
        self._known_operations: dict[tuple[str, str], Histogram] = {}
        self._known_events: dict[tuple[str, str, str], Counter] = {}
        self._commit_outcomes = {name: self._commits.labels(name) for name in ("committed", "replayed", "conflict")}

    def _gauge(self, name: str, told: str, *labels: str, each: bool = False) -> Gauge:
        """A gauge whose values add up over the live processes, or, with `each`, one that every process has."""
        return Gauge(name, told, labels, registry=self._registry, multiprocess_mode="liveall" if each else "livesum")

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One answered request."""
        known = self._known.get((method, route, status))
        if known is None:
            known = self._known[method, route, status] = self._requests.labels(method, route, status)
        known.observe(seconds)

    # --- Events

    def event(self, outcome: str, source: str = HTTP, number: int = 1) -> None:
        """What was sent as an event had this outcome: invalid or forbidden."""
        self._events.labels(NOT_READ, outcome, source).inc(number)

    def batches(self, source: str) -> "BatchMetrics":
        """The report of a projector whose events come from there."""
        return BatchMetrics(
            self._known_events,
            self._events,
            self._commit_seconds.labels(source),
            self._event_batches.labels(source),
            self._retries,
            source,
        )

    def lane(self, name: str) -> "LaneMetrics":
        """The report of a lane."""
        return LaneMetrics(
            self._lane_batches.labels(name), self._lane_waits.labels(name), self._lane_refused.labels(name)
        )

    def waiting(self, lane: str, count: int) -> None:
        """So many questions wait in a lane now."""
        self._lane_waiting.labels(lane).set(count)

    def commit(self, outcome: str) -> None:
        """A commit of a workflow had this outcome: committed, replayed or conflict."""
        self._commit_outcomes[outcome].inc()

    def swept(self, kind: str, count: int, late: float) -> None:
        """`count` deadlines became events, at most `late` seconds late. Called after each page, even an empty one."""
        self._swept.labels(kind).inc(count)
        self._lag.labels(kind).set(late)

    def relayed(self, destination: str, arrived: int, refused: int) -> None:
        """So many messages have arrived there, and so many were refused for good."""
        self._relayed.labels(destination, "arrived").inc(arrived)
        self._relayed.labels(destination, "refused").inc(refused)

    def following(self, *values: float) -> None:
        """The values of FOLLOWING now, in their order."""
        for gauge, value in zip(self._following, values, strict=True):
            gauge.set(value)

    # --- The database

    def done(self, pool: str, name: str, seconds: float, rows: int | None, failure: str | None) -> None:
        """A piece of work on a connection has ended (see PoolObserver)."""
        known = self._known_operations.get((name, pool))
        if known is None:
            known = self._known_operations[name, pool] = self._operations.labels(name, pool)
        known.observe(seconds)
        if self.tracer is not None and (trace := recording()) is not None and name not in HOLDING:
            trace.statement(pool, name, seconds, rows, failure)
        if failure is not None:
            self._database_errors.labels(pool, failure).inc()
        if seconds >= self._slow and name not in HOLDING:
            extra = {"event": "statement.slow", "statement": name, "pool": pool, "seconds": seconds, "rows": rows}
            log.warning("slow: %s took %.0f ms on %s, rows: %s", name, seconds * 1000, pool, rows, extra=extra)

    def timed_out(self, pool: str) -> None:
        """A call has waited for a connection in vain (see PoolObserver)."""
        self._timeouts.labels(pool).inc()

    def pool(self, name: str, size: int, used: int, waiting: int) -> None:
        """The connections of a pool now."""
        self._pool_size.labels(name).set(size)
        self._pool_used.labels(name).set(used)
        self._pool_waiting.labels(name).set(waiting)

    def watch(self, name: str, breaker: CircuitBreaker) -> None:
        """From now on say of this breaker, of a database or of Consul, whether it is open."""
        state, openings = self._breaker.labels(name), self._openings.labels(name)
        state.set(breaker.is_open)

        def changed(is_open: bool) -> None:
            state.set(is_open)
            if is_open:
                openings.inc()

        breaker.on_change = changed

    # --- The process

    def process(self, lag: float, memory: int | None, descriptors: int | None, most: float) -> None:
        """The delay of the event loop in seconds, the memory in bytes, the descriptors that are open and that may be.

        Memory and open descriptors are None where they are not known.
        """
        self._loop_lag.set(lag)
        self._most.set(most)
        if memory is not None:
            self._memory.set(memory)
        if descriptors is not None:
            self._descriptors.set(descriptors)

    def outcomes(self) -> collections.Counter[str]:
        """The number of events by outcome, of all processes of the service, since it has begun."""
        found: collections.Counter[str] = collections.Counter()
        if SHARED_DIRECTORY in os.environ:
            for each in Path(os.environ[SHARED_DIRECTORY]).glob("counter_*.db"):
                values = MmapedDict.read_all_values_from_file(str(each))  # type: ignore[no-untyped-call]  # no types
                for key, value, *_ in values:
                    _, name, labels, _ = json.loads(key)
                    if name == "pqs_events_total":
                        found[labels["outcome"]] += int(value)
            return found
        for family in self._events.collect():
            for sample in family.samples:
                found[sample.labels["outcome"]] += int(sample.value)
        return found

    def text(self, numbers: DatabaseNumbers | None = None) -> bytes:
        """All metrics in Prometheus' text format, of all processes of the service."""
        registry = self._registry
        if SHARED_DIRECTORY in os.environ:
            registry = CollectorRegistry()
            registry.register(_AllProcesses())
        return generate_latest(registry) + generate_latest(DatabaseCollector(numbers or DatabaseNumbers()))


class BatchMetrics:
    """Counts the events of a projector, by type and outcome."""

    def __init__(
        self,
        known: dict[tuple[str, str, str], Counter],
        events: Counter,
        seconds: Histogram,
        sizes: Histogram,
        retries: Counter,
        source: str,
    ) -> None:
        self._known, self._events, self._retries = known, events, retries
        self._seconds, self._sizes, self._source = seconds, sizes, source

    def batch(self, events: Sequence[EventBase], results: Sequence[Result], seconds: float) -> None:
        """These events were committed."""
        for event, result in zip(events, results, strict=True):
            key = (event.type, result.outcome, self._source)
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = self._events.labels(*key)
            known.inc()
        self._seconds.observe(seconds)
        self._sizes.observe(len(events))

    def retry(self, reason: str) -> None:
        """A batch starts again."""
        self._retries.labels(self._source, reason).inc()


class LaneMetrics:
    """Counts the batches of a lane."""

    def __init__(self, sizes: Histogram, waits: Histogram, refusals: Counter) -> None:
        self._sizes, self._waits, self._refusals = sizes, waits, refusals

    def joined(self, size: int, waited: float) -> None:
        """A batch begins."""
        self._sizes.observe(size)
        self._waits.observe(waited)

    def refused(self) -> None:
        """A question was refused."""
        self._refusals.inc()


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
