"""Workflow states, changed by compare-and-swap, and the actions applied to them.

Revision: 0003, after 0002
"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STATE = "workflow_state"
ACTIONS = "workflow_actions"


def upgrade() -> None:
    """Both tables are new and empty, so their indexes need no concurrent build."""
    op.create_table(
        STATE,
        sa.Column("workflow_key", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("state", postgresql.JSONB(), nullable=False),
        sa.Column("updated_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("schema_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("provenance", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("workflow_key", name=f"{STATE}_pkey"),
        sa.CheckConstraint("char_length(workflow_key) BETWEEN 1 AND 255", name=op.f(f"{STATE}_key_length")),
        sa.CheckConstraint("version >= 1", name=op.f(f"{STATE}_version_from_1")),
        sa.CheckConstraint("jsonb_typeof(state) = 'object' AND state <> '{}'", name=op.f(f"{STATE}_state_object")),
        sa.CheckConstraint("schema_version >= 1", name=op.f(f"{STATE}_schema_version_from_1")),
        sa.CheckConstraint(
            "jsonb_typeof(provenance) = 'object' AND provenance ? 'effect_id' AND provenance ? 'timestamp'",
            name=op.f(f"{STATE}_provenance_complete"),
        ),
    )
    op.create_index(f"{STATE}_by_change", STATE, ["updated_at", "workflow_key"])
    op.create_table(
        ACTIONS,
        sa.Column("workflow_key", sa.Text(), nullable=False),
        sa.Column("action_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("state_digest", sa.LargeBinary(), nullable=False),
        sa.Column("committed_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("provenance", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("workflow_key", "action_id", name=f"{ACTIONS}_pkey"),
    )
    op.create_index(f"{ACTIONS}_by_age", ACTIONS, ["committed_at"])


def downgrade() -> None:
    """Drops the workflows. No log holds them, so they cannot be computed again."""
    op.drop_table(ACTIONS)
    op.drop_table(STATE)
