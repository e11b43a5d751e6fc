"""`/v1/overdue`: the deadlines that have passed, and the next one."""

import asyncio
import hashlib
import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, cast
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request, Response

from app.access import rights
from app.access.principals import Scope
from app.api import waits
from app.api.asgi import Headers
from app.api.bodies import JSON, json_answer
from app.api.needs import caller_of, needs, permit
from app.api.negotiation import known_tags
from app.api.openapi.operations import operation
from app.api.pages import next_link, read_cursor, write_cursor
from app.api.schemas import DEFAULT_LIMIT, OverdueQuery, encode
from app.api.service import Service, service_of
from app.domain.decider import Deadline
from app.domain.events import DEFAULT_DOMAIN, Time
from app.domain.projection import REGISTRATION
from app.domain.registration import Registration
from app.errors import BadCursorError
from app.feed.boards import Shown
from app.store.database import Connection
from app.store.overdue import DueKey, now
from app.store.registrations import REGISTRATIONS
from app.wire.answers import (
    OverduePage,
    OverdueRegistration,
)

router = APIRouter(tags=["overdue"])

TAG_BYTES = 12  # of an ETag: those of two pages differ


class _PageEnd(msgspec.Struct, array_like=True):
    """Where a page ended, and the `as_of` of the first page."""

    as_of: Time
    deadline: Time
    entity_id: UUID


class _Asked(msgspec.Struct, frozen=True):
    """One page of one kind of deadline. `as_of` is None for the database's clock."""

    kind: Deadline
    path: str
    domain: str
    limit: int
    as_of: datetime | None = None
    after: DueKey | None = None

    @property
    def filters(self) -> list[str]:
        """What a cursor is bound to."""
        return [self.path, self.domain]


@router.get(
    "/v1/overdue/ack",
    operation_id="listOverdueAcks",
    summary="List the nodes that did not acknowledge in time",
    **operation(OverduePage, link=True, page_tag=True, fresh=True, errors=(400, 422, 503)),
    dependencies=needs(Scope.ENTITIES_READ),
)
async def overdue_ack(request: Request, query: Annotated[OverdueQuery, Query()]) -> Response:
    """Answer a page of nodes in `accepted` or `awaiting_ack` whose `ack_deadline` lies before `as_of`, oldest first.

    Nodes whose timeout event was already emitted are left out, even if it was emitted after `as_of`, and so are nodes
    whose messages wait behind a dead letter. The first page has an ETag. Sent in `If-None-Match` with `wait`, the
    call answers as soon as the page differs: a row of it has changed, or a further deadline has passed.
    """
    return await _scan(request, query, Deadline.ACK)


@router.get(
    "/v1/overdue/liveness",
    operation_id="listOverdueLiveness",
    summary="List the nodes that sent no heartbeat in time",
    **operation(OverduePage, link=True, page_tag=True, fresh=True, errors=(400, 422, 503)),
    dependencies=needs(Scope.ENTITIES_READ),
)
async def overdue_liveness(request: Request, query: Annotated[OverdueQuery, Query()]) -> Response:
    """Answer a page of nodes in `active` whose `liveness_deadline` lies before `as_of`, oldest first.

    Nodes whose timeout event was already emitted are left out, even if it was emitted after `as_of`, and so are nodes
    whose messages wait behind a dead letter. The first page has an ETag. Sent in `If-None-Match` with `wait`, the
    call answers as soon as the page differs: a row of it has changed, or a further deadline has passed.
    """
    return await _scan(request, query, Deadline.LIVENESS)


async def _scan(request: Request, query: OverdueQuery, kind: Deadline) -> Response:
    permit(rights.domain(caller_of(request), Scope.ENTITIES_READ, query.domain))
    asked = _Asked(kind, request.url.path, query.domain, query.limit, query.as_of)
    if query.cursor is not None:
        end = read_cursor(query.cursor, asked.filters, _PageEnd)
        if query.as_of not in {None, end.as_of}:
            raise BadCursorError("the cursor belongs to another `as_of`; leave out `as_of` when you send a cursor")
        asked = msgspec.structs.replace(asked, as_of=end.as_of, after=(end.deadline, end.entity_id))

    scans = service_of(request).scans
    headers = await waits.fresh(request, query, service_of(request).waits.scan_marks)
    known = known_tags(request.scope["headers"])
    if query.cursor is not None:
        return _page(request, await scans.read_now(_read, asked), headers)
    wait = waits.wait_of(request, query)
    if known is None or not wait.seconds or query.as_of is not None:
        shown = await scans.read_now(_read, asked)
    else:
        headers |= wait.headers
        shown = await waits.waited(
            request, query.domain, wait, _waited(service_of(request), asked, known, wait.seconds)
        )
    headers["ETag"] = f"W/{shown.tag}"
    if known is not None and known(shown.tag):
        return Response(status_code=304, headers=headers)
    return _page(request, shown, headers)


def _waited(service: Service, asked: _Asked, known: Callable[[str], bool], seconds: float) -> "asyncio.Future[Shown]":
    """The page as soon as it is another one."""
    states = frozenset(REGISTRATION.deadlines[asked.kind].states)
    key = asked.kind, asked.domain, asked.limit
    return service.waits.boards.ask(key, states, lambda: service.scans.read_now(_read, asked), known, seconds)


def _page(request: Request, shown: Shown, headers: dict[str, str]) -> Response:
    if shown.cursor is not None:
        headers = headers | next_link(request.scope["query_string"], shown.cursor)
    return Response(shown.body, headers=headers, media_type=JSON)


# --- Without FastAPI: a thousand of these are answered in the same moment -------------------------------------------

PATHS = {b"/v1/overdue/ack": Deadline.ACK, b"/v1/overdue/liveness": Deadline.LIVENESS}
_PARAMETER = re.compile(
    rb"(?:(domain)=([A-Za-z0-9._-]{1,128})|(limit)=([1-9][0-9]{0,2}|1000)|(wait)=([1-9]|[1-5][0-9]|60))"
)
_PREFERRED = re.compile(rb"wait=([1-9]|[1-5][0-9]|60)")


class Waiting(msgspec.Struct, frozen=True):
    """A wait for a deadline, in its plain form."""

    asked: _Asked
    seconds: int
    preference: int | None
    query: bytes

    @property
    def domain(self) -> str:
        """The domain of the page."""
        return self.asked.domain


def plain_wait(target: bytes, prefer: bytes | None) -> Waiting | None:
    """The wait that a request line and a preference ask for; None where that is not plain, or no wait."""
    path, _, query = target.partition(b"?")
    kind = PATHS.get(path)
    if kind is None:
        return None
    given: dict[bytes, bytes] = {}
    for part in query.split(b"&") if query else ():
        match = _PARAMETER.fullmatch(part)
        if match is None:
            return None
        name, value = (each for each in match.groups() if each is not None)
        if name in given:
            return None
        given[name] = value
    preferred = _PREFERRED.fullmatch(prefer) if prefer is not None else None
    if (prefer is not None and preferred is None) or not (preferred or b"wait" in given):
        return None
    preference = int(preferred[1]) if preferred is not None and b"wait" not in given else None
    asked = _Asked(
        kind,
        path.decode(),
        given.get(b"domain", DEFAULT_DOMAIN.encode()).decode(),
        int(given.get(b"limit", DEFAULT_LIMIT)),
    )
    return Waiting(asked, preference or int(given[b"wait"]), preference, query)


def begin_wait(service: Service, waiting: Waiting, headers: Headers) -> "asyncio.Future[Shown]":
    """The page as soon as it is another one than those of `If-None-Match`."""
    known = known_tags(headers)
    assert known is not None  # noqa: S101 - a wait without that header is not plain
    return _waited(service, waiting.asked, known, waiting.seconds)


def end_wait(waiting: Waiting, headers: Headers, shown: Shown) -> Response:
    """The answer: the same that FastAPI's handler gives, but never coded. It is made once for all who ask alike."""
    known = known_tags(headers)
    key = known is not None and known(shown.tag), waiting.preference, waiting.query
    answer = shown.answers.get(key)
    if answer is None:
        answer = shown.answers[key] = _answer(waiting, shown, is_known=key[0])
    return cast("Response", answer)


def _answer(waiting: Waiting, shown: Shown, *, is_known: bool) -> Response:
    etag = f"W/{shown.tag}".encode()
    more: Headers = []
    if waiting.preference is not None:
        more.append((b"preference-applied", b"wait=%d" % waiting.preference))
    if is_known:
        response = Response(status_code=304)
        response.raw_headers = [(b"etag", etag), *more]
        return response
    if shown.cursor is not None:
        more.append((b"link", next_link(waiting.query, shown.cursor)["Link"].encode()))
    return json_answer(shown.body, (b"etag", etag), (b"vary", b"Accept-Encoding"), *more)


async def _read(connection: Connection, asked: _Asked) -> Shown:
    """A page of the rows that are overdue at `as_of`, by default the database's clock."""
    clock = await now(connection)
    read_at = time.monotonic()
    as_of = asked.as_of or clock
    scan = REGISTRATIONS.overdue[asked.kind]
    found = await scan.get_overdue(connection, asked.domain, as_of=as_of, after=asked.after, limit=asked.limit)
    items = []
    digest = hashlib.blake2b(digest_size=TAG_BYTES)
    for registration in found.items:
        passed = as_of - (_deadline(registration, asked.kind) or as_of)
        items.append(
            OverdueRegistration(**msgspec.structs.asdict(registration), overdue_seconds=passed.total_seconds())
        )
        digest.update(b"%b%d " % (registration.entity_id.bytes, registration.version))
    cursor = None
    if found.more:
        last = found.items[-1]
        cursor = write_cursor(_PageEnd(as_of, _deadline(last, asked.kind) or as_of, last.entity_id), asked.filters)
        digest.update(b"more")
    body = encode(OverduePage(as_of, items, cursor, found.next_deadline))
    return Shown(f'"{digest.hexdigest()}"', body, cursor, clock, read_at, found.next_deadline)


def _deadline(registration: Registration, kind: Deadline) -> datetime | None:
    return registration.ack_deadline if kind is Deadline.ACK else registration.liveness_deadline
