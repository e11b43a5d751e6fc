"""Bulk calls over dead letters: the worker that carries them out, letter by letter.

How far a call has come is in the database. A letter and its count are written in one transaction, so a process that
is killed loses nothing, and another one goes on.
"""

import asyncio
import logging
from contextlib import suppress

from msgspec.structs import replace

from app.concurrency.worker import Worker, set_within
from app.domain.results import Outcome, Result
from app.errors import PqsError, RefusedValuesError
from app.inbound.holding import REFUSED_OUTCOMES
from app.inbound.letters import READ_ERRORS, Letters, NotHeldError
from app.outbound.requeue import requeue
from app.store import audit, dead_letters, held, letter_runs
from app.store.audit import Act
from app.store.database import Connection, Database
from app.store.dead_letters import DeadLetter
from app.store.held import HeldError
from app.store.letter_runs import BulkRun

log = logging.getLogger(__name__)

POLL = 5.0  # seconds between two looks for calls that other processes have accepted, or have left
AT_ONCE = 500  # letters whose ids are read, or that are removed, at once


class _LostError(PqsError):
    """Another worker has the run."""


class _NotInError(PqsError):
    """The letter is not in, and stays."""


class BulkCalls(Worker):
    """Carries out bulk calls, one after the other. Many processes may run one: a call is one worker's at a time."""

    def __init__(self, database: Database, letters: Letters) -> None:
        self._database = database
        self._letters = letters
        self._look = asyncio.Event()

    def wake(self) -> None:
        """Look for a call now."""
        self._look.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Carry out calls until `stop` (see Worker). A letter under way is finished."""
        stopping = asyncio.create_task(self._wake_at(stop))
        try:
            while not stop.is_set():
                await set_within(self._look, POLL)
                self._look.clear()
                try:
                    while not stop.is_set() and (run := await self._database.write(letter_runs.take)) is not None:
                        with suppress(_LostError):
                            await self._carry_out(run, stop)
                except Exception as error:  # no error may end the worker
                    unexpected = None if isinstance(error, PqsError) else error
                    log.warning("a bulk call over dead letters waits: %s", error, exc_info=unexpected)
        finally:
            stopping.cancel()
            await asyncio.wait([stopping])

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.wake()

    async def _carry_out(self, run: BulkRun, stop: asyncio.Event) -> None:
        while not stop.is_set():
            ids = await self._database.read(
                dead_letters.get_ids, run.filters, after=run.at_id, last=run.last_id, limit=AT_ONCE
            )
            if not ids:
                await self._database.write(_finish, run)
                return
            if run.action == "delete":
                await self._database.write(_remove, run, ids)
                run = replace(run, at_id=ids[-1])
                continue
            for id_ in ids:
                if stop.is_set():
                    return
                await self._retry(run, id_)
                run = replace(run, at_id=id_)

    async def _retry(self, run: BulkRun, id_: int) -> None:
        letter = await self._database.read(dead_letters.get, id_)
        try:
            if letter is None:
                await self._database.write(_count, run, id_, done=1)
            elif letter.partition is None:
                await self._database.write(_requeue, run, letter)
            else:
                await self._take_in(run, letter)
        except (*READ_ERRORS, RefusedValuesError, HeldError, NotHeldError, _NotInError):
            await self._database.write(_count, run, id_, failed=1)

    async def _take_in(self, run: BulkRun, letter: DeadLetter) -> None:
        async def also(connection: Connection, results: list[Result]) -> None:
            if any(result.outcome in REFUSED_OUTCOMES for result in results):
                raise _NotInError(str(Outcome.CONFLICT))
            await _count(connection, run, letter.id, done=1)

        entity = None
        if letter.entity_id is not None:
            entity = await self._database.read(held.get, letter.entity_id)
        if entity is not None and entity.letter_id == letter.id:
            await self._letters.retry_queue(entity.entity_id, also)
        else:
            await self._letters.retry(letter, also)


async def _count(connection: Connection, run: BulkRun, id_: int, *, done: int = 0, failed: int = 0) -> None:
    if not await letter_runs.advance(connection, run, id_, done=done, failed=failed):
        raise _LostError(f"bulk call {run.id} is another worker's")


async def _requeue(connection: Connection, run: BulkRun, letter: DeadLetter) -> None:
    await requeue(connection, letter)
    await _count(connection, run, letter.id, done=1)


async def _remove(connection: Connection, run: BulkRun, ids: list[int]) -> None:
    kept = await letter_runs.remove(connection, ids)
    await _count(connection, run, ids[-1], done=len(ids) - kept, failed=kept)


async def _finish(connection: Connection, run: BulkRun) -> None:
    numbers = await letter_runs.finish(connection, run)
    if numbers is None:
        raise _LostError(f"bulk call {run.id} is another worker's")
    done, failed = numbers
    act = Act(
        principal=run.principal,
        action=f"dead-letters.{run.action}",
        target=f"bulk call {run.id}",
        outcome=f"{done} done, {failed} failed",
    )
    await audit.add(connection, act)
