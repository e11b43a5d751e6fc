"""Access: keys, quotas of workflow prefixes, and the audit log.

Revision: 0008, after 0007
"""

import sqlalchemy as sa

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KEYS = "api_keys"
REVISION = "api_key_revision"
QUOTAS = "workflow_quotas"
AUDIT = "audit_log"
REFUSE = """
CREATE FUNCTION audit_log_is_insert_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_log is insert-only: % is refused', TG_OP;
END
$$
"""
INSERT_ONLY = """
CREATE TRIGGER audit_log_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
FOR EACH STATEMENT EXECUTE FUNCTION audit_log_is_insert_only()
"""


def upgrade() -> None:
    """All tables are new and empty, so their indexes need no concurrent build."""
    op.create_table(
        KEYS,
        sa.Column("id", sa.String(10), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("domains", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("workflow_prefixes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("rate", sa.Double(), nullable=True),
        sa.Column("burst", sa.Double(), nullable=True),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.String(300), nullable=False),
        sa.Column("expires_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("last_used_on", sa.Date(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=f"{KEYS}_pkey"),
        sa.CheckConstraint("octet_length(digest) = 32", name=op.f(f"{KEYS}_digest_of_sha256")),
        sa.CheckConstraint("rate > 0 AND burst >= 1", name=op.f(f"{KEYS}_limits_positive")),
    )
    op.create_table(
        REVISION,
        sa.Column("single", sa.Boolean(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("single", name=f"{REVISION}_pkey"),
        sa.CheckConstraint("single", name=op.f(f"{REVISION}_one_row")),
    )
    op.create_table(
        QUOTAS,
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("max_bytes", sa.BigInteger(), nullable=False),
        sa.Column("used_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("prefix", name=f"{QUOTAS}_pkey"),
        sa.CheckConstraint("max_bytes >= 0", name=op.f(f"{QUOTAS}_bytes_from_0")),
    )
    op.create_table(
        AUDIT,
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("principal", sa.String(300), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("outcome", sa.String(64), nullable=False),
        sa.Column("correlation_id", sa.String(128), nullable=True),
        sa.Column("peer", sa.String(300), nullable=True),
        sa.PrimaryKeyConstraint("id", name=f"{AUDIT}_pkey"),
    )
    op.execute(REFUSE)
    op.execute(INSERT_ONLY)


def downgrade() -> None:
    """All keys and the audit log are lost: first copy the log."""
    op.drop_table(AUDIT)
    op.execute("DROP FUNCTION audit_log_is_insert_only()")
    op.drop_table(QUOTAS)
    op.drop_table(REVISION)
    op.drop_table(KEYS)
