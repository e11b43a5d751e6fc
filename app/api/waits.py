"""Reads that wait: how long, for what, and what the answer says about it."""

from collections.abc import Awaitable, Sequence
from typing import TypeVar
from uuid import UUID

from fastapi import Request, Response
from msgspec import Struct

from app.access import rights
from app.access.principals import Scope
from app.api.asgi import Headers
from app.api.context import WAITS
from app.api.needs import check_again, permit
from app.api.negotiation import known_tags
from app.api.preferences import wants_wait
from app.api.presence import while_there
from app.api.schemas import MAX_WAIT, FreshQuery, RowQuery
from app.api.service import Service
from app.feed.late import LateError
from app.feed.marks import Marks, is_reached
from app.feed.watches import Found, Wanted
from app.store.watermarks import KafkaPartition
from app.wire.problems import Reached

T = TypeVar("T")


class Wait(Struct, frozen=True):
    """For how many seconds a request waits, and which of its preferences that is; None for none."""

    seconds: float
    preference: int | None

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says of the preference."""
        return {} if self.preference is None else {"Preference-Applied": f"wait={self.preference}"}


def wait_of(request: Request, query: FreshQuery) -> Wait:
    """How long a request waits: `wait` of its query, else of its preferences, else not at all."""
    if query.wait is not None:
        return Wait(query.wait, None)
    preference = wants_wait(request.scope["headers"], MAX_WAIT)
    return Wait(preference or 0.0, preference)


async def waited(request: Request, domain: str, wait: Wait, answer: Awaitable[T]) -> T:
    """The answer, if it takes no longer than the client is there; then the caller is checked again.

    Raises AuthError where the caller may not read the domain any more.
    """
    if not wait.seconds:
        return await answer
    request.scope[WAITS] = True
    found = await while_there(request, answer)
    permit(rights.domain(await check_again(request), Scope.ENTITIES_READ, domain))
    return found


# --- Offsets -------------------------------------------------------------------------------------------------------


async def fresh(request: Request, query: FreshQuery, marks: Marks) -> dict[str, str]:
    """Wait until everything up to the offsets of the query is applied; the headers that say so.

    Raises LateError where it is not, unless the query takes what there is.
    """
    if not query.min_offset:
        return {}
    wanted = _offsets(query.min_offset)
    wait = wait_of(request, query)
    found = await waited(request, query.domain, wait, marks.get(wanted, wait.seconds))
    if is_reached(wanted, found):
        return wait.headers
    if query.late is not None:
        return wait.headers | LATE
    behind = [Reached(*partition, found.get(partition)) for partition in sorted(wanted)]
    raise LateError("not everything up to `min_offset` is applied", watermarks=behind)


LATE = {"PQS-Late": "true"}


def _offsets(given: Sequence[str]) -> dict[KafkaPartition, int]:
    """The offsets by partition; of several for one the highest."""
    wanted: dict[KafkaPartition, int] = {}
    for text in given:
        name, _, offset = text.rpartition(":")
        topic, _, partition = name.rpartition("-")
        key = topic, int(partition)
        wanted[key] = max(int(offset), wanted.get(key, 0))
    return wanted


# --- One entity ----------------------------------------------------------------------------------------------------


def is_plain(request: Request, query: RowQuery) -> bool:
    """Whether a read of one entity neither waits nor demands anything."""
    return not (
        query.min_offset
        or query.until
        or query.after_version is not None
        or query.min_sequence is not None
        or wait_of(request, query).seconds
    )


async def entity(
    request: Request, service: Service, entity_id: UUID, query: RowQuery
) -> tuple[Found, dict[str, str]]:
    """The row of an entity as the query demands it, or as it is when the time is over, and what headers say of it.

    Raises LateError where something is missing, unless the query takes what there is; and what Watches.get() does.
    """
    headers = await fresh(request, query, service.waits.marks)
    wait = wait_of(request, query)
    known = known_tags(request.scope["headers"])
    wanted = Wanted(
        is_new=None if known is None else lambda version: not known(f'"{version}"'),
        after_version=query.after_version,
        until=frozenset(query.until),
        min_sequence=query.min_sequence,
    )
    asking = service.waits.watches.get((entity_id, query.domain), wanted, wait.seconds)
    found = await waited(request, query.domain, wait, asking)
    headers = headers | wait.headers
    if found.reached is not None:
        headers["PQS-Reached"] = str(found.reached)
    if found.late:
        if query.late is None or found.row is None:
            raise LateError(_missing(query, found), current=found.row)
        headers |= LATE
    return found, headers


def _missing(query: RowQuery, found: Found) -> str:
    wanted = []
    if query.until:
        wanted.append(" or ".join(f"`{state}`" for state in query.until))
    if query.min_sequence is not None:
        wanted.append(f"sequence {query.min_sequence}")
    there = "there is no row yet" if found.row is None else f"the state is `{found.row.current_state}`"
    return f"the entity has not reached {' and '.join(wanted)}; {there}"


def unmet(request: Request) -> Headers:
    """The headers of a request without `If-None-Match`: it was waited for."""
    return [field for field in request.scope["headers"] if field[0] != b"if-none-match"]


def with_headers(answer: Response, headers: dict[str, str]) -> Response:
    """The answer, with these headers as well."""
    answer.headers.update(headers)
    return answer
