"""Tombstones: the rows of forgotten entities, which the index by state leaves out.

Revision: 0011, after 0010
"""

import sqlalchemy as sa

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TABLE = "registration_projections"
BY_STATE = f"{TABLE}_by_state"
OTHER = f"{TABLE}_by_state_built"  # the name of an index until it takes the place of the one before
CHECK = f"{TABLE}_tombstone_empty"
EMPTY = (
    "(forgotten_at IS NULL AND forgotten_permanently IS NULL)"
    " OR (forgotten_at IS NOT NULL AND forgotten_permanently IS NOT NULL AND current_state = 'rejected'"
    " AND node_type = '' AND node_version = '' AND capabilities = '{}' AND registered_at = forgotten_at"
    " AND num_nonnulls(ack_deadline, liveness_deadline, last_heartbeat_at, ack_timeout_emitted_at,"
    " liveness_timeout_emitted_at) = 0)"
)


def upgrade() -> None:
    """The columns cost no rewrite. The constraint is checked, and the index built, while others read and write.

    What is there already is passed over: an upgrade that was broken off between its transactions is run again.
    """
    op.execute(f"ALTER TABLE {TABLE} ADD COLUMN IF NOT EXISTS forgotten_at timestamptz")
    op.execute(f"ALTER TABLE {TABLE} ADD COLUMN IF NOT EXISTS forgotten_permanently boolean")
    op.execute(f"ALTER TABLE {TABLE} DROP CONSTRAINT IF EXISTS {CHECK}")
    op.execute(f"ALTER TABLE {TABLE} ADD CONSTRAINT {CHECK} CHECK ({EMPTY}) NOT VALID")
    with op.get_context().autocommit_block():
        op.execute(f"ALTER TABLE {TABLE} VALIDATE CONSTRAINT {CHECK}")
        _rebuild()


def downgrade() -> None:
    """Tombstones are removed: an event that comes late begins their entities anew, and followers hear nothing.

    The index is built within the transaction, and writers wait for it.
    """
    op.execute(f"ALTER TABLE {TABLE} DROP CONSTRAINT {CHECK}")
    op.execute(f"DELETE FROM {TABLE} WHERE forgotten_at IS NOT NULL")  # noqa: S608 - a name of ours
    op.drop_index(BY_STATE, TABLE)
    op.create_index(BY_STATE, TABLE, ["domain", "current_state", "entity_id"])
    op.drop_column(TABLE, "forgotten_permanently")
    op.drop_column(TABLE, "forgotten_at")


def _rebuild() -> None:
    """Build the index by state anew, without tombstones, and drop the one before."""
    op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {OTHER}")
    op.execute(
        f"CREATE INDEX CONCURRENTLY {OTHER} ON {TABLE} (domain, current_state, entity_id) WHERE forgotten_at IS NULL"
    )
    query = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
    if not op.get_bind().scalar(query, {"name": OTHER}):
        raise RuntimeError(f"{OTHER} is not valid: run the migration again")
    op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {BY_STATE}")
    op.execute(f"ALTER INDEX {OTHER} RENAME TO {BY_STATE}")
