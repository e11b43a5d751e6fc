"""Joins concurrent single requests into one statement: reads into one read, events into one transaction."""

import asyncio
from uuid import UUID

from app.concurrency.lanes import Lane, LaneReport, Lanes, Side
from app.domain.events import EventBase, Name
from app.domain.registration import Registration
from app.domain.results import Result
from app.projection.projector import Projector
from app.store.database import Database
from app.store.registrations import REGISTRATIONS


class Reader:
    """Point reads. Those that arrive while a statement runs are joined into the next one."""

    def __init__(
        self, database: Database, *, joining: bool, report: LaneReport | None = None, is_traced: bool = False
    ) -> None:
        self._database = database
        self._lane = Lane(self._read, report=report, name="reads", is_traced=is_traced)
        self._joining = joining

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return self._lane.waiting

    def ask(self, entity_id: UUID, domain: str) -> "asyncio.Future[Registration | None]":
        """The registration of one entity, or None; as fresh as an unbatched read."""
        if self._joining:
            return self._lane.ask((entity_id, domain))
        return asyncio.ensure_future(self._alone((entity_id, domain)))

    async def close(self) -> None:
        """Answer the accepted questions, and refuse new ones."""
        await self._lane.close()

    async def _alone(self, name: Name) -> Registration | None:
        [answer] = await self._read([name])
        return answer

    async def _read(self, names: list[Name]) -> list[Registration | None]:
        found = await self._database.read(REGISTRATIONS.get_entity_states, names)
        return [found.get((entity_id.bytes, domain)) for entity_id, domain in names]


class Writer:
    """Single events. Those that arrive while a transaction runs form the next one, in the order of arrival.

    All but large ones go through one lane, so the requests of one process hardly race each other for a row. More
    lanes would make the transactions smaller, and each event cost more.

    With `joined`, whose sessions have a short `lock_timeout`, an event whose row another client keeps locked goes on
    alone, by `projector`, beside the lane.
    """

    def __init__(
        self,
        projector: Projector,
        *,
        joining: bool,
        joined: Projector | None = None,
        report: LaneReport | None = None,
        is_traced: bool = False,
    ) -> None:
        self._projector = projector
        side = None
        if joined is not None:
            side = Side[EventBase, Result](lambda event: event.key, joined.locked, projector.persist)
        self._lanes = Lanes[EventBase, Result](
            (joined or projector).persist, side=side, report=report, name="events", is_traced=is_traced
        )
        self._joining = joining

    @property
    def waiting(self) -> int:
        """How many events wait."""
        return self._lanes.waiting

    def ask(self, event: EventBase, size: int = 0) -> "asyncio.Future[Result]":
        """The result of an event that was sent as `size` bytes, after the commit."""
        if self._joining:
            return self._lanes.ask(event, size)
        return asyncio.ensure_future(self._alone(event))

    async def close(self) -> None:
        """Finish the accepted events, and refuse new ones."""
        await self._lanes.close()

    async def _alone(self, event: EventBase) -> Result:
        [result] = await self._projector.persist([event])
        return result
