"""A row of the outbox may have several messages: all events of a decision, one in each line.

Revision: 0006, after 0005
"""

import sqlalchemy as sa

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLE = "outbox"
# Gives each message a row of its own again. All rows get new ids, so an entity's rows stay in order.
SPLIT = """
WITH entries AS (DELETE FROM outbox RETURNING *)
INSERT INTO outbox (destination, slot, entity_id, domain, envelope, created_at)
SELECT e.destination, e.slot, e.entity_id, e.domain, line.envelope, e.created_at
FROM entries AS e
CROSS JOIN LATERAL regexp_split_to_table(e.envelope, '\\n') WITH ORDINALITY AS line (envelope, place)
ORDER BY e.id, line.place
"""


def upgrade() -> None:
    """Waiting rows stay as they are, as entries of one message."""
    op.add_column(TABLE, sa.Column("messages", sa.SmallInteger(), server_default=sa.text("1"), nullable=False))


def downgrade() -> None:
    """Waiting messages stay, but their rows are rewritten: if there are many, first let the relay send them."""
    op.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")  # rows written meanwhile would be out of order
    op.execute(SPLIT)
    op.drop_column(TABLE, "messages")
