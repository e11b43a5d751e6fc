"""The statements over workflows: their effects, their plans, and the rows that the tables refuse."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import asyncpg
import pytest

from app.domain.workflows import Commit, Committed, StateConflict, Workflow
from app.store import workflows
from app.store.database import Connection, Database
from app.store.statements import Statement
from app.store.tables import WorkflowState
from tests.databases import new_database
from tests.making import START
from tests.store.test_plans import (
    Parameters,
    buffers,
    explain,
    explain_generic,
    indexes,
    kinds,
    most_rows,
    nodes,
    undone,
)

STATE, ACTIONS = "workflow_state", "workflow_actions"
KEY, BY_CHANGE, BY_KEY = f"{STATE}_pkey", f"{STATE}_by_change", f"{STATE}_by_key"
ACTIONS_KEY, BY_AGE = f"{ACTIONS}_pkey", f"{ACTIONS}_by_age"

PROVENANCE = '{"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"}'


def commit(key: str, expected: int, state: str = '{"n": 1}', action: str | None = None) -> Commit:
    """A commit as the store receives it."""
    provenance = json.loads(PROVENANCE) | ({} if action is None else {"action_id": action})
    return Commit(key, expected, state, 1, json.dumps(provenance), action)


# --- One statement -------------------------------------------------------------------------------------------------


async def test_a_batch_has_an_outcome_for_each(database: Database) -> None:
    """New, known, late and repeated commits in one statement each get their own outcome, in order."""

    async def work(connection: Connection) -> list[workflows.CommitOutcome | None]:
        await workflows.commit(connection, [commit("z", 0), commit("b", 0, action="x"), commit("a", 0)])
        return await workflows.commit(
            connection,
            [commit("z", 1), commit("new", 0), commit("b", 5, action="x"), commit("a", 7), commit("none", 2)],
        )

    outcomes = await database.write_alone(work)
    known, new, repeated, late, missing = outcomes
    assert isinstance(known, Committed)
    assert (known.workflow.workflow_key, known.workflow.version, known.replayed) == ("z", 2, False)
    assert isinstance(new, Committed)
    assert (new.workflow.workflow_key, new.workflow.version) == ("new", 1)
    assert isinstance(repeated, Committed)
    assert (repeated.workflow.workflow_key, repeated.workflow.version, repeated.replayed) == ("b", 1, True)
    assert isinstance(late, StateConflict)
    assert (late.expected_version, late.actual_version) == (7, 1)
    assert missing == StateConflict(2, None)


async def test_of_several_for_one_workflow_the_one_that_has_seen_most_is_tried(database: Database) -> None:
    """A statement tries one commit a workflow, on the newest version; another on that version is to be retried."""

    async def work(connection: Connection) -> list[workflows.CommitOutcome | None]:
        await workflows.commit(connection, [commit("a", 0)])
        return await workflows.commit(connection, [commit("a", 0), commit("a", 1), commit("a", 1)])

    stale, first, second = await database.write_alone(work)
    assert isinstance(stale, StateConflict)
    assert isinstance(first, Committed)
    assert second is None


async def test_a_statement_that_fails_writes_nothing(database: Database) -> None:
    """A commit that PostgreSQL refuses rolls back the others of its batch."""
    with pytest.raises(asyncpg.CheckViolationError):
        await database.write_alone(
            lambda connection: workflows.commit(connection, [commit("a", 0), commit("b", 0, "{}")])
        )
    assert await database.read(lambda connection: workflows.get_states(connection, ["a", "b"])) == {}


@pytest.mark.parametrize("ending", ["commit", "rollback"])
async def test_a_commit_waits_for_the_one_before_it(database_url: str, database: Database, ending: str) -> None:
    """A commit waits for a concurrent one to end, and is to be retried if that one committed."""
    await database.write_alone(lambda connection: workflows.commit(connection, [commit("a", 0)]))
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    other = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(20):
            transaction = other.transaction()
            await transaction.start()
            await other.execute(f"UPDATE {STATE} SET version = 2")
            task = asyncio.create_task(
                database.write_alone(lambda connection: workflows.commit(connection, [commit("a", 1)]))
            )
            while await other.fetchval(waiting) == 0:  # noqa: ASYNC110 - who waits is in the server
                await asyncio.sleep(0.01)
            await (transaction.commit() if ending == "commit" else transaction.rollback())
            [outcome] = await task
    finally:
        await other.close()
    assert outcome is None if ending == "commit" else isinstance(outcome, Committed)


async def test_a_workflow_is_a_row(database: Database) -> None:
    """The fields of Workflow, the model's columns and the table's columns are the same, in one order."""

    async def work(connection: Connection) -> list[str]:
        columns = await connection.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 ORDER BY attnum",
            STATE,
        )
        return [column["attname"] for column in columns]

    assert await database.read(work) == list(Workflow.__struct_fields__)
    assert [column.key for column in WorkflowState.__table__.columns] == list(Workflow.__struct_fields__)


# --- Plans ---------------------------------------------------------------------------------------------------------

ROWS = 20_000
FILL = f"""
    INSERT INTO {STATE} (workflow_key, version, state, updated_at, provenance)
    SELECT 'key ' || i, 3, '{{"n": 1}}', timestamptz '{START.isoformat()}' + i * interval '1 second', '{PROVENANCE}'
    FROM generate_series(1, {ROWS}) AS i;
    INSERT INTO {ACTIONS} (workflow_key, action_id, version, state_digest, committed_at, schema_version, provenance)
    SELECT 'key ' || i % 100, 'action ' || i, 1, sha256(''),
        timestamptz '{START.isoformat()}' + i * interval '1 second', 1, '{PROVENANCE}'
    FROM generate_series(1, {ROWS}) AS i;
"""


@pytest.fixture(scope="module")
async def filled() -> AsyncIterator[str]:
    """A database with 20,000 workflows and as many actions."""
    async with new_database() as url:
        connection = await asyncpg.connect(url)
        await connection.execute(FILL)
        await connection.execute(f"VACUUM ANALYZE {STATE}, {ACTIONS}")
        await connection.close()
        yield url


@asynccontextmanager
async def planning(url: str, *, scans: bool = False) -> AsyncIterator[Connection]:
    """A connection of one of both pools, whose changes are rolled back."""
    database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=60), scans=scans)
    try:
        async with undone(database) as connection:
            yield connection
    finally:
        await database.close()


def commits(number: int, expected: int) -> Parameters:
    """The parameters of a batch of commits."""
    return {
        "keys": [f"key {each}" for each in range(1, number + 1)],
        "expected_versions": [expected] * number,
        "states": ['{"n": 2}'] * number,
        "schema_versions": [1] * number,
        "provenances": [PROVENANCE] * number,
        "tried": [True] * number,
    }


POINTS: dict[str, tuple[Statement, Parameters, set[str]]] = {
    "read 1": (workflows.READ, {"keys": ["key 7"]}, {KEY}),
    "read 100": (workflows.READ, {"keys": [f"key {each}" for each in range(100)]}, {KEY}),
    "commit 1": (workflows.COMMIT, commits(1, 3), {KEY, ACTIONS_KEY}),
    "commit 100": (workflows.COMMIT, commits(100, 3), {KEY, ACTIONS_KEY}),
    "conflict 100": (workflows.COMMIT, commits(100, 2), {KEY, ACTIONS_KEY}),
}


@pytest.mark.parametrize("case", POINTS)
async def test_point_statements_go_by_the_key(filled: str, case: str) -> None:
    """Reads and commits find rows and actions by primary key, in custom and in generic plans."""
    statement, parameters, wanted = POINTS[case]
    async with planning(filled) as connection:
        plan = await explain(connection, statement, parameters)
        generic = await explain_generic(connection, statement)
    assert indexes(plan) == indexes(generic) == wanted
    assert "Seq Scan" not in kinds(plan) | kinds(generic)
    number = len(cast("list[str]", parameters["keys"]))
    assert buffers(plan) <= 40 * number + 20


async def test_rows_are_locked_in_the_order_given(filled: str) -> None:
    """A batch updates its rows in the given order, the order of keys, and looks each row up in turn."""
    async with planning(filled) as connection:
        plan = await explain_generic(connection, workflows.COMMIT)
    updated = next(node for node in nodes(plan) if node.get("Subplan Name") == "CTE updated")
    [join] = updated["Plans"]
    assert (join["Node Type"], [below["Node Type"] for below in join["Plans"]]) == (
        "Nested Loop",
        ["CTE Scan", "Index Scan"],
    )
    asked = next(node for node in nodes(plan) if node.get("Subplan Name") == "CTE asked")
    assert {"Sort", "Hash", "Merge Join"}.isdisjoint(kinds(asked))


async def test_old_actions_are_found_by_their_age(filled: str) -> None:
    """The oldest actions are read from the index by age, batch by batch, and deleted in place."""
    given: Parameters = {"retention": timedelta(seconds=1), "rows": 50}
    async with planning(filled) as connection:
        plan = await explain(connection, workflows.PRUNE, given)
        generic = await explain_generic(connection, workflows.PRUNE)
        assert indexes(plan) == indexes(generic) == {BY_AGE}
        assert {"Seq Scan", "Sort"}.isdisjoint(kinds(plan) | kinds(generic))
        assert most_rows(plan) <= 50
        await connection.execute(f"DROP INDEX {BY_AGE}")
        assert buffers(await explain(connection, workflows.PRUNE, given)) > 2 * buffers(plan)


async def test_no_index_is_without_a_query(filled: str) -> None:
    """The tables have exactly the indexes that the cases need, and each statement has a case."""
    async with planning(filled) as connection:
        found = await connection.fetch(
            "SELECT indexrelid::regclass::text AS name FROM pg_index WHERE indrelid = ANY($1::text[]::regclass[])",
            [STATE, ACTIONS],
        )
    assert {row["name"] for row in found} == {KEY, BY_CHANGE, BY_KEY, ACTIONS_KEY, BY_AGE}
    statements = {name for name, value in vars(workflows).items() if isinstance(value, Statement)}
    assert statements == {
        "READ",
        "COMMIT",
        "LOCKED",  # by the same condition as READ
        "PRUNE",
        "PRUNE_LOCKED",
    }  # the last reads none


# --- What the table refuses ----------------------------------------------------------------------------------------


async def insert(connection: Connection, **changes: object) -> None:
    """Insert a valid row except for `changes`."""
    row: dict[str, Any] = {
        "workflow_key": "a",
        "version": 1,
        "state": '{"n": 1}',
        "updated_at": START,
        "provenance": PROVENANCE,
        **changes,
    }
    places = ", ".join(f"${place}" for place in range(1, len(row) + 1))
    await connection.execute(f"INSERT INTO {STATE} ({', '.join(row)}) VALUES ({places})", *row.values())


@pytest.mark.parametrize(
    ("constraint", "changes"),
    [
        ("key_length", {"workflow_key": ""}),
        ("key_length", {"workflow_key": "\N{GRINNING FACE}" * 256}),
        ("version_from_1", {"version": 0}),
        ("state_object", {"state": "{}"}),
        ("state_object", {"state": "[1]"}),
        ("state_object", {"state": "null"}),
        ("schema_version_from_1", {"schema_version": 0}),
        ("provenance_complete", {"provenance": "[]"}),
        ("provenance_complete", {"provenance": '{"effect_id": "e"}'}),
        ("provenance_complete", {"provenance": '{"timestamp": "2026-01-01T00:00:00Z"}'}),
    ],
    ids=str,
)
async def test_what_a_check_refuses(database: Database, constraint: str, changes: dict[str, object]) -> None:
    """Each invalid row is refused by the constraint meant for it."""
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await database.write(lambda connection: insert(connection, **changes))
    assert refused.value.constraint_name == f"{STATE}_{constraint}"


async def test_what_the_table_takes(database: Database) -> None:
    """The longest key is accepted, and a row without a schema version gets the first one."""
    key = "\N{GRINNING FACE}" * 255
    await database.write(lambda connection: insert(connection, workflow_key=key))
    rows = await database.read(lambda connection: workflows.get_states(connection, [key]))
    assert rows[key].schema_version == 1
