"""A row of the outbox may have messages of several entities of one slot. Fewer slots make such rows common.

Revision: 0007, after 0006
"""

import sqlalchemy as sa

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLE = "outbox"
WHOSE = "intent_entity_id"  # the new name of entity_id; unused in rows with events
# Rows up to a page stay uncompressed: PostgreSQL would compress them from 2 kB on, but they are soon removed.
INLINE = 8160
# The old slot was the entity id modulo 64, so its value modulo 4 is the new one. Rows that come together are
# ordered by id.
FEWER_SLOTS = "UPDATE outbox SET slot = slot % 4 WHERE slot >= 4"
# Gives each message a row of its own again. All rows get new ids, so an entity's rows stay in order.
SPLIT = """
WITH entries AS (DELETE FROM outbox RETURNING *)
INSERT INTO outbox (destination, slot, entity_id, domain, envelope, created_at)
SELECT
    e.destination,
    get_byte(uuid_send(named.entity_id), 15) % 64,
    named.entity_id,
    coalesce(line.envelope::jsonb ->> 'domain', 'registration'),
    line.envelope,
    e.created_at
FROM entries AS e
CROSS JOIN LATERAL regexp_split_to_table(e.envelope, '\\n') WITH ORDINALITY AS line (envelope, place)
CROSS JOIN LATERAL (
    SELECT coalesce(CAST(line.envelope::jsonb ->> 'partitionkey' AS uuid), e.entity_id) AS entity_id
) AS named
ORDER BY e.id, line.place
"""


def upgrade() -> None:
    """Waiting rows move to their new slot, in their order."""
    op.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")  # rows written or sent meanwhile would be out of order
    # A relay of an earlier release would send under a wrong key. Without a column of this name it fails instead.
    op.alter_column(TABLE, "entity_id", nullable=True, new_column_name=WHOSE)
    op.drop_column(TABLE, "domain")
    op.execute(f"ALTER TABLE {TABLE} SET (toast_tuple_target = {INLINE})")
    op.execute(FEWER_SLOTS)


def downgrade() -> None:
    """Waiting messages stay, but their rows are rewritten: if there are many, first let the relay send them."""
    op.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")
    op.add_column(TABLE, sa.Column("domain", sa.String(128), nullable=True))
    op.alter_column(TABLE, WHOSE, new_column_name="entity_id")
    op.execute(SPLIT)
    op.alter_column(TABLE, "domain", nullable=False)
    op.alter_column(TABLE, "entity_id", nullable=False)
    op.execute(f"ALTER TABLE {TABLE} RESET (toast_tuple_target)")
