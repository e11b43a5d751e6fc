"""Following: what changes, one thing after the other, across broken connections and lost places."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import TypeAlias
from uuid import UUID

import msgspec
from msgspec import Struct

from app.domain.events import DEFAULT_DOMAIN
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.wire.answers import (
    ChangeItem,
    RowItem,
)
from pqs_client.connection import NDJSON, PASSING_STATUSES, Caller
from pqs_client.problems import ClientError, ConnectionFailedError, GoneError, ProblemError, UnexpectedAnswerError

BOOKMARK = 15.0  # seconds that a stream of the service is silent at most


class FollowedChange(ChangeItem, frozen=True, kw_only=True, tag="change", tag_field="kind"):
    """A change, and the token of its place. `row` is the row after it, where it was asked for and logged."""

    next: str
    row: Registration | None = None


class FollowedRow(RowItem, frozen=True, kw_only=True, tag="row", tag_field="kind"):
    """A row of a snapshot, and a token with which the snapshot goes on; it may tell some rows again."""

    next: str


class Bookmark(Struct, frozen=True, tag="bookmark", tag_field="kind"):
    """Nothing has changed, and here is the place all the same."""

    next: str


class Reset(Struct, frozen=True, tag="reset", tag_field="kind"):
    """The place is lost: `expired`, or `history` (the database has another past). All rows follow, by a snapshot.

    Forget what was learned from changes: an entity that the snapshot does not name is not there.
    """

    reason: str


News: TypeAlias = FollowedChange | FollowedRow | Bookmark | Reset
_line = msgspec.json.Decoder(News)


def follow(
    caller: Caller,
    *,
    after: str | None = None,
    snapshot: bool = False,
    rows: bool = False,
    domain: str = DEFAULT_DOMAIN,
    entity_id: Iterable[UUID] = (),
    state: Iterable[RegistrationState] = (),
    node_type: str | None = None,
    type_: Iterable[str] = (),
) -> AsyncGenerator[News, None]:
    """What changes; see Client.changes."""
    filters = {
        "domain": domain,
        "entity_id": list(entity_id),
        "state": [str(each) for each in state],
        "node_type": node_type,
        "type": list(type_),
        "include": "row" if rows else None,
    }
    return _follow(caller, filters, after, snapshot=snapshot)


async def _follow(
    caller: Caller, filters: Mapping[str, object], after: str | None, *, snapshot: bool
) -> AsyncGenerator[News, None]:
    failures = 0
    begun = False
    while True:
        try:
            async with aclosing(_stream(caller, {**filters, "after": after, "snapshot": snapshot or None})) as news:
                async for each in news:
                    begun, failures = True, 0
                    if isinstance(each, Reset):
                        after, snapshot = None, True
                    else:
                        after, snapshot = each.next, False
                    yield each
        except GoneError as error:
            after, snapshot = None, True
            yield Reset(error.reason or "expired")
        except (ConnectionFailedError, ProblemError) as error:
            if not begun or not _passes(error):
                raise
            failures += 1
            await caller.sleep(caller.wait(error, failures, caller.retry))


async def _stream(caller: Caller, params: Mapping[str, object]) -> AsyncGenerator[News, None]:
    """The lines of one stream. The service ends it after some minutes."""
    async with caller.stream(
        "GET", "/v1/changes", params=params, headers={"Accept": NDJSON}, silence=BOOKMARK
    ) as lines:
        ended = True
        async for line in lines:
            ended = False
            try:
                yield _line.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise UnexpectedAnswerError(f"a line is not one of this service: {error}") from None
        if ended:
            raise ConnectionFailedError("GET /v1/changes: the stream ended before it began", perhaps_done=False)


def _passes(error: ClientError) -> bool:
    return isinstance(error, ConnectionFailedError) or (
        isinstance(error, ProblemError) and error.status in PASSING_STATUSES
    )
