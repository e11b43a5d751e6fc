"""The plans of histories: by the index of entities, as much as is asked for; and no scan of the log for an event."""

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from app.store import changes, history
from app.store.database import Connection, Database
from app.store.history import Clock, Order
from app.store.statements import Statement
from tests.databases import new_database
from tests.feed.test_plans import ROWS, fill
from tests.store.test_plans import buffers, explain, explain_generic, indexes, kinds, most_rows

ENTITY = UUID(bytes=hashlib.md5(b"entity 7", usedforsecurity=False).digest())
OF_ENTITY: dict[str, object] = {"of_entity": ENTITY, "of_domain": "registration"}
EVENT = UUID(bytes=hashlib.md5(b"event 777", usedforsecurity=False).digest())
OF_EVENT: dict[str, object] = {"of_event": EVENT, "domains": ["registration"], "limit": 100}
BY_ENTITY = {f"changes_{number:02}_entity_id_id_idx" for number in range(16)}
BY_EVENT = {f"changes_{number:02}_event_id_idx" for number in range(16)}
EACH = ROWS // 500  # changes of an entity


@pytest.fixture(scope="module")
async def filled() -> AsyncIterator[Database]:
    """A log with rows in every slice."""
    async with new_database() as url:
        database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=30))
        await database.write(fill)
        yield database
        await database.close()


@pytest.mark.parametrize("order", Order)
async def test_a_page_of_a_history_costs_what_a_page_costs(filled: Database, order: Order) -> None:
    """It is merged from the indexes of the slices, in order, and no more is read than a page has."""
    given = {**OF_ENTITY, "place": history._ENDS[order], "limit": 10}
    plan = await filled.read(explain, history.PAGES[order], given)
    assert kinds(plan) <= {"Limit", "Merge Append", "Append", "Index Scan", "Result"}
    assert indexes(plan) == BY_ENTITY
    assert most_rows(plan) <= 10 + 16
    assert buffers(plan) <= 100


@pytest.mark.parametrize("clock", Clock)
async def test_a_moment_is_a_walk_back_through_one_entity(filled: Database, clock: Clock) -> None:
    """Only its changes are read, and none before the one that counts."""
    given = {**OF_ENTITY, "as_of": datetime.now(UTC)}
    plan = await filled.read(explain, history.AT[clock], given)
    assert kinds(plan) <= {"Limit", "Merge Append", "Append", "Index Scan"}
    assert indexes(plan) == BY_ENTITY
    assert buffers(plan) <= 100


async def test_the_beginning_is_a_look_at_each_slice(filled: Database) -> None:
    """No more than the first entry of each key."""
    plan = await filled.read(explain, history.BEGAN, {})
    assert most_rows(plan) <= 16
    assert buffers(plan) <= 80


@pytest.mark.parametrize(
    "statement",
    [*history.PAGES.values(), *history.AT.values(), history.BY_EVENT, history.STANDING],
    ids=["asc", "desc", "known", "occurred", "by event", "standing"],
)
async def test_prepared_statements_never_scan(filled: Database, statement: Statement) -> None:
    """Whatever they are given."""
    plan = await filled.read(explain_generic, statement)
    assert "Seq Scan" not in kinds(plan)


async def test_an_event_is_found_by_the_summaries(filled: Database) -> None:
    """Its changes are looked for only where a summary says that they may be."""
    plan = await filled.read(explain, history.BY_EVENT, OF_EVENT)
    assert "Seq Scan" not in kinds(plan)
    assert indexes(plan) == BY_EVENT
    assert most_rows(plan) <= ROWS // 16
    found = await filled.read(history.of_event, EVENT, ["registration"])
    assert [each.version for each in found.changes] == [777]


async def test_the_history_of_an_entity_is_complete(filled: Database) -> None:
    """All its changes, in order, page by page, either way."""

    async def ids(connection: Connection, order: Order) -> list[int]:
        seen: list[int] = []
        more, place = True, None
        while more:
            page, more = await history.page(connection, ENTITY, "registration", order=order, place=place, limit=7)
            seen += [each.id for each in page]
            place = seen[-1]
        return seen

    forward = await filled.read(ids, Order.ASC)
    assert forward == sorted(forward)
    assert len(forward) == EACH
    assert await filled.read(ids, Order.DESC) == forward[::-1]
    assert (await filled.read(changes.read, 0, ROWS, limit=ROWS))[-1].id == ROWS - 1
