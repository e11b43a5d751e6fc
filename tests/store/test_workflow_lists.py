"""Lists of workflows: their orders, filters and pages, and the plan of each."""

from datetime import timedelta
from typing import cast

import pytest

from app.store import workflows
from app.store.database import Connection, Database
from app.store.workflow_lists import ChangeKey, ListOrder, WorkflowFilter, after_prefix, get_page, list_statement
from app.wire.events import EARLIEST
from tests.making import START
from tests.store.test_plans import Parameters, buffers, explain, indexes, kinds, most_rows
from tests.store.test_workflows import BY_CHANGE, BY_KEY, STATE, commit, filled, planning

__all__ = ["filled"]

OLDEST, NEWEST, KEY = ListOrder
ASTRAL = "\U0001f980"


async def keys(database: Database, wanted: WorkflowFilter, made: str, limit: int = 100) -> list[str]:
    """The keys in a list of workflows with these one-letter keys, changed at one time but for `c`, which is later."""

    async def work(connection: Connection) -> list[str]:
        await workflows.commit(connection, [commit(key, 0) for key in made])
        await connection.execute(f"UPDATE {STATE} SET updated_at = '2026-01-01' WHERE workflow_key <> 'c'")
        found: list[str] = []
        after: ChangeKey | None = None
        while True:
            page, more = await get_page(connection, wanted, after=after, limit=limit)
            found += [row.workflow_key for row in page]
            if not more:
                return found
            after = (page[-1].updated_at, page[-1].workflow_key)

    return await database.write_alone(work)


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize(
    ("order", "found"), [(OLDEST, "abdc"), (NEWEST, "cdba"), (KEY, "abcd")], ids=["oldest", "newest", "key"]
)
async def test_a_list_has_an_order(database: Database, order: ListOrder, found: str, limit: int) -> None:
    """Rows come by the time of their last change, then by key, in one direction or the other; or by key."""
    assert await keys(database, WorkflowFilter(order=order), "dcba", limit) == list(found)


async def test_keys_are_in_the_order_of_their_bytes(database: Database) -> None:
    """Whatever the database's collation: capitals come first, and all of ASCII before the rest."""
    assert await keys(database, WorkflowFilter(order=KEY), "b" + ASTRAL + "aßB") == ["B", "a", "b", "ß", ASTRAL]


@pytest.mark.parametrize("order", ListOrder)
async def test_a_list_has_filters(database: Database, order: ListOrder) -> None:
    """A list may be of keys that begin with a text, of changes since a time, and of keys that a caller may read."""
    since = START + timedelta(days=30)
    assert await keys(database, WorkflowFilter(order=order, updated_since=since), "abc") == ["c"]
    assert await keys(database, WorkflowFilter(order=order, key_prefix="b"), "") == ["b"]
    assert await keys(database, WorkflowFilter(order=order, prefixes=["a"]), "") == ["a"]
    assert await keys(database, WorkflowFilter(order=order, key_prefix="b", prefixes=["a"]), "") == []
    assert await keys(database, WorkflowFilter(order=order, key_prefix="%"), "%_") == ["%"]


@pytest.mark.parametrize(
    ("prefix", "after"),
    [
        ("a", "b"),
        ("az", "a{"),
        ("a\U0010ffff", "b"),
        ("\ud7ff", "\ue000"),
        ("\U0010ffff", None),
        ("\uffff", "\U00010000"),
    ],
)
def test_a_prefix_has_an_end(prefix: str, after: str | None) -> None:
    """The first text after all that begin with a prefix follows in the order of bytes, where there is one."""
    assert after_prefix(prefix) == after
    if after is not None:
        assert (prefix + "\U0010ffff" * 3).encode() < after.encode()


# --- Plans ---------------------------------------------------------------------------------------------------------

MIDDLE = {"updated_at": START + timedelta(hours=3), "workflow_key": "key 5"}
PREFIX: Parameters = {"first": "key 19", "end": "key 1:"}
PAGES: list[tuple[ListOrder, Parameters, str]] = [
    (OLDEST, {}, BY_CHANGE),
    (OLDEST, MIDDLE, BY_CHANGE),
    (OLDEST, {"since": START + timedelta(hours=2)}, BY_CHANGE),
    (NEWEST, {}, BY_CHANGE),
    (NEWEST, MIDDLE, BY_CHANGE),
    (NEWEST, {"since": EARLIEST}, BY_CHANGE),
    (KEY, {}, BY_KEY),
    (KEY, MIDDLE, BY_KEY),
    (KEY, PREFIX, BY_KEY),
    (KEY, PREFIX | {"updated_at": START, "workflow_key": "key 195"}, BY_KEY),
]


@pytest.mark.parametrize("limit", [100, 1001])
@pytest.mark.parametrize(("order", "given", "index"), PAGES)
async def test_a_page_costs_what_a_page_costs(
    filled: str, order: ListOrder, given: Parameters, index: str, limit: int
) -> None:
    """A page is read from one index in order, and no further than its end."""
    conditions = {"after" if name == "workflow_key" else name for name in given.keys() - {"updated_at"}}
    async with planning(filled, scans=True) as connection:
        plan = await explain(connection, list_statement(order, frozenset(conditions)), given | {"limit": limit})
        assert indexes(plan) == {index}
        assert kinds(plan) <= {"Limit", "Index Scan"}
        assert most_rows(plan) <= limit
        assert buffers(plan) <= 3 * limit + 20


@pytest.mark.parametrize("order", [OLDEST, NEWEST])
async def test_a_rare_prefix_is_found_by_key(filled: str, order: ListOrder) -> None:
    """Ten rows among twenty thousand are found by their keys, and sorted."""
    given: Parameters = {"first": "key 1998", "end": "key 1999", "limit": 100}
    async with planning(filled, scans=True) as connection:
        plan = await explain(connection, list_statement(order, frozenset({"first", "end"})), given)
    assert BY_KEY in indexes(plan)
    assert buffers(plan) <= 200


@pytest.mark.parametrize("order", ListOrder)
async def test_a_page_of_prefixes_is_read_in_order(filled: str, order: ListOrder) -> None:
    """A page of the prefixes that a caller may read comes from the same index, and skips other keys on the way."""
    given = cast("Parameters", {"limit": 100, "prefixes": ["key 9"]})
    async with planning(filled, scans=True) as connection:
        plan = await explain(connection, list_statement(order, frozenset({"prefixes"})), given)
    assert indexes(plan) == {BY_KEY if order is KEY else BY_CHANGE}
    assert kinds(plan) <= {"Limit", "Index Scan"}
