"""`/v1/state-counts`: the number of entities in each state."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.api.bodies import JSON
from app.api.openapi.operations import operation
from app.api.schemas import DomainQuery, StateCounts, encode
from app.api.service import service_of
from app.store.registrations import REGISTRATIONS

router = APIRouter(tags=["counts"])


@router.get(
    "/v1/state-counts",
    operation_id="countStates",
    summary="Count the entities in each state",
    **operation(StateCounts, errors=(422, 503)),
)
async def count_states(request: Request, query: Annotated[DomainQuery, Query()]) -> Response:
    """Answer the number of entities in each of the eight states, zeros included, and their total."""
    counts = await service_of(request).scans.read(REGISTRATIONS.counts.count_by_state, query.domain)
    answer = StateCounts(query.domain, {str(state): n for state, n in counts.items()}, sum(counts.values()))
    return Response(encode(answer), media_type=JSON)
