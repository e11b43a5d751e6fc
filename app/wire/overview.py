"""The answers that sum up: a domain at a glance, the service's operations, and the domains."""

from msgspec import Struct

from app.domain.events import Time
from app.domain.states import RegistrationState
from app.wire.answers import StateCounts


class DomainPage(Struct, frozen=True):
    """A page of domains by name, each with its state counts, and the cursor of the next one, null on the last.

    A domain stays in the list when all its entities were forgotten.
    """

    items: list[StateCounts]
    next_cursor: str | None


class OverdueCount(Struct, frozen=True):
    """The overdue nodes of one kind: their number, their oldest deadline, and the next one that will pass.

    Nodes are counted up to 1,000; `is_more` says that there are more than `count`.
    """

    count: int
    is_more: bool
    oldest_deadline: Time | None
    next_deadline: Time | None


class OverdueCounts(Struct, frozen=True):
    """The overdue nodes of both kinds."""

    ack: OverdueCount
    liveness: OverdueCount


class EventMinute(Struct, frozen=True, kw_only=True):
    """The events of one minute by outcome, of all domains: taken in over HTTP by all processes of this service.

    What `pqs consume` reads and what a sweep writes is not counted here.
    """

    began_at: Time
    applied: int = 0
    ignored: int = 0
    duplicate: int = 0
    stale: int = 0
    early: int = 0
    conflict: int = 0
    invalid: int = 0
    forbidden: int = 0


class SweepState(Struct, frozen=True):
    """Whether this service turns passed deadlines into events, and what that means."""

    is_on: bool
    meaning: str


class OutboxBacklog(Struct, frozen=True):
    """The messages that wait for one destination; their number is an estimate if there are many."""

    destination: str
    messages: int
    oldest_at: Time | None


class OutboxState(Struct, frozen=True):
    """The messages that wait to be sent, in all and for each destination."""

    messages: int
    oldest_at: Time | None
    destinations: list[OutboxBacklog]


class DeadLetterCount(Struct, frozen=True):
    """The number of dead letters; an estimate if there are many."""

    count: int


class WatermarkState(Struct, frozen=True):
    """The partitions that are read, and the time up to which everything in all of them is applied."""

    partitions: int
    unknown: int
    as_of: Time | None


class BreakerState(Struct, frozen=True):
    """A circuit breaker of the process that answers: while it is open, calls to that side are refused."""

    name: str
    is_open: bool


class Operations(Struct, frozen=True):
    """The state of the service, for all domains."""

    version: str
    revision: str
    sweep: SweepState
    minutes: list[EventMinute]
    outbox: OutboxState
    dead_letters: DeadLetterCount
    watermarks: WatermarkState
    breakers: list[BreakerState]


class Overview(Struct, frozen=True):
    """A domain at a glance, at most a second old; `operations` only for callers with `operations:read`."""

    at: Time
    domain: str
    total: int
    counts: dict[RegistrationState, int]
    overdue: OverdueCounts
    operations: Operations | None
