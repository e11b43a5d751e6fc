"""The progress in each partition, and the messages that could not be applied.

Revision: 0005, after 0004
"""

import sqlalchemy as sa

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

WATERMARKS = "watermarks"
DEAD_LETTERS = "dead_letters"


def upgrade() -> None:
    """Both tables are new and empty, so their indexes need no concurrent build."""
    op.create_table(
        WATERMARKS,
        sa.Column("topic", sa.String(249), nullable=False),
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("message_at", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("caught_up_at", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("updated_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("consumer", sa.String(300), nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition", name=f"{WATERMARKS}_pkey"),
        sa.CheckConstraint('"partition" >= 0 AND "offset" >= 0', name=op.f(f"{WATERMARKS}_numbers_from_0")),
    )
    op.create_table(
        DEAD_LETTERS,
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("topic", sa.String(300), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=True),
        sa.Column("offset", sa.BigInteger(), nullable=True),
        sa.Column("key", sa.LargeBinary(), nullable=True),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.Column("headers", sa.LargeBinary(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"{DEAD_LETTERS}_pkey"),
        sa.UniqueConstraint("topic", "partition", "offset", name=f"{DEAD_LETTERS}_place"),
    )


def downgrade() -> None:
    """Consumers begin again at the first message, and dead letters are lost: first stop the consumers."""
    op.drop_table(DEAD_LETTERS)
    op.drop_table(WATERMARKS)
