"""`POST /v1/events`: one event, an array, or a stream of lines."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import IO, Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.access import rights
from app.access.principals import Principal, Scope
from app.access.refusals import ForbiddenError
from app.api.bodies import JSON, NDJSON, ClientDisconnect, json_answer, media_type, read_body
from app.api.context import Receive
from app.api.correlation import stored
from app.api.needs import admit, caller_of, check_again, check_domains, needs, permit, weight_of_array
from app.api.openapi.operations import events_operation
from app.api.preferences import minimal, wants_minimal
from app.api.problems import order_problem
from app.api.room import Hold, held_by
from app.api.schemas import EventsQuery, encode
from app.api.service import Service, service_of
from app.domain.events import Event
from app.domain.results import Outcome, Result
from app.errors import Fault, InvalidInputError, PqsError, RefusedValuesError
from app.inbound.lines import Outcomes, Report, take_lines
from app.wire.answers import (
    FORBIDDEN,
    INVALID,
    BatchAnswer,
    StreamSummary,
    Summary,
)
from app.wire.cloudevents import BATCH, STRUCTURED, attributes_of, read_binary, read_cloudevent, read_cloudevents
from app.wire.events import correlated, read_event, read_events
from app.wire.values import without_bom

router = APIRouter(tags=["events"])

PATH = "/v1/events"
ANSWER_IN_MEMORY = 64 * 1024  # bytes of a stream's answer that are held before it goes to a file
SUMMARY = 1024  # bytes that its last line has at most
ANSWER_AT_MOST = 64 * 1024 * 1024  # bytes of a stream's answer, and of its file
MAX_FAULTY = 10_000  # lines that are not events, in one stream
PIECES_AHEAD = 4  # pieces of a stream's body that are read before they are needed
KEPT_OUT = {Outcome.EARLY, Outcome.CONFLICT}


@router.post(
    PATH,
    operation_id="postEvents",
    summary="Send one event, an array, or a stream of lines",
    **events_operation(),
    dependencies=needs(Scope.EVENTS_WRITE, None),
)
async def post_events(request: Request, query: Annotated[EventsQuery, Query()]) -> Response:
    """Apply events and answer the outcome of each. The answer is sent after the commit.

    A trigger (`node.introspected`, `node.registration_acked`, `node.deregistered`) is sent like any event; its
    answer names the events that followed from it in `events`.

    **One object**: its outcome; 409 if the event is early (send it again after the missing events) or in conflict.
    **An array** of up to 10,000: one transaction. The events of one entity are folded in the order of their
    positions; results come in the order sent. One invalid item refuses the whole array.
    **A stream of lines** (`application/x-ndjson`) of any length: applied in the order of arrival, in chunks that
    commit one by one. The answer has one line per event that was not applied, and a summary at its end.
    **CloudEvents 1.0**, structured (`application/cloudevents+json`), batched (`application/cloudevents-batch+json`)
    and binary (`ce-` headers), are the same events: `id` is the event id, `subject` the entity id, `time`
    occurred_at, `sequence` (decimal digits) the position; `domain`, `previous` and `correlationid` are extensions.
    An event that only the database refuses (by a constraint of its operator) is answered like an invalid one.
    After a 503 the events may or may not be stored. Send them again; that is safe: stored ones answer `duplicate`
    or `stale`.
    """
    service = service_of(request)
    principal = caller_of(request)
    correlation_id = stored(request.scope["headers"])
    media = media_type(request, JSON, NDJSON, STRUCTURED, BATCH)
    if media == NDJSON:
        if query.dry_run:
            raise InvalidInputError([Fault("#/query/dry_run", "a stream has no dry run: send an object or an array")])
        return await _answer_stream(request, service, principal, correlation_id)
    body = await read_body(request, service.settings.max_body)
    principal = await check_again(request)  # a body may take long
    permit(rights.scope(principal, Scope.EVENTS_WRITE))
    events, many = _events_of(body, media, request.scope["headers"])
    events = [correlated(event, correlation_id) for event in events]
    if many:
        return await _answer_many(service, principal, events, dry_run=query.dry_run)
    [event] = events
    admit(service, principal, rights.domain(principal, Scope.EVENTS_WRITE, event.domain))
    await service.clock.check([event], many=False)
    if query.dry_run:
        [result] = await service.projector.foresee([event])
        return _render(result)
    answer = render_one(await service.writer.ask(event, len(body)))
    return minimal() if answer.status_code == 200 and wants_minimal(request.scope["headers"]) else answer


def is_array(body: bytes) -> bool:
    """Whether a JSON body is an array; otherwise it is most likely an object."""
    return without_bom(body).lstrip()[:1] == b"["


async def answer_array(service: Service, principal: Principal, body: bytes, correlation_id: UUID | None) -> Response:
    """Apply an array as one transaction, and answer the results."""
    events = [correlated(event, correlation_id) for event in read_events(body)]
    return await _answer_many(service, principal, events, dry_run=False)


async def _answer_many(service: Service, principal: Principal, events: list[Event], *, dry_run: bool) -> Response:
    check_domains(principal, events)
    admit(service, principal, None, weight_of_array(len(events)))
    await service.clock.check(events, many=True)
    if dry_run:
        results = await service.projector.foresee(events, by_position=True)
    else:
        results = await _take(service, events)
    counts = Counter(result.outcome for result in results)
    summary = Summary(received=len(events), **{str(outcome): counts[outcome] for outcome in Outcome})
    return Response(encode(BatchAnswer(summary, results)), media_type=JSON)


def read_one(body: bytes, correlation_id: UUID | None) -> Event:
    """One event, with the client's correlation id if it has none of its own. Raises as read_event()."""
    return correlated(read_event(body), correlation_id)


def render_one(result: Result, *, instance: str = PATH) -> Response:
    """Answer the outcome of one event."""
    return _render(result, instance=instance)


def _events_of(body: bytes, media: str, headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[Event], bool]:
    """The events of a body, and whether it is an array, which may hold one event."""
    if media == BATCH:
        return read_cloudevents(body), True
    if media == STRUCTURED:
        return [read_cloudevent(body)], False
    if attributes := attributes_of(headers):
        return [read_binary(attributes, body)], False
    if is_array(body):
        return read_events(body), True
    return [read_event(body)], False


async def _take(service: Service, events: list[Event]) -> list[Result]:
    try:
        results = await service.projector.persist(events, by_position=True)
    except RefusedValuesError as error:
        index = await service.projector.find_refused(events, by_position=True)
        raise InvalidInputError([Fault(f"#/{index}", str(error))]) from error
    return results


def _render(result: Result, *, instance: str = PATH) -> Response:
    if result.outcome in KEPT_OUT:
        return order_problem(result, instance)
    return json_answer(encode(result))


# --- A stream of lines ---------------------------------------------------------------------------------------------


async def _answer_stream(
    request: Request, service: Service, principal: Principal, correlation_id: UUID | None
) -> Response:
    """Read the whole body before the first byte of the answer: a client may send everything before it reads."""
    admit(service, principal, None)
    held = held_by(request)
    upload = _Upload(request.receive, held)
    answer = _StreamAnswer(service, upload, held)

    def refuse(event: Event) -> ForbiddenError | None:
        return rights.domain(caller_of(request), Scope.EVENTS_WRITE, event.domain)

    try:
        pieces = _paced(request, upload.pieces(), service, principal)
        await take_lines(
            service.projector, pieces, answer, clock=service.clock, correlation_id=correlation_id, refuse=refuse
        )
    except BaseException:
        answer.close()
        raise
    finally:
        upload.close()
    return StreamingResponse(answer.contents(), media_type=NDJSON)


async def _paced(
    request: Request, pieces: AsyncIterable[bytes], service: Service, principal: Principal
) -> AsyncIterator[bytes]:
    """The pieces of a stream, no faster than the caller's rate: a stream is slowed down, an array is refused.

    The caller is checked anew at each piece: a stream may go on for longer than a key counts. Raises AuthError.
    """
    async for piece in pieces:
        weight = piece.count(b"\n") / 100
        while (limited := service.access.limits.take(principal, weight)) is not None:  # noqa: ASYNC110 - time is all that is missing
            await asyncio.sleep(limited.retry_after.total_seconds())
        permit(rights.scope(await check_again(request), Scope.EVENTS_WRITE))
        yield piece


class _Upload:
    """The body of a stream, read a little ahead, so that a client that disconnects is noticed between two chunks."""

    def __init__(self, receive: Receive, held: Hold) -> None:
        self._receive = receive
        self._held = held
        self._gone = False
        self._fault: PqsError | None = None  # of the body's coding, or no room for more of it
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(PIECES_AHEAD)
        self._reading = asyncio.create_task(self._read())

    async def pieces(self) -> AsyncIterator[bytes]:
        """The pieces to the end of the body.

        Raises ClientDisconnect when the client is gone, NoRoomError, and what is wrong with the coding of the body.
        """
        while (piece := await self._pieces.get()) is not None:
            yield piece
        self.check()

    def check(self) -> None:
        """Raise ClientDisconnect when the client is gone; what it sent before and nobody has taken is dropped."""
        if self._fault is not None:
            raise self._fault
        if self._gone:
            raise ClientDisconnect

    def close(self) -> None:
        """Read no more."""
        self._reading.cancel()

    async def _read(self) -> None:
        try:
            await self._read_to_the_end()
        except PqsError as error:  # nobody awaits this task
            self._fault = error
            await self._pieces.put(None)

    async def _read_to_the_end(self) -> None:
        more = True
        while (message := await self._receive())["type"] != "http.disconnect":
            if more:
                piece = message.get("body", b"")
                self._held.take(len(piece))
                await self._pieces.put(piece)
                more = message.get("more_body", False)
                if not more:
                    await self._pieces.put(None)
        self._gone = True
        if more:
            await self._pieces.put(None)


class _StreamAnswer(Report):
    """The lines of a stream's answer, in a file once they are many, and the counts for its summary."""

    def __init__(self, service: Service, upload: _Upload, held: Hold) -> None:
        self._service = service
        self._held = held
        self._in_file = False
        self._size = 0  # bytes of lines
        self._upload = upload
        self._counts: Counter[str] = Counter()
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(ANSWER_IN_MEMORY + SUMMARY)  # noqa: SIM115 - see contents(), close()

    def committed(self, outcomes: Outcomes) -> None:
        """Count the events that PostgreSQL refused, for the metrics; the projector has counted the others."""
        for each in outcomes:
            if isinstance(each, RefusedValuesError):
                self._service.metrics.event(INVALID)

    def line(self, number: int, outcome: Result | RefusedValuesError | ForbiddenError | list[Fault]) -> None:
        """Write a line, unless its event was applied."""
        if isinstance(outcome, Result):
            self._counts[outcome.outcome] += 1
            if outcome.outcome is not Outcome.APPLIED:
                self._write({"line": number, **msgspec.to_builtins(outcome)})
            return
        if isinstance(outcome, ForbiddenError):
            self._service.metrics.event(FORBIDDEN)
            self._counts[FORBIDDEN] += 1
            faults = [Fault("#/domain", str(outcome))]
            self._write({"line": number, "outcome": FORBIDDEN, "errors": faults})
            return
        if isinstance(outcome, list):
            self._service.metrics.event(INVALID)
        errors = outcome if isinstance(outcome, list) else [Fault("#", str(outcome))]
        self._counts[INVALID] += 1
        self._write({"line": number, "outcome": INVALID, "errors": errors})

    def taken(self, size: int) -> None:
        """Make room for the bodies of others."""
        self._held.give_back(size)

    def check(self) -> None:
        """Raise ClientDisconnect when nobody waits for the answer any more."""
        self._upload.check()

    def full(self) -> str | None:
        """Say why the rest of the stream is not read: too many lines of faults, or too long an answer."""
        if self._counts[INVALID] > MAX_FAULTY:
            return f"more than {MAX_FAULTY:,} lines are not events"
        if self._size > ANSWER_AT_MOST:
            return f"the answer to these lines is larger than {ANSWER_AT_MOST:,} bytes"
        return None

    async def contents(self) -> AsyncIterator[bytes]:
        """The lines and the summary, in pieces. The file is closed, and so removed, at the end."""
        with self._file:
            counts = {name: self._counts[name] for name in (*Outcome, INVALID, FORBIDDEN)}
            self._file.write(encode({"summary": StreamSummary(received=self._counts.total(), **counts)}) + b"\n")
            self._file.seek(0)
            while piece := self._file.read(64 * 1024):
                yield piece

    def close(self) -> None:
        """Remove the file of an answer that is not given."""
        self._file.close()

    def _write(self, line: object) -> None:
        """Write a line, unless the answer has grown too long to be given. Raises NoRoomError."""
        encoded = encode(line) + b"\n"
        self._size += len(encoded)
        if self._size > ANSWER_IN_MEMORY and not self._in_file:
            self._held.take_file()
            self._in_file = True
        if self._size <= ANSWER_AT_MOST:
            self._file.write(encoded)
