"""The service from Python: `async with Client("http://127.0.0.1:8000") as client:`. See docs/reference/client.md."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import httpx

from app.client.answers import (
    BatchResult,
    DeadLetter,
    DeadLetterPage,
    EntityPage,
    EventResult,
    Followed,
    Header,
    LineResult,
    Lookup,
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
from app.client.connection import KEEP_IDLE, Connection, Retry
from app.client.dead_letters import DeadLetters
from app.client.entities import Entities, Overdue
from app.client.events import Events
from app.client.problems import (
    ActionConflictError,
    ClientError,
    ConflictError,
    ConnectionFailedError,
    EarlyError,
    InterruptedStreamError,
    InvalidError,
    NotFoundError,
    PreconditionFailedError,
    ProblemError,
    TooLargeError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreadableError,
)
from app.client.workflows import State, Workflows
from app.domain.workflows import Committed, Workflow

__all__ = [
    "ActionConflictError",
    "BatchResult",
    "Client",
    "ClientError",
    "Committed",
    "ConflictError",
    "ConnectionFailedError",
    "DeadLetter",
    "DeadLetterPage",
    "EarlyError",
    "EntityPage",
    "EventResult",
    "Followed",
    "Header",
    "InterruptedStreamError",
    "InvalidError",
    "LineResult",
    "Lookup",
    "NotFoundError",
    "OverduePage",
    "OverdueRegistration",
    "PreconditionFailedError",
    "ProblemError",
    "Ready",
    "Retry",
    "State",
    "StateCounts",
    "StreamSummary",
    "Summary",
    "TooLargeError",
    "UnavailableError",
    "UnexpectedAnswerError",
    "UnreadableError",
    "Watermark",
    "Workflow",
    "WorkflowPage",
]

TIMEOUT = 10.0  # seconds without a byte; a statement of the service takes 5 at most, by default
CONNECTIONS = 100


class Client:
    """A client of one service, for one event loop. Its calls may run at once; it keeps connections open between them.

    Every call ends in a value or in a ClientError.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout: float = TIMEOUT,
        retry: Retry | None = None,
        connections: int = CONNECTIONS,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`timeout` is how many seconds one attempt may hear nothing; `retry` bounds a call with its attempts.

        No more than `connections` are open; further calls wait for one, for `timeout` seconds. `jitter` draws from
        0 to 1, and `sleep` waits for so many seconds. `transport` is httpx's way to the service, for TLS settings
        beyond the usual, or a service in this process.
        """
        limits = httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEP_IDLE
        )
        self._http = httpx.AsyncClient(base_url=base_url, timeout=timeout, limits=limits, transport=transport)
        self._connection = Connection(self._http, retry or Retry(), jitter=jitter, sleep=sleep)
        self.entities = Entities(self._connection)
        self.overdue = Overdue(self._connection)
        self.events = Events(self._connection)
        self.workflows = Workflows(self._connection)
        self.dead_letters = DeadLetters(self._connection)

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
        """How far each partition of Kafka is read, by topic and partition. It is repeatable."""
        return (await self._connection.get("/v1/watermarks", WatermarkList)).items

    async def ready(self) -> Ready:
        """Whether the service can answer, asked once: raises UnavailableError, which says what is missing, if not."""
        return await self._connection.get("/readyz", Ready, retry=Retry(attempts=1))
