"""`/v1/dead-letters/entities`: entities whose messages wait behind a dead letter."""

from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request, Response

from app.access.principals import Scope
from app.api.audit import act_of
from app.api.bodies import JSON
from app.api.needs import needs
from app.api.openapi.operations import operation, queue_operation
from app.api.pages import next_link, read_cursor, write_cursor
from app.api.problems import queue_of
from app.api.schemas import NoQuery, RowsQuery, encode
from app.api.service import service_of
from app.domain.results import Result
from app.errors import NotFoundError
from app.inbound.letters import NotHeldError
from app.store import audit, held
from app.store.database import Connection
from app.store.held import Held
from app.wire.answers import HeldEntity, HeldPage, QueueAnswer

router = APIRouter(tags=["dead-letters"])

ROUTE = "/v1/dead-letters/entities"
FILTERS = ["held entities"]
FIRST_ID = UUID(int=0)


class _PageEnd(msgspec.Struct, array_like=True):
    """Where a page ended."""

    entity_id: UUID


@router.get(
    ROUTE,
    operation_id="listHeldEntities",
    summary="List the entities that are held",
    **operation(HeldPage, link=True, errors=(400, 422, 503)),
    dependencies=needs(Scope.OPERATIONS_READ),
)
async def list_held(request: Request, query: Annotated[RowsQuery, Query()]) -> Response:
    """Answer a page of entities whose messages wait behind a dead letter, in the order of their ids.

    An entity is held in all domains. It does not expire, and is in no list of overdue entities.
    """
    after = FIRST_ID if query.cursor is None else read_cursor(query.cursor, FILTERS, _PageEnd).entity_id
    found = await service_of(request).scans.read(held.get_page, after=after, limit=query.limit + 1)
    items = [_shown(each) for each in found[: query.limit]]
    cursor = write_cursor(_PageEnd(items[-1].entity_id), FILTERS) if len(found) > query.limit else None
    headers = {} if cursor is None else next_link(request.scope["query_string"], cursor)
    return Response(encode(HeldPage(items, cursor)), headers=headers, media_type=JSON)


@router.get(
    ROUTE + "/{entity_id}",
    operation_id="getHeldEntity",
    summary="Get an entity that is held",
    **operation(HeldEntity, errors=(404, 422, 503)),
    dependencies=needs(Scope.OPERATIONS_READ),
)
async def get_held(request: Request, entity_id: UUID, _query: Annotated[NoQuery, Query()]) -> Response:
    """Answer why an entity is held, and how many messages wait."""
    found = await service_of(request).database.read(held.get, entity_id)
    if found is None:
        raise _not_held(entity_id)
    return Response(encode(_shown(found)), media_type=JSON)


@router.post(
    ROUTE + "/{entity_id}/retry",
    operation_id="retryHeldEntity",
    summary="Retry a dead letter and the messages behind it",
    **queue_operation(QueueAnswer, "HeldProblem"),
    dependencies=needs(Scope.OPERATIONS_WRITE),
)
async def retry_held(request: Request, entity_id: UUID, _query: Annotated[NoQuery, Query()]) -> Response:
    """Apply the letter and the messages that wait behind it, in order, each at its own position, in one transaction.

    At the first message that fails again the answer is 409, and nothing is written. Otherwise the entity is held no
    longer.
    """
    return await _take(request, entity_id, skip=False)


@router.post(
    ROUTE + "/{entity_id}/skip",
    operation_id="skipHeldEntity",
    summary="Skip the message that fails, and apply those behind it",
    **queue_operation(QueueAnswer),
    dependencies=needs(Scope.OPERATIONS_WRITE),
)
async def skip_held(request: Request, entity_id: UUID, _query: Annotated[NoQuery, Query()]) -> Response:
    """Do as a retry does, but leave out the first message that fails again: it is removed for good.

    The next message that fails becomes the letter that holds the ones behind it; `messages` says how many are left.
    """
    return await _take(request, entity_id, skip=True)


async def _take(request: Request, entity_id: UUID, *, skip: bool) -> Response:
    service = service_of(request)
    act = act_of(request, "dead-letters.skip" if skip else "dead-letters.retry", f"held entity {entity_id}")

    async def also(connection: Connection, _results: list[Result]) -> None:
        await audit.add(connection, act)

    take = service.letters.skip if skip else service.letters.retry_queue
    try:
        answer = await take(entity_id, also)
    except NotHeldError:
        raise _not_held(entity_id) from None
    return Response(encode(answer), media_type=JSON)


def _not_held(entity_id: UUID) -> NotFoundError:
    return NotFoundError(f"no dead letter holds entity {entity_id}")


def _shown(entity: Held) -> HeldEntity:
    return HeldEntity(**msgspec.structs.asdict(entity), queue=queue_of(entity.entity_id))
