"""The service from Python: `async with Client("http://127.0.0.1:8000") as client:`. See docs/reference/client.md."""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

import httpx

from app.domain.events import (
    Accepted,
    AckDeadlineData,
    AckReceived,
    AckRequested,
    AckTimedOut,
    Activated,
    ActivatedData,
    Deregistered,
    EventBase,
    Heartbeat,
    HeartbeatData,
    Initiated,
    InitiatedData,
    Introspected,
    LivenessExpired,
    NoData,
    Recorded,
    RecordedData,
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
    DeadLetterPage,
    DeadMessage,
    EntityPage,
    EntityState,
    Header,
    LineResult,
    LookupAnswer,
    OverduePage,
    OverdueRegistration,
    Ready,
    StateCounts,
    StreamSummary,
    Summary,
    Watermark,
    WatermarkList,
    WorkflowPage,
)
from pqs_client.connection import KEEP_IDLE, Caller, Retry
from pqs_client.dead_letters import DeadLetters
from pqs_client.entities import Entities, OverdueScans
from pqs_client.events import Events, SentLines
from pqs_client.problems import (
    ActionConflictError,
    ClientError,
    ConflictError,
    ConnectionFailedError,
    EarlyError,
    ForbiddenError,
    InterruptedStreamError,
    InvalidError,
    NotFoundError,
    PreconditionFailedError,
    ProblemError,
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
    "Client",
    "ClientError",
    "Committed",
    "ConflictError",
    "ConnectionFailedError",
    "DeadLetterPage",
    "DeadMessage",
    "Deregistered",
    "EarlyError",
    "EmittedEvent",
    "EntityPage",
    "EntityState",
    "EventBase",
    "Fault",
    "ForbiddenError",
    "Header",
    "Heartbeat",
    "HeartbeatData",
    "Initiated",
    "InitiatedData",
    "InterruptedStreamError",
    "Introspected",
    "InvalidError",
    "LineResult",
    "LivenessExpired",
    "LookupAnswer",
    "NoData",
    "NotFoundError",
    "Outcome",
    "OverduePage",
    "OverdueRegistration",
    "Position",
    "PreconditionFailedError",
    "ProblemError",
    "Ready",
    "Recorded",
    "RecordedData",
    "Registration",
    "RegistrationAcked",
    "RegistrationState",
    "Rejected",
    "Result",
    "Retry",
    "SentLines",
    "State",
    "StateCounts",
    "StreamSummary",
    "Summary",
    "TooLargeError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnexpectedAnswerError",
    "UnreadableError",
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
    ) -> None:
        """`timeout` is the longest silence within one attempt, in seconds; `retry` bounds a call with its attempts.

        At most `connections` are open; further calls wait for one, for `timeout` seconds. Every call sends `headers`,
        and `token` or the token in `token_file`; without them that of PQS_TOKEN or PQS_TOKEN_FILE. The file is read
        again once after a 401. `auth` is httpx's, in place of a token. Raises ValueError for a token that would go
        over plain http beyond this machine.
        `jitter` draws from 0 to 1, and `sleep` waits for some seconds. `transport` is httpx's transport, for special
        TLS settings, or for a service in this process.
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
        self._caller = Caller(self._http, retry or Retry(), jitter=jitter, sleep=sleep)
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

    async def watermarks(self) -> list[Watermark]:
        """The progress in each partition of Kafka, by topic and partition. Repeatable."""
        return (await self._caller.get("/v1/watermarks", WatermarkList)).items

    async def ready(self) -> Ready:
        """Ask once whether the service is ready. If not, raises UnavailableError, which says what is missing."""
        return await self._caller.get("/readyz", Ready, retry=Retry(attempts=1))
