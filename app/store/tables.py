"""The tables, mapped by SQLAlchemy. The migrations in `alembic/` must create exactly these; a test compares them."""

from datetime import datetime
from typing import ClassVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    DDL,
    BigInteger,
    CheckConstraint,
    Enum,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    SmallInteger,
    String,
    Text,
    Uuid,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.domain.decider import Deadline
from app.domain.projection import REGISTRATION, Timeout
from app.domain.row_type import R
from app.domain.states import RegistrationState

REGISTRATION_STATE = Enum(
    RegistrationState, name="registration_state", values_callable=lambda states: [state.value for state in states]
)


def due(counted_by: str, timeout: Timeout[R]) -> str:
    """The condition of the rows that wait for a deadline, for its partial index and its overdue scan.

    Both use the same text, so that the planner recognizes that the index has every row of the scan.
    """
    states = [f"'{state}'" for state in timeout.states]
    waits = f"= {states[0]}" if len(states) == 1 else f"IN ({', '.join(states)})"
    return f"{counted_by} {waits} AND {timeout.emitted_at} IS NULL AND {timeout.deadline} IS NOT NULL"


ACK_DUE, LIVENESS_DUE = (
    due(REGISTRATION.counted_by, REGISTRATION.deadlines[deadline]) for deadline in (Deadline.ACK, Deadline.LIVENESS)
)


# A tombstone says nothing of the node. It has a state because its column wants one: one from which a node may begin.
TOMBSTONE_EMPTY = (
    "(forgotten_at IS NULL AND forgotten_permanently IS NULL)"
    " OR (forgotten_at IS NOT NULL AND forgotten_permanently IS NOT NULL AND current_state = 'rejected'"
    " AND node_type = '' AND node_version = '' AND capabilities = '{}' AND registered_at = forgotten_at"
    " AND num_nonnulls(ack_deadline, liveness_deadline, last_heartbeat_at, ack_timeout_emitted_at,"
    " liveness_timeout_emitted_at) = 0)"
)


class Base(DeclarativeBase):
    """The names of constraints, and the column types of Python types, for all tables."""

    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "ck": "%(table_name)s_%(constraint_name)s",
            "ix": "%(column_0_label)s",
        }
    )
    type_annotation_map: ClassVar = {
        datetime: TIMESTAMP(timezone=True),
        UUID: Uuid(),
        int: BigInteger(),
        RegistrationState: REGISTRATION_STATE,
    }


class RegistrationProjection(Base):
    """One row per entity: a node's registration. `docs/reference/tables.md` has the purpose of each index."""

    __tablename__ = "registration_projections"

    entity_id: Mapped[UUID] = mapped_column(primary_key=True)
    domain: Mapped[str] = mapped_column(String(128), primary_key=True)
    current_state: Mapped[RegistrationState]
    node_type: Mapped[str] = mapped_column(String(64))
    node_version: Mapped[str] = mapped_column(String(32), server_default=text("'1.0.0'"))
    capabilities: Mapped[dict[str, object]] = mapped_column(JSONB(), server_default=text("'{}'"))
    ack_deadline: Mapped[datetime | None]
    liveness_deadline: Mapped[datetime | None]
    last_heartbeat_at: Mapped[datetime | None]
    ack_timeout_emitted_at: Mapped[datetime | None]
    liveness_timeout_emitted_at: Mapped[datetime | None]
    last_applied_event_id: Mapped[UUID]
    last_applied_partition: Mapped[str | None] = mapped_column(String(300))
    last_applied_offset: Mapped[int | None]
    last_applied_sequence: Mapped[int | None]
    registered_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    correlation_id: Mapped[UUID | None]
    version: Mapped[int]
    forgotten_at: Mapped[datetime | None]
    forgotten_permanently: Mapped[bool | None]

    __table_args__ = (
        CheckConstraint("version >= 1", name="version_from_1"),
        CheckConstraint("jsonb_typeof(capabilities) = 'object'", name="capabilities_object"),
        CheckConstraint(
            "(last_applied_sequence IS NOT NULL AND last_applied_partition IS NULL AND last_applied_offset IS NULL)"
            " OR (last_applied_sequence IS NULL AND last_applied_partition IS NOT NULL"
            " AND last_applied_offset IS NOT NULL)",
            name="one_track",
        ),
        # An offset of -1 is the place before a first message.
        CheckConstraint("last_applied_sequence >= 0 AND last_applied_offset >= -1", name="numbers"),
        CheckConstraint(TOMBSTONE_EMPTY, name="tombstone_empty"),
        Index(
            "registration_projections_by_state",
            "domain",
            "current_state",
            "entity_id",
            postgresql_where=text("forgotten_at IS NULL"),
        ),
        Index("registration_projections_by_event", "last_applied_event_id"),
        Index(
            "registration_projections_by_capability",
            "capabilities",
            postgresql_using="gin",
            postgresql_ops={"capabilities": "jsonb_path_ops"},
        ),
        Index(
            "registration_projections_ack_due",
            "domain",
            "ack_deadline",
            "entity_id",
            postgresql_where=text(ACK_DUE),
        ),
        Index(
            "registration_projections_liveness_due",
            "domain",
            "liveness_deadline",
            "entity_id",
            postgresql_where=text(LIVENESS_DUE),
        ),
    )


class StateCount(Base):
    """The number of a domain's entities in a state, as the sum of its slots. A slot may be negative, the sum never.

    A transaction that changes states adds to one slot, so that writers do not queue for one row.
    """

    __tablename__ = "registration_state_counts"

    domain: Mapped[str] = mapped_column(String(128), primary_key=True)
    current_state: Mapped[RegistrationState] = mapped_column(primary_key=True)
    slot: Mapped[int] = mapped_column(SmallInteger(), primary_key=True)
    count: Mapped[int]


class WorkflowState(Base):
    """One row per workflow, changed by compare-and-swap: each change adds 1 to `version`."""

    __tablename__ = "workflow_state"

    workflow_key: Mapped[str] = mapped_column(Text(), primary_key=True)
    version: Mapped[int]
    state: Mapped[dict[str, object]] = mapped_column(JSONB())
    updated_at: Mapped[datetime]
    schema_version: Mapped[int] = mapped_column(Integer(), server_default=text("1"))
    provenance: Mapped[dict[str, object]] = mapped_column(JSONB())

    __table_args__ = (
        CheckConstraint("char_length(workflow_key) BETWEEN 1 AND 255", name="key_length"),
        CheckConstraint("version >= 1", name="version_from_1"),
        CheckConstraint("jsonb_typeof(state) = 'object' AND state <> '{}'", name="state_object"),
        CheckConstraint("schema_version >= 1", name="schema_version_from_1"),
        CheckConstraint(
            "jsonb_typeof(provenance) = 'object' AND provenance ? 'effect_id' AND provenance ? 'timestamp'",
            name="provenance_complete",
        ),
        Index("workflow_state_by_change", "updated_at", "workflow_key"),
        Index("workflow_state_by_key", text('workflow_key COLLATE "C"')),
    )


class WorkflowAction(Base):
    """An action that was applied to a workflow, and the answer to its commit, without the state.

    Of the state only a digest is kept: a client that repeats the action sends the same state, and so knows it.
    """

    __tablename__ = "workflow_actions"

    workflow_key: Mapped[str] = mapped_column(Text(), primary_key=True)
    action_id: Mapped[str] = mapped_column(Text(), primary_key=True)
    version: Mapped[int]
    state_digest: Mapped[bytes] = mapped_column(LargeBinary())
    committed_at: Mapped[datetime]
    schema_version: Mapped[int] = mapped_column(Integer())
    provenance: Mapped[dict[str, object]] = mapped_column(JSONB())

    __table_args__ = (Index("workflow_actions_by_age", "committed_at"),)


class OutboxEntry(Base):
    """Messages kept until the destination has them. `docs/explanation/loop.md` says who writes and sends them.

    A row holds events for the bus, of entities that are all in its slot, or one intent for its handler. `envelope`
    has a line for each message. `intent_entity_id` is the entity of an intent; for events it is null or unused.

    The primary key is the order of sending: by destination and slot, oldest first.
    """

    __tablename__ = "outbox"

    destination: Mapped[str] = mapped_column(String(300), primary_key=True)
    slot: Mapped[int] = mapped_column(SmallInteger(), primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger(), Identity(always=True), primary_key=True)
    intent_entity_id: Mapped[UUID | None]
    envelope: Mapped[str] = mapped_column(Text())
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    messages: Mapped[int] = mapped_column(SmallInteger(), server_default=text("1"))

    # PostgreSQL would compress rows from 2 kB on. These are soon removed, so rows up to a page stay uncompressed.
    __table_args__ = ({"postgresql_with": {"toast_tuple_target": 8160}},)


class Watermark(Base):
    """The progress in a partition of Kafka: every message up to `offset` is applied or is a dead letter."""

    __tablename__ = "watermarks"

    topic: Mapped[str] = mapped_column(String(249), primary_key=True)
    partition: Mapped[int] = mapped_column(Integer(), primary_key=True, autoincrement=False)
    offset: Mapped[int]
    message_at: Mapped[datetime | None]
    caught_up_at: Mapped[datetime | None]
    updated_at: Mapped[datetime]
    consumer: Mapped[str] = mapped_column(String(300))
    topic_id: Mapped[str | None] = mapped_column(String(36))

    __table_args__ = (CheckConstraint('"partition" >= 0 AND "offset" >= -1', name="numbers"),)


SLICES = 16  # of the change log, reused in turn
BLOCK = 4096  # ids that a statement draws at once
# What a bloom filter has to hold: the distinct ids of 16 pages.
_BLOOM = "uuid_bloom_ops (n_distinct_per_range='1200')"


class ChangeRow(Base):
    """A row of the change log. Where an entity was erased, only slice, id, mark and `changed_at` are left.

    Each slice has its own primary key, the id: the table's own would have to contain the slice.
    """

    __tablename__ = "changes"

    slice: Mapped[int] = mapped_column(SmallInteger())
    mark: Mapped[int] = mapped_column(Integer())
    id: Mapped[int]
    entity_id: Mapped[UUID | None]
    domain: Mapped[str | None] = mapped_column(String(128))
    node_type: Mapped[str | None] = mapped_column(String(64))
    version: Mapped[int | None]
    event_id: Mapped[UUID | None]
    type: Mapped[str | None] = mapped_column(String(64))
    outcome: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text())
    before: Mapped[RegistrationState | None]
    current_state: Mapped[RegistrationState | None]
    partition: Mapped[str | None] = mapped_column(String(300))
    offset: Mapped[int | None]
    sequence: Mapped[int | None]
    occurred_at: Mapped[datetime | None]
    changed_at: Mapped[datetime]
    correlation_id: Mapped[UUID | None]
    row: Mapped[dict[str, object] | None] = mapped_column(JSONB())

    __table_args__ = (
        Index("changes_by_entity", "entity_id", "id"),
        Index(
            "changes_by_event",
            "event_id",
            postgresql_using="brin",
            postgresql_ops={"event_id": _BLOOM},
            postgresql_with={"pages_per_range": 16, "autosummarize": "true"},
        ),
        {"postgresql_partition_by": "LIST (slice)"},
    )
    __mapper_args__ = {"primary_key": ["id"]}  # noqa: RUF012 - what SQLAlchemy calls it


CHANGE_IDS = Sequence("changes_id_seq", increment=BLOCK, data_type=BigInteger(), metadata=Base.metadata)
for _number in range(SLICES):
    _name = f"changes_{_number:02}"
    _slice = DDL(  # type: ignore[no-untyped-call]  # SQLAlchemy has no types here
        f"CREATE TABLE {_name} PARTITION OF changes "
        f"(CONSTRAINT {_name}_pkey PRIMARY KEY (id)) FOR VALUES IN ({_number})"
    )
    event.listen(ChangeRow.__table__, "after_create", _slice)


class ChangesFloor(Base):
    """The newest change that was removed from a slice: tokens up to the highest of them have expired."""

    __tablename__ = "changes_floor"

    slice: Mapped[int] = mapped_column(SmallInteger(), primary_key=True, autoincrement=False)
    id: Mapped[int]
    mark: Mapped[int] = mapped_column(Integer())
    changed_at: Mapped[datetime]


class SnapshotTopic(Base):
    """How far the rows are published to a topic of snapshots, and who publishes them (`app/store/snapshots.py`)."""

    __tablename__ = "snapshot_topics"

    topic: Mapped[str] = mapped_column(String(249), primary_key=True)
    topic_id: Mapped[str | None] = mapped_column(String(36))
    partitions: Mapped[int | None] = mapped_column(Integer())
    partitions_before: Mapped[list[int]] = mapped_column(ARRAY(Integer()), server_default=text("'{}'"))
    change_id: Mapped[int | None]
    change_mark: Mapped[int | None] = mapped_column(Integer())
    requested: Mapped[int] = mapped_column(Integer(), server_default=text("1"))
    begun: Mapped[int] = mapped_column(Integer(), server_default=text("0"))
    finished: Mapped[int] = mapped_column(Integer(), server_default=text("0"))
    after_entity_id: Mapped[UUID | None]
    after_domain: Mapped[str | None] = mapped_column(String(128))
    rows: Mapped[int] = mapped_column(server_default=text("0"))
    begun_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    holder: Mapped[str | None] = mapped_column(String(300))
    held_until: Mapped[datetime | None]
