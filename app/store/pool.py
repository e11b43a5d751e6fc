"""The connections to one server: opened as they are needed, shared where the server takes no more of them."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol, cast

import asyncpg

from app.errors import LimitedConnectionsError, PoolExhaustedError
from app.store import sessions
from app.store.failures import BROKEN, not_connected
from app.store.sessions import Session

log = logging.getLogger(__name__)

POOL_WAIT = 2.0  # seconds to wait for a free or new connection; then the call is refused
CLOSE_WAIT = 5.0  # seconds to close all connections; then they are cut
NEVER = 2**31  # statements after which asyncpg closes a connection and loses its prepared statements
ANSWER_GRACE = 2.0  # seconds beyond the statement timeout until a silent server counts as down
LIMITED_FOR = 0.5  # seconds for which no connection is asked for, after the server has refused one for want of room
RENEW_EVERY = 0.5  # seconds between two times that all connections to a read-only server are dropped
GOODBYE = 0.05  # seconds in which the server ends a session that was closed

Record = asyncpg.Record
Connection = asyncpg.pool.PoolConnectionProxy  # the rest of the project imports this name, and no driver


class PoolObserver(Protocol):
    """Hears of every piece of work on a database."""

    def done(self, pool: str, name: str, seconds: float, rows: int | None, failure: str | None) -> None:
        """The work `name` took so long on a connection of `pool`. It gave so many rows, or failed in this way."""

    def timed_out(self, pool: str) -> None:
        """A call has waited for a connection of `pool` in vain."""


class Pool:
    """The connections to one server, at most `size`; none is opened before it is needed.

    Where the server takes no further connection, those that there are are shared, and one that a sibling does not use
    is given up for the first one here.
    """

    def __init__(
        self,
        url: str | Callable[[], str],
        size: int,
        statement_timeout: timedelta,
        settings: Mapping[str, str],
        siblings: Collection["Pool"],
        name: str,
        observer: PoolObserver | None,
    ) -> None:
        self.name = name
        self._observer = observer
        self._url = url
        self._size = size
        self._timeout = statement_timeout.total_seconds()
        self._settings = {
            "application_name": "pqs",
            "timezone": "UTC",
            "statement_timeout": str(round(self._timeout * 1000)),
            "idle_session_timeout": "0",  # those of a pool are idle by nature
        }
        self._settings |= settings
        self._siblings = siblings
        self._pool: asyncpg.Pool[Record] | None = None
        self._opening = asyncio.Lock()
        self._at_hand: list[Connection] = []  # free, kept outside the pool
        self._waiting = 0  # calls that wait for a connection of the pool
        self._in_need: deque[asyncio.Future[Connection]] = deque()  # of those, the ones that the server let down
        self._limited_until = 0.0  # not 0: the server has refused a connection for want of room
        self._growing = False  # a call asks for a connection nevertheless
        self._renewed_at = 0.0
        self._is_known = False  # whether there is a pooler in front, and of which kind
        self._closing = False

    @property
    def most(self) -> int:
        """How many connections may be open."""
        return self._size

    @property
    def connections(self) -> tuple[int, int, int]:
        """How many connections are open, how many of them are in use, and how many calls wait for one."""
        if self._pool is None:
            return 0, 0, self._waiting
        size = self._pool.get_size()
        return size, size - self._pool.get_idle_size() - len(self._at_hand), self._waiting

    async def _take(self) -> Connection:
        """A free connection, kept at hand or from the pool, which opens new ones.

        Connections in good order bypass the pool: its `acquire` and `release` each take a task, and longer than a
        statement by key.
        """
        while self._at_hand:
            connection = self._at_hand.pop()
            with suppress(asyncpg.InterfaceError):  # it broke, and is back in the pool
                if not connection.is_closed():
                    return connection
            await self._give_back(connection)
        return await self._take_new()

    async def _take_new(self) -> Connection:
        """A connection of the pool, or one that another call gives back, where the server takes no more."""
        pool = self._pool or await self._open()
        end = time.monotonic() + POOL_WAIT
        while True:
            if (now := time.monotonic()) >= self._limited_until and not self._growing:
                self._growing = self._limited_until > 0  # after a refusal, one call at a time asks for more
                try:
                    connection = await self._acquire(pool, end - now)
                except LimitedConnectionsError:
                    if time.monotonic() >= end:
                        raise
                    self._limited_until = time.monotonic() + LIMITED_FOR
                    self._growing = True
                    if pool.get_size() == 0 and await self._take_from_sibling():
                        self._limited_until = time.monotonic()
                    continue
                finally:
                    self._growing = False
                self._limited_until = 0.0
                return connection
            until = min(end, max(self._limited_until, now + GOODBYE))
            if (handed_over := await self._handed_over(until - now)) is not None:
                return handed_over
            if time.monotonic() >= end:
                self._in_vain()
                raise PoolExhaustedError("the database takes no more connections, and all that there are are in use")

    def _in_vain(self) -> None:
        if self._observer is not None:
            self._observer.timed_out(self.name)

    async def _acquire(self, pool: "asyncpg.Pool[Record]", seconds: float) -> Connection:
        self._waiting += 1
        try:
            return await pool.acquire(timeout=max(seconds, 0.001))
        except TimeoutError as error:
            self._in_vain()
            if pool.get_size() == self._size and pool.get_idle_size() == 0:
                raise PoolExhaustedError("all database connections are in use") from error
            raise
        except (asyncpg.PostgresError, asyncpg.ClientConfigurationError, OSError, ValueError) as error:
            raise not_connected(error) from error
        finally:
            self._waiting -= 1

    async def _handed_over(self, seconds: float) -> Connection | None:
        """The connection that another call gives back within this time, or None."""
        future: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._in_need.append(future)
        self._waiting += 1
        try:
            await asyncio.wait([future], timeout=max(seconds, 0.001))
        except asyncio.CancelledError:
            if future.done():
                self._at_hand.append(future.result())
            raise
        finally:
            self._waiting -= 1
            future.cancel()
        return None if future.cancelled() else future.result()

    async def _pass_on(self, connection: Connection) -> None:
        """Give a connection to the call that waits longest for one."""
        while self._in_need:
            future = self._in_need.popleft()
            if not future.done():
                future.set_result(connection)
                return
        await self._give_back(connection)

    async def _take_from_sibling(self) -> bool:
        """Have a sibling close a connection to the same server that it does not use now."""
        for each in self._siblings:
            if each is not self and each.address == self.address and await each.spare():
                return True
        return False

    async def spare(self) -> bool:
        """Close a connection that is not in use, or the next one that is given back soon, if there is one."""
        if self._pool is None or self._pool.get_size() == 0:
            return False
        connection = self._at_hand.pop() if self._at_hand else await self._handed_over(POOL_WAIT / 2)
        if connection is None:
            return False
        with suppress(*BROKEN):
            await connection.close(timeout=1.0)
        await asyncio.sleep(GOODBYE)
        return True

    @property
    def address(self) -> str:
        """The address as it is now."""
        return self._url if isinstance(self._url, str) else self._url()

    async def _give_back(self, connection: Connection) -> None:
        """Return a connection to the pool, which closes a broken one or passes it to the longest waiting caller."""
        with suppress(*BROKEN):  # if this fails, the pool closes the connection; the work is done
            await cast("asyncpg.Pool[Record]", self._pool).release(connection)

    async def _forget_all(self) -> None:
        """Discard every connection that is not in use now."""
        pool = cast("asyncpg.Pool[Record]", self._pool)
        await pool.expire_connections()
        while self._at_hand:
            await self._give_back(self._at_hand.pop())

    async def _renew(self) -> None:
        """Drop the connections to a server that takes no writes, from time to time."""
        if time.monotonic() - self._renewed_at > RENEW_EVERY:
            self._renewed_at = time.monotonic()
            await self._forget_all()

    async def _open(self) -> "asyncpg.Pool[Record]":
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    connect=cast("Any", self._connect),  # the stubs spell all its options out
                    min_size=0,
                    max_size=self._size,
                    max_queries=NEVER,
                    command_timeout=self._timeout + ANSWER_GRACE,
                    reset=_leave_as_it_is,
                    connection_class=Session,
                )
            return self._pool

    async def _connect(self, _: object = None, **options: Any) -> Session:
        """A new connection to the address as it is now. The first one looks whether there is a pooler in front."""
        options.pop("connection_class", None)  # always Session
        url = self.address
        connection = await sessions.connect(url, self._settings, **options)
        if not self._is_known:
            try:
                await sessions.check_pooler(connection, lambda: sessions.connect(url, self._settings))
            except BaseException:
                connection.terminate()
                raise
            self._is_known = True
        return connection

    async def close(self) -> None:
        """Close every connection. Cut those that do not answer within CLOSE_WAIT."""
        self._closing = True
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(CLOSE_WAIT):
                while self._at_hand:
                    await self._give_back(self._at_hand.pop())
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


async def _leave_as_it_is(_connection: object) -> None:
    """Reset nothing: sessions carry no settings, and asyncpg itself ends an open transaction."""
