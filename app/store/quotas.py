"""Every statement over `workflow_quotas`: the bytes that the workflows of a prefix may take up.

A workflow counts with the bytes of its state as JSON text. Prefixes may overlap: each quota holds on its own.
"""

from collections.abc import Mapping, Sequence
from typing import TypeGuard, cast

from msgspec import Struct
from sqlalchemy import text

from app.domain.workflows import Commit, Committed
from app.errors import PqsError
from app.store import workflows
from app.store.database import Connection, LostRaceError
from app.store.statements import Statement
from app.store.workflows import CommitOutcome


class QuotaExceededError(PqsError):
    """The workflows of a prefix would take up more bytes than they may. Nothing was written."""

    def __init__(self, prefix: str, max_bytes: int) -> None:
        super().__init__(f"the workflows that begin with {prefix!r} may take up {max_bytes:,} bytes: that is reached")
        self.prefix = prefix
        self.max_bytes = max_bytes


class Quota(Struct, frozen=True):
    """What the workflows of a prefix may take up, and what they do."""

    prefix: str
    max_bytes: int
    used_bytes: int


# Nobody may write workflows while they are counted.
LOCK = Statement(text("LOCK TABLE workflow_state IN SHARE ROW EXCLUSIVE MODE"))

# A quota, with what is in use.
SET = Statement(
    text("""
INSERT INTO workflow_quotas (prefix, max_bytes, used_bytes)
SELECT CAST(:prefix AS text), CAST(:max_bytes AS bigint), coalesce(sum(octet_length(CAST(state AS text))), 0)
FROM workflow_state WHERE starts_with(workflow_key, CAST(:prefix AS text))
ON CONFLICT (prefix) DO UPDATE SET max_bytes = excluded.max_bytes, used_bytes = excluded.used_bytes
""")
)


async def set_quota(connection: Connection, prefix: str, max_bytes: int) -> None:
    """Give a prefix a quota, or another one, and count what is in use. Needs a transaction; it reads every workflow
    and keeps others from writing them meanwhile."""
    await LOCK.rows(connection)
    await SET.rows(connection, prefix=prefix, max_bytes=max_bytes)


REMOVE = Statement(text("DELETE FROM workflow_quotas WHERE prefix = CAST(:prefix AS text) RETURNING 1"))


async def remove_quota(connection: Connection, prefix: str) -> bool:
    """Take a quota back. False: there was none."""
    return await REMOVE.value(connection, prefix=prefix) is not None


# All quotas.
LIST = Statement(text("SELECT prefix, max_bytes, used_bytes FROM workflow_quotas ORDER BY prefix"))


async def get_all(connection: Connection) -> list[Quota]:
    """Every quota, by prefix."""
    return [Quota(*row) for row in await LIST.rows(connection)]


# Whether any prefix has a quota.
EXISTS = Statement(text("SELECT EXISTS (SELECT FROM workflow_quotas)"))


async def exist(connection: Connection) -> bool:
    """Whether there is any quota."""
    return bool(await EXISTS.value(connection))


# The bytes of some workflows, to be read before they are written. The rows are locked in the order in which commits
# lock them, so that nothing deadlocks and nobody changes a size in between.
SIZES = Statement(
    text("""
SELECT workflow_key, octet_length(CAST(state AS text)) FROM workflow_state
WHERE workflow_key = ANY(CAST(:keys AS text[])) ORDER BY workflow_key FOR UPDATE
""")
)


async def sizes(connection: Connection, keys: list[str]) -> dict[str, int]:
    """The bytes of those workflows that there are."""
    return {row[0]: row[1] for row in await SIZES.rows(connection, keys=keys)}


# Adds to what is in use. The rows are locked in the order of prefixes, so that nothing deadlocks.
CHARGE = Statement(
    text("""
WITH asked AS (
    SELECT q.prefix, CAST(sum(given.added) AS bigint) AS added
    FROM (SELECT prefix FROM workflow_quotas ORDER BY prefix FOR UPDATE) AS q
    JOIN unnest(CAST(:keys AS text[]), CAST(:added AS bigint[])) AS given (workflow_key, added)
        ON starts_with(given.workflow_key, q.prefix)
    GROUP BY q.prefix
)
UPDATE workflow_quotas AS q SET used_bytes = q.used_bytes + asked.added
FROM asked WHERE q.prefix = asked.prefix
RETURNING q.prefix, q.max_bytes, q.used_bytes, asked.added
""")
)


async def charge(connection: Connection, added: Mapping[str, int]) -> None:
    """Account for workflows that were written, by the bytes that each has more than before (or less).

    Needs the transaction of the write, which QuotaExceededError rolls back. What makes the states smaller is never
    refused, even where more is in use than may be.
    """
    rows = await CHARGE.rows(connection, keys=list(added), added=list(added.values()))
    for prefix, max_bytes, used_bytes, more in rows:
        if cast("int", more) > 0 and used_bytes > max_bytes:
            raise QuotaExceededError(prefix, max_bytes)


async def commit(connection: Connection, commits: Sequence[Commit]) -> list[CommitOutcome | None]:
    """As workflows.commit, within the quotas. Needs a transaction, which QuotaExceededError rolls back."""
    keys = sorted({each.workflow_key for each in commits})
    before = await sizes(connection, keys)
    outcomes = await workflows.commit(connection, commits)
    written = {each.workflow.workflow_key: each.workflow.version for each in outcomes if _is_new(each)}
    if any(version > 1 and key not in before for key, version in written.items()):
        raise LostRaceError("a workflow was created while it was measured")
    if written:
        after = await sizes(connection, sorted(written))
        await charge(connection, {key: after[key] - before.get(key, 0) for key in written})
    return outcomes


def _is_new(outcome: CommitOutcome | None) -> TypeGuard[Committed]:
    return isinstance(outcome, Committed) and not outcome.replayed
