"""One row written by an intent, on a real PostgreSQL."""

from collections.abc import Mapping
from typing import cast
from uuid import UUID

import msgspec
import pytest
from msgspec.structs import asdict, replace
from sqlalchemy import Table

from app.domain.decider import Deadline, Decision, decide, expire
from app.domain.events import Trigger
from app.domain.folding import Save
from app.domain.intents import Columns, DeregisterService, Intent, UpdateRegistration, UpsertRegistration
from app.domain.registration import Registration, Timing
from app.domain.states import RegistrationState
from app.errors import IntentError, NotFoundError, RefusedValuesError
from app.outbound.postgres import update_registration, upsert_registration
from app.store.database import Connection, Database
from app.store.registrations import REGISTRATIONS
from app.store.tables import RegistrationProjection
from tests.making import NODE, Json, event, row, when

ACTIVE, AWAITING_ACK = RegistrationState.ACTIVE, RegistrationState.AWAITING_ACK
REJECTED, LIVENESS_EXPIRED = RegistrationState.REJECTED, RegistrationState.LIVENESS_EXPIRED
KEY = (NODE, "registration")


async def put(database: Database, registration: Registration) -> None:
    """Store this row."""
    await database.write_alone(lambda connection: REGISTRATIONS.upsert.save(connection, [Save(registration, None)]))


async def row_of(database: Database) -> Registration | None:
    """The stored row."""
    return await database.read(lambda connection: REGISTRATIONS.get_entity_state(connection, *KEY))


async def counts_are_right(database: Database) -> bool:
    """Whether the state counts equal a full count."""
    return await database.read(REGISTRATIONS.counts.verify_counts) == []


def update(changes: Mapping[str, object], *, read_version: int = 21, domain: str = "registration") -> Intent:
    """An intent that updates the row below."""
    return UpdateRegistration(entity_id=NODE, domain=domain, changes=changes, read_version=read_version)


async def carry_out(database: Database, intent: object) -> bool:
    """Carry an update out in a transaction of its own."""
    return await database.write(lambda connection: update_registration(connection, intent))


def test_the_columns_are_the_tables() -> None:
    """An update may have exactly the columns beside the key, with values of a registration."""
    columns = [c.key for c in cast("Table", RegistrationProjection.__table__).columns if not c.primary_key]
    assert list(Columns.__struct_fields__) == columns
    values = {name: value for name, value in asdict(row(ACTIVE)).items() if name in columns}
    assert asdict(msgspec.convert(values, Columns)) == values


# --- What the decider asks for -------------------------------------------------------------------------------------

BEFORE: dict[str, list[Registration | None]] = {
    "node.introspected": [None, row(REJECTED), row(LIVENESS_EXPIRED)],
    "node.registration_acked": [row(RegistrationState.ACCEPTED), row(AWAITING_ACK)],
    "node.heartbeat": [row(ACTIVE), row(ACTIVE, last_heartbeat_at=None)],
    "node.deregistered": [row(RegistrationState.PENDING_REGISTRATION), row(AWAITING_ACK), row(ACTIVE)],
}


@pytest.mark.parametrize(("type_", "before"), [(type_, before) for type_, rows in BEFORE.items() for before in rows])
async def test_the_intent_writes_the_row_that_the_projector_writes(
    database: Database, type_: str, before: Registration | None
) -> None:
    """A decision's `postgres.*` intent writes the decision's row and the matching counts."""
    if before is not None:
        await put(database, before)
    trigger = event(type_, 100)
    assert isinstance(trigger, Trigger)
    decision = decide(before, trigger, Timing())
    assert isinstance(decision, Decision)
    handle = upsert_registration if isinstance(decision.intents[0], UpsertRegistration) else update_registration
    assert await database.write(lambda connection: handle(connection, decision.intents[0]))
    assert await row_of(database) == decision.row
    assert await counts_are_right(database)


async def test_a_passed_deadline_is_written_by_its_intent(database: Database) -> None:
    """The update for a timeout changes only the columns in it."""
    before = row(ACTIVE, liveness_timeout_emitted_at=None)
    await put(database, before)
    decision = expire(before, Deadline.LIVENESS, when(500))
    assert isinstance(decision, Decision)
    assert await carry_out(database, decision.intents[0])
    assert await row_of(database) == decision.row
    assert await counts_are_right(database)


# --- postgres.update_registration ----------------------------------------------------------------------------------

# A column, its value as JSON has it, and as the row has it then.
AS_TEXT: list[tuple[str, object, object]] = [
    ("current_state", "rejected", REJECTED),
    ("ack_deadline", "2026-01-01T00:00:05Z", when(5)),
    ("liveness_deadline", "2026-01-01T05:30:05.25+05:30", when(5.25)),
    ("last_heartbeat_at", "2026-01-01T00:00:14Z", when(14)),
    ("last_applied_event_id", "00000000-0000-0000-0000-000000000063", UUID(int=99)),
    ("correlation_id", "00000000-0000-0000-0000-000000000064", UUID(int=100)),
    ("correlation_id", None, None),
    ("ack_deadline", None, None),
    ("capabilities", {"a": [1, {"b": None}], 'quo"te': "';--"}, {"a": [1, {"b": None}], 'quo"te': "';--"}),
    ("node_type", "'; DROP TABLE registration_projections; --", "'; DROP TABLE registration_projections; --"),
    ("last_applied_sequence", 2**63 - 1, 2**63 - 1),
]


@pytest.mark.parametrize(("column", "given", "kept"), AS_TEXT)
async def test_a_column_is_written_as_its_type(database: Database, column: str, given: object, kept: object) -> None:
    """Times and ids may be strings; nothing else in the row changes except the version."""
    await put(database, row(ACTIVE))
    assert await carry_out(database, update({column: given}))
    assert await row_of(database) == replace(row(ACTIVE), version=22, **{column: kept})
    assert await counts_are_right(database)


async def test_an_update_may_name_every_column(database: Database) -> None:
    """One statement can update all columns at once."""
    await put(database, row(ACTIVE))
    after = row(REJECTED, node_type="x", last_heartbeat_at=when(99), last_applied_sequence=18, version=30)
    changes = {name: value for name, value in asdict(after).items() if name not in {"entity_id", "domain"}}
    assert await carry_out(database, update(changes))
    assert await row_of(database) == after
    assert await counts_are_right(database)


@pytest.mark.parametrize(
    "intent",
    [
        update({"node_type": "x"}, read_version=20),
        update({"node_type": "x"}, read_version=22),
        update({"node_type": "x", "current_state": "rejected"}, read_version=20),
        update({"node_type": "x"}, domain="edge"),
    ],
    ids=["an older version", "a newer one", "with a state", "another domain"],
)
async def test_a_row_that_is_not_as_it_was_read_is_left_alone(database: Database, intent: Intent) -> None:
    """At another version or in another domain nothing is written, and the answer says so."""
    await put(database, row(ACTIVE))
    assert await carry_out(database, intent) is False
    assert await row_of(database) == row(ACTIVE)
    assert await counts_are_right(database)


@pytest.mark.parametrize(
    ("stands", "given", "written"),
    [(None, 13, True), (13, 13.000001, True), (13, 13, False), (13, 12, False)],
    ids=["the first", "newer", "the same", "older"],
)
@pytest.mark.parametrize("others", [{}, {"current_state": "rejected"}], ids=["alone", "with a state"])
async def test_a_heartbeat_has_to_be_newer(
    database: Database, stands: float | None, given: float, written: bool, others: Json
) -> None:
    """An update of `last_heartbeat_at` is written, as a whole, only if the row's is older or absent."""
    await put(database, row(ACTIVE, last_heartbeat_at=None if stands is None else when(stands)))
    before = await row_of(database)
    assert await carry_out(database, update({"last_heartbeat_at": when(given), **others})) is written
    assert (await row_of(database) != before) is written
    assert await counts_are_right(database)


WRONG: list[tuple[object, str]] = [
    (update({}), "nothing to update"),
    (update({"colour": "red"}), "unknown field `colour`"),
    (update({'node_type" = node_type; --': "x"}), "unknown field"),
    (update({"entity_id": str(NODE)}), "unknown field `entity_id`"),
    (update({"domain": "edge"}), "unknown field `domain`"),
    (update({"current_state": "lost"}), "Invalid enum value 'lost'"),
    (update({"current_state": None}), "got `null`"),
    (update({"node_type": "x" * 65}), "length <= 64"),
    (update({"capabilities": [1]}), "Expected `object"),
    (update({"ack_deadline": "tomorrow"}), "RFC3339"),
    (update({"ack_deadline": "2026-01-01T00:00:00"}), "timezone"),
    (update({"ack_deadline": when(1).replace(tzinfo=None)}), "timezone"),
    (update({"ack_deadline": 1767225600}), "Expected `datetime"),
    (update({"correlation_id": "mine"}), "UUID"),
    (update({"last_applied_sequence": -1}), ">= 0"),
    (update({"last_applied_sequence": 2**63}), "<= 9223372036854775807"),
    (update({"version": 0}), ">= 1"),
    (update({"version": 21, "node_type": "x"}), "version 21 is not above 21"),
    ({"changes": {"node_type": "x"}}, "takes an UpdateRegistration, not dict"),
    (None, "not NoneType"),
    (DeregisterService(entity_id=NODE, domain="registration"), "not DeregisterService"),
]


@pytest.mark.parametrize(("intent", "said"), WRONG, ids=[said for _, said in WRONG])
async def test_what_cannot_be_written_is_refused_before_any_sql(intent: object, said: str) -> None:
    """Empty updates, invalid names or values and other payloads are refused without reaching the database."""
    with pytest.raises(IntentError, match=said.replace("`", "`?").replace("|", r"\|")):
        await update_registration(cast("Connection", None), intent)


@pytest.mark.parametrize(
    "changes",
    [
        {"last_applied_partition": "p", "last_applied_offset": 1},
        {"last_applied_sequence": None},
        {"node_type": "a\0b"},
        {"capabilities": {"a": "\0"}},
    ],
    ids=["two tracks", "no track", "NUL", "NUL in a capability"],
)
async def test_what_the_table_refuses_is_said_without_its_words(
    database: Database, changes: Json, caplog: pytest.LogCaptureFixture
) -> None:
    """The error says that the values were refused; only the log has PostgreSQL's words; the row is unchanged."""
    await put(database, row(ACTIVE))
    with pytest.raises(RefusedValuesError) as refused:
        await carry_out(database, update(changes))
    assert str(refused.value) == "the table does not accept these values; the log says why"
    assert refused.value.__suppress_context__
    assert [record.name for record in caplog.records if record.levelname == "WARNING"] == ["app.store.failures"]
    assert await row_of(database) == row(ACTIVE)


# --- postgres.upsert_registration ----------------------------------------------------------------------------------


def upsert(registration: Registration, read_version: int | None) -> UpsertRegistration:
    """An intent that writes a whole row."""
    return UpsertRegistration(
        entity_id=NODE, domain="registration", registration=registration, read_version=read_version
    )


@pytest.mark.parametrize(("there", "read_version"), [(False, 21), (True, None), (True, 20)])
async def test_a_whole_row_is_written_on_what_was_read_alone(
    database: Database, there: bool, read_version: int | None
) -> None:
    """Nothing is written if the row is missing, unexpected, or at another version."""
    if there:
        await put(database, row(ACTIVE))
    intent = upsert(row(REJECTED, version=22), read_version)
    assert await database.write(lambda connection: upsert_registration(connection, intent)) is False
    assert await row_of(database) == (row(ACTIVE) if there else None)


@pytest.mark.parametrize(
    ("intent", "said"),
    [
        (upsert(row(ACTIVE, domain="edge"), None), "belongs to another entity"),
        (upsert(row(ACTIVE, updated_at=when(1).replace(tzinfo=None)), None), "timezone"),
        (update({"node_type": "x"}), "takes an UpsertRegistration, not UpdateRegistration"),
        (row(ACTIVE), "not Registration"),
    ],
)
async def test_a_whole_row_that_is_none_is_refused_before_any_sql(intent: object, said: str) -> None:
    """A row of another entity, with invalid values or in another payload is refused before any SQL."""
    with pytest.raises(IntentError, match=said):
        await upsert_registration(cast("Connection", None), intent)


async def test_a_whole_row_that_the_table_refuses_is_said_without_its_words(database: Database) -> None:
    """If the table refuses the row, only the log names the constraint."""
    intent = upsert(row(ACTIVE, last_applied_sequence=None), None)
    with pytest.raises(RefusedValuesError, match=r"^the table does not accept these values; the log says why$"):
        await database.write(lambda connection: upsert_registration(connection, intent))
    assert await row_of(database) is None


async def test_an_intent_lives_in_the_callers_transaction(database: Database) -> None:
    """If the caller's transaction is rolled back, so is the update."""
    await put(database, row(ACTIVE))

    async def work(connection: Connection) -> None:
        assert await update_registration(connection, update({"current_state": "rejected"}))
        raise NotFoundError("something else went wrong")

    with pytest.raises(NotFoundError):
        await database.write(work)
    assert await row_of(database) == row(ACTIVE)
    assert await counts_are_right(database)
