"""Full scans: which lists count as one, and how many run at once."""

import asyncio
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from app.api.full_scans import FullScans, is_full_scan
from app.domain.states import RegistrationState
from app.errors import TooManyFullScansError
from app.store.listing import EntityFilter

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ACTIVE = (RegistrationState.ACTIVE,)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, False),
        ({"states": ACTIVE}, False),
        ({"event_id": UUID(int=1), "node_type": "x"}, False),
        ({"updated_before": NOW, "states": ACTIVE}, False),
        ({"updated_before": NOW}, True),
        ({"updated_since": NOW, "states": ACTIVE}, False),
        ({"updated_since": NOW}, True),
        ({"ids": (UUID(int=1), UUID(int=2))}, False),
        ({"node_type": "compute"}, True),
        ({"node_type": "compute", "states": ACTIVE}, True),
        ({"capabilities": {"gpu": True}}, True),
    ],
)
def test_which_lists_are_full_scans(filters: dict[str, Any], expected: bool) -> None:
    """A list that no index narrows is a full scan; a list by state, by event or in the order of ids is not."""
    assert is_full_scan(EntityFilter(domain="registration", **filters)) is expected


def test_the_third_is_refused() -> None:
    """Of three full scans two run; the third is refused with the seconds to wait, and runs after one has ended."""
    turns = FullScans()
    with turns.now():
        with turns.now(), pytest.raises(TooManyFullScansError) as refused, turns.now():
            pass
        assert refused.value.retry_after.total_seconds() >= 1
        with turns.now():
            pass


def test_a_turn_ends_with_an_error() -> None:
    """A full scan that fails gives its turn back."""
    turns = FullScans(1)
    for _ in range(3):
        with pytest.raises(KeyError), turns.now():
            raise KeyError


async def test_later_pages_wait_in_the_order_of_arrival() -> None:
    """Waiting scans get turns in the order of arrival, before new ones, which are refused meanwhile."""
    turns = FullScans(1)
    order: list[int] = []

    async def page(number: int) -> None:
        async with turns.later():
            order.append(number)
            await asyncio.sleep(0)

    with turns.now():
        tasks = [asyncio.create_task(page(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert order == []
    with pytest.raises(TooManyFullScansError), turns.now():
        pass
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]
    async with turns.later():
        pass


async def test_one_that_gives_up_waiting_keeps_no_turn() -> None:
    """A stream whose client leaves, while it waits for a turn or as it gets one, gives the turn back."""
    turns = FullScans(1)

    async def page() -> None:
        async with turns.later():
            await asyncio.sleep(60)

    with ExitStack() as stack:
        stack.enter_context(turns.now())
        waiting, handed = asyncio.create_task(page()), asyncio.create_task(page())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        stack.close()
        handed.cancel()
        await asyncio.wait([handed])
    with turns.now():
        pass
