"""Places before the first message, partitions that nobody has read yet, and the entities of dead letters.

Revision: 0012, after 0011
"""

import sqlalchemy as sa

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

ROWS, WATERMARKS, LETTERS = "registration_projections", "watermarks", "dead_letters"


def upgrade() -> None:
    """Checks are replaced by wider ones, which are validated without a lock that stops writers."""
    for table, check in (
        (ROWS, "last_applied_sequence >= 0 AND last_applied_offset >= -1"),
        (WATERMARKS, '"partition" >= 0 AND "offset" >= -1'),
    ):
        op.drop_constraint(op.f(f"{table}_numbers_from_0"), table, type_="check")
        op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {table}_numbers CHECK ({check}) NOT VALID")
        op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {table}_numbers")
    op.add_column(WATERMARKS, sa.Column("topic_id", sa.String(36), nullable=True))
    op.add_column(LETTERS, sa.Column("entity_id", sa.Uuid(), nullable=True))
    op.create_index(f"{LETTERS}_by_entity", LETTERS, ["entity_id"], postgresql_where=sa.text("entity_id IS NOT NULL"))


def downgrade() -> None:
    """Rows that stand before a first message would not fit any more: rebase them first."""
    op.drop_index(f"{LETTERS}_by_entity", table_name=LETTERS)
    op.drop_column(LETTERS, "entity_id")
    op.execute('DELETE FROM watermarks WHERE "offset" < 0')
    op.drop_column(WATERMARKS, "topic_id")
    for table, check in (
        (ROWS, "last_applied_sequence >= 0 AND last_applied_offset >= 0"),
        (WATERMARKS, '"partition" >= 0 AND "offset" >= 0'),
    ):
        op.drop_constraint(op.f(f"{table}_numbers"), table, type_="check")
        op.create_check_constraint(op.f(f"{table}_numbers_from_0"), table, check)
