"""One row per entity, the enum of states, and the indexes of the queries.

Revision: 0001
"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATES = (
    "pending_registration",
    "accepted",
    "awaiting_ack",
    "rejected",
    "ack_timed_out",
    "ack_received",
    "active",
    "liveness_expired",
)
TABLE = "registration_projections"


def upgrade() -> None:
    """The table is new and empty, so its indexes need no concurrent build."""
    op.create_table(
        TABLE,
        sa.Column("entity_id", sa.Uuid(), nullable=False),
        sa.Column("domain", sa.String(128), nullable=False),
        sa.Column("current_state", sa.Enum(*STATES, name="registration_state"), nullable=False),
        sa.Column("node_type", sa.String(64), nullable=False),
        sa.Column("node_version", sa.String(32), server_default=sa.text("'1.0.0'"), nullable=False),
        sa.Column("capabilities", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("ack_deadline", sa.TIMESTAMP(timezone=True)),
        sa.Column("liveness_deadline", sa.TIMESTAMP(timezone=True)),
        sa.Column("last_heartbeat_at", sa.TIMESTAMP(timezone=True)),
        sa.Column("ack_timeout_emitted_at", sa.TIMESTAMP(timezone=True)),
        sa.Column("liveness_timeout_emitted_at", sa.TIMESTAMP(timezone=True)),
        sa.Column("last_applied_event_id", sa.Uuid(), nullable=False),
        sa.Column("last_applied_partition", sa.String(300)),
        sa.Column("last_applied_offset", sa.BigInteger()),
        sa.Column("last_applied_sequence", sa.BigInteger()),
        sa.Column("registered_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("updated_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("correlation_id", sa.Uuid()),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("entity_id", "domain", name=f"{TABLE}_pkey"),
        sa.CheckConstraint("version >= 1", name=op.f(f"{TABLE}_version_from_1")),
        sa.CheckConstraint("jsonb_typeof(capabilities) = 'object'", name=op.f(f"{TABLE}_capabilities_object")),
        sa.CheckConstraint(
            "(last_applied_sequence IS NOT NULL AND last_applied_partition IS NULL AND last_applied_offset IS NULL)"
            " OR (last_applied_sequence IS NULL AND last_applied_partition IS NOT NULL"
            " AND last_applied_offset IS NOT NULL)",
            name=op.f(f"{TABLE}_one_track"),
        ),
        sa.CheckConstraint(
            "last_applied_sequence >= 0 AND last_applied_offset >= 0", name=op.f(f"{TABLE}_numbers_from_0")
        ),
    )
    op.create_index(f"{TABLE}_by_state", TABLE, ["domain", "current_state", "entity_id"])
    op.create_index(f"{TABLE}_by_event", TABLE, ["last_applied_event_id"])
    op.create_index(
        f"{TABLE}_by_capability",
        TABLE,
        ["capabilities"],
        postgresql_using="gin",
        postgresql_ops={"capabilities": "jsonb_path_ops"},
    )
    op.create_index(
        f"{TABLE}_ack_due",
        TABLE,
        ["domain", "ack_deadline", "entity_id"],
        postgresql_where=sa.text(
            "current_state IN ('accepted', 'awaiting_ack') AND ack_timeout_emitted_at IS NULL"
            " AND ack_deadline IS NOT NULL"
        ),
    )
    op.create_index(
        f"{TABLE}_liveness_due",
        TABLE,
        ["domain", "liveness_deadline", "entity_id"],
        postgresql_where=sa.text(
            "current_state = 'active' AND liveness_timeout_emitted_at IS NULL AND liveness_deadline IS NOT NULL"
        ),
    )


def downgrade() -> None:
    """Removes everything, including the enum."""
    op.drop_table(TABLE)
    op.execute("DROP TYPE registration_state")
