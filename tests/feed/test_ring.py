"""The ring: the changes it holds, those it drops, and the followers it wakes."""

import asyncio
import time
from datetime import UTC, datetime
from uuid import UUID

import pytest

from app.domain.changes import ChangeOutcome
from app.domain.states import RegistrationState
from app.feed.items import Filter, Item
from app.feed.ring import Ring, Waiters
from app.store.changes import BEGINNING, Logged, Place
from tests.making import node

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANY = Filter("registration")


def item(id_: int, entity_id: UUID | None = None, domain: str = "registration") -> Item:
    """A change."""
    return Item(
        Logged(
            id=id_,
            mark=7,
            entity_id=entity_id or node(1),
            domain=domain,
            node_type="compute",
            version=id_,
            event_id=None,
            type="registration.accepted",
            outcome=ChangeOutcome.APPLIED,
            reason=None,
            before=RegistrationState.PENDING_REGISTRATION,
            current_state=RegistrationState.ACCEPTED,
            partition=None,
            offset=None,
            sequence=id_,
            occurred_at=NOW,
            changed_at=NOW,
            correlation_id=None,
            row=None,
        )
    )


def ids(items: list[Item]) -> list[int]:
    """The ids of these items."""
    return [each.place.id for each in items]


def test_a_scan_goes_on_where_the_last_one_ended() -> None:
    """A scan gives the filter's matches up to the limit, and its place passes over the other changes."""
    ring = Ring(BEGINNING)
    ring.add([item(1), item(2, domain="other"), item(3), item(4), item(5, domain="other")])
    first = ring.scan(BEGINNING, ANY, 2)
    assert (ids(first.items), first.place, first.caught_up) == ([1, 3], Place(3, 7), False)
    second = ring.scan(first.place, ANY, 2)
    assert (ids(second.items), second.place, second.caught_up) == ([4], Place(5, 7), True)
    assert ring.scan(ring.newest, ANY, 2).items == []


def test_it_has_the_places_of_its_changes_alone() -> None:
    """A place with another mark, between two changes, or beyond the newest one is not in the ring."""
    ring = Ring(Place(10, 1))
    ring.add([item(20), item(30)])
    assert all(map(ring.has, (Place(10, 1), Place(20, 7), Place(30, 7))))
    assert not any(map(ring.has, (Place(10, 2), Place(9, 1), Place(20, 8), Place(25, 7), Place(31, 7), BEGINNING)))


def test_the_oldest_changes_make_room() -> None:
    """The oldest changes are dropped; the rest has no gap, and the ring knows where it begins."""
    ring = Ring(BEGINNING, capacity=10)
    ring.add([item(number) for number in range(1, 12)])
    assert not ring.has(BEGINNING)
    assert ring.has(Place(6, 7))
    assert ids(list(ring.after(Place(6, 7)))) == [7, 8, 9, 10, 11]
    size = len(item(1).body)
    small = Ring(BEGINNING, room=4 * size)
    small.add([item(number) for number in range(1, 6)])
    assert ids(small.scan(Place(3, 7), ANY, 10).items) == [4, 5]


async def test_those_wake_for_whom_something_came() -> None:
    """A change wakes its entity's and its filters' waiters, each with the place before it; none stays registered."""
    waiters = Waiters()
    of_one, of_two = only(node(1)), only(node(2))
    tasks = [asyncio.create_task(waiters.wait(wanted, 5)) for wanted in (ANY, of_one, of_two, Filter("other"), ANY)]
    await asyncio.sleep(0)
    assert waiters.count == 5
    waiters.tell([item(5)], Place(4, 7))
    await asyncio.sleep(0.01)
    assert [task.done() for task in tasks] == [True, True, False, False, True]
    assert {task.result() for task in tasks if task.done()} == {Place(4, 7)}
    waiters.call_all()
    assert [await tasks[2], await tasks[3]] == [None, None]
    assert waiters.count == 0
    assert not waiters._others
    assert not waiters._by_entity


async def test_a_wait_ends() -> None:
    """A wait without a change times out, and nothing of it stays registered."""
    waiters = Waiters()
    with pytest.raises(TimeoutError):
        await waiters.wait(only(node(1)), 0.01)
    assert not waiters._by_entity


async def test_what_comes_in_the_last_moment_is_not_missed() -> None:
    """If a change and the end of the wait come together, the change counts."""
    waiters = Waiters()
    task = asyncio.create_task(waiters.wait(ANY, 0.05))
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()

    def tell_late() -> None:
        time.sleep(0.03)  # so that the end of the wait is noticed in the same turn
        waiters.tell([item(5)], Place(4, 7))

    loop.call_later(0.04, tell_late)
    assert await task == Place(4, 7)


def only(entity_id: UUID) -> Filter:
    """The filter for one entity."""
    return Filter("registration", entity_ids=frozenset({entity_id}))
