"""The calls that come thousands of times a second, answered without FastAPI.

FastAPI's routing costs more processor time than everything else in `GET /v1/entities/{id}`, `POST /v1/events`, and
`GET` and `PUT /v1/workflows/{key}`. And when a thousand wait for one deadline (`GET /v1/overdue/…`), the last of them
would be told late. In their plain form (no escapes, no query but that of a wait, a JSON body of known length up to
64 KiB) FastAPI has nothing to do for them. This module recognises them by their head, and answers with the parts that
FastAPI's handlers are made of: the same question to the same lane, and the same rendering of the result. Every other
form, and every other call, goes to FastAPI.

A task for each request would cost as much as reading it, so entities and events have none: the answer is made when
the lane's future is done.

HotCalls is an ASGI application around another one, so it works on any ASGI server and for calls within the process.
A server that knows it (`app/runtime/protocol.py`) takes `find` and `refuse`, and saves the ASGI messages as well.
"""

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import Response
from msgspec import Struct
from msgspec.structs import replace

from app.access import rights
from app.access.principals import (
    ANYONE,
    ENTITIES_READ,
    Principal,
)
from app.api import context, direct_kinds, problems
from app.api.context import App, Headers, Receive, Scope, Send
from app.api.direct_kinds import Kind
from app.api.edge import Edge
from app.api.entry import is_from_beyond
from app.api.needs import permit
from app.api.plain import PlainFields, read_plain
from app.api.schemas import encode
from app.api.service import Service
from app.errors import UnavailableError
from app.runtime.framing import FieldList
from app.runtime.metrics import Metrics
from app.tracing.recorder import recorded
from app.wire.problems import Problem

PATIENCE = 1.0  # seconds that a body may take until its sender is checked again
MAX_BODY = 64 * 1024  # bytes; a longer body is FastAPI's, which reads no faster than it works off
CLOUDEVENT = b"ce-"  # how their names begin
FORWARDED = (b"forwarded", b"x-forwarded-")  # how those of a proxy begin, which some services refuse

OnAnswer = Callable[[int, Headers, bytes, bytes], None]  # status, headers, more headers as lines, body


class HotCalls:
    """The hot calls of the application that it is put around. Until `service` is set there are none."""

    def __init__(self, app: App, metrics: Metrics, edge: Edge) -> None:
        self.service: Service | None = None
        self._app = app
        self._edge = edge
        self._metrics = metrics
        self._call = HotCall
        self._known: Service | None = None  # the service whose bound this is
        self._max_body = 0
        self._prefixes: tuple[bytes, ...] = (CLOUDEVENT,)  # of the headers of requests that are FastAPI's

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a hot call; hand everything else on."""
        call = None
        plain = scope["type"] == "http" and not scope["query_string"] and not scope.get("root_path")
        if plain and not (self._is_open_here() and is_from_beyond(scope)):
            target, client = scope.get("raw_path") or scope["path"].encode(), scope.get("client")
            call = self.find(scope["method"], target, scope["headers"], str(client[0]) if client else context.NO_PEER)
        if call is None or call.waits:  # who waits watches its client, by ASGI's messages
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                call.leave()
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        answered = asyncio.get_running_loop().create_future()
        call.begin(body, lambda *answer: None if answered.done() else answered.set_result(answer))
        status, headers, lines, content = await answered
        also = [line.partition(b": ")[::2] for line in lines.split(b"\r\n") if line]
        await send({"type": "http.response.start", "status": status, "headers": [*headers, *also]})
        await send({"type": "http.response.body", "body": content})

    def _is_open_here(self) -> bool:
        return self.service is not None and self.service.access.guard.refuses_proxies

    def find(self, method: str, target: bytes, headers: Headers, peer: str = context.NO_PEER) -> "HotCall | None":
        """The call that a request's head makes; None when it is not one of these in its plain form.

        `peer` is the address that it comes from.
        """
        service = self.service
        if service is None:
            return None
        if service is not self._known:
            self._known, self._max_body = service, min(MAX_BODY, service.settings.max_body)
            refused = FORWARDED if service.access.guard.refuses_proxies else ()
            self._prefixes = (CLOUDEVENT, *refused)
            self._call = HotCall if service.metrics.tracer is None else TracedHotCall
        fields = self._fields_of(headers)
        if fields is None:
            return None
        found = direct_kinds.question(method, target, fields, self._max_body)
        if found is None:
            return None
        guard, held = service.access.guard, fields.held
        if held is not None and guard.still_knows(held):
            principal = held.principal
        else:
            known = guard.known(fields.authorization)
            if not isinstance(known, Principal):
                return None  # a token that has to be verified first, or a refusal: these are for the usual way
            principal = known
            fields.held = guard.key_in(fields.authorization)
        return self._call(service, self._edge.lacking_plain, *found, principal, headers, fields, target, peer)

    def _fields_of(self, headers: Headers) -> PlainFields | None:
        """What the fields of a plain request say; None when they are not plain.

        A server that reads the same fields again gives the same list, with a note: what was found out about it. With
        other fields it gives the note of its connection's list before: their key is often the same.
        """
        if not isinstance(headers, FieldList):
            return read_plain(headers, self._prefixes, self._edge.hosts)
        note = headers.note
        if isinstance(note, _Note) and note.of is self:
            return note.fields
        fields = read_plain(headers, self._prefixes, self._edge.hosts)
        if fields is not None and isinstance(headers.before, _Note):
            fields.inherit(headers.before.fields)
        headers.note, headers.before = _Note(self, fields), None
        return fields

    def refuse(
        self, status: int, detail: str, headers: Headers, *, counted: bool, peer: str
    ) -> tuple[int, Headers, bytes]:
        """The answer to a request that a server does not carry out, for reasons of its own: a problem, with an id.

        `counted`: it is logged and in the metrics, as a request that nobody else accounts for.
        """
        before = context.correlation_id.get()
        its_id = context.begin(headers)
        problem = Problem(problems.NO_TYPE, problems.title(HTTPStatus(status)), status, detail, "")
        body = encode(problem)
        if counted:
            context.account(self._metrics, "-", "-", context.UNKNOWN, status, time.perf_counter(), peer=peer)
        context.correlation_id.set(before)
        answered = [(b"content-length", b"%d" % len(body)), (b"content-type", problems.MEDIA_TYPE.encode())]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            answered.append((b"retry-after", b"1"))
        return status, [*answered, *self._edge.lacking(headers, []), (context.HEADER, its_id.encode())], body


class _Note(Struct, frozen=True):
    """What `of` has found out about a list of fields."""

    of: HotCalls
    fields: PlainFields | None


class HotCall:
    """One request of these calls. Either `begin` or `leave` is called, once."""

    __slots__ = (
        "_began",
        "_fields",
        "_found",
        "_future",
        "_id",
        "_is_gone",
        "_kind",
        "_lacking",
        "_on_answer",
        "_peer",
        "_target",
        "asked_for",
        "headers",
        "principal",
        "service",
    )

    def __init__(
        self,
        service: Service,
        lacking: Callable[[Headers], bytes],
        kind: Kind,
        asked_for: Any,
        principal: Principal,
        headers: Headers,
        fields: PlainFields,
        target: bytes,
        peer: str,
    ) -> None:
        self.service = service
        self.principal = principal
        self.headers = headers
        self.asked_for = asked_for  # the entity's id, or the workflow's key
        self._lacking = lacking
        self._kind = kind
        self._fields = fields
        self._target = target
        self._peer = peer
        self._on_answer: OnAnswer
        self._future: asyncio.Future[Any]
        self._is_gone = False
        self._id = ""
        self._found = time.perf_counter()
        self._began = 0.0

    @property
    def waits(self) -> bool:
        """Whether the answer may take long."""
        return self._kind.waits

    def begin(self, body: bytes, answer: OnAnswer) -> None:
        """Ask for the answer. `answer` is called once, and later than this returns."""
        self._began = time.perf_counter()
        self._on_answer = answer
        before = context.correlation_id.get()  # of the request in whose task this one begins, or of none
        self._id = context.begin(self.headers)
        try:
            if self._began - self._found > PATIENCE and self.principal is not ANYONE:
                self._check_again()
            future = self._kind.ask(self, body)
        except Exception as error:  # noqa: BLE001 - it is answered, as FastAPI's handlers would answer it
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
        self._future = future
        future.add_done_callback(self._on_done)
        context.correlation_id.set(before)

    def abandon(self) -> None:
        """The client is gone before its answer, or sends no more: a wait ends."""
        if self._kind.waits and not self._future.done():
            self._is_gone = True
            self._future.cancel()

    def _check_again(self) -> None:
        """Check the caller once more: its key may have been revoked meanwhile. Raises AuthError."""
        found = self.service.access.guard.known(self._fields.authorization)
        if not isinstance(found, Principal):
            raise found or UnavailableError("the token has to be verified again: send the request once more")
        self.principal = found

    def leave(self) -> None:
        """The client is gone before its request was complete."""
        self._began = time.perf_counter()
        before = context.correlation_id.get()
        self._id = context.begin(self.headers)
        self._account(context.GONE)
        context.correlation_id.set(before)

    def _on_done(self, future: "asyncio.Future[Any]") -> None:
        try:
            found = future.result()
            if self._kind.waits and self.principal is not ANYONE:
                self._check_again()
                permit(rights.domain(self.principal, ENTITIES_READ, self.asked_for.domain))
            answer = self._kind.render(self, found)
        except asyncio.CancelledError:  # by a stop that waits no longer, or as nobody waits any more
            gone = "the client has disconnected" if self._is_gone else "the service is stopping"
            answer = self._problem(UnavailableError(gone))
        except Exception as error:  # noqa: BLE001 - as above
            answer = self._problem(error)
        lines = b"%b%b: %b\r\n" % (self._lacking(answer.raw_headers), context.HEADER, self._id.encode())
        on_answer = self._on_answer
        del self._on_answer  # it leads to who holds this call, and such a ring is left to the garbage collector
        on_answer(answer.status_code, answer.raw_headers, lines, bytes(answer.body))
        self._account(answer.status_code)

    def _problem(self, error: Exception) -> Response:
        """The answer to an error, made from what FastAPI would know of the request."""
        path, _, query = self._target.partition(b"?")
        scope = {"type": "http", "method": self._kind.method, "path": path.decode("ascii"), "query_string": query}
        return problems.answer_to(scope | {"headers": self.headers}, error)

    def _account(self, status: int) -> None:
        kind, path = self._kind, self._target.partition(b"?")[0].decode("ascii")
        name, peer = self.principal.name, self._peer
        metrics, trace = self.service.metrics, self._fields.traceparent
        context.account(
            metrics, kind.method, path, kind.route, status, self._began, name, peer, trace, waits=kind.waits
        )


class TracedHotCall(HotCall):
    """The same where traces are wanted: some are recorded. So tracing that is off costs a call nothing."""

    __slots__ = ("_trace",)

    def begin(self, body: bytes, answer: OnAnswer) -> None:
        """Ask for the answer, and record what follows if this call is sampled."""
        tracer = self.service.metrics.tracer
        self._trace = None if tracer is None else tracer.begin(self._fields.traceparent)
        if self._trace is None:
            super().begin(body, answer)
        else:
            with recorded(self._trace):
                super().begin(body, answer)

    def leave(self) -> None:
        """The client is gone before its request was complete."""
        self._trace = None
        super().leave()

    def _account(self, status: int) -> None:
        if (trace := self._trace) is not None:
            path = self._target.partition(b"?")[0].decode("ascii")
            context.served(trace, self._kind.method, path, self._kind.route, status, self._began)
            self._fields = replace(self._fields, traceparent=trace.traceparent.encode())
        super()._account(status)
