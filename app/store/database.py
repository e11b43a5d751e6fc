"""One PostgreSQL: its connections, transactions and circuit breaker."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import MappingProxyType
from typing import Concatenate, ParamSpec, TypeVar

import asyncpg

from app.concurrency.breaker import CircuitBreaker
from app.concurrency.worker import set_within
from app.errors import (
    DatabaseDownError,
    DatabaseRefusesError,
    LimitedConnectionsError,
    ReadOnlyError,
    StartError,
    UnavailableError,
)
from app.store import health, pool
from app.store.failures import BROKEN, NOT_OPEN, LostRaceError, kind_of, not_connected, translated
from app.store.pool import Connection, Pool, PoolObserver, Record
from app.store.sessions import Session

__all__ = [
    "BROKEN",
    "POINTS",
    "SCANS",
    "Connection",
    "Database",
    "LostRaceError",
    "PoolObserver",
    "Record",
    "Work",
    "check_constraints",
    "watched",
]

log = logging.getLogger(__name__)

FIRST_PROBES = (0.1, 0.2, 0.4)  # seconds between the first probes of a server that does not answer
PROBE_EVERY = 1.0  # seconds between two further probes; one that is not answered does not hold up the next
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})

# Settings of the planner. A point statement must use the key, whatever its parameters and however large the table:
# PostgreSQL would keep a plan that scans a table of a hundred rows while the table grows. It is planned once, because
# planning takes longer than running.
POINTS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",  # compiling takes longer than running: five times as long for the statements of the metrics
}
SCANS = {"plan_cache_mode": "force_custom_plan", "random_page_cost": "1.1", "jit": "off"}

PLANNER = {False: POINTS, True: SCANS}

# Settings of sessions whose transactions wait for others, such as a broker: the waiting is bounded by those who wait.
LONG_TRANSACTIONS = {"idle_in_transaction_session_timeout": "0", "transaction_timeout": "0"}

T = TypeVar("T")
P = ParamSpec("P")
Work = Callable[Concatenate[Connection, P], Awaitable[T]]  # a function of a connection and further arguments


class Database(Pool):
    """One PostgreSQL. Every call runs the given work on a connection, and gives the connection back in any case.

    Errors are UnavailableError and its subclasses; the breaker counts DatabaseDownError. After LostRaceError the
    same work may be done again.

    A `url` that is called is called for each new connection, so that a password can change. Connections that are
    open stay.

    `scans` is for statements whose best plan depends on their parameters, such as a rare or a common capability.
    PostgreSQL plans each anew, for data in memory or on an SSD; otherwise it would prefer a sort to an index. Without
    `scans` it plans a statement once for each connection, to use the primary key.

    While the breaker is open, the server is asked in the background whether it answers again. Where the server takes
    no further connection, those that there are are shared, and one that a sibling does not use is given up for one
    that is needed. Where it takes no writes, all connections are made anew: another server may be the primary by now.
    """

    def __init__(
        self,
        url: str | Callable[[], str],
        *,
        pool_size: int,
        statement_timeout: timedelta,
        scans: bool = False,
        breaker: CircuitBreaker | None = None,
        settings: Mapping[str, str] = NO_SETTINGS,
        siblings: Collection["Database"] = (),
        name: str = "primary",
        observer: PoolObserver | None = None,
    ) -> None:
        """`settings` are further ones of its sessions. `siblings` are the other ones of this process.

        `name` is that of the pool, for `observer`.
        """
        super().__init__(url, pool_size, statement_timeout, {**PLANNER[scans], **settings}, siblings, name, observer)
        self._probing: asyncio.Task[None] | None = None
        self._checking = asyncio.Lock()
        self._checker: Session | None = None
        self.breaker = breaker or CircuitBreaker()
        if self.breaker.on_open is None:
            self.breaker.on_open = self._start_probing

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` with a connection and these arguments. Each of its statements sees a snapshot of its own.

        If the server has closed the connection, or cancelled the read, `work` is called once more.
        """
        with self.breaker.guard():
            # A second read is safe.
            try:
                return await self._do(work, *args, **kwargs)
            except DatabaseDownError as error:  # the server has restarted, and so closed the connection
                if isinstance(error, DatabaseRefusesError) or not isinstance(error.__cause__, NOT_OPEN):
                    raise
            except LostRaceError:  # a replica cancels reads that conflict with changes from its primary
                pass
            try:
                return await self._do(work, *args, **kwargs)
            except LostRaceError as error:
                raise UnavailableError("PostgreSQL cancelled the read twice") from error

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` in one transaction.

        When this returns, the transaction is committed. If it raises before the commit, nothing is written. If the
        connection breaks during the commit, the changes may or may not be written.
        """

        async def transaction(connection: Connection) -> T:
            async with connection.transaction():
                return await work(connection, *args, **kwargs)

        transaction.__name__ = _name(work)
        return await self.write_alone(transaction)

    async def write_alone(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work`, each of its statements a transaction of its own: for work that writes with one statement."""
        with self.breaker.guard():
            return await self._do(work, *args, **kwargs)

    async def _do(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with translated():
            connection = await self._take()
            began = time.perf_counter()
            failure, rows = None, None
            try:
                result = await work(connection, *args, **kwargs)
                rows = len(result) if isinstance(result, list | dict) else None
            except BROKEN as error:
                failure = kind_of(error)
                # asyncpg may not yet know that this connection is closed, nor that others have broken with it.
                await self._forget_all()
                with suppress(asyncpg.InterfaceError):  # asyncpg knows already
                    connection.terminate()
                await self._give_back(connection)
                raise
            except asyncpg.ReadOnlySQLTransactionError as error:
                failure = kind_of(error)
                await self._renew()
                await self._give_back(connection)
                raise
            except BaseException as error:
                failure = kind_of(error)
                await self._give_back(connection)
                raise
            finally:
                if self._observer is not None:
                    self._observer.done(self.name, _name(work), time.perf_counter() - began, rows, failure)
            if self._waiting or self._closing:
                await self._pass_on(connection)
            else:
                self._at_hand.append(connection)
            return result

    def _start_probing(self) -> None:
        """Ask the server, as long as the breaker is open, whether it answers again."""
        if not self._closing and (self._probing is None or self._probing.done()):
            self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        answered = asyncio.Event()
        probes: set[asyncio.Task[None]] = set()
        pauses = iter(FIRST_PROBES)
        try:
            while self.breaker.is_open and not await set_within(answered, next(pauses, PROBE_EVERY)):
                probe = asyncio.create_task(self._ask(answered))
                probes.add(probe)
                probe.add_done_callback(probes.discard)
        finally:
            for probe in probes:
                probe.cancel()
        if self.breaker.is_open:
            if self._pool is not None:
                await self._forget_all()
            self.breaker.recover()

    async def _ask(self, answered: asyncio.Event) -> None:
        """Set `answered` if the server takes a connection, or says that it takes no more of them."""
        try:
            connection = await self._connect()
            await connection.close(timeout=pool.POOL_WAIT)
        except asyncpg.InsufficientResourcesError:
            answered.set()
        except (*BROKEN, asyncpg.PostgresError, DatabaseRefusesError, StartError, ValueError):
            return
        answered.set()

    async def check(self, *, writes: bool = True) -> str:
        """The schema's revision, if the database can serve; `writes`: as the primary. See `health.examine`.

        On a connection of its own, past the breaker, which learns nothing from it.
        """
        with translated():
            async with self._checking:
                try:
                    return await self._examined(writes=writes)
                except LimitedConnectionsError:
                    return await self._do(health.examine, writes=writes)
                except ReadOnlyError:
                    await self._leave_checker()
                    if self._pool is not None:
                        await self._renew()
                    raise
                except BaseException:
                    await self._leave_checker()
                    raise

    async def _examined(self, *, writes: bool) -> str:
        for is_last in (False, True):
            if self._checker is None or self._checker.is_closed():
                self._checker = await self._new_checker()
                is_last = True  # noqa: PLW2901 - a new one is not tried again
            try:
                async with asyncio.timeout(self._timeout + pool.ANSWER_GRACE):
                    return await health.examine(self._checker, writes=writes)
            except BROKEN:  # the server has restarted
                if is_last:
                    raise
                await self._leave_checker()
        raise AssertionError

    async def _new_checker(self) -> Session:
        try:
            async with asyncio.timeout(pool.POOL_WAIT):
                return await self._connect()
        except (asyncpg.PostgresError, asyncpg.ClientConfigurationError, OSError, ValueError) as error:
            raise not_connected(error) from error

    async def _leave_checker(self) -> None:
        checker, self._checker = self._checker, None
        if checker is not None:
            checker.terminate()

    async def close(self) -> None:
        """Close every connection. Cut those that do not answer within CLOSE_WAIT."""
        self._closing = True
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])
        await self._leave_checker()
        await super().close()


def _name(work: Callable[..., object]) -> str:
    """The name of a piece of work: that of its function."""
    return getattr(work, "__name__", type(work).__name__).lstrip("_")


@contextmanager
def watched(connection: Connection, lost: Callable[[], None]) -> Iterator[None]:
    """Call `lost` if the connection ends meanwhile. PostgreSQL then releases the locks of its session."""

    def tell(_connection: object) -> None:
        lost()

    connection.add_termination_listener(tell)
    try:
        yield
    finally:
        with suppress(*BROKEN):  # it has ended, and is back in the pool
            connection.remove_termination_listener(tell)


async def check_constraints(connection: Connection) -> None:
    """Let PostgreSQL check deferred constraints now, not at the commit."""
    await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
