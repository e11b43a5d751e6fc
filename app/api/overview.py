"""`/v1/overview`: a domain and the service at a glance."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Generic, TypeVar

import msgspec
from fastapi import APIRouter, Query, Request, Response

from app.access import rights
from app.access.principals import Scope
from app.api.bodies import JSON
from app.api.needs import caller_of, needs, permit
from app.api.negotiation import known_tags
from app.api.openapi.operations import operation
from app.api.schemas import DomainQuery, encode
from app.api.service import Service
from app.domain.decider import Deadline
from app.domain.states import RegistrationState
from app.errors import UnavailableError
from app.store import dead_letters, outbox, watermarks
from app.store.database import Connection
from app.store.overdue import now
from app.store.registrations import REGISTRATIONS
from app.store.schema import HEAD
from app.wire.overview import (
    BreakerState,
    DeadLetterCount,
    EventMinute,
    Operations,
    OutboxBacklog,
    OutboxState,
    OverdueCounts,
    Overview,
    SweepState,
    WatermarkState,
)

router = APIRouter(tags=["overview"])

COUNTS_FOR = 1.0  # seconds for which a snapshot counts
MOST_DOMAINS = 100  # of which snapshots are kept
TAG_BYTES = 12
SWEEPS = {
    True: "this service turns passed deadlines into events, and so into states, within a second or two",
    False: "passed deadlines are listed and change no state, unless `pqs sweep` or another service sweeps this "
    "database",
}

T = TypeVar("T")


class SharedRead(Generic[T]):
    """A value that is read once a second at most, however many ask for it; those who ask meanwhile wait for it.

    An error of the database counts as long as a value. `turn` lets one of several snapshots be taken at a time.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], turn: asyncio.Lock) -> None:
        self._read = read
        self._turn = turn
        self._until = 0.0
        self._found: T | UnavailableError | None = None

    async def get(self) -> T:
        """The value, at most COUNTS_FOR seconds old. Raises UnavailableError."""
        if self._found is None or time.monotonic() >= self._until:
            async with self._turn:
                if self._found is None or time.monotonic() >= self._until:
                    try:
                        self._found = await self._read()
                    except UnavailableError as error:
                        self._found = error
                    self._until = time.monotonic() + COUNTS_FOR
        if isinstance(self._found, UnavailableError):
            raise type(self._found)(str(self._found), retry_after=self._found.retry_after)
        return self._found


class DomainNumbers(msgspec.Struct, frozen=True):
    """The part of an overview that is of one domain."""

    at: datetime
    counts: dict[RegistrationState, int]
    overdue: OverdueCounts


class Overviews:
    """The snapshots of a process: one of its operations, and one of each domain that is looked at."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turn = asyncio.Lock()
        self._operations = SharedRead(self._read_operations, self._turn)
        self._domains: dict[str, SharedRead[DomainNumbers]] = {}

    def domain(self, name: str) -> SharedRead[DomainNumbers]:
        """The snapshot of a domain."""
        found = self._domains.pop(name, None) or SharedRead(lambda: self._read_domain(name), self._turn)
        self._domains[name] = found  # the newest is the last
        if len(self._domains) > MOST_DOMAINS:
            del self._domains[next(iter(self._domains))]
        return found

    async def overview(self, domain: str, *, operations: bool) -> Overview:
        """An overview, with the state of the service where that is wanted. Raises UnavailableError."""
        glance = await self.domain(domain).get()
        return Overview(
            glance.at,
            domain,
            sum(glance.counts.values()),
            glance.counts,
            glance.overdue,
            await self._operations.get() if operations else None,
        )

    async def _read_domain(self, domain: str) -> DomainNumbers:
        return await self._service.scans.read(_read_glance, domain)

    async def _read_operations(self) -> Operations:
        service = self._service
        backlogs, letters, reach = await service.database.read(_read_operations)
        waiting = [OutboxBacklog(each.destination, each.messages, each.oldest_at) for each in backlogs]
        known = {each.destination for each in waiting}
        waiting += [OutboxBacklog(name, 0, None) for name in service.entries.destinations if name not in known]
        return Operations(
            version=version("projection-query-service"),
            revision=HEAD,
            sweep=SweepState(service.settings.sweep, SWEEPS[service.settings.sweep]),
            minutes=[
                EventMinute(began_at=datetime.fromtimestamp(began_at, UTC), **events)
                for began_at, events in service.rates.minutes()
            ],
            outbox=OutboxState(
                sum(each.messages for each in waiting),
                min((each.oldest_at for each in waiting if each.oldest_at is not None), default=None),
                sorted(waiting, key=lambda each: each.destination),
            ),
            dead_letters=DeadLetterCount(letters),
            watermarks=reach,
            breakers=[BreakerState(name, breaker.is_open) for name, breaker in sorted(service.breakers.items())],
        )


async def _read_glance(connection: Connection, domain: str) -> DomainNumbers:
    at = await now(connection)
    counts = await REGISTRATIONS.counts.count_by_state(connection, domain)
    overdue = {kind: await scan.count(connection, domain, as_of=at) for kind, scan in REGISTRATIONS.overdue.items()}
    by_state = {RegistrationState(state): count for state, count in counts.items()}
    return DomainNumbers(at, by_state, OverdueCounts(overdue[Deadline.ACK], overdue[Deadline.LIVENESS]))


async def _read_operations(connection: Connection) -> tuple[list[outbox.Backlog], int, WatermarkState]:
    return (
        await outbox.backlogs(connection),
        await dead_letters.count(connection),
        await watermarks.reach(connection),
    )


@router.get(
    "/v1/overview",
    operation_id="getOverview",
    summary="Get a domain and the service at a glance",
    **operation(Overview, answer_tag=True, errors=(422, 503)),
    dependencies=needs(Scope.ENTITIES_READ),
)
async def get_overview(request: Request, query: Annotated[DomainQuery, Query()]) -> Response:
    """Answer the numbers that a screen shows: counts, overdue nodes, events a minute, and what waits.

    They are at most a second old: a process reads them once a second, however many look, and the cost does not grow
    with the number of rows. Everything but `at` decides the ETag: sent in `If-None-Match`, the same numbers answer
    304. Callers without `operations:read` for all domains are answered `operations: null`.
    """
    principal = caller_of(request)
    permit(rights.domain(principal, Scope.ENTITIES_READ, query.domain))
    is_told = rights.every_domain(principal, Scope.OPERATIONS_READ) is None
    overviews: Overviews = request.app.state.overviews
    found = await overviews.overview(query.domain, operations=is_told)
    said = encode(msgspec.structs.replace(found, at=datetime.fromtimestamp(0, UTC)))
    tag = f'"{hashlib.blake2b(said, digest_size=TAG_BYTES).hexdigest()}"'
    headers = {"ETag": f"W/{tag}", "Cache-Control": "private, no-cache"}
    known = known_tags(request.scope["headers"])
    if known is not None and known(tag):
        return Response(status_code=304, headers=headers)
    return Response(encode(found), headers=headers, media_type=JSON)
