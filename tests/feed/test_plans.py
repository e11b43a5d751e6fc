"""The plans of reads of the change log: by the slices' keys, reading only what is needed."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from app.store import changes, erasure, snapshots
from app.store.database import Connection, Database
from app.store.statements import Statement
from tests.databases import new_database
from tests.making import node
from tests.store.test_plans import buffers, explain, explain_generic, indexes, kinds, most_rows

ROWS = 40_000
FILL = f"""
    INSERT INTO changes (
        slice, mark, id, entity_id, domain, version, current_state, changed_at, occurred_at, event_id
    )
    SELECT i / {ROWS // 16} % 16, 1, i, md5('entity ' || i % 500)::uuid, 'registration', i, 'active',
        now(), now(), md5('event ' || i)::uuid
    FROM generate_series(0, {ROWS - 1}) AS i
"""
KEYS = {f"changes_{number:02}_pkey" for number in range(16)}


async def fill(connection: Connection) -> None:
    """Fill every slice and build its summaries."""
    await connection.execute(FILL)
    await connection.execute(
        "SELECT brin_summarize_new_values(indexrelid) FROM pg_index"
        " JOIN pg_class ON pg_class.oid = indexrelid"
        " WHERE relname LIKE 'changes_%_event_id_idx' AND relkind = 'i'"
    )
    await connection.execute("ANALYZE changes")


@pytest.fixture(scope="module")
async def filled() -> AsyncIterator[Database]:
    """A log with rows in every slice."""
    async with new_database() as url:
        database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=30))
        await database.write(fill)
        yield database
        await database.close()


@pytest.mark.parametrize("statement", [changes.READ, snapshots.CHANGED], ids=["read", "changed"])
@pytest.mark.parametrize("after", [0, ROWS // 2, ROWS - 10])
async def test_a_page_costs_what_a_page_costs(filled: Database, statement: Statement, after: int) -> None:
    """A page is merged from the slices' keys, from any place in the log."""
    given: dict[str, object] = {"after": after, "to": ROWS, "limit": 100}
    plan = await filled.read(explain, statement, given)
    assert kinds(plan) <= {"Limit", "Merge Append", "Append", "Index Scan"}
    assert indexes(plan) <= KEYS
    assert most_rows(plan) <= 100 + 16
    assert buffers(plan) <= 200


@pytest.mark.parametrize("statement", [changes.READ, changes.MARK, changes.NEWEST], ids=["read", "mark", "newest"])
async def test_prepared_statements_go_by_the_keys(filled: Database, statement: Statement) -> None:
    """Prepared statements use the slices' keys, whatever their parameters."""
    plan = await filled.read(explain_generic, statement)
    assert "Seq Scan" not in kinds(plan)
    assert indexes(plan) == KEYS


async def test_the_newest_and_a_mark_are_a_look_at_each_slice(filled: Database) -> None:
    """The newest change and a mark are found by the first entry of each slice's key."""
    for statement, given in ((changes.NEWEST, {"to": ROWS}), (changes.MARK, {"of_id": 17})):
        plan = await filled.read(explain, statement, dict(given))
        assert most_rows(plan) <= 16
        assert buffers(plan) <= 80


async def test_an_entitys_changes_are_found_to_be_erased(filled: Database) -> None:
    """An entity's changes are found for erasure by each slice's index, without scanning the log."""
    given: dict[str, object] = {"entity_id": node(1), "domain": "registration", "version": 2**62}
    plan = await filled.read(explain, erasure.EMPTY, given)
    assert "Seq Scan" not in kinds(plan)
    assert indexes(plan) == {f"changes_{number:02}_entity_id_id_idx" for number in range(16)}
