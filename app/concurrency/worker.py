"""Workers: background work that runs until it is stopped."""

import asyncio
import logging
from abc import abstractmethod
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Protocol, runtime_checkable

log = logging.getLogger(__name__)


class Worker(Protocol):
    """Background work: the relay, the sweep, the consumer, the pruner."""

    @abstractmethod
    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then return.

        After `stop` a worker begins nothing new. It finishes or rolls back the work under way and returns within
        seconds, even while the database or the other side does not answer. Nothing is lost or half-done: unfinished
        work stays in the database or in Kafka, for the next worker. Work with an unknown result may be done again,
        under the same id.

        Until then it does not end by itself: while the database does not answer, it waits and tries again. It raises
        only errors that no retry can fix, such as StartError for settings. Cancelling it is safe.
        """


@runtime_checkable
class OwnWorker(Worker, Protocol):
    """A worker that may have a process of its own, which says on `/readyz` whether it can work."""

    def trouble(self) -> str | None:
        """Why it cannot do its work now, its database apart; None if it can, or is idle."""
        return None


class Together(OwnWorker):
    """Some workers as one: all run until they are stopped. The failure of one stops the others."""

    def __init__(self, *workers: Worker) -> None:
        self._workers = workers

    def trouble(self) -> str | None:
        """The troubles of those that say theirs (see OwnWorker)."""
        said = [worker.trouble() for worker in self._workers if isinstance(worker, OwnWorker)]
        return "; ".join(filter(None, said)) or None

    async def run(self, stop: asyncio.Event) -> None:
        """Run all of them (see Worker)."""
        tasks = [asyncio.create_task(worker.run(stop)) for worker in self._workers]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()  # those that have ended do not mind
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()  # raises the error of a worker


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[None]:
    """Run a worker in a task during the context, then stop it and wait for it.

    If the worker fails meanwhile, the failure is logged, and the context goes on without it.
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
    """Do `work`, and cancel it when `stop` is set: for work that can be cancelled at any time."""
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
    """Wait for an event, for at most `seconds`, and return whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a worker has ended: %s", error, exc_info=error)
