"""Following: the changes of entities, by long polls, as lines, or as server-sent events."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Send
from starlette.types import Scope as AsgiScope

from app.access import rights
from app.access.principals import Scope
from app.access.refusals import AuthError
from app.api import problems
from app.api.bodies import JSON, NDJSON
from app.api.compression import accepts_gzip
from app.api.needs import caller_of, check_again, needs, permit
from app.api.negotiation import preferred
from app.api.openapi.operations import changes_operation
from app.api.presence import message_of, while_there
from app.api.pushed import Form, Pushed, reset_event, reset_line, write_events, write_ndjson
from app.api.schemas import ChangesQuery, encode
from app.api.service import service_of
from app.domain.changes import Logging
from app.errors import ChangesGoneError, ChangesOffError, Fault, InvalidInputError, UnavailableError
from app.feed import follow, tokens
from app.feed.feed import Start
from app.feed.follow import Line
from app.feed.items import Filter
from app.feed.tokens import Token

router = APIRouter(tags=["changes"])

EVENTS = "text/event-stream"
STREAMED = {"Vary": "Accept", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy is to pass lines on


@router.get(
    "/v1/changes",
    operation_id="followChanges",
    summary="Follow what changes",
    **changes_operation(),
    dependencies=needs(Scope.ENTITIES_READ),
)
async def follow_changes(request: Request, query: Annotated[ChangesQuery, Query()]) -> Response:
    """Answer the changes after a token, at once or as soon as there are some.

    Each change comes at least once to whoever follows `next`, and exactly once where `next` is stored together with
    the effect. An entity's changes are in the order of its versions; there is no order between entities. As
    `text/event-stream` or `application/x-ndjson` it goes on for ten minutes.
    """
    service = service_of(request)
    permit(rights.domain(caller_of(request), Scope.ENTITIES_READ, query.domain))
    if service.settings.changes is Logging.OFF:
        raise ChangesOffError("changes are not logged: PQS_CHANGES is off")
    if query.include and not service.settings.changes_rows:
        detail = "rows are not logged with their changes: PQS_CHANGES_ROWS is false"
        raise InvalidInputError([Fault("#/query/include", detail)])
    media = preferred(request, JSON, NDJSON, EVENTS)
    asked = follow.Request(
        after=_after(request, query, resumes=media == EVENTS),
        wanted=_filter(query),
        snapshot=query.snapshot,
        rows=query.include is not None,
        limit=query.limit,
    )
    if media != JSON:
        door = request.scope.get("extensions", {}).get("pqs.push")
        if door is not None and request.method == "GET" and not accepts_gzip(request.scope["headers"]):
            return Pushed(request, door, asked, _FORMS[media], headers=STREAMED, media_type=media)
        lines = service.follow.stream(asked)
        first = await anext(lines)  # raises what is wrong with the token, while there is a status to say it with
        lines = _while_allowed(request, query.domain, lines)
        return _Stream(_written(request, _FORMS[media], first, lines), headers=STREAMED, media_type=media)
    answer = await while_there(request, service.follow.answer(asked, wait=query.wait))
    await _check_again(request, query.domain)
    items = b",".join([line.body for line in answer.lines])
    caught_up = b"true" if answer.caught_up else b"false"
    body = b'{"items":[%b],"next":"%b","caught_up":%b}' % (items, tokens.write(answer.next).encode(), caught_up)
    return Response(body, headers={"Vary": "Accept", "Cache-Control": "no-store"}, media_type=JSON)


def _after(request: Request, query: ChangesQuery, *, resumes: bool) -> Token | Start:
    """Where to begin. A stream that a browser opens again says so by `Last-Event-ID`."""
    after = query.after
    if resumes and (last := request.headers.get("last-event-id")):
        after = last
    if after == "now":
        return Start.NOW
    return Start.OLDEST if after in {None, "start"} else tokens.read(after or "")


def _filter(query: ChangesQuery) -> Filter:
    return Filter(
        query.domain,
        entity_ids=frozenset(query.entity_id),
        states=frozenset(query.state),
        node_type=query.node_type,
        types=frozenset(query.type),
    )


async def _check_again(request: Request, domain: str) -> None:
    """Check the caller and its right to the domain as at the request's beginning. Raises what check_again() does."""
    permit(rights.domain(await check_again(request), Scope.ENTITIES_READ, domain))


async def _while_allowed(
    request: Request, domain: str, lines: AsyncGenerator[Sequence[Line], None]
) -> AsyncGenerator[Sequence[Line], None]:
    """The lines of a stream, for as long as its caller may read them. The stream ends with the right to it."""
    async with aclosing(lines):
        async for some in lines:
            try:
                await _check_again(request, domain)
            except (AuthError, UnavailableError):
                return
            yield some


class _Stream(StreamingResponse):
    """A stream that ends when its client sends no more."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Stream."""

        async def heard() -> Message:
            return await message_of(scope, receive)

        await super().__call__(scope, heard, send)


async def _written(
    request: Request, form: Form, first: Sequence[Line], lines: AsyncGenerator[Sequence[Line], None]
) -> AsyncIterator[bytes]:
    yield form.write(first)
    try:
        async with aclosing(lines):
            async for some in lines:
                yield form.write(some)
    except ChangesGoneError as error:
        yield form.reset(encode(problems.gone(request, error)))
    except UnavailableError:
        return  # whoever follows comes again, with the last token


_FORMS = {EVENTS: Form(write_events, reset_event), NDJSON: Form(write_ndjson, reset_line)}
