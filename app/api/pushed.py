"""Streams of changes that are pushed to their connections: their forms, and the answer that rests until one comes."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fastapi import Request, Response
from msgspec import Struct
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from app.access import rights
from app.access.principals import ANYONE, ENTITIES_READ, Principal
from app.access.refusals import AuthError
from app.api import problems
from app.api.needs import caller_of, check_again, permit
from app.api.schemas import encode
from app.api.service import service_of
from app.errors import ChangesGoneError, UnavailableError
from app.feed import follow
from app.feed.follow import Line


class Form(Struct, frozen=True):
    """How lines are written, and the problem after which a stream ends."""

    write: Callable[[Sequence[Line]], bytes]
    reset: Callable[[bytes], bytes]


def write_ndjson(some: Sequence[Line]) -> bytes:
    """A line each, with the token of its own place."""
    return b"".join([b'%b,"next":"%b"}\n' % (line.body[:-1], line.token) for line in some])


def reset_line(problem: bytes) -> bytes:
    """The line of a lost place."""
    return b'{"kind":"reset",%b\n' % problem[1:]


def write_events(some: Sequence[Line]) -> bytes:
    """Server-sent events; the id of each is the token of its own place."""
    return b"".join(
        [b"event: %b\nid: %b\ndata: %b\n\n" % (line.kind.encode(), line.token, line.body) for line in some]
    )


def reset_event(problem: bytes) -> bytes:
    """The event of a lost place."""
    return b"event: reset\ndata: %b\n\n" % problem


class Door(Protocol):
    """The way past ASGI to the connection of an answer that has begun (`pqs.push`)."""

    is_gone: bool
    on_gone: Callable[[], object] | None

    def push(self, body: bytes) -> bool:
        """Send this now; False where the client has to read first, or is gone."""

    async def drained(self) -> None:
        """Wait until the client has read enough, or is gone."""


class Pushed(Response):
    """A stream whose pieces go to the connection without a task switch, as long as its caller may read them.

    Its task rests meanwhile. Middleware sees the beginning and the end of the answer.
    """

    def __init__(
        self,
        request: Request,
        door: Door,
        asked: follow.Request,
        form: Form,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["content-length"]
        self._request = request
        self._door = door
        self._asked = asked
        self._reset = form.reset
        self.form = form.write
        self._send: Send
        self._has_begun = False
        headers_given = request.scope["headers"]
        self._authorization = next((value for name, value in headers_given if name == b"authorization"), None)
        self._guard = service_of(request).access.guard
        self._domain = asked.wanted.domain

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Stream. What is wrong with the token is raised while there is a status to say it with."""
        self._send = send
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        self._door.on_gone = task.cancel
        try:
            await service_of(self._request).follow.push(self._asked, self)
        except asyncio.CancelledError:
            if not self._door.is_gone or task.uncancel():
                raise
        except ChangesGoneError as error:
            if not self._has_begun:
                raise
            self._door.push(self._reset(encode(problems.gone(self._request, error))))
        except (AuthError, UnavailableError):  # whoever follows comes again, with the last token
            if not self._has_begun:
                raise
        finally:
            self._door.on_gone = None
        if self._has_begun:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    # --- Of a follow.Stream

    async def write(self, lines: Sequence[Line]) -> bool:
        """Send lines when the client has read enough for it. Raises AuthError where it may not read any more."""
        body = self.form(lines)
        if not self._has_begun:
            await self._send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            self._has_begun = True
        else:
            permit(rights.domain(await check_again(self._request), ENTITIES_READ, self._domain))
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        await self._door.drained()
        return not self._door.is_gone

    def push(self, data: bytes) -> bool:
        """Send this at once, where that is possible and the caller may still read it without anybody being asked."""
        if caller_of(self._request) is not ANYONE:
            known = self._guard.known(self._authorization)
            if not isinstance(known, Principal) or rights.domain(known, ENTITIES_READ, self._domain) is not None:
                return False
        return self._door.push(data)
