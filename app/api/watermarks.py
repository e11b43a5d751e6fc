"""`/v1/watermarks`: how far each Kafka partition is applied."""

from typing import Annotated, assert_never

from fastapi import APIRouter, Path, Query, Request, Response

from app.access.principals import Scope
from app.api.audit import act_of
from app.api.bodies import JSON
from app.api.needs import needs
from app.api.openapi.operations import operation, removal_operation
from app.api.schemas import NoQuery, encode
from app.api.service import service_of
from app.errors import InUseError, NotFoundError
from app.store import audit, watermarks
from app.store.audit import Act
from app.store.database import Connection
from app.store.watermarks import Drop
from app.wire.answers import WatermarkList

router = APIRouter(tags=["watermarks"])

TopicName = Annotated[str, Path(min_length=1, max_length=249, description="The topic.")]
PartitionNumber = Annotated[int, Path(ge=0, le=2**31 - 1, description="The number of the partition.")]


@router.get(
    "/v1/watermarks",
    operation_id="listWatermarks",
    summary="List how far each partition is read",
    **operation(WatermarkList, errors=(422, 503)),
    dependencies=needs(Scope.OPERATIONS_READ),
)
async def list_watermarks(request: Request, _query: Annotated[NoQuery, Query()]) -> Response:
    """Answer one watermark per partition that was read, in the order of topic and partition.

    Every message up to `offset` is applied or is a dead letter. Everything that was in the partition at `as_of` is in
    the projection. While a consumer has caught up, `as_of` is the present, within a second; otherwise it is the time
    of the last message, or earlier if the times of the partition's messages go back because their producers' clocks
    differ. At offset -1 nothing of the partition was read yet.
    """
    items = await service_of(request).scans.read(watermarks.get_all)
    return Response(encode(WatermarkList(items)), media_type=JSON)


@router.delete(
    "/v1/watermarks/{topic}/{partition}",
    status_code=204,
    operation_id="dropWatermark",
    summary="Drop the watermark of a partition",
    **removal_operation("The watermark", errors=(404, 409, 422, 503)),
    dependencies=needs(Scope.OPERATIONS_WRITE),
)
async def drop_watermark(
    request: Request, topic: TopicName, partition: PartitionNumber, _query: Annotated[NoQuery, Query()]
) -> Response:
    """Remove the watermark of a partition that nobody reads any more, as after its topic was removed.

    Refused while a consumer has moved or confirmed it in the last 30 seconds. A consumer that finds the partition
    later reads it from its first message. The rows that stand on it stay, and do not expire until they are moved
    (`pqs rebase`).
    """
    act = act_of(request, "watermarks.drop", f"{topic}-{partition}")
    dropped = await service_of(request).database.write(_drop, topic, partition, act)
    match dropped:
        case Drop.DONE:
            return Response(status_code=204)
        case Drop.UNKNOWN:
            raise NotFoundError(f"partition {partition} of topic {topic} has no watermark")
        case Drop.IN_USE:
            raise InUseError(f"a consumer reads partition {partition} of topic {topic}: stop it first")
        case never:
            assert_never(never)


async def _drop(connection: Connection, topic: str, partition: int, act: Act) -> Drop:
    dropped = await watermarks.drop(connection, topic, partition)
    if dropped is Drop.DONE:
        await audit.add(connection, act)
    return dropped
