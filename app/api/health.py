"""`/livez`, `/readyz` and `/metrics`."""

from fastapi import APIRouter, Request, Response

from app.access import rights
from app.access.principals import Scope
from app.api.bodies import JSON
from app.api.needs import OPEN, caller_of, needs
from app.api.openapi.operations import metrics_operation, operation
from app.api.schemas import encode
from app.api.service import service_of
from app.errors import UnavailableError
from app.runtime import metrics
from app.runtime.metrics import read_numbers
from app.wire.answers import Health, Ready

router = APIRouter(tags=["health"])

PATHS = frozenset({b"/livez", b"/readyz", b"/metrics"})  # for which connections are kept in reserve


@router.get(
    "/livez",
    operation_id="getLiveness",
    summary="Check that the process is up",
    **operation(Health, errors=()),
    dependencies=OPEN,
)
async def livez() -> Response:
    """Answer without asking the database: a restart of this process would not repair a database that is down."""
    return Response(encode(Health("alive")), media_type=JSON)


@router.get(
    "/readyz",
    operation_id="getReadiness",
    summary="Check that the service is ready",
    **operation(Ready, errors=(503,)),
    dependencies=OPEN,
)
async def readyz(request: Request) -> Response:
    """Answer 200 if the database answers and its schema is the expected one, else 503.

    Callers with `operations:read` are told the schema's revision, or the reason.
    """
    if request.app.connections.draining:
        raise UnavailableError("the service is about to stop")
    is_told = rights.every_domain(caller_of(request), Scope.OPERATIONS_READ) is None
    try:
        revision = await service_of(request).database.check()
    except UnavailableError as error:
        if is_told:
            raise
        raise UnavailableError("the service is not ready", retry_after=error.retry_after) from error
    return Response(encode(Ready("ready", revision if is_told else None)), media_type=JSON)


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="Metrics for Prometheus",
    **metrics_operation(),
    dependencies=needs(Scope.METRICS_READ),
)
async def get_metrics(request: Request) -> Response:
    """Answer in Prometheus' text format, for all worker processes together."""
    service = service_of(request)
    numbers = await read_numbers(service.database, service.entries.destinations)
    return Response(service.metrics.text(numbers), media_type=metrics.PROMETHEUS_TEXT)
