"""State counts that every write maintains.

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLE = "registration_state_counts"


def upgrade() -> None:
    """Counts the rows. Writers wait meanwhile. Stop writers of earlier releases first: they do not count."""
    state = postgresql.ENUM(name="registration_state", create_type=False)
    op.create_table(
        TABLE,
        sa.Column("domain", sa.String(128), nullable=False),
        sa.Column("current_state", state, nullable=False),
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("domain", "current_state", "slot", name=f"{TABLE}_pkey"),
    )
    op.execute("LOCK TABLE registration_projections IN SHARE MODE")
    op.execute(
        "INSERT INTO registration_state_counts (domain, current_state, slot, count) "
        "SELECT domain, current_state, 0, count(*) FROM registration_projections GROUP BY domain, current_state"
    )


def downgrade() -> None:
    """Nothing is lost: the counts can be computed again."""
    op.drop_table(TABLE)
