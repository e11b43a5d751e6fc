"""Lanes: concurrent questions share a batch, and nothing else."""

import asyncio
from collections.abc import Sequence

import pytest

from app.concurrency.lanes import BATCH_BYTES, JOINED, LARGE_WAITING, Lane, Lanes
from app.errors import InvalidInputError, UnavailableError


class Asked:
    """Answers each number with its double, in recorded batches that wait until the test lets them through."""

    def __init__(self, *, wrong: Sequence[int] = ()) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self._wrong = wrong

    async def run(self, numbers: list[int]) -> list[int]:
        """Answer a batch."""
        self.batches.append(numbers)
        await self.gate.wait()
        if any(number in self._wrong for number in numbers):
            raise InvalidInputError([])
        return [2 * number for number in numbers]


async def started(lane: Lane[int, int], numbers: Sequence[int]) -> list["asyncio.Future[int]"]:
    """Ask these numbers, each under way before the next one is asked."""
    asked = []
    for number in numbers:
        asked.append(lane.ask(number))
        await asyncio.sleep(0)
    return asked


async def test_a_lone_question_is_asked_at_once() -> None:
    """An idle lane runs a question in the next turn of the loop, without a timer and without waiting for others."""
    asked = Asked()
    Lane(asked.run).ask(1)
    await asyncio.sleep(0)
    assert asked.batches == [[1]]


async def test_a_batch_has_at_most_1_mib_of_questions() -> None:
    """A batch holds at most 1 MiB; further questions form the next one, and a larger question goes alone."""
    asked = Asked()
    lane = Lane(asked.run)
    sizes = [1, JOINED, *[BATCH_BYTES // 2] * 2, BATCH_BYTES, 2 * BATCH_BYTES, 1]
    tasks = [lane.ask(number, size) for number, size in enumerate(sizes)]
    asked.gate.set()
    assert await asyncio.gather(*tasks) == [2 * number for number in range(len(sizes))]
    assert asked.batches == [[0, 1, 2], [3], [4], [5], [6]]


async def test_a_large_question_goes_alone_and_holds_up_no_other() -> None:
    """A large question runs beside the lane, one at a time; past LARGE_WAITING, large ones are refused."""
    asked = Asked()
    lanes = Lanes(asked.run)
    large = [lanes.ask(number, JOINED + 1) for number in range(2)]
    small = [lanes.ask(number, JOINED) for number in (10, 11)]
    await asyncio.sleep(0)
    assert asked.batches == [[0], [10, 11]]
    waiting = [lanes.ask(number, JOINED + 1) for number in range(LARGE_WAITING - 1)]
    with pytest.raises(UnavailableError):
        lanes.ask(9, JOINED + 1)
    asked.gate.set()
    assert await asyncio.gather(*large, *small, *waiting[:1]) == [0, 2, 20, 22, 0]
    await lanes.close()
    assert asked.batches[2:4] == [[1], [0]]
    with pytest.raises(UnavailableError):
        lanes.ask(1, 1)


async def test_what_comes_while_a_batch_runs_is_the_next_batch() -> None:
    """Questions that arrive during a batch form the next batch; each gets its own answer."""
    asked = Asked()
    lane = Lane(asked.run)
    tasks = await started(lane, range(5))
    assert asked.batches == [[0]]
    asked.gate.set()
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8]
    assert asked.batches == [[0], [1, 2, 3, 4]]


async def test_a_batch_has_a_bound() -> None:
    """More questions than a statement takes are asked in several batches, in their order."""
    asked = Asked()
    lane = Lane(asked.run, largest=2)
    tasks = await started(lane, range(6))
    asked.gate.set()
    await asyncio.gather(*tasks)
    assert asked.batches == [[0], [1, 2], [3, 4], [5]]


async def test_past_the_bound_a_question_is_refused_at_once() -> None:
    """A full queue raises UnavailableError; waiting questions still get their answers."""
    asked = Asked()
    lane = Lane(asked.run, waiting=2)
    tasks = await started(lane, range(3))
    with pytest.raises(UnavailableError):
        await lane.ask(3)
    asked.gate.set()
    assert await asyncio.gather(*tasks) == [0, 2, 4]


async def test_what_is_wrong_with_one_question_fails_that_one_alone() -> None:
    """The questions of a failed batch are asked again one by one, so only the wrong one fails."""
    asked = Asked(wrong=[2])
    lane = Lane(asked.run)
    tasks = await started(lane, range(4))
    asked.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [answers[0], answers[1], answers[3]] == [0, 2, 6]
    assert isinstance(answers[2], InvalidInputError)


async def test_a_database_that_is_down_is_not_asked_again_for_each() -> None:
    """UnavailableError is raised for every question of the batch, which is not repeated."""
    batches = []
    gate = asyncio.Event()

    async def run(numbers: list[int]) -> list[int]:
        batches.append(numbers)
        await gate.wait()
        raise UnavailableError("down")

    lane = Lane(run)
    tasks = await started(lane, range(4))
    gate.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [UnavailableError] * 4
    assert len({id(error) for error in errors}) == 4
    assert batches == [[0], [1, 2, 3]]


@pytest.mark.parametrize("leaving", range(4))
async def test_an_asker_that_goes_away_disturbs_nobody(leaving: int) -> None:
    """If any asker is cancelled, even the first one, the others are answered."""
    asked = Asked()
    lane = Lane(asked.run)
    tasks = await started(lane, range(4))
    tasks[leaving].cancel()
    await asyncio.sleep(0)
    asked.gate.set()
    answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert [answer for number, answer in enumerate(answers) if number != leaving] == [
        2 * number for number in range(4) if number != leaving
    ]
    assert isinstance(answers[leaving], asyncio.CancelledError)
    assert await lane.ask(7) == 14


async def test_closing_finishes_what_was_taken_and_takes_no_more() -> None:
    """After close() all earlier questions are answered, and a new one is refused."""
    asked = Asked()
    lane = Lane(asked.run)
    tasks = await started(lane, range(3))
    closing = asyncio.create_task(lane.close())
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError):
        await lane.ask(9)
    assert not closing.done()
    asked.gate.set()
    await asyncio.wait_for(closing, 5)
    assert [task.result() for task in tasks] == [0, 2, 4]
