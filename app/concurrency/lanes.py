"""Lanes: questions that arrive while a batch runs are joined into the next one."""

import asyncio
import copy
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from contextlib import nullcontext
from typing import Generic, Protocol, TypeVar

from app.errors import RowLockedError, UnavailableError
from app.tracing.recorder import Recorder, current, recorded_batch

WAITING = 2000  # requests that may wait in one lane; further ones are refused at once
LARGEST = 500  # requests that one statement answers
JOINED = 64 * 1024  # bytes of a request that is joined with others; a larger one goes alone
BATCH_BYTES = 1024 * 1024  # bytes of the requests that one statement answers
PLACES = 4  # locked rows that are waited for at a time; each keeps a connection
LARGE_WAITING = 64  # requests of more than JOINED bytes that may wait

Q = TypeVar("Q")
A = TypeVar("A")


class LaneReport(Protocol):
    """Hears of the batches of a lane, for metrics."""

    def joined(self, size: int, waited: float) -> None:
        """A batch of `size` questions begins; the oldest of them has waited so many seconds."""

    def refused(self) -> None:
        """A question was refused, as too many wait."""


class Side(Generic[Q, A]):
    """Where questions go whose row another client keeps locked, so that a lane does not wait for it.

    The questions of a row go on together, in their order, on connections that wait for locks; those of other rows do
    not wait for them.
    """

    def __init__(
        self,
        key: Callable[[Q], Hashable],
        locked: Callable[[list[Q]], Awaitable[Collection[Hashable]]],
        run: Callable[[list[Q]], Awaitable[Sequence[A]]],
        *,
        places: int = PLACES,
    ) -> None:
        """`key` names the row of a question, `locked` tells which rows are locked, `run` answers as a lane's.

        At most `places` rows are waited for at a time.
        """
        self.key, self.locked, self.run = key, locked, run
        self.places = asyncio.Semaphore(places)


class Lane(Generic[Q, A]):
    """Runs one batch at a time. Questions that arrive while it runs form the next batch.

    There is no timer, and no wait when idle: a question that finds the lane free is run at once. Every caller gets
    its own answer, or its own error: a batch that fails is run again question by question, so a wrong question fails
    only its own caller (UnavailableError is the same for all, and is handed to each). A caller that goes away
    disturbs nobody. When WAITING questions wait, the next one gets UnavailableError at once. A batch has at most
    BATCH_BYTES of questions, by the sizes that their callers name; a single question may be larger.

    With a `side`, a batch that meets a locked row (RowLockedError) goes on without the questions of that row. These,
    and later ones of the same row, go on beside the lane until the row is free.
    """

    def __init__(
        self,
        run: Callable[[list[Q]], Awaitable[Sequence[A]]],
        *,
        waiting: int = WAITING,
        largest: int = LARGEST,
        side: Side[Q, A] | None = None,
        report: LaneReport | None = None,
        name: str = "questions",
        is_traced: bool = False,
    ) -> None:
        """`run` answers a list of questions, one answer for each, in their order. `name` is theirs, in traces, which
        are recorded with `is_traced`.
        """
        self._name = name
        self._is_traced = is_traced
        self._traced: dict[asyncio.Future[A], Recorder] = {}  # of the questions that wait, the sampled ones
        self._side = side
        self._held: dict[Hashable, deque[tuple[Q, asyncio.Future[A]]]] = {}  # by row, what goes on beside the lane
        self._beside: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
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
        future: asyncio.Future[A] = self._loop.create_future()
        if self._held and self._is_held(question, future):
            return future
        if self._is_traced and (trace := current.get()) is not None:
            self._traced[future] = trace
        self._waiting.append((question, future, size, time.perf_counter()))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return future

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return len(self._waiting)

    async def close(self) -> None:
        """Refuse new questions, and answer those that were accepted."""
        self._closed = True
        if self._worker is not None:
            await asyncio.shield(self._worker)
        if self._beside:
            await asyncio.wait(self._beside)

    async def _work(self) -> None:
        """Answer batch after batch, until nobody waits. The task does not belong to any caller."""
        if self._is_traced:
            current.set(None)  # it was that of whoever found the lane free
        try:
            while self._waiting:
                if self._traced:
                    await self._answer_traced()
                else:
                    await self._answer(self._next_batch())
        finally:
            self._worker = None

    async def _answer_traced(self) -> None:
        """Answer a batch, and record it for the sampled questions in it."""
        came = {future: since for _, future, _, since in self._waiting if future in self._traced}
        questions = self._next_batch()
        joined = [
            (question, trace, came[future])
            for question, future in questions
            if (trace := self._traced.pop(future, None)) is not None
        ]
        for future in [each for each in self._traced if each.done()]:
            del self._traced[future]
        with recorded_batch(self._name, joined, len(questions)) if joined else nullcontext():
            await self._answer(questions)

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
            if not future.done() and not (self._held and self._is_held(question, future)):
                batch.append((question, future))
        if self._report is not None:
            self._report.joined(len(batch), time.perf_counter() - oldest)
        return batch

    def _is_held(self, question: Q, future: "asyncio.Future[A]") -> bool:
        """Whether others of the same row go on beside the lane: then this one waits behind them."""
        if self._side is None or (ahead := self._held.get(self._side.key(question))) is None:
            return False
        if len(ahead) >= self._bound:
            raise UnavailableError("too many requests are waiting for a row that another client keeps locked")
        ahead.append((question, future))
        return True

    async def _go_on(self, batch: list[tuple[Q, asyncio.Future[A]]], side: Side[Q, A]) -> None:
        """Answer a batch that met a locked row: those of locked rows beside the lane, the others here."""
        try:
            held = await side.locked([question for question, _ in batch])
        except Exception:  # noqa: BLE001 - each is then asked on its own
            held = ()
        here = [each for each in batch if side.key(each[0]) not in held] if held else []
        for question, future in batch:
            if held and side.key(question) not in held:
                continue
            if not self._is_held(question, future):
                key = side.key(question)
                self._held[key] = deque([(question, future)])
                task = asyncio.create_task(self._work_beside(key, side))
                self._beside.add(task)
                task.add_done_callback(self._beside.discard)
        await self._answer(here)

    async def _work_beside(self, key: Hashable, side: Side[Q, A]) -> None:
        """Answer the questions of a row, until none waits for it."""
        waiting = self._held[key]
        try:
            while waiting:
                async with side.places:
                    batch = [waiting.popleft() for _ in range(min(self._largest, len(waiting)))]
                    await self._answer([each for each in batch if not each[1].done()], side)
        finally:
            del self._held[key]

    async def _answer(self, batch: list[tuple[Q, asyncio.Future[A]]], beside: Side[Q, A] | None = None) -> None:
        if not batch:
            return
        run = self._run if beside is None else beside.run
        try:
            answers = await run([question for question, _ in batch])
        except RowLockedError as error:
            if self._side is not None and beside is None:
                await self._go_on(batch, self._side)
                return
            self._fail(batch, error)
            return
        except Exception as error:  # noqa: BLE001 - the callers get it
            if len(batch) > 1 and not isinstance(error, UnavailableError):
                for one in batch:
                    await self._answer([one], beside)
                return
            self._fail(batch, error)
            return
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    @staticmethod
    def _fail(batch: list[tuple[Q, asyncio.Future[A]]], error: Exception) -> None:
        for _, future in batch:
            if not future.done():
                # One object for all callers would collect their tracebacks. Not every type can be copied.
                future.set_exception(error if len(batch) == 1 else copy.copy(error))


class Lanes(Generic[Q, A]):
    """A lane for questions of up to JOINED bytes, and one beside it for larger ones, which go one by one.

    So a large question holds up only other large ones.
    """

    def __init__(
        self,
        run: Callable[[list[Q]], Awaitable[Sequence[A]]],
        *,
        largest: int = LARGEST,
        side: Side[Q, A] | None = None,
        report: LaneReport | None = None,
        name: str = "questions",
        is_traced: bool = False,
    ) -> None:
        """`run` answers a list of questions, as in a Lane."""
        self._joined = Lane(run, largest=largest, side=side, report=report, name=name, is_traced=is_traced)
        self._alone = Lane(
            run, waiting=LARGE_WAITING, largest=1, side=side, report=report, name=name, is_traced=is_traced
        )

    def ask(self, question: Q, size: int) -> "asyncio.Future[A]":
        """The answer to `question`, which has `size` bytes. See Lane.ask()."""
        return (self._joined if size <= JOINED else self._alone).ask(question, size)

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return self._joined.waiting + self._alone.waiting

    async def close(self) -> None:
        """Refuse new questions, and answer those that were accepted."""
        await self._joined.close()
        await self._alone.close()
