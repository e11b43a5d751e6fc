"""A row of the outbox may have messages of several entities, all of one slot; there are fewer slots, so that it has.

Revision: 0007, after 0006
"""

import sqlalchemy as sa

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLE = "outbox"
WHOSE = "intent_entity_id"  # what entity_id was; of rows with events nobody asks for it
# Rows of up to a page stay as they are: from 2 kB on PostgreSQL would compress them, and they are soon gone.
INLINE = 8160
# Before, a slot was the entity id modulo 64: so it is still right modulo 4, and ids order what comes together.
FEWER_SLOTS = "UPDATE outbox SET slot = slot % 4 WHERE slot >= 4"
# Each message a row of its own again. All rows get new ids, so that those of an entity stay in order.
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
    """What waits is in its new slot, in its order."""
    op.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")  # who writes or sends meanwhile would be out of order
    # A relay of before would send under a wrong key. It finds no column of this name instead, and leaves all alone.
    op.alter_column(TABLE, "entity_id", nullable=True, new_column_name=WHOSE)
    op.drop_column(TABLE, "domain")
    op.execute(f"ALTER TABLE {TABLE} SET (toast_tuple_target = {INLINE})")
    op.execute(FEWER_SLOTS)


def downgrade() -> None:
    """What waits stays, and is written anew: where much does, let the relay come to its end before."""
    op.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")
    op.add_column(TABLE, sa.Column("domain", sa.String(128), nullable=True))
    op.alter_column(TABLE, WHOSE, new_column_name="entity_id")
    op.execute(SPLIT)
    op.alter_column(TABLE, "domain", nullable=False)
    op.alter_column(TABLE, "entity_id", nullable=False)
    op.execute(f"ALTER TABLE {TABLE} RESET (toast_tuple_target)")
