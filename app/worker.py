"""Workers: background work that goes on until it is stopped, and how it stops."""

import asyncio
import logging
from abc import abstractmethod
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Protocol

log = logging.getLogger(__name__)


class Worker(Protocol):
    """Background work: the relay, the sweep, the consumer, the pruner."""

    @abstractmethod
    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then return.

        After `stop` a worker begins nothing new. It finishes or rolls back what is under way and returns within
        seconds, also while the database or the other side does not answer. Nothing is lost and nothing is
        half-done: unfinished work stays in the database or in Kafka, for the next worker. Work whose end is not
        known may be done again, under the same id.

        Until then it does not end by itself: it waits for a database that does not answer, and tries again. It
        raises only errors that no retry mends, such as StartError for settings. To cancel it is safe.
        """


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[None]:
    """Run a worker in a task while this lasts, then stop it and wait for it.

    A worker that fails meanwhile is logged; whoever holds this goes on without it.
    """
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(stop))
    task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait([task])


async def until_stopped(work: Coroutine[None, None, None], stop: asyncio.Event) -> None:
    """Do `work`, and cancel it when `stop` is set: for work that leaves nothing half-done when it is cancelled."""
    doing, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([doing, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        doing.cancel()
        stopping.cancel()
        await asyncio.wait([doing, stopping])
    if not doing.cancelled():
        doing.result()  # raises the error of `work`


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, so many seconds at most; and return whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a worker has ended: %s", error, exc_info=error)
