"""Workers that run together."""

import asyncio

import pytest

from app.concurrency.worker import Together, Worker


class Waiting(Worker):
    """Waits until it is stopped, and notes how it ended."""

    def __init__(self) -> None:
        self.ended = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Wait."""
        try:
            await stop.wait()
            self.ended = "stopped"
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise


class Failing(Worker):
    """Fails at once."""

    async def run(self, stop: asyncio.Event) -> None:
        """Fail."""
        raise RuntimeError("a bug")


async def test_workers_together_end_when_they_are_stopped() -> None:
    """All of them run, and each ends by itself."""
    some, stop = [Waiting(), Waiting()], asyncio.Event()
    running = asyncio.create_task(Together(*some).run(stop))
    await asyncio.sleep(0.01)
    stop.set()
    await running
    assert [each.ended for each in some] == ["stopped", "stopped"]


async def test_the_failure_of_one_is_the_failure_of_all() -> None:
    """The others are cancelled, and its error is raised."""
    other = Waiting()
    with pytest.raises(RuntimeError, match="a bug"):
        await Together(other, Failing()).run(asyncio.Event())
    assert other.ended == "cancelled"


async def test_cancelling_them_cancels_each() -> None:
    """Nothing is left running."""
    some = [Waiting(), Waiting()]
    running = asyncio.create_task(Together(*some).run(asyncio.Event()))
    await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    assert [each.ended for each in some] == ["cancelled", "cancelled"]
