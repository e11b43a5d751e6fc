"""Events in: one, an array, or a stream of lines."""

import asyncio
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable
from http import HTTPStatus
from typing import IO, Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.api.bodies import JSON, NDJSON, json_answer, lines, media_type, read_body
from app.api.context import given_correlation_id
from app.api.openapi.operations import events_operation
from app.api.problems import respond
from app.api.schemas import EventsQuery, OrderProblem, StreamSummary, Summary, encode
from app.api.service import Service, service_of
from app.domain.events import Event
from app.domain.registration import Outcome
from app.errors import (
    Fault,
    IngestInterruptedError,
    InvalidInputError,
    RefusedValuesError,
    UnavailableError,
    UnreadableError,
)
from app.projection.projector import Result
from app.wire.cloudevents import BATCH, STRUCTURED, attributes_of, read_binary, read_cloudevent, read_cloudevents
from app.wire.events import read_event, read_events

router = APIRouter(tags=["events"])

PATH = "/v1/events"
MAX_LINE = 1024 * 1024  # bytes
CHUNK_LINES = 1000  # lines that one transaction takes in
CHUNK_BYTES = 4 * 1024 * 1024  # of lines that are held for one transaction
CHUNKS_AT_ONCE = 2  # of one stream: the database works on one while the other is folded
ANSWER_IN_MEMORY = 1024 * 1024  # bytes of a stream's answer, before it goes to a file
RETRY_EARLY = "1"  # seconds; what is missing is most likely on its way

TYPES = {
    Outcome.EARLY: ("urn:pqs:problem:early", "The event is early"),
    Outcome.CONFLICT: ("urn:pqs:problem:conflict", "The event is in conflict with its entity's row"),
}


@router.post(
    PATH,
    operation_id="postEvents",
    summary="Take in one event, an array, or a stream of lines",
    **events_operation(),
)
async def post_events(request: Request, query: Annotated[EventsQuery, Query()]) -> Response:
    """Take events in, and answer what became of each. The answer follows the commit.

    A trigger (`node.introspected`, `node.registration_acked`, `node.deregistered`) comes in like all events; its
    answer names in `events` what followed from it.

    **One object**: its outcome; 409 when the event is early (send it again after what is missing) or in conflict.
    **An array** of up to 10,000: one transaction; the events of one entity are folded in the order of their
    positions; results come in the order sent. One invalid item refuses the whole array.
    **A stream of lines** (`application/x-ndjson`), as long as you like: taken in in the order of arrival, in chunks
    that commit one by one. The answer has a line for each event that was not applied, and a summary at its end.
    **CloudEvents 1.0**, structured (`application/cloudevents+json`), batched (`application/cloudevents-batch+json`)
    and binary (`ce-` headers), are the same events: `id` is the event id, `subject` the entity id, `time`
    occurred_at, `sequence` (decimal digits) the position; `domain`, `previous` and `correlationid` are extensions.
    An event that the database alone refuses (a constraint of its operator's) is answered like one that is invalid.
    After a 503 send the same again: what was in already answers `duplicate` or `stale`.
    """
    service = service_of(request)
    correlation_id = given_correlation_id(request.scope["headers"])
    media = media_type(request, JSON, NDJSON, STRUCTURED, BATCH)
    if media == NDJSON:
        if query.dry_run:
            raise InvalidInputError([Fault("#/query/dry_run", "a stream has no dry run; send an object or an array")])
        return await _take_stream(request, service, correlation_id)
    body = await read_body(request, service.settings.max_body)
    events, many = _events_of(body, media, request.scope["headers"])
    events = _correlated(events, correlation_id)
    if many:
        return await _answer_many(service, events, dry_run=query.dry_run)
    [event] = events
    if query.dry_run:
        [result] = await service.projector.foresee([event])
        return _render(result)
    return render_one(service, await service.writer.ask(event))


def is_array(body: bytes) -> bool:
    """Whether a JSON body is an array, or else most likely an object."""
    return body.lstrip()[:1] == b"["


async def answer_array(service: Service, body: bytes, correlation_id: UUID | None) -> Response:
    """Take in an array as one transaction."""
    return await _answer_many(service, _correlated(read_events(body), correlation_id), dry_run=False)


async def _answer_many(service: Service, events: list[Event], *, dry_run: bool) -> Response:
    if dry_run:
        results = await service.projector.foresee(events, by_position=True)
    else:
        results = await _take(service, events)
    summary = Summary(received=len(events), **Counter(str(result.outcome) for result in results))
    return Response(encode({"summary": summary, "results": results}), media_type=JSON)


def read_one(body: bytes, correlation_id: UUID | None) -> Event:
    """One event, with the client's correlation id where it has none of its own."""
    return _correlated([read_event(body)], correlation_id)[0]


def render_one(service: Service, result: Result, *, instance: str = PATH) -> Response:
    """Count one event that was taken in, and answer what became of it."""
    service.metrics.events(result.outcome, 1)
    return _render(result, instance=instance)


def _events_of(body: bytes, media: str, headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[Event], bool]:
    """The events of a body, and whether they are many: an array, though it be of one."""
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
    _count(service, results)
    return results


def _count(service: Service, results: Iterable[Result | RefusedValuesError]) -> None:
    outcomes = ("invalid" if isinstance(each, RefusedValuesError) else each.outcome for each in results)
    for outcome, count in Counter(outcomes).items():
        service.metrics.events(outcome, count)


def _correlated(events: list[Event], correlation_id: UUID | None) -> list[Event]:
    """The events with the client's correlation id, where they have none of their own."""
    if correlation_id is None:
        return events
    return [
        event if event.correlation_id else msgspec.structs.replace(event, correlation_id=correlation_id)
        for event in events
    ]


def _render(result: Result, *, instance: str = PATH) -> Response:
    if result.outcome not in TYPES:
        return json_answer(encode(result))
    type_, title = TYPES[result.outcome]
    status = HTTPStatus.CONFLICT
    problem = OrderProblem(
        type=type_,
        title=title,
        status=status,
        detail=result.reason or "",
        instance=instance,
        **msgspec.structs.asdict(result),
    )
    return respond(problem, status, {"Retry-After": RETRY_EARLY} if result.outcome is Outcome.EARLY else None)


# --- A stream of lines ---------------------------------------------------------------------------------------------


class _Line(msgspec.Struct, frozen=True):
    """One line of the input: its event, or what is wrong with it."""

    number: int
    read: Event | list[Fault]


class _Taking(msgspec.Struct, frozen=True):
    """A chunk that the database is taking in."""

    chunk: list[_Line]
    last: int  # the number of its last line
    entities: set[UUID]
    results: "asyncio.Task[list[Result | RefusedValuesError]]"


async def _take_stream(request: Request, service: Service, correlation_id: UUID | None) -> Response:
    """Read the whole body before the first byte of the answer, so that a client may send all before it reads.

    While the database writes a chunk, the next one is read and folded, unless they have an entity in common; chunks
    commit one by one.
    """
    counts: Counter[str] = Counter()
    committed = 0
    under_way: deque[_Taking] = deque()
    answer: IO[bytes] = tempfile.SpooledTemporaryFile(ANSWER_IN_MEMORY)  # noqa: SIM115 - closed by _contents, or below
    try:
        async for chunk, last in _chunks(request, correlation_id):
            events = [line.read for line in chunk if not isinstance(line.read, list)]
            entities = {event.entity_id for event in events}
            while under_way and (
                len(under_way) == CHUNKS_AT_ONCE or not all(entities.isdisjoint(each.entities) for each in under_way)
            ):
                committed = await _finish(service, under_way, counts, answer)
            before = under_way[-1].results if under_way else None
            taking = asyncio.create_task(_take_fitting(service, events, before))
            under_way.append(_Taking(chunk, last, entities, taking))
        while under_way:
            committed = await _finish(service, under_way, counts, answer)
        summary = StreamSummary(received=counts.total(), **counts)
        answer.write(encode({"summary": summary}) + b"\n")
    except BaseException as error:
        # What was begun is not left halfway.
        await asyncio.gather(*(each.results for each in under_way), return_exceptions=True)
        answer.close()
        if isinstance(error, UnavailableError):
            raise IngestInterruptedError(error, committed) from error
        raise
    return StreamingResponse(_contents(answer), media_type=NDJSON)


async def _take_fitting(
    service: Service, events: list[Event], after: asyncio.Task[object] | None
) -> list[Result | RefusedValuesError]:
    results = await service.projector.persist_fitting(events, after=after)
    _count(service, results)
    return results


async def _chunks(request: Request, correlation_id: UUID | None) -> AsyncIterator[tuple[list[_Line], int]]:
    """The lines that are not blank, in chunks for one transaction each, with the number of the last line of each."""
    chunk: list[_Line] = []
    size = number = 0
    async for some in lines(request, MAX_LINE):
        for line in some:
            number += 1
            if line is None:
                chunk.append(_Line(number, [Fault("#", f"the line is larger than {MAX_LINE:,} bytes")]))
            elif line and not line.isspace():
                chunk.append(_Line(number, _read(line, correlation_id)))
                size += len(line)
            if len(chunk) >= CHUNK_LINES or size >= CHUNK_BYTES:
                yield chunk, number
                chunk, size = [], 0
    yield chunk, number


def _read(line: bytes, correlation_id: UUID | None) -> Event | list[Fault]:
    try:
        event = read_event(line)
    except InvalidInputError as error:
        return error.faults
    except UnreadableError as error:
        return [Fault("#", str(error))]
    return event if correlation_id is None else _correlated([event], correlation_id)[0]


async def _finish(service: Service, under_way: deque[_Taking], counts: Counter[str], answer: IO[bytes]) -> int:
    """Wait for the oldest chunk, write what became of its lines, but for those that were applied, and return the
    number of its last one. A chunk that fails stays under way."""
    oldest = under_way[0]
    results = iter(await oldest.results)
    under_way.popleft()
    for line in oldest.chunk:
        if isinstance(line.read, list):
            service.metrics.events("invalid", 1)
            _write_invalid(line.number, line.read, counts, answer)
            continue
        result = next(results)
        if isinstance(result, RefusedValuesError):
            _write_invalid(line.number, [Fault("#", str(result))], counts, answer)
            continue
        counts[result.outcome] += 1
        if result.outcome is not Outcome.APPLIED:
            told = {
                name: value for name, value in msgspec.structs.asdict(result).items() if value is not msgspec.UNSET
            }
            answer.write(encode({"line": line.number, **told}) + b"\n")
    return oldest.last


def _write_invalid(number: int, faults: list[Fault], counts: Counter[str], answer: IO[bytes]) -> None:
    counts["invalid"] += 1
    answer.write(encode({"line": number, "outcome": "invalid", "errors": faults}) + b"\n")


async def _contents(answer: IO[bytes]) -> AsyncIterator[bytes]:
    """The file from its beginning, in pieces; closed, and so removed, at the end."""
    with answer:
        answer.seek(0)
        while piece := answer.read(64 * 1024):
            yield piece
