"""The service from Python: `async with Client("http://127.0.0.1:8000") as client:`. See docs/reference/client.md."""

import asyncio
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Self
from uuid import UUID

import httpx

from app.domain.events import (
    DEFAULT_DOMAIN,
    Accepted,
    AckDeadlineData,
    AckReceived,
    AckRequested,
    AckTimedOut,
    Activated,
    ActivatedData,
    Deregistered,
    EventBase,
    Forgotten,
    ForgottenData,
    Heartbeat,
    HeartbeatData,
    Initiated,
    InitiatedData,
    Introspected,
    LivenessExpired,
    NoData,
    Recorded,
    RecordedData,
    Refreshed,
    RegistrationAcked,
    Rejected,
)
from app.domain.positions import Position
from app.domain.registration import Registration
from app.domain.results import EmittedEvent, Outcome, Result
from app.domain.states import RegistrationState
from app.domain.workflows import Committed, State, Workflow
from app.errors import Fault
from app.wire.answers import (
    BatchAnswer,
    ChangeItem,
    DeadLetterPage,
    DeadMessage,
    DeregisterAnswer,
    EntityHistory,
    EntityPage,
    EntityState,
    Erased,
    EventRecord,
    ForgetAnswer,
    Header,
    HeldEntity,
    HeldPage,
    LetterRun,
    LineResult,
    LookupAnswer,
    MessagePlace,
    OverduePage,
    OverdueRegistration,
    QueueAnswer,
    Ready,
    SnapshotProgress,
    StateCounts,
    StreamSummary,
    Summary,
    Watermark,
    WatermarkList,
    WorkflowPage,
)
from app.wire.overview import (
    DomainPage,
    EventMinute,
    Operations,
    OverdueCount,
    Overview,
)
from pqs_client.changes import Bookmark, FollowedChange, FollowedRow, News, Reset, follow
from pqs_client.connection import KEEP_IDLE, Caller, Retry, read
from pqs_client.dead_letters import DeadLetters, LetterFilter
from pqs_client.entities import Clock, Entities, Order, OverdueScans, Waited
from pqs_client.events import Events, SentLines
from pqs_client.problems import (
    ActionConflictError,
    ClientError,
    ConflictError,
    ConnectionFailedError,
    EarlyError,
    ForbiddenError,
    ForgottenError,
    GoneError,
    HeldError,
    InterruptedStreamError,
    InvalidError,
    LateError,
    NotFoundError,
    PreconditionFailedError,
    ProblemError,
    TimedOutError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreadableError,
)
from pqs_client.tokens import auth_of
from pqs_client.workflows import Workflows

__all__ = [
    "Accepted",
    "AckDeadlineData",
    "AckReceived",
    "AckRequested",
    "AckTimedOut",
    "ActionConflictError",
    "Activated",
    "ActivatedData",
    "BatchAnswer",
    "Bookmark",
    "ChangeItem",
    "Client",
    "ClientError",
    "Clock",
    "Committed",
    "ConflictError",
    "ConnectionFailedError",
    "DeadLetterPage",
    "DeadMessage",
    "DeregisterAnswer",
    "Deregistered",
    "DomainPage",
    "EarlyError",
    "EmittedEvent",
    "EntityHistory",
    "EntityPage",
    "EntityState",
    "Erased",
    "EventBase",
    "EventMinute",
    "EventRecord",
    "Fault",
    "FollowedChange",
    "FollowedRow",
    "ForbiddenError",
    "ForgetAnswer",
    "Forgotten",
    "ForgottenData",
    "ForgottenError",
    "GoneError",
    "Header",
    "Heartbeat",
    "HeartbeatData",
    "HeldEntity",
    "HeldError",
    "HeldPage",
    "Initiated",
    "InitiatedData",
    "InterruptedStreamError",
    "Introspected",
    "InvalidError",
    "LateError",
    "LetterFilter",
    "LetterRun",
    "LineResult",
    "LivenessExpired",
    "LookupAnswer",
    "MessagePlace",
    "News",
    "NoData",
    "NotFoundError",
    "Operations",
    "Order",
    "Outcome",
    "OverdueCount",
    "OverduePage",
    "OverdueRegistration",
    "Overview",
    "Position",
    "PreconditionFailedError",
    "ProblemError",
    "QueueAnswer",
    "Ready",
    "Recorded",
    "RecordedData",
    "Refreshed",
    "Registration",
    "RegistrationAcked",
    "RegistrationState",
    "Rejected",
    "Reset",
    "Result",
    "Retry",
    "SentLines",
    "SnapshotProgress",
    "State",
    "StateCounts",
    "StreamSummary",
    "Summary",
    "TimedOutError",
    "TooLargeError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnexpectedAnswerError",
    "UnreadableError",
    "Waited",
    "Watermark",
    "Workflow",
    "WorkflowPage",
]

TIMEOUT = 10.0  # seconds without a byte; a statement of the service takes 5 at most, by default
MAX_CONNECTIONS = 100


class Client:
    """A client of one service, for one event loop. Calls may run concurrently; connections stay open between them.

    Every call returns a value or raises a ClientError.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout: float | httpx.Timeout = TIMEOUT,
        retry: Retry | None = None,
        connections: int = MAX_CONNECTIONS,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        auth: httpx.Auth | None = None,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
        on_body: Callable[[bytes], None] | None = None,
    ) -> None:
        """`timeout` is the longest silence within one attempt, in seconds; `retry` bounds a call with its attempts.

        At most `connections` are open; further calls wait for one, for `timeout` seconds. Every call sends `headers`,
        and `token` or the token in `token_file`; without them that of PQS_TOKEN or PQS_TOKEN_FILE. The file is read
        again once after a 401. `auth` is httpx's, in place of a token. Raises ValueError for a token that would go
        over plain http beyond this machine.
        `jitter` draws from 0 to 1, and `sleep` waits for some seconds. `transport` is httpx's transport, for special
        TLS settings, or for a service in this process. `on_body` is called with the body of each answer, and with
        each line of a stream, before it is read: for programs that keep the service's own bytes.
        """
        limits = httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEP_IDLE
        )
        if auth is None:
            auth = auth_of(token, token_file, httpx.URL(base_url))
        elif token is not None or token_file is not None:
            raise ValueError("there is a token beside `auth`: one of them is enough")
        self._http = httpx.AsyncClient(
            base_url=base_url, timeout=timeout, headers=headers, limits=limits, transport=transport, auth=auth
        )
        self._caller = Caller(self._http, retry or Retry(), jitter=jitter, sleep=sleep, on_body=on_body)
        self.entities = Entities(self._caller)
        self.overdue = OverdueScans(self._caller)
        self.events = Events(self._caller)
        self.workflows = Workflows(self._caller)
        self.dead_letters = DeadLetters(self._caller)

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._http.__aexit__(exc_type, exc_value, traceback)

    def changes(
        self,
        *,
        after: str | None = None,
        snapshot: bool = False,
        rows: bool = False,
        domain: str = DEFAULT_DOMAIN,
        entity_id: Iterable[UUID] = (),
        state: Iterable[RegistrationState] = (),
        node_type: str | None = None,
        type_: Iterable[str] = (),
    ) -> AsyncGenerator[News, None]:
        """What changes, in the order of each entity's versions, without an end.

        `after` is the `next` of something that was told before, `now`, or None for the oldest change that is kept.
        Store `next` together with the effect, and each change has its effect once. `snapshot`: first all rows, then
        the changes since. `rows`: each change with its row, where the service logs rows. `state` is the state before
        or after a change.

        Broken connections and pauses of the service are bridged. Where the place is lost (410), a Reset is told, and
        then a snapshot. Until the first answer, errors are raised as by any call; later only errors that do not pass,
        such as UnauthenticatedError. To leave the loop early, close it (`contextlib.aclosing`).
        """
        return follow(
            self._caller,
            after=after,
            snapshot=snapshot,
            rows=rows,
            domain=domain,
            entity_id=entity_id,
            state=state,
            node_type=node_type,
            type_=type_,
        )

    async def event(self, event_id: UUID) -> EventRecord:
        """The changes that an event made, and the rows that stand at it. Raises NotFoundError. Repeatable."""
        return await self._caller.get(f"/v1/events/{event_id}", EventRecord)

    async def watermarks(self) -> list[Watermark]:
        """The progress in each partition of Kafka, by topic and partition. Repeatable."""
        return (await self._caller.get("/v1/watermarks", WatermarkList)).items

    async def overview(self, *, domain: str = DEFAULT_DOMAIN) -> Overview:
        """A domain and the service at a glance, at most a second old. Repeatable.

        `operations` is None for callers without `operations:read` for all domains.
        """
        return await self._caller.get("/v1/overview", Overview, {"domain": domain})

    async def domains(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> AsyncGenerator[DomainPage, None]:
        """The domains by name, each with its state counts, page by page, from `cursor` on. Repeatable."""
        while True:
            page = await self._caller.get("/v1/domains", DomainPage, {"limit": limit, "cursor": cursor})
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    async def snapshots(self) -> SnapshotProgress:
        """How far rows are published to the topic of snapshots. Raises NotFoundError without one. Repeatable."""
        return await self._caller.get("/v1/snapshots", SnapshotProgress)

    async def republish_snapshots(self) -> SnapshotProgress:
        """Have all rows published to the topic of snapshots; `snapshots()` says when they are.

        Not repeatable: after a ConnectionFailedError `snapshots()` shows in `requested` whether it was heard.
        """
        return read(await self._caller.call("POST", "/v1/snapshots/republish", repeatable=False), SnapshotProgress)

    async def ready(self) -> Ready:
        """Ask once whether the service is ready. If not, raises UnavailableError, which says what is missing."""
        return await self._caller.get("/readyz", Ready, retry=Retry(attempts=1))
