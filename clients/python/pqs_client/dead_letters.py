"""Dead letters: messages that could not be applied or sent. List, retry or remove them.

A retry and a removal remove the letter, so a repeat would not find it. The client therefore repeats neither once it
was sent: a ConnectionFailedError has `perhaps_done`, and the list shows whether it was done.
"""

from collections.abc import AsyncGenerator

from app.domain.results import Result
from app.wire.answers import DeadLetterPage
from pqs_client.connection import Caller, read

PATH = "/v1/dead-letters"
ACCEPTED = 202  # an outgoing message is in the outbox again


class DeadLetters:
    """Calls about dead letters."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def pages(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> AsyncGenerator[DeadLetterPage, None]:
        """All dead letters, page by page, oldest first, from `cursor` on. Repeatable."""
        while True:
            page = await self._caller.get(PATH, DeadLetterPage, {"limit": limit, "cursor": cursor})
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

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
