"""Watermarks: how far what comes from Kafka is in."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.answers import WatermarkList
from app.api.bodies import JSON
from app.api.openapi.operations import operation
from app.api.schemas import NoQuery, encode
from app.api.service import service_of
from app.store import watermarks

router = APIRouter(tags=["kafka"])


@router.get(
    "/v1/watermarks",
    operation_id="listWatermarks",
    summary="List how far each partition is read",
    **operation(WatermarkList, errors=(422, 503)),
)
async def list_watermarks(request: Request, _query: Annotated[NoQuery, Query()]) -> Response:
    """Answer a watermark for each partition of which something was read, by topic and partition.

    Every message up to `offset` is applied, or is a dead letter. What was in the partition by `as_of` is in the
    projection: it is now, within a second, while a consumer has caught up, else the time of the last message, or an
    earlier one where the times of a partition's messages go back, because their producers' clocks differ.
    """
    items = await service_of(request).scans.read(watermarks.get_all)
    return Response(encode(WatermarkList(items)), media_type=JSON)
