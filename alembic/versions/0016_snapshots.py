"""Snapshots: how far the rows are published to a compacted topic, and who publishes them.

Revision: 0016, after 0015
"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

TABLE = "snapshot_topics"


def upgrade() -> None:
    """A row for each topic. Nothing is added to what writes the projection."""
    op.create_table(
        TABLE,
        sa.Column("topic", sa.String(249), primary_key=True),
        sa.Column("topic_id", sa.String(36), nullable=True),
        sa.Column("partitions", sa.Integer(), nullable=True),
        sa.Column("partitions_before", postgresql.ARRAY(sa.Integer()), nullable=False, server_default="{}"),
        sa.Column("change_id", sa.BigInteger(), nullable=True),
        sa.Column("change_mark", sa.Integer(), nullable=True),
        sa.Column("requested", sa.Integer(), nullable=False, server_default=sa.text("1")),
        sa.Column("begun", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("finished", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("after_entity_id", sa.Uuid(), nullable=True),
        sa.Column("after_domain", sa.String(128), nullable=True),
        sa.Column("rows", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("holder", sa.String(300), nullable=True),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=True),
    )


def downgrade() -> None:
    """A publisher of this release then begins with all rows again."""
    op.drop_table(TABLE)
