"""NDJSON in: a stream of lines becomes chunks of events, and each chunk a transaction.

While the database writes a chunk, the next one is read and folded, unless both have events of one entity. Chunks
commit one by one, in the order of arrival.
"""

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Protocol
from uuid import UUID

from msgspec import Struct

from app.access.refusals import ForbiddenError
from app.domain.events import Event
from app.domain.results import Result
from app.errors import (
    Fault,
    IngestInterruptedError,
    InvalidInputError,
    RefusedValuesError,
    TooManyFaultsError,
    UnavailableError,
    UnreadableError,
)
from app.projection.clock import DatabaseClock
from app.projection.projector import Projector
from app.wire.events import CHUNK_LINES, MAX_LINE, correlated, read_event
from app.wire.values import without_bom

CHUNK_BYTES = 4 * 1024 * 1024  # bytes of lines that are held for one transaction
MAX_BLANK = 100_000  # blank lines of one stream, beside one for each other line
CHUNKS_AT_ONCE = 2  # chunks of one stream under way: the database works on one while the other is folded

Outcomes = list[Result | RefusedValuesError]
Refuse = Callable[[Event], ForbiddenError | None]
UNFIT = (list, ForbiddenError)  # what a line is that holds no event to be applied


class Report(Protocol):
    """Hears what became of a stream."""

    @abstractmethod
    def committed(self, outcomes: Outcomes) -> None:
        """Called after each commit with the outcomes of its events, also when the stream breaks off later."""

    @abstractmethod
    def line(self, number: int, outcome: Result | RefusedValuesError | ForbiddenError | list[Fault]) -> None:
        """Called for each line that is not blank, in the order of the input, after the commit of its chunk.

        `number` counts all lines from 1. Faults are those of a line that holds no event; a ForbiddenError says that
        its sender may not send it.
        """

    @abstractmethod
    def full(self) -> str | None:
        """Why it can hear no more, or None. Asked between chunks; the rest of the stream is then not read."""

    @abstractmethod
    def taken(self, size: int) -> None:
        """Called after `line`: so many more bytes of the stream are worked off, and held no longer."""

    @abstractmethod
    def check(self) -> None:
        """Called before each chunk is begun; whatever it raises ends the stream, such as a sender that is gone."""


class _Line(Struct, frozen=True):
    """One line of the input: its event, or its faults, or why its event is not applied."""

    number: int
    read: Event | list[Fault] | ForbiddenError


class _Chunk(Struct, frozen=True):
    """A chunk that the database is taking in."""

    lines: list[_Line]
    last: int  # the number of its last line
    size: int  # bytes of the stream that are done with when this chunk is
    entities: set[bytes]  # their ids
    outcomes: "asyncio.Task[Outcomes]"


async def take_lines(
    projector: Projector,
    pieces: AsyncIterable[bytes],
    report: Report,
    *,
    clock: DatabaseClock,
    correlation_id: UUID | None = None,
    refuse: Refuse = lambda _event: None,
) -> None:
    """Take in the events of a stream to its end, in flat memory.

    Events that `refuse` has a reason against, and those that are ahead of `clock`, are left out. `correlation_id` is
    kept with the events that have none of their own. Raises IngestInterruptedError when the database fails midway, or
    `pieces` with an UnavailableError; TooManyFaultsError when the report is full, or too many lines are blank; and
    whatever else `pieces` and `report.check()` raise. Chunks that were begun are finished before that.
    """
    committed = 0  # the number of the last line of the last chunk that is reported
    under_way: deque[_Chunk] = deque()

    async def finish() -> int:
        """Report the oldest chunk. One that fails stays under way."""
        _tell(under_way[0], await under_way[0].outcomes, report)
        return under_way.popleft().last

    filled = read = 0  # lines that are not blank, and all lines

    def full() -> str | None:
        if read - filled > MAX_BLANK + filled:
            return f"more than {MAX_BLANK:,} lines are blank"
        return report.full()

    try:
        async for lines, last, size in _chunks(_without_ends(pieces, report), clock, correlation_id, refuse):
            await asyncio.sleep(0)  # a piece may hold many chunks: others have their turn
            report.check()
            filled, read = filled + len(lines), last
            events = [line.read for line in lines if not isinstance(line.read, UNFIT)]
            entities = {event.entity_id.bytes for event in events}
            while under_way and (
                len(under_way) == CHUNKS_AT_ONCE or not all(entities.isdisjoint(each.entities) for each in under_way)
            ):
                committed = await finish()
            if full() is not None:
                break
            before = under_way[-1].outcomes if under_way else None
            taking = asyncio.create_task(_take(projector, events, before, report))
            under_way.append(_Chunk(lines, last, size, entities, taking))
        while under_way:
            committed = await finish()
    except BaseException as error:
        # What was begun is not left halfway.
        await asyncio.gather(*(each.outcomes for each in under_way), return_exceptions=True)
        if isinstance(error, UnavailableError):
            raise IngestInterruptedError(error, committed) from error
        raise
    if (reason := full()) is not None:
        raise TooManyFaultsError(reason, committed)


async def split_lines(pieces: AsyncIterable[bytes], limit: int) -> AsyncIterator[list[bytes | None]]:
    """The lines without their ends, as many at a time as one piece completes; None for a line over `limit` bytes.

    No more than `limit` bytes and one piece are held. When `pieces` raises, the line that was not complete is lost.
    """
    held = b""
    too_long = False
    async for piece in pieces:
        first, *others = piece.split(b"\n")
        too_long = too_long or len(held) + len(first) > limit
        held = b"" if too_long else held + first
        if not others:
            continue
        *whole, rest = others
        yield [None if too_long else held, *(line if len(line) <= limit else None for line in whole)]
        too_long = len(rest) > limit
        held = b"" if too_long else rest
    if too_long or held:
        yield [None if too_long else held]


async def _without_ends(pieces: AsyncIterable[bytes], report: Report) -> AsyncIterator[bytes]:
    """The pieces. Those inside of a line that is too long already are left out: nobody holds them."""
    run = 0  # bytes since the last line ended
    async for piece in pieces:
        if b"\n" in piece:
            run = len(piece) - piece.rfind(b"\n") - 1
            yield piece
        elif run > MAX_LINE:
            report.taken(len(piece))
        else:
            run += len(piece)
            yield piece


async def _chunks(
    pieces: AsyncIterable[bytes], clock: DatabaseClock, correlation_id: UUID | None, refuse: Refuse
) -> AsyncIterator[tuple[list[_Line], int, int]]:
    """The lines that are not blank, in chunks for one transaction each, with the number of the last line of each.

    Blank lines count towards a chunk, which may hold nothing else. The third value are the bytes of the pieces that
    are used up by this chunk, and were not by the one before.
    """
    pulled = before = told = 0  # bytes: of all pieces, of those before the present one, and of those told of

    async def counted() -> AsyncIterator[bytes]:
        nonlocal pulled, before
        async for piece in pieces:
            before = pulled
            pulled += len(piece)
            yield piece

    chunk: list[_Line] = []
    begun = size = number = 0  # the first line of the chunk, and the bytes of its lines
    async for some in split_lines(counted(), MAX_LINE):
        for line in some:
            number += 1
            size += 0 if line is None else len(line) + 1
            if number == 1 and line is not None:
                line = without_bom(line)  # noqa: PLW2901 - it is the same line
            if line is None:
                chunk.append(_Line(number, [Fault("#", f"the line is larger than {MAX_LINE:,} bytes")]))
            elif line and not line.isspace():
                read = _read(line, correlation_id, refuse)
                if not isinstance(read, UNFIT) and clock.may_be_ahead(read):
                    fault = await clock.fault(read)
                    read = read if fault is None else [fault]
                chunk.append(_Line(number, read))
            if number - begun >= CHUNK_LINES or size >= CHUNK_BYTES:
                yield chunk, number, before - told
                chunk, size, begun, told = [], 0, number, before
    yield chunk, number, pulled - told


def _read(line: bytes, correlation_id: UUID | None, refuse: Refuse) -> Event | list[Fault] | ForbiddenError:
    try:
        event = correlated(read_event(line), correlation_id)
    except InvalidInputError as error:
        return error.faults
    except UnreadableError as error:
        return [Fault("#", str(error))]
    return refuse(event) or event


async def _take(
    projector: Projector, events: Sequence[Event], after: "asyncio.Task[Outcomes] | None", report: Report
) -> Outcomes:
    outcomes = await projector.persist_fitting(events, after=after) if events else []
    report.committed(outcomes)
    return outcomes


def _tell(chunk: _Chunk, outcomes: Outcomes, report: Report) -> None:
    of_events = iter(outcomes)
    for line in chunk.lines:
        report.line(line.number, line.read if isinstance(line.read, UNFIT) else next(of_events))
    report.taken(chunk.size)
