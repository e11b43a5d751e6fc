"""What one follower is answered: a page of lines and the token to go on with, or lines as they come."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from msgspec import Struct

from app.feed import audience, tokens
from app.feed.audience import Listener
from app.feed.feed import Feed, Start
from app.feed.items import Filter, Item, row_json
from app.feed.snapshot import Snapshot, SnapshotPage
from app.feed.tokens import Token
from app.store.changes import Place
from app.store.database import Database

BOOKMARK = 15.0  # seconds of silence in a stream at most: then its place is told
STREAM = 600.0  # seconds that a stream lasts, about: so that followers spread over the processes anew
STREAM_SPREAD = 0.1  # of it, up or down
STREAM_PAGE = 1000  # lines that are read at once for a stream


class Request(Struct, frozen=True, kw_only=True):
    """What a follower asks for."""

    after: Token | Start
    wanted: Filter
    snapshot: bool = False  # begin with one
    rows: bool = False  # each change with its row
    limit: int = STREAM_PAGE


class Line(Struct, frozen=True, gc=False):
    """One thing that a follower gets: `change`, `row` or `bookmark`, its JSON, the token to go on with after it."""

    kind: str
    body: bytes
    token: bytes


class Answer(Struct, frozen=True):
    """Lines, the token after them, and whether nothing more is known."""

    lines: Sequence[Line]
    next: Token
    caught_up: bool


WriteLines = Callable[[Sequence[Line]], bytes]  # how lines are written; the same function for all streams of a form


class Stream(audience.Sink, Protocol):
    """Where a stream is pushed to."""

    form: WriteLines

    async def write(self, lines: Sequence[Line]) -> bool:
        """Send these lines, when the client has read enough for it. False ends the stream."""


class Follow:
    """Answers followers. `database` is the feed's own."""

    def __init__(self, feed: Feed, database: Database) -> None:
        self._feed = feed
        self._snapshot = Snapshot(feed, database)

    async def answer(self, request: Request, *, wait: float) -> Answer:
        """The lines after a place, at once or within `wait` seconds.

        Raises TooManyFollowersError, ChangesGoneError, BadTokenError, and UnavailableError without the database.
        """
        with self._feed.following():
            return await self._answer(request, wait)

    async def stream(self, request: Request) -> AsyncGenerator[Sequence[Line], None]:
        """Lines as they come, and a bookmark in silence, for about STREAM seconds or until the service stops.

        It begins at once, with a bookmark where there is nothing yet.

        Raises what `answer` raises, also midway.
        """
        end = time.monotonic() + STREAM * (1 + STREAM_SPREAD * random.uniform(-1, 1))  # noqa: S311 - no secret
        wait = 0.0
        with self._feed.following():
            while True:
                answer = await self._answer(request, wait)
                yield answer.lines or [_bookmark(answer.next)]
                wait = min(BOOKMARK, end - time.monotonic())
                if self._feed.stopping or wait <= 0:
                    return
                request = _after(request, answer.next)

    async def push(self, request: Request, sink: Stream) -> None:
        """The same as `stream`, to a sink. While nothing comes for it, it costs no more than its place.

        Raises what `answer` raises, also midway.
        """
        until = asyncio.get_running_loop().time() + STREAM * (1 + STREAM_SPREAD * random.uniform(-1, 1))  # noqa: S311
        wait = 0.0
        with self._feed.following():
            while True:
                answer = await self._answer(request, wait)
                at = answer.next
                if not await sink.write(answer.lines or [_bookmark(at)]):
                    return
                listener = None if at.digest else self._rest(request, at.place, sink, until)
                if listener is not None:
                    try:
                        await listener.future
                    finally:
                        listener.end()
                    at = Token(listener.place)
                left = until - asyncio.get_running_loop().time()
                if self._feed.stopping or left <= 0:
                    if listener is not None:
                        await sink.write([_bookmark(at)])
                    return
                wait = min(BOOKMARK, left)
                request = _after(request, at)

    def _rest(self, request: Request, place: Place, sink: Stream, until: float) -> Listener | None:
        """Let a stream rest until something comes, if it is at the newest place."""
        resting = self._feed.resting_at(place)
        if resting is None:
            return None
        form, rows = sink.form, request.rows
        return resting.join(
            audience.GroupKey(request.wanted, (form, rows)),
            lambda items: form([_line(item, item.token, rows=rows) for item in items]),
            lambda at: form([_bookmark(Token(at))]),
            sink,
            place,
            silence=BOOKMARK,
            until=until,
        )

    async def _answer(self, request: Request, wait: float) -> Answer:
        after = request.after
        if request.snapshot and isinstance(after, Start):
            after = await self._snapshot.begin(request.wanted)
        if isinstance(after, Token) and after.digest:
            page = await self._snapshot.page(after, request.wanted, limit=request.limit)
            return Answer(_snapshot_lines(page, after, rows=request.rows), page.next, caught_up=False)
        place = after.place if isinstance(after, Token) else after
        found = await self._feed.page(place, request.wanted, limit=request.limit, wait=wait)
        lines = [_line(item, item.token, rows=request.rows) for item in found.items]
        return Answer(lines, Token(found.place), found.caught_up)


def _after(request: Request, place: Token) -> Request:
    return Request(after=place, wanted=request.wanted, snapshot=False, rows=request.rows, limit=request.limit)


def _bookmark(at: Token) -> Line:
    return Line("bookmark", b'{"kind":"bookmark"}', tokens.write(at).encode())


def _line(item: Item, token: bytes, *, rows: bool) -> Line:
    return Line("change", item.with_row() if rows else item.body, token)


def _snapshot_lines(page: SnapshotPage, at: Token, *, rows: bool) -> list[Line]:
    """Each change before the rows has its own place. Then a page counts as a whole: its last line has `next`."""
    lines = [
        _line(item, tokens.write(Token(item.place, at.key, at.digest)).encode(), rows=rows) for item in page.changes
    ]
    begin = tokens.write(page.begin).encode()
    lines += [Line("row", row_json(row), begin) for row in page.rows]
    lines += [_line(item, begin, rows=rows) for item in page.later]
    if page.rows or page.later:
        last = lines[-1]
        lines[-1] = Line(last.kind, last.body, tokens.write(page.next).encode())
    return lines
