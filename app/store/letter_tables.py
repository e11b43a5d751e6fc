"""The tables of dead letters: messages that failed, entities that are held, what waits behind them, bulk calls."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.store.tables import Base


class DeadLetter(Base):
    """A message that could not be applied or sent: its bytes, its topic, partition and offset, and its error."""

    __tablename__ = "dead_letters"

    id: Mapped[int] = mapped_column(BigInteger(), Identity(always=True), primary_key=True)
    source: Mapped[str] = mapped_column(String(16))
    topic: Mapped[str] = mapped_column(String(300))
    partition: Mapped[int | None] = mapped_column(Integer())
    offset: Mapped[int | None]
    key: Mapped[bytes | None] = mapped_column(LargeBinary())
    value: Mapped[bytes | None] = mapped_column(LargeBinary())
    headers: Mapped[bytes] = mapped_column(LargeBinary())
    error: Mapped[str] = mapped_column(Text())
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    entity_id: Mapped[UUID | None]

    __table_args__ = (
        UniqueConstraint("topic", "partition", "offset", name="dead_letters_place"),
        Index("dead_letters_by_entity", "entity_id", postgresql_where=text("entity_id IS NOT NULL")),
        Index("dead_letters_by_topic", "topic", "id"),
        Index("dead_letters_by_time", "created_at"),
    )


class HeldEntityRow(Base):
    """An entity whose later messages wait behind a dead letter: that letter, and how many wait and have passed."""

    __tablename__ = "held_entities"

    entity_id: Mapped[UUID] = mapped_column(primary_key=True)
    letter_id: Mapped[int] = mapped_column(
        ForeignKey("dead_letters.id", name="held_entities_letter", ondelete="CASCADE")
    )
    messages: Mapped[int] = mapped_column(server_default=text("0"))
    passed: Mapped[int] = mapped_column(server_default=text("0"))
    held_at: Mapped[datetime] = mapped_column(server_default=text("now()"))

    __table_args__ = (Index("held_entities_by_letter", "letter_id"),)


class HeldMessage(Base):
    """A message that waits behind its entity's dead letter, unchanged. The ids of an entity are in reading order."""

    __tablename__ = "held_messages"

    id: Mapped[int] = mapped_column(BigInteger(), Identity(always=True), primary_key=True)
    entity_id: Mapped[UUID] = mapped_column(
        ForeignKey("held_entities.entity_id", name="held_messages_entity", ondelete="CASCADE")
    )
    topic: Mapped[str] = mapped_column(String(300))
    partition: Mapped[int] = mapped_column(Integer())
    offset: Mapped[int]
    key: Mapped[bytes | None] = mapped_column(LargeBinary())
    value: Mapped[bytes | None] = mapped_column(LargeBinary())
    headers: Mapped[bytes] = mapped_column(LargeBinary())

    __table_args__ = (Index("held_messages_by_entity", "entity_id", "id"),)


class DeadLetterRun(Base):
    """A retry or removal of all letters up to `last_id` that match; those up to `at_id` are worked off."""

    __tablename__ = "dead_letter_runs"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    action: Mapped[str] = mapped_column(String(16))
    filters: Mapped[dict[str, object]] = mapped_column(JSONB())
    principal: Mapped[str] = mapped_column(String(300))
    started_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    finished_at: Mapped[datetime | None]
    leased_until: Mapped[datetime] = mapped_column(server_default=text("'-infinity'"))
    matched: Mapped[int]
    done: Mapped[int] = mapped_column(server_default=text("0"))
    failed: Mapped[int] = mapped_column(server_default=text("0"))
    last_id: Mapped[int]
    at_id: Mapped[int] = mapped_column(server_default=text("0"))

    __table_args__ = (
        CheckConstraint("action IN ('retry', 'delete')", name="action_known"),
        Index(
            "dead_letter_runs_unfinished",
            "action",
            "filters",
            unique=True,
            postgresql_where=text("finished_at IS NULL"),
        ),
        Index("dead_letter_runs_by_end", "finished_at"),
    )
