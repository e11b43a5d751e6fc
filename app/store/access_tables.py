"""The tables of access: keys and their revision, quotas, and the audit log."""

from datetime import date, datetime

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Double,
    Identity,
    LargeBinary,
    String,
    Text,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.store.letter_tables import DeadLetter
from app.store.tables import Base


class ApiKey(Base):
    """An API key: its holder, rights, limits and end. `digest` is SHA-256 of its secret, which is not stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(10), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    digest: Mapped[bytes] = mapped_column(LargeBinary())
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    domains: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    workflow_prefixes: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    rate: Mapped[float | None] = mapped_column(Double())
    burst: Mapped[float | None] = mapped_column(Double())
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    created_by: Mapped[str] = mapped_column(String(300))
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    last_used_on: Mapped[date | None]

    __table_args__ = (
        CheckConstraint("octet_length(digest) = 32", name="digest_of_sha256"),
        CheckConstraint("rate > 0 AND burst >= 1", name="limits_positive"),
    )


class ApiKeyRevision(Base):
    """The number of changes of `api_keys`, in one row; no row means none. Services read it every 2 s."""

    __tablename__ = "api_key_revision"

    single: Mapped[bool] = mapped_column(Boolean(), primary_key=True)
    revision: Mapped[int]

    __table_args__ = (CheckConstraint("single", name="one_row"),)


class ConsoleSession(Base):
    """A person who has signed in to the console: with a key, or with a token, whose grant the other columns keep.

    `digest` is SHA-256 of the cookie's secret.
    """

    __tablename__ = "sessions"

    digest: Mapped[bytes] = mapped_column(LargeBinary(), primary_key=True)
    key_id: Mapped[str | None] = mapped_column(String(10))
    principal: Mapped[str | None] = mapped_column(String(300))
    scopes: Mapped[list[str] | None] = mapped_column(ARRAY(Text()))
    domains: Mapped[list[str] | None] = mapped_column(ARRAY(Text()))
    workflow_prefixes: Mapped[list[str] | None] = mapped_column(ARRAY(Text()))
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    expires_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint("octet_length(digest) = 32", name="digest_of_sha256"),
        CheckConstraint("(key_id IS NULL) = (principal IS NOT NULL)", name="key_or_principal"),
    )


class WorkflowQuota(Base):
    """The bytes that the states of all workflows whose key begins with `prefix` may use, and use now."""

    __tablename__ = "workflow_quotas"

    prefix: Mapped[str] = mapped_column(Text(), primary_key=True)
    max_bytes: Mapped[int]
    used_bytes: Mapped[int]

    __table_args__ = (CheckConstraint("max_bytes >= 0", name="bytes_from_0"),)


class AuditLogEntry(Base):
    """One action of a principal on a target, with its outcome. Rows are added, and never changed or removed."""

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(BigInteger(), Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    principal: Mapped[str] = mapped_column(String(300))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(Text())
    outcome: Mapped[str] = mapped_column(String(64))
    correlation_id: Mapped[str | None] = mapped_column(String(128))
    peer: Mapped[str | None] = mapped_column(String(300))


# A trigger binds every role, the owner and superusers included. To remove old entries, the owner must disable it by
# hand, which nobody does by mistake.
INSERT_ONLY = (
    """
CREATE FUNCTION audit_log_is_insert_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_log is insert-only: % is refused', TG_OP;
END
$$
""",
    """
CREATE TRIGGER audit_log_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
FOR EACH STATEMENT EXECUTE FUNCTION audit_log_is_insert_only()
""",
)
for _statement in INSERT_ONLY:
    event.listen(AuditLogEntry.__table__, "after_create", DDL(_statement.replace("%", "%%")))  # type: ignore[no-untyped-call]  # SQLAlchemy has no types here


METADATA = DeadLetter.metadata  # of all tables: of these, and of those in `tables` and `letter_tables`
