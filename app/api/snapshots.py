"""`/v1/snapshots`: how far the rows are published to the topic of snapshots, and all of them once more."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.access.principals import Scope
from app.api.audit import act_of
from app.api.bodies import JSON
from app.api.needs import needs
from app.api.openapi.operations import accepted_operation, operation
from app.api.schemas import NoQuery, encode
from app.api.service import service_of
from app.errors import NotFoundError
from app.store import audit, snapshots
from app.store.audit import Act
from app.store.database import Connection
from app.wire.answers import SnapshotProgress

router = APIRouter(tags=["snapshots"])

PATH = "/v1/snapshots"


@router.get(
    PATH,
    operation_id="getSnapshots",
    summary="See how far snapshots are published",
    **operation(SnapshotProgress, errors=(404, 422, 503)),
    dependencies=needs(Scope.OPERATIONS_READ),
)
async def get_snapshots(request: Request, _query: Annotated[NoQuery, Query()]) -> Response:
    """Answer how far the rows are published to `PQS_TOPIC_SNAPSHOTS`, and whether somebody publishes now."""
    topic = _topic_of(request)
    found = await service_of(request).database.read(snapshots.progress, topic)
    if found is None:
        raise NotFoundError(f"nobody has published snapshots to {topic} yet: run `pqs snapshots`")
    return Response(encode(found), media_type=JSON)


@router.post(
    f"{PATH}/republish",
    status_code=202,
    operation_id="republishSnapshots",
    summary="Publish all rows again",
    **accepted_operation(SnapshotProgress, "All rows will be published.", errors=(404, 422, 503)),
    dependencies=needs(Scope.OPERATIONS_WRITE),
)
async def republish(request: Request, _query: Annotated[NoQuery, Query()]) -> Response:
    """Have all rows published, while changes go on being published. Tombstones are among them.

    Whoever publishes begins within a second, or, where all rows are being published now, after that. `GET
    /v1/snapshots` says when it is done: `bootstrapping` is false.
    """
    topic = _topic_of(request)
    asked = await service_of(request).database.write(_request, topic, act_of(request, "snapshots.republish", topic))
    return Response(encode(asked), 202, {"Location": PATH}, media_type=JSON)


async def _request(connection: Connection, topic: str, act: Act) -> SnapshotProgress:
    asked = await snapshots.request(connection, topic)
    await audit.add(connection, act)
    return asked


def _topic_of(request: Request) -> str:
    topic = service_of(request).settings.topic_snapshots
    if topic is None:
        raise NotFoundError("this service publishes no snapshots: PQS_TOPIC_SNAPSHOTS is not set")
    return topic
