"""The kinds of hot calls: how each is recognised by its head, how it asks, and how its answer is rendered."""

import asyncio
import re
from collections.abc import Callable
from typing import Any, Protocol
from uuid import UUID

import msgspec
from fastapi import Response
from msgspec import Struct

from app.access import rights
from app.access.principals import (
    ANYONE,
    ENTITIES_READ,
    EVENTS_WRITE,
    WORKFLOWS_READ,
    WORKFLOWS_WRITE,
    Principal,
)
from app.api import entities, events, overdue, workflows
from app.api.context import Headers
from app.api.correlation import stored
from app.api.needs import admit, permit
from app.api.plain import PlainFields
from app.api.service import Service
from app.domain.events import DEFAULT_DOMAIN, Event
from app.domain.registration import Registration
from app.domain.results import Result
from app.feed.boards import Shown

ENTITY = b"/v1/entities/"
ENTITY_LENGTH = len(ENTITY) + 36  # with a UUID in its usual form
OVERDUE = b"/v1/overdue/"
EVENTS = events.PATH.encode()
WORKFLOW = re.compile(rb"/v1/workflows/([A-Za-z0-9._~:@/-]{1,255})")  # with a key that needs no decoding


class Call(Protocol):
    """A hot call, as its kind sees it. `asked_for` is the entity's id, the workflow's key, or the wait."""

    service: Service
    principal: Principal
    headers: Headers
    asked_for: Any


def question(method: str, target: bytes, fields: PlainFields, max_body: int) -> "tuple[Kind, Any] | None":
    """The kind of a request, and the entity or workflow that it is about."""
    has_body = fields.length is not None
    if target.startswith(OVERDUE):
        if method != "GET" or has_body or not fields.has_tags:
            return None
        waiting = overdue.plain_wait(target, fields.prefer)
        return None if waiting is None else (WAIT_KINDS[waiting.asked.kind], waiting)
    if fields.prefer is not None:  # a preference of other calls is FastAPI's
        return None
    if method == "GET" and len(target) == ENTITY_LENGTH and target.startswith(ENTITY) and not has_body:
        try:
            return GET_ENTITY, msgspec.convert(target[len(ENTITY) :].decode("ascii"), UUID)
        except msgspec.ValidationError:
            return None
    with_body = fields.length is not None and fields.is_json and fields.length <= max_body
    if method == "POST" and target == EVENTS and with_body:
        return POST_EVENTS, None
    if (match := WORKFLOW.fullmatch(target)) is not None:
        if method == "GET" and not has_body:
            return GET_WORKFLOW, match[1].decode()
        if method == "PUT" and with_body:
            return PUT_WORKFLOW, match[1].decode()
    return None


# The kinds. Where no key is asked for, the caller is ANYONE, who may do everything as often as it likes: nothing
# is checked then.


def _ask_for_entity(call: Call, _body: bytes) -> "asyncio.Future[Any]":
    if call.principal is not ANYONE:
        admit(call.service, call.principal, rights.domain(call.principal, ENTITIES_READ, DEFAULT_DOMAIN))
    return call.service.reader.ask(call.asked_for, DEFAULT_DOMAIN)


def _render_entity(call: Call, registration: Registration | None) -> Response:
    return entities.render_entity(call.asked_for, DEFAULT_DOMAIN, call.headers, registration)


def _ask_for_deadline(call: Call, _body: bytes) -> "asyncio.Future[Any]":
    waiting: overdue.Waiting = call.asked_for
    if call.principal is not ANYONE:
        admit(call.service, call.principal, rights.domain(call.principal, ENTITIES_READ, waiting.domain))
    return overdue.begin_wait(call.service, waiting, call.headers)


def _render_page(call: Call, shown: Shown) -> Response:
    return overdue.end_wait(call.asked_for, call.headers, shown)


def _ask_for_outcome(call: Call, body: bytes) -> "asyncio.Future[Any]":
    service, principal = call.service, call.principal
    if principal is not ANYONE:
        permit(rights.scope(principal, EVENTS_WRITE))
    given = stored(call.headers)
    if events.is_array(body):
        return asyncio.ensure_future(events.answer_array(service, principal, body, given))
    event = events.read_one(body, given)
    if principal is not ANYONE:
        admit(service, principal, rights.domain(principal, EVENTS_WRITE, event.domain))
    if service.clock.may_be_ahead(event):
        return asyncio.ensure_future(_ask_if_not_ahead(service, event, len(body)))
    return service.writer.ask(event, len(body))


async def _ask_if_not_ahead(service: Service, event: Event, size: int) -> Result:
    await service.clock.check([event], many=False)
    return await service.writer.ask(event, size)


def _render_outcome(call: Call, result: Result | Response) -> Response:
    return result if isinstance(result, Response) else events.render_one(result)


def _ask_for_workflow(call: Call, _body: bytes) -> "asyncio.Future[Any]":
    key: str = call.asked_for
    if call.principal is not ANYONE:
        admit(call.service, call.principal, rights.workflow(call.principal, WORKFLOWS_READ, key))
    return asyncio.ensure_future(workflows.answer_get(call.service, key, call.headers))


def _ask_to_commit(call: Call, body: bytes) -> "asyncio.Future[Any]":
    key: str = call.asked_for
    if call.principal is not ANYONE:
        admit(call.service, call.principal, rights.workflow(call.principal, WORKFLOWS_WRITE, key))
    conditions = workflows.required(call.headers)
    return asyncio.ensure_future(workflows.answer_put(call.service, call.principal, key, conditions, body))


def _as_it_is(_call: Call, answer: Response) -> Response:
    return answer


class Kind(Struct, frozen=True):
    """One of these calls: how it is named, how it asks, and how its answer is rendered."""

    method: str
    route: str
    ask: Callable[[Call, bytes], "asyncio.Future[Any]"]
    render: Callable[[Call, Any], Response]
    waits: bool = False  # for long: it ends with its client, and the caller is checked again


GET_ENTITY = Kind("GET", entities.PATH, _ask_for_entity, _render_entity)
POST_EVENTS = Kind("POST", events.PATH, _ask_for_outcome, _render_outcome)
GET_WORKFLOW = Kind("GET", workflows.ROUTE, _ask_for_workflow, _as_it_is)
PUT_WORKFLOW = Kind("PUT", workflows.ROUTE, _ask_to_commit, _as_it_is)
WAIT_KINDS = {
    kind: Kind("GET", path.decode(), _ask_for_deadline, _render_page, waits=True)
    for path, kind in overdue.PATHS.items()
}
