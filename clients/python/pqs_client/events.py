"""Sends events: one, an array, or a stream of lines.

Events are idempotent by their position: the service answers `duplicate` or `stale` to an event that it has, and
changes nothing. So the client repeats an event or an array without an answer; the outcome is the one of the last
attempt.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TypeVar
from uuid import UUID

import msgspec

from app.domain.events import EventBase
from app.domain.results import Outcome, Result
from app.wire.answers import (
    INVALID,
    BatchAnswer,
    LineResult,
    StreamSummary,
)
from pqs_client.connection import JSON, NDJSON, PASSING_STATUSES, Caller, Retry, decode, read
from pqs_client.problems import (
    ClientError,
    ConnectionFailedError,
    InterruptedStreamError,
    ProblemError,
    UnexpectedAnswerError,
)

PATH = "/v1/events"
PIECE = 64 * 1024  # bytes of lines that are sent together

ONCE = Retry(attempts=1)

T = TypeVar("T")

# An event as a value, or as the JSON object that the service reads.
AnyEvent = EventBase | Mapping[str, object]


class SentLines(msgspec.Struct, frozen=True):
    """The results of the lines of a chunk that were not applied.

    `repeated` of them answered `duplicate` or `stale` after a failed attempt, which may have applied them.
    """

    results: list[LineResult]
    repeated: int


class Events:
    """Calls that send events. The service stores `correlation_id` with events that have no correlation id."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def send(self, event: AnyEvent, *, dry_run: bool = False, correlation_id: UUID | None = None) -> Result:
        """Send one event: the outcome is applied, ignored, duplicate or stale. With `dry_run` nothing is written.

        Raises EarlyError and ConflictError, which have the outcome in `result`.
        """
        content = msgspec.json.encode(event)
        return await self._post(content, Result, dry_run=dry_run, correlation_id=correlation_id)

    async def send_all(
        self, events: Iterable[AnyEvent], *, dry_run: bool = False, correlation_id: UUID | None = None
    ) -> BatchAnswer:
        """Apply up to 10,000 events in one transaction, each entity's in the order of positions.

        The outcomes `early` and `conflict` are in the results, and raise nothing. Raises InvalidError, with all
        faults, if one of them is not an event; then none is applied.
        """
        content = msgspec.json.encode(list(events))
        return await self._post(content, BatchAnswer, dry_run=dry_run, correlation_id=correlation_id)

    async def stream(
        self,
        events: Iterable[AnyEvent] | AsyncIterable[AnyEvent],
        *,
        on_line: Callable[[LineResult], None] = lambda _line: None,
        correlation_id: UUID | None = None,
    ) -> StreamSummary:
        """Send any number of events as lines, in constant memory, and return their number by outcome.

        The service applies them in the order given, in chunks that commit one by one. After the last one, `on_line`
        is called for each line that was not applied. The client cannot read `events` twice, so it does not repeat a
        stream. It raises InterruptedStreamError (the first `committed_lines` are in) or ConnectionFailedError. Then
        send the same events again, from the beginning or from any line that is known to be in.
        """
        return await self._read_results(_pieces(events), on_line, correlation_id)

    async def send_lines(
        self,
        lines: Sequence[bytes],
        *,
        pause: Callable[[ClientError, int, int], float] | None = None,
        correlation_id: UUID | None = None,
    ) -> SentLines:
        """Send a chunk of lines, each the JSON of an event, until the service answers, and return their results.

        The service applies up to 1,000 lines in one transaction. A chunk is always sent again as a whole. So each
        line has a result of its own, even if a failed attempt has committed the first `committed_lines`.

        `pause` is called after each failed attempt: with the error, the number of failures since the last progress,
        and the number of committed lines. It returns the seconds to wait, or raises. By default the client's Retry
        decides, and an error that is permanent, or lasts, is raised. Raises UnexpectedAnswerError, also through
        `pause`, for an answer that does not account for every line.
        """
        pause = pause or self._pause
        body = b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines)
        committed = failures = 0
        repeated = False
        while True:
            try:
                results = await self._send_once(body, len(lines), correlation_id)
            except ClientError as error:
                if isinstance(error, InterruptedStreamError) and error.committed_lines > committed:
                    committed, failures = error.committed_lines, 0
                failures += 1
                await self._caller.sleep(pause(error, failures, committed))
                repeated = True
                continue
            known = (Outcome.DUPLICATE, Outcome.STALE)
            return SentLines(results, repeated * sum(result.outcome in known for result in results))

    async def _send_once(self, body: bytes, sent: int, correlation_id: UUID | None) -> list[LineResult]:
        results: list[LineResult] = []
        summary = await self._read_results(body, results.append, correlation_id, retry=ONCE)
        known = {*Outcome, INVALID}
        if summary.received != sent or not all(each.outcome in known and 1 <= each.line <= sent for each in results):
            raise UnexpectedAnswerError(f"the answer does not account for the {sent:,} lines that were sent")
        return results

    def _pause(self, error: ClientError, failures: int, _committed: int) -> float:
        retry = self._caller.retry
        passing = isinstance(error, ConnectionFailedError) or (
            isinstance(error, ProblemError) and error.status in PASSING_STATUSES
        )
        if not passing or failures >= retry.attempts:
            raise error
        return self._caller.wait(error, failures, retry)

    async def _read_results(
        self,
        content: bytes | AsyncIterator[bytes],
        on_line: Callable[[LineResult], None],
        correlation_id: UUID | None,
        *,
        retry: Retry | None = None,
    ) -> StreamSummary:
        """Send lines, pass each result to `on_line`, and return the summary, the last line."""
        headers = _headers(NDJSON, correlation_id)
        summary: StreamSummary | None = None
        stream = self._caller.stream("POST", PATH, repeatable=False, headers=headers, content=content, retry=retry)
        async with stream as lines:
            async for line in lines:
                said = decode(line, _Line)
                if said.summary is not None:
                    summary = said.summary
                else:
                    on_line(decode(line, LineResult))
        if summary is None:
            raise UnexpectedAnswerError("the answer ends without a summary")
        return summary

    async def _post(self, content: bytes, answer: type[T], *, dry_run: bool, correlation_id: UUID | None) -> T:
        response = await self._caller.call(
            "POST",
            PATH,
            params={"dry_run": True} if dry_run else None,
            headers=_headers(JSON, correlation_id),
            content=content,
        )
        return read(response, answer)


class _Line(msgspec.Struct):
    summary: StreamSummary | None = None


def _headers(content_type: str, correlation_id: UUID | None) -> dict[str, str]:
    headers = {"Content-Type": content_type}
    return headers if correlation_id is None else headers | {"X-Correlation-ID": str(correlation_id)}


async def _pieces(events: Iterable[AnyEvent] | AsyncIterable[AnyEvent]) -> AsyncIterator[bytes]:
    """The events as lines, about PIECE bytes at a time."""
    piece = bytearray()
    async for event in _each(events):
        piece += msgspec.json.encode(event) + b"\n"
        if len(piece) >= PIECE:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


async def _each(events: Iterable[AnyEvent] | AsyncIterable[AnyEvent]) -> AsyncIterator[AnyEvent]:
    if isinstance(events, AsyncIterable):
        async for event in events:
            yield event
    else:
        for event in events:
            yield event
