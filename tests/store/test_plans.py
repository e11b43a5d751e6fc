"""The plan of every statement over the registrations, among 60,000 rows: which index it reads, and how much of it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid5

import pytest
from sqlalchemy import Executable, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ClauseElement

from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.store import registrations
from app.store.database import create_engine
from app.store.registrations import ACK_SCAN, LIVENESS_SCAN, Save, get_entity_states, list_statement
from tests.conftest import new_database
from tests.making import NODE, START

TABLE = "registration_projections"
KEY, BY_STATE, BY_EVENT = f"{TABLE}_pkey", f"{TABLE}_by_state", f"{TABLE}_by_event"
BY_CAPABILITY, ACK_DUE, LIVENESS_DUE = f"{TABLE}_by_capability", f"{TABLE}_ack_due", f"{TABLE}_liveness_due"
SECONDARY = (BY_STATE, BY_EVENT, BY_CAPABILITY, ACK_DUE, LIVENESS_DUE)

ROWS = 60_000
# Five in six rows are in the domain `big`, one in six in `other`, and ten in `tiny`, spread among them. Every second
# node has a GPU and a hundred are quantum computers. Deadlines lie on the minutes of some three days.
FILL = f"""
    INSERT INTO {TABLE} (
        entity_id, domain, current_state, node_type, capabilities, ack_deadline, liveness_deadline,
        ack_timeout_emitted_at, liveness_timeout_emitted_at, last_applied_event_id, last_applied_sequence,
        registered_at, updated_at, version
    )
    SELECT
        md5('entity ' || i)::uuid,
        CASE WHEN i % 6000 = 0 THEN 'tiny' WHEN i % 6 = 1 THEN 'other' ELSE 'big' END,
        state,
        CASE WHEN i % 4 = 0 THEN 'storage' ELSE 'compute' END,
        jsonb_build_object('gpu', i % 2 = 0, 'rack', i % 500) || CASE i % 600 WHEN 8 THEN '{{"quantum": true}}' ELSE '{{}}' END::jsonb,
        CASE WHEN state IN ('accepted', 'awaiting_ack', 'ack_timed_out') THEN start + i % 4000 * interval '1 minute' END,
        CASE WHEN state IN ('active', 'liveness_expired') THEN start + i % 4000 * interval '1 minute' END,
        CASE WHEN state = 'ack_timed_out' THEN start END,
        CASE WHEN state = 'liveness_expired' THEN start END,
        md5('event ' || i)::uuid, i, start, start + i % 1000 * interval '1 second', 1
    FROM (
        SELECT
            i,
            timestamptz '{START.isoformat()}' AS start,
            ('{{active,active,active,active,active,active,active,liveness_expired,liveness_expired,accepted,'
             'awaiting_ack,ack_timed_out,rejected,pending_registration,ack_received,active}}'
            ::registration_state[])[1 + (i / 3 + i / 6000) % 16] AS state
        FROM generate_series(1, {ROWS}) AS i
    ) AS numbers
"""  # noqa: E501

ALL = tuple(RegistrationState)
ACTIVE = (RegistrationState.ACTIVE,)
WAITING = (RegistrationState.ACCEPTED, RegistrationState.AWAITING_ACK)
MIDDLE = UUID("80000000-0000-0000-0000-000000000000")
SOON, LATE = START + timedelta(hours=30), START + timedelta(days=30)

Parameters = dict[str, object]
Plan = dict[str, Any]


class _Explain(Executable, ClauseElement):
    """EXPLAIN of a statement, with the statement's own parameters."""

    inherit_cache = False

    def __init__(self, statement: ClauseElement, options: str) -> None:
        self.statement = statement
        self.wanted = options


@compiles(_Explain)
def _compile(element: _Explain, compiler: SQLCompiler, **keywords: Any) -> str:
    explained = compiler.process(element.statement, **keywords)
    compiler.isinsert = compiler.isupdate = False  # EXPLAIN gives a plan, whatever it explains
    compiler._result_columns.clear()
    return f"EXPLAIN ({element.wanted}, FORMAT JSON) {explained}"


def nodes(plan: Plan) -> Iterator[Plan]:
    """Every node of a plan."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def indexes(plan: Plan) -> set[str]:
    """The indexes that a plan reads."""
    return {node["Index Name"] for node in nodes(plan) if "Index Name" in node}


def kinds(plan: Plan) -> set[str]:
    """What a plan does, step by step."""
    return {node["Node Type"] for node in nodes(plan)}


def buffers(plan: Plan) -> int:
    """How many pages of 8 kB were read, from memory or disk."""
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def most_rows(plan: Plan) -> int:
    """How many rows the step with the most of them gave."""
    return int(max(node["Actual Rows"] * node["Actual Loops"] for node in nodes(plan)))


async def explain(
    connection: AsyncConnection, statement: Executable, parameters: Parameters, *, run: bool = True
) -> Plan:
    """The plan of a statement for these parameters; `run` does it too, and counts."""
    options = "ANALYZE, BUFFERS, TIMING off" if run else "COSTS"
    found = await connection.scalar(_Explain(cast("ClauseElement", statement), options), parameters)
    return cast("Plan", found[0]["Plan"])


async def explain_generic(connection: AsyncConnection, statement: Executable) -> Plan:
    """The plan that a prepared statement has for whatever parameters."""
    compiled = cast("ClauseElement", statement).compile(dialect=connection.dialect)
    nulls = ", ".join(["NULL"] * len(cast("SQLCompiler", compiled).positiontup or ()))
    await connection.exec_driver_sql("SET plan_cache_mode = force_generic_plan")
    await connection.exec_driver_sql(f"PREPARE generic AS {compiled}")
    try:
        found = await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) EXECUTE generic ({nulls})")
        return cast("Plan", found.scalar_one()[0]["Plan"])
    finally:
        await connection.exec_driver_sql("DEALLOCATE generic")
        await connection.exec_driver_sql("RESET plan_cache_mode")


@dataclass(frozen=True)
class Engines:
    """The engine for lists, counts and scans, and the one for point reads and writes, as the service has them."""

    scans: AsyncEngine
    points: AsyncEngine


@pytest.fixture(scope="module")
async def engines() -> AsyncIterator[Engines]:
    """Both engines on a filled database, made once for this file."""
    async with new_database() as url:
        timeout = timedelta(seconds=60)
        made = Engines(
            create_engine(url, statement_timeout=timeout, scans=True), create_engine(url, statement_timeout=timeout)
        )
        async with made.points.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            await connection.execute(text(FILL))
            await connection.execute(text(f"VACUUM ANALYZE {TABLE}"))
        yield made
        await made.scans.dispose()
        await made.points.dispose()


@asynccontextmanager
async def undone(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection whose changes are rolled back."""
    async with engine.connect() as connection:
        yield connection
        await connection.rollback()


@pytest.fixture
async def scans(engines: Engines) -> AsyncIterator[AsyncConnection]:
    """A connection for lists, counts and scans."""
    async with undone(engines.scans) as connection:
        yield connection


@pytest.fixture
async def points(engines: Engines) -> AsyncIterator[AsyncConnection]:
    """A connection for point reads and writes."""
    async with undone(engines.points) as connection:
        yield connection


@dataclass(frozen=True)
class Case:
    """A statement, what it is given, and the index that it must read."""

    name: str
    statement: Executable
    index: str
    given: Parameters = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


# --- Lists, counts and scans -----------------------------------------------------------------------------------


def listing(index: str, domain: str, states: tuple[RegistrationState, ...], limit: int, **given: object) -> Case:
    """A page of a list."""
    conditions = {name: value for name, value in given.items() if value is not None}
    return Case(
        f"list {domain} {len(states)} states {' '.join(conditions)} {limit}",
        list_statement(frozenset(conditions), len(states)),
        index,
        {
            "domain": domain,
            "limit": limit,
            **conditions,
            **{f"state{number}": state for number, state in enumerate(states)},
        },
    )


def overdue(kind: str, domain: str, as_of: datetime, limit: int, after_deadline: datetime | None = None) -> Case:
    """A page of an overdue scan."""
    scan, index = {"ack": (ACK_SCAN, ACK_DUE), "liveness": (LIVENESS_SCAN, LIVENESS_DUE)}[kind]
    given: Parameters = {"domain": domain, "as_of": as_of, "limit": limit}
    name = f"overdue {kind} {domain} {as_of:%d.%m.} {limit}"
    if after_deadline is None:
        return Case(name, scan.first, index, given)
    begin = {"after_deadline": after_deadline, "after_id": MIDDLE}
    return Case(f"{name} after", scan.after, index, given | begin)


# Pages that must cost what a page costs, in a domain of any size.
FLAT = [
    *(
        listing(BY_STATE, domain, states, limit, after=after)
        for domain in ("big", "other", "tiny")
        for states in (ALL, WAITING, ACTIVE)
        for limit in (100, 1001)
        for after in (None, MIDDLE)
    ),
    *(
        overdue(kind, domain, as_of, limit, after)
        for kind in ("ack", "liveness")
        for domain in ("big", "other", "tiny")
        for as_of in (SOON, LATE)
        for limit in (100, 1001)
        for after in (None, START + timedelta(hours=3))
    ),
]


@pytest.mark.parametrize("case", FLAT, ids=str)
async def test_a_page_costs_what_a_page_costs(scans: AsyncConnection, case: Case) -> None:
    """A page by domain, state or deadline is read off one index in its order, and no further than to its end."""
    plan = await explain(scans, case.statement, case.given)
    assert indexes(plan) == {case.index}
    assert kinds(plan) <= {"Limit", "Merge Append", "Index Scan"}
    limit = cast("int", case.given["limit"])
    assert most_rows(plan) <= limit + len(ALL)
    assert buffers(plan) <= 3 * (10 if case.given["domain"] == "tiny" else limit) + 50


@pytest.mark.parametrize("kind", ["ack", "liveness"])
@pytest.mark.parametrize("domain", ["big", "other", "tiny"])
@pytest.mark.parametrize("as_of", [START, SOON, LATE], ids=["all to come", "some", "all passed"])
async def test_the_next_deadline_is_one_look(scans: AsyncConnection, kind: str, domain: str, as_of: datetime) -> None:
    """The earliest deadline to come is the first entry of the index after the clock."""
    scan, index = {"ack": (ACK_SCAN, ACK_DUE), "liveness": (LIVENESS_SCAN, LIVENESS_DUE)}[kind]
    plan = await explain(scans, scan.next, {"domain": domain, "as_of": as_of})
    assert indexes(plan) == {index}
    assert most_rows(plan) <= 1
    assert buffers(plan) <= 10


SEARCHES = [
    listing(BY_CAPABILITY, "big", ALL, 101, capabilities={"quantum": True}),
    listing(BY_CAPABILITY, "big", ACTIVE, 101, capabilities={"quantum": True}),
    listing(BY_CAPABILITY, "big", ALL, 101, capabilities={"quantum": True}, after=MIDDLE),
    listing(BY_CAPABILITY, "other", ALL, 101, capabilities={"quantum": True}),
    listing(BY_CAPABILITY, "big", ALL, 101, capabilities={"rack": 17}),
    listing(BY_CAPABILITY, "big", ALL, 101, capabilities={"rack": 17, "gpu": False}),
    listing(BY_CAPABILITY, "big", ALL, 101, capabilities={"of": "nobody"}),
    listing(BY_EVENT, "big", ALL, 101, event_id=NODE),
    listing(BY_EVENT, "tiny", ACTIVE, 101, event_id=NODE),
    listing(BY_EVENT, "big", ALL, 101, event_id=NODE, capabilities={"gpu": True}, after=MIDDLE),
]


@pytest.mark.parametrize("case", SEARCHES, ids=lambda case: f"{case} {case.given.get('capabilities')}")
async def test_a_search_finds_the_few_rows_first(scans: AsyncConnection, case: Case) -> None:
    """A rare capability and an event id are looked up in their index, and only what it names is read and sorted."""
    plan = await explain(scans, case.statement, case.given)
    assert indexes(plan) == {case.index}
    assert "Seq Scan" not in kinds(plan)
    assert most_rows(plan) <= 150
    assert buffers(plan) <= 200


@pytest.mark.parametrize("after", [None, MIDDLE], ids=["first", "middle"])
@pytest.mark.parametrize("states", [ALL, WAITING, ACTIVE], ids=len)
@pytest.mark.parametrize("domain", ["big", "tiny"])
async def test_a_common_capability_is_not_read_to_its_end(
    scans: AsyncConnection, domain: str, states: tuple[RegistrationState, ...], after: UUID | None
) -> None:
    """A page of what every second node has is filled from an index in order; the 30,000 others are not read."""
    case = listing("", domain, states, 100, capabilities={"gpu": True}, after=after)
    plan = await explain(scans, case.statement, case.given)
    assert indexes(plan) <= {KEY, BY_STATE}
    assert "Seq Scan" not in kinds(plan)
    share = len(ALL) if states == WAITING else 3
    assert buffers(plan) <= 3 * share * 100 + 50


@pytest.mark.parametrize(
    "given", [{"node_type": "storage"}, {"updated_before": START + timedelta(seconds=500)}], ids=str
)
async def test_what_narrows_a_list_stops_with_the_page(scans: AsyncConnection, given: Parameters) -> None:
    """A condition without an index of its own passes rows over on the way, and stops when the page is full."""
    case = listing(BY_STATE, "big", ALL, 100, **given)
    plan = await explain(scans, case.statement, case.given)
    assert indexes(plan) == {BY_STATE}
    assert kinds(plan) <= {"Limit", "Merge Append", "Index Scan"}
    assert buffers(plan) <= 10 * 100


COUNT = registrations._COUNT


@pytest.mark.parametrize(("domain", "bound"), [("big", 500), ("other", 150), ("tiny", 10), ("nobody", 10)])
async def test_counts_read_an_index_alone(scans: AsyncConnection, domain: str, bound: int) -> None:
    """State counts read the entries of their domain in the index by state, and no row."""
    plan = await explain(scans, COUNT, {"domain": domain})
    assert indexes(plan) == {BY_STATE}
    assert "Index Only Scan" in kinds(plan)
    assert "Seq Scan" not in kinds(plan)
    assert sum(node.get("Heap Fetches", 0) for node in nodes(plan)) == 0
    assert buffers(plan) <= bound


# --- Point reads and writes ------------------------------------------------------------------------------------


async def known(connection: AsyncConnection, number: int) -> list[Registration]:
    """So many registrations of the domain `big`."""
    found = await connection.scalars(
        text(f"SELECT entity_id FROM {TABLE} WHERE domain = 'big' ORDER BY entity_id LIMIT :n"), {"n": number}
    )
    return list((await get_entity_states(connection, found.all(), "big")).values())


POINTS = [
    registrations._READ,
    registrations._READ_STATE,
    registrations._READ_KEYS,
    registrations._LOCK_KEYS,
    registrations._UPDATE,
    registrations._REBASE,
]
POINT_NAMES = ["read", "read state", "read keys", "lock keys", "update", "rebase"]


def point_parameters(rows: list[Registration]) -> Parameters:
    """What any of the statements above may be given for these rows."""
    first = rows[0]
    return {
        **registrations._bound([Save(row, row.version) for row in rows]),
        "entity_id": first.entity_id,
        "domain": first.domain,
        "of_entity": first.entity_id,
        "of_domain": first.domain,
        "sequence": 1,
        "partition": None,
        "offset": None,
    }


@pytest.mark.parametrize("number", [1, 100])
@pytest.mark.parametrize("statement", POINTS, ids=POINT_NAMES)
async def test_point_statements_go_by_the_key(points: AsyncConnection, statement: Executable, number: int) -> None:
    """Reads, locks and updates of some rows find each of them in the primary key, and read no other row."""
    plan = await explain(points, statement, point_parameters(await known(points, number)), run=False)
    assert indexes(plan) == {KEY}
    assert "Seq Scan" not in kinds(plan)


async def test_the_largest_lookup_goes_by_the_key(points: AsyncConnection) -> None:
    """A lookup of a thousand entities finds each of them in the primary key."""
    plan = await explain(points, registrations._READ, point_parameters(await known(points, 1000)))
    assert indexes(plan) == {KEY}
    assert plan["Actual Rows"] == 1000
    assert buffers(plan) <= 4 * 1000


@pytest.mark.parametrize("statement", POINTS, ids=POINT_NAMES)
async def test_prepared_point_statements_go_by_the_key(points: AsyncConnection, statement: Executable) -> None:
    """The plan that is kept for a prepared statement, whatever it is given, goes by the primary key too."""
    plan = await explain_generic(points, statement)
    assert indexes(plan) == {KEY}
    assert "Seq Scan" not in kinds(plan)


async def test_an_insert_asks_the_key_alone(points: AsyncConnection) -> None:
    """Whether a new row is in the way of another is asked of the primary key."""
    rows = await known(points, 3)
    parameters = registrations._bound([Save(row, None) for row in rows])
    parameters["entity_ids"] = [uuid5(row.entity_id, "new") for row in rows]
    plan = await explain(points, registrations._INSERT, cast("Parameters", parameters), run=False)
    assert plan["Conflict Arbiter Indexes"] == [KEY]
    assert kinds(plan) == {"ModifyTable", "Function Scan"}


async def test_locks_are_taken_in_the_order_of_keys(points: AsyncConnection) -> None:
    """Rows are sorted before they are locked, not after."""
    plan = await explain(points, registrations._LOCK_KEYS, point_parameters(await known(points, 100)), run=False)
    assert plan["Node Type"] == "LockRows"
    below = plan["Plans"][0]
    assert below["Node Type"] == "Sort"
    assert below["Sort Key"] == [f"{TABLE}.entity_id", f"{TABLE}.domain"]


# --- No more, and no less --------------------------------------------------------------------------------------


def test_every_statement_has_a_case() -> None:
    """The statements of the module are those whose plans are read here; the database's clock needs none."""
    statements = {name for name, value in vars(registrations).items() if isinstance(value, Executable)}
    covered = {"_READ", "_READ_STATE", "_READ_KEYS", "_LOCK_KEYS", "_UPDATE", "_INSERT", "_REBASE", "_COUNT"}
    assert statements == covered | {"_NOW"}
    assert {name for name, value in vars(registrations).items() if isinstance(value, registrations._Scan)} == {
        "ACK_SCAN",
        "LIVENESS_SCAN",
    }
    indexed = {"after", "capabilities", "event_id"}
    assert set(registrations._CONDITIONS) == indexed | {"node_type", "updated_before"}


NEEDED = [
    listing(BY_STATE, "tiny", ALL, 100),
    listing(BY_STATE, "big", WAITING, 100),
    Case("count", COUNT, BY_STATE, {"domain": "tiny"}),
    listing(BY_EVENT, "big", ALL, 100, event_id=NODE),
    listing(BY_CAPABILITY, "big", ALL, 100, capabilities={"quantum": True}),
    overdue("ack", "big", LATE, 100),
    overdue("ack", "other", SOON, 100, START + timedelta(hours=3)),
    overdue("liveness", "big", LATE, 100),
    overdue("liveness", "other", SOON, 100, START + timedelta(hours=3)),
]


@pytest.mark.parametrize("case", NEEDED, ids=str)
async def test_every_index_is_needed(scans: AsyncConnection, case: Case) -> None:
    """Without its index a query reads many times as much."""
    before = await explain(scans, case.statement, case.given)
    assert indexes(before) == {case.index}
    await scans.execute(text(f"DROP INDEX {case.index}"))
    after = await explain(scans, case.statement, case.given)
    assert buffers(after) > 4 * buffers(before)


async def test_no_index_is_without_a_query(points: AsyncConnection) -> None:
    """The table's indexes are the primary key and those that a case above needs."""
    found = await points.scalars(
        text("SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = CAST(:t AS text)::regclass"),
        {"t": TABLE},
    )
    assert set(found) == {KEY, *SECONDARY}
    assert {case.index for case in NEEDED} == set(SECONDARY)
