"""Dead letters: messages that could not be taken in, or sent. List, retry or remove them.

A retry and a removal take the letter away; a repeat would not find it. So the client does not repeat them once they
went out: a ConnectionFailedError says that it is `perhaps_done`, and the list shows whether it is.
"""

from collections.abc import AsyncGenerator

from app.answers import DeadLetterPage
from app.domain.results import Result
from pqs_client.connection import Caller, read

PATH = "/v1/dead-letters"
ACCEPTED = 202  # what was to go out goes back into the outbox


class DeadLetters:
    """Calls about dead letters."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def pages(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> AsyncGenerator[DeadLetterPage, None]:
        """All of them, page by page, oldest first; `cursor` begins further on. It is repeatable."""
        while True:
            page = await self._caller.get(PATH, DeadLetterPage, {"limit": limit, "cursor": cursor})
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    async def retry(self, id_: int) -> Result | None:
        """Take a message in at its own place, and say what became of its event; the letter is gone then.

        None for a message that was to go out (`source` is `relay`): it waits in the outbox again, to be sent.
        Raises ConflictError, UnreadableError and InvalidError for what still can't be taken in, with the letter where
        it was, and NotFoundError.
        """
        response = await self._caller.call("POST", f"{PATH}/{id_}/retry", repeatable=False)
        return None if response.status_code == ACCEPTED else read(response, Result)

    async def delete(self, id_: int) -> None:
        """Remove a message for good. Raises NotFoundError."""
        await self._caller.call("DELETE", f"{PATH}/{id_}", repeatable=False)
