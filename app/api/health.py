"""`/livez`, `/readyz` and `/metrics`."""

import msgspec
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
from app.wire.answers import (
    Health,
    Ready,
)

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
    """Answer 200 if the database can serve now, else 503. The answer is at most a second old.

    The database answers and takes writes, its schema is the expected one, and the role has its rights.

    Callers with `operations:read` are told the schema's revision, or the cause. `read_database` has the cause for
    which the primary answers in place of the replica, if there is one.
    """
    if request.app.connections.draining:
        raise UnavailableError("the service is about to stop")
    is_told = rights.every_domain(caller_of(request), Scope.OPERATIONS_READ) is None
    try:
        revision, replica = await service_of(request).readiness.check()
    except UnavailableError as error:
        if is_told:
            raise
        raise UnavailableError("the service is not ready", retry_after=error.retry_after) from error
    ready = Ready("ready", revision=revision, read_database=replica) if is_told else Ready("ready")
    return Response(encode(ready), media_type=JSON)


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
    service.following.report()
    numbers = await read_numbers(service.database, service.entries.destinations)
    if service.replica is not None:
        numbers = msgspec.structs.replace(numbers, replica_lag=service.replica.lag)
    numbers = msgspec.structs.replace(numbers, ready=await service.readiness.states())
    return Response(service.metrics.text(numbers), media_type=metrics.PROMETHEUS_TEXT)
