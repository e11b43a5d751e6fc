"""The plan of every statement over registrations, watermarks and dead letters: its index, and the amount it reads.

The tables hold 60,000 registrations, 20,000 dead letters and, except for scans, 5,000 partitions.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import md5
from typing import Any, cast
from uuid import UUID, uuid5

import asyncpg
import msgspec
import pytest
from msgspec.structs import replace

from app.domain.decider import Deadline
from app.domain.events import key_of
from app.domain.folding import Save
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.store import dead_letters, outbox, reconciliation, snapshots, upsert, watermarks, workflows
from app.store.database import POINTS as PLANNER
from app.store.database import Connection, Database
from app.store.listing import _CONDITIONS, list_statement
from app.store.overdue import BEFORE_ALL, PassedKey
from app.store.registrations import REGISTRATIONS
from app.store.statements import Statement
from app.store.upsert import Writes
from tests.databases import new_database
from tests.making import NODE, START

TABLE = "registration_projections"
COUNTS = "registration_state_counts"
DOMAINS = 5  # that have rows, and one to find that there is no other
COUNTS_KEY = f"{COUNTS}_pkey"
HELD_KEY = "held_entities_pkey"
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
        CASE WHEN state IN ('accepted', 'awaiting_ack', 'ack_timed_out') THEN start + i % 4000 * interval '1 minute'
        END, CASE WHEN state IN ('active', 'liveness_expired') THEN start + i % 4000 * interval '1 minute' END,
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

DOMAINS = 500  # beside the three, with counters alone
# Every counter in all its slots, as writers leave them.
FILL_COUNTS = f"""
    INSERT INTO {COUNTS} (domain, current_state, slot, count)
    SELECT domain, current_state, slot, 1
    FROM
        (SELECT unnest(ARRAY['big', 'other', 'tiny']) AS domain
         UNION ALL SELECT 'domain ' || i FROM generate_series(1, {DOMAINS}) AS i) AS domains,
        unnest(enum_range(NULL::registration_state)) AS current_state,
        generate_series(0, {upsert.SLOTS - 1}) AS slot
    ORDER BY md5(domain || current_state || slot)
"""

PARTITIONS = 5000
FILL_WATERMARKS = f"""
    INSERT INTO watermarks (topic, partition, "offset", message_at, updated_at, consumer)
    SELECT 'nodes ' || i % 50, i / 50, i, now(), now(), 'me' FROM generate_series(0, {PARTITIONS - 1}) AS i
    ORDER BY md5(i::text)
"""
LETTERS = 20_000
FILL_LETTERS = f"""
    INSERT INTO dead_letters (source, topic, partition, "offset", value, headers, error, entity_id, created_at)
    SELECT 'consumer', 'nodes ' || i % 50, i % 7, i, convert_to(repeat('x', 500), 'UTF8'), '[]', 'unreadable',
        md5('entity ' || i % 5000)::uuid, timestamptz '{START.isoformat()}' + i * interval '1 second'
    FROM generate_series(0, {LETTERS - 1}) AS i
"""

ALL = tuple(RegistrationState)
ACTIVE = (RegistrationState.ACTIVE,)
WAITING = (RegistrationState.ACCEPTED, RegistrationState.AWAITING_ACK)
MIDDLE = UUID("80000000-0000-0000-0000-000000000000")
SOON, LATE = START + timedelta(hours=30), START + timedelta(days=30)

Parameters = dict[str, object]
Plan = dict[str, Any]


def nodes(plan: Plan) -> Iterator[Plan]:
    """Every node of a plan."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def indexes(plan: Plan) -> set[str]:
    """The indexes that a plan reads."""
    return {node["Index Name"] for node in nodes(plan) if "Index Name" in node}


def tables(plan: Plan) -> set[str]:
    """The tables that a plan reads or writes."""
    return {node["Relation Name"] for node in nodes(plan) if "Relation Name" in node}


def kinds(plan: Plan) -> set[str]:
    """The kinds of a plan's steps, in order."""
    return {node["Node Type"] for node in nodes(plan)}


def buffers(plan: Plan) -> int:
    """The number of 8 kB pages read, from memory or disk."""
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def most_rows(plan: Plan) -> int:
    """The largest number of rows that a step returned."""
    return int(max(node["Actual Rows"] * node["Actual Loops"] for node in nodes(plan)))


async def explain(connection: Connection, statement: Statement, parameters: Parameters, *, run: bool = True) -> Plan:
    """The plan of a statement for these parameters; `run` also executes it and counts."""
    options = "ANALYZE, BUFFERS, TIMING off" if run else "COSTS"
    query = f"EXPLAIN ({options}, FORMAT JSON) {statement.text}"
    return cast("Plan", json.loads(await connection.fetchval(query, *statement.arguments(parameters)))[0]["Plan"])


async def explain_generic(connection: "Connection | asyncpg.Connection", statement: Statement) -> Plan:
    """The generic plan of a prepared statement."""
    nulls = ", ".join(["NULL"] * len(statement.arguments(_Nothing())))
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE generic AS {statement.text}")
    try:
        found = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE generic ({nulls})")
        return cast("Plan", json.loads(found)[0]["Plan"])
    finally:
        await connection.execute("DEALLOCATE generic")
        await connection.execute("RESET plan_cache_mode")


class _Nothing(dict[str, object]):
    """Parameters of any name, each without a value."""

    def __contains__(self, _name: object) -> bool:
        return True

    def __missing__(self, _name: str) -> object:
        return None


@dataclass(frozen=True)
class Databases:
    """The database for lists, counts and scans, and the one for point reads and writes, as in the service."""

    scans: Database
    points: Database


@pytest.fixture(scope="module")
async def databases() -> AsyncIterator[Databases]:
    """Both, each on its own filled database, made once for this file: leftovers of writes slow scans down."""
    timeout = timedelta(seconds=60)

    async def fill(connection: Connection) -> None:
        fills = (FILL, FILL_COUNTS, FILL_LETTERS)
        for statement in (*fills, f"VACUUM ANALYZE {TABLE}, {COUNTS}, dead_letters"):
            await connection.execute(statement)

    async def fill_watermarks(connection: Connection) -> None:
        await connection.execute(FILL_WATERMARKS)
        await connection.execute("VACUUM ANALYZE watermarks")

    async with new_database() as scans_url, new_database() as points_url:
        made = Databases(
            Database(scans_url, pool_size=1, statement_timeout=timeout, scans=True),
            Database(points_url, pool_size=1, statement_timeout=timeout),
        )
        await made.scans.write_alone(fill)
        await made.points.write_alone(fill)
        await made.points.write_alone(fill_watermarks)
        yield made
        await made.scans.close()
        await made.points.close()


@asynccontextmanager
async def undone(database: Database) -> AsyncIterator[Connection]:
    """A connection whose changes are rolled back."""
    connection = await database._take()
    try:
        transaction = connection.transaction()
        await transaction.start()
        try:
            yield connection
        finally:
            await transaction.rollback()
    finally:
        await database._give_back(connection)


@pytest.fixture
async def scans(databases: Databases) -> AsyncIterator[Connection]:
    """A connection for lists, counts and scans."""
    async with undone(databases.scans) as connection:
        yield connection


@pytest.fixture
async def points(databases: Databases) -> AsyncIterator[Connection]:
    """A connection for point reads and writes."""
    async with undone(databases.points) as connection:
        yield connection


@dataclass(frozen=True)
class Case:
    """A statement, its parameters, and the index that it must read."""

    name: str
    statement: Statement
    index: str
    given: Parameters = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


# --- Lists, counts and scans -----------------------------------------------------------------------------------


def listing(index: str, domain: str, states: tuple[RegistrationState, ...], limit: int, **given: object) -> Case:
    """A page of a list."""
    conditions = {name: value for name, value in given.items() if value is not None}
    name = f"list {domain} {len(states)} states {' '.join(conditions)} {limit}"
    if "capabilities" in conditions:
        conditions["capabilities"] = json.dumps(conditions["capabilities"])
    return Case(
        name,
        list_statement(frozenset(conditions), len(states)),
        index,
        {
            "domain": domain,
            "limit": limit,
            **conditions,
            **{f"state{number}": state for number, state in enumerate(states)},
        },
    )


OVERDUE = {
    "ack": (REGISTRATIONS.overdue[Deadline.ACK], ACK_DUE),
    "liveness": (REGISTRATIONS.overdue[Deadline.LIVENESS], LIVENESS_DUE),
}


def overdue(kind: str, domain: str, as_of: datetime, limit: int, after_deadline: datetime | None = None) -> Case:
    """A page of an overdue scan."""
    scan, index = OVERDUE[kind]
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
async def test_a_page_costs_what_a_page_costs(scans: Connection, case: Case) -> None:
    """A page by domain, state or deadline is read from one index in order, and no further than its end."""
    plan = await explain(scans, case.statement, case.given)
    held = {HELD_KEY} if "overdue" in case.name else set()  # is asked for each row
    assert indexes(plan) - held == {case.index}
    assert kinds(plan) <= {"Limit", "Merge Append", "Index Scan"} | (
        {"Nested Loop", "Index Only Scan"} if held else set()
    )
    limit = cast("int", case.given["limit"])
    assert most_rows(plan) <= limit + len(ALL)
    assert buffers(plan) <= 3 * (10 if case.given["domain"] == "tiny" else limit) + 50


@pytest.mark.parametrize("kind", ["ack", "liveness"])
@pytest.mark.parametrize("domain", ["big", "other", "tiny"])
@pytest.mark.parametrize("as_of", [START, SOON, LATE], ids=["all to come", "some", "all passed"])
async def test_the_next_deadline_is_one_look(scans: Connection, kind: str, domain: str, as_of: datetime) -> None:
    """The next deadline is the first index entry after the clock."""
    scan, index = OVERDUE[kind]
    plan = await explain(scans, scan.next, {"domain": domain, "as_of": as_of})
    assert indexes(plan) - {HELD_KEY} == {index}
    assert most_rows(plan) <= (10 if domain == "tiny" else 1)  # PostgreSQL 15 reads all ten rows of a tiny domain
    assert buffers(plan) <= 20


SWEPT = [
    ("before all", BEFORE_ALL),
    ("in the middle", ("big", START + timedelta(hours=30), MIDDLE)),
    ("in the next domain", ("big", LATE, MIDDLE)),
    ("at the end", ("tiny", LATE, MIDDLE)),
]


@pytest.mark.parametrize("after", [after for _, after in SWEPT], ids=[name for name, _ in SWEPT])
@pytest.mark.parametrize("kind", ["ack", "liveness"])
async def test_the_sweep_reads_a_page(scans: Connection, kind: str, after: PassedKey) -> None:
    """Passed deadlines of all domains are read from their index, starting where the last page ended."""
    scan, index = OVERDUE[kind]
    place = dict(zip(("after_domain", "after_deadline", "after_id"), after, strict=True))
    plan = await explain(scans, scan.passed, {"most": 250, "follow": False, **place})
    assert indexes(plan) - {"dead_letters_by_entity"} == {index}
    assert most_rows(plan) <= 250
    assert buffers(plan) <= 3 * 250 + 50


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
async def test_a_search_finds_the_few_rows_first(scans: Connection, case: Case) -> None:
    """A rare capability or an event id is found by its index; only the rows found are read and sorted."""
    plan = await explain(scans, case.statement, case.given)
    assert indexes(plan) == {case.index}
    assert "Seq Scan" not in kinds(plan)
    assert most_rows(plan) <= 150
    assert buffers(plan) <= 200


@pytest.mark.parametrize("after", [None, MIDDLE], ids=["first", "middle"])
@pytest.mark.parametrize("states", [ALL, WAITING, ACTIVE], ids=len)
@pytest.mark.parametrize("domain", ["big", "tiny"])
async def test_a_common_capability_is_not_read_to_its_end(
    scans: Connection, domain: str, states: tuple[RegistrationState, ...], after: UUID | None
) -> None:
    """A page of a capability that half of all nodes have is filled in index order; the other 30,000 are not read."""
    case = listing("", domain, states, 100, capabilities={"gpu": True}, after=after)
    plan = await explain(scans, case.statement, case.given)
    assert indexes(plan) <= {KEY, BY_STATE}
    assert "Seq Scan" not in kinds(plan)
    share = len(ALL) if states == WAITING else 3
    assert buffers(plan) <= 3 * share * 100 + 50


@pytest.mark.parametrize(
    "given",
    [
        {"node_type": "storage"},
        {"updated_before": START + timedelta(seconds=500)},
        {"updated_since": START + timedelta(seconds=500)},
    ],
    ids=str,
)
async def test_what_narrows_a_list_stops_with_the_page(scans: Connection, given: Parameters) -> None:
    """A condition without an index skips rows on the way, and the scan stops when the page is full."""
    case = listing(BY_STATE, "big", ALL, 100, **given)
    plan = await explain(scans, case.statement, case.given)
    assert indexes(plan) == {BY_STATE}
    assert kinds(plan) <= {"Limit", "Merge Append", "Index Scan"}
    assert buffers(plan) <= 10 * 100


@pytest.mark.parametrize("states", [ALL, ACTIVE], ids=len)
@pytest.mark.parametrize("digits", ["8", "80", "8000"])
async def test_ids_with_a_beginning_lie_together(
    scans: Connection, digits: str, states: tuple[RegistrationState, ...]
) -> None:
    """The ids that begin with some digits are a piece of the index, and nothing else is read."""
    first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    case = listing(BY_STATE, "big", states, 100, first=first, last=last)
    plan = await explain(scans, case.statement, case.given)
    assert indexes(plan) == {BY_STATE}
    assert kinds(plan) <= {"Limit", "Merge Append", "Index Scan", "Sort", "Append"}
    assert buffers(plan) <= 3 * 100 + 50
    assert most_rows(plan) <= 100 + len(ALL)


@pytest.mark.parametrize("most", [101, 1001])
@pytest.mark.parametrize("as_of", [START, SOON, LATE], ids=["all to come", "some", "all passed"])
@pytest.mark.parametrize("kind", ["ack", "liveness"])
async def test_a_count_of_what_is_overdue_is_bounded(
    scans: Connection, kind: str, as_of: datetime, most: int
) -> None:
    """Overdue rows are counted in their index up to a limit, beside one look for each of the two deadlines."""
    scan, index = OVERDUE[kind]
    plan = await explain(scans, scan.counted, {"domain": "big", "as_of": as_of, "most": most})
    assert indexes(plan) - {HELD_KEY} == {index}
    assert "Seq Scan" not in kinds(plan)
    assert most_rows(plan) <= most
    assert buffers(plan) <= 2 * most + 50  # each row asks whether its entity is held


@pytest.mark.parametrize("after", ["", "domain 4", "tiny"])
async def test_domains_are_stepped_over(scans: Connection, after: str) -> None:
    """A page of domains reads the counters of its domains by their key, and of no others."""
    plan = await explain(scans, REGISTRATIONS.counts.by_domain, {"after": after, "limit": 101})
    assert tables(plan) == {COUNTS}
    assert indexes(plan) == {COUNTS_KEY}
    assert "Seq Scan" not in kinds(plan)
    assert most_rows(plan) <= 101 * len(ALL) * upsert.SLOTS
    assert buffers(plan) <= 101 * (len(ALL) * upsert.SLOTS + 10)


async def test_some_domains_are_read_by_their_names(scans: Connection) -> None:
    """The counters of the domains that a caller may read are read by their key."""
    plan = await explain(scans, REGISTRATIONS.counts.among, {"after": "", "among": ["big", "nobody", "domain 7"]})
    assert tables(plan) == {COUNTS}
    assert indexes(plan) == {COUNTS_KEY}
    assert buffers(plan) <= 3 * (len(ALL) * upsert.SLOTS + 10)


@pytest.mark.parametrize("domain", ["big", "tiny", "nobody"])
async def test_counts_read_the_counters_alone(scans: Connection, domain: str) -> None:
    """State counts read their domain's slots by the counters' primary key, and no registration."""
    plan = await explain(scans, REGISTRATIONS.counts.count, {"domain": domain})
    assert tables(plan) == {COUNTS}
    assert indexes(plan) == {COUNTS_KEY}
    assert "Seq Scan" not in kinds(plan)
    assert most_rows(plan) <= len(ALL) * upsert.SLOTS
    assert buffers(plan) <= len(ALL) * upsert.SLOTS + 10


async def test_the_metrics_count_the_counters_alone(points: Connection) -> None:
    """The numbers of all domains come from the counters, and not from one registration."""
    plan = await explain(points, REGISTRATIONS.counts.everywhere, {"limit": 800})
    assert tables(plan) == {COUNTS}
    assert most_rows(plan) <= 800 * upsert.SLOTS + 1


@pytest.mark.parametrize("kind", ["ack", "liveness"])
async def test_the_oldest_deadline_is_one_look_for_each_domain(points: Connection, kind: str) -> None:
    """The metrics find the oldest passed deadline of each domain at the beginning of its index."""
    scan, index = OVERDUE[kind]
    plan = await explain(points, scan.oldest, {})
    assert indexes(plan) - {HELD_KEY} == {index}
    assert most_rows(plan) <= DOMAINS
    assert buffers(plan) <= 5 * DOMAINS


@pytest.mark.parametrize("after", ["", "big", "other", "tiny"])
async def test_the_next_domain_is_one_look(scans: Connection, after: str) -> None:
    """It is the first entry after the domain in the counters' primary key, however many counters a domain has."""
    plan = await explain(scans, reconciliation.NEXT_DOMAIN, {"after": after})
    assert (tables(plan), indexes(plan)) == ({COUNTS}, {COUNTS_KEY})
    assert most_rows(plan) <= 1
    assert buffers(plan) <= 5


# --- Point reads and writes ------------------------------------------------------------------------------------


async def known(connection: Connection, number: int, domain: str = "big") -> list[Registration]:
    """This many registrations of a domain, in the order of their keys."""
    found = await connection.fetch(
        f"SELECT entity_id FROM {TABLE} WHERE domain = $1 ORDER BY entity_id LIMIT $2", domain, number
    )
    rows = await REGISTRATIONS.get_entity_states(connection, [(row["entity_id"], domain) for row in found])
    return [rows[key] for key in sorted(rows)]


EVERY_WRITE = [
    Writes(known, new, counts, sends)
    for known in (None, *range(REGISTRATIONS.upsert.whole + 1))
    for new in (False, True)
    for counts in (False, True)
    for sends in (False, True)
    if known is not None or new
]
POINTS: dict[str, Statement] = {
    "read": REGISTRATIONS.read,
    "lock": REGISTRATIONS.lock,
    "lock free": REGISTRATIONS.lock_free,
    "rebase": REGISTRATIONS.move,
    **{f"save {writes}": REGISTRATIONS.upsert.statement(writes) for writes in EVERY_WRITE},
}
FINDING = {name: statement for name, statement in POINTS.items() if "known=None" not in name}  # rows that are there
BATCHES = {name: statement for name, statement in POINTS.items() if name != "rebase"}


def named(statements: dict[str, Statement]) -> pytest.MarkDecorator:
    """Run a test for each of these statements, by name."""
    return pytest.mark.parametrize("statement", statements.values(), ids=statements)


def point_parameters(rows: list[Registration], writes: Writes = EVERY_WRITE[0]) -> Parameters:
    """Parameters of the statements above for these rows: known ones one version on, and new ones."""
    first = rows[0]
    columns = {name: [getattr(row, name) for row in rows] for name in Registration.__struct_fields__}
    columns["capabilities"] = [msgspec.json.encode(row.capabilities).decode() for row in rows]
    columns["version"] = [row.version + 1 for row in rows]
    return {
        "asked_entity_id": columns["entity_id"],
        "asked_domain": columns["domain"],
        **{f"new_{name}": values for name, values in columns.items()},
        **{f"entries_{column.key}": [] for column in outbox._given},
        "new_entity_id": [uuid5(row.entity_id, "new") for row in rows],
        **{f"known_{name}": values for name, values in columns.items()},
        "known_read_version": [row.version for row in rows],
        "rows_to_write": len(rows) * ((writes.known is not None) + writes.new),
        "gains_domain": ["big"] * len(WAITING),
        "gains_current_state": list(WAITING),
        "gains_slot": [3] * len(WAITING),
        "gains_count": [1, -1],
        "entity_id": first.entity_id,
        "domain": first.domain,
        "of_entity": first.entity_id,
        "of_domain": first.domain,
        "sequence": 1,
        "partition": None,
        "offset": None,
    }


@pytest.mark.parametrize("number", [1, 100, 1000])
@named(FINDING)
async def test_point_statements_go_by_the_key(points: Connection, statement: Statement, number: int) -> None:
    """With custom plans, reads, locks and writes find each row by the primary key."""
    plan = await explain(points, statement, point_parameters(await known(points, number)), run=False)
    assert indexes(plan) - {HELD_KEY} == {KEY}  # a write looks for held entities
    assert "Seq Scan" not in kinds(plan)


@named(FINDING)
async def test_prepared_point_statements_go_by_the_key(points: Connection, statement: Statement) -> None:
    """With the generic plan, reads, locks and writes find each row by the primary key, too."""
    plan = await explain_generic(points, statement)
    assert indexes(plan) - {HELD_KEY} == {KEY}  # a write looks for held entities
    assert "Seq Scan" not in kinds(plan)


SOME_WATERMARKS = """
    INSERT INTO watermarks (topic, partition, "offset", updated_at, consumer)
    SELECT 'nodes', i, 1, now(), 'one' FROM generate_series(1, $1::integer) AS i
"""
SOME_WORKFLOWS = """
    WITH rows AS (
        INSERT INTO workflow_state (workflow_key, version, state, updated_at, schema_version, provenance)
        SELECT 'key ' || i, 1, '{"a": 1}', now(), 1, '{"effect_id": "a", "timestamp": "b"}'
        FROM generate_series(1, $1::integer) AS i
        RETURNING *
    )
    INSERT INTO workflow_actions
        (workflow_key, action_id, version, state_digest, committed_at, schema_version, provenance)
    SELECT workflow_key, 'action', 1, '', now(), 1, provenance FROM rows
"""
JOINING = FINDING | {
    "watermarks read": watermarks.READ,
    "watermarks advance": watermarks.ADVANCE,
    "workflows commit": workflows.COMMIT,
}


@pytest.mark.parametrize("rows", [0, 1, 20])
async def test_a_plan_for_a_small_table_looks_for_each_key(database_url: str, rows: int) -> None:
    """Plans for empty or small tables use keys, too, and never compare each row with all others."""
    compared: dict[str, set[str]] = {}
    connection = await asyncpg.connect(database_url, server_settings=PLANNER)
    try:
        await connection.execute(f"{FILL} LIMIT {rows}")
        await connection.execute(SOME_WATERMARKS, rows)
        await connection.execute(SOME_WORKFLOWS, rows)
        await connection.execute("VACUUM (ANALYZE)")
        for name, statement in JOINING.items():
            plan = await explain_generic(connection, statement)
            filters = {str(node["Join Filter"]) for node in nodes(plan) if "Join Filter" in node}
            if filters or "Seq Scan" in kinds(plan):
                compared[name] = filters
    finally:
        await connection.close()
    assert compared == {}


@pytest.mark.parametrize("size", [1, 20, 1000])
async def test_a_plan_from_when_the_table_was_empty_does_no_harm_while_it_grows(
    database_url: str, database: Database, size: int
) -> None:
    """Batches of new and known rows use only primary keys, from the first row on and without statistics."""
    fields: Parameters = {
        **dict.fromkeys(Registration.__struct_fields__),
        "domain": "big",
        "current_state": RegistrationState.ACTIVE,
        "node_type": "compute",
        "node_version": "1.0.0",
        "capabilities": {},
        "last_applied_event_id": NODE,
        "last_applied_sequence": 1,
        "registered_at": START,
        "updated_at": START,
        "version": 1,
    }
    template = msgspec.convert({**fields, "entity_id": NODE}, Registration)

    async def work(connection: Connection) -> None:
        await connection.execute(f"ALTER TABLE {TABLE} SET (autovacuum_enabled = off)")
        for batch in range(10):
            rows = [replace(template, entity_id=uuid5(NODE, f"{batch} {each}")) for each in range(size)]
            keys = [(row.entity_id, row.domain) for row in rows]
            await REGISTRATIONS.upsert.save(connection, [Save(row, None) for row in rows])
            for changes in (
                {"updated_at": LATE},
                {"current_state": RegistrationState.REJECTED},
                {"node_type": "storage"},
                {"node_type": "compute", "current_state": RegistrationState.ACTIVE},
            ):
                read = await REGISTRATIONS.get_entity_states(connection, keys, lock=True)
                assert read == await REGISTRATIONS.get_entity_states(connection, keys)
                after = [replace(row, version=row.version + 1, **changes) for row in read.values()]
                await REGISTRATIONS.upsert.save(
                    connection, [Save(row, read[key_of(row.entity_id, row.domain)]) for row in after]
                )
        await connection.execute("SELECT pg_stat_force_next_flush()")

    await database.write_alone(work)
    connection = await asyncpg.connect(database_url)
    try:
        used = await connection.fetch("SELECT indexrelname FROM pg_stat_user_indexes WHERE idx_scan > 0")
        scanned = await connection.fetchval(
            "SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname IN ($1, $2)", TABLE, COUNTS
        )
    finally:
        await connection.close()
    assert {row["indexrelname"] for row in used} - {HELD_KEY} == {KEY, COUNTS_KEY}
    assert scanned == 0


async def test_the_largest_lookup_reads_what_it_asks_for(points: Connection) -> None:
    """A lookup of a thousand entities descends the primary key a thousand times."""
    plan = await explain(points, REGISTRATIONS.read, point_parameters(await known(points, 1000)))
    assert plan["Actual Rows"] == 1000
    assert buffers(plan) <= 4 * 1000


@pytest.mark.parametrize("writes", EVERY_WRITE, ids=str)
async def test_a_write_reads_no_more_than_its_rows(points: Connection, writes: Writes) -> None:
    """A write of a thousand known rows finds each once; new rows and counters use only their primary keys."""
    given = point_parameters(await known(points, 1000, "other"), writes)
    plan = await explain(points, REGISTRATIONS.upsert.statement(writes), given)
    parts = {node["Subplan Name"]: node for node in nodes(plan) if "Subplan Name" in node}
    if writes.known is not None:
        updated = parts["CTE updated"]
        assert (updated["Operation"], updated["Actual Rows"], updated["Relation Name"]) == ("Update", 1000, TABLE)
    if writes.new:
        inserted = parts["CTE inserted"]
        assert inserted["Conflict Arbiter Indexes"] == [KEY]
        assert kinds({"Node Type": "", "Plans": inserted["Plans"]}) <= {"", "Function Scan"}
        assert inserted["Tuples Inserted"] == 1000
    arbiters = [node["Conflict Arbiter Indexes"] for node in nodes(plan) if "Conflict Arbiter Indexes" in node]
    assert ([COUNTS_KEY] in arbiters) == writes.counts == (COUNTS in tables(plan))


async def test_locks_are_taken_in_the_order_of_keys(points: Connection) -> None:
    """Rows are sorted before they are locked, not after."""
    plan = await explain(points, REGISTRATIONS.lock, point_parameters(await known(points, 100)), run=False)
    assert plan["Node Type"] == "LockRows"
    below = plan["Plans"][0]
    assert below["Node Type"] == "Sort"
    assert below["Sort Key"] == ["asked.entity_id", "asked.domain"]


# --- Watermarks and dead letters -------------------------------------------------------------------------------

WATERMARKS_KEY, LETTERS_KEY = "watermarks_pkey", "dead_letters_pkey"
ASKED = 100  # partitions at a time
TOPICS, NUMBERS = [f"nodes {each % 50}" for each in range(ASKED)], [each // 50 for each in range(ASKED)]
MOVES: Parameters = {
    "topics": TOPICS,
    "partitions": NUMBERS,
    "expected": list(range(ASKED)),
    "offsets": list(range(1, ASKED + 1)),
    "messages_at": [START] * ASKED,
    "caught_up_for": [1.0] * ASKED,
    "consumer": "me",
}
NEW: Parameters = {
    "sources": ["consumer"] * ASKED,
    "topics": TOPICS,
    "partitions": NUMBERS,
    "offsets": list(range(LETTERS, LETTERS + ASKED)),
    "keys": [None] * ASKED,
    "values": [b"x"] * ASKED,
    "headers": [b"[]"] * ASKED,
    "errors": ["unreadable"] * ASKED,
    "entity_ids": [None, *(uuid5(NODE, str(each)) for each in range(ASKED - 1))],
}
# And the most rows that one of its steps may give, and the most pages that it may touch. Of a watermark there
# may be one more version, which `advance` left when it was tried.
OF_PARTITIONS = [
    (Case("read", watermarks.READ, WATERMARKS_KEY, {"topics": TOPICS, "partitions": NUMBERS}), ASKED, 6 * ASKED),
    (Case("advance", watermarks.ADVANCE, WATERMARKS_KEY, MOVES), ASKED, 20 * ASKED),
    (Case("drop", watermarks.DROP, WATERMARKS_KEY, {"topic": "nodes 1", "partition": 0, "unused": 0.0}), 1, 20),
    (Case("is there", watermarks.IS_THERE, WATERMARKS_KEY, {"topic": "nodes 1", "partition": 0}), 1, 5),
    (Case("restart", watermarks.RESTART, WATERMARKS_KEY, {"topic": "nodes 2"}), 200, 600),
    (Case("letter", dead_letters.READ, LETTERS_KEY, {"id": LETTERS // 2}), 1, 5),
    (Case("remove", dead_letters.REMOVE, LETTERS_KEY, {"id": LETTERS // 2}), 1, 20),
    (Case("count", dead_letters.COUNT, LETTERS_KEY, {"counted": 1000}), 1000, 200),
]


@pytest.mark.parametrize(("case", "rows", "pages"), OF_PARTITIONS, ids=str)
async def test_a_consumers_statements_go_by_the_key(points: Connection, case: Case, rows: int, pages: int) -> None:
    """Watermarks and dead letters are found by primary key, in custom and in generic plans."""
    plan = await explain(points, case.statement, case.given)
    generic = await explain_generic(points, case.statement)
    for each in (plan, generic):
        assert indexes(each) - {"held_entities_by_letter"} == {case.index}
        assert "Seq Scan" not in kinds(each)
    assert most_rows(plan) <= rows
    assert buffers(plan) <= pages


async def test_new_dead_letters_ask_for_their_places_alone(points: Connection) -> None:
    """A new dead letter looks up its position once in the index of positions."""
    plan = await explain(points, dead_letters.ADD, NEW)
    assert plan["Conflict Arbiter Indexes"] == ["dead_letters_place"]
    assert plan["Tuples Inserted"] == ASKED
    assert kinds(plan) == {"ModifyTable", "Function Scan"}
    assert buffers(plan) <= 20 * ASKED


@pytest.mark.parametrize("after", [0, LETTERS // 2, LETTERS - 1])
@pytest.mark.parametrize("limit", [1, 100, 1000])
async def test_a_page_of_dead_letters_costs_what_a_page_costs(scans: Connection, after: int, limit: int) -> None:
    """A page is read from the primary key where the last one ended, and reads one row beyond its own end."""
    given: Parameters = {"after": after, "limit": limit, "most_bytes": dead_letters.PAGE_BYTES}
    plan = await explain(scans, dead_letters.list_statement(frozenset()), given)
    assert indexes(plan) == {LETTERS_KEY}
    assert "Seq Scan" not in kinds(plan)
    assert most_rows(plan) <= limit + 1
    assert buffers(plan) <= limit + 20


FILTERS: dict[str, tuple[object, str, int]] = {  # the value, the index, and the letters that match
    "topic": ("nodes 7", "dead_letters_by_topic", LETTERS // 50),
    "entity_id": (UUID(md5(b"entity 7").hexdigest()), "dead_letters_by_entity", LETTERS // 5000),
    "since": (START + timedelta(seconds=LETTERS - 100), "dead_letters_by_time", 100),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("descending", [False, True], ids=["oldest first", "newest first"])
async def test_a_filter_of_dead_letters_finds_them_by_its_index(
    scans: Connection, name: str, descending: bool
) -> None:
    """Letters of a topic, of an entity, or since a time are found without reading the others."""
    value, index, matching = FILTERS[name]
    statement = dead_letters.list_statement(frozenset({name}), descending=descending)
    given: Parameters = {"after": dead_letters.MAX_ID if descending else 0, "limit": 100, name: value}
    plan = await explain(scans, statement, given | {"most_bytes": dead_letters.PAGE_BYTES})
    assert indexes(plan) == {index}
    assert most_rows(plan) <= matching
    assert buffers(plan) <= matching + 30


@pytest.mark.parametrize(
    "statement",
    [watermarks.LIST, watermarks.AGES, watermarks.UNREAD, watermarks.REACH],
    ids=["list", "ages", "unread", "reach"],
)
async def test_all_watermarks_are_read_once(points: Connection, statement: Statement) -> None:
    """The list of watermarks has no pages: it reads each partition once, and nothing else."""
    plan = await explain(points, statement, {})
    assert tables(plan) == {"watermarks"}
    assert most_rows(plan) == PARTITIONS


# --- No more, and no less --------------------------------------------------------------------------------------


def test_every_statement_has_a_case() -> None:
    """Each statement of these modules has its plan tested here, except the clock and a full count."""
    named = {
        module: {name for name, value in vars(module).items() if isinstance(value, Statement)}
        for module in (watermarks, dead_letters, reconciliation)
    }
    assert named[reconciliation] == {"LEAD", "NEXT_DOMAIN"}  # the former reads no table
    assert named[watermarks] == {
        *("FIND", "READ", "ADVANCE", "LIST", "AGES", "REACH", "UNREAD", "RESTART", "DROP", "IS_THERE"),
    }
    assert named[dead_letters] == {"ADD", "COUNT", "READ", "REMOVE"}
    of_the_store = {
        part: {name for name, value in vars(part).items() if isinstance(value, Statement)}
        for part in (REGISTRATIONS, REGISTRATIONS.counts, *REGISTRATIONS.overdue.values())
    }
    assert of_the_store[REGISTRATIONS] == {"read", "lock", "lock_free", "move"}
    assert of_the_store[REGISTRATIONS.counts] == {"count", "everywhere", "by_domain", "among", "kept"}
    for scan, _ in OVERDUE.values():
        assert of_the_store[scan] == {"first", "after", "next", "oldest", "counted", "passed"}
    indexed = {"after", "capabilities", "event_id"}
    assert set(_CONDITIONS) == indexed | {"first", "last", "node_type", "updated_before", "updated_since"}


NEEDED = [
    listing(BY_STATE, "tiny", ALL, 100),
    listing(BY_STATE, "big", WAITING, 100),
    listing(BY_EVENT, "big", ALL, 100, event_id=NODE),
    listing(BY_CAPABILITY, "big", ALL, 100, capabilities={"quantum": True}),
    overdue("ack", "big", LATE, 100),
    overdue("ack", "other", SOON, 100, START + timedelta(hours=3)),
    overdue("liveness", "big", LATE, 100),
    overdue("liveness", "other", SOON, 100, START + timedelta(hours=3)),
]


@pytest.mark.parametrize("case", NEEDED, ids=str)
async def test_every_index_is_needed(scans: Connection, case: Case) -> None:
    """Without its index a query reads many times as much."""
    before = await explain(scans, case.statement, case.given)
    assert indexes(before) - {HELD_KEY} == {case.index}
    await scans.execute(f"DROP INDEX {case.index}")
    after = await explain(scans, case.statement, case.given)
    assert buffers(after) > 4 * buffers(before)


async def test_no_index_is_without_a_query(points: Connection) -> None:
    """The table has exactly the primary key and the indexes that a case above needs."""
    found = await points.fetch(
        "SELECT indexrelid::regclass::text AS name FROM pg_index WHERE indrelid = $1::text::regclass", TABLE
    )
    assert {row["name"] for row in found} == {KEY, *SECONDARY}
    assert {case.index for case in NEEDED} == set(SECONDARY)


# --- Snapshots -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [snapshots.FIRST, (MIDDLE, "big")], ids=["first", "middle"])
async def test_all_rows_are_read_page_by_page(points: Connection, after: tuple[UUID, str]) -> None:
    """A page of all rows goes by the primary key, from any place."""
    given: Parameters = {"entity_id": after[0], "domain": after[1], "limit": 100}
    plan = await explain(points, snapshots.SCAN, given)
    assert indexes(plan) == {KEY}
    assert kinds(plan) <= {"Limit", "Index Scan"}
    assert most_rows(plan) <= 100


async def test_the_progress_of_a_topic_is_found_by_its_key(points: Connection) -> None:
    """The lease and the progress of a topic are found by the primary key."""
    plan = await explain(points, snapshots.TAKE, {"topic": "nodes", "holder": "somebody", "lease": 1.0})
    assert indexes(plan) == {"snapshot_topics_pkey"}
    plan = await explain(points, snapshots.PROGRESS, {"topic": "nodes"})
    assert indexes(plan) == {"snapshot_topics_pkey"}
