"""Every statement over `sessions`: who has signed in to the console. The cookie's secret is not stored."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from msgspec import Struct
from sqlalchemy import text

from app.store import audit
from app.store.audit import Act
from app.store.database import Connection
from app.store.statements import Statement


class SignIn(Struct, frozen=True, kw_only=True):
    """A session: the key that it was begun with, or the principal of a token, with what that token granted."""

    key_id: str | None = None
    principal: str | None = None
    scopes: Sequence[str] = ()
    domains: Sequence[str] = ()
    workflow_prefixes: Sequence[str] = ()


# A new session. Those that have ended are removed with it: there are few.
ADD = Statement(
    text("""
WITH ended AS (DELETE FROM sessions WHERE expires_at <= now())
INSERT INTO sessions (digest, key_id, principal, scopes, domains, workflow_prefixes, expires_at)
VALUES (
    CAST(:digest AS bytea), CAST(:key_id AS varchar), CAST(:principal AS varchar), CAST(:scopes AS text[]),
    CAST(:domains AS text[]), CAST(:prefixes AS text[]), now() + CAST(:lasts AS interval)
)
RETURNING expires_at
""")
)


async def begin(connection: Connection, digest: bytes, sign_in: SignIn, lasts: timedelta, act: Act) -> datetime:
    """Begin a session, and write the act down. Returns its end, by the database's clock."""
    [row] = await ADD.rows(
        connection,
        digest=digest,
        key_id=sign_in.key_id,
        principal=sign_in.principal,
        scopes=list(sign_in.scopes),
        domains=list(sign_in.domains),
        prefixes=list(sign_in.workflow_prefixes),
        lasts=lasts,
    )
    await audit.add(connection, act)
    end: datetime = row["expires_at"]
    return end


# One session.
GET = Statement(
    text("""
SELECT key_id, principal, scopes, domains, workflow_prefixes, expires_at FROM sessions
WHERE digest = CAST(:digest AS bytea) AND expires_at > now()
""")
)


async def get(connection: Connection, digest: bytes) -> tuple[SignIn, datetime] | None:
    """The session of this digest, and its end; None where there is none, or where it has ended."""
    rows = await GET.rows(connection, digest=digest)
    if not rows:
        return None
    key_id, principal, scopes, domains, prefixes, end = rows[0]
    sign_in = SignIn(key_id=key_id, principal=principal, scopes=scopes, domains=domains, workflow_prefixes=prefixes)
    return sign_in, end


# The end of one session.
END = Statement(text("DELETE FROM sessions WHERE digest = CAST(:digest AS bytea)"))


async def end(connection: Connection, digest: bytes) -> None:
    """End a session."""
    await END.rows(connection, digest=digest)
