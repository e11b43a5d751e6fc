"""`POST /v1/dead-letters/retry` and `/delete`, for all letters that match, and `/v1/dead-letters/runs/{id}`."""

from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Query, Request, Response

from app.access.principals import Scope
from app.api.audit import act_of
from app.api.bodies import JSON
from app.api.dead_letters import filter_of
from app.api.needs import caller_of, needs
from app.api.openapi.operations import operation, run_operation
from app.api.schemas import LetterFilterQuery, NoQuery, encode
from app.api.service import service_of
from app.errors import NotFoundError
from app.store import audit, letter_runs
from app.store.audit import Act
from app.store.database import Connection
from app.store.dead_letters import LetterFilter
from app.store.letter_runs import Action, BulkRun
from app.wire.answers import LetterRun

router = APIRouter(tags=["dead-letters"])

ROUTE = "/v1/dead-letters"


@router.post(
    ROUTE + "/retry",
    status_code=202,
    operation_id="retryDeadLetters",
    summary="Retry all messages that match",
    **run_operation(LetterRun),
    dependencies=needs(Scope.OPERATIONS_WRITE),
)
async def retry_dead_letters(request: Request, query: Annotated[LetterFilterQuery, Query()]) -> Response:
    """Retry each letter that matches now, the oldest first; one that holds its entity, with the messages behind it.

    The answer comes at once, and `Location` says how far it is: the work goes on, in this process or another, until
    each letter is in or has failed. While it lasts, the same call answers the same run.
    """
    return await _begin(request, "retry", filter_of(query))


@router.post(
    ROUTE + "/delete",
    status_code=202,
    operation_id="deleteDeadLetters",
    summary="Remove all messages that match, for good",
    **run_operation(LetterRun),
    dependencies=needs(Scope.OPERATIONS_WRITE),
)
async def delete_dead_letters(request: Request, query: Annotated[LetterFilterQuery, Query()]) -> Response:
    """Remove each letter that matches now, except for those that hold their entity: these fail.

    Otherwise like the call that retries them.
    """
    return await _begin(request, "delete", filter_of(query))


@router.get(
    ROUTE + "/runs/{run_id}",
    operation_id="getDeadLetterRun",
    summary="Get how far a bulk call is",
    **operation(LetterRun, errors=(404, 422, 503)),
    dependencies=needs(Scope.OPERATIONS_READ),
)
async def get_run(request: Request, run_id: UUID, _query: Annotated[NoQuery, Query()]) -> Response:
    """Answer how many letters matched, are done and have failed. A finished run is kept for seven days."""
    run = await service_of(request).database.read(letter_runs.get, run_id)
    if run is None:
        raise NotFoundError(f"there is no dead letter run {run_id}")
    return Response(encode(_shown(run)), media_type=JSON)


async def _begin(request: Request, action: Action, wanted: LetterFilter) -> Response:
    service = service_of(request)
    id_ = uuid4()
    act = act_of(request, f"dead-letters.{action}", f"bulk call {id_}: {encode(wanted).decode()}", "accepted")
    run = await service.database.write(_begun, id_, action, wanted, caller_of(request).name, act)
    service.bulk.wake()
    return Response(encode(_shown(run)), 202, {"Location": f"{ROUTE}/runs/{run.id}"}, media_type=JSON)


async def _begun(
    connection: Connection, id_: UUID, action: Action, wanted: LetterFilter, principal: str, act: Act
) -> BulkRun:
    run, is_new = await letter_runs.begin(connection, id_, action, wanted, principal)
    if is_new:
        await audit.add(connection, act)
    return run


def _shown(run: BulkRun) -> LetterRun:
    return LetterRun(run.id, run.action, run.started_at, run.finished_at, run.matched, run.done, run.failed)
