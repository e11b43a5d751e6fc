"""`POST /v1/entities/{entity_id}/forget` and `/deregister`: what an operator does to one entity."""

from typing import Annotated, TypeVar
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request, Response

from app.access.principals import Scope
from app.api.audit import act_of
from app.api.bodies import JSON, json_answer, media_type, read_body
from app.api.correlation import stored
from app.api.entities import present
from app.api.needs import needs
from app.api.negotiation import Conditions, etag_of
from app.api.openapi.operations import act_operation
from app.api.schemas import Deregister, DomainQuery, Forget, encode
from app.api.service import service_of
from app.domain.decider import Decision
from app.domain.events import ForgottenData
from app.domain.registration import Registration
from app.domain.results import EmittedEvent
from app.errors import Fault, InvalidInputError, PreconditionFailedError
from app.wire.answers import (
    DeregisterAnswer,
    ForgetAnswer,
)
from app.wire.events import read_json
from app.wire.faults import find_nul
from app.wire.values import Path

router = APIRouter(tags=["entities"])

T = TypeVar("T")

_FORGET = msgspec.json.Decoder(Forget)
_DEREGISTER = msgspec.json.Decoder(Deregister)
_INTEGERS: list[Path] = [("position", name) for name in ("sequence", "offset")]


@router.post(
    "/v1/entities/{entity_id}/forget",
    operation_id="forgetEntity",
    summary="Forget an entity",
    **act_operation(ForgetAnswer, Forget),
    dependencies=needs(Scope.OPERATIONS_WRITE),
)
async def forget_entity(request: Request, entity_id: UUID, query: Annotated[DomainQuery, Query()]) -> Response:
    """Turn the row into a tombstone, which says nothing of the node and keeps late events from bringing it back.

    From then on the entity's reads answer 410, and lists and counts leave it out. An event that begins a registration
    and occurred after the forget begins it anew, except after `permanent`. Without a row the answer is 404, unless
    `position` is given: then a tombstone is made there, against events that still wait in Kafka. `erase` also empties
    the entity's changes and removes its dead letters and waiting messages. To repeat the call is safe.
    """
    service = service_of(request)
    conditions = Conditions(request.scope["headers"])
    asked = await _read(request, _FORGET, Forget())
    _check_position(asked)
    name = (entity_id, query.domain)

    def check(row: Registration | None) -> None:
        if row is None and asked.position is None:
            present(*name, row)
        _check_version(row, conditions)

    done = await service.acts.forget(
        name,
        asked.position,
        ForgottenData(reason=asked.reason, permanent=asked.permanent),
        check=check,
        act=act_of(request, "entities.forget", _target(name, asked.reason)),
        correlation_id=stored(request.scope["headers"]),
    )
    assert isinstance(done.decided, Decision)  # noqa: S101 - there is a row, or a position
    row = done.decided.row
    erased = None
    if asked.erase:
        act = act_of(request, "entities.erase", _target(name, None))
        erased = await service.acts.erase(name, row.version, act)
    assert row.forgotten_at is not None  # noqa: S101 - it is a tombstone
    permanent = row.forgotten_permanently is True
    answer = ForgetAnswer(*name, row.forgotten_at, permanent, row.version, row.position, erased)
    return json_answer(encode(answer), (b"etag", etag_of(row).encode()))


@router.post(
    "/v1/entities/{entity_id}/deregister",
    operation_id="deregisterEntity",
    summary="Evict a node",
    **act_operation(DeregisterAnswer, Deregister, 410),
    dependencies=needs(Scope.OPERATIONS_WRITE),
)
async def deregister_entity(request: Request, entity_id: UUID, query: Annotated[DomainQuery, Query()]) -> Response:
    """End the node's registration, as its own `node.deregistered` would: the same event and intents follow.

    The act has no place in the node's source, so the row's position stays, and the node's own next event still fits.
    Where there is no registration to end, the outcome is `ignored`, and the row stays as it is.
    """
    service = service_of(request)
    conditions = Conditions(request.scope["headers"])
    asked = await _read(request, _DEREGISTER, Deregister())
    name = (entity_id, query.domain)

    def check(row: Registration | None) -> None:
        _check_version(present(*name, row), conditions)

    done = await service.acts.deregister(
        name,
        asked.reason,
        check=check,
        act=act_of(request, "entities.deregister", _target(name, asked.reason)),
        correlation_id=stored(request.scope["headers"]),
    )
    decided, row = done.decided, present(*name, done.found)
    if isinstance(decided, Decision):
        row = decided.row
        events = [EmittedEvent(event.event_id, event.type) for event in decided.events]
        answer = DeregisterAnswer(*name, "applied", None, row.current_state, row.version, row.position, events)
    else:
        answer = DeregisterAnswer(*name, "ignored", decided.reason, row.current_state, row.version, row.position, [])
    return json_answer(encode(answer), (b"etag", etag_of(row).encode()))


async def _read(request: Request, decoder: msgspec.json.Decoder[T], default: T) -> T:
    """The body, or the default where there is none. Raises InvalidInputError for text that holds NUL."""
    body = await read_body(request, service_of(request).settings.max_body)
    if not body:
        return default
    media_type(request, JSON)
    asked = read_json(body, decoder, integers=_INTEGERS)
    nul_at = find_nul(msgspec.to_builtins(asked), "#")
    if nul_at is not None:
        raise InvalidInputError([Fault(nul_at, "a string here holds NUL (\\u0000), which PostgreSQL cannot store")])
    return asked


def _check_position(asked: Forget) -> None:
    if asked.position is not None and asked.position.previous is not None:
        raise InvalidInputError([Fault("#/position/previous", "a tombstone has a position, and none before it")])


def _check_version(row: Registration | None, conditions: Conditions) -> None:
    """Raises PreconditionFailedError if the conditions do not allow to change this row."""
    etag = None if row is None else etag_of(row)
    if not conditions.allow(etag):
        at = "there is no row" if etag is None else f"the row is at version {etag}"
        detail = f"{at}, and the headers allow other versions only{conditions.weak_note}: nothing was written"
        raise PreconditionFailedError(detail, etag or "")


def _target(name: tuple[UUID, str], reason: str | None) -> str:
    entity_id, domain = name
    return f"{domain}/{entity_id}" + (f": {reason}" if reason else "")
