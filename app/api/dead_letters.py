"""`/v1/dead-letters`: messages that failed, to be listed, retried or removed."""

from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from app.access.principals import Scope
from app.api.audit import act_of
from app.api.bodies import JSON
from app.api.events import render_one
from app.api.needs import needs
from app.api.openapi.operations import operation, removal_operation, retry_operation
from app.api.pages import next_link, read_cursor, write_cursor
from app.api.schemas import LetterFilterQuery, LettersQuery, NoQuery, encode
from app.api.service import service_of
from app.domain.positions import MAX_NUMBER
from app.domain.results import Result
from app.errors import NotFoundError
from app.outbound.requeue import requeue
from app.store import audit, dead_letters, held
from app.store.audit import Act
from app.store.database import Connection
from app.store.dead_letters import DeadLetter, LetterFilter
from app.store.held import HeldError
from app.store.history import Order
from app.wire.answers import DeadLetterPage, DeadMessage, Header

router = APIRouter(tags=["dead-letters"])

T = TypeVar("T")

ROUTE = "/v1/dead-letters"
FILTERS = ["dead letters"]  # of a list without filters, in the order of ids

Id = Annotated[int, Path(ge=1, le=MAX_NUMBER, description="The dead letter's id.")]


class _PageEnd(msgspec.Struct, array_like=True):
    """Where a page ended."""

    id: Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]


@router.get(
    ROUTE,
    operation_id="listDeadLetters",
    summary="List messages that failed",
    **operation(DeadLetterPage, link=True, errors=(400, 422, 503)),
    dependencies=needs(Scope.OPERATIONS_READ),
)
async def list_dead_letters(request: Request, query: Annotated[LettersQuery, Query()]) -> Response:
    """Answer a page of the letters that match every filter, oldest first, or newest first with `order=desc`.

    A page of large messages ends early, after some megabytes.
    """
    wanted, descending = filter_of(query), query.order is Order.DESC
    bound_to = FILTERS if wanted == LetterFilter() and not descending else [*FILTERS, wanted, query.order]
    after = None if query.cursor is None else read_cursor(query.cursor, bound_to, _PageEnd).id

    letters, more = await service_of(request).scans.read(
        dead_letters.get_page, after=after, limit=query.limit, wanted=wanted, descending=descending
    )
    cursor = write_cursor(_PageEnd(letters[-1].id), bound_to) if more else None
    headers = {} if cursor is None else next_link(request.scope["query_string"], cursor)
    page = DeadLetterPage([shown(each) for each in letters], cursor)
    return Response(encode(page), headers=headers, media_type=JSON)


def filter_of(query: LetterFilterQuery) -> LetterFilter:
    """The filter that a query asks for."""
    return LetterFilter(
        source=query.source, topic=query.topic, error=query.error, entity_id=query.entity_id, since=query.since
    )


@router.get(
    ROUTE + "/{id}",
    operation_id="getDeadLetter",
    summary="Get a message that failed",
    **operation(DeadMessage, errors=(404, 422, 503)),
    dependencies=needs(Scope.OPERATIONS_READ),
)
async def get_dead_letter(request: Request, id: Id, _query: Annotated[NoQuery, Query()]) -> Response:  # noqa: A002 - the name in the path
    """Answer one dead letter: its bytes, its place and its error."""
    letter = await service_of(request).database.read(dead_letters.get, id)
    if letter is None:
        raise _unknown(id)
    return Response(encode(shown(letter)), media_type=JSON)


@router.post(
    ROUTE + "/{id}/retry",
    operation_id="retryDeadLetter",
    summary="Retry a message",
    **retry_operation(),
    dependencies=needs(Scope.OPERATIONS_WRITE),
)
async def retry_dead_letter(request: Request, id: Id, _query: Annotated[NoQuery, Query()]) -> Response:  # noqa: A002 - the name in the path
    """Apply the message's event, at the position where it was read, and answer like `POST /v1/events`.

    If the outcome is `applied`, `ignored`, `duplicate` or `stale` (later events of its entity are already applied),
    the dead letter is removed in the same transaction. Otherwise it stays: 409 for an early event or a conflict, 400
    and 422 for a message that still can't be read, and 422 for one that PostgreSQL still refuses. A message whose
    entity is held answers 409, too: `/v1/dead-letters/entities` retries it with the messages behind it. An outgoing
    message (`source` is `relay`) goes back to the outbox instead, behind the waiting messages of its entity: 202.
    """
    service = service_of(request)
    letter = await service.database.read(dead_letters.get, id)
    if letter is None:
        raise _unknown(id)
    if letter.partition is None or letter.offset is None:
        act = act_of(request, "dead-letters.retry", _target(letter.id), "requeued")
        if not await service.database.write(_with_act, requeue, letter, act):
            raise _unknown(id)
        service.entries.committed([letter])
        return Response(status_code=202)
    if letter.entity_id is not None and await service.database.read(held.get, letter.entity_id) is not None:
        raise HeldError(letter.entity_id)

    async def also(connection: Connection, results: list[Result]) -> None:
        await audit.add(connection, act_of(request, "dead-letters.retry", _target(id), str(results[0].outcome)))

    result = await service.letters.retry(letter, also)
    return render_one(result, instance=request.url.path)


@router.delete(
    ROUTE + "/{id}",
    status_code=204,
    operation_id="deleteDeadLetter",
    summary="Remove a message for good",
    **removal_operation("The dead letter", errors=(404, 409, 422, 503)),
    dependencies=needs(Scope.OPERATIONS_WRITE),
)
async def delete_dead_letter(request: Request, id: Id, _query: Annotated[NoQuery, Query()]) -> Response:  # noqa: A002 - the name in the path
    """Remove the dead letter. Its message is not retried. One that other messages wait behind stays: 409."""
    database = service_of(request).database
    act = act_of(request, "dead-letters.delete", _target(id))
    if not await database.write(_with_act, dead_letters.remove, id, act):
        letter = await database.read(dead_letters.get, id)
        if letter is None or letter.entity_id is None:
            raise _unknown(id)
        raise HeldError(letter.entity_id)
    return Response(status_code=204)


async def _with_act(
    connection: Connection, work: Callable[[Connection, T], Awaitable[bool]], on: T, act: Act
) -> bool:
    """Do the work, and write the act down if there was something to do: in one transaction."""
    done = await work(connection, on)
    if done:
        await audit.add(connection, act)
    return done


def _target(id_: int) -> str:
    return f"dead letter {id_}"


def _unknown(id_: int) -> NotFoundError:
    return NotFoundError(f"there is no dead letter {id_}")


def shown(letter: DeadLetter) -> DeadMessage:
    """A dead letter for people: bytes that are text as text."""
    key, key_base64 = _text(letter.key)
    value, value_base64 = _text(letter.value)
    return DeadMessage(
        id=letter.id,
        source=letter.source,
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        error=letter.error,
        created_at=letter.created_at,
        key=key,
        key_base64=key_base64,
        value=value,
        value_base64=value_base64,
        headers=[Header(name, *_text(data)) for name, data in letter.headers],
    )


def _text(data: bytes | None) -> tuple[str | None, str | None]:
    """Bytes as text, or as base64 if they are not UTF-8: one of the two is None."""
    if data is None:
        return None, None
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return None, b64encode(data).decode()
