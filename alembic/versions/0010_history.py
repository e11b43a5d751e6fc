"""An index for the history of one entity: a B-tree in place of the summary of entity ids.

Revision: 0010, after 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

CHANGES = "changes"
BLOOM = "uuid_bloom_ops (n_distinct_per_range='1200')"  # what 16 pages hold of distinct ids
SUMMARY = "WITH (pages_per_range = 16, autosummarize = true)"


def upgrade() -> None:
    """Writes to the log wait while its indexes are built: about a second for each million of changes."""
    op.execute(f"CREATE INDEX {CHANGES}_by_entity ON {CHANGES} (entity_id, id)")
    op.execute(f"CREATE INDEX {CHANGES}_by_event ON {CHANGES} USING brin (event_id {BLOOM}) {SUMMARY}")
    op.execute(f"DROP INDEX {CHANGES}_by_entity_and_event")


def downgrade() -> None:
    """The same the other way round."""
    op.execute(
        f"CREATE INDEX {CHANGES}_by_entity_and_event ON {CHANGES} USING brin "
        f"(entity_id {BLOOM}, event_id {BLOOM}) {SUMMARY}"
    )
    op.execute(f"DROP INDEX {CHANGES}_by_event")
    op.execute(f"DROP INDEX {CHANGES}_by_entity")
