"""`/v1/domains`: the domains that there are."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from app.access.principals import Scope
from app.api.bodies import JSON
from app.api.needs import caller_of, needs
from app.api.openapi.operations import operation
from app.api.pages import next_link, read_cursor, write_cursor
from app.api.schemas import RowsQuery, encode
from app.api.service import service_of
from app.domain.states import RegistrationState
from app.store.registrations import REGISTRATIONS
from app.wire.answers import StateCounts
from app.wire.overview import DomainPage

router = APIRouter(tags=["domains"])


class _PageEnd(msgspec.Struct, array_like=True):
    """Where a page ended."""

    domain: str


@router.get(
    "/v1/domains",
    operation_id="listDomains",
    summary="List the domains, with their state counts",
    **operation(DomainPage, link=True, errors=(400, 422, 503)),
    dependencies=needs(Scope.ENTITIES_READ),
)
async def list_domains(request: Request, query: Annotated[RowsQuery, Query()]) -> Response:
    """Answer a page of the domains that have had entities, by name, each with its counts by state.

    A domain appears with its first entity. A caller whose rights cover some domains is answered those only.
    """
    grant = caller_of(request).grant
    among = None if grant.allows_every_domain() else sorted(grant.domains)
    filters = ["domains"]
    after = "" if query.cursor is None else read_cursor(query.cursor, filters, _PageEnd).domain
    found, more = await service_of(request).scans.read(
        REGISTRATIONS.counts.by_domains, after=after, limit=query.limit, among=among
    )
    items = [
        StateCounts(domain, {RegistrationState(state): n for state, n in counts.items()}, sum(counts.values()))
        for domain, counts in found
    ]
    cursor = None
    headers = {}
    if more:
        cursor = write_cursor(_PageEnd(items[-1].domain), filters)
        headers = next_link(request.scope["query_string"], cursor)
    return Response(encode(DomainPage(items, cursor)), headers=headers, media_type=JSON)
