"""The reconciler: keeps the services of Consul equal to the rows, and renews their checks."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial

from app.concurrency.worker import Worker, until_stopped
from app.domain.events import key_of
from app.domain.intents import register
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.errors import EffectDownError, IntentError, NotNowError, PqsError
from app.outbound.consul.handler import Consul, Copy
from app.outbound.consul.services import DOMAIN, described, entity_of, id_of
from app.settings import Settings
from app.store.database import Connection, Database
from app.store.overdue import now
from app.store.reconciliation import lead, pages
from app.store.registrations import REGISTRATIONS

log = logging.getLogger(__name__)

EVERY = timedelta(seconds=60)  # between two comparisons of all services with all rows
RENEWALS = 3  # renewals of a check within its TTL: two may fail
AT_ONCE = 16  # services that are worked on at a time
WAIT = 5.0  # seconds until a process that is not the one looks again whether it may be
ALIVE, OVERDUE, NOT_YET = "the node is active", "no heartbeat came in time", "the node has not acknowledged yet"
# In these states a node may have a service; only an active one must have one.
PRESENT = (
    RegistrationState.PENDING_REGISTRATION,
    RegistrationState.ACCEPTED,
    RegistrationState.AWAITING_ACK,
    RegistrationState.ACK_RECEIVED,
    RegistrationState.ACTIVE,
)


def warn_without_sweep(settings: Settings) -> None:
    """Log what becomes of nodes that fall silent, where Consul is told of nodes and this service runs no sweep."""
    if settings.consul_url is not None and not settings.sweep:
        log.warning(
            "PQS_CONSUL_URL is set and this service runs no sweep: unless `pqs sweep` runs, a node that sends no "
            "more heartbeats stays active here; in Consul its check is critical %g s after its deadline at the "
            "latest, and Consul removes it %g s later. To expire such nodes set PQS_SWEEP=true",
            settings.consul_ttl,
            settings.consul_remove_after,
        )


class Reconciler(Worker):
    """Compares the services that carry the mark with the rows every `every`, and renews checks in between.

    Live nodes are the active ones whose liveness deadline has not passed. Each of them has one service afterwards, at
    an agent that is up, described as its row says, with a passing check. A service of a node that left, or that never
    had a row, is removed. A service of any other node is left alone, and its check is critical: the node has not
    acknowledged yet, or its heartbeats are late. Such a node gets no new service, because Consul removes what is
    critical for long.

    Many may run on one database. One at a time reconciles: it holds a lock of the database for one round, which
    PostgreSQL releases when it dies. Its transaction holds no snapshot, so it does not keep old rows from being
    removed. What Consul does not do now, the next round tries again.
    """

    def __init__(self, database: Database, consul: Consul, every: timedelta = EVERY) -> None:
        """`database` needs one connection, with plans for scans."""
        self._database = database
        self._consul = consul
        self._every = every.total_seconds()
        self._renew_every = consul.profile.ttl.total_seconds() / RENEWALS
        self._room = asyncio.Semaphore(AT_ONCE)
        self._in_trouble = False
        self._registered_with: str | None = None  # the token of all registrations that are known

    async def run(self, stop: asyncio.Event) -> None:
        """Reconcile until `stop` (see Worker). A round under way then ends at once: the next one begins anew."""
        await until_stopped(self._run(), stop)

    async def _run(self) -> None:
        while True:
            pause = WAIT
            try:
                if await self._database.write(self._round):
                    pause = 0.0
            except Exception as error:  # noqa: BLE001 - no error may end the worker
                self._warn(error)
            await asyncio.sleep(min(pause, self._every))

    def _warn(self, error: Exception) -> None:
        """Log an error, unless another one was logged and no comparison has succeeded since."""
        if not self._in_trouble:
            unexpected = None if isinstance(error, PqsError) else error
            log.warning("Consul is not compared with the rows for now: %s", error, exc_info=unexpected)
        self._in_trouble = True

    async def _round(self, connection: Connection) -> bool:
        """The transaction of a round: compare once, then renew checks until the next round. False: another has it."""
        if not await lead(connection):
            return False
        loop = asyncio.get_running_loop()
        end = loop.time() + self._every
        while not await self._compare(connection):
            # Agents take renewals also while the catalog does not answer, because its servers have no leader.
            await self.renew(connection)
            await asyncio.sleep(min(self._renew_every, self._every))
        while (left := end - loop.time()) > 0:
            await asyncio.sleep(min(self._renew_every, left))
            if loop.time() < end:
                await self.renew(connection)
        return True

    async def _compare(self, connection: Connection) -> bool:
        """Whether a comparison has succeeded. Its failure is logged if it is Consul's."""
        try:
            await self.reconcile(connection)
        except (EffectDownError, NotNowError, IntentError) as error:
            self._warn(error)
            return False
        self._in_trouble = False
        return True

    async def reconcile(self, connection: Connection) -> None:
        """Compare all services with all rows once. Raises UnavailableError when one of both does not answer."""
        # An agent keeps the token of a registration, and enters the service's check in the catalog with it, for as
        # long as nobody revokes it. So a new token registers all services again.
        token = self._consul.token()
        anew = token != self._registered_with
        found = await self._consul.services()
        done: Counter[str] = Counter()
        refused = 0
        async for rows in pages(connection, PRESENT):
            at = await now(connection)
            refused += await self._all(
                partial(self._settle, row, found.pop(id_of(row), []), at, done, anew=anew) for row in rows
            )
        orphans = await self._orphans(connection, list(found.values()))
        await self._all(partial(self._remove, copies, done) for copies in orphans)
        if not refused:
            self._registered_with = token
        if done:
            log.info("Consul was compared with the rows: %s", ", ".join(f"{n} {what}" for what, n in done.items()))

    async def renew(self, connection: Connection) -> None:
        """Renew the checks of all live nodes. A service that is not found is left to the next comparison."""
        async for rows in pages(connection, (RegistrationState.ACTIVE,)):
            at = await now(connection)
            await self._all(
                partial(self._consul.mark, id_of(row), passing=True, why=ALIVE) for row in rows if _is_live(row, at)
            )

    async def _settle(
        self, row: Registration, copies: Sequence[Copy], at: datetime, done: Counter[str], *, anew: bool
    ) -> None:
        """Make the service of a node that has not left what it should be; `anew`: register it in any case."""
        service_id = id_of(row)
        up = [copy for copy in copies if copy.agent_is_up]
        for copy in copies:
            if not copy.agent_is_up:
                await self._strike(copy, done)
        if not _is_live(row, at):
            if any(copy.passing for copy in up):
                why = OVERDUE if row.current_state.is_active() else NOT_YET
                await self._consul.mark(service_id, passing=False, why=why)
            return
        passing = [copy for copy in up if copy.passing]
        if len(passing) == 1:  # the others are at agents that are not reached any more, or will be removed by them
            for copy in up:
                if not copy.passing:
                    await self._strike(copy, done)
            up = passing
        node = register(row)
        if not anew and len(up) == 1 and up[0].description == described(node, self._consul.profile):
            if await self._consul.mark(service_id, passing=True, why=ALIVE):
                return
            await self._strike(up[0], done)  # its agent has lost it, or is not behind this address
        elif len(up) > 1:  # nobody can tell which agent a call reaches, so all copies go
            await self._remove(up, done)
        await self._consul.register(node)
        if len(up) == 1 and not up[0].passing:  # its agent keeps the check's status
            await self._consul.mark(service_id, passing=True, why=ALIVE)
        done["registered"] += 1

    async def _orphans(self, connection: Connection, services: Sequence[Sequence[Copy]]) -> list[Sequence[Copy]]:
        """The services whose nodes have no row, or have left: as of now, because some may have come meanwhile."""
        names = {}
        for copies in services:
            domain = copies[0].description.meta.get(DOMAIN, "")
            if (entity_id := entity_of(copies[0].service_id, domain)) is not None:
                names[copies[0].service_id] = (entity_id, domain)
        rows = await REGISTRATIONS.get_entity_states(connection, list(names.values())) if names else {}
        present = {
            service_id
            for service_id, name in names.items()
            if (row := rows.get(key_of(*name))) is not None
            and row.current_state in PRESENT
            and row.forgotten_at is None
        }
        return [copies for copies in services if copies[0].service_id not in present]

    async def _remove(self, copies: Sequence[Copy], done: Counter[str]) -> None:
        """Remove a service at all agents: by the agents that are reached, and from the catalog where none was."""
        up = sum(copy.agent_is_up for copy in copies)
        removed = await self._consul.remove(copies[0].service_id, copies=up) if up else 0
        done["removed"] += removed
        if removed < len(copies):
            for copy in copies:
                await self._strike(copy, done if not (removed and copy.agent_is_up) else Counter())

    async def _strike(self, copy: Copy, done: Counter[str]) -> None:
        await self._consul.strike(copy)
        done["removed from the catalog"] += 1

    async def _all(self, works: Iterable[Callable[[], Awaitable[object]]]) -> int:
        """Do all of them, some at a time. Returns how many Consul did not do: these stop no other.

        One line of the log is about them. Raises the first of other errors, such as EffectDownError, which end all.
        """
        refusals: list[PqsError] = []

        async def one(work: Callable[[], Awaitable[object]]) -> None:
            async with self._room:
                try:
                    await work()
                except (NotNowError, IntentError) as error:
                    refusals.append(error)

        try:
            async with asyncio.TaskGroup() as group:
                for work in works:
                    group.create_task(one(work))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if refusals:
            log.warning(
                "Consul did not do %d calls, which the next round tries again; the first: %s",
                len(refusals),
                refusals[0],
            )
        return len(refusals)


def _is_live(row: Registration, at: datetime) -> bool:
    deadline = row.liveness_deadline
    return row.current_state.is_active() and (deadline is None or deadline > at)
