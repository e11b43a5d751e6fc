"""The change log, in 16 slices that are reused in turn, and how far its beginning was removed.

Revision: 0009, after 0008
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ENUM, JSONB

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

CHANGES, FLOOR, IDS = "changes", "changes_floor", "changes_id_seq"
SLICES = 16
BLOCK = 4096  # ids that a statement draws at once
# A B-tree for each would cost a write two to four times as much. 1,200 is what 16 pages hold of distinct ids.
BLOOM = "uuid_bloom_ops (n_distinct_per_range='1200')"
STATE = ENUM(name="registration_state", create_type=False)


def upgrade() -> None:
    """The tables are new and empty, so their indexes need no concurrent build."""
    op.execute(f"CREATE SEQUENCE {IDS} AS bigint INCREMENT BY {BLOCK}")
    op.create_table(
        CHANGES,
        sa.Column("slice", sa.SmallInteger(), nullable=False),
        sa.Column("mark", sa.Integer(), nullable=False),
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("entity_id", sa.Uuid(), nullable=True),
        sa.Column("domain", sa.String(128), nullable=True),
        sa.Column("node_type", sa.String(64), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=True),
        sa.Column("event_id", sa.Uuid(), nullable=True),
        sa.Column("type", sa.String(64), nullable=True),
        sa.Column("outcome", sa.String(16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("before", STATE, nullable=True),
        sa.Column("current_state", STATE, nullable=True),
        sa.Column("partition", sa.String(300), nullable=True),
        sa.Column("offset", sa.BigInteger(), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("occurred_at", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("changed_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("correlation_id", sa.Uuid(), nullable=True),
        sa.Column("row", JSONB(), nullable=True),
        postgresql_partition_by="LIST (slice)",
    )
    for number in range(SLICES):
        name = f"{CHANGES}_{number:02}"
        op.execute(
            f"CREATE TABLE {name} PARTITION OF {CHANGES} "
            f"(CONSTRAINT {name}_pkey PRIMARY KEY (id)) FOR VALUES IN ({number})"
        )
    op.execute(
        f"CREATE INDEX {CHANGES}_by_entity_and_event ON {CHANGES} USING brin ("
        f"entity_id {BLOOM}, event_id {BLOOM}) WITH (pages_per_range = 16, autosummarize = true)"
    )
    op.create_table(
        FLOOR,
        sa.Column("slice", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("mark", sa.Integer(), nullable=False),
        sa.Column("changed_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("slice", name=f"{FLOOR}_pkey"),
    )


def downgrade() -> None:
    """The log is lost, and every follower has to begin anew."""
    op.drop_table(FLOOR)
    op.drop_table(CHANGES)
    op.execute(f"DROP SEQUENCE {IDS}")
