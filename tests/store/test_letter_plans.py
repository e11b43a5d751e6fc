"""The plans of statements over held entities, messages that wait, and bulk calls: by their keys, never by a scan."""

from collections.abc import AsyncIterator
from datetime import timedelta
from hashlib import md5
from uuid import UUID

import pytest

from app.store import held, letter_runs
from app.store.database import Connection, Database
from app.store.statements import Statement
from tests.databases import new_database
from tests.making import START
from tests.store.test_plans import Parameters, Plan, buffers, explain, explain_generic, indexes, kinds, most_rows

LETTERS, ENTITIES, WAITING, RUNS, UNFINISHED = 20_000, 5_000, 4, 10_000, 50
FILLS = f"""
INSERT INTO dead_letters (source, topic, partition, "offset", value, headers, error, entity_id)
SELECT 'consumer', 'nodes', i % 7, i, convert_to(repeat('x', 500), 'UTF8'), '[]', 'no', md5('entity ' || i)::uuid
FROM generate_series(1, {LETTERS}) AS i;

INSERT INTO held_entities (entity_id, letter_id, messages)
SELECT entity_id, id, {WAITING} FROM dead_letters ORDER BY md5(id::text) LIMIT {ENTITIES};

INSERT INTO held_messages (entity_id, topic, partition, "offset", value, headers)
SELECT entity_id, 'nodes', 0, 100000 * i + letter_id, convert_to(repeat('x', 500), 'UTF8'), '[]'
FROM held_entities CROSS JOIN generate_series(1, {WAITING}) AS i ORDER BY i, md5(letter_id::text);

INSERT INTO dead_letter_runs (id, action, filters, principal, matched, last_id, started_at, finished_at)
SELECT md5('run ' || i)::uuid, 'retry', jsonb_build_object('topic', 'nodes ' || i), 'me', 1, 1,
    timestamptz '{START.isoformat()}' + i * interval '1 second',
    CASE WHEN i > {UNFINISHED} THEN now() - i * interval '1 second' END
FROM generate_series(1, {RUNS}) AS i;

ANALYZE dead_letters, held_entities, held_messages, dead_letter_runs;
"""

HELD_KEY, MESSAGES_KEY, LETTERS_KEY, RUNS_KEY = (
    f"{each}_pkey" for each in ("held_entities", "held_messages", "dead_letters", "dead_letter_runs")
)
QUEUE, PLACE = "held_messages_by_entity", "dead_letters_place"
UNFINISHED_ONLY, ENDS, OF_LETTER = "dead_letter_runs_unfinished", "dead_letter_runs_by_end", "held_entities_by_letter"


def uuid_of(name: str) -> UUID:
    """An id, as PostgreSQL makes it of this name."""
    return UUID(bytes=md5(name.encode(), usedforsecurity=False).digest())


@pytest.fixture(scope="module")
async def filled() -> AsyncIterator[Database]:
    """Letters, a quarter of which hold an entity, messages behind them, and bulk calls, most of them finished."""
    async with new_database() as url:
        database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=30))
        await database.write(lambda connection: connection.execute(FILLS))
        yield database
        await database.close()


@pytest.fixture(scope="module")
async def ids(filled: Database) -> list[UUID]:
    """The ids of 100 held entities."""
    query = "SELECT entity_id FROM held_entities ORDER BY entity_id LIMIT 100 OFFSET 1000"
    return [row[0] for row in await filled.read(lambda connection: connection.fetch(query))]


ASKED = 100
PLACES: Parameters = {"topics": ["nodes"] * ASKED, "partitions": [0] * ASKED, "offsets": list(range(7, 707, 7))}
MORE: Parameters = {"messages": [1] * ASKED, "passed": [0] * ASKED}
NEW: Parameters = {
    **PLACES,
    "offsets": list(range(10**9, 10**9 + ASKED)),
    **dict.fromkeys(("keys", "values", "headers"), [b"[]"] * ASKED),
}
ONE_RUN: Parameters = {"id": uuid_of("run 7"), "from_id": 0, "to_id": 1, "done": 1, "failed": 0, "lease": 30.0}

# The indexes, the most rows of one step, and the most pages that a statement touches.
OF_ENTITIES: dict[str, tuple[Statement, Parameters, set[str], int, int]] = {
    "find": (held.FIND, {}, {HELD_KEY, OF_LETTER}, ASKED + 1, 4 * ASKED),
    "lock": (held.LOCK, {}, {HELD_KEY}, ASKED, 6 * ASKED),
    "hold": (held.HOLD, PLACES, {PLACE}, ASKED, 30 * ASKED),
    "append": (held.APPEND, NEW, set(), ASKED, 30 * ASKED),
    "grow": (held.GROW, MORE, {HELD_KEY}, ASKED, 20 * ASKED),
}
OF_AN_ENTITY: dict[str, tuple[Statement, Parameters, set[str], int, int]] = {
    "read": (held.READ, {}, {HELD_KEY, LETTERS_KEY}, 1, 10),
    "messages": (held.MESSAGES, {}, {QUEUE}, WAITING, 20),
    "begin": (held.BEGIN, {}, {HELD_KEY, LETTERS_KEY}, 1, 15),
    "release": (held.RELEASE, {}, {HELD_KEY}, 1, 40),
    "promote": (held.PROMOTE, {"id": None, "error": "no", "left": 0}, {HELD_KEY, MESSAGES_KEY, QUEUE}, WAITING, 60),
    "drop": (held.DROP, {"ids": None}, {HELD_KEY, QUEUE}, WAITING, 60),
}
OF_RUNS: dict[str, tuple[Statement, Parameters, set[str], int, int]] = {
    "prune": (letter_runs.PRUNE, {"days": 7}, {ENDS}, 0, 10),
    "unfinished": (letter_runs.UNFINISHED, {}, {ENDS}, UNFINISHED, 60),
    "same": (letter_runs.SAME, {"action": "retry", "filters": '{"topic": "nodes 7"}'}, {UNFINISHED_ONLY}, 1, 5),
    "read": (letter_runs.READ, {"id": uuid_of("run 7")}, {RUNS_KEY}, 1, 5),
    "take": (letter_runs.TAKE, {"lease": 30.0}, {ENDS, RUNS_KEY}, UNFINISHED, 80),
    "advance": (letter_runs.ADVANCE, ONE_RUN, {RUNS_KEY}, 1, 30),
    "finish": (letter_runs.FINISH, ONE_RUN, {RUNS_KEY}, 1, 30),
    "remove": (letter_runs.REMOVE, {"ids": list(range(1, ASKED + 1))}, {LETTERS_KEY, OF_LETTER}, ASKED, 30 * ASKED),
}


async def check(
    database: Database, statement: Statement, given: Parameters, wanted: set[str], *, rows: int, pages: int
) -> None:
    """Explain a statement with these values and for all values, and roll it back."""

    async def explained(connection: Connection) -> list[Plan]:
        transaction = connection.transaction()
        await transaction.start()
        try:
            plans = [await explain(connection, statement, given)]
            if given:  # else there is one plan only
                plans.append(await explain_generic(connection, statement))
            return plans
        finally:
            await transaction.rollback()

    custom, *_ = plans = await database.write_alone(explained)
    for plan in plans:
        assert "Seq Scan" not in kinds(plan)
        assert indexes(plan) == wanted
    assert most_rows(custom) <= 3 * rows  # dead versions count, too: earlier tests have left some
    assert buffers(custom) <= pages


@pytest.mark.parametrize("name", OF_ENTITIES)
async def test_many_entities_are_found_by_their_keys(filled: Database, ids: list[UUID], name: str) -> None:
    """A batch looks for its own entities, whatever their number in the table."""
    statement, given, wanted, rows, pages = OF_ENTITIES[name]
    await check(filled, statement, {"ids": ids, **given}, wanted, rows=rows, pages=pages)


@pytest.mark.parametrize("name", OF_AN_ENTITY)
async def test_a_queue_is_found_by_its_entity(filled: Database, ids: list[UUID], name: str) -> None:
    """A queue is read, ended and shortened without a look at others."""
    statement, given, wanted, rows, pages = OF_AN_ENTITY[name]
    query = "SELECT max(id) FROM held_messages WHERE entity_id = $1"
    last = await filled.read(lambda connection: connection.fetchval(query, ids[0]))
    given = {key: last if key == "id" else [last] if key == "ids" else value for key, value in given.items()}
    await check(filled, statement, {"entity_id": ids[0], **given}, wanted, rows=rows, pages=pages)


@pytest.mark.parametrize("name", OF_RUNS)
async def test_bulk_calls_are_found_among_finished_ones(filled: Database, name: str) -> None:
    """Neither does a call read the finished ones, nor the letters of others."""
    statement, given, wanted, rows, pages = OF_RUNS[name]
    await check(filled, statement, given, wanted, rows=rows, pages=pages)


@pytest.mark.parametrize("limit", [1, 100, 1001])
async def test_a_page_of_held_entities_is_a_page(filled: Database, ids: list[UUID], limit: int) -> None:
    """It is read from the key where the last one ended, and each has one letter."""
    plan = await filled.read(explain, held.LIST, {"after": ids[0], "limit": limit})
    assert {HELD_KEY} <= indexes(plan) <= {HELD_KEY, LETTERS_KEY}
    assert most_rows(plan) <= limit
    assert buffers(plan) <= 5 * limit + 20


async def test_whether_any_entity_is_held_is_one_look(filled: Database) -> None:
    """Neither this nor the count goes through all of them."""
    plan = await filled.read(explain, held.ANY, {})
    assert (most_rows(plan) <= 1, buffers(plan) <= 5) == (True, True)
    assert most_rows(await filled.read(explain, held.COUNT, {"most": 10})) == 10


def test_every_statement_has_a_case() -> None:
    """Each statement of these modules has its plan tested here."""
    tested = {id(case[0]) for cases in (OF_ENTITIES, OF_AN_ENTITY, OF_RUNS) for case in cases.values()}
    tested |= {
        id(each) for each in (held.LIST, held.ANY, held.COUNT, letter_runs.BEGIN)
    }  # the last one inserts a row
    for module in (held, letter_runs):
        named = {name: value for name, value in vars(module).items() if isinstance(value, Statement)}
        assert {name for name, value in named.items() if id(value) not in tested} == set()
