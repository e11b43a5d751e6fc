"""The calls that come thousands of times a second, on a shorter way.

Uvicorn's messages and FastAPI's routing cost more processor time than everything else in `GET /v1/entities/{id}`,
`POST /v1/events`, and `GET` and `PUT /v1/workflows/{key}`. In their plain form there is nothing in them for either to
do: they are recognised as soon as their headers are complete, and what FastAPI's handlers are made of is called
here: the same question to the same lane, the same answer from what comes back. Every other form, and every other
call, goes its usual way.

A task for each request would cost as much as reading it, so entities and events have none: the answer is written
when the lane's future is done. What is used here of uvicorn's class is not documented beyond its source, so
pyproject.toml names the versions that were looked at, and tests/api/test_hot.py compares what both ways answer.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast
from uuid import UUID

import msgspec
from fastapi import FastAPI, Response
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api import context, entities, events, workflows
from app.api.bodies import JSON
from app.api.problems import answer_to
from app.api.service import Service
from app.domain.events import DEFAULT_DOMAIN
from app.errors import InvalidInputError

ENTITY = b"/v1/entities/"
ENTITY_LENGTH = len(ENTITY) + 36  # with a UUID in its usual form
EVENTS = events.PATH.encode()
WORKFLOW = re.compile(rb"/v1/workflows/([A-Za-z0-9._~:@/-]{1,255})")  # with a key that needs no decoding
MAX_BODY = 64 * 1024  # bytes; a longer body goes the usual way, which reads no faster than it works it off
PLAIN = JSON.encode()
NOT_PLAIN = {
    b"transfer-encoding",
    b"expect",
    b"upgrade",
}  # headers that send a request the usual way, as do those of CloudEvents

# A question that is under way, and how its answer is put.
Asked = tuple["asyncio.Future[Any]", Callable[[Any], Response]]
Ask = Callable[[Service, context.Headers, bytes, UUID | None], Asked]


class HotProtocol(HttpToolsProtocol):
    """Uvicorn's protocol, with a shorter way for these calls."""

    cycle: RequestResponseCycle | HotCycle  # type: ignore[assignment]  # what uvicorn reads of one, the other has

    # The headers of every answer, as they were last put together: uvicorn makes them anew each second, for the date.
    _defaults: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")

    service: Service

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client is there."""
        super().connection_made(transport)
        self.service = cast("FastAPI", self.app).state.service
        self.max_body = min(MAX_BODY, self.service.settings.max_body)
        self.nobody_waits = asyncio.Event()  # uvicorn sets it, for a task that reads the body

    def on_message_begin(self) -> None:
        """A request begins. What uvicorn prepares here is prepared when it turns out to be needed."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """The headers are there: choose the way."""
        chosen = self._choose()
        if chosen is None:
            url, headers, expects = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()
            self.url, self.expect_100_continue = url, expects
            self.headers += headers  # the list that is in the scope now
            super().on_headers_complete()
            return
        before, self.cycle = self.cycle, HotCycle(self, *chosen)
        if getattr(before, "response_complete", True):  # there is none before the first
            self.cycle.go_on(turn=True)
        else:  # a client that sends on before it has read its answer; uvicorn has this one wait for that
            self.flow.pause_reading()
            self.pipeline.appendleft((cast("RequestResponseCycle", self.cycle), self.app))

    def on_message_complete(self) -> None:
        """The body is there as well."""
        super().on_message_complete()
        if isinstance(self.cycle, HotCycle):
            self.cycle.go_on()

    def _start_asgi_task(self, cycle: RequestResponseCycle | HotCycle, app: ASGI3Application) -> None:
        """A request's turn has come."""
        if not isinstance(cycle, HotCycle):
            super()._start_asgi_task(cycle, app)
            return
        cycle.go_on(turn=True)

    def on_response_complete(self) -> None:
        """An answer is written. Uvicorn reads on after each; while requests wait, their number would grow by that."""
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, perhaps in the middle of its request."""
        super().connection_lost(exc)
        if isinstance(self.cycle, HotCycle):
            self.cycle.break_off()

    def _choose(self) -> tuple[str, str, Ask] | None:
        """The request's method, its route and what answers it; None when it has to go the usual way."""
        parser, url = self.parser, self.url
        if self.root_path or parser.get_http_version() != "1.1":
            return None
        method = parser.get_method()
        length = b""
        for name, value in self.headers:
            if name == b"content-length":
                length = value
            elif name in NOT_PLAIN or (name == b"content-type" and value != PLAIN) or name.startswith(b"ce-"):
                return None
        if method == b"GET" and len(url) == ENTITY_LENGTH and url.startswith(ENTITY) and not length:
            try:
                entity_id = msgspec.convert(url[len(ENTITY) :].decode("ascii"), UUID)
            except msgspec.ValidationError:
                return None
            return "GET", entities.PATH, partial(_ask_for_entity, entity_id)
        if method == b"POST" and url == EVENTS and length and int(length) <= self.max_body:
            return "POST", events.PATH, _ask_for_outcome
        if (match := WORKFLOW.fullmatch(url)) is not None:
            if method == b"GET" and not length:
                return "GET", workflows.ROUTE, partial(_ask_for_workflow, match[1].decode())
            if method == b"PUT" and length and int(length) <= self.max_body:
                return "PUT", workflows.ROUTE, partial(_ask_to_commit, match[1].decode())
        return None

    def rendered_defaults(self) -> bytes:
        """What uvicorn adds to every answer."""
        headers = self.server_state.default_headers
        if HotProtocol._defaults[0] is not headers:
            HotProtocol._defaults = (headers, b"".join(b"%s: %s\r\n" % header for header in headers))
        return HotProtocol._defaults[1]


class HotCycle:
    """One request of these calls, and its answer. The fields without an underscore are those uvicorn works with."""

    message_event: asyncio.Event

    def __init__(self, protocol: HotProtocol, method: str, route: str, ask: Ask) -> None:
        self.message_event = protocol.nobody_waits
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = protocol.parser.should_keep_alive()
        self.body = b""
        self.more_body = True
        self._has_its_turn = False
        self._protocol = protocol
        self._headers = protocol.headers
        self._path = protocol.url.decode("ascii")
        self._method = method
        self._route = route
        self._ask = ask
        self._render: Callable[[Any], Response]
        self._id = ""
        self._began = 0.0

    def go_on(self, *, turn: bool = False) -> None:
        """Ask, when the body is there and it is this request's turn."""
        self._has_its_turn = self._has_its_turn or turn
        if self.more_body or not self._has_its_turn:
            return
        self._began = time.perf_counter()
        before = context.correlation_id.get()  # of the request in whose task this one's turn comes, or of none
        future: asyncio.Future[Any]
        try:
            future, self._render = self._ask(self._protocol.service, self._headers, self.body, self._begin())
        except Exception as error:  # noqa: BLE001 - it is answered, as FastAPI's handlers would answer it
            # No sooner than any other: uvicorn relies on no answer being complete while a request is being read.
            future = self._protocol.loop.create_future()
            future.set_exception(error)
        future.add_done_callback(self._on_done)
        context.correlation_id.set(before)

    def break_off(self) -> None:
        """The client is gone. What was asked goes on; nobody hears of it."""
        if self.more_body and self._has_its_turn:
            self._began = time.perf_counter()
            before = context.correlation_id.get()
            with suppress(InvalidInputError):
                self._begin()
            self._account(context.GONE)
            context.correlation_id.set(before)

    def _begin(self) -> UUID | None:
        """Set the correlation id, and return the client's. Raises InvalidInputError when that is no UUID."""
        given = None
        try:
            given = context.given_correlation_id(self._headers)
        except InvalidInputError:
            self._route = context.UNKNOWN  # it is refused before there is a route
            raise
        finally:
            self._id = context.begin(given)
        return given

    def _on_done(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():  # by a stop that nobody waits for any longer
            self._protocol.transport.close()
            self._account(0)
            return
        try:
            result = future.result()
            answer = self._render(result)
        except Exception as error:  # noqa: BLE001 - as above
            answer = self._problem(error)
        if self._protocol.flow.write_paused and not self.disconnected:
            tasks = self._protocol.tasks  # which a stop waits for
            task = asyncio.create_task(self._write_later(answer))
            task.add_done_callback(tasks.discard)
            tasks.add(task)
        else:
            self._write(answer)

    async def _write_later(self, answer: Response) -> None:
        """The client does not read. Nothing more is read from it before it does."""
        await self._protocol.flow.drain()
        self._write(answer)

    def _write(self, answer: Response) -> None:
        """All of the answer at once. Of a connection that broke, uvicorn tells the last of its requests alone."""
        protocol = self._protocol
        if not (self.disconnected or protocol.transport.is_closing()):
            head = [STATUS_LINE[answer.status_code], protocol.rendered_defaults()]
            head += [b"%s: %s\r\n" % header for header in answer.raw_headers]
            closing = b"" if self.keep_alive else b"connection: close\r\n"
            head.append(b"%s: %s\r\n%s\r\n" % (context.HEADER, self._id.encode(), closing))
            head.append(bytes(answer.body))
            protocol.transport.write(b"".join(head))
            self.response_complete = True
            if not self.keep_alive:
                protocol.transport.close()
            protocol.on_response_complete()
        self._account(answer.status_code)

    def _problem(self, error: Exception) -> Response:
        """The answer to an error, made from what FastAPI would know of the request."""
        scope = {"type": "http", "method": self._method, "path": self._path, "query_string": b""}
        return answer_to(scope | {"headers": self._headers}, error)

    def _account(self, status: int) -> None:
        context.account(self._protocol.service.metrics, self._method, self._path, self._route, status, self._began)


def _ask_for_entity(
    entity_id: UUID, service: Service, headers: context.Headers, _body: bytes, _given: UUID | None
) -> Asked:
    render = partial(entities.render_entity, entity_id, DEFAULT_DOMAIN, headers)
    return service.reader.ask(entity_id, DEFAULT_DOMAIN), render


def _ask_for_outcome(service: Service, _headers: context.Headers, body: bytes, given: UUID | None) -> Asked:
    if events.is_array(body):
        return asyncio.ensure_future(events.answer_array(service, body, given)), _as_it_is
    return service.writer.ask(events.read_one(body, given)), partial(events.render_one, service)


def _ask_for_workflow(
    key: str, service: Service, headers: context.Headers, _body: bytes, _given: UUID | None
) -> Asked:
    return asyncio.ensure_future(workflows.answer_get(service, key, headers)), _as_it_is


def _ask_to_commit(key: str, service: Service, headers: context.Headers, body: bytes, _given: UUID | None) -> Asked:
    conditions = workflows.required(headers)
    return asyncio.ensure_future(workflows.answer_put(service, key, conditions, body)), _as_it_is


def _as_it_is(answer: Response) -> Response:
    return answer
