"""What is to be sent after a transaction, written in it.

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
    """The primary key is the order in which the rows are sent; there is no other index to pay for."""
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
    """What was not sent yet is lost: stop the writers, and let the relay come to its end before."""
    op.drop_table(TABLE)
