"""Every statement over `audit_log`: who did what, written in the act's own transaction."""

from msgspec import Struct
from sqlalchemy import text

from app.domain.events import Time
from app.store.database import Connection
from app.store.statements import Statement

NEWEST = 2**63 - 1  # the id before which every entry is


class Act(Struct, frozen=True, kw_only=True):
    """What is to be written down.

    `principal` is who did it, `action` what (such as `keys.create`), `target` to what, `peer` from which address.
    """

    principal: str
    action: str
    target: str
    outcome: str = "done"
    correlation_id: str | None = None
    peer: str | None = None


class LoggedAct(Act, frozen=True, kw_only=True):
    """An act that was written down, at `at` by the database's clock."""

    id: int
    at: Time


# One act.
ADD = Statement(
    text("""
INSERT INTO audit_log (principal, action, target, outcome, correlation_id, peer)
VALUES (
    CAST(:principal AS varchar), CAST(:action AS varchar), CAST(:target AS text), CAST(:outcome AS varchar),
    CAST(:correlation_id AS varchar), CAST(:peer AS varchar)
)
""")
)


async def add(connection: Connection, act: Act) -> None:
    """Write an act down, in the transaction that it happens in: neither is there without the other."""
    await ADD.rows(
        connection,
        principal=_storable(act.principal, 300),
        action=act.action,
        target=_storable(act.target, 4000),
        outcome=act.outcome,
        correlation_id=act.correlation_id,
        peer=act.peer,
    )


def _storable(value: str, length: int) -> str:
    """Text that PostgreSQL takes: an act is never refused because of the name that its target has."""
    return value[:length].encode("utf-8", "replace").decode().replace("\0", "\\u0000")[:length]


# A page, newest first.
LIST = Statement(
    text("""
SELECT id, at, principal, action, target, outcome, correlation_id, peer FROM audit_log
WHERE id < CAST(:before AS bigint) ORDER BY id DESC LIMIT CAST(:limit AS bigint)
""")
)


async def get_page(connection: Connection, *, before: int = NEWEST, limit: int) -> list[LoggedAct]:
    """The last `limit` entries before an id, newest first. Ids are given before the commit: an entry may come in
    below ones that are there already."""
    rows = await LIST.rows(connection, before=before, limit=limit)
    return [LoggedAct(**dict(row)) for row in rows]
