"""Lanes: questions that arrive while a batch runs are joined into the next one."""

import asyncio
import copy
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from app.errors import UnavailableError

WAITING = 2000  # requests that may wait in one lane; further ones are refused at once
LARGEST = 500  # requests that one statement answers
JOINED = 64 * 1024  # bytes of a request that is joined with others; a larger one goes alone
BATCH_BYTES = 1024 * 1024  # bytes of the requests that one statement answers
LARGE_WAITING = 64  # requests of more than JOINED bytes that may wait

Q = TypeVar("Q")
A = TypeVar("A")


class LaneReport(Protocol):
    """Hears of the batches of a lane, for metrics."""

    def joined(self, size: int, waited: float) -> None:
        """A batch of `size` questions begins; the oldest of them has waited so many seconds."""

    def refused(self) -> None:
        """A question was refused, as too many wait."""


class Lane(Generic[Q, A]):
    """Runs one batch at a time. Questions that arrive while it runs form the next batch.

    There is no timer, and no wait when idle: a question that finds the lane free is run at once. Every caller gets
    its own answer, or its own error: a batch that fails is run again question by question, so a wrong question fails
    only its own caller (UnavailableError is the same for all, and is handed to each). A caller that goes away
    disturbs nobody. When WAITING questions wait, the next one gets UnavailableError at once. A batch has at most
    BATCH_BYTES of questions, by the sizes that their callers name; a single question may be larger.
    """

    def __init__(
        self,
        run: Callable[[list[Q]], Awaitable[Sequence[A]]],
        *,
        waiting: int = WAITING,
        largest: int = LARGEST,
        report: LaneReport | None = None,
    ) -> None:
        """`run` answers a list of questions, one answer for each, in their order."""
        self._run = run
        self._bound = waiting
        self._largest = largest
        self._report = report
        # With the bytes of the question, and when it came.
        self._waiting: deque[tuple[Q, asyncio.Future[A], int, float]] = deque()
        self._closed = False
        self._worker: asyncio.Task[None] | None = None

    def ask(self, question: Q, size: int = 0) -> "asyncio.Future[A]":
        """The answer to `question`, which has `size` bytes, read after this call: as fresh as an unbatched read.

        A caller that goes away cancels the future.
        """
        if self._closed:
            raise UnavailableError("the service is stopping")
        if len(self._waiting) >= self._bound:
            if self._report is not None:
                self._report.refused()
            raise UnavailableError("too many requests are waiting for the database")
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future, size, time.perf_counter()))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return future

    @property
    def waiting(self) -> int:
        """How many questions wait for the next batch."""
        return len(self._waiting)

    async def close(self) -> None:
        """Refuse new questions, and answer those that were accepted."""
        self._closed = True
        if self._worker is not None:
            await asyncio.shield(self._worker)

    async def _work(self) -> None:
        """Answer batch after batch, until nobody waits. The task does not belong to any caller."""
        try:
            while self._waiting:
                await self._answer(self._next_batch())
        finally:
            self._worker = None

    def _next_batch(self) -> list[tuple[Q, asyncio.Future[A]]]:
        """The questions that have waited longest and are still wanted: at least one is taken off."""
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        waiting = self._waiting
        room = BATCH_BYTES
        oldest = waiting[0][3]
        for _ in range(min(self._largest, len(waiting))):
            room -= waiting[0][2]
            if room < 0 and batch:
                break
            question, future, _, _ = waiting.popleft()
            if not future.done():
                batch.append((question, future))
        if self._report is not None:
            self._report.joined(len(batch), time.perf_counter() - oldest)
        return batch

    async def _answer(self, batch: list[tuple[Q, asyncio.Future[A]]]) -> None:
        if not batch:
            return
        try:
            answers = await self._run([question for question, _ in batch])
        except Exception as error:  # noqa: BLE001 - the callers get it
            if len(batch) > 1 and not isinstance(error, UnavailableError):
                for one in batch:
                    await self._answer([one])
                return
            for _, future in batch:
                if not future.done():
                    # One object for all callers would collect their tracebacks. Not every type can be copied.
                    future.set_exception(error if len(batch) == 1 else copy.copy(error))
            return
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)


class Lanes(Generic[Q, A]):
    """A lane for questions of up to JOINED bytes, and one beside it for larger ones, which go one by one.

    So a large question holds up only other large ones.
    """

    def __init__(
        self,
        run: Callable[[list[Q]], Awaitable[Sequence[A]]],
        *,
        largest: int = LARGEST,
        report: LaneReport | None = None,
    ) -> None:
        """`run` answers a list of questions, as in a Lane."""
        self._joined = Lane(run, largest=largest, report=report)
        self._alone = Lane(run, waiting=LARGE_WAITING, largest=1, report=report)

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return self._joined.waiting + self._alone.waiting

    def ask(self, question: Q, size: int) -> "asyncio.Future[A]":
        """The answer to `question`, which has `size` bytes. See Lane.ask()."""
        return (self._joined if size <= JOINED else self._alone).ask(question, size)

    async def close(self) -> None:
        """Refuse new questions, and answer those that were accepted."""
        await self._joined.close()
        await self._alone.close()
