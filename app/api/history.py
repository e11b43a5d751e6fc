"""Looking back: the changes of one entity, one event, and an entity at a moment."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request, Response

from app.access import rights
from app.access.principals import Scope
from app.api.bodies import JSON
from app.api.needs import caller_of, needs, permit
from app.api.openapi.operations import operation
from app.api.pages import next_link, read_cursor, write_cursor
from app.api.schemas import HistoryQuery, MomentQuery, NoQuery, encode
from app.api.service import Service, full_scans_of, service_of
from app.domain.changes import Logging
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.errors import ChangesOffError, Fault, InvalidInputError
from app.feed.history import History, Moment
from app.feed.items import item_of
from app.store.changes import Logged
from app.wire.answers import (
    ChangeItem,
    EntityHistory,
    EventRecord,
)

router = APIRouter()


class _PageEnd(msgspec.Struct, array_like=True):
    """Where a page ended."""

    id: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


@router.get(
    "/v1/entities/{entity_id}/history",
    tags=["entities"],
    operation_id="getHistory",
    summary="Get one entity's changes",
    **operation(EntityHistory, link=True, errors=(400, 404, 422, 501, 503)),
    dependencies=needs(Scope.ENTITIES_READ),
)
async def get_history(request: Request, entity_id: UUID, query: Annotated[HistoryQuery, Query()]) -> Response:
    """Answer a page of the changes of one entity, in the order of its versions or the other way round.

    `complete` is false where its first change is not in the log any more, or happened before there was one.
    """
    service = service_of(request)
    permit(rights.domain(caller_of(request), Scope.ENTITIES_READ, query.domain))
    filters = ["history", entity_id, query.domain, query.order]
    place = None if query.cursor is None else read_cursor(query.cursor, filters, _PageEnd).id
    page = await _history_of(service).page(entity_id, query.domain, order=query.order, place=place, limit=query.limit)
    cursor = write_cursor(_PageEnd(page.items[-1].id), filters) if page.more else None
    headers = {} if cursor is None else next_link(request.scope["query_string"], cursor)
    answer = EntityHistory(_items(page.items), cursor, page.complete)
    return Response(encode(answer), headers=headers, media_type=JSON)


@router.get(
    "/v1/events/{event_id}",
    tags=["events"],
    operation_id="getEvent",
    summary="Get what became of one event",
    **operation(EventRecord, errors=(404, 422, 501, 503)),
    dependencies=needs(Scope.ENTITIES_READ),
)
async def get_event(request: Request, event_id: UUID, _query: Annotated[NoQuery, Query()]) -> Response:
    """Answer the changes that an event made, and the rows that stand at it now, in the domains of the caller.

    An event that changed no state is not in the log: only its row shows it, until that row takes its next event. An
    event that was `duplicate`, `stale`, `early` or in `conflict` leaves no trace.
    """
    service = service_of(request)
    grant = caller_of(request).grant
    domains = None if grant.allows_every_domain() else sorted(grant.domains)
    history = _history_of(service)
    async with full_scans_of(request).later():  # its time grows with the log
        found = await history.event(event_id, domains)
    return Response(encode(EventRecord(event_id, _items(found.changes), list(found.rows))), media_type=JSON)


async def state_at(service: Service, moment: Moment) -> RegistrationState:
    """The state at a moment. Raises what History.state_at does."""
    return await _history_of(service).state_at(moment)


async def row_at(service: Service, moment: Moment) -> Registration:
    """The row at a moment. Raises what History.row_at does."""
    history = _history_of(service)
    if not service.settings.changes_rows:
        detail = "rows are not logged with their changes: PQS_CHANGES_ROWS is false; /state takes it nevertheless"
        raise InvalidInputError([Fault("#/query/as_of", detail)])
    return await history.row_at(moment)


# The parameters of a read that waits, which a read of the past does not.
_WAITING = {"wait", "min_offset", "late", "after_version", "until", "min_sequence"}


def moment_of(request: Request, entity_id: UUID, query: MomentQuery) -> Moment | None:
    """The moment that a query names; None where it names none."""
    if query.as_of is None:
        if "clock" in request.query_params:
            raise InvalidInputError([Fault("#/query/clock", "it says how `as_of` is meant, and there is none")])
        return None
    if waiting := sorted(_WAITING & set(request.query_params)):
        raise InvalidInputError([Fault(f"#/query/{waiting[0]}", "a read of the past (`as_of`) does not wait")])
    return Moment(entity_id, query.domain, query.as_of, query.clock)


def _history_of(service: Service) -> History:
    if service.settings.changes is Logging.OFF:
        raise ChangesOffError("changes are not logged: PQS_CHANGES is off")
    return History(service.database)


def _items(changes: Sequence[Logged]) -> list[ChangeItem]:
    return [item_of(each, each.entity_id) for each in changes if each.entity_id is not None]
