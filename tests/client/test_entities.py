"""The client's reads of entities, from the whole application."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from app.domain.positions import Position
from app.domain.states import RegistrationState
from app.settings import read_settings
from pqs_client import Client, InvalidError, NotFoundError, UnreadableError
from tests.client.conftest import client_in_process
from tests.databases import new_database
from tests.making import NODE, START, Json, at, event_json, life, node

NODES = 7  # in the shared service's domain `many`, all of them overdue


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Client]:
    """A client of a service for all tests of this module: one active node, and a domain with several."""
    async with new_database() as url, client_in_process(read_settings({"database_url": url})) as client:
        await client.events.send_all(life())
        await client.events.send_all(recorded(number, "accepted", number) for number in range(NODES))
        await client.events.send_all(recorded(number, "active", number) for number in range(100, 100 + NODES))
        yield client


def recorded(number: int, state: str, deadline: float) -> Json:
    """An event that puts a row into a state, with a deadline this many seconds after the start."""
    data: Json = {
        "current_state": state,
        "node_type": "storage" if number % 2 else "compute",
        "registered_at": at(0),
        "capabilities": {"gpu": number % 2 == 0, "name": 'with "quotes" & \u2028'},
        {"accepted": "ack_deadline", "active": "liveness_deadline"}[state]: at(deadline),
    }
    return event_json("registration.recorded", 1, entity_id=node(number), domain="many", data=data)


def seconds(number: float) -> datetime:
    """A time this many seconds after the start."""
    return START + timedelta(seconds=number)


async def test_an_entity_is_a_registration(shared: Client) -> None:
    """A row is the domain's Registration, with times in UTC and its position."""
    registration = await shared.entities.get(NODE)
    assert registration.entity_id == NODE
    assert registration.current_state is RegistrationState.ACTIVE
    assert registration.registered_at == datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert registration.position == Position(sequence=5)
    assert registration.version == 5


async def test_what_is_known_already_is_given_back(pqs: Client) -> None:
    """With `known`, an unchanged row is that very object, and a changed row is a new one."""
    await pqs.events.send_all(life()[:2])
    known = await pqs.entities.get(NODE)
    assert await pqs.entities.get(NODE, known=known) is known
    await pqs.events.send(life()[2])
    assert (await pqs.entities.get(NODE, known=known)).version == known.version + 1


async def test_the_state_is_a_value_of_the_domain(shared: Client) -> None:
    """`state` returns a RegistrationState."""
    assert await shared.entities.state(NODE) is RegistrationState.ACTIVE


async def test_what_is_not_there_is_not_found(shared: Client) -> None:
    """An entity missing in its domain raises a NotFoundError that names both."""
    with pytest.raises(NotFoundError, match=f"there is no entity {NODE} in domain elsewhere") as caught:
        await shared.entities.get(NODE, domain="elsewhere")
    assert caught.value.status == 404


async def test_a_lookup_says_what_is_missing(shared: Client) -> None:
    """A lookup has the rows in the order asked for, and the ids without a row."""
    found = await shared.entities.lookup([node(3), node(999), node(1)], domain="many")
    assert [item.entity_id for item in found.items] == [node(3), node(1)]
    assert found.missing == [node(999)]


async def test_counts_are_by_state(shared: Client) -> None:
    """The counts have all eight states, and their sum."""
    counts = await shared.entities.counts(domain="many")
    assert set(counts.counts) == set(RegistrationState)
    assert counts.counts[RegistrationState.ACCEPTED] == NODES
    assert counts.total == 2 * NODES


async def test_pages_are_followed_to_the_end(shared: Client) -> None:
    """The pages of a list have each row once, in the order of entity ids, and at most the limit."""
    pages = [page async for page in shared.entities.pages(domain="many", limit=4)]
    assert [len(page.items) for page in pages] == [4, 4, 4, 2]
    ids = [item.entity_id for page in pages for item in page.items]
    assert ids == sorted({node(number) for number in [*range(NODES), *range(100, 100 + NODES)]})


async def test_a_list_goes_on_from_a_cursor(shared: Client) -> None:
    """A page's cursor continues the list after it, later and in another client."""
    pages = [page async for page in shared.entities.pages(domain="many", limit=4)]
    [rest] = [page async for page in shared.entities.pages(domain="many", limit=100, cursor=pages[0].next_cursor)]
    assert rest.items == [item for page in pages[1:] for item in page.items]


FILTERS: dict[str, tuple[Json, set[int]]] = {
    "one state": ({"state": [RegistrationState.ACCEPTED]}, {0, 1, 2, 3, 4, 5, 6}),
    "two states": ({"state": ["accepted", "pending_registration"]}, {0, 1, 2, 3, 4, 5, 6}),
    "a node type": ({"node_type": "storage"}, {1, 3, 5, 101, 103, 105}),
    "a capability": ({"capabilities": {"gpu": True}}, {0, 2, 4, 6, 100, 102, 104, 106}),
    "a capability with special characters": (
        {"capabilities": {"name": 'with "quotes" & \u2028'}, "state": [RegistrationState.ACTIVE]},
        {100, 101, 102, 103, 104, 105, 106},
    ),
    "an event id": ({"event_id": recorded(2, "accepted", 2)["event_id"]}, {2}),
    "updated before": ({"updated_before": START}, set()),
    "updated since": ({"updated_since": START, "state": [RegistrationState.ACCEPTED]}, {0, 1, 2, 3, 4, 5, 6}),
    "the beginning of an id": ({"id_prefix": str(node(103))[:11].upper()}, {103}),
    "a state and a node type": ({"state": [RegistrationState.ACTIVE], "node_type": "storage"}, {101, 103, 105}),
}


@pytest.mark.parametrize("case", FILTERS)
async def test_filters_narrow_pages_and_streams_alike(shared: Client, case: str) -> None:
    """A filter gives the same rows in pages and in a stream."""
    filters, numbers = FILTERS[case]
    expected = sorted(node(number) for number in numbers)
    pages = [page async for page in shared.entities.pages(domain="many", **filters)]
    assert [item.entity_id for page in pages for item in page.items] == expected
    assert [item.entity_id async for item in shared.entities.stream(domain="many", **filters)] == expected


async def test_a_stream_has_rows_with_any_text(shared: Client) -> None:
    """A row is read whole, even with Unicode's line separator in a string."""
    async for registration in shared.entities.stream(domain="many"):
        assert registration.capabilities["name"] == 'with "quotes" & \u2028'


async def test_a_stream_can_be_left_early(shared: Client) -> None:
    """After a stream is closed early, the client still works."""
    stream = shared.entities.stream(domain="many")
    assert (await anext(stream)).domain == "many"
    await stream.aclose()
    assert (await shared.entities.counts(domain="many")).total == 2 * NODES


@pytest.mark.parametrize(("scan", "first"), [("ack", 0), ("liveness", 100)])
async def test_a_scan_is_oldest_first_at_one_moment(shared: Client, scan: str, first: int) -> None:
    """All pages of a scan have one moment, the oldest deadline first, and the next deadline."""
    as_of = seconds(first + 4.5)
    pages = [page async for page in getattr(shared.overdue, scan)(domain="many", as_of=as_of, limit=2)]
    assert {page.as_of for page in pages} == {as_of}
    items = [item for page in pages for item in page.items]
    assert [item.entity_id for item in items] == [node(first + number) for number in range(5)]
    assert [item.overdue_seconds for item in items] == [4.5, 3.5, 2.5, 1.5, 0.5]
    assert pages[-1].next_deadline == seconds(first + 5)


async def test_a_scan_is_of_now_by_default_and_stays_there(shared: Client) -> None:
    """Without a moment, the database's clock is read once for all pages."""
    pages = [page async for page in shared.overdue.ack(domain="many", limit=3)]
    assert len(pages) == 3
    assert len({page.as_of for page in pages}) == 1
    assert pages[0].as_of > seconds(NODES)


async def test_a_scan_goes_on_from_a_cursor_at_its_moment(shared: Client) -> None:
    """A cursor brings its moment along, even beside an explicit moment of the scan."""
    as_of = seconds(4.5)
    first = await anext(shared.overdue.ack(domain="many", as_of=as_of, limit=2))
    [rest] = [page async for page in shared.overdue.ack(domain="many", as_of=as_of, cursor=first.next_cursor)]
    assert rest.as_of == as_of
    assert [item.entity_id for item in rest.items] == [node(number) for number in (2, 3, 4)]


async def test_a_bad_cursor_is_unreadable(shared: Client) -> None:
    """A damaged cursor raises UnreadableError."""
    with pytest.raises(UnreadableError, match="the cursor is damaged"):
        await anext(shared.entities.pages(cursor="no-cursor"))


async def test_what_is_wrong_is_said_with_its_place(shared: Client) -> None:
    """A parameter out of range raises an InvalidError that points at it."""
    with pytest.raises(InvalidError) as caught:
        await anext(shared.entities.pages(limit=0))
    assert [fault.pointer for fault in caught.value.errors] == ["#/query/limit"]


async def test_calls_run_at_once(shared: Client) -> None:
    """One client makes many calls concurrently."""
    found = await asyncio.gather(*(shared.entities.get(node(number % NODES), domain="many") for number in range(50)))
    assert [registration.entity_id for registration in found] == [node(number % NODES) for number in range(50)]


async def test_a_service_that_can_answer_is_ready(shared: Client) -> None:
    """`ready` returns the schema's revision."""
    ready = await shared.ready()
    assert (ready.status, bool(ready.revision)) == ("ready", True)
