"""The calls that come thousands of times a second, answered without FastAPI.

FastAPI's routing costs more processor time than everything else in `GET /v1/entities/{id}`, `POST /v1/events`, and
`GET` and `PUT /v1/workflows/{key}`. In their plain form (no query, no escapes, a JSON body of known length up to
64 KiB) FastAPI has nothing to do for them. This module recognises them by their head, and answers with the parts that
FastAPI's handlers are made of: the same question to the same lane, and the same rendering of the result. Every other
form, and every other call, goes to FastAPI.

A task for each request would cost as much as reading it, so entities and events have none: the answer is made when
the lane's future is done.

HotCalls is an ASGI application around another one, so it works on any ASGI server and for calls within the process.
A server that knows it (`app/runtime/protocol.py`) takes `find` and `refuse`, and saves the ASGI messages as well.
"""

import asyncio
import re
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any
from uuid import UUID

import msgspec
from fastapi import Response

from app.access import rights
from app.access.principals import Principal
from app.access.principals import Scope as Right
from app.answers import Problem
from app.api import context, entities, events, problems, workflows
from app.api.bodies import JSON
from app.api.context import App, Headers, Receive, Scope, Send
from app.api.correlation import stored
from app.api.edge import Edge
from app.api.hosts import Hosts
from app.api.needs import admit, permit
from app.api.schemas import encode
from app.api.service import Service
from app.domain.events import DEFAULT_DOMAIN
from app.errors import UnavailableError
from app.runtime.metrics import Metrics

ENTITY = b"/v1/entities/"
ENTITY_LENGTH = len(ENTITY) + 36  # with a UUID in its usual form
EVENTS = events.PATH.encode()
WORKFLOW = re.compile(rb"/v1/workflows/([A-Za-z0-9._~:@/-]{1,255})")  # with a key that needs no decoding
MAX_BODY = 64 * 1024  # bytes; a longer body is FastAPI's, which reads no faster than it works off
PLAIN = JSON.encode()
# A foreign page, a coded body and a preference are FastAPI's as well.
NOT_PLAIN = {
    b"transfer-encoding",
    b"expect",
    b"origin",
    b"content-encoding",
    b"prefer",
}  # headers of requests that are FastAPI's, as are those of CloudEvents
CLOUDEVENT = b"ce-"  # how their names begin
FORWARDED = (b"forwarded", b"x-forwarded-")  # how those of a proxy begin, which some services refuse

# A question that is under way, and the rendering of its answer.
Asked = tuple["asyncio.Future[Any]", Callable[[Any], Response]]
Ask = Callable[[Service, Principal, Headers, bytes], Asked]
OnAnswer = Callable[[int, Headers, bytes], None]


class HotCalls:
    """The hot calls of the application that it is put around. Until `service` is set there are none."""

    def __init__(self, app: App, metrics: Metrics, edge: Edge) -> None:
        self.service: Service | None = None
        self._app = app
        self._edge = edge
        self._metrics = metrics
        self._known: Service | None = None  # the service whose bound this is
        self._max_body = 0
        self._prefixes: tuple[bytes, ...] = (CLOUDEVENT,)  # of the headers of requests that are FastAPI's

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a hot call; hand everything else on."""
        call = None
        if scope["type"] == "http" and not scope["query_string"] and not scope.get("root_path"):
            call = self.find(scope["method"], scope.get("raw_path") or scope["path"].encode(), scope["headers"])
        if call is None:
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
        status, headers, content = await answered
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def find(self, method: str, target: bytes, headers: Headers) -> "HotCall | None":
        """The call that a request's head makes; None when it is not one of these in its plain form."""
        service = self.service
        if service is None:
            return None
        if service is not self._known:
            self._known, self._max_body = service, min(MAX_BODY, service.settings.max_body)
            refused = FORWARDED if service.access.guard.refuses_proxies else ()
            self._prefixes = (CLOUDEVENT, *refused)
        found = _find(method, target, headers, self._max_body, self._prefixes, self._edge.hosts)
        if found is None:
            return None
        route, ask, authorization = found
        principal = service.access.guard.known(authorization)
        if not isinstance(principal, Principal):
            return None  # a token that has to be verified first, or a refusal: these are for the usual way
        path = target.decode("ascii")
        return HotCall(service, principal, headers, method, path, route, ask, self._edge.lacking_plain)

    def refuse(self, status: int, detail: str, headers: Headers, *, counted: bool) -> tuple[int, Headers, bytes]:
        """The answer to a request that a server does not carry out, for reasons of its own: a problem, with an id.

        `counted`: it is logged and in the metrics, as a request that nobody else accounts for.
        """
        before = context.correlation_id.get()
        its_id = context.begin(headers)
        problem = Problem(problems.NO_TYPE, problems.title(HTTPStatus(status)), status, detail, "")
        body = encode(problem)
        if counted:
            context.account(self._metrics, "-", "-", context.UNKNOWN, status, time.perf_counter())
        context.correlation_id.set(before)
        answered = [(b"content-length", b"%d" % len(body)), (b"content-type", problems.MEDIA_TYPE.encode())]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            answered.append((b"retry-after", b"1"))
        return status, [*answered, *self._edge.lacking(headers, []), (context.HEADER, its_id.encode())], body


class HotCall:
    """One request of these calls. Either `begin` or `leave` is called, once."""

    __slots__ = (
        "_ask",
        "_began",
        "_headers",
        "_id",
        "_lacking",
        "_method",
        "_on_answer",
        "_path",
        "_principal",
        "_render",
        "_route",
        "_service",
    )

    def __init__(
        self,
        service: Service,
        principal: Principal,
        headers: Headers,
        method: str,
        path: str,
        route: str,
        ask: Ask,
        lacking: Callable[[Headers], Headers],
    ) -> None:
        self._service = service
        self._principal = principal
        self._headers = headers
        self._method = method
        self._path = path
        self._route = route
        self._ask = ask
        self._lacking = lacking
        self._render: Callable[[Any], Response]
        self._on_answer: OnAnswer
        self._id = ""
        self._began = 0.0

    def begin(self, body: bytes, answer: OnAnswer) -> None:
        """Ask for the answer. `answer` is called with status, headers and body, once, and later than this returns."""
        self._began = time.perf_counter()
        self._on_answer = answer
        before = context.correlation_id.get()  # of the request in whose task this one begins, or of none
        self._id = context.begin(self._headers)
        future: asyncio.Future[Any]
        try:
            future, self._render = self._ask(self._service, self._principal, self._headers, body)
        except Exception as error:  # noqa: BLE001 - it is answered, as FastAPI's handlers would answer it
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
        future.add_done_callback(self._on_done)
        context.correlation_id.set(before)

    def leave(self) -> None:
        """The client is gone before its request was complete."""
        self._began = time.perf_counter()
        before = context.correlation_id.get()
        self._id = context.begin(self._headers)
        self._account(context.GONE)
        context.correlation_id.set(before)

    def _on_done(self, future: "asyncio.Future[Any]") -> None:
        try:
            result = future.result()
            answer = self._render(result)
        except asyncio.CancelledError:  # by a stop that waits no longer
            answer = self._problem(UnavailableError("the service is stopping"))
        except Exception as error:  # noqa: BLE001 - as above
            answer = self._problem(error)
        headers = [*answer.raw_headers, *self._lacking(answer.raw_headers), (context.HEADER, self._id.encode())]
        self._on_answer(answer.status_code, headers, bytes(answer.body))
        self._account(answer.status_code)

    def _problem(self, error: Exception) -> Response:
        """The answer to an error, made from what FastAPI would know of the request."""
        scope = {"type": "http", "method": self._method, "path": self._path, "query_string": b""}
        return problems.answer_to(scope | {"headers": self._headers}, error)

    def _account(self, status: int) -> None:
        context.account(
            self._service.metrics, self._method, self._path, self._route, status, self._began, self._principal.name
        )


def _find(
    method: str, target: bytes, headers: Headers, max_body: int, prefixes: tuple[bytes, ...], hosts: Hosts
) -> tuple[str, Ask, bytes | None] | None:
    """The route of a plain request, the question that it asks, and its `Authorization`."""
    length, is_json, authorization = None, False, None
    for name, value in headers:
        if name == b"content-length":
            if length is not None or not value.isdigit():
                return None
            length = int(value)
        elif name == b"host":
            if not hosts.allow(value):
                return None
        elif name == b"authorization":
            if authorization is not None:
                return None
            authorization = value
        elif name == b"content-type":
            if value != PLAIN:
                return None
            is_json = True
        elif name in NOT_PLAIN or name.startswith(prefixes):
            return None
    asked = _question(method, target, has_body=length is not None, fits=is_json and (length or 0) <= max_body)
    return None if asked is None else (*asked, authorization)


def _question(method: str, target: bytes, *, has_body: bool, fits: bool) -> tuple[str, Ask] | None:
    """The route of a plain request, and the question that it asks. `fits`: a body is JSON, and not too long."""
    with_body = has_body and fits
    if method == "GET" and len(target) == ENTITY_LENGTH and target.startswith(ENTITY) and not has_body:
        try:
            entity_id = msgspec.convert(target[len(ENTITY) :].decode("ascii"), UUID)
        except msgspec.ValidationError:
            return None
        return entities.PATH, partial(_ask_for_entity, entity_id)
    if method == "POST" and target == EVENTS and with_body:
        return events.PATH, _ask_for_outcome
    if (match := WORKFLOW.fullmatch(target)) is not None:
        key = match[1].decode()
        if method == "GET" and not has_body:
            return workflows.ROUTE, partial(_ask_for_workflow, key)
        if method == "PUT" and with_body:
            return workflows.ROUTE, partial(_ask_to_commit, key)
    return None


def _ask_for_entity(entity_id: UUID, service: Service, principal: Principal, headers: Headers, _body: bytes) -> Asked:
    admit(service, principal, rights.domain(principal, Right.ENTITIES_READ, DEFAULT_DOMAIN))
    render = partial(entities.render_entity, entity_id, DEFAULT_DOMAIN, headers)
    return service.reader.ask(entity_id, DEFAULT_DOMAIN), render


def _ask_for_outcome(service: Service, principal: Principal, headers: Headers, body: bytes) -> Asked:
    permit(rights.scope(principal, Right.EVENTS_WRITE))
    given = stored(headers)
    if events.is_array(body):
        return asyncio.ensure_future(events.answer_array(service, principal, body, given)), _as_it_is
    event = events.read_one(body, given)
    admit(service, principal, rights.domain(principal, Right.EVENTS_WRITE, event.domain))
    return service.writer.ask(event, len(body)), partial(events.render_one, service)


def _ask_for_workflow(key: str, service: Service, principal: Principal, headers: Headers, _body: bytes) -> Asked:
    admit(service, principal, rights.workflow(principal, Right.WORKFLOWS_READ, key))
    return asyncio.ensure_future(workflows.answer_get(service, key, headers)), _as_it_is


def _ask_to_commit(key: str, service: Service, principal: Principal, headers: Headers, body: bytes) -> Asked:
    admit(service, principal, rights.workflow(principal, Right.WORKFLOWS_WRITE, key))
    conditions = workflows.required(headers)
    return asyncio.ensure_future(workflows.answer_put(service, key, conditions, body)), _as_it_is


def _as_it_is(answer: Response) -> Response:
    return answer
