"""`/v1/system` and `/v1/keys`: how the service is set up, for operators. Nothing here has a secret."""

import os
from importlib.metadata import version
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import SecretStr

from app.access.principals import Scope
from app.api.bodies import JSON
from app.api.needs import needs
from app.api.openapi.operations import operation
from app.api.schemas import NoQuery, encode
from app.api.service import service_of
from app.settings import PREFIX, Settings
from app.store import keys
from app.store.database import Database
from app.wire.system import ChangedSetting, KeyList, KeyRecord, PoolState, SystemState

router = APIRouter()


@router.get(
    "/v1/system",
    operation_id="getSystem",
    tags=["system"],
    summary="Get how the service is set up",
    **operation(SystemState, errors=(422,)),
    dependencies=needs(Scope.OPERATIONS_READ),
)
async def get_system(request: Request, _query: Annotated[NoQuery, Query()]) -> Response:
    """Answer the settings that differ from their defaults, and the pools of the process that answers.

    The value of a setting that may hold a secret is null.
    """
    service = service_of(request)
    state = SystemState(
        version=version("projection-query-service"),
        pid=os.getpid(),
        settings=changed(service.settings),
        pools=[_pool(each) for each in service.pools],
    )
    return Response(encode(state), media_type=JSON)


@router.get(
    "/v1/keys",
    operation_id="listKeys",
    tags=["keys"],
    summary="List who is let in",
    **operation(KeyList, errors=(422, 503)),
    dependencies=needs(Scope.OPERATIONS_READ),
)
async def list_keys(request: Request, _query: Annotated[NoQuery, Query()]) -> Response:
    """Answer all keys, those of the past included: names, rights and ends. `pqs keys` makes and revokes them."""
    found = await service_of(request).scans.read(keys.get_all)
    listed = KeyList([msgspec.convert(msgspec.structs.asdict(each), KeyRecord, strict=False) for each in found])
    return Response(encode(listed), media_type=JSON)


def changed(settings: Settings) -> list[ChangedSetting]:
    """The settings that differ from their defaults, in the order of the documentation."""
    given = settings.model_dump()
    found = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data=given)
        if given[name] != default:
            secret = isinstance(given[name], SecretStr)
            shown = None if secret else str(given[name])
            found.append(ChangedSetting(PREFIX + name.upper(), shown, None if default is None else str(default)))
    return found


def _pool(database: Database) -> PoolState:
    open_, in_use, waiting = database.connections
    return PoolState(name=database.name, most=database.most, open=open_, in_use=in_use, waiting=waiting)
