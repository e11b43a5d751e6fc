"""The outbox: messages that a transaction writes, to be sent after it.

Revision: 0004, after 0003
"""

import sqlalchemy as sa

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLE = "outbox"


def upgrade() -> None:
    """The primary key is the order of sending. There is no other index."""
    op.create_table(
        TABLE,
        sa.Column("destination", sa.String(300), nullable=False),
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("entity_id", sa.Uuid(), nullable=False),
        sa.Column("domain", sa.String(128), nullable=False),
        sa.Column("envelope", sa.Text(), nullable=False),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("destination", "slot", "id", name=f"{TABLE}_pkey"),
    )


def downgrade() -> None:
    """Unsent messages are lost: first stop the writers, and let the relay send the rest."""
    op.drop_table(TABLE)
