"""Sessions of people who have signed in to the console.

Revision: 0015, after 0014
"""

import sqlalchemy as sa

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

TABLE = "sessions"


def upgrade() -> None:
    """A new table; nothing is rewritten."""
    op.create_table(
        TABLE,
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", sa.String(10), nullable=True),
        sa.Column("principal", sa.String(300), nullable=True),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("domains", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("workflow_prefixes", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("octet_length(digest) = 32", name=op.f("sessions_digest_of_sha256")),
        sa.CheckConstraint("(key_id IS NULL) = (principal IS NOT NULL)", name=op.f("sessions_key_or_principal")),
        sa.PrimaryKeyConstraint("digest", name="sessions_pkey"),
    )


def downgrade() -> None:
    """People sign in again."""
    op.drop_table(TABLE)
