"""Every statement over `sessions`: who has signed in to the console. The cookie's secret is not stored."""

from datetime import datetime, timedelta

from msgspec import Struct
from sqlalchemy import text

from app.store import audit
from app.store.audit import Act
from app.store.database import Connection
from app.store.statements import Statement


class SignIn(Struct, frozen=True):
    """A session that has not ended: the key that it was begun with, and its end."""

    key_id: str
    expires_at: datetime


# A new session. Those that have ended are removed with it: there are few.
ADD = Statement(
    text("""
WITH ended AS (DELETE FROM sessions WHERE expires_at <= now())
INSERT INTO sessions (digest, key_id, expires_at)
VALUES (CAST(:digest AS bytea), CAST(:key_id AS varchar), now() + CAST(:lasts AS interval))
RETURNING expires_at
""")
)


async def begin(connection: Connection, digest: bytes, key_id: str, lasts: timedelta, act: Act) -> datetime:
    """Begin a session, and write the act down. Returns its end, by the database's clock."""
    end: datetime = (await ADD.rows(connection, digest=digest, key_id=key_id, lasts=lasts))[0]["expires_at"]
    await audit.add(connection, act)
    return end


# One session.
GET = Statement(
    text("SELECT key_id, expires_at FROM sessions WHERE digest = CAST(:digest AS bytea) AND expires_at > now()")
)


async def get(connection: Connection, digest: bytes) -> SignIn | None:
    """The session of this digest; None where there is none, or where it has ended."""
    rows = await GET.rows(connection, digest=digest)
    return SignIn(*rows[0]) if rows else None


# The end of one session.
END = Statement(text("DELETE FROM sessions WHERE digest = CAST(:digest AS bytea)"))


async def end(connection: Connection, digest: bytes) -> None:
    """End a session."""
    await END.rows(connection, digest=digest)
