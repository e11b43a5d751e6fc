"""State counts: how many entities are in each state."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.answers import StateCounts
from app.api.bodies import JSON
from app.api.openapi.operations import operation
from app.api.schemas import DomainQuery, encode
from app.api.service import service_of
from app.store.counts import count_by_state

router = APIRouter(tags=["counts"])


@router.get(
    "/v1/state-counts",
    operation_id="countStates",
    summary="Count the entities in each state",
    **operation(StateCounts, errors=(422, 503)),
)
async def count_states(request: Request, query: Annotated[DomainQuery, Query()]) -> Response:
    """Answer a number for each of the eight states, the empty ones included, and their sum."""
    counts = await service_of(request).scans.read(count_by_state, query.domain)
    answer = StateCounts(query.domain, counts, sum(counts.values()))
    return Response(encode(answer), media_type=JSON)
