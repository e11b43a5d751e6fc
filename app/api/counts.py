"""`/v1/state-counts`: the number of entities in each state."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.access import rights
from app.access.principals import Scope
from app.api import waits
from app.api.bodies import JSON
from app.api.needs import caller_of, needs, permit
from app.api.openapi.operations import operation
from app.api.schemas import FreshQuery, encode
from app.api.service import service_of
from app.domain.states import RegistrationState
from app.store.registrations import REGISTRATIONS
from app.wire.answers import StateCounts

router = APIRouter(tags=["counts"])


@router.get(
    "/v1/state-counts",
    operation_id="countStates",
    summary="Count the entities in each state",
    **operation(StateCounts, fresh=True, errors=(422, 503)),
    dependencies=needs(Scope.ENTITIES_READ),
)
async def count_states(request: Request, query: Annotated[FreshQuery, Query()]) -> Response:
    """Answer the number of entities in each of the eight states, zeros included, and their total."""
    permit(rights.domain(caller_of(request), Scope.ENTITIES_READ, query.domain))
    service = service_of(request)
    headers = await waits.fresh(request, query, service.waits.scan_marks)
    counts = await service.scans.read(REGISTRATIONS.counts.count_by_state, query.domain)
    by_state = {RegistrationState(state): n for state, n in counts.items()}
    answer = StateCounts(query.domain, by_state, sum(counts.values()))
    return Response(encode(answer), headers=headers, media_type=JSON)
