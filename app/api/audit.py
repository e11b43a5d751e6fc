"""`/v1/audit`: who did what; and the entry that an act of this service leaves there."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from app.access.principals import Scope
from app.api.bodies import JSON
from app.api.context import correlation_id
from app.api.needs import caller_of, needs
from app.api.openapi.operations import operation
from app.api.pages import next_link, read_cursor, write_cursor
from app.api.schemas import RowsQuery, encode
from app.api.service import service_of
from app.store import audit
from app.store.audit import Act
from app.wire.answers import (
    AuditEntry,
    AuditPage,
)

router = APIRouter(tags=["audit"])

FILTERS = ["audit"]


class _PageEnd(msgspec.Struct, array_like=True):
    """Where a page ended."""

    id: int


@router.get(
    "/v1/audit",
    operation_id="listAudit",
    summary="List who did what",
    **operation(AuditPage, link=True, errors=(400, 422, 503)),
    dependencies=needs(Scope.OPERATIONS_READ),
)
async def list_audit(request: Request, query: Annotated[RowsQuery, Query()]) -> Response:
    """Answer a page, newest first: changes of keys and quotas, dead letters retried and removed, entities that were
    rebased, forgotten or erased, evicted nodes, and migrations."""
    before = audit.NEWEST if query.cursor is None else read_cursor(query.cursor, FILTERS, _PageEnd).id
    found = await service_of(request).scans.read(audit.get_page, before=before, limit=query.limit + 1)
    items = found[: query.limit]
    cursor = write_cursor(_PageEnd(items[-1].id), FILTERS) if len(found) > query.limit else None
    headers = {} if cursor is None else next_link(request.scope["query_string"], cursor)
    page = AuditPage([_shown(each) for each in items], cursor)
    return Response(encode(page), headers=headers, media_type=JSON)


def act_of(request: Request, action: str, target: str, outcome: str = "done") -> Act:
    """What a request does, for the audit log."""
    client = request.scope.get("client")
    return Act(
        principal=caller_of(request).name,
        action=action,
        target=target,
        outcome=outcome,
        correlation_id=correlation_id.get(),
        peer=str(client[0]) if client else None,
    )


def _shown(entry: audit.LoggedAct) -> AuditEntry:
    return AuditEntry(**{name: getattr(entry, name) for name in AuditEntry.__struct_fields__})
