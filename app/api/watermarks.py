"""`/v1/watermarks`: how far each Kafka partition is applied."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.access.principals import Scope
from app.api.bodies import JSON
from app.api.needs import needs
from app.api.openapi.operations import operation
from app.api.schemas import NoQuery, encode
from app.api.service import service_of
from app.store import watermarks
from app.wire.answers import WatermarkList

router = APIRouter(tags=["watermarks"])


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
    differ.
    """
    items = await service_of(request).scans.read(watermarks.get_all)
    return Response(encode(WatermarkList(items)), media_type=JSON)
