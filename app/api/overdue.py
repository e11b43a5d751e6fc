"""`/v1/overdue`: the deadlines that have passed, and the next one."""

from collections.abc import Awaitable, Callable
from datetime import datetime
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
from app.api.schemas import OverdueQuery, encode
from app.api.service import service_of
from app.domain.decider import Deadline
from app.domain.events import Time
from app.domain.registration import Registration
from app.errors import BadCursorError
from app.store.database import Connection
from app.store.overdue import DueKey, Overdue, now
from app.store.registrations import REGISTRATIONS
from app.wire.answers import OverduePage, OverdueRegistration

router = APIRouter(tags=["overdue"])

Find = Callable[..., Awaitable[Overdue]]


class _PageEnd(msgspec.Struct, array_like=True):
    """Where a page ended, and the `as_of` of the first page."""

    as_of: Time
    deadline: Time
    entity_id: UUID


@router.get(
    "/v1/overdue/ack",
    operation_id="listOverdueAcks",
    summary="List the nodes that did not acknowledge in time",
    **operation(OverduePage, link=True, errors=(400, 422, 503)),
    dependencies=needs(Scope.ENTITIES_READ),
)
async def overdue_ack(request: Request, query: Annotated[OverdueQuery, Query()]) -> Response:
    """Answer a page of nodes in `accepted` or `awaiting_ack` whose `ack_deadline` lies before `as_of`, oldest first.

    Nodes whose timeout event was already emitted are left out, even if it was emitted after `as_of`.
    """
    find = REGISTRATIONS.overdue[Deadline.ACK].get_overdue
    return await _scan(request, query, find, lambda registration: registration.ack_deadline)


@router.get(
    "/v1/overdue/liveness",
    operation_id="listOverdueLiveness",
    summary="List the nodes that sent no heartbeat in time",
    **operation(OverduePage, link=True, errors=(400, 422, 503)),
    dependencies=needs(Scope.ENTITIES_READ),
)
async def overdue_liveness(request: Request, query: Annotated[OverdueQuery, Query()]) -> Response:
    """Answer a page of nodes in `active` whose `liveness_deadline` lies before `as_of`, oldest first.

    Nodes whose timeout event was already emitted are left out, even if it was emitted after `as_of`.
    """
    find = REGISTRATIONS.overdue[Deadline.LIVENESS].get_overdue
    return await _scan(request, query, find, lambda registration: registration.liveness_deadline)


async def _scan(
    request: Request,
    query: OverdueQuery,
    find: Find,
    deadline_of: Callable[[Registration], datetime | None],
) -> Response:
    permit(rights.domain(caller_of(request), Scope.ENTITIES_READ, query.domain))
    filters = [request.url.path, query.domain]
    end = None if query.cursor is None else read_cursor(query.cursor, filters, _PageEnd)
    if end is not None and query.as_of not in {None, end.as_of}:
        raise BadCursorError("the cursor belongs to another `as_of`; leave out `as_of` when you send a cursor")
    after: DueKey | None = None if end is None else (end.deadline, end.entity_id)

    as_of, found = await service_of(request).scans.read(
        _find, find, query.domain, query.as_of if end is None else end.as_of, after, query.limit
    )
    items = []
    for registration in found.items:
        passed = as_of - (deadline_of(registration) or as_of)
        items.append(
            OverdueRegistration(**msgspec.structs.asdict(registration), overdue_seconds=passed.total_seconds())
        )
    cursor = None
    headers = {}
    if found.more:
        last = found.items[-1]
        cursor = write_cursor(_PageEnd(as_of, deadline_of(last) or as_of, last.entity_id), filters)
        headers = next_link(request, cursor)
    page = OverduePage(as_of, items, cursor, found.next_deadline)
    return Response(encode(page), headers=headers, media_type=JSON)


async def _find(
    connection: Connection,
    find: Find,
    domain: str,
    as_of: datetime | None,
    after: DueKey | None,
    limit: int,
) -> tuple[datetime, Overdue]:
    """The rows that are overdue at `as_of`, by default the database's clock, and that time."""
    moment = as_of or await now(connection)
    return moment, await find(connection, domain, as_of=moment, after=after, limit=limit)
