"""The live keys in a worker's memory, and how they follow the database.

A look-up costs no query, known key or not. Changes come by NOTIFY, and by a revision that is read every two seconds:
a pooler between may swallow notifications. So a revocation holds everywhere within five seconds. While the database
does not answer, the last copy counts for a minute; then nobody can say whether a key is still good.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Literal

from msgspec import Struct

from app.access.principals import Grant, Principal, scopes_of
from app.errors import UnavailableError
from app.store import keys
from app.store.database import Connection
from app.store.keys import StoredKey
from app.store.notifications import listening

log = logging.getLogger(__name__)

POLL = timedelta(seconds=2)  # between two looks at the revision
PATIENCE = timedelta(seconds=2)  # that the database has for each step
AGAIN = timedelta(seconds=1)  # until the next connection, after one that failed
GOOD_FOR = timedelta(seconds=60)  # how long a copy counts without a look at the database
UNREAD = -1  # no revision
NOTES = 60.0  # seconds between two notes of which keys were used


class HeldKey(Struct):
    """A key in memory: its id, its owner, and whether it was used since the last note.

    It counts until the keys are read anew: whoever has kept it looks the key up again then.
    """

    id: bytes
    principal: Principal
    expires_at: float  # seconds since 1970
    used: bool = False
    is_current: bool = True


class KeyCache:
    """The live keys of one database, for one worker. `clock` is monotonic, in seconds.

    `run` follows the database over a connection of its own. `refresh` reads once, so that a service knows its keys
    before its first request.
    """

    def __init__(
        self,
        address: Callable[[], str] | str,
        *,
        poll: timedelta = POLL,
        good_for: timedelta = GOOD_FOR,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address: Callable[[], str] = (lambda: address) if isinstance(address, str) else address
        self._poll = poll.total_seconds()
        self._good_for = good_for.total_seconds()
        self.clock = clock
        self._held: dict[bytes, HeldKey] = {}
        self._by_id: dict[bytes, HeldKey] = {}
        self._revision = UNREAD
        self.fresh_until = float("-inf")  # until when it is known which keys are good, without another look
        self._noted_at = clock()
        self._wake = asyncio.Event()
        self._is_down = False

    def find(self, digest: bytes) -> HeldKey | None:
        """The key with this digest, expired ones included; None where no key has it. Asks nobody.

        Raises UnavailableError when the database has not answered for too long to know.
        """
        if self.clock() > self.fresh_until:
            raise UnavailableError("keys cannot be checked: the database does not answer")
        return self._held.get(digest)

    def find_id(self, id_: bytes) -> HeldKey | None:
        """The key with this id, else as `find`."""
        if self.clock() > self.fresh_until:
            raise UnavailableError("keys cannot be checked: the database does not answer")
        return self._by_id.get(id_)

    async def refresh(self) -> None:
        """Read the keys now. Raises UnavailableError when the database does not answer."""
        async with self._listening() as connection:
            await self._look(connection)

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the database until `stop` is set. Errors are logged, and it goes on."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                try:
                    async with self._listening() as connection:
                        self._revision = UNREAD  # after a failover the same number may count other changes
                        await self._follow(connection, stopping)
                except Exception as error:  # noqa: BLE001 - who stops following would not hear of a revocation
                    if not self._is_down:
                        log.warning("keys cannot be read: %s; the last copy counts for %g s", error, self._good_for)
                    self._is_down = True
                    await asyncio.wait({stopping}, timeout=AGAIN.total_seconds())
        finally:
            stopping.cancel()

    def _listening(self) -> AbstractAsyncContextManager[Connection]:
        return listening(self._address(), keys.CHANNEL, self._wake.set, patience=PATIENCE)

    async def _follow(self, connection: Connection, stopping: "asyncio.Task[Literal[True]]") -> None:
        while not stopping.done():
            self._wake.clear()
            await self._look(connection)
            if self._is_down:
                log.info("keys are read again")
            self._is_down = False
            waking = asyncio.create_task(self._wake.wait())
            try:
                await asyncio.wait({stopping, waking}, timeout=self._poll, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waking.cancel()
        await self._note_use(connection)

    async def _look(self, connection: Connection) -> None:
        """Read the keys when there was a change. What is known then was so at the beginning of the look."""
        began = self.clock()
        if await keys.get_revision(connection) != self._revision:
            live = await keys.get_live(connection)
            before, self._held = self._held, {digest: _held(key) for digest, key in live.by_digest.items()}
            used = {held.id for held in before.values() if held.used}
            for held in self._held.values():
                held.used = held.id in used
            for held in before.values():
                held.is_current = False
            self._by_id = {held.id: held for held in self._held.values()}
            self._revision = live.revision
        self.fresh_until = began + self._good_for
        if began - self._noted_at > NOTES:
            await self._note_use(connection)
            self._noted_at = began

    async def _note_use(self, connection: Connection) -> None:
        used = [held for held in self._held.values() if held.used]
        if used:
            await keys.note_use(connection, [held.id.decode() for held in used])
            for held in used:
                held.used = False


def _held(key: StoredKey) -> HeldKey:
    expires_at = key.expires_at.timestamp()
    grant = Grant(scopes_of(key.scopes), frozenset(key.domains), key.workflow_prefixes, expires_at)
    name = f"key:{key.name}/{key.id}"
    return HeldKey(key.id.encode(), Principal(name, grant, key.rate, key.burst), expires_at)
