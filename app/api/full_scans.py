"""Full scans: lists that may read a whole domain for one page, and how many of them run at once.

An index finds the rows of a state, of an event and of a deadline. It does not find those of a node type, those that
have not changed for a while, or those with a capability that nearly all have. A few such reads would take every
connection, and a call that costs nothing would wait for them.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

from app.errors import TooManyFullScansError
from app.parts import FULL_SCANS
from app.store.listing import EntityFilter

RETRY_AFTER = timedelta(seconds=2)


def is_full_scan(wanted: EntityFilter) -> bool:
    """Whether no index finds the rows of this list."""
    if wanted.event_id is not None:
        return False
    return (
        wanted.node_type is not None
        or wanted.capabilities is not None
        or (not wanted.states and (wanted.updated_before is not None or wanted.updated_since is not None))
    )


class FullScans:
    """The turns of a process."""

    def __init__(self, at_once: int = FULL_SCANS) -> None:
        self._free = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()

    @contextmanager
    def now(self) -> Iterator[None]:
        """A turn for one read. Raises TooManyFullScansError when there is none, or when others wait for one."""
        if self._free == 0 or self._waiting:
            raise TooManyFullScansError(
                "too many lists that read a whole domain run now; narrow the list by `state`, or send it again",
                retry_after=RETRY_AFTER,
            )
        self._free -= 1
        try:
            yield
        finally:
            self._give_back()

    @asynccontextmanager
    async def later(self) -> AsyncIterator[None]:
        """A turn as soon as there is one, in the order of arrival.

        For the later pages of a stream, whose answer has begun and cannot be refused any more. A stream has a turn
        for a page, not for its whole length: a client that reads slowly would keep it.
        """
        await self._wait()
        try:
            yield
        finally:
            self._give_back()

    async def _wait(self) -> None:
        if self._free and not self._waiting:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:  # it was handed over in the same moment
                self._give_back()
            raise

    def _give_back(self) -> None:
        """Whoever has waited longest has the turn now."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
