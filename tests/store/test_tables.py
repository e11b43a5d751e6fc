"""The tables after the migrations, compared with the models and the domain."""

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Annotated, Any, cast, get_args
from uuid import UUID

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, String, Table

from app.domain import events, positions
from app.domain.positions import MAX_NUMBER
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.store.access_tables import METADATA
from app.store.schema import create_engine
from app.store.tables import RegistrationProjection, StateCount
from tests.databases import new_database
from tests.making import START, node

TABLE = "registration_projections"
SLICE = re.compile(r"changes_\d\d")  # of the change log: made beside its table

Row = dict[str, object]


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A plain connection to a migrated database for this file."""
    async with new_database() as url:
        connection = await asyncpg.connect(url)
        yield connection
        await connection.close()


@pytest.fixture
async def connection(
    shared: "asyncpg.Connection[asyncpg.Record]",
) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """The connection in a transaction that is rolled back."""
    transaction = shared.transaction()
    await transaction.start()
    yield shared
    await transaction.rollback()


async def insert(connection: "asyncpg.Connection[asyncpg.Record]", **changes: object) -> None:
    """Insert a valid row except for `changes`."""
    row: Row = {
        "entity_id": node(1),
        "domain": "registration",
        "current_state": "active",
        "node_type": "compute",
        "last_applied_event_id": UUID(int=1),
        "last_applied_sequence": 1,
        "registered_at": START,
        "updated_at": START,
        "version": 1,
        **changes,
    }
    places = ", ".join(f"${place}" for place in range(1, len(row) + 1))
    await connection.execute(f"INSERT INTO {TABLE} ({', '.join(row)}) VALUES ({places})", *row.values())


async def test_the_enum_is_the_states(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """The PostgreSQL enum has the values of RegistrationState, in their order."""
    labels = await connection.fetch(
        "SELECT enumlabel FROM pg_enum WHERE enumtypid = 'registration_state'::regtype ORDER BY enumsortorder"
    )
    assert [label["enumlabel"] for label in labels] == [state.value for state in RegistrationState]


async def test_a_registration_is_a_row(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """The fields of Registration, the model's columns and the table's columns are the same, in one order."""
    columns = await connection.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 ORDER BY attnum", TABLE
    )
    assert [column["attname"] for column in columns] == list(Registration.__struct_fields__)
    assert [column.key for column in RegistrationProjection.__table__.columns] == list(Registration.__struct_fields__)


async def test_autogenerate_finds_no_difference(database_url: str) -> None:
    """Alembic would generate an empty revision: types, defaults and indexes are as in the models."""

    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "target_metadata": METADATA,
                "include_name": lambda name, kind, _: kind != "table" or not SLICE.fullmatch(name or ""),
                # It reads no collation of an index; `test_the_models_lead_to_the_same_schema` compares that.
                "include_object": lambda _object, name, *_: name != "workflow_state_by_key",
            },
        )
        return list(compare_metadata(context, METADATA))

    engine = create_engine(database_url)
    try:
        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []
    finally:
        await engine.dispose()


async def test_what_has_a_default(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """An omitted column is null, except node_version (1.0.0) and capabilities (empty)."""
    await insert(connection)
    row = dict(cast("asyncpg.Record", await connection.fetchrow(f"SELECT * FROM {TABLE}")))
    given = {
        "entity_id": node(1),
        "domain": "registration",
        "current_state": "active",
        "node_type": "compute",
        "last_applied_event_id": UUID(int=1),
        "last_applied_sequence": 1,
        "registered_at": START,
        "updated_at": START,
        "version": 1,
    }
    defaults = {"node_version": events.DEFAULT_NODE_VERSION, "capabilities": "{}"}
    assert {name: value for name, value in row.items() if value is not None} == given | defaults


TOMBSTONE: Row = {
    "current_state": "rejected",
    "node_type": "",
    "node_version": "",
    "forgotten_at": START,
    "forgotten_permanently": False,
}
PARTITION: Row = {"last_applied_sequence": None, "last_applied_partition": "topic-0", "last_applied_offset": 7}


@pytest.mark.parametrize(
    ("constraint", "changes"),
    [
        ("version_from_1", {"version": 0}),
        ("version_from_1", {"version": -1}),
        ("capabilities_object", {"capabilities": "[]"}),
        ("capabilities_object", {"capabilities": "null"}),
        ("capabilities_object", {"capabilities": '"gpu"'}),
        ("capabilities_object", {"capabilities": "1"}),
        ("one_track", {"last_applied_sequence": None}),
        ("one_track", {"last_applied_partition": "topic-0"}),
        ("one_track", {"last_applied_offset": 7}),
        ("one_track", PARTITION | {"last_applied_sequence": 1}),
        ("one_track", PARTITION | {"last_applied_partition": None}),
        ("one_track", PARTITION | {"last_applied_offset": None}),
        ("numbers", {"last_applied_sequence": -1}),
        ("numbers", PARTITION | {"last_applied_offset": -2}),
        ("tombstone_empty", {"forgotten_at": START}),
        ("tombstone_empty", {"forgotten_permanently": False}),
        ("tombstone_empty", TOMBSTONE | {"forgotten_permanently": None}),
        ("tombstone_empty", TOMBSTONE | {"forgotten_at": None}),
        ("tombstone_empty", TOMBSTONE | {"current_state": "active"}),
        ("tombstone_empty", TOMBSTONE | {"node_type": "compute"}),
        ("tombstone_empty", TOMBSTONE | {"node_version": "1.0.0"}),
        ("tombstone_empty", TOMBSTONE | {"capabilities": '{"gpu": true}'}),
        ("tombstone_empty", TOMBSTONE | {"registered_at": START - timedelta(1)}),
        *(
            ("tombstone_empty", TOMBSTONE | {name: START})
            for name in (
                "ack_deadline",
                "liveness_deadline",
                "last_heartbeat_at",
                "ack_timeout_emitted_at",
                "liveness_timeout_emitted_at",
            )
        ),
    ],
    ids=str,
)
async def test_what_a_check_refuses(
    connection: "asyncpg.Connection[asyncpg.Record]", constraint: str, changes: Row
) -> None:
    """Each invalid row is refused by the constraint meant for it."""
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await insert(connection, **changes)
    assert refused.value.constraint_name == f"{TABLE}_{constraint}"


async def test_no_check_goes_untested(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """The table has no CHECK constraint that the cases above do not violate."""
    names = await connection.fetch(
        "SELECT conname FROM pg_constraint WHERE conrelid = $1::text::regclass AND contype = 'c'", TABLE
    )
    assert {name["conname"].removeprefix(f"{TABLE}_") for name in names} == {
        "version_from_1",
        "capabilities_object",
        "one_track",
        "numbers",
        "tombstone_empty",
    }


async def test_a_tombstone_that_says_nothing_is_a_row(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """The table accepts the domain's tombstone of a forgotten entity."""
    await insert(connection, **TOMBSTONE)


@pytest.mark.parametrize(
    "column",
    [
        "entity_id",
        "domain",
        "current_state",
        "node_type",
        "node_version",
        "capabilities",
        "last_applied_event_id",
        "registered_at",
        "updated_at",
        "version",
    ],
)
async def test_what_may_not_be_missing(connection: "asyncpg.Connection[asyncpg.Record]", column: str) -> None:
    """A null in a required column is refused."""
    with pytest.raises(asyncpg.NotNullViolationError) as refused:
        await insert(connection, **{column: None})
    assert refused.value.column_name == column


@pytest.mark.parametrize(
    "changes",
    [
        {"version": MAX_NUMBER},
        {"last_applied_sequence": 0},
        {"last_applied_sequence": MAX_NUMBER},
        PARTITION,
        PARTITION | {"last_applied_offset": 0},
        PARTITION | {"last_applied_offset": MAX_NUMBER},
        {"capabilities": "{}"},
        {"entity_id": UUID(int=0)},
        {"current_state": "rejected", "ack_deadline": START, "liveness_timeout_emitted_at": START},
    ],
    ids=str,
)
async def test_what_the_table_takes(connection: "asyncpg.Connection[asyncpg.Record]", changes: Row) -> None:
    """The table accepts extreme values and rows that no transition reaches: it does not enforce the state machine."""
    await insert(connection, **changes)
    assert await connection.fetchval(f"SELECT count(*) FROM {TABLE}") == 1


async def test_an_unknown_state(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """A state that is not in the enum is refused."""
    with pytest.raises(asyncpg.InvalidTextRepresentationError):
        await insert(connection, current_state="retired")


async def test_the_key(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """An entity has one row in each domain."""
    await insert(connection)
    await insert(connection, domain="other")
    with pytest.raises(asyncpg.UniqueViolationError) as refused:
        await insert(connection, node_type="storage")
    assert refused.value.constraint_name == f"{TABLE}_pkey"


async def test_an_event_id_is_not_unique(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Two entities may have the same last event id: the position detects duplicates."""
    await insert(connection, entity_id=node(1))
    await insert(connection, entity_id=node(2))
    assert await connection.fetchval(f"SELECT count(DISTINCT last_applied_event_id) FROM {TABLE}") == 1


# The column, the rows that its text may stand in, and the type of the domain that says how long it may be.
LENGTHS: list[tuple[str, Row, Any]] = [
    ("domain", {}, events.Domain),
    ("node_type", {}, events.NodeType),
    ("node_version", {}, events.NodeVersion),
    ("last_applied_partition", PARTITION, positions.Partition),
]


@pytest.mark.parametrize(("column", "changes", "kind"), LENGTHS, ids=lambda value: str(value)[:24])
async def test_the_longest_text(
    connection: "asyncpg.Connection[asyncpg.Record]", column: str, changes: Row, kind: Annotated[str, ...]
) -> None:
    """A column accepts exactly the lengths that the domain allows, counted in characters of up to four bytes."""
    length = next(meta.max_length for meta in get_args(kind)[1:])
    assert cast("String", cast("Table", RegistrationProjection.__table__).c[column].type).length == length
    await insert(connection, **{**changes, column: "\N{GRINNING FACE}" * length})
    assert await connection.fetchval(f"SELECT char_length({column}) FROM {TABLE}") == length
    with pytest.raises(asyncpg.StringDataRightTruncationError):
        await insert(connection, entity_id=node(2), **{**changes, column: "x" * (length + 1)})


# --- The counters --------------------------------------------------------------------------------------------------

COUNTER = f"INSERT INTO {StateCount.__tablename__} (domain, current_state, slot, count) VALUES ($1, $2, $3, $4)"


@pytest.mark.parametrize("count", [-MAX_NUMBER, 0, MAX_NUMBER])
async def test_a_slot_may_hold_any_number(connection: "asyncpg.Connection[asyncpg.Record]", count: int) -> None:
    """A slot, even of the longest domain name, holds any number, also a negative one: only the sum never is."""
    domain = "\N{GRINNING FACE}" * next(meta.max_length for meta in get_args(events.Domain)[1:])
    for state in RegistrationState:
        await connection.execute(COUNTER, domain, state, 0, count)
    assert await connection.fetchval(f"SELECT count(*) FROM {StateCount.__tablename__}") == len(RegistrationState)


async def test_a_slot_is_there_once(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """A domain and state has one row for each slot number."""
    await connection.execute(COUNTER, "registration", "active", 0, 1)
    await connection.execute(COUNTER, "registration", "active", 1, 1)
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute(COUNTER, "registration", "active", 1, 1)
