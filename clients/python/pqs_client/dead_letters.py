"""Dead letters: messages that could not be applied or sent. List, retry or remove them, and what waits behind them.

A retry and a removal remove the letter, so a repeat would not find it. The client therefore repeats neither once it
was sent: a ConnectionFailedError has `perhaps_done`, and the list shows whether it was done.
"""

from collections.abc import AsyncGenerator
from datetime import datetime
from uuid import UUID

from msgspec import Struct

from app.domain.results import Result
from app.wire.answers import (
    DeadLetterPage,
    DeadLetterSource,
    DeadMessage,
    HeldEntity,
    HeldPage,
    LetterRun,
    QueueAnswer,
)
from pqs_client.connection import Caller, read

PATH = "/v1/dead-letters"
ENTITIES = f"{PATH}/entities"
ACCEPTED = 202  # an outgoing message is in the outbox again


class LetterFilter(Struct, frozen=True, kw_only=True):
    """Which dead letters are meant: those that match all of it. None matches any; `error` is a part of its error."""

    source: DeadLetterSource | None = None
    topic: str | None = None
    error: str | None = None
    entity_id: UUID | None = None
    since: datetime | None = None


def _parameters(wanted: LetterFilter | None) -> dict[str, object]:
    return {} if wanted is None else {name: getattr(wanted, name) for name in LetterFilter.__struct_fields__}


class DeadLetters:
    """Calls about dead letters."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def pages(
        self,
        wanted: LetterFilter | None = None,
        *,
        newest_first: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> AsyncGenerator[DeadLetterPage, None]:
        """All dead letters that match, page by page, oldest first, from `cursor` on. Repeatable."""
        filters = _parameters(wanted) | ({"order": "desc"} if newest_first else {})
        while True:
            page = await self._caller.get(PATH, DeadLetterPage, {**filters, "limit": limit, "cursor": cursor})
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    async def get(self, id_: int) -> DeadMessage:
        """One dead letter. Repeatable. Raises NotFoundError."""
        return await self._caller.get(f"{PATH}/{id_}", DeadMessage)

    async def retry_all(self, wanted: LetterFilter | None = None) -> LetterRun:
        """Retry all letters that match, with what waits behind them. Returns at once: ask `run` how far it is.

        Repeatable: while the run lasts, the same call answers it. Raises ConflictError if too many runs last.
        """
        return await self._run("retry", wanted)

    async def delete_all(self, wanted: LetterFilter | None = None) -> LetterRun:
        """Remove all letters that match, for good, except for those that hold their entity. Otherwise as above."""
        return await self._run("delete", wanted)

    async def _run(self, action: str, wanted: LetterFilter | None) -> LetterRun:
        response = await self._caller.call("POST", f"{PATH}/{action}", params=_parameters(wanted))
        return read(response, LetterRun)

    async def run(self, id_: UUID) -> LetterRun:
        """How far a run is: at its end it has `finished_at`. Repeatable. Raises NotFoundError."""
        return await self._caller.get(f"{PATH}/runs/{id_}", LetterRun)

    async def held_pages(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> AsyncGenerator[HeldPage, None]:
        """All entities whose messages wait behind a dead letter, page by page, by their ids. Repeatable."""
        while True:
            page = await self._caller.get(ENTITIES, HeldPage, {"limit": limit, "cursor": cursor})
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    async def held(self, entity_id: UUID) -> HeldEntity:
        """Why an entity is held. Repeatable. Raises NotFoundError if it is not."""
        return await self._caller.get(f"{ENTITIES}/{entity_id}", HeldEntity)

    async def retry_held(self, entity_id: UUID) -> QueueAnswer:
        """Apply a held entity's letter and the messages behind it, in order, in one transaction.

        Raises HeldError, and nothing is written, if one fails again; NotFoundError if the entity is not held.
        """
        response = await self._caller.call("POST", f"{ENTITIES}/{entity_id}/retry", repeatable=False)
        return read(response, QueueAnswer)

    async def skip_held(self, entity_id: UUID) -> QueueAnswer:
        """Do the same, but leave out the first message that fails again, for good. Raises NotFoundError."""
        response = await self._caller.call("POST", f"{ENTITIES}/{entity_id}/skip", repeatable=False)
        return read(response, QueueAnswer)

    async def retry(self, id_: int) -> Result | None:
        """Apply a message at its own position, remove the letter, and return the result of the event.

        None for an outgoing message (`source` is `relay`): it waits in the outbox again. Raises NotFoundError, and
        ConflictError, UnreadableError or InvalidError if the message still cannot be applied; then the letter stays.
        """
        response = await self._caller.call("POST", f"{PATH}/{id_}/retry", repeatable=False)
        return None if response.status_code == ACCEPTED else read(response, Result)

    async def delete(self, id_: int) -> None:
        """Remove a message for good. Raises NotFoundError."""
        await self._caller.call("DELETE", f"{PATH}/{id_}", repeatable=False)
