"""What the parts of a process make up: a running service, and what is seen of a worker."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from app.access.access import Access
from app.concurrency.breaker import CircuitBreaker
from app.feed.feed import Feed
from app.feed.follow import Follow
from app.feed.waits import FollowingReport, Waits
from app.inbound.bulk import BulkCalls
from app.inbound.letters import Letters
from app.projection.acts import Acts
from app.projection.batching import Reader, Writer
from app.projection.clock import DatabaseClock
from app.projection.entries import EntryBuilder
from app.projection.projector import Projector
from app.runtime.metrics import DatabaseNumbers, Metrics
from app.runtime.rates import Rates
from app.settings import Settings
from app.store.database import Database
from app.store.readiness import Readiness
from app.store.replica import ReadSide, Replica
from app.workflows import WorkflowStore


@dataclass(frozen=True)
class Service:
    """The parts of a running service.

    `database` is the primary, for point reads and writes; `scans` is for lists, counts and scans, `full_scans` for
    lists that read a whole domain. `reader` and `writer` join single requests into batches; arrays and streams go to
    the projector directly. `acts` are an operator's. The keys of `breakers` are their names in the metrics.
    """

    settings: Settings
    database: Database
    scans: ReadSide
    full_scans: ReadSide
    reader: Reader
    clock: DatabaseClock
    projector: Projector
    writer: Writer
    acts: Acts
    letters: Letters  # dead letters, taken in again
    bulk: BulkCalls
    workflows: WorkflowStore
    entries: EntryBuilder
    metrics: Metrics
    breakers: dict[str, CircuitBreaker]
    feed: Feed
    follow: Follow
    waits: Waits  # the reads that wait
    following: FollowingReport
    access: Access  # who a caller is, and how much each may do
    replica: Replica | None  # its lag
    readiness: Readiness
    rates: Rates
    pools: Sequence[Database]  # all of this process


@dataclass(frozen=True)
class Observed:
    """What says how a worker fares. `numbers` reads the series that the database has."""

    access: Access
    readiness: Readiness
    metrics: Metrics
    numbers: Callable[[], Awaitable[DatabaseNumbers]]
