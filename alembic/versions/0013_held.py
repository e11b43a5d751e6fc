"""Entities held behind a dead letter, bulk calls over dead letters, and indexes for the list's filters.

Revision: 0013, after 0012
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

LETTERS, HELD, MESSAGES, RUNS = "dead_letters", "held_entities", "held_messages", "dead_letter_runs"
TIME = sa.TIMESTAMP(timezone=True)


def upgrade() -> None:
    """Everything is new, but for two indexes on a table that few write to."""
    op.create_index(f"{LETTERS}_by_topic", LETTERS, ["topic", "id"])
    op.create_index(f"{LETTERS}_by_time", LETTERS, ["created_at"])
    op.create_table(
        HELD,
        sa.Column("entity_id", sa.Uuid(), nullable=False),
        sa.Column("letter_id", sa.BigInteger(), nullable=False),
        sa.Column("messages", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("passed", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("held_at", TIME, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("entity_id", name=op.f(f"{HELD}_pkey")),
        sa.ForeignKeyConstraint(["letter_id"], [f"{LETTERS}.id"], name=f"{HELD}_letter", ondelete="CASCADE"),
    )
    op.create_index(f"{HELD}_by_letter", HELD, ["letter_id"])
    op.create_table(
        MESSAGES,
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("entity_id", sa.Uuid(), nullable=False),
        sa.Column("topic", sa.String(300), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=True),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.Column("headers", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f(f"{MESSAGES}_pkey")),
        sa.ForeignKeyConstraint(["entity_id"], [f"{HELD}.entity_id"], name=f"{MESSAGES}_entity", ondelete="CASCADE"),
    )
    op.create_index(f"{MESSAGES}_by_entity", MESSAGES, ["entity_id", "id"])
    op.create_table(
        RUNS,
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("filters", JSONB(), nullable=False),
        sa.Column("principal", sa.String(300), nullable=False),
        sa.Column("started_at", TIME, nullable=False, server_default=sa.text("now()")),
        sa.Column("finished_at", TIME, nullable=True),
        sa.Column("leased_until", TIME, nullable=False, server_default=sa.text("'-infinity'")),
        sa.Column("matched", sa.BigInteger(), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("failed", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("last_id", sa.BigInteger(), nullable=False),
        sa.Column("at_id", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("id", name=op.f(f"{RUNS}_pkey")),
        sa.CheckConstraint("action IN ('retry', 'delete')", name=op.f(f"{RUNS}_action_known")),
    )
    op.create_index(
        f"{RUNS}_unfinished",
        RUNS,
        ["action", "filters"],
        unique=True,
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_index(f"{RUNS}_by_end", RUNS, ["finished_at"])


def downgrade() -> None:
    """Messages that wait behind a dead letter are lost: retry or skip them first."""
    for table in (RUNS, MESSAGES, HELD):
        op.drop_table(table)
    op.drop_index(f"{LETTERS}_by_time", table_name=LETTERS)
    op.drop_index(f"{LETTERS}_by_topic", table_name=LETTERS)
