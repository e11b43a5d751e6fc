"""`/v1/entities`: one registration, its state, several by id, and lists."""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.access import rights
from app.access.principals import Scope
from app.access.refusals import AuthError
from app.api import history, waits
from app.api.bodies import JSON, NDJSON, TEXT, json_answer, media_type, read_body
from app.api.context import Headers
from app.api.full_scans import FullScans, is_full_scan
from app.api.needs import FULL_SCAN, admit, caller_of, check_again, needs, permit, weight_of_array
from app.api.negotiation import etag_of, preferred, unchanged
from app.api.openapi.operations import operation
from app.api.pages import next_link, read_cursor, write_cursor
from app.api.schemas import MAX_LIMIT, EntityQuery, FreshQuery, Lookup, MomentQuery, encode
from app.api.service import Service, full_scans_of, service_of
from app.domain.events import key_of
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.errors import Fault, InvalidInputError, NotFoundError, UnavailableError
from app.feed.watches import as_it_is, check_present
from app.store import listing
from app.store.listing import EntityFilter
from app.store.registrations import REGISTRATIONS
from app.wire.answers import (
    EntityPage,
    EntityState,
    LookupAnswer,
)
from app.wire.events import read_json
from app.wire.faults import depth, find_nul
from app.wire.syntax import MAX_NESTING

router = APIRouter(tags=["entities"])

PATH = "/v1/entities/{entity_id}"
_LOOKUP = msgspec.json.Decoder(Lookup)


@router.post(
    "/v1/entities/lookup",
    operation_id="lookupEntities",
    summary="Look up several entities by id",
    **operation(LookupAnswer, body=Lookup, fresh=True, errors=(400, 413, 415, 422, 503)),
    dependencies=needs(Scope.ENTITIES_READ, None),
)
async def lookup_entities(request: Request, query: Annotated[FreshQuery, Query()]) -> Response:
    """Answer the registrations of up to 1,000 entities, in the order asked, and the ids that have none."""
    service = service_of(request)
    permit(rights.domain(caller_of(request), Scope.ENTITIES_READ, query.domain))
    media_type(request, JSON)
    body = await read_body(request, service.settings.max_body)
    asked = read_json(body, _LOOKUP)
    ids = {key_of(id_, query.domain): id_ for id_ in asked.entity_ids}
    admit(service, caller_of(request), None, weight_of_array(len(ids)))

    headers = await waits.fresh(request, query, service.waits.marks)
    names = [(id_, query.domain) for id_ in ids.values()]
    found = await service.database.read(REGISTRATIONS.get_entity_states, names)
    found = {key: row for key, row in found.items() if row.forgotten_at is None}
    answer = LookupAnswer(
        items=[found[key] for key in ids if key in found],
        missing=[id_ for key, id_ in ids.items() if key not in found],
    )
    return Response(encode(answer), headers=headers, media_type=JSON)


@router.get("/v1/entities/lookup", include_in_schema=False, dependencies=needs(Scope.ENTITIES_READ))
async def refuse_get_lookup() -> None:
    """Answer 405: without this route, the path below would take `lookup` for an entity id."""
    raise HTTPException(405, headers={"Allow": "POST"})


@router.get(
    PATH,
    operation_id="getEntity",
    summary="Get one entity's registration",
    **operation(Registration, etag=True, waits=True, errors=(404, 410, 412, 422, 501, 503)),
    dependencies=needs(Scope.ENTITIES_READ),
)
async def get_entity(request: Request, entity_id: UUID, query: Annotated[MomentQuery, Query()]) -> Response:
    """Answer the whole row. Its ETag is its version; sent in `If-None-Match`, an unchanged row answers 304.

    With `wait`, or `Prefer: wait=…`, the call waits for a row; with conditions, until they hold: for another version
    than that of `If-None-Match`, for one above `after_version`, for a state, a sequence, or an offset of Kafka.
    Without `wait`, conditions that do not hold are answered at once: 304, or 504.

    With `as_of`, the row as the last change that is logged left it then: heartbeats are logged with
    `PQS_CHANGES=all` only. From a forget on, until the entity begins anew, that is a 410.
    """
    service = service_of(request)
    permit(rights.domain(caller_of(request), Scope.ENTITIES_READ, query.domain))
    if (moment := history.moment_of(request, entity_id, query)) is not None:
        then = await history.row_at(service, moment)
        return render_entity(entity_id, query.domain, request.scope["headers"], then)
    if waits.is_plain(request, query):
        registration = await service.reader.ask(entity_id, query.domain)
        return render_entity(entity_id, query.domain, request.scope["headers"], registration)
    found, headers = await waits.entity(request, service, entity_id, query)
    if found.row is not None and found.is_unchanged:
        return Response(status_code=304, headers={"ETag": etag_of(found.row), **headers})
    return waits.with_headers(render_entity(entity_id, query.domain, waits.unmet(request), found.row), headers)


def render_entity(entity_id: UUID, domain: str, headers: Headers, registration: Registration | None) -> Response:
    """The answer to a request with these headers. Raises NotFoundError and ForgottenError as `present` does."""
    if registration is None or registration.forgotten_at is not None:
        registration = present(entity_id, domain, registration)
    etag = etag_of(registration)
    if unchanged(headers, etag):
        return Response(status_code=304, headers={"ETag": etag})
    return json_answer(encode(registration), (b"etag", etag.encode()))


@router.get(
    "/v1/entities/{entity_id}/state",
    operation_id="getEntityState",
    summary="Get one entity's state",
    **operation(EntityState, text=True, etag=True, waits=True, errors=(404, 410, 412, 422, 501, 503)),
    dependencies=needs(Scope.ENTITIES_READ),
)
async def get_state(request: Request, entity_id: UUID, query: Annotated[MomentQuery, Query()]) -> Response:
    """Answer only the state; with `Accept: text/plain`, as the bare word.

    It waits as the call for the whole row does. The ETag is the row's version, weak, as both forms have the same.
    With `as_of`, the state that this call gave at that time, or, by `clock=occurred`, the state that was true then.
    From a forget on, until the entity begins anew, that is a 410; and so is the time before a forget that erased.
    """
    service = service_of(request)
    permit(rights.domain(caller_of(request), Scope.ENTITIES_READ, query.domain))
    headers = {"Vary": "Accept"}
    if (moment := history.moment_of(request, entity_id, query)) is not None:
        then = await history.state_at(service, moment)
        return _render_state(request, entity_id, query.domain, then, headers)
    if waits.is_plain(request, query):
        found = as_it_is(await service.reader.ask(entity_id, query.domain))
        conditions = request.scope["headers"]
    else:
        found, more = await waits.entity(request, service, entity_id, query)
        conditions = waits.unmet(request)
        headers |= more
    registration = present(entity_id, query.domain, found.row)
    etag = etag_of(registration)
    headers["ETag"] = f"W/{etag}"
    if unchanged(conditions, etag) or found.is_unchanged:
        return Response(status_code=304, headers=headers)
    return _render_state(request, entity_id, query.domain, registration.current_state, headers)


def _render_state(
    request: Request, entity_id: UUID, domain: str, state: RegistrationState, headers: dict[str, str]
) -> Response:
    if preferred(request, JSON, TEXT) == TEXT:
        return Response(str(state), headers=headers, media_type=TEXT)
    return Response(encode(EntityState(entity_id, domain, state)), headers=headers, media_type=JSON)


@router.get(
    "/v1/entities",
    operation_id="listEntities",
    summary="List entities",
    **operation(EntityPage, link=True, fresh=True, stream=Registration, errors=(400, 422, 503)),
    dependencies=needs(Scope.ENTITIES_READ, None),
)
async def list_entities(request: Request, query: Annotated[EntityQuery, Query()]) -> Response:
    """Answer a page, in the order of entity ids; with `Accept: application/x-ndjson`, all pages, one row per line.

    A row that matches throughout is answered exactly once, whatever is written meanwhile.
    """
    service = service_of(request)
    principal = caller_of(request)
    permit(rights.domain(principal, Scope.ENTITIES_READ, query.domain))
    wanted = _filter(query)
    admit(service, principal, None, FULL_SCAN if is_full_scan(wanted) else 1.0)
    after = None
    if query.cursor is not None:
        after = read_cursor(query.cursor, ["entities", wanted], _PageEnd).entity_id
    headers = {"Vary": "Accept"} | await waits.fresh(request, query, service.waits.scan_marks)
    if preferred(request, JSON, NDJSON) == NDJSON:
        with _turn(request, wanted):
            first, more = await _page(service, wanted, after, MAX_LIMIT)
        return StreamingResponse(
            _stream(request, service, full_scans_of(request), wanted, first, more),
            headers=headers,
            media_type=NDJSON,
        )
    with _turn(request, wanted):
        items, more = await _page(service, wanted, after, query.limit)
    cursor = None
    if more:
        cursor = write_cursor(_PageEnd(items[-1].entity_id), ["entities", wanted])
        headers |= next_link(request.scope["query_string"], cursor)
    return Response(encode(EntityPage(items, cursor)), headers=headers, media_type=JSON)


class _PageEnd(msgspec.Struct, array_like=True):
    """Where a page ended."""

    entity_id: UUID


def _turn(request: Request, wanted: EntityFilter) -> AbstractContextManager[None]:
    return full_scans_of(request).now() if is_full_scan(wanted) else nullcontext()


async def _page(
    service: Service, wanted: EntityFilter, after: UUID | None, limit: int
) -> tuple[list[Registration], bool]:
    database = service.full_scans if is_full_scan(wanted) else service.scans
    return await database.read(listing.get_by_state, wanted, after=after, limit=limit)


async def _stream(
    request: Request,
    service: Service,
    full_scans: FullScans,
    wanted: EntityFilter,
    page: list[Registration],
    more: bool,
) -> AsyncIterator[bytes]:
    """The list as lines, page by page: a slow or absent reader holds no database connection."""
    encoder = msgspec.json.Encoder()
    yield encoder.encode_lines(page)
    while more:
        try:
            permit(rights.domain(await check_again(request), Scope.ENTITIES_READ, wanted.domain))
        except (AuthError, UnavailableError):
            return  # a key that was revoked meanwhile reads no further page
        async with full_scans.later() if is_full_scan(wanted) else nullcontext():
            page, more = await _page(service, wanted, page[-1].entity_id, MAX_LIMIT)
        yield encoder.encode_lines(page)


def _filter(query: EntityQuery) -> EntityFilter:
    capabilities: dict[str, object] = {}
    if query.capabilities is not None:
        capabilities = _object(query.capabilities)
    for name in query.capability:
        if capabilities.setdefault(name, True) is not True:
            raise InvalidInputError([Fault("#/query/capability", f"`capabilities` says otherwise of {name}")])
    return EntityFilter(
        domain=query.domain,
        states=tuple(sorted(set(query.state))),
        node_type=query.node_type,
        capabilities=capabilities if query.capabilities is not None or query.capability else None,
        event_id=query.event_id,
        updated_before=query.updated_before,
        updated_since=query.updated_since,
        ids=None if query.id_prefix is None else _ids(query.id_prefix),
    )


def _ids(prefix: str) -> tuple[UUID, UUID]:
    """The first and the last id that begin with these digits."""
    digits = prefix.replace("-", "")
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def _object(text: str) -> dict[str, object]:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        value = None
    if not isinstance(value, dict) or depth(value) > MAX_NESTING or find_nul(value, "#") is not None:
        raise InvalidInputError([Fault("#/query/capabilities", 'a JSON object was expected, such as {"gpu": true}')])
    return value


def present(entity_id: UUID, domain: str, registration: Registration | None) -> Registration:
    """The registration that readers see. Raises NotFoundError without a row, and ForgottenError for a tombstone."""
    if registration is None:
        raise NotFoundError(f"there is no entity {entity_id} in domain {domain}")
    check_present(registration)
    return registration
