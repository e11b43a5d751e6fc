"""Workflows by key: an index in the order of bytes, which finds those whose keys begin with a text.

Revision: 0014, after 0013
"""

import sqlalchemy as sa

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

TABLE = "workflow_state"
BY_KEY = f"{TABLE}_by_key"


def upgrade() -> None:
    """The index is built while others read and write; what a broken-off build left behind is dropped first."""
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {BY_KEY}")
        op.execute(f'CREATE INDEX CONCURRENTLY {BY_KEY} ON {TABLE} (workflow_key COLLATE "C")')
        query = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
        if not op.get_bind().scalar(query, {"name": BY_KEY}):
            raise RuntimeError(f"{BY_KEY} is not valid: run the migration again")


def downgrade() -> None:
    """Nothing is lost."""
    op.drop_index(BY_KEY, table_name=TABLE)
