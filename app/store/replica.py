"""Reads that may go to a replica: how far it lags, and when the primary answers in its place."""

import asyncio
import logging
import time
from collections import deque
from contextvars import ContextVar
from datetime import timedelta

from app.concurrency.worker import Worker, until_stopped
from app.errors import PqsError, UnavailableError
from app.store.database import Connection, Database, P, T, Work

log = logging.getLogger(__name__)

EVERY = 0.5  # seconds between two looks at the lag
REMEMBERED = 7200  # positions of the primary that are remembered: an hour of them

# Reads the end of the primary's log, as a number of bytes.
WRITTEN = "SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint"
# Reads up to where a server shows the log: a standby what it has replayed, a primary all of it.
SHOWN = """
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0'::pg_lsn
"""
# Whether a standby or the primary itself answers, and of which cluster.
CLUSTER = "SELECT system_identifier::text FROM pg_control_system()"

# The lag, in seconds, of the replica that answered a read within this task; None: the primary did.
lag_of_answer: ContextVar[float | None] = ContextVar("lag_of_answer", default=None)


class Replica(Worker):
    """The lag of a replica: how old the newest state is of which it surely shows everything.

    The end of the primary's log is noted from time to time. The replica shows everything up to the newest note that
    it has replayed; the age of that note is the lag, which so counts up to EVERY too much, never too little.
    """

    def __init__(self, primary: Database, replica: Database, *, allowed: timedelta | None) -> None:
        """`allowed`: how far the replica may lag for a read; None: as far as it likes."""
        self._primary = primary
        self._replica = replica
        self._allowed = None if allowed is None else allowed.total_seconds()
        self._noted: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)
        self._shown_at: float | None = None
        self._is_same: bool | None = None  # one cluster: only then positions compare
        self._is_trusted = True

    async def run(self, stop: asyncio.Event) -> None:
        """Measure from time to time, until `stop` (see Worker)."""
        await until_stopped(self._run(), stop)

    async def _run(self) -> None:
        while True:
            try:
                await self.measure()
            except (PqsError, Exception) as error:  # noqa: BLE001 - no error may end the worker
                log.debug("the lag of the replica is not known: %s", error)
            if self._is_trusted != self.is_usable:
                self._is_trusted = self.is_usable
                log.warning("the replica %s", "is used again" if self._is_trusted else "lags; the primary answers")
            await asyncio.sleep(EVERY)

    async def measure(self) -> None:
        """Note the end of the primary's log, and see which of the notes the replica has reached."""
        if self._is_same is None:
            clusters = [await each.read(_value, CLUSTER) for each in (self._primary, self._replica)]
            self._is_same = clusters[0] == clusters[1]
            if not self._is_same:
                log.warning("PQS_DATABASE_READ_URL is no physical replica of the database: its lag is not known")
        now = time.monotonic()
        try:
            self._noted.append((now, int(str(await self._primary.read(_value, WRITTEN)))))
        finally:  # also of a primary that is down
            shown = int(str(await self._replica.read(_value, SHOWN)))
            while self._noted and self._noted[0][1] <= shown:
                self._shown_at = self._noted.popleft()[0]

    @property
    def lag(self) -> float | None:
        """Seconds; None if it is not known."""
        if self._shown_at is None or not self._is_same:
            return None
        return time.monotonic() - self._shown_at

    @property
    def is_usable(self) -> bool:
        """Whether the replica is as new as is wanted, where anything is wanted."""
        return self._allowed is None or ((lag := self.lag) is not None and lag <= self._allowed)

    @property
    def is_bounded(self) -> bool:
        """Whether anything is wanted of its lag."""
        return self._allowed is not None


class ReadSide:
    """Lists, counts and scans: from the replica, or from the primary where that is too old or does not answer."""

    def __init__(self, primary: Database, replica: Database | None = None, lag: Replica | None = None) -> None:
        """Without a replica, the primary answers all."""
        self._primary = primary
        self._replica = replica
        self._lag = lag

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work`, as `Database.read` does, on the replica or on the primary."""
        replica, lag = self._replica, self._lag
        if replica is None or lag is None or not lag.is_usable:
            return await self._primary.read(work, *args, **kwargs)
        try:
            result = await replica.read(work, *args, **kwargs)
        except UnavailableError as error:
            log.debug("the primary answers in place of the replica: %s", error)
            return await self._primary.read(work, *args, **kwargs)
        lag_of_answer.set(lag.lag)
        return result

    async def read_now(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for a read that must not be old: on the primary, unless the settings bound the replica's lag."""
        if self._lag is None or not self._lag.is_bounded:
            return await self._primary.read(work, *args, **kwargs)
        return await self.read(work, *args, **kwargs)


async def _value(connection: Connection, query: str) -> object:
    value: object = await connection.fetchval(query)
    return value
